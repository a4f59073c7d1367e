"""Pictures of the numbers in the tables, one question each. Needs matplotlib, the extra `plot`.

Greys and blues are answers in context, oranges those of the adapter. Lines have their names at their ends.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from v2l.bench.report import (
    FLOOR,
    HEADLINE,
    MARK,
    BenchSetting,
    grid,
    per_question,
    sweep_axes,
    times,
    unsteady,
    unsteady_line,
)
from v2l.bench.results import Cell
from v2l.evaluation.report import TITLES, Run, describe_setting, layer_means, rank_curves, varying
from v2l.io.files import write_atomically
from v2l.io.text import duration

Panel = Callable[[Any], None]
"""A function that draws into the axes of a figure."""
Pictures = Mapping[str, bytes]
"""Images by name; the first is the one that was asked for."""

ADAPTER, INK, PALE = "#d9480f", "#24292f", "#e5e7eb"
ADAPTERS = (ADAPTER, "#f08c4a", "#a33a0b", "#f7b98b")
CONTEXTS = ("#1f4e86", "#5b8fc7", "#6b7280", "#8fb4dd", "#374f6b", "#a3abb5", "#2b7a9b", "#c3d4e8")
FLOORS = ("#9aa0a6", "#c4c8cc", "#6e757c")
CONDITION_COLOURS = {
    "in_context": CONTEXTS[0],
    "segment_in_context": CONTEXTS[3],
    "adapter": ADAPTER,
    "whole": ADAPTERS[1],
    "overview": ADAPTERS[3],
    "nothing": FLOORS[0],
    "bias": FLOORS[1],
    "other_clip": FLOORS[2],
}
MARKS: Mapping[str, Mapping[str, Any]] = {
    "segment_in_context": {"marker": "o", "markersize": 14, "fillstyle": "none", "markeredgewidth": 1.6},
    "in_context": {"marker": "o", "markersize": 11, "fillstyle": "none", "markeredgewidth": 2},
    "nothing": {"marker": "x", "markersize": 6},
    "bias": {"marker": "+", "markersize": 8},
    "other_clip": {"marker": "|", "markersize": 9, "markeredgewidth": 1.6},
    "adapter": {"marker": "o", "markersize": 6.5},
    "whole": {"marker": "D", "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.5},
    "overview": {"marker": "s", "markersize": 3.8, "markeredgecolor": "white", "markeredgewidth": 0.5},
}
"""The point of each condition in the picture of the kinds, the lowest first. Those of one score stay visible: rings are
larger than the points above them, and crosses differ."""
WIDTH, HEIGHT = 8.0, 3.6
"""Size of a picture in inches, at 200 pixels each."""


def write_pictures(path: Path, pictures: Pictures) -> list[Path]:
    """Write the first picture to `path` and the others beside it, with their names before the suffix."""
    paths = [path if not number else path.with_suffix(f".{name}{path.suffix}") for number, name in enumerate(pictures)]
    for target, image in zip(paths, pictures.values(), strict=True):
        write_atomically(target, image)
    return paths


def plot_bench(settings: Sequence[BenchSetting], questions: int, title: str, image_format: str) -> dict[str, bytes]:
    """Return the pictures of a bench (paper figures 3 and 4). image_format: png, svg or pdf

    First token: bars for one setting, lines over the tokens of the video for a sweep. Then the mean time of a question
    by the number of questions about one video, for the largest number of frames. Of a sweep also the preparation and,
    if frames and resolution vary, the speed-up and the reduction of tokens against a cold answer in context.
    """
    most = max(settings, key=lambda each: each.frames)
    panels: dict[str, Panel] = {"questions": lambda ax: _amortized(ax, most, questions)}
    if len(settings) == 1:
        panels = {"first-token": lambda ax: _bars(ax, most), **panels}
    else:
        panels = {"first-token": lambda ax: _by_tokens(ax, settings, "median", "time to the first token"), **panels}
        panels["preparation"] = lambda ax: _by_tokens(ax, settings, "prepare", "preparation, once per video")
    if all(len(values) > 1 for values in sweep_axes(settings)):
        maps = {
            "speed-up": (BenchSetting.speedup, "first token with the adapter: how many times sooner than in context"),
            "tokens": (BenchSetting.fewer_tokens, "prompt with the adapter: how many times shorter than in context"),
        }
        for name, (value, text) in maps.items():
            panels[name] = partial(_times_map, settings=settings, value=value, title=text)
    return {name: _picture(panel, title, image_format) for name, panel in panels.items()}


def plot_eval(runs: Sequence[Run], title: str, image_format: str) -> dict[str, bytes]:
    """Return the pictures of an evaluation (paper figures 3, 5 and 6). image_format: png, svg or pdf

    The curves of a sweep; those of an ablation and the kinds of questions by condition, of the last run, which their
    titles name.
    """
    axes_of_sweep = varying([run.setting for run in runs])
    panels: dict[str, Panel] = {}
    if {"frames", "resolution"} & {*axes_of_sweep}:
        panels["sweep"] = lambda ax: _differences(ax, runs)
    for axis in ("segments", "in_context_frames"):
        if axis in axes_of_sweep:
            panels[axis.replace("_", "-")] = partial(_along, runs=runs, axis=axis)
    last = describe_setting(runs[-1].setting, axes_of_sweep)
    shown = f" ({last})" if last else ""
    if rank_curves(runs[-1]):
        panels["ranks"] = lambda ax: _ranks(ax, runs[-1], shown)
    if layer_means(runs[-1]):
        panels["layers"] = lambda ax: _layers(ax, runs[-1], shown)
    pictures = {name: _picture(panel, title, image_format) for name, panel in panels.items()}
    rows = len(runs[-1].report.means) + 1
    kinds = _picture(lambda ax: _kinds(ax, runs[-1], shown), title, image_format, max(HEIGHT, 1.4 + 0.28 * rows))
    return {**pictures, "kinds": kinds}


def _picture(panel: Panel, title: str, image_format: str, height: float = HEIGHT) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.edgecolor": "#9aa0a6",
    }
    with rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        ax = figure.subplots()
        ax.spines[["top", "right"]].set_visible(False)
        panel(ax)
        figure.supxlabel(title, fontsize=7, color="#6b7280", x=0.99, ha="right")
        image = io.BytesIO()
        figure.savefig(image, format=image_format, dpi=200)
    return image.getvalue()


# Parts -------------------------------------------------------------------------------------------------------------


def _method_colours(cells: Sequence[Cell]) -> dict[str, str]:
    """Return a colour of its own for each method."""
    colours = {HEADLINE: ADAPTER}
    contexts, adapters, floors = iter(CONTEXTS), iter(ADAPTERS[1:]), iter(FLOORS)
    for cell in cells:
        if cell.way not in colours:
            shades = floors if cell.way.endswith(FLOOR) else contexts if cell.in_context else adapters
            colours[cell.way] = next(shades, "black")
    return colours


def _lines(ax: Any, lines: Mapping[str, tuple[str, Sequence[tuple[float, float]]]]) -> None:
    """Draw lines with their names at their right ends. lines: colour and points by name; the axes' scales are set"""
    ends = {}
    for name, (colour, points) in lines.items():
        width, marker = (2.4 if colour == ADAPTER else 1.6), ("." if len(points) < 13 else "")
        ax.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=width, zorder=width)
        ends[name] = points[-1][1]
    to_axes = ax.transData + ax.transAxes.inverted()
    right = ax.get_xlim()[1]
    ordered = sorted(ends, key=lambda name: ends[name])
    places = _apart([float(to_axes.transform((right, ends[name]))[1]) for name in ordered])
    for name, place in zip(ordered, places, strict=True):
        ax.text(1.02, place, name, color=lines[name][0], transform=ax.transAxes, va="center", fontsize=9)


