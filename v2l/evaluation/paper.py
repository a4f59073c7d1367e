"""The paper's own figures, to stand beside measured ones: its Tables 1 to 4, in paper.csv.

A row is a benchmark, one of its kinds of question (Tables 2 and 3, without intervals), or the mean over all captioning
or question-answering benchmarks. The means are macro-averages, but for the judge's over question answering, which
weighs VidCapBench's 1,523 questions against 500 of each other benchmark.
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
    """One row: mean scores, their difference with its 95% interval, and the paper's verdicts at its own margin; None
    where it has none."""

    in_context: float
    adapter: float
    difference: float
    low: float | None
    high: float | None
    equivalent: bool | None
    non_inferior: bool | None

    def verdicts(self, margin: float) -> tuple[bool | None, bool | None]:
        """Whether equivalent, and whether non-inferior, by its interval."""
        if self.low is None or self.high is None:
            return None, None
        return -margin < self.low and self.high < margin, -margin < self.low


def published(size: str, metric: str, kinds: Sequence[str], benchmark: str | None = None) -> dict[str, Published]:
    """The paper's rows by measured kind, and that of all of them under ALL where it has one.

    size: of the model, "500m" or "2.2b"; benchmark: that the kinds are of, known by their names where None
    Raises UsageError where the paper has nothing on any of them.
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
    """Benchmark and kind in the tables of each kind, and of all of them together."""
    if benchmark is None:
        benchmark = next((name for name, own in _subsets().items() if len(own & set(kinds)) > 1), None)
    if benchmark is None or set(kinds) == {benchmark}:  # every kind a benchmark of its own
        whole = next((family for family, names in FAMILIES.items() if set(names) == set(kinds)), None)
        return [*((kind, "") if kind in _benchmarks() else None for kind in kinds), whole and (whole, "")]
    subsets = _subsets().get(benchmark, set())
    alone = len(kinds) == 1 and not subsets
    complete = subsets <= set(kinds)
    return [*((benchmark, "" if alone else kind) for kind in kinds), (benchmark, "") if complete else None]


def _benchmarks() -> list[str]:
    return [name for names in FAMILIES.values() for name in names]


def _subsets() -> dict[str, set[str]]:
    """The kinds that the paper tells apart, by benchmark."""
    found: dict[str, set[str]] = {}
    for _, _, benchmark, kind in _tables():
        if kind:
            found.setdefault(benchmark, set()).add(kind)
    return found


@cache
def _tables() -> dict[tuple[str, str, str, str], Published]:
    """All rows, by size, metric, benchmark and kind."""
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
    """A name as the tables write it: "Main Object" becomes main-object, "spatial_caption" spatial."""
    return "-".join(name.casefold().replace("_", " ").replace("-", " ").split()).removesuffix("-caption")
