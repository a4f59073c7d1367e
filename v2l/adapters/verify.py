"""Verify an adapter on the model that it was made for.

Opening the file checks keys, shapes, finite values and its hash. Verification needs the model, and checks that the
adapter was made for it, that its answers change under the adapter, and that they change by more than under the learned
bias alone, which all adapters of a hypernetwork share.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from v2l.adapters.adapter import Adapter
from v2l.adapters.lora import applied, check_fits
from v2l.io.files import open_regular
from v2l.models.hypernetwork_file import INTERNALIZATION_PROMPT
from v2l.models.processor import QUESTIONS, question_text
from v2l.models.smolvlm import FrozenVLM

PROBES = (*QUESTIONS, INTERNALIZATION_PROMPT, "describe the video.")
"""Prompts whose next-token distributions are compared."""
NOTHING = 1e-6
"""Mean divergence, in nats, up to which an effect is rounding."""


@dataclass(frozen=True)
class Effect:
    """The change of next-token distributions, over all tokens of the probes.

    divergence: mean Kullback-Leibler divergence in nats; largest: largest absolute change of a logit
    tokens: fraction of the positions whose most likely token changes
    """

    divergence: float
    largest: float
    tokens: float

    @property
    def is_finite(self) -> bool:
        """Return whether the model's outputs are finite."""
        return math.isfinite(self.divergence) and math.isfinite(self.largest)

    @property
    def is_there(self) -> bool:
        """Return whether the effect is larger than rounding."""
        return self.divergence > NOTHING


@dataclass(frozen=True)
class Verification:
    """The effect of an adapter on its model.

    on_model: compared with the model without an adapter
    over_bias: compared with the learned bias alone: the effect of the video
    weights_sha256: of the files with the model's weights
    """

    on_model: Effect
    over_bias: Effect
    weights_sha256: str

    @property
    def trouble(self) -> str | None:
        """The problem, in one line; None if the adapter is sound."""
        if not (self.on_model.is_finite and self.over_bias.is_finite):
            return "its factors are so large that the model's numbers are not finite; encode the video again"
        if not self.on_model.is_there:
            return "it changes nothing in the model it was made for; encode the video again"
        if not self.over_bias.is_there:
            return (
                "it has the effect of the learned bias alone and contains nothing of its video; encode the video again"
            )
        return None


def verify(adapter: Adapter, vlm: FrozenVLM) -> Verification:
    """Compare the model's outputs under the adapter with those without it and with those under its learned bias alone.
    Raises V2LError, with both names, if the adapter was made for another model."""
    check_fits(adapter, vlm)
    on_model, over_bias = zip(*(_changes(adapter, probe, vlm) for probe in PROBES), strict=True)
    return Verification(_effect(on_model), _effect(over_bias), weights_sha256(vlm))


def _changes(adapter: Adapter, probe: str, vlm: FrozenVLM) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the changes of a probe's next-token distributions against the model alone and against the bias alone. The
    logits, which are many, exist for one probe at a time."""
    plain = _logits(probe, vlm)
    with applied(vlm, adapter, merged=False):
        adapted = _logits(probe, vlm)
    with applied(vlm, adapter.bias_alone(), merged=False):
        bias = _logits(probe, vlm)
    return _change(plain, adapted), _change(bias, adapted)


def _logits(probe: str, vlm: FrozenVLM) -> torch.Tensor:
    """Return the logits of a probe, (tokens, vocabulary), float32; NaN for a token whose logits are all equal because
    its hidden state overflowed in the last norm."""
    logits = vlm.logits(vlm.tokenize(question_text(probe))).float()
    return logits.masked_fill((logits == logits[:, :1]).all(-1, keepdim=True), math.nan)


def _change(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return the change of each token's distribution, (3, tokens): divergence, largest change of a logit, and whether
    the most likely token changes."""
    divergence = F.kl_div(before.log_softmax(-1), after.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    moved = (before.argmax(-1) != after.argmax(-1)).float()
    return torch.stack([divergence, (after - before).abs().amax(-1), moved])


def _effect(changes: Sequence[torch.Tensor]) -> Effect:
    """Return the effect over the tokens of all probes."""
    divergence, largest, moved = torch.cat(list(changes), dim=1)
    return Effect(divergence.mean().item(), largest.max().item(), moved.mean().item())


def weights_sha256(vlm: FrozenVLM) -> str:
    """Return the sha256 over the complete files with the model's weights, in the order of their names. (The fingerprint
    covers only a few tensors.)"""
    digest = hashlib.sha256()
    for path in sorted({tensor.file for tensor in vlm.folder.tensors.values()}):
        with open_regular(path) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
