"""Summarise an evaluation: means by kind of question and condition, comparisons with the adapter, and sweeps.

`summarise` makes the report of one setting. A sweep is a series of settings that differ on some of `AXES`; a `Run` is
one of its settings with its report.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.evaluation.conditions import (
    ADAPTER,
    BIAS,
    IN_CONTEXT,
    NOTHING,
    OTHER_CLIP,
    OVERVIEW,
    SEGMENT_IN_CONTEXT,
    WHOLE,
    LayerAblation,
    RankAblation,
    Selection,
)
from v2l.evaluation.evaluate import Result
from v2l.evaluation.metrics import RESAMPLES, Comparison, compare
from v2l.evaluation.paper import ALL, Published
from v2l.evaluation.setting import Setting
from v2l.io.text import amount

Table = tuple[list[str], list[list[str]]]
TITLES = {
    IN_CONTEXT.name: "in context",
    ADAPTER.name: "adapter",
    NOTHING.name: "no video",
    BIAS.name: "bias alone",
    OTHER_CLIP.name: "other clip's",
    WHOLE.name: "all segments",
    OVERVIEW.name: "overview",
    SEGMENT_IN_CONTEXT.name: "its segment in context",
}
"""Column titles by name of the condition."""
AXES = ("frames", "resolution", "segments", "in_context_frames")
"""The settings that a sweep varies, in the order of its runs."""
UNKNOWN = "-"


# One setting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """One metric over all answered questions.

    counts, means: by kind of question, means also by condition; macro: means over the kinds, by condition
    against: the adapter minus every other condition
    by_kind: the adapter minus in context, by kind; None for a kind with questions about one clip only
    failed: number of questions that were not answered, or whose answers were not judged
    timed: number of answered questions that name a time, of which `uses` states the answerable share
    uses: by condition that shows the clip: the means of `VideoUse.record` over the questions that have it
    """

    metric: str
    counts: dict[str, int]
    means: dict[str, dict[str, float]]
    macro: dict[str, float]
    against: dict[str, Comparison]
    by_kind: dict[str, Comparison | None]
    failed: int
    timed: int = 0
    uses: dict[str, dict[str, float]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON, including the verdicts."""
        return {
            **asdict(self),
            "against": {name: each.record() for name, each in self.against.items()},
            "by_kind": {kind: each and each.record() for kind, each in self.by_kind.items()},
        }

    def means_table(self) -> Table:
        """Table of the means: one row per kind of question, then all kinds."""
        shown = [name for name in TITLES if name in self.macro]
        rows = [
            [kind, str(self._count(kind)), *(f"{means[name]:.3f}" for name in shown)]
            for kind, means in self._with_all().items()
        ]
        return ["question", "n", *(TITLES[name] for name in shown)], rows

    def uses_table(self) -> Table:
        """Table of what each condition shows of a clip: tokens, bytes in use, and the share of the timed questions
        whose second is among its frames at all; no rows for answers of earlier versions."""
        header = ["shown of a clip", "visual tokens", "attached or cached", f"can be answered, of {self.timed} timed"]
        rows = []
        for name, means in self.uses.items():
            answerable = f"{means['answerable']:.1%}" if "answerable" in means else UNKNOWN
            if name in TITLES:
                rows.append([TITLES[name], f"{means['visual_tokens']:,.0f}", amount(round(means["bytes"])), answerable])
        return header, rows

    def against_table(self) -> Table:
        """Table of the adapter against each other condition, one row per margin."""
        verdicts = ["non-inferior", "equivalent", "p of equivalence"]
        header = ["adapter against", "difference", "95% interval", "margin", *verdicts]
        rows = [
            [
                TITLES[name],
                *_difference(each),
                f"{each.margin:g}",
                *_verdicts(each),
                f"{each.tost_p:.2g}" if each.tost_p else f"<{1 / RESAMPLES:g}",
            ]
            for name, compared in self.against.items()
            if name in TITLES
            for each in compared.at_margins
        ]
        return header, rows

    def kinds_table(self, paper: Mapping[str, Published] | None = None) -> Table:
        """Table of the adapter against the video in context: one row per kind of question, then all kinds, each
        followed by the paper's row if there is one. Recovered is the adapter's share of the score in context."""
        margins = [each.margin for each in self.against["in_context"].at_margins]
        verdicts = [f"{name}, {margin:g}" for margin in margins for name in ("equivalent", "non-inferior")]
        rows = []
        for kind, means in self._with_all().items():
            compared = self.against["in_context"] if kind == ALL else self.by_kind[kind]
            cells = [f"{means['adapter'] - means['in_context']:+.3f}", UNKNOWN, *[UNKNOWN] * len(verdicts)]
            if compared:
                words = [word for each in compared.at_margins for word in reversed(_verdicts(each))]
                cells = [*_difference(compared), *words]
            rows.append([kind, str(self._count(kind)), *_scores(means), *cells, _recovered(means)])
            if paper and kind in paper:
                rows.append(_published(paper[kind], margins))
        header = ["question", "n", "in context", "adapter", "difference", "95% interval", *verdicts, "recovered"]
        return header, rows

    def summary(self) -> str:
        """Count the kinds on which the adapter is equivalent to the video in context and those with too few clips, at
        every margin, and those on which the video in context scores 0, where equivalence has no meaning."""
        known = [compared.at_margins for compared in self.by_kind.values() if compared]
        kinds = f"of {len(self.by_kind)} kinds at a margin of"
        counts = [
            f"{sum(compared[index].equivalent for compared in known)} {kinds} {each.margin:g}"
            + _few(sum(compared[index].too_few for compared in known))
            for index, each in enumerate(self.against["in_context"].at_margins)
        ]
        empty = sum(means["in_context"] == 0 for means in self.means.values())
        remark = f"; {empty} of them score 0 in context, where this has no meaning" if empty else ""
        return f"adapter and video in context are equivalent on {', '.join(counts)}{remark}"

    def _with_all(self) -> dict[str, dict[str, float]]:
        return {**self.means, ALL: self.macro}

    def _count(self, kind: str) -> int:
        return sum(self.counts.values()) if kind == ALL else self.counts[kind]


