"""The learning rate schedule of every training loop."""

from __future__ import annotations

import math

import torch


def warm_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Rise linearly over `warmup` steps from 1/`warmup` of the peak, then follow a cosine to zero at `steps`."""

    def factor(step: int) -> float:
        done = (step - warmup) / max(1, steps - warmup)
        return (step + 1) / warmup if done < 0 else 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