def _apart(places: list[float], gap: float = 0.075) -> list[float]:
    """Move rising places apart until neighbours have a distance of `gap`, as little as possible."""
    for _ in range(500):
        for lower in range(len(places) - 1):
            short = gap - (places[lower + 1] - places[lower])
            if short > 0:
                places[lower] -= short / 2
                places[lower + 1] += short / 2
    return places


def _whole(ax: Any, values: Sequence[int]) -> None:
    """Mark the horizontal axis at these values, as whole numbers, on a logarithmic scale."""
    ax.set_xscale("log")
    ax.set_xticks(values, [f"{value:,}" for value in values])
    ax.set_xticks([], minor=True)


def _seconds(ax: Any, which: str) -> None:
    """Mark a logarithmic axis of seconds in readable units."""
    axis = getattr(ax, f"{which}axis")
    getattr(ax, f"set_{which}scale")("log")
    axis.set_major_formatter(lambda value, _: duration(value))
    axis.set_minor_formatter(lambda value, _: "")


# Bench ------------------------------------------------------------------------------------------------------------


def _bars(ax: Any, setting: BenchSetting) -> None:
    cells = [cell for cell in setting.cells if cell.median]
    colours = _method_colours(setting.cells)
    _seconds(ax, "x")
    ax.barh(range(len(cells)), [cell.median for cell in cells], 0.66, color=[colours[cell.way] for cell in cells])
    for place, cell in enumerate(cells):
        about = "about " if cell.status == "estimated" else ""
        text = f" {about}{duration(cell.median or 0)}{MARK if unsteady(cell) else ''}"
        ax.text(cell.median, place, text, va="center", fontsize=9)
    ax.set_yticks(range(len(cells)), [cell.way for cell in cells])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set_title(f"time to the first token, {_described(setting)}", loc="left", fontsize=10)
    ax.set_xlabel(unsteady_line([setting]) or "", fontsize=8)


