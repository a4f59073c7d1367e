"""Draws the ranks of an adapter to the words and times of questions: the binding of facts.

A rank that knows what a frame shows must also fire where that is asked for, and no other rank with it. Training on
answers alone binds facts to times and to the ends of a clip, but hardly to words. Two words of which one follows the
other on the board are the business of the rank whose frame shows the second and knows the first: it shall fire where a
question, or an answer, names the one and then the other, at the first of the two. Later tokens hardly tell which word
was named. A rank writes one direction, so that the same rank can tell two words only by the sign of its firing: what
comes before is told the other way round. A time is the business of its own frame's rank, until the answer begins; so is
what a question calls first or last that of the rank of the video's first or last frame.
Few clips name two times that ranks mix up; `TimeKeys` holds each rank's row of A against all times at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from v2l.errors import V2LError
from v2l.models.processor import question_text
from v2l.models.smolvlm import FrozenVLM
from v2l.tiny.recipe.language_stage import REFERRING
from v2l.tiny.world.questions import PHRASINGS, clock
from v2l.tiny.world.scene import WORDS
from v2l.training.data import NO_END, TrainingSample
from v2l.training.packing import IGNORED, PackedSequence

FIRST_LAYER = 2
"""The first decoder layer in whose inputs the end of a frame knows what the frame shows."""
FAINT = 1e-3
"""Added to a share before its logarithm is taken."""

MINUTES = 19
"""How many of them there are questions about: clips of training are not longer."""
UNSURE = 0.1
"""How far off, of its size, a question's hidden state may be: adapters change it."""

TIME, AFTER, BEFORE, EDGE = WAYS = range(4)
"""What is asked for: what is there at a time, after a word, before a word, and at first or at last."""

Fact = tuple[int, ...]
"""What binds a frame to a question: its whole second alone, or the word before and its word, numbered as WORDS."""
FIRST, LAST = (-2,), (-1,)
"""In place of the second of the video's first frame, and of its last."""

Asked = tuple[int, int, Fact, list[int]]
"""From which to before which token a fact is asked for, and the ranks that know it."""


