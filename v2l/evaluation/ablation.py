"""Adapters with a part of them taken away: which ranks and which layers carry the answers (paper section 6).

Ranks are ordered by the product of the norms of their two factors; the paper does not say over what, here it is over
all layers. The learned bias is never taken away: with no rank left, the adapter is its bias alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from v2l.adapters.adapter import Adapter
from v2l.evaluation.conditions import Ablation

WHOLE = "whole"
"""The condition under which all segments answer, whatever time a question asks about."""
SEGMENT_IN_CONTEXT = "segment_in_context"
"""The condition under which of a question about one time only the segments that show it stand in context."""
_CHOICES = ("top", "bottom", "random", "without top")
"""Ways to choose ranks: the strongest, the weakest, any, all but the strongest."""

Table = tuple[list[str], list[list[str]]]


def ablations(part: Ablation, ranks: int, layers: int) -> tuple[str, ...]:
    """Names of all conditions that take that part away. For `ablated`, of an adapter with so many generated ranks: 1,
    2, 4, ... of them by each of four choices, or every layer in turn. Of times: WHOLE and SEGMENT_IN_CONTEXT, which
    tell what choosing segments by the time does for the adapter, and would do in context."""
    if part == Ablation.times:
        return WHOLE, SEGMENT_IN_CONTEXT
    if part == Ablation.layers:
        return tuple(f"without layer {layer}" for layer in range(layers))
    return tuple(f"ranks {choice} {count}" for count in _counts(ranks) for choice in _CHOICES)


def ablated(adapter: Adapter, name: str) -> Adapter:
    """What is left of an adapter under a condition of that name."""
    *how, number = name.split()
    b = adapter.b.clone()
    if how == ["without", "layer"]:
        b[int(number)] = 0
    else:
        order = rank_order(adapter)
        count = min(int(number), len(order))
        dropped = {
            "top": order[count:],
            "bottom": order[: len(order) - count],
            "random": _shuffled(order, adapter)[count:],
            "without top": order[:count],
        }[" ".join(how[1:])]
        b[:, dropped] = 0
    return replace(adapter, b=b)


def rank_order(adapter: Adapter) -> torch.Tensor:
    """The generated ranks, strongest first."""
    generated = adapter.rank - adapter.description.bias_rank
    norms = [factor[:, :generated].float().pow(2).sum((0, 2)).sqrt() for factor in (adapter.a, adapter.b)]
    return (norms[0] * norms[1]).argsort(descending=True, stable=True)


def rank_table(macro: Mapping[str, float]) -> Table | None:
    """Header and rows, by the number of ranks; None where no ranks were taken away."""
    curves = rank_curves(macro)
    if not curves:
        return None
    counts = sorted({count for curve in curves.values() for count in curve})
    rows = [[str(count), *(f"{curve[count]:.3f}" for curve in curves.values())] for count in counts]
    return ["ranks", *(f"{choice} of them" if choice != "without top" else choice for choice in curves)], rows


def rank_curves(macro: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """By choice and number of ranks, from the means of the conditions that `ablations` names."""
    curves: dict[str, dict[int, float]] = {}
    for choice in _CHOICES:
        start = f"ranks {choice} "
        found = {int(name.removeprefix(start)): mean for name, mean in macro.items() if name.startswith(start)}
        curves |= {choice: found} if found else {}
    return curves


def layer_table(macro: Mapping[str, float]) -> Table | None:
    """Header and rows: without each layer, and what that costs; None where none was taken away."""
    means = layer_means(macro)
    rows = [[str(layer), f"{mean:.3f}", f"{mean - macro['adapter']:+.3f}"] for layer, mean in enumerate(means)]
    return (["without layer", "adapter", "difference"], rows) if rows else None


def layer_means(macro: Mapping[str, float]) -> Sequence[float]:
    """The means without each layer, by layer."""
    return [mean for name, mean in macro.items() if name.startswith("without layer ")]


def _counts(ranks: int) -> list[int]:
    """1, 2, 4, ... below that many."""
    return [2**power for power in range((ranks - 1).bit_length())]


def _shuffled(order: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    """The same order for the same adapter, another for another."""
    generator = torch.Generator().manual_seed(int(adapter.sha256()[:15], 16))
    return order[torch.randperm(len(order), generator=generator)]
