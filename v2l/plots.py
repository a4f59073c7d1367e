"""Figures from the numbers that the tables show. Needs matplotlib: the extra `plot`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from v2l.bench_report import Comparison, axes, grid, per_question
from v2l.errors import UsageError

FORMATS = ("png", "svg", "pdf")


def check_extra() -> None:
    """Raises UsageError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("--plot draws with matplotlib, which is not installed: pip install 'v2l[plot]'") from error


def plot_bench(comparisons: Sequence[Comparison], questions: int, title: str, form: str) -> bytes:
    """An image file of one of FORMATS: over frames and resolution how much sooner and with how many times fewer tokens
    the adapter answers than cold in context; and the mean time of a question by the number of questions about one
    video, of the comparison with the most frames (paper figures 3 and 4)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    faster, fewer, amortized = figure.subplots(1, 3)
    _heat_map(faster, comparisons, Comparison.speedup, "first token sooner than cold in context")
    _heat_map(fewer, comparisons, Comparison.fewer_tokens, "fewer prompt tokens than in context")
    _curves(amortized, max(comparisons, key=lambda each: each.frames), questions)
    figure.suptitle(title, fontsize=9)
    image = io.BytesIO()
    figure.savefig(image, format=form)
    return image.getvalue()


def _heat_map(place: Any, comparisons: Sequence[Comparison], value: Any, title: str) -> None:
    frames, resolutions = axes(comparisons)
    found = grid(comparisons, value)
    numbers = [[float("nan") if cell is None else cell for cell in line] for line in found]
    place.imshow(numbers, cmap="viridis", aspect="auto", norm="log")
    for y, line in enumerate(found):
        for x, cell in enumerate(line):
            text = "-" if cell is None else f"{cell:.3g} x"
            place.text(x, y, text, ha="center", va="center", color="white", bbox={"facecolor": "black", "alpha": 0.4})
    place.set_xticks(range(len(resolutions)), [f"{resolution} px" for resolution in resolutions])
    place.set_yticks(range(len(frames)), [f"{count:,}" for count in frames])
    place.set_ylabel("frames")
    place.set_title(title)


def _curves(place: Any, comparison: Comparison, questions: int) -> None:
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
