"""Losses that draw the ranks of an adapter to the words and times of questions: the binding of facts.

A rank that represents what a frame shows must also be active where that is asked for, and no other rank with it.
Training on answers alone binds facts to times and to the ends of a clip, but hardly to words.

- Two consecutive words on the board belong to the rank whose frame shows the second and which knows the first. It
  shall be active where a question or an answer names the one and then the other, at the first of the two: later tokens
  hardly determine which word was named.
- A rank writes one direction, so it can separate two words only by the sign of its activation: the previous word is
  asked for with the opposite sign.
- A time belongs to the rank of the frame at that time, until the answer begins; so do "first" and "last" in a question
  to the ranks of the video's first and last frame.

Few clips name two times that ranks confuse, so `TimeKeys` trains each rank's row of A against all times at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from v2l.errors import V2LError
from v2l.models.language_model import LanguageModel, causal
from v2l.models.processor import frame_clock, question_text
from v2l.models.smolvlm import FrozenVLM
from v2l.tiny.recipe.language_stage import REFERRING
from v2l.tiny.world.questions import PHRASINGS
from v2l.tiny.world.scene import WORDS
from v2l.training.data import NO_END, TrainingSample
from v2l.training.packing import IGNORED, PackedSequence

FIRST_LAYER = 2
"""The first decoder layer in whose inputs the end of a frame represents what the frame shows."""
EPSILON = 1e-3
"""Added to a share before the logarithm."""
MINUTES = 19
"""Questions are about times below this; clips of training are not longer."""
KEY_NOISE = 0.1
"""The relative error of a question's hidden state that a row of A must tolerate: adapters change the state."""

TIME, AFTER, BEFORE, EDGE = QUERY_KINDS = range(4)
"""What a query asks for: the content at a time, after a word, before a word, at the video's first or last frame."""

Fact = tuple[int, ...]
"""What binds a frame to a question: its whole second, or the previous word and its word, as indices of WORDS."""
FIRST, LAST = (-2,), (-1,)
"""Stand for the second of the video's first frame and of its last."""

Query = tuple[int, int, Fact, list[int]]
"""The first token at which a fact is asked for and the one after the last, the fact, and the ranks that know it."""


