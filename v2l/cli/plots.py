"""Figures of the numbers in the tables. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from v2l.bench.report import HEADLINE, BenchSetting, axes, grid, per_question
from v2l.evaluation.report import TITLES, Run, layer_means, rank_curves, varying

Panel = Callable[[Any], None]
"""A function that draws into the axes of a figure."""


def plot_bench(comparisons: Sequence[BenchSetting], questions: int, title: str, form: str) -> bytes:
    """Return an image of a bench (paper figures 3 and 4). form: png, svg or pdf

    Panels: the speed-up and the reduction of tokens against an answer in context without a cache, by frames and
    resolution; the mean time of a question by the number of questions about one video, for the largest number of
    frames; and, of a sweep, preparation and first token by the tokens of the video.
    """
    most = max(comparisons, key=lambda each: each.frames)
    panels: list[Panel] = [
        lambda place: _times_map(place, comparisons, BenchSetting.speedup, "first token sooner than cold in context"),
        lambda place: _times_map(place, comparisons, BenchSetting.fewer_tokens, "fewer prompt tokens than in context"),
        lambda place: _amortized(place, most, questions),
    ]
    if len(comparisons) > 1:
        panels += [
            lambda place: _by_tokens(place, comparisons, "median", "seconds to the first token"),
            lambda place: _by_tokens(place, comparisons, "prepare", "seconds of preparation, once a video"),
        ]
    return _figure(panels, title, form)


def plot_eval(runs: Sequence[Run], title: str, form: str) -> bytes:
    """Return an image of an evaluation (paper figures 3, 5 and 6). form: png, svg or pdf

    Panels: the kinds of questions by condition, of the last run; and the curves of a sweep or an ablation.
    """
    axes_of_sweep = varying([run.setting for run in runs])
    panels: list[Panel] = [lambda place: _kinds(place, runs[-1])]
    if {"frames", "resolution"} & {*axes_of_sweep}:
        panels.append(lambda place: _differences(place, runs))
    for axis in ("segments", "in_context_frames"):
        if axis in axes_of_sweep:
            panels.append(partial(_along, runs=runs, axis=axis))
    if rank_curves(runs[-1]):
        panels.append(lambda place: _ranks(place, runs[-1]))
    if layer_means(runs[-1]):
        panels.append(lambda place: _layers(place, runs[-1]))
    return _figure(panels, title, form)


def _figure(panels: Sequence[Panel], title: str, form: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    for place, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(place)
    figure.suptitle(title, fontsize=9)
    image = io.BytesIO()
    figure.savefig(image, format=form)
    return image.getvalue()


# Bench ------------------------------------------------------------------------------------------------------------


def _times_map(place: Any, comparisons: Sequence[BenchSetting], value: Any, title: str) -> None:
    frames, resolutions = axes(comparisons)
    places = [f"{resolution} px" for resolution in resolutions], [f"{count:,}" for count in frames]
    _heat_map(place, grid(comparisons, value), places, "{:.3g} x", title, norm="log", cmap="viridis")


def _amortized(place: Any, comparison: BenchSetting, questions: int) -> None:
    counts = range(1, questions + 1)
    for cell in comparison.cells:
        if cell.status == "measured":
            style = "--" if cell.in_context else "-"
            place.plot(counts, [per_question(cell, count) for count in counts], style, label=cell.way)
    place.set_yscale("log")
    place.set_xlabel("questions about one video")
    place.set_ylabel("seconds a question, preparation included")
    place.set_title(f"{comparison.frames:,} frames, {comparison.resolution} px")
    place.legend(fontsize=7)


def _by_tokens(place: Any, comparisons: Sequence[BenchSetting], value: str, title: str) -> None:
    """Draw a line for every method over the visual tokens of the video."""
    ordered = sorted(comparisons, key=lambda each: each.cells[0].visual_tokens)
    for way in dict.fromkeys(cell.way for comparison in ordered for cell in comparison.cells):
        cells = [(each.cells[0].visual_tokens, each.cell(way)) for each in ordered]
        points = [(tokens, getattr(cell, value)) for tokens, cell in cells if cell and getattr(cell, value)]
        if points:
            place.plot(*zip(*points, strict=True), "-" if way == HEADLINE else "--", marker=".", label=way)
    place.set_xscale("log")
    place.set_yscale("log")
    place.set_xlabel("visual tokens of the video")
    place.set_title(title)
    place.legend(fontsize=7)


# Evaluation ----------------------------------------------------------------------------------------------------


def _kinds(place: Any, run: Run) -> None:
    means = {**run.report.means, "all kinds": run.report.macro}
    shown = [name for name in TITLES if name in run.report.macro]
    height = 0.8 / len(shown)
    for number, name in enumerate(shown):
        rows = [row + number * height for row in range(len(means))]
        place.barh(rows, [mean[name] for mean in means.values()], height, label=TITLES[name])
    place.set_yticks([row + 0.4 - height / 2 for row in range(len(means))], list(means), fontsize=7)
    place.invert_yaxis()
    place.set_xlim(0, 1)
    place.set_title("by kind of question")
    place.legend(fontsize=7)


def _differences(place: Any, runs: Sequence[Run]) -> None:
    """Draw the difference of adapter and context by frames and resolution, of the first run at each place."""
    frames = list(dict.fromkeys(run.place["frames"] for run in runs))
    resolutions = list(dict.fromkeys(run.place["resolution"] for run in runs))
    found = {
        (run.place["frames"], run.place["resolution"]): run.report.against["in_context"].difference
        for run in reversed(runs)
        if "in_context" in run.report.against
    }
    numbers = [[found.get((count, resolution)) for resolution in resolutions] for count in frames]
    names = [_named(resolution, " px") for resolution in resolutions], [_named(count) for count in frames]
    _heat_map(place, numbers, names, "{:+.3f}", "adapter minus in context", cmap="RdBu", vmin=-0.5, vmax=0.5)


def _along(place: Any, runs: Sequence[Run], axis: str) -> None:
    for name, title in TITLES.items():
        points = [(run.place[axis], run.report.macro[name]) for run in runs if name in run.report.macro]
        points = sorted(point for point in points if point[0] is not None)
        if points:
            place.plot(*zip(*points, strict=True), marker=".", label=title)
    place.set_ylim(0, 1)
    values = sorted({value for run in runs if (value := run.place[axis]) is not None})
    place.set_xscale("log")
    place.set_xticks(values, [str(value) for value in values], minor=False)
    place.set_xticks([], minor=True)
    place.set_xlabel(axis.replace("_", " "))
    place.set_title("all kinds")
    place.legend(fontsize=7)


def _ranks(place: Any, run: Run) -> None:
    for choice, curve in rank_curves(run).items():
        place.plot(list(curve), list(curve.values()), marker=".", label=choice)
        place.set_xticks(list(curve))
    for name in ("adapter", "bias"):
        if name in run.report.macro:
            place.axhline(run.report.macro[name], linestyle=":", color="grey")
            place.annotate(TITLES[name], (1, run.report.macro[name]), fontsize=7)
    place.set_xlabel("generated ranks kept, or left out from the top")
    place.set_title("ranks by the product of their factors' norms")
    place.legend(fontsize=7)


def _layers(place: Any, run: Run) -> None:
    means = layer_means(run)
    place.bar(list(means), [mean - run.report.macro["adapter"] for mean in means.values()])
    place.set_xlabel("layer left out")
    place.set_title("difference from the whole adapter")


def _named(value: int | None, unit: str = "") -> str:
    return "as trained" if value is None else f"{value:,}{unit}"


def _heat_map(
    place: Any,
    numbers: Sequence[Sequence[float | None]],
    names: tuple[Sequence[str], Sequence[str]],
    form: str,
    title: str,
    **colours: Any,
) -> None:
    """Draw a heat map. numbers: a row for each number of frames, a column for each resolution; names: of both axes,
    the resolutions first"""
    place.imshow(
        [[float("nan") if cell is None else cell for cell in line] for line in numbers], aspect="auto", **colours
    )
    for y, line in enumerate(numbers):
        for x, cell in enumerate(line):
            text = "-" if cell is None else form.format(cell)
            place.text(x, y, text, ha="center", va="center", color="white", bbox={"facecolor": "black", "alpha": 0.4})
    place.set_xticks(range(len(names[0])), names[0])
    place.set_yticks(range(len(names[1])), names[1])
    place.set_ylabel("frames")
    place.set_title(title)
