"""What a bench measures, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AMORTIZED_QUESTIONS = 20
"""Questions about one video, up to which the tables spread the cost of its preparation."""


@dataclass(frozen=True)
class Plan:
    """The sweep and how each measurement is taken.

    frames, resolutions: the sweep; a resolution of None is the one that the hypernetwork was trained with
    video: None draws one of the embedded world with as many frames as the largest of the sweep
    repeats: of each method, None for 30 if one takes under a second and 5 otherwise; warmup: untimed runs before them
    new_tokens: of an answer, from which tokens per second are taken
    segments: adapters that are composed; 1 for a single encoding
    budget: seconds after which no new measurement is started
    """

    frames: tuple[int, ...] = (12, 64)
    resolutions: tuple[int | None, ...] = (None,)
    video: Path | None = None
    repeats: int | None = None
    warmup: int = 1
    new_tokens: int = 32
    segments: int = 1
    budget: float | None = None