def _amortized(ax: Any, setting: BenchSetting, questions: int) -> None:
    counts = sorted({round(questions ** (step / 40)) for step in range(41)})
    colours = _method_colours(setting.cells)
    measured = [cell for cell in setting.cells if cell.status == "measured"]
    _whole(ax, [count for count in (1, 2, 5, 10, 20, 50, 100, 1000, 10_000) if count <= questions])
    _seconds(ax, "y")
    means = {cell.way: [(count, per_question(cell, count)) for count in counts] for cell in measured}
    ax.update_datalim([point for points in means.values() for point in points])
    ax.autoscale_view()
    _lines(ax, {name: (colours[name], points) for name, points in means.items()})
    ax.set_xlabel("questions about one video")
    ax.set_title(f"time of a question, preparation included, {_described(setting)}", loc="left", fontsize=10)


def _described(setting: BenchSetting) -> str:
    return f"{setting.frames:,} frames of {setting.resolution} pixels"


def _by_tokens(ax: Any, settings: Sequence[BenchSetting], value: str, title: str) -> None:
    """Draw a line for every method over the visual tokens of the video."""
    ordered = sorted(settings, key=lambda each: each.cells[0].visual_tokens)
    colours = _method_colours([cell for setting in ordered for cell in setting.cells])
    lines = {}
    for method, colour in colours.items():
        cells = [(each.cells[0].visual_tokens, each.cell(method)) for each in ordered]
        points = [
            (tokens, getattr(cell, value))
            for tokens, cell in cells
            if cell and getattr(cell, value) and (value != "prepare" or cell.kept_bytes)
        ]
        if points:
            lines[method] = colour, points
    _whole(ax, _spaced(sorted({setting.cells[0].visual_tokens for setting in ordered})))
    _seconds(ax, "y")
    ax.update_datalim([point for _, points in lines.values() for point in points])
    ax.autoscale_view()
    _lines(ax, lines)
    ax.set_xlabel("visual tokens of the video in context")
    ax.set_title(title, loc="left", fontsize=10)


def _spaced(values: Sequence[int]) -> list[int]:
    """Leave out values whose labels would touch on a logarithmic axis."""
    kept: list[int] = []
    for value in values:
        if not kept or value >= kept[-1] * max(1.3, (values[-1] / values[0]) ** 0.09):
            kept.append(value)
    return kept


def _times_map(ax: Any, settings: Sequence[BenchSetting], value: Any, title: str) -> None:
    frames, resolutions = sweep_axes(settings)
    names = [f"{resolution} px" for resolution in resolutions], [f"{count:,}" for count in frames]
    _heat_map(ax, grid(settings, value), names, times, title, norm="log", cmap="Oranges")


# Evaluation ----------------------------------------------------------------------------------------------------


