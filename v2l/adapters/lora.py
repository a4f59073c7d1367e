"""Apply adapters to a frozen model for the length of a `with` block.

The output of a layer becomes W x + (x a^T) b. The side path computes the second term in float32 and adds it to the
output of the layer, as the published code does. Merging folds it into a copy of W.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from v2l.adapters.adapter import Adapter
from v2l.adapters.description import BaseModel
from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.models.language_model import Factors, LanguageModel
from v2l.models.presets import preset_name
from v2l.models.smolvlm import FrozenVLM

MERGED_ON = "cpu"
"""Device on which a single adapter is merged by default, in float32. There the side path adds 2 to 7% to the time of
the first token, and merging costs as much as two questions (docs/speed.md). Half precision would round the change."""


@contextmanager
def applied(
    vlm: FrozenVLM, adapter: Adapter | Sequence[Adapter], strength: float = 1.0, merged: bool | None = None
) -> Iterator[None]:
    """Apply an adapter, or one adapter per row of a batch, for the length of a `with` block.

    strength: multiplies the change of the outputs; 0.5 halves it
    merged: change the weights instead of adding the side path; for a single adapter. The original tensors are kept
        and restored. None chooses the faster: merging on the CPU in float32, else the side path

    After the block, even after an exception, the outputs of the model are bit-identical to those before it.
    Raises V2LError if an adapter was made for another model, or if the model is in use (`FrozenVLM.exclusively`).
    """
    adapters = [adapter] if isinstance(adapter, Adapter) else list(adapter)
    if not adapters or not math.isfinite(strength):
        raise V2LError(
            f"{len(adapters)} adapters at strength {strength} cannot be applied; give at least one and a finite number"
        )
    if merged and len(adapters) != 1:
        raise V2LError(f"{len(adapters)} adapters cannot be merged into one model; leave merged out")
    for each in adapters:
        check_fits(each, vlm)
    a, b = (stacked.to(vlm.device) for stacked in _rows(adapters))
    if merged is None:
        merged = len(adapters) == 1 and merging_is_faster(vlm)
    attach = _merged if merged else attached
    factors = list(zip(a, b * strength, strict=True))
    with vlm.exclusively("applying an adapter"), attach(vlm.language_model, factors):
        yield


def merging_is_faster(vlm: FrozenVLM) -> bool:
    """Whether an adapter that stays attached answers faster merged than on the side path: on the CPU in float32."""
    return vlm.device.type == MERGED_ON and vlm.dtype == torch.float32


@contextmanager
def attached(model: LanguageModel, factors: Factors) -> Iterator[None]:
    """Add the side path to a model for the length of a `with` block. Gradients flow into the factors."""
    before, model.adapter = model.adapter, factors
    try:
        yield
    finally:
        model.adapter = before


def check_made_for(base: BaseModel, vlm: FrozenVLM) -> None:
    """Raise V2LError, with both names and the option that loads its model, unless an adapter's model is `vlm`."""
    if base.fingerprint != vlm.fingerprint:
        raise V2LError(
            f"this adapter was made for {printable(base.id)} ({printable(base.fingerprint[:12])}) and not for "
            f"{printable(vlm.id)} ({vlm.fingerprint[:12]}); load its model (--model "
            f"{preset_name(base.id) or 'FOLDER'}), or encode the video again"
        )


def check_fits(adapter: Adapter, vlm: FrozenVLM) -> None:
    """Raise V2LError, with both names, if `adapter` was made for another model than `vlm`."""
    check_made_for(adapter.description.base_model, vlm)
    made_for = len(adapter.a), adapter.a.shape[2], adapter.b.shape[2]
    if made_for != vlm.adapted_size:
        raise V2LError(
            f"the factors (layers, in, out) of this adapter are {made_for}, {printable(vlm.id)} has "
            f"{vlm.adapted_size}; its description is wrong, encode the video again"
        )


def _rows(adapters: Sequence[Adapter]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack factors in float32: (L, R, d), or (L, B, R, d) for several adapters, zero-padded to the largest rank."""
    if len(adapters) == 1:
        return adapters[0].a.float(), adapters[0].b.float()
    rank = max(adapter.rank for adapter in adapters)

    def padded(factors: list[torch.Tensor]) -> torch.Tensor:
        short = [torch.nn.functional.pad(factor.float(), (0, 0, 0, rank - factor.shape[1])) for factor in factors]
        return torch.stack(short, dim=1)

    return padded([adapter.a for adapter in adapters]), padded([adapter.b for adapter in adapters])


@contextmanager
def _merged(model: LanguageModel, factors: Factors) -> Iterator[None]:
    originals = [layer.down_proj for layer in model.layers]
    try:
        for layer, (a, b) in zip(model.layers, factors, strict=True):
            layer.down_proj = (layer.down_proj.t() + b.t() @ a).to(layer.down_proj.dtype).t()
        yield
    finally:
        for layer, original in zip(model.layers, originals, strict=True):
            layer.down_proj = original
