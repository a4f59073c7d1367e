"""An evaluation in numbers: means by kind of question and condition, and the adapter against each other condition."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.evaluation.ablation import SEGMENT_IN_CONTEXT, WHOLE
from v2l.evaluation.evaluate import Result, Setting
from v2l.evaluation.metrics import Comparison, compare
from v2l.evaluation.paper import ALL, Published

Table = tuple[list[str], list[list[str]]]
TITLES = {
    "in_context": "in context",
    "adapter": "adapter",
    "nothing": "no video",
    "bias": "bias alone",
    "other_clip": "other clip's",
    WHOLE: "all segments",
    SEGMENT_IN_CONTEXT: "its segment in context",
}
UNKNOWN = "-"


@dataclass(frozen=True)
class Report:
    """One metric over all answered questions.

    counts, means: by kind of question, means also by condition; macro: means over the kinds
    against: the adapter minus every other condition
    by_kind: the adapter minus in context, by kind; None for a kind that asks about one clip only
    failed: questions that were not answered, or whose answers were not judged
    """

    metric: str
    counts: dict[str, int]
    means: dict[str, dict[str, float]]
    macro: dict[str, float]
    against: dict[str, Comparison]
    by_kind: dict[str, Comparison | None]
    failed: int

    def record(self) -> dict[str, Any]:
        """As JSON, the verdicts included."""
        return {
            **asdict(self),
            "against": {name: each.record() for name, each in self.against.items()},
            "by_kind": {kind: each and each.record() for kind, each in self.by_kind.items()},
        }

    def means_table(self) -> Table:
        """Header and rows: a kind of question each, then all kinds."""
        shown = [name for name in TITLES if name in self.macro]
        rows = [
            [kind, str(self._count(kind)), *(f"{means[name]:.3f}" for name in shown)]
            for kind, means in self._with_all().items()
        ]
        return ["question", "n", *(TITLES[name] for name in shown)], rows

    def against_table(self) -> Table:
        """Header and rows: the adapter against each other condition, once for each margin."""
        header = ["adapter against", "difference", "95% interval", "margin", "non-inferior", "equivalent", "TOST p"]
        rows = [
            [
                TITLES[name],
                *_difference(each),
                f"{each.margin:g}",
                _word(each.non_inferior),
                _word(each.equivalent),
                f"{each.tost_p:.2g}",
            ]
            for name, compared in self.against.items()
            if name in TITLES
            for each in compared.at_margins
        ]
        return header, rows

    def kinds_table(self, paper: Mapping[str, Published] | None = None) -> Table:
        """Header and rows: the adapter against the video in context, a kind of question each, then all kinds, and under
        each the paper's own row where it has one. Recovered is the adapter's share of the score in context."""
        margins = [each.margin for each in self.against["in_context"].at_margins]
        verdicts = [f"{name}, {margin:g}" for margin in margins for name in ("equivalent", "non-inferior")]
        rows = []
        for kind, means in self._with_all().items():
            compared = self.against["in_context"] if kind == ALL else self.by_kind[kind]
            told = [f"{means['adapter'] - means['in_context']:+.3f}", UNKNOWN, *[UNKNOWN] * len(verdicts)]
            if compared:
                held = [(each.equivalent, each.non_inferior) for each in compared.at_margins]
                told = [*_difference(compared), *(_word(verdict) for pair in held for verdict in pair)]
            rows.append([kind, str(self._count(kind)), *_scores(means), *told, _recovered(means)])
            if paper and kind in paper:
                rows.append(_published(paper[kind], margins))
        header = ["question", "n", "in context", "adapter", "difference", "95% interval", *verdicts, "recovered"]
        return header, rows

    def summary(self) -> str:
        """How many kinds the adapter is equivalent to the video in context on, at every margin; and on how many of all
        kinds the video in context scores nothing, where that is no praise."""
        known = [compared.at_margins for compared in self.by_kind.values() if compared]
        kinds = f"of {len(self.by_kind)} kinds at a margin of"
        counts = [
            f"{sum(held[place].equivalent for held in known)} {kinds} {each.margin:g}"
            for place, each in enumerate(self.against["in_context"].at_margins)
        ]
        empty = sum(means["in_context"] == 0 for means in self.means.values())
        remark = f"; {empty} of them score 0 in context, where that says nothing" if empty else ""
        return f"adapter and video in context are equivalent on {', '.join(counts)}{remark}"

    def _with_all(self) -> dict[str, dict[str, float]]:
        return {**self.means, ALL: self.macro}

    def _count(self, kind: str) -> int:
        return sum(self.counts.values()) if kind == ALL else self.counts[kind]


def summarise(results: Sequence[Result], metric: str, margin: float, stricter: Sequence[float] = ()) -> Report:
    """The report of one metric. stricter: more margins to hold the same differences against

    Raises V2LError where nothing was answered, or for fewer than two clips.
    """
    answered = [result for result in results if result.error is None]
    if not answered:
        raise V2LError("no question was answered and scored; see the errors above")
    conditions = list(answered[0].scores)
    kinds = sorted({result.kind for result in answered})
    means = {
        kind: {
            condition: _mean([r.scores[condition][metric] for r in answered if r.kind == kind])
            for condition in conditions
        }
        for kind in kinds
    }
    return Report(
        metric=metric,
        counts={kind: sum(result.kind == kind for result in answered) for kind in kinds},
        means=means,
        macro={name: _mean([means[kind][name] for kind in kinds]) for name in conditions},
        against={name: _compare(answered, metric, name, margin, stricter) for name in conditions if name != "adapter"},
        by_kind=_by_kind(answered, metric, kinds, margin, stricter) if "in_context" in conditions else {},
        failed=len(results) - len(answered),
    )


def _compare(
    results: Sequence[Result], metric: str, condition: str, margin: float, stricter: Sequence[float]
) -> Comparison:
    """The adapter minus the condition."""
    adapter, other = ([result.scores[name][metric] for result in results] for name in ("adapter", condition))
    kinds, clips = [result.kind for result in results], [result.clip for result in results]
    return compare(adapter, other, kinds, clips, margin, stricter=stricter)


def _by_kind(
    results: Sequence[Result], metric: str, kinds: Sequence[str], margin: float, stricter: Sequence[float]
) -> dict[str, Comparison | None]:
    found = {}
    for kind in kinds:
        own = [result for result in results if result.kind == kind]
        several = len({result.clip for result in own}) > 1
        found[kind] = _compare(own, metric, "in_context", margin, stricter) if several else None
    return found


# Cells -------------------------------------------------------------------------------------------------------------


def _published(row: Published, margins: Sequence[float]) -> list[str]:
    """The paper's row, its interval held against the same margins."""
    interval = UNKNOWN if row.low is None else f"[{row.low:+.3f}, {row.high:+.3f}]"
    verdicts = [_word(verdict) for margin in margins for verdict in row.verdicts(margin)]
    means = {"in_context": row.in_context, "adapter": row.adapter}
    return ["  the paper", "", *_scores(means), f"{row.difference:+.3f}", interval, *verdicts, _recovered(means)]


