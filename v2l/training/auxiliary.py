"""Auxiliary losses: the interface through which a training adds terms to the training objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from v2l.adapters.lora import Factors
from v2l.training.data import TrainingSample


@dataclass(frozen=True)
class AnswerPass:
    """The model's output for the questions of some samples, question after question.

    logits: (N, vocabulary) for the N tokens that the loss counts, or None if they are not needed
    targets, question: (N,) int64, these tokens and the number of the question of each
    hidden: (M, D) after each layer, for all M tokens of questions and answers; empty unless hidden states are compared
    token_question: (M,) int64, the number of the question of each of these tokens
    activations: the adapter's rank activations x A^T for these tokens, (M, R) in each layer; empty without an adapter
    """

    logits: torch.Tensor | None
    targets: torch.Tensor
    question: torch.Tensor
    hidden: list[torch.Tensor]
    token_question: torch.Tensor
    activations: list[torch.Tensor]

    def cross_entropy(self) -> torch.Tensor:
        """Cross-entropy of each token that the loss counts, (N,)."""
        assert self.logits is not None  # computed for every pass but a teacher's whose answers are not compared
        return F.cross_entropy(self.logits, self.targets, reduction="none")


class AuxiliaryLoss:
    """Terms added to the training loss. Subclasses override the methods that they need; each term is a sum over its
    batch. None of the methods is called in validation.

    modules: trained, saved and restored with the hypernetwork, by name
    answers: if False, the loss consists of `rows_loss` and `factors_loss` alone and no question is asked
    """

    modules: Mapping[str, nn.Module] = {}
    answers: bool = True

    def begin(self, samples: Sequence[TrainingSample]) -> None:
        """Prepare for the loss of these samples. Called first for each batch."""

    def rows_loss(self, rows: Sequence[int], ends: torch.Tensor) -> torch.Tensor | float:
        """Term for the U rows that the hypernetwork has just read, called after each of its forward passes.

        rows: their indices among all rows of the batch (see `by_row`); ends: (U, T), `Part.ends` of each
        """
        return 0.0

    def factors_loss(self, factors: Factors, ends: Sequence[torch.Tensor]) -> torch.Tensor | float:
        """Term for the factors of all rows of the batch, (U, 2r, d), before they are composed.

        ends: `Part.ends` of each row, (T,)
        """
        return 0.0

    def answers_loss(self, samples: Sequence[TrainingSample], student: AnswerPass) -> torch.Tensor | float:
        """Term for the answers of the model with the adapters applied."""
        return 0.0

    def teacher_loss(
        self,
        samples: Sequence[TrainingSample],
        tokens: torch.Tensor,
        pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor | float:
        """Term for the student against the model with the video in context. Called only with a `hidden_weight`.

        tokens: (N,) int64, indices of the compared tokens among all tokens of the samples' questions and answers
        pairs: the student's and the teacher's hidden states of these tokens after each layer, (N, D), normalised to
            unit root mean square
        """
        return 0.0
