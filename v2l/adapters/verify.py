"""Proof that an adapter is sound and does something to the model it names.

That a file opens shows its keys, shapes, finite values and seal. What only the model can show: that it is the one the
adapter was made for, that its answers change under the adapter, and that they change by more than the learned bias,
which every adapter of a hypernetwork has in common.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from v2l.adapters.adapter import Adapter
from v2l.adapters.lora import applied, check_fits
from v2l.io.files import open_regular
from v2l.models.processor import INTERNALIZATION_PROMPT, QUESTIONS, question_text
from v2l.models.smolvlm import FrozenVLM

PROBES = (*QUESTIONS, INTERNALIZATION_PROMPT, "describe the video.")
"""Prompts whose next tokens are compared."""
NOTHING = 1e-6
"""Mean divergence, in nats, that is rounding and no effect."""


@dataclass(frozen=True)
class Effect:
    """How far next-token distributions move, over all tokens of the probes.

    divergence: mean Kullback-Leibler divergence in nats; largest: change of a logit; tokens: share of the positions
        whose most likely token changes
    """

    divergence: float
    largest: float
    tokens: float

    @property
    def is_finite(self) -> bool:
        """Whether the model still computes with numbers."""
        return math.isfinite(self.divergence) and math.isfinite(self.largest)

    @property
    def is_there(self) -> bool:
        """Whether it is more than rounding."""
        return self.divergence > NOTHING


@dataclass(frozen=True)
class Verification:
    """on_model: against the model without any adapter; over_bias: against the adapter's learned bias alone, what the
    video itself brings; weights_sha256: of every weight of the model's language part"""

    on_model: Effect
    over_bias: Effect
    weights_sha256: str

    @property
    def trouble(self) -> str | None:
        """What is wrong, in a line; None where the adapter is sound."""
        if not (self.on_model.is_finite and self.over_bias.is_finite):
            return "its factors are so large that the model's numbers are not finite; encode the video again"
        if not self.on_model.is_there:
            return "it changes nothing in the model it was made for; encode the video again"
        if not self.over_bias.is_there:
            return "it does what the learned bias alone does and carries nothing of its video; encode the video again"
        return None


def verify(adapter: Adapter, vlm: FrozenVLM) -> Verification:
    """Wears the adapter, and its learned bias alone, on the model. Raises V2LError, with both names, where the adapter
    was made for another model."""
    check_fits(adapter, vlm)
    plain = _logits(vlm)
    with applied(vlm, adapter, merged=False):
        worn = _logits(vlm)
    with applied(vlm, adapter.bias_alone(), merged=False):
        bias = _logits(vlm)
    return Verification(_effect(plain, worn), _effect(bias, worn), weights_sha256(vlm))


def _logits(vlm: FrozenVLM) -> torch.Tensor:
    """(tokens of all probes, vocabulary), float32; NaN for a token whose logits are all equal, because its hidden state
    overflowed in the last norm."""
    logits = torch.cat([vlm.logits(vlm.tokenize(question_text(probe))).float() for probe in PROBES])
    return logits.masked_fill((logits == logits[:, :1]).all(-1, keepdim=True), math.nan)


def _effect(before: torch.Tensor, after: torch.Tensor) -> Effect:
    divergence = F.kl_div(before.log_softmax(-1), after.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    moved = (before.argmax(-1) != after.argmax(-1)).float()
    return Effect(divergence.mean().item(), (after - before).abs().max().item(), moved.mean().item())


def weights_sha256(vlm: FrozenVLM) -> str:
    """Of the files that hold the model's weights, in the order of their names: all of their bytes, where the
    fingerprint takes a few tensors'."""
    digest = hashlib.sha256()
    for path in sorted({tensor.file for tensor in vlm.folder.tensors().values()}):
        with open_regular(path) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
