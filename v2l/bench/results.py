"""The results of a bench, and reading them back from a journal.

Journals store the names of classes and fields, so `way`, `see`, `read` and `generate` are kept.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from v2l.io.journal import Journal


@dataclass(frozen=True)
class Cell:
    """One method at one number of frames and one resolution.

    way: name of the method
    status: "measured", "estimated" (not run) or "left out" (the budget was spent); why: the reason for the last two
    first_token: seconds of every repeat, or one estimate; tokens_per_second: median speed after the first token
    prepare: seconds of work once per video, 0 if nothing is kept of it
    kept_bytes: size of what is kept of the video, in memory or on disk
    peak_memory: bytes, maximum during preparation and answers
    beyond_positions: the prompt is longer than the model's positions, so its answers are meaningless
    """

    frames: int
    resolution: int
    way: str
    in_context: bool
    status: str
    why: str = ""
    prompt_tokens: int = 0
    visual_tokens: int = 0
    beyond_positions: bool = False
    first_token: tuple[float, ...] = ()
    tokens_per_second: float | None = None
    prepare: float | None = None
    kept_bytes: int | None = None
    peak_memory: int | None = None

    @property
    def median(self) -> float | None:
        """Median seconds to the first token."""
        return statistics.median(self.first_token) if self.first_token else None

    @property
    def p95(self) -> float | None:
        """95th percentile of the seconds to the first token."""
        ordered = sorted(self.first_token)
        return ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else None

    @property
    def spread(self) -> float | None:
        """The longest repeat relative to the shortest, 1 or more."""
        ordered = sorted(self.first_token)
        return ordered[-1] / ordered[0] if ordered and ordered[0] else None


@dataclass(frozen=True)
class Encoding:
    """The seconds of an encoding by part.

    windows: number of prompts
    see, read, generate: seconds of decoding and the vision tower, of the prefill of the language model, and of the
        rest, mostly the hypernetwork
    """

    frames: int
    resolution: int
    windows: int
    see: float
    read: float
    generate: float
    peak_memory: int | None

    @property
    def added(self) -> float:
        """`generate` relative to `see` and `read`."""
        return self.generate / (self.see + self.read)


def read_back(journal: Journal) -> dict[tuple, Cell | Encoding]:
    """Read the results of an earlier run, by frames, resolution and method. Raises V2LError for any other content."""
    found: list[Cell | Encoding] = []
    try:
        for row in journal.rows:
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items() if name != "kind"}
            found.append({"Cell": Cell, "Encoding": Encoding}[row["kind"]](**values))
    except (KeyError, TypeError) as error:
        raise journal.foreign() from error
    return {result_key(result): result for result in found}


def result_key(result: Cell | Encoding) -> tuple:
    """Return the key of a result: frames, resolution and method, or "encoding"."""
    return result.frames, result.resolution, result.way if isinstance(result, Cell) else "encoding"