class Binding:
    """Of the ranks of one adapter, of which n reads the frames of the seconds n, n + rank, ... of its part.

    Raises V2LError where the tokenizer is not that of a model of this world, in which a word is one token.
    """

    def __init__(self, tokenizer: Tokenizer, rank: int):
        self.rank = rank
        self.words = {_token(tokenizer, f" {word}"): number for number, word in enumerate(WORDS)}
        self.digits = {_token(tokenizer, f"{number:02d}"): number for number in range(60)}
        self.colon = _token(tokenizer, ":")
        self.edges = {_token(tokenizer, " first"): FIRST, _token(tokenizer, " last"): LAST}

    def lacked(
        self, samples: Sequence[TrainingSample], known: Sequence[Sequence[torch.Tensor]], fired: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Summed over the samples and over times, words that ask for the next, words that ask for the one before, and
        ends, the mean over those that are named. Of all but what comes before, the negative logarithm of the share that
        the ranks which know the fact have of all generated ranks' squared firing, itself a mean over layers and tokens.
        What comes before the same ranks shall tell by firing the other way round; there it is the negative logarithm of
        ((1 + cosine) / 2)^4, of the cosine to that, which near 1 is the same. Only the layers count up to the one in
        which the frozen model reads the frame that it is asked for.

        known: of each sample what is known of the frames of each part, (F, 5), word, word before and others
        fired: of each layer, (M, R), as `Heard.fired`
        """
        every = torch.stack(list(fired[FIRST_LAYER:REFERRING])).float()  # (L, M, R)
        lengths = [_tokens(sample) for sample in samples]
        total, forward, backward = every.new_zeros(()), every.new_zeros(len(every), 1), []
        for sample, frames, own in zip(samples, known, every.split(lengths, dim=1), strict=True):
            own = own[..., : self.rank * (len(sample.parts) if sample.composed else 1)]
            own = F.normalize(own, dim=-1)
            for way, spans in self.asked(sample, frames).items():
                tokens, ranks = own.new_zeros(len(spans), own.shape[1]), own.new_zeros(len(spans), own.shape[2])
                for place, (start, end, _, knowing) in enumerate(spans):
                    tokens[place, start:end] = 1 / (end - start)
                    ranks[place, knowing] = 1
                cosine = (tokens @ own * F.normalize(ranks, dim=-1)).sum(-1)  # (L, spans)
                if way == BEFORE:
                    backward.append(cosine)
                    continue
                forward += cosine.detach().sum(1, keepdim=True)
                total = total - ((tokens @ own.square().mean(0) * ranks).sum(-1) + FAINT).log().mean()
        for cosine in backward:
            total = total - 4 * ((1 - (forward.sign() * cosine).mean(0)) / 2 + FAINT).log().mean()
        return total

    def asked(self, sample: TrainingSample, frames: Sequence[torch.Tensor]) -> dict[int, list[Asked]]:
        """What is asked for at a TIME, at words that ask for the one AFTER them, at those that ask for the one BEFORE
        and at an EDGE of the video, as far as there are any and ranks know it. What comes before is named in few
        answers, and would be lost among the others.

        frames: what is known of the frames of each part, (F, 5)
        """
        knowing = self.ranks(sample, frames)
        asked: dict[int, list[Asked]] = defaultdict(list)
        parts = _seconds(sample)
        ends = (FIRST, (0, parts[0][0])), (LAST, (len(parts) - 1, parts[-1][-1]))
        edges = {fact: end for (fact, end), there in zip(ends, sample.edges, strict=True) if there}
        for start, end, fact in self.named(sample.sequence):
            if fact in edges:  # whatever else that rank reads, no other one knows it
                part, second = edges[fact]
                asked[EDGE].append((start, end, (second,), [self._reader(sample, part, second)]))
            elif fact in knowing:
                asked[TIME if len(fact) == 1 else AFTER].append((start, end, fact, knowing[fact]))
            elif fact[::-1] in knowing:
                asked[BEFORE].append((start, end, fact, knowing[fact[::-1]]))
        return asked

    def told(self, sample: TrainingSample, frames: Sequence[torch.Tensor]) -> torch.Tensor:
        """What is found where each token of the questions and answers asks for it, in the columns of `frames`, by
        WAYS, (4, T, 5) int64: at a TIME and at an EDGE all that the frame shows, else a word alone; IGNORED where
        nothing is asked, or where no rank knows it.

        frames: what is known of the frames of each part, (F, 5)
        """
        shown, seconds = torch.cat(list(frames)), [second for part in _seconds(sample) for second in part]
        told = torch.full((len(WAYS), _tokens(sample), shown.shape[1]), IGNORED)
        for way, spans in self.asked(sample, frames).items():
            for start, _, fact, _ in spans:
                if way in (TIME, EDGE):
                    told[way, start] = shown[seconds.index(fact[0])]
                    told[way, start, 1] = IGNORED  # the word before is not looked for there
                else:
                    told[way, start, 0] = fact[1]
        return told

    def ranks(self, sample: TrainingSample, frames: Sequence[torch.Tensor]) -> dict[Fact, list[int]]:
        """Which of the sample's generated ranks know a fact; of those that read two frames nothing is asked.

        frames: what is known of the frames of each part, (F, 5)
        """
        reads = [
            (second, self._reader(sample, number, second))
            for number, part in enumerate(_seconds(sample))
            for second in part
        ]
        readers = Counter(rank for _, rank in reads)
        knowing: dict[Fact, list[int]] = {}
        for (second, rank), (word, before, *_) in zip(reads, torch.cat(list(frames)).tolist(), strict=True):
            if readers[rank] > 1:
                continue
            knowing.setdefault((second,), []).append(rank)
            if before != IGNORED:
                knowing.setdefault((before, word), []).append(rank)
        return knowing

    def _reader(self, sample: TrainingSample, part: int, second: int) -> int:
        """The generated rank that reads that second of that part."""
        return second % self.rank + (part * self.rank if sample.composed else 0)

    def named(self, sequence: PackedSequence) -> Iterator[tuple[int, int, Fact]]:
        """What the questions and answers name, and from which to before which of their tokens it counts: a time, FIRST
        or LAST, or a word and the one that is told of it, which comes after or before."""
        there = sequence.group > 0
        ids, labels, groups = (column[there].tolist() for column in (sequence.ids, sequence.labels, sequence.group))
        words = [place for place, token in enumerate(ids) if token in self.words]
        for one, other in pairwise(words):
            if groups[one] == groups[other]:
                yield one, one + 1, (self.words[ids[one]], self.words[ids[other]])
        answer = len(ids)
        for place in reversed(range(len(ids))):
            if labels[place] != IGNORED:
                answer = place
            elif ids[place] in self.edges:
                yield place, answer, self.edges[ids[place]]
            elif self.is_second(ids, place):
                yield place, answer, (60 * self.digits[ids[place - 2]] + self.digits[ids[place]],)

    def is_second(self, ids: Sequence[int], place: int) -> bool:
        """Whether the token at that place is the second of a time."""
        return ids[place - 1] == self.colon and {ids[place - 2], ids[place]} <= self.digits.keys()


class TimeKeys:
    """What a question's named second is to the layers in which ranks are bound, for every time of `MINUTES`: the inputs
    of their `down_proj` there, in the frozen model alone, in two phrasings that training hears, (L, 2, times, d_in).

    Raises V2LError where the tokenizer is not that of a model of this world.
    """

    def __init__(self, vlm: FrozenVLM, binding: Binding):
        inputs: dict[int, torch.Tensor] = {}
        layers = range(FIRST_LAYER, REFERRING)
        hooks = [
            vlm.down_projections[layer].register_forward_pre_hook(
                lambda _, given, layer=layer: inputs.update({layer: given[0]})
            )
            for layer in layers
        ]
        heard = []
        for asks in (PHRASINGS["word at"][1], PHRASINGS["word at"][3]):
            asked = [question_text(asks.format(time=clock(second))) for second in range(60 * MINUTES)]
            ids = torch.stack([vlm.tokenize(question) for question in asked]).to(vlm.device)
            place = next(place for place in range(2, ids.shape[1]) if binding.is_second(ids[0].tolist(), place))
            with torch.no_grad():
                vlm.logits(ids)
            heard.append(torch.stack([inputs[layer][:, place].float() for layer in layers]))
        for hook in hooks:
            hook.remove()
        self.keys = torch.stack(heard, dim=1)

    def missed(self, rows: Sequence[torch.Tensor], seconds: torch.Tensor) -> torch.Tensor:
        """Of N ranks the mean over the layers of the negative logarithm of the share that its own time has of its
        row's squared firing at all times of its minute and at its second of all minutes, (N,).

        rows: of each layer, (N, d_in), of A; seconds: (N,) int64 below 60 * MINUTES, that the ranks know
        """
        times = torch.arange(60 * MINUTES, device=seconds.device)
        near = (times // 60 == seconds[:, None] // 60) | (times % 60 == seconds[:, None] % 60)  # (N, times)
        total = 0.0
        for keys, row in zip(self.keys, rows[FIRST_LAYER:REFERRING], strict=True):
            unsure = UNSURE**2 * keys.square().mean() * row.square().sum(1)  # what being off by it fires
            fired = (row @ keys.flatten(0, 1).T).unflatten(1, keys.shape[:2]).square().mean(1) + unsure[:, None]
            own = fired.gather(1, seconds[:, None])[:, 0] - unsure
            total = total - (own / (fired * near).sum(1) + FAINT).log()
        return total / len(self.keys)


def _seconds(sample: TrainingSample) -> list[list[int]]:
    """Of each part's frames the whole seconds that they are announced at."""
    return [part.ends[part.ends != NO_END].tolist() for part in sample.parts]


def _tokens(sample: TrainingSample) -> int:
    """How many tokens the questions and answers have."""
    return int((sample.sequence.group > 0).sum())


def _token(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise V2LError(
            f"this model's tokenizer writes {text!r} in {len(ids)} tokens; ranks are bound to words of one token, as "
            "models of this world have them"
        )
    return ids[0]
