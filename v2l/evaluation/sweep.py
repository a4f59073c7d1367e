"""One evaluation under several settings: every combination of the values given, and the tables across them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from v2l.evaluation.evaluate import Setting
from v2l.evaluation.report import Report

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
