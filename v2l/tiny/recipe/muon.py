"""The Muon optimizer: momentum whose matrices are orthogonalised, so that directions of little variance are learned as
fast as the others. torch.optim.Muon takes no stacks of matrices, such as the heads of all layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

ITERATIONS = 5
"""Newton-Schulz iterations."""
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the iteration, from https://kellerjordan.github.io/posts/muon."""
RMS = 0.2
"""The root mean square of an update relative to the learning rate, as AdamW has it."""


class Muon(torch.optim.Optimizer):
    """Optimise matrices, (..., M, N), with a learning rate on the scale of AdamW's. Leading axes are independent."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient. closure: not used"""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                mean = state.setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalised(parameter.grad.lerp(mean, group["momentum"]))
                parameter.add_(update, alpha=-group["lr"] * RMS * max(parameter.shape[-2:]) ** 0.5)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Return matrices, (..., M, N), with singular values near 1 (0.7 to 1.2) in place of their own."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        product = x @ x.mT
        x = first * x + (third * product + fifth * product @ product) @ x
    return x.mT if tall else x
