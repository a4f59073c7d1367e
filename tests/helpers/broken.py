"""Hypernetworks whose weights are broken, each in one way and by a seed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from v2l.models.hypernetwork import Hypernetwork

Change = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def changed(hypernetwork: Hypernetwork, change: Change, seed: int, begins: tuple[str, ...] = ("",)) -> Hypernetwork:
    """Return a copy in which every tensor whose name begins so went through `change`."""
    made, random = copy.deepcopy(hypernetwork), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if name.startswith(begins):
                tensor.copy_(change(tensor, random))
    return made


def shuffled(tensor: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return tensor.flatten()[torch.randperm(tensor.numel(), generator=random)].view(tensor.shape)


def drawn_anew(tensor: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=random) * tensor.std() + tensor.mean()


def silent(tensor: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return torch.zeros_like(tensor)


GENERATED = ("aggregator", "layers", "head")
BROKEN: dict[str, Callable[[Hypernetwork, int], Hypernetwork]] = {
    "all shuffled": lambda whole, seed: changed(whole, shuffled, seed),
    "all shuffled but for the bias": lambda whole, seed: changed(whole, shuffled, seed, GENERATED),
    "all drawn anew but for the bias": lambda whole, seed: changed(whole, drawn_anew, seed, GENERATED),
    "reader shuffled": lambda whole, seed: changed(whole, shuffled, seed, ("aggregator",)),
    "head shuffled": lambda whole, seed: changed(whole, shuffled, seed, ("head",)),
    "silent": lambda whole, seed: changed(whole, silent, seed, ("scaler_B",)),
}
