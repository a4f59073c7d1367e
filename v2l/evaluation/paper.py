"""The paper's figures, for comparison with measured ones: Tables 1 to 4, in paper.csv.

A row is a benchmark, one of its kinds of question (Tables 2 and 3, without intervals), or the mean over all captioning
or question-answering benchmarks. The means are macro-averages, except for the judge's mean over question answering,
which weights VidCapBench's 1,523 questions against 500 of each other benchmark.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from v2l.errors import UsageError
from v2l.io.text import printable

TABLES = Path(__file__).with_name("paper.csv")
METRICS = ("f1", "judge")
FAMILIES = {
    "captioning": ("activitynet-captions", "plm-rdcap", "plm-rcap", "vdc", "carebench"),
    "qa": ("nextqa", "activitynet-qa", "plm-sgqa", "vidcapbench"),
}
ALL = "all kinds"
"""The name of the mean over all kinds."""


@dataclass(frozen=True)
class Published:
    """One row: mean scores, their difference with its 95% interval, and the paper's verdicts at its margin. None marks
    a value that the paper does not state."""

    in_context: float
    adapter: float
    difference: float
    low: float | None
    high: float | None
    equivalent: bool | None
    non_inferior: bool | None

    def verdicts(self, margin: float) -> tuple[bool | None, bool | None]:
        """Whether the interval is equivalent and whether it is non-inferior, at a margin."""
        if self.low is None or self.high is None:
            return None, None
        return -margin < self.low and self.high < margin, -margin < self.low


def published(size: str, metric: str, kinds: Sequence[str], benchmark: str | None = None) -> dict[str, Published]:
    """Return the paper's rows by measured kind, and under ALL the row of all kinds if there is one.

    size: of the model, "500m" or "2.2b"; benchmark: of the kinds, None to infer it from their names
    Raises UsageError if the paper has no row for any of them.
    """
    if metric not in METRICS:
        raise UsageError(f"--paper: the paper has no {metric}, only --metric f1 and scores of a --judge")
    table = {key[2:]: row for key, row in _tables().items() if key[:2] == (size, metric)}
    places = _places([_plain(kind) for kind in kinds], benchmark and _plain(benchmark))
    found = {kind: table[place] for kind, place in zip([*kinds, ALL], places, strict=True) if place in table}
    if not found:
        shown = ", ".join(map(printable, kinds[:5]))
        raise UsageError(
            f"--paper: the paper has no {metric} of {printable(benchmark or shown)}; its benchmarks are "
            f"{', '.join(_benchmarks())}"
        )
    return found


def _places(kinds: Sequence[str], benchmark: str | None) -> list[tuple[str, str] | None]:
    """Return benchmark and kind, as in the tables, of each measured kind and of all of them together."""
    if benchmark is None:
        benchmark = next((name for name, own in _subsets().items() if len(own & set(kinds)) > 1), None)
    if benchmark is None or set(kinds) == {benchmark}:  # every kind is a benchmark
        family = next((family for family, names in FAMILIES.items() if set(names) == set(kinds)), None)
        return [
            *((kind, "") if kind in _benchmarks() else None for kind in kinds),
            (family, "") if family else None,
        ]
    subsets = _subsets().get(benchmark, set())
    single = len(kinds) == 1 and not subsets
    complete = subsets <= set(kinds)
    return [*((benchmark, "" if single else kind) for kind in kinds), (benchmark, "") if complete else None]


def _benchmarks() -> list[str]:
    return [name for names in FAMILIES.values() for name in names]


def _subsets() -> dict[str, set[str]]:
    """Return the kinds that the paper lists separately, by benchmark."""
    found: dict[str, set[str]] = {}
    for _, _, benchmark, kind in _tables():
        if kind:
            found.setdefault(benchmark, set()).add(kind)
    return found


@cache
def _tables() -> dict[tuple[str, str, str, str], Published]:
    """Read all rows, by size, metric, benchmark and kind."""
    with open(TABLES, encoding="utf-8", newline="") as file:
        return {
            (row["size"], row["metric"], row["benchmark"], row["kind"]): Published(
                in_context=float(row["in_context"]),
                adapter=float(row["adapter"]),
                difference=float(row["difference"] or f"{float(row['adapter']) - float(row['in_context']):.3f}"),
                low=float(row["low"]) if row["low"] else None,
                high=float(row["high"]) if row["high"] else None,
                equivalent=row["equivalent"] == "yes" if row["equivalent"] else None,
                non_inferior=row["non_inferior"] == "yes" if row["non_inferior"] else None,
            )
            for row in csv.DictReader(file)
        }


def _plain(name: str) -> str:
    """Normalise a name as in the tables: "Main Object" becomes main-object, "spatial_caption" becomes spatial."""
    return "-".join(name.casefold().replace("_", " ").replace("-", " ").split()).removesuffix("-caption")
