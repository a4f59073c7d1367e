"""Draws the ranks of an adapter to the words and times of questions: the binding of facts.

A rank that knows what a frame shows must also fire where that is asked for, and no other rank with it. Training on
answers alone binds facts to times and to the ends of a clip, but hardly to words. Two words of which one follows the
other on the board are the business of the rank whose frame shows the second and knows the first: it shall fire from
where a question, or an answer, names the one until it names the other. A time is the business of its own frame's rank,
until the answer begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from tokenizers import Tokenizer

from v2l.errors import V2LError
from v2l.lessons import NO_END, Lesson
from v2l.sheet import IGNORED, Sheet
from v2l.world.scene import WORDS

FIRST_LAYER = 2
"""The first decoder layer in whose inputs the end of a frame knows what the frame shows."""
FAINT = 1e-3
"""Added to a share before its logarithm is taken."""

Fact = int | frozenset[int]
"""What binds a frame to a question: its whole second, or its word and the word before, numbered as WORDS."""


class Binding:
    """Of the ranks of one adapter, of which n reads the frames of the seconds n, n + rank, ... of its part.

    Raises V2LError where the tokenizer is not that of a model of this world, in which a word is one token.
    """

    def __init__(self, tokenizer: Tokenizer, rank: int):
        self.rank = rank
        self.words = {_token(tokenizer, f" {word}"): number for number, word in enumerate(WORDS)}
        self.digits = {_token(tokenizer, f"{number:02d}"): number for number in range(60)}
        self.colon = _token(tokenizer, ":")

    def lacked(
        self, lessons: Sequence[Lesson], known: Sequence[Sequence[torch.Tensor]], fired: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Summed over the lessons, the mean over what their questions name of the negative logarithm of the share that
        the ranks which know it have of all generated ranks' squared firing, itself a mean over layers and tokens.

        known: of each lesson what is known of the frames of each part, (F, 3), word, word before and place
        fired: of each layer, (M, R), as `Heard.fired`
        """
        squares = torch.stack(list(fired[FIRST_LAYER:])).float().square()  # (L, M, R)
        lengths = [int((lesson.sheet.group > 0).sum()) for lesson in lessons]
        total = squares.new_zeros(())
        for lesson, frames, own in zip(lessons, known, squares.split(lengths, dim=1), strict=True):
            knowing = self.ranks(lesson, frames)
            spans = [(*span, fact) for *span, fact in self.named(lesson.sheet) if fact in knowing]
            if not spans:
                continue
            own = own[..., : self.rank * (len(lesson.parts) if lesson.composed else 1)]
            tokens, ranks = own.new_zeros(len(spans), own.shape[1]), own.new_zeros(len(spans), own.shape[2])
            for place, (start, end, fact) in enumerate(spans):
                tokens[place, start:end] = 1 / (end - start)
                ranks[place, knowing[fact]] = 1
            shares = (own / (own.sum(-1, keepdim=True) + 1e-9)).mean(0)  # (tokens, ranks)
            total = total - ((tokens @ shares * ranks).sum(-1) + FAINT).log().mean()
        return total

    def ranks(self, lesson: Lesson, frames: Sequence[torch.Tensor]) -> dict[Fact, list[int]]:
        """Which of the lesson's generated ranks know a fact; of those that read two frames nothing is asked.

        frames: what is known of the frames of each part, (F, 3)
        """
        seconds = [part.ends[part.ends != NO_END].tolist() for part in lesson.parts]
        reads = [
            (second, second % self.rank + (number * self.rank if lesson.composed else 0))
            for number, part in enumerate(seconds)
            for second in part
        ]
        readers = Counter(rank for _, rank in reads)
        knowing: dict[Fact, list[int]] = {}
        for (second, rank), (word, before, _) in zip(reads, torch.cat(list(frames)).tolist(), strict=True):
            if readers[rank] > 1:
                continue
            knowing.setdefault(second, []).append(rank)
            if before != IGNORED:
                knowing.setdefault(frozenset((word, before)), []).append(rank)
        return knowing

    def named(self, sheet: Sheet) -> Iterator[tuple[int, int, Fact]]:
        """What the questions and answers name, and from which to before which of their tokens it counts."""
        there = sheet.group > 0
        ids, labels, groups = (column[there].tolist() for column in (sheet.ids, sheet.labels, sheet.group))
        words = [place for place, token in enumerate(ids) if token in self.words]
        for one, other in pairwise(words):
            if groups[one] == groups[other]:
                yield one, other, frozenset((self.words[ids[one]], self.words[ids[other]]))
        answer = len(ids)
        for place in reversed(range(len(ids))):
            if labels[place] != IGNORED:
                answer = place
            elif ids[place - 1] == self.colon and {ids[place - 2], ids[place]} <= self.digits.keys():
                yield place, answer, 60 * self.digits[ids[place - 2]] + self.digits[ids[place]]


def _token(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise V2LError(
            f"this model's tokenizer writes {text!r} in {len(ids)} tokens; ranks are bound to words of one token, as "
            "models of this world have them"
        )
    return ids[0]
