"""The conditions that an evaluation answers under, importable without torch."""

from __future__ import annotations

from enum import StrEnum


class Ablation(StrEnum):
    """What can be taken away of an adapter, see ablation.py."""

    ranks = "ranks"
    layers = "layers"
    times = "times"


class Control(StrEnum):
    """What an evaluation can leave out: all but the adapter."""

    in_context = "in_context"
    nothing = "nothing"
    bias = "bias"
    other_clip = "other_clip"
