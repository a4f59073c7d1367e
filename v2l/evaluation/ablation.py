"""Remove parts of adapters, to find which ranks and which layers carry the answers (paper section 6).

Ranks are ordered by the product of the norms of their two factors. The paper does not say over what the norms are
taken; here it is all layers. The learned bias is never removed: without ranks, the adapter is its bias alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from v2l.adapters.adapter import Adapter
from v2l.evaluation.conditions import LayerAblation, RankAblation, Selection


def ablated(adapter: Adapter, condition: RankAblation | LayerAblation) -> Adapter:
    """Return the adapter without the part that the condition removes."""
    b = adapter.b.clone()
    if isinstance(condition, LayerAblation):
        b[condition.layer] = 0
    else:
        b[:, _removed_ranks(adapter, condition)] = 0
    return replace(adapter, b=b)


def rank_order(adapter: Adapter) -> torch.Tensor:
    """Return the indices of the generated ranks, strongest first: (R,) int64."""
    generated = adapter.rank - adapter.description.bias_rank
    norms = [factor[:, :generated].float().pow(2).sum((0, 2)).sqrt() for factor in (adapter.a, adapter.b)]
    return (norms[0] * norms[1]).argsort(descending=True, stable=True)


def _removed_ranks(adapter: Adapter, condition: RankAblation) -> torch.Tensor:
    order = rank_order(adapter)
    count = min(condition.count, len(order))
    if condition.selection == Selection.top:
        return order[count:]
    if condition.selection == Selection.bottom:
        return order[: len(order) - count]
    if condition.selection == Selection.random:
        return _shuffled(order, adapter)[count:]
    return order[:count]


def _shuffled(order: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    """Shuffle with a seed that depends on the adapter's content."""
    generator = torch.Generator().manual_seed(int(adapter.sha256()[:15], 16))
    return order[torch.randperm(len(order), generator=generator)]
