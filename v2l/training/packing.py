"""Several questions about one video in one sequence, none of which sees another: what training reads.

The video, or nothing, stands first and once; every question with its answer stands behind it as if it were the only
one, with the positions that it would have alone. Training thus pays for the video once, however much is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence

from v2l.models.processor import END_OF_TURN

IGNORED = -100
"""The label of a token that the loss does not count."""
PLACE = "\0"
"""Stands in a prompt for the question."""


@dataclass(frozen=True)
class Sheet:
    """T tokens: ids, labels and positions, (T,) int64.

    group: (T,) int64, 0 for what comes first and n for the n-th question and its answer
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    group: torch.Tensor


def write_sheet(
    shown: str, questions: Sequence[tuple[str, str]], tokenizer: Tokenizer, end: str = END_OF_TURN
) -> Sheet:
    """The sheet of some questions, (prompt, answer) each; the loss counts answers and the `end` behind them.

    shown: the prompt as prompt.py builds it, with PLACE where a question goes
    """
    opening, closing = shown.split(PLACE)
    before = opening.rstrip(" ")
    gap = opening[len(before) :]  # a space belongs to the word behind it
    ids = tokenizer.encode(before, add_special_tokens=False).ids
    start = len(ids)
    labels, positions, group = [IGNORED] * start, list(range(start)), [0] * start
    for number, (prompt, answer) in enumerate(questions, 1):
        heard = tokenizer.encode(gap + prompt + closing, add_special_tokens=False).ids
        said = tokenizer.encode(f" {answer}{end}", add_special_tokens=False).ids
        ids += heard + said
        labels += [IGNORED] * len(heard) + said
        positions += range(start, start + len(heard) + len(said))
        group += [number] * (len(heard) + len(said))
    return Sheet(*(torch.tensor(values) for values in (ids, labels, positions, group)))


UNASKED = -1
"""The question number of a place in a row where none stands."""


@dataclass(frozen=True)
class Rows:
    """C sheets for `side_by_side.py`: what comes first, and the questions in R rows of W tokens, several in a row where
    they fit.

    opening: (C, V) int64, padded on the right; there: (C, V) bool, where it is no padding
    ids, labels, positions: (C, R, W) int64
    question: (C, R, W) int64, numbered over all sheets, or UNASKED
    """

    opening: torch.Tensor
    there: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    question: torch.Tensor

    @classmethod
    def stack(cls, sheets: Sequence[Sheet], device: torch.device) -> Rows:
        """Several sheets as one batch; the questions of each in their order, as wide as the longest of all."""
        lengths = [torch.bincount(sheet.group)[1:].tolist() for sheet in sheets]
        width = max(max(each) for each in lengths)
        placed = [place_in_rows(each, width) for each in lengths]
        shape = len(sheets), max(rows for _, rows in placed), width
        columns = {
            "ids": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, IGNORED),
            "positions": torch.zeros(shape, dtype=torch.int64),
        }
        question, before = torch.full(shape, UNASKED), 0
        for clip, (sheet, (places, _)) in enumerate(zip(sheets, placed, strict=True)):
            for number, (row, span) in enumerate(places):
                own = sheet.group == number + 1
                question[clip, row, span] = before + number
                for name, column in columns.items():
                    column[clip, row, span] = getattr(sheet, name)[own]
            before += len(places)
        opening = [sheet.ids[sheet.group == 0] for sheet in sheets]
        there = pad_sequence([torch.ones_like(ids, dtype=torch.bool) for ids in opening], batch_first=True)
        found = pad_sequence(opening, batch_first=True), there, *columns.values(), question
        return cls(*(each.to(device) for each in found))

    def in_order(self, values: torch.Tensor) -> torch.Tensor:
        """Of (C, R, W, ...) values what belongs to questions and answers, (N, ...), question after question."""
        there = self.question != UNASKED
        return values[there][self.question[there].argsort(stable=True)]


def place_in_rows(lengths: Sequence[int], width: int) -> tuple[list[tuple[int, slice]], int]:
    """Where in rows of that width to put questions of those lengths, each in the first row that has room: of each its
    row and its span; and how many rows that takes."""
    used: list[int] = []
    places = []
    for length in lengths:
        row = next((row for row, taken in enumerate(used) if taken + length <= width), None)
        if row is None:
            row = len(used)
            used.append(0)
        places.append((row, slice(used[row], used[row] + length)))
        used[row] += length
    return places, len(used)


def mean_by_question(losses: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
    """(N,) losses of tokens to (Q,) means over each question's."""
    count = torch.bincount(question)
    return torch.zeros(len(count), device=losses.device).index_add(0, question, losses) / count