def _scores(means: Mapping[str, float]) -> list[str]:
    return [f"{means['in_context']:.3f}", f"{means['adapter']:.3f}"]


def _difference(each: Comparison) -> list[str]:
    return [f"{each.difference:+.3f}", f"[{each.low:+.3f}, {each.high:+.3f}]"]


def _recovered(means: Mapping[str, float]) -> str:
    return f"{means['adapter'] / means['in_context']:.1%}" if means["in_context"] else UNKNOWN


def _word(verdict: bool | None) -> str:
    return {True: "yes", False: "no", None: UNKNOWN}[verdict]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


AXES = ("frames", "resolution", "segments", "in_context_frames")
"""What a sweep goes over, in the order of its runs."""


@dataclass(frozen=True)
class Run:
    """What was found under one setting."""

    setting: Setting
    report: Report

    @property
    def place(self) -> dict[str, int | None]:
        """Its value on every axis; None for what the hypernetwork was trained with, or the same as encoded."""
        return place(self.setting)


def place(setting: Setting) -> dict[str, int | None]:
    """A setting's value on every axis."""
    reading = setting.reading
    return dict(
        zip(AXES, (reading.frames, reading.resolution, setting.segments, setting.in_context_frames), strict=True)
    )


def settings(base: Setting, axes: dict[str, Sequence[int]]) -> list[Setting]:
    """`base` with every combination of the values on those axes."""
    return [_at(base, dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def varying(chosen: Sequence[Setting]) -> list[str]:
    """The axes on which settings differ."""
    return [axis for axis in AXES if len({place(setting)[axis] for setting in chosen}) > 1]


def output_of(path: Path, setting: Setting, axes: Sequence[str]) -> Path:
    """The file of one setting's answers: `path`, or beside it under a name that tells the values on those axes."""
    if not axes:
        return path
    values = ".".join(f"{axis.replace('_', '-')}-{place(setting)[axis]}" for axis in axes)
    return path.with_name(f"{path.stem}.{values}{path.suffix}")


def told(setting: Setting, axes: Sequence[str]) -> str:
    """A setting in words: its values on those axes."""
    return ", ".join(f"{axis.replace('_', ' ')} {place(setting)[axis]}" for axis in axes)


def table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every setting's means over all kinds, and the adapter against the video in context."""
    axes = varying([run.setting for run in runs])
    rows = []
    for run in runs:
        found = run.report.against.get("in_context")
        interval = [f"{found.difference:+.3f}", f"[{found.low:+.3f}, {found.high:+.3f}]"] if found else ["-", "-"]
        means = [f"{run.report.macro[name]:.3f}" if name in run.report.macro else "-" for name in _SHOWN]
        rows.append([*(str(run.place[axis]) for axis in axes), *means, *interval])
    return [*(axis.replace("_", " ") for axis in axes), "in context", "adapter", "difference", "95% interval"], rows


_SHOWN = ("in_context", "adapter")


def _at(base: Setting, values: dict[str, Any]) -> Setting:
    reading = {name: values[name] for name in ("frames", "resolution") if name in values}
    rest = {name: value for name, value in values.items() if name not in reading}
    return replace(base, reading=replace(base.reading, **reading), **rest)
