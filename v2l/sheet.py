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

from v2l.prompt import END_OF_TURN

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


@dataclass(frozen=True)
class Sheets:
    """B sheets padded on the right to T tokens: ids, labels, positions and group, (B, T) int64."""

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    group: torch.Tensor

    @classmethod
    def stack(cls, sheets: Sequence[Sheet], device: torch.device) -> Sheets:
        """Several sheets as one batch."""
        padding = {"ids": 0, "labels": IGNORED, "positions": 0, "group": -1}
        return cls(
            **{
                name: pad_sequence(
                    [getattr(sheet, name) for sheet in sheets], batch_first=True, padding_value=value
                ).to(device)
                for name, value in padding.items()
            }
        )

    def visible(self) -> torch.Tensor:
        """(B, 1, T, T) bool: a token sees what stands before it in its own question, and the beginning."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        same = (self.group[:, None] == 0) | (self.group[:, None] == self.group[..., None])
        return (causal & same)[:, None]

    def answers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The N tokens that the loss counts: (B, T - 1) bool, true where the next token is one; those tokens, (N,);
        and the number of each one's question among all of the batch, (N,)."""
        counted = self.labels[:, 1:] != IGNORED
        most = int(self.group.max()) + 1
        row = torch.arange(len(self.ids), device=self.ids.device)[:, None] * most
        _, question = torch.unique((row + self.group[:, 1:])[counted], return_inverse=True)
        return counted, self.labels[:, 1:][counted], question


def mean_by_question(losses: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
    """(N,) losses of tokens to (Q,) means over each question's."""
    count = torch.bincount(question)
    return torch.zeros(len(count), device=losses.device).index_add(0, question, losses) / count