class Binding:
    """The loss of one adapter's ranks, of which rank n reads the frames of the seconds n, n + rank, ... of its part.

    Raises V2LError if the tokenizer is not that of a model of this world, in which a word is one token.
    """

    def __init__(self, tokenizer: Tokenizer | None, rank: int):
        if tokenizer is None:
            raise V2LError("this model has no tokenizer.json; ranks cannot be bound to words")
        self.rank = rank
        self.words = {_token(tokenizer, f" {word}"): number for number, word in enumerate(WORDS)}
        self.digits = {_token(tokenizer, f"{number:02d}"): number for number in range(60)}
        self.colon = _token(tokenizer, ":")
        self.edges = {_token(tokenizer, " first"): FIRST, _token(tokenizer, " last"): LAST}

    def loss(
        self,
        samples: Sequence[TrainingSample],
        facts: Sequence[Sequence[torch.Tensor]],
        activations: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """The loss summed over samples and kinds of queries, for each kind the mean over its queries.

        TIME, AFTER, EDGE: the negative logarithm of the share that the knowing ranks have in the squared activation of
        all generated ranks, averaged over layers and tokens. BEFORE: the negative logarithm of ((1 + cosine) / 2)^4,
        with the cosine to the activation of these ranks with the opposite sign; near 1 both agree. Only the layers up
        to the one in which the frozen model reads the frame that is asked for count.

        facts: `known_facts` of each sample, (F, 5) for each part: word, previous word and others
        activations: in each layer, (M, R), as in `AnswerPass.activations`
        """
        layers = torch.stack(list(activations[FIRST_LAYER:REFERRING])).float()  # (L, M, R)
        lengths = [_count_tokens(sample) for sample in samples]
        total, forward, backward = layers.new_zeros(()), layers.new_zeros(len(layers), 1), []
        for sample, parts, own in zip(samples, facts, layers.split(lengths, dim=1), strict=True):
            # Generated ranks alone, of unit norm for each token
            own = own[..., : self.rank * (len(sample.parts) if sample.composed else 1)]
            own = F.normalize(own, dim=-1)
            for kind, queries in self.queries(sample, parts).items():
                # Which tokens ask and which ranks know
                tokens, ranks = own.new_zeros(len(queries), own.shape[1]), own.new_zeros(len(queries), own.shape[2])
                for number, (start, end, _, knowing) in enumerate(queries):
                    tokens[number, start:end] = 1 / (end - start)
                    ranks[number, knowing] = 1
                cosine = (tokens @ own * F.normalize(ranks, dim=-1)).sum(-1)  # (L, queries)
                if kind == BEFORE:
                    backward.append(cosine)
                    continue
                forward += cosine.detach().sum(1, keepdim=True)
                total = total - ((tokens @ own.square().mean(0) * ranks).sum(-1) + EPSILON).log().mean()
        # The sign of the other kinds, in each layer, defines the opposite one
        for cosine in backward:
            total = total - 4 * ((1 - (forward.sign() * cosine).mean(0)) / 2 + EPSILON).log().mean()
        return total

    def queries(self, sample: TrainingSample, facts: Sequence[torch.Tensor]) -> dict[int, list[Query]]:
        """The queries of a sample's questions and answers for which some rank knows the fact, by kind. BEFORE is a kind
        of its own because few answers name a previous word; among the others it would be lost.

        facts: `known_facts`, (F, 5) for each part
        """
        knowing = self.ranks(sample, facts)
        queries: dict[int, list[Query]] = defaultdict(list)
        parts = _seconds(sample)
        ends = (FIRST, (0, parts[0][0])), (LAST, (len(parts) - 1, parts[-1][-1]))
        edges = {fact: end for (fact, end), shown in zip(ends, sample.edges, strict=True) if shown}
        for start, end, fact in self.mentions(sample.sequence):
            if fact in edges:  # no other rank knows it, even if this one reads several frames
                part, second = edges[fact]
                queries[EDGE].append((start, end, (second,), [self._reader(sample, part, second)]))
            elif fact in knowing:
                queries[TIME if len(fact) == 1 else AFTER].append((start, end, fact, knowing[fact]))
            elif fact[::-1] in knowing:
                queries[BEFORE].append((start, end, fact, knowing[fact[::-1]]))
        return queries

    def targets(self, sample: TrainingSample, facts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The facts that each token of the questions and answers asks for, by QUERY_KINDS, in the columns of `facts`:
        (4, T, 5) int64. For TIME and EDGE all facts of the frame, otherwise a word alone; IGNORED if the token asks for
        nothing or no rank knows it.

        facts: `known_facts`, (F, 5) for each part
        """
        shown, seconds = torch.cat(list(facts)), [second for part in _seconds(sample) for second in part]
        targets = torch.full((len(QUERY_KINDS), _count_tokens(sample), shown.shape[1]), IGNORED)
        for kind, queries in self.queries(sample, facts).items():
            for start, _, fact, _ in queries:
                if kind in (TIME, EDGE):
                    targets[kind, start] = shown[seconds.index(fact[0])]
                    targets[kind, start, 1] = IGNORED  # the model does not look for the previous word there
                else:
                    targets[kind, start, 0] = fact[1]
        return targets

    def ranks(self, sample: TrainingSample, facts: Sequence[torch.Tensor]) -> dict[Fact, list[int]]:
        """The sample's generated ranks that know each fact. Ranks that read two frames are left out.

        facts: `known_facts`, (F, 5) for each part
        """
        reads = [
            (second, self._reader(sample, number, second))
            for number, part in enumerate(_seconds(sample))
            for second in part
        ]
        readers = Counter(rank for _, rank in reads)
        knowing: dict[Fact, list[int]] = {}
        for (second, rank), (word, before, *_) in zip(reads, torch.cat(list(facts)).tolist(), strict=True):
            if readers[rank] > 1:
                continue
            knowing.setdefault((second,), []).append(rank)
            if before != IGNORED:
                knowing.setdefault((before, word), []).append(rank)
        return knowing

    def _reader(self, sample: TrainingSample, part: int, second: int) -> int:
        """The generated rank that reads this second of this part."""
        return second % self.rank + (part * self.rank if sample.composed else 0)

    def mentions(self, sequence: PackedSequence) -> Iterator[tuple[int, int, Fact]]:
        """Iterate over the facts that questions and answers name, with the first token that counts and the one after
        the last: a time, FIRST or LAST, or a word and the next word named, which comes after it or before it."""
        own = sequence.group > 0
        ids, labels, groups = (column[own].tolist() for column in (sequence.ids, sequence.labels, sequence.group))
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
        """Whether the token at this place is the second of a time."""
        return ids[place - 1] == self.colon and {ids[place - 2], ids[place]} <= self.digits.keys()


@torch.no_grad()
def _activations(model: LanguageModel, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the inputs of `down_proj`, (B, T, d_in), of text, (B, T), in the layers in which ranks are bound."""
    count, length = ids.shape
    positions = torch.arange(length, device=ids.device).repeat(count)
    x, rotary, attend = model.embed(ids.flatten()), model.rotary(positions), causal(count)
    for index in range(REFERRING):
        layer = model.layers[index]
        x = layer.add_attention(x, layer.attention(x, index, rotary, attend))
        inner = layer.activations(x)
        if index >= FIRST_LAYER:
            yield inner.view(count, length, -1)
        x = layer.add_mlp(x, inner)


class TimeKeys:
    """The inputs of `down_proj` at a question's named second, in the layers in which ranks are bound, for every time
    below `MINUTES`: (L, 2, times, d_in), of the frozen model alone, in two phrasings of the training questions.

    Raises V2LError if the tokenizer is not that of a model of this world.
    """

    def __init__(self, vlm: FrozenVLM, binding: Binding):
        keys = []
        for asks in (PHRASINGS["word at"][1], PHRASINGS["word at"][3]):
            questions = [question_text(asks.format(time=frame_clock(second))) for second in range(60 * MINUTES)]
            ids = torch.stack([vlm.tokenize(question) for question in questions]).to(vlm.device)
            place = next(place for place in range(2, ids.shape[1]) if binding.is_second(ids[0].tolist(), place))
            keys.append(torch.stack([inner[:, place].float() for inner in _activations(vlm.language_model, ids)]))
        self.keys = torch.stack(keys, dim=1)

    def loss(self, rows: Sequence[torch.Tensor], seconds: torch.Tensor) -> torch.Tensor:
        """For each of N ranks the negative logarithm of its own time's share in its row's squared activation over all
        times of its minute and at its second in all minutes, averaged over layers: (N,).

        rows: of A in each layer, (N, d_in); seconds: (N,) int64 below 60 * MINUTES, the times that the ranks know
        """
        times = torch.arange(60 * MINUTES, device=seconds.device)
        near = (times // 60 == seconds[:, None] // 60) | (times % 60 == seconds[:, None] % 60)  # (N, times)
        total = torch.zeros(len(seconds), device=seconds.device)
        for keys, row in zip(self.keys, rows[FIRST_LAYER:REFERRING], strict=True):
            noise = KEY_NOISE**2 * keys.square().mean() * row.square().sum(1)  # the squared activation by KEY_NOISE
            active = (row @ keys.flatten(0, 1).T).unflatten(1, keys.shape[:2]).square().mean(1) + noise[:, None]
            own = active.gather(1, seconds[:, None])[:, 0] - noise
            total = total - (own / (active * near).sum(1) + EPSILON).log()
        return total / len(self.keys)


def _seconds(sample: TrainingSample) -> list[list[int]]:
    """The whole seconds at which each part's frames are announced."""
    return [part.ends[part.ends != NO_END].tolist() for part in sample.parts]


def _count_tokens(sample: TrainingSample) -> int:
    """The number of tokens of the questions and answers."""
    return int((sample.sequence.group > 0).sum())


def _token(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise V2LError(
            f"this model's tokenizer writes {text!r} in {len(ids)} tokens; ranks are bound to words of one token, as "
            "models of this world have them"
        )
    return ids[0]
