"""Figures of the numbers in the tables. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from v2l.bench.report import HEADLINE, BenchSetting, grid, per_question, sweep_axes
from v2l.evaluation.report import TITLES, Run, layer_means, rank_curves, varying

Panel = Callable[[Any], None]
"""A function that draws into the axes of a figure."""


def plot_bench(settings: Sequence[BenchSetting], questions: int, title: str, image_format: str) -> bytes:
    """Return an image of a bench (paper figures 3 and 4). image_format: png, svg or pdf

    Panels: the speed-up and the reduction of tokens against an answer in context without a cache, by frames and
    resolution; the mean time of a question by the number of questions about one video, for the largest number of
    frames; and, of a sweep, preparation and first token by the tokens of the video.
    """
    most = max(settings, key=lambda each: each.frames)
    panels: list[Panel] = [
        lambda ax: _times_map(ax, settings, BenchSetting.speedup, "first token sooner than cold in context"),
        lambda ax: _times_map(ax, settings, BenchSetting.fewer_tokens, "fewer prompt tokens than in context"),
        lambda ax: _amortized(ax, most, questions),
    ]
    if len(settings) > 1:
        panels += [
            lambda ax: _by_tokens(ax, settings, "median", "seconds to the first token"),
            lambda ax: _by_tokens(ax, settings, "prepare", "preparation, seconds per video"),
        ]
    return _figure(panels, title, image_format)


def plot_eval(runs: Sequence[Run], title: str, image_format: str) -> bytes:
    """Return an image of an evaluation (paper figures 3, 5 and 6). image_format: png, svg or pdf

    Panels: the kinds of questions by condition, of the last run; and the curves of a sweep or an ablation.
    """
    axes_of_sweep = varying([run.setting for run in runs])
    panels: list[Panel] = [lambda ax: _kinds(ax, runs[-1])]
    if {"frames", "resolution"} & {*axes_of_sweep}:
        panels.append(lambda ax: _differences(ax, runs))
    for axis in ("segments", "in_context_frames"):
        if axis in axes_of_sweep:
            panels.append(partial(_along, runs=runs, axis=axis))
    if rank_curves(runs[-1]):
        panels.append(lambda ax: _ranks(ax, runs[-1]))
    if layer_means(runs[-1]):
        panels.append(lambda ax: _layers(ax, runs[-1]))
    return _figure(panels, title, image_format)


def _figure(panels: Sequence[Panel], title: str, image_format: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(ax)
    figure.suptitle(title, fontsize=9)
    image = io.BytesIO()
    figure.savefig(image, format=image_format)
    return image.getvalue()


# Bench ------------------------------------------------------------------------------------------------------------


def _times_map(ax: Any, settings: Sequence[BenchSetting], value: Any, title: str) -> None:
    frames, resolutions = sweep_axes(settings)
    names = [f"{resolution} px" for resolution in resolutions], [f"{count:,}" for count in frames]
    _heat_map(ax, grid(settings, value), names, "{:.3g} x", title, norm="log", cmap="viridis")


def _amortized(ax: Any, setting: BenchSetting, questions: int) -> None:
    counts = range(1, questions + 1)
    for cell in setting.cells:
        if cell.status == "measured":
            style = "--" if cell.in_context else "-"
            ax.plot(counts, [per_question(cell, count) for count in counts], style, label=cell.way)
    ax.set_yscale("log")
    ax.set_xlabel("questions about one video")
    ax.set_ylabel("seconds per question, preparation included")
    ax.set_title(f"{setting.frames:,} frames, {setting.resolution} px")
    ax.legend(fontsize=7)


def _by_tokens(ax: Any, settings: Sequence[BenchSetting], value: str, title: str) -> None:
    """Draw a line for every method over the visual tokens of the video."""
    ordered = sorted(settings, key=lambda each: each.cells[0].visual_tokens)
    for method in dict.fromkeys(cell.way for setting in ordered for cell in setting.cells):
        cells = [(each.cells[0].visual_tokens, each.cell(method)) for each in ordered]
        points = [(tokens, getattr(cell, value)) for tokens, cell in cells if cell and getattr(cell, value)]
        if points:
            ax.plot(*zip(*points, strict=True), "-" if method == HEADLINE else "--", marker=".", label=method)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("visual tokens of the video")
    ax.set_title(title)
    ax.legend(fontsize=7)


# Evaluation ----------------------------------------------------------------------------------------------------


def _kinds(ax: Any, run: Run) -> None:
    means = {**run.report.means, "all kinds": run.report.macro}
    shown = [name for name in TITLES if name in run.report.macro]
    height = 0.8 / len(shown)
    for number, name in enumerate(shown):
        rows = [row + number * height for row in range(len(means))]
        shows = run.report.uses.get(name, {}).get("answerable")
        label = TITLES[name] if shows is None else f"{TITLES[name]} ({shows:.0%} of the times shown)"
        ax.barh(rows, [mean[name] for mean in means.values()], height, label=label)
    ax.set_yticks([row + 0.4 - height / 2 for row in range(len(means))], list(means), fontsize=7)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_title("by kind of question")
    ax.legend(fontsize=7)


def _differences(ax: Any, runs: Sequence[Run]) -> None:
    """Draw the difference of adapter and context by frames and resolution, of the first run of each setting."""
    frames = list(dict.fromkeys(run.place["frames"] for run in runs))
    resolutions = list(dict.fromkeys(run.place["resolution"] for run in runs))
    found = {
        (run.place["frames"], run.place["resolution"]): run.report.against["in_context"].difference
        for run in reversed(runs)
        if "in_context" in run.report.against
    }
    numbers = [[found.get((count, resolution)) for resolution in resolutions] for count in frames]
    names = [_named(resolution, " px") for resolution in resolutions], [_named(count) for count in frames]
    _heat_map(ax, numbers, names, "{:+.3f}", "adapter minus in context", cmap="RdBu", vmin=-0.5, vmax=0.5)


def _along(ax: Any, runs: Sequence[Run], axis: str) -> None:
    for name, title in TITLES.items():
        points = [(run.place[axis], run.report.macro[name]) for run in runs if name in run.report.macro]
        points = sorted(point for point in points if point[0] is not None)
        if points:
            ax.plot(*zip(*points, strict=True), marker=".", label=title)
    ax.set_ylim(0, 1)
    values = sorted({value for run in runs if (value := run.place[axis]) is not None})
    ax.set_xscale("log")
    ax.set_xticks(values, [str(value) for value in values], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlabel(axis.replace("_", " "))
    ax.set_title("all kinds")
    ax.legend(fontsize=7)


def _ranks(ax: Any, run: Run) -> None:
    for choice, curve in rank_curves(run).items():
        ax.plot(list(curve), list(curve.values()), marker=".", label=choice)
        ax.set_xticks(list(curve))
    for name in ("adapter", "bias"):
        if name in run.report.macro:
            ax.axhline(run.report.macro[name], linestyle=":", color="grey")
            ax.annotate(TITLES[name], (1, run.report.macro[name]), fontsize=7)
    ax.set_xlabel("generated ranks kept, or left out from the top")
    ax.set_title("ranks by the product of their factors' norms")
    ax.legend(fontsize=7)


def _layers(ax: Any, run: Run) -> None:
    means = layer_means(run)
    ax.bar(list(means), [mean - run.report.macro["adapter"] for mean in means.values()])
    ax.set_xlabel("layer left out")
    ax.set_title("difference from the whole adapter")


def _named(value: int | None, unit: str = "") -> str:
    return "as trained" if value is None else f"{value:,}{unit}"


def _heat_map(
    ax: Any,
    numbers: Sequence[Sequence[float | None]],
    names: tuple[Sequence[str], Sequence[str]],
    cell_format: str,
    title: str,
    **colours: Any,
) -> None:
    """Draw a heat map. numbers: a row for each number of frames, a column for each resolution; names: of both axes,
    the resolutions first"""
    ax.imshow([[float("nan") if cell is None else cell for cell in line] for line in numbers], aspect="auto", **colours)
    for y, line in enumerate(numbers):
        for x, cell in enumerate(line):
            text = "-" if cell is None else cell_format.format(cell)
            ax.text(x, y, text, ha="center", va="center", color="white", bbox={"facecolor": "black", "alpha": 0.4})
    ax.set_xticks(range(len(names[0])), names[0])
    ax.set_yticks(range(len(names[1])), names[1])
    ax.set_ylabel("frames")
    ax.set_title(title)