def _kinds(ax: Any, run: Run, shown: str) -> None:
    """Draw a row for each kind of question, with a point for each condition. shown: the setting in a sweep"""
    means = {**run.report.means, "all kinds": run.report.macro}
    for order, name in enumerate(name for name in MARKS if name in run.report.macro):
        shows = run.report.uses.get(name, {}).get("answerable")
        label = TITLES[name] if shows is None else f"{TITLES[name]} ({shows:.0%} of the times shown)"
        ax.plot(
            [mean[name] for mean in means.values()],
            range(len(means)),
            color=CONDITION_COLOURS[name],
            label=label,
            linestyle="",
            zorder=2 + order,
            clip_on=False,
            **MARKS[name],
        )
    ax.set_yticks(range(len(means)), list(means), fontsize=9)
    ax.invert_yaxis()
    ax.grid(axis="y", color=PALE)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1)
    ax.set_title(f"score by kind of question{shown}", loc="left", fontsize=10)
    points = dict(zip((name for name in MARKS if name in run.report.macro), ax.lines, strict=True))
    handles = [points[name] for name in TITLES if name in points]
    ax.legend(handles=handles, fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))


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
    _heat_map(ax, numbers, names, "{:+.3f}".format, "adapter minus in context", cmap="PuOr_r", vmin=-0.5, vmax=0.5)


def _along(ax: Any, runs: Sequence[Run], axis: str) -> None:
    lines = {}
    for name, title in TITLES.items():
        points = [(run.place[axis], run.report.macro[name]) for run in runs if name in run.report.macro]
        known = sorted((place, value) for place, value in points if place is not None)
        if known:
            lines[title] = CONDITION_COLOURS[name], known
    values = sorted({value for run in runs if (value := run.place[axis]) is not None})
    _whole(ax, values)
    ax.set_xlim(values[0] / 1.05, values[-1] * 1.05)
    ax.set_ylim(0, 1.02)
    _lines(ax, lines)
    ax.set_xlabel(axis.replace("_", " "))
    ax.set_title("score, mean over all kinds of question", loc="left", fontsize=10)


def _ranks(ax: Any, run: Run, shown: str) -> None:
    curves = rank_curves(run)
    counts = sorted({count for curve in curves.values() for count in curve})
    colours = (ADAPTER, CONTEXTS[0], CONTEXTS[3], ADAPTERS[3])
    _whole(ax, counts)
    ax.set_xlim(counts[0] / 1.05, counts[-1] * 1.05)
    ax.set_ylim(0, 1.02)
    ends = {
        str(choice): (colour, sorted(curve.items()))
        for (choice, curve), colour in zip(curves.items(), colours, strict=False)
    }
    for name in ("adapter", "bias"):
        if name in run.report.macro:
            mean = run.report.macro[name]
            ends[{"adapter": "the whole adapter", "bias": "bias alone"}[name]] = (
                FLOORS[0] if name == "bias" else INK,
                [(counts[0], mean), (counts[-1], mean)],
            )
    _lines(ax, ends)
    ax.set_xlabel("generated ranks kept, or left out from the top")
    ax.set_title(f"score by rank, ordered by the product of the factors' norms{shown}", loc="left", fontsize=10)


def _layers(ax: Any, run: Run, shown: str) -> None:
    means = layer_means(run)
    differences = [mean - run.report.macro["adapter"] for mean in means.values()]
    ax.bar(list(means), differences, color=ADAPTER)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.set_xlabel("layer left out")
    ax.set_title(f"score without one layer, difference from the whole adapter{shown}", loc="left", fontsize=10)


def _named(value: int | None, unit: str = "") -> str:
    return "as trained" if value is None else f"{value:,}{unit}"


def _heat_map(
    ax: Any,
    numbers: Sequence[Sequence[float | None]],
    names: tuple[Sequence[str], Sequence[str]],
    named: Callable[[float], str],
    title: str,
    **colours: Any,
) -> None:
    """Draw a heat map. numbers: a row for each number of frames, a column for each resolution; names: of both axes,
    the resolutions first"""
    ax.imshow([[float("nan") if cell is None else cell for cell in line] for line in numbers], aspect="auto", **colours)
    for y, line in enumerate(numbers):
        for x, cell in enumerate(line):
            text = "-" if cell is None else named(cell)
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "boxstyle": "round"}
            ax.text(x, y, text, ha="center", va="center", bbox=box)
    ax.set_xticks(range(len(names[0])), names[0])
    ax.set_yticks(range(len(names[1])), names[1])
    ax.set_ylabel("frames")
    ax.set_title(title, loc="left", fontsize=10)
