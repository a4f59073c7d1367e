"""An adapter on a frozen model: attached inside a `with` block, gone without a trace after it.

A layer's output becomes W x + (x a^T) b. On the side path the extra product is computed in float32 and added to the
layer's output, as the published code does; merged, it is folded into a copy of W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from v2l.adapters.adapter import Adapter
from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.models.smolvlm import FrozenVLM

MERGED_ON = "cpu"
"""Where one adapter that stays is folded into the weights, in float32: measured there (docs/speed.md), the side path
adds 2 to 7% to the first token, and merging costs as much as two questions. Half precision would round the change."""

Factors = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Per layer a and b: (R, d_in) and (R, d_out) for every row of a batch, or (B, R, ...) for one row each."""


@contextmanager
def applied(
    vlm: FrozenVLM, adapter: Adapter | Sequence[Adapter], strength: float = 1.0, merged: bool | None = None
) -> Iterator[None]:
    """Attaches an adapter, or one adapter per row of the batches to come, for the length of a `with` block.

    strength: multiplies the change; applied to b alone, so that 0.5 is half
    merged: change the weights themselves instead of adding a second path; one adapter only. The original tensors are
        kept and put back. None does what is faster for an adapter that stays on: merging on the CPU in float32

    Before, and after however the block is left, the model's outputs are bit-identical to those without.
    Raises V2LError where an adapter was made for another model, or the model is in use (`FrozenVLM.exclusively`).
    """
    adapters = [adapter] if isinstance(adapter, Adapter) else list(adapter)
    if not adapters or not math.isfinite(strength):
        raise V2LError(f"{len(adapters)} adapters at strength {strength} cannot be worn; give one and a finite number")
    if merged and len(adapters) != 1:
        raise V2LError(f"{len(adapters)} adapters cannot be merged into one model; attach them side by side")
    for each in adapters:
        check_fits(each, vlm)
    a, b = (stacked.to(vlm.device) for stacked in _rows(adapters))
    if merged is None:
        merged = len(adapters) == 1 and merging_is_faster(vlm)
    attach = _merged if merged else attached
    factors = list(zip(a, b * strength, strict=True))
    with vlm.exclusively("wearing an adapter"), attach(vlm.down_projections, factors):
        yield


def merging_is_faster(vlm: FrozenVLM) -> bool:
    """Whether an adapter that stays attached answers faster merged than on the side path: on the CPU in float32."""
    return vlm.device.type == MERGED_ON and vlm.dtype == torch.float32


@contextmanager
def attached(modules: Sequence[torch.nn.Linear], factors: Factors) -> Iterator[None]:
    """The side path for any factors, gradients included: what `applied` and training share."""
    with ExitStack() as hooks:
        for module, (a, b) in zip(modules, factors, strict=True):
            handle = module.register_forward_hook(_side_path(a, b))
            # not handle.remove: its weak reference is dead when the garbage collector ends a forgotten generator
            hooks.callback(module._forward_hooks.pop, handle.id, None)
        yield


def check_fits(adapter: Adapter, vlm: FrozenVLM) -> None:
    """Raises V2LError, with both names, where `adapter` was made for another model than `vlm`."""
    base = adapter.description.base_model
    if base.fingerprint != vlm.fingerprint:
        raise V2LError(
            f"this adapter was made for {printable(base.id)} ({printable(base.fingerprint[:12])}), the model at hand "
            f"is {printable(vlm.id)} ({vlm.fingerprint[:12]}); load that model, or encode the video again"
        )
    module = vlm.down_projections[0]
    made_for = len(adapter.a), adapter.a.shape[2], adapter.b.shape[2]
    if made_for != (vlm.num_layers, module.in_features, module.out_features):
        raise V2LError(
            f"this adapter's factors (layers, in, out) are {made_for}, {printable(vlm.id)} has "
            f"{(vlm.num_layers, module.in_features, module.out_features)}; the file is not what it says"
        )


def _rows(adapters: Sequence[Adapter]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacked factors in float32, (L, R, d), or (L, B, R, d) for several adapters, zero-padded to the largest rank."""
    if len(adapters) == 1:
        return adapters[0].a.float(), adapters[0].b.float()
    rank = max(adapter.rank for adapter in adapters)

    def padded(factors: list[torch.Tensor]) -> torch.Tensor:
        short = [torch.nn.functional.pad(factor.float(), (0, 0, 0, rank - factor.shape[1])) for factor in factors]
        return torch.stack(short, dim=1)

    return padded([adapter.a for adapter in adapters]), padded([adapter.b for adapter in adapters])


def _side_path(a: torch.Tensor, b: torch.Tensor) -> Callable[..., torch.Tensor]:
    def add_change(_module: torch.nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        if a.ndim == 3 and (inputs[0].ndim != 3 or len(inputs[0]) != len(a)):
            raise V2LError(
                f"a batch of shape {tuple(inputs[0].shape)} came to {len(a)} adapters; give one row for each"
            )
        change = inputs[0].to(a.dtype) @ a.transpose(-1, -2) @ b
        return (output + change).to(output.dtype)

    return add_change


@contextmanager
def _merged(modules: Sequence[torch.nn.Linear], factors: Factors) -> Iterator[None]:
    originals = [module.weight for module in modules]
    try:
        for module, (a, b) in zip(modules, factors, strict=True):
            changed = module.weight + b.T @ a
            module.weight = torch.nn.Parameter(changed.to(module.weight.dtype), requires_grad=False)
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.weight = original
