"""An evaluation in numbers: means by kind of question and condition, and the adapter against each other condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from v2l.errors import V2LError
from v2l.evaluate import Result
from v2l.scoring import Comparison, compare

TITLES = {
    "in_context": "in context",
    "adapter": "adapter",
    "nothing": "no video",
    "bias": "bias alone",
    "other_clip": "other clip's",
}


@dataclass(frozen=True)
class Report:
    """One metric over all answered questions.

    counts, means: by kind of question, means also by condition; macro: means over the kinds
    against: the adapter minus every other condition
    failed: questions whose clip could not be read or answered
    """

    metric: str
    counts: dict[str, int]
    means: dict[str, dict[str, float]]
    macro: dict[str, float]
    against: dict[str, Comparison]
    failed: int

    def record(self) -> dict[str, Any]:
        """As JSON, the verdicts included."""
        verdicts = {
            name: {**asdict(each), "non_inferior": each.non_inferior, "equivalent": each.equivalent}
            for name, each in self.against.items()
        }
        return {**asdict(self), "against": verdicts}

    def means_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: a kind of question each, then all kinds."""
        shown = [name for name in TITLES if name in self.macro]
        rows = [
            [kind, str(self.counts[kind]), *(f"{means[name]:.3f}" for name in shown)]
            for kind, means in self.means.items()
        ]
        rows.append(["all kinds", str(sum(self.counts.values())), *(f"{self.macro[name]:.3f}" for name in shown)])
        return ["question", "n", *(TITLES[name] for name in shown)], rows

    def against_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: the adapter against each other condition."""
        header = ["adapter against", "difference", "95% interval", "margin", "non-inferior", "equivalent", "TOST p"]
        rows = [
            [
                TITLES[name],
                f"{each.difference:+.3f}",
                f"[{each.low:+.3f}, {each.high:+.3f}]",
                f"{each.margin:g}",
                "yes" if each.non_inferior else "no",
                "yes" if each.equivalent else "no",
                f"{each.tost_p:.2g}",
            ]
            for name, each in self.against.items()
            if name in TITLES
        ]
        return header, rows


def summarise(results: Sequence[Result], metric: str, margin: float) -> Report:
    """The report of one metric. Raises V2LError where nothing was answered, or for fewer than two clips."""
    answered = [result for result in results if result.error is None]
    if not answered:
        raise V2LError("no question could be answered; see the errors above")
    conditions = list(answered[0].scores)
    kinds = sorted({result.kind for result in answered})
    means = {
        kind: {
            condition: _mean([r.scores[condition][metric] for r in answered if r.kind == kind])
            for condition in conditions
        }
        for kind in kinds
    }
    by_condition = {name: [result.scores[name][metric] for result in answered] for name in conditions}
    kind_of, clip_of = [result.kind for result in answered], [result.clip for result in answered]
    against = {
        name: compare(by_condition["adapter"], scores, kind_of, clip_of, margin)
        for name, scores in by_condition.items()
        if name != "adapter" and "adapter" in by_condition
    }
    return Report(
        metric=metric,
        counts={kind: kind_of.count(kind) for kind in kinds},
        means=means,
        macro={name: _mean([means[kind][name] for kind in kinds]) for name in conditions},
        against=against,
        failed=len(results) - len(answered),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
