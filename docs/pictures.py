"""Draw the README's pictures: `python docs/pictures.py` (needs `pip install '.[plot]'`).

Every number is read from docs/results/. Colours: greys and blues for the video in context, one orange for the adapter.
"""

import json
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results"
PICTURES = DOCS / "pictures"

ADAPTER, ADAPTER_LIGHT = "#d9480f", "#e08e5f"
BLUE, BLUE_LIGHT, GREY, INK = "#3b6ea5", "#a9c1dc", "#9aa0a6", "#24292f"

plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.labelcolor": INK})
plt.rcParams.update({"xtick.color": INK, "ytick.color": INK, "axes.edgecolor": GREY})


def rows(path: str) -> list[dict]:
    """Objects of a JSON-lines file under docs/results/."""
    return [json.loads(line) for line in (RESULTS / path).read_text().splitlines()]


def save(figure: plt.Figure, name: str) -> None:
    """Write docs/pictures/NAME.png, 1,600 pixels wide, reduced to 64 colours."""
    path = PICTURES / f"{name}.png"
    figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def box(axes: plt.Axes, centre: tuple[float, float], size: tuple[float, float], text: str, colour: str) -> None:
    """A rounded box with centred text; the first line is bold."""
    corner = centre[0] - size[0] / 2, centre[1] - size[1] / 2
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, facecolor="white", edgecolor=colour, linewidth=1.8))
    title, *lines = text.split("\n")
    top = centre[1] + 0.1 * len(lines)
    axes.text(centre[0], top, title, ha="center", va="center", weight="bold", fontsize=10.5)
    for number, line in enumerate(lines, start=1):
        axes.text(centre[0], top - 0.2 * number - 0.03, line, ha="center", va="center", fontsize=9)


def arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    """A straight arrow."""
    style = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.6, "color": colour, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, **style))


def pipeline() -> None:
    """Video to adapter, once; adapter and question to answer, many times."""
    figure, axes = plt.subplots(figsize=(8, 3.0))
    axes.set(xlim=(0, 8), ylim=(0.25, 3.25), aspect="equal")
    axes.axis("off")
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)

    top, bottom, height = 2.3, 0.72, 0.82
    axes.text(0.12, 3.02, "once per video:  v2l encode", weight="bold", color=BLUE, fontsize=10.5)
    axes.text(0.12, 1.36, "for every question:  v2l ask", weight="bold", color=ADAPTER, fontsize=10.5)

    # the film strip
    for shift in (0.12, 0.06, 0.0):
        corner = (0.15 + shift, top - 0.36 + shift)
        axes.add_patch(FancyBboxPatch(corner, 0.95, 0.6, boxstyle="square,pad=0", fc=BLUE_LIGHT, ec="white", lw=1.5))
    axes.text(0.625, top - 0.06, "lecture.mp4", ha="center", va="center", fontsize=9)

    box(axes, (2.5, top), (1.75, height), "frozen SmolVLM2\nhidden states\nof every layer", BLUE)
    box(axes, (4.75, top), (1.75, height), "hypernetwork\none forward pass,\nno gradient step", BLUE)
    box(axes, (6.95, top), (1.75, height), "LoRA adapter\nlecture.v2l.safetensors\na few megabytes", ADAPTER)
    arrow(axes, (1.3, top), (1.6, top))
    arrow(axes, (3.4, top), (3.85, top))
    arrow(axes, (5.65, top), (6.05, top))

    box(axes, (1.45, bottom), (2.6, 0.7), "question\n“what is on the whiteboard?”", GREY)
    box(axes, (4.75, bottom), (2.3, 0.7), "frozen SmolVLM2\nwith the adapter,\n0 visual tokens", ADAPTER)
    box(axes, (7.15, bottom), (1.35, 0.7), "answer\n“token then\nladder …”", GREY)
    arrow(axes, (2.78, bottom), (3.57, bottom))
    arrow(axes, (5.93, bottom), (6.45, bottom))
    arrow(axes, (6.6, top - 0.43), (5.3, bottom + 0.38), ADAPTER)
    save(figure, "pipeline")


