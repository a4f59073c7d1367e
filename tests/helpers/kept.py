"""The memory of what a forward pass keeps for the backward pass."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

PARTS = {
    "_read_together": "hidden states that the hypernetwork reads",
    "_layer_factors": "factors",
    "packed_forward": "answers: decoder layers",
    "cross_entropy": "answers: logits",
}
"""What keeps a tensor, by the function that runs."""


@contextmanager
def counting_kept(weights: Iterable[torch.Tensor]) -> Iterator[Counter]:
    """Count the bytes that autograd keeps inside the block, by part (see PARTS, else "others"): every storage once, and
    none of the weights."""
    known = {weight.untyped_storage().data_ptr(): weight.untyped_storage() for weight in weights}
    kept: Counter = Counter()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known[storage.data_ptr()] = storage
            kept[_part()] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _part() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in PARTS:
            return PARTS[frame.f_code.co_name]
        frame = frame.f_back
    return "others"