def summarise(results: Sequence[Result], metric: str, margin: float, stricter: Sequence[float] = ()) -> Report:
    """Summarise one metric. stricter: additional margins for the same differences

    Raises V2LError if no question was answered, or if there are fewer than two clips.
    """
    answered = [result for result in results if result.error is None]
    if not answered:
        raise V2LError("no question was answered and scored; see the errors above")
    conditions = [name for name in answered[0].scores if all(name in result.scores for result in answered)]
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
        timed=sum(any("answerable" in use for use in result.uses.values()) for result in answered),
        uses=_mean_uses(answered, conditions),
    )


def _mean_uses(results: Sequence[Result], conditions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the means of what the answers of each condition used, by name of the value."""
    found: dict[str, dict[str, float]] = {}
    for condition in conditions:
        uses = [result.uses[condition] for result in results if condition in result.uses]
        for name in dict.fromkeys(name for use in uses for name in use):
            found.setdefault(condition, {})[name] = _mean([use[name] for use in uses if name in use])
    return found


def _compare(
    results: Sequence[Result], metric: str, condition: str, margin: float, stricter: Sequence[float]
) -> Comparison:
    """Compare the adapter with a condition."""
    adapter, other = ([result.scores[name][metric] for result in results] for name in ("adapter", condition))
    kinds, clips = [result.kind for result in results], [result.clip for result in results]
    return compare(adapter, other, kinds, clips, margin, stricter=stricter)


def _by_kind(
    results: Sequence[Result], metric: str, kinds: Sequence[str], margin: float, stricter: Sequence[float]
) -> dict[str, Comparison | None]:
    compared: dict[str, Comparison | None] = {}
    for kind in kinds:
        own = [result for result in results if result.kind == kind]
        several = len({result.clip for result in own}) > 1
        compared[kind] = _compare(own, metric, "in_context", margin, stricter) if several else None
    return compared


# Cells -------------------------------------------------------------------------------------------------------------


def _published(row: Published, margins: Sequence[float]) -> list[str]:
    """Cells of the paper's row, with verdicts of its interval at the same margins."""
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


def _verdicts(compared: Comparison) -> tuple[str, str]:
    """Non-inferior and equivalent: yes, no, or too few clips to tell."""
    no = "too few" if compared.too_few else "no"
    return "yes" if compared.non_inferior else no, "yes" if compared.equivalent else no


def _few(kinds: int) -> str:
    return f" ({kinds} with too few clips)" if kinds else ""


def _word(verdict: bool | None) -> str:
    return {True: "yes", False: "no", None: UNKNOWN}[verdict]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Ablations and sweeps ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One setting and its report."""

    setting: Setting
    report: Report

    @property
    def place(self) -> dict[str, int | None]:
        """Its value on every axis; None for the hypernetwork's default, or the same as encoded."""
        return place(self.setting)


def rank_curves(run: Run) -> dict[Selection, dict[int, float]]:
    """Return the means of the rank ablations, by selection and number of ranks."""
    curves: dict[Selection, dict[int, float]] = {}
    for condition in run.setting.conditions:
        if isinstance(condition, RankAblation):
            curves.setdefault(condition.selection, {})[condition.count] = run.report.macro[condition.name]
    return {selection: curves[selection] for selection in Selection if selection in curves}


def rank_table(run: Run) -> Table | None:
    """Table of the rank ablations, one row per number of ranks; None without any."""
    curves = rank_curves(run)
    if not curves:
        return None
    counts = sorted({count for curve in curves.values() for count in curve})
    rows = [[str(count), *(f"{curve[count]:.3f}" for curve in curves.values())] for count in counts]
    titles = [each if each == Selection.without_top else f"{each} of them" for each in curves]
    return ["ranks", *titles], rows


def layer_means(run: Run) -> dict[int, float]:
    """Return the means of the layer ablations, by layer."""
    ablations = [each for each in run.setting.conditions if isinstance(each, LayerAblation)]
    return {condition.layer: run.report.macro[condition.name] for condition in ablations}


def layer_table(run: Run) -> Table | None:
    """Table of the layer ablations: the mean without each layer and the difference to the adapter; None without any."""
    means, adapter = layer_means(run), run.report.macro[ADAPTER.name]
    rows = [[str(layer), f"{mean:.3f}", f"{mean - adapter:+.3f}"] for layer, mean in means.items()]
    return (["without layer", "adapter", "difference"], rows) if rows else None


def place(setting: Setting) -> dict[str, int | None]:
    """Return the value of a setting on every axis."""
    reading = setting.reading
    return dict(
        zip(AXES, (reading.frames, reading.resolution, setting.segments, setting.in_context_frames), strict=True)
    )


def settings(base: Setting, axes: Mapping[str, Sequence[int]]) -> list[Setting]:
    """Return `base` with every combination of the values on `axes`."""
    return [_with_values(base, dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def varying(chosen: Sequence[Setting]) -> list[str]:
    """Return the axes on which settings differ."""
    return [axis for axis in AXES if len({place(setting)[axis] for setting in chosen}) > 1]


def output_of(path: Path, setting: Setting, axes: Sequence[str]) -> Path:
    """Return the file for the answers of a setting: `path`, or a name beside it that contains the values on `axes`."""
    if not axes:
        return path
    values = ".".join(f"{axis.replace('_', '-')}-{place(setting)[axis]}" for axis in axes)
    return path.with_name(f"{path.stem}.{values}{path.suffix}")


def describe_setting(setting: Setting, axes: Sequence[str]) -> str:
    """Describe a setting by its values on `axes`."""
    return ", ".join(f"{axis.replace('_', ' ')} {place(setting)[axis]}" for axis in axes)


def sweep_table(runs: Sequence[Run]) -> Table:
    """Table of a sweep: the means of every setting over all kinds, and the adapter against the video in context."""
    axes = varying([run.setting for run in runs])
    rows = []
    for run in runs:
        compared = run.report.against.get(IN_CONTEXT.name)
        interval = _difference(compared) if compared else [UNKNOWN, UNKNOWN]
        macro = [run.report.macro.get(condition.name) for condition in (IN_CONTEXT, ADAPTER)]
        means = [UNKNOWN if mean is None else f"{mean:.3f}" for mean in macro]
        rows.append([*(str(run.place[axis]) for axis in axes), *means, *interval])
    return [*(axis.replace("_", " ") for axis in axes), "in context", "adapter", "difference", "95% interval"], rows


def _with_values(base: Setting, values: dict[str, Any]) -> Setting:
    reading = {name: values[name] for name in ("frames", "resolution") if name in values}
    others = {name: value for name, value in values.items() if name not in reading}
    return replace(base, reading=replace(base.reading, **reading), **others)