METHODS = {
    "in context, cold": "video in context, cold",
    "in context, features kept": "image features kept",
    "in context, KV in memory": "KV cache kept in memory",
    "adapter, attached": "adapter",
    "no video": "no video",
}


def duration(seconds: float) -> str:
    """A time with two or three digits."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.{0 if seconds >= 0.1 else 1}f} ms"


def first_token() -> None:
    """Median time to first token of each method, as bars on a logarithmic axis."""
    panels = {
        "bench/tiny-1024.jsonl": "tiny (2.6 M parameters)\n1,024 frames, 12,337 tokens in context",
        "bench/500m-12-cpu.jsonl": "SmolVLM2-500M, random weights\n12 frames, 939 tokens in context",
    }
    figure, both = plt.subplots(1, 2, figsize=(8, 3.1), sharey=True, layout="constrained")
    for axes, (path, title) in zip(both, panels.items(), strict=True):
        medians = {row["way"]: median(row["first_token"]) for row in rows(path) if "way" in row}
        values = [medians[name] for name in METHODS]
        colours = [BLUE, BLUE, BLUE, ADAPTER, GREY]
        axes.barh(range(len(METHODS)), values, color=colours, height=0.66)
        for place, value in enumerate(values):
            axes.text(value * 1.15, place, duration(value), va="center", fontsize=10)
        axes.set_xscale("log")
        axes.set_xticks([0.001, 0.01, 0.1, 1, 10], ["1 ms", "10 ms", "100 ms", "1 s", "10 s"])
        axes.minorticks_off()
        axes.set_xlim(0.001, 150)
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(range(len(METHODS)), METHODS.values())
        axes.tick_params(axis="y", length=0)
    both[0].invert_yaxis()
    figure.supxlabel("time to first token, median, two CPU cores (logarithmic scale)", fontsize=10, color=INK)
    save(figure, "first-token")


TIMELINES = {
    "64-default": "64 s\nsegments of 11 s\n(default)",
    "1024-default": "1,024 s\nsegments of 16 s\n(default)",
    "3600-default": "an hour\nsegments of 57 s\n(default)",
    "3600-16s": "an hour\nsegments of 16 s",
}
CONDITIONS = {
    "adapter": ("adapter of the segment\nthat is asked about", ADAPTER),
    "segment_in_context": ("in context, the same\nsegment's frames", BLUE_LIGHT),
    "in_context": ("in context, 35 frames of\nthe whole (all that fit)", BLUE),
}


def accuracy() -> None:
    """Exact match of timelines, as `v2l encode` makes them, of tiny on drawn videos."""
    reports = json.loads((RESULTS / "long/quality.json").read_text())
    figure, axes = plt.subplots(figsize=(8, 3.4))
    figure.subplots_adjust(left=0.065, right=0.745, bottom=0.2, top=0.9)
    width = 0.27
    for number, (name, (label, colour)) in enumerate(CONDITIONS.items()):
        values = [reports[report]["macro"][name] for report in TIMELINES]
        places = [group + (number - 1) * width for group in range(len(values))]
        axes.bar(places, values, width * 0.92, color=colour)
        for place, value in zip(places, values, strict=True):
            axes.text(place, value + 0.015, f"{value:.1%}".removesuffix(".0%").rstrip("%"), ha="center", fontsize=9)
        height = 0.86 - 0.2 * number
        axes.text(1.012, height, "■", color=colour, fontsize=13, transform=axes.transAxes, va="center")
        place = {"va": "center", "fontsize": 9.5, "linespacing": 1.2, "transform": axes.transAxes}
        axes.text(1.058, height, label, **place)
    axes.set_xticks(range(len(TIMELINES)), TIMELINES.values(), fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 1.1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.grid(axis="y", color="#e5e7eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("exact answers in %, by length of the video (tiny, drawn videos)", fontsize=10.5, loc="left")
    save(figure, "accuracy")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    pipeline()
    first_token()
    accuracy()
