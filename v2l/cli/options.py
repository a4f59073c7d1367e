"""The options that several commands share, and the words they take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from v2l.errors import UsageError
from v2l.video.limits import LEAST_RESOLUTION


class Dtype(StrEnum):
    """Number types a model can be loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Arch(StrEnum):
    """Architectures that can be built with random weights, see arch.py."""

    smolvlm2_500m = "smolvlm2-500m"
    smolvlm2_2_2b = "smolvlm2-2.2b"


class ExportFormat(StrEnum):
    """What an adapter can be exported to, see export.py."""

    peft = "peft"
    gguf = "gguf"


class Metric(StrEnum):
    """Scores of an answer, see scoring.py and judge.py."""

    exact = "exact"
    f1 = "f1"
    rouge_l = "rouge_l"
    judge = "judge"


class PaperModel(StrEnum):
    """The models that the paper has tables of, see paper.py."""

    of_500m = "500m"
    of_2_2b = "2.2b"


def seconds(text: str) -> float:
    """A time as seconds or as [H:]MM:SS[.s]. Raises BadParameter."""
    try:
        parts = [float(part) for part in text.split(":")]
        value = sum(part * 60**place for place, part in enumerate(reversed(parts)))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no time; give seconds (90.5) or H:MM:SS (0:01:30.5)") from error
    if len(parts) > 3 or not all(0 <= part < float("inf") for part in parts):
        raise typer.BadParameter(f"{text!r} is no time; give seconds (90.5) or H:MM:SS (0:01:30.5)")
    return value


def whole_numbers(text: str | None, option: str, least: int = 1) -> tuple[int, ...]:
    """`12,64` as numbers, none for no text. Raises UsageError where it is no such list, or one is less than `least`."""
    if text is None:
        return ()
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: give whole numbers with commas between them, 12,64") from error
    if min(numbers) < least:
        raise UsageError(f"{option} {text!r}: give numbers of at least {least}")
    return tuple(dict.fromkeys(numbers))


def check_plot(path: Path | None) -> None:
    """Raises UsageError where the name of an image tells no format that can be drawn."""
    if path and path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {path}: name a .png, .svg or .pdf")


def check_above_zero(name: str, value: float | None) -> None:
    """Raises UsageError where an option's number is there and is not a finite one above 0."""
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{name} is {value}; give a number above 0")


def numbers_above_zero(text: str | None, option: str) -> tuple[float, ...]:
    """`0.05,0.02` as numbers, none for no text. Raises UsageError where one is not a finite number above 0."""
    try:
        numbers = tuple(dict.fromkeys(float(part) for part in text.split(","))) if text else ()
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: give numbers with commas between them, 0.05,0.02") from error
    for number in numbers:
        check_above_zero(option, number)
    return numbers


def check_range(start: float | None, end: float | None) -> None:
    """Raises UsageError for a range of seconds that no video could satisfy."""
    if end is not None and (start or 0.0) >= end:
        raise UsageError(f"--start ({start or 0.0:g} s) must lie before --end ({end:g} s)")


Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME|FOLDER", help="A preset or a model folder; else V2L_MODEL."),
]
HypernetworkFile = Annotated[
    str | None,
    typer.Option("--hypernetwork", metavar="FILE", help="Its hypernetwork, where the model's own is not meant."),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; else the best there.")
]
NumberType = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="Else bfloat16 on CUDA, float32 elsewhere."),
]
Manifest = Annotated[Path, typer.Argument(readable=False, metavar="MANIFEST", help="Examples, one JSON object a line.")]
Root = Annotated[
    Path | None,
    typer.Option("--root", readable=False, metavar="FOLDER", help="Where video paths start; else at the manifest."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No notes, no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks of errors.")]
Frames = Annotated[
    int | None,
    typer.Option("--frames", min=1, metavar="N", help="At most this many frames; else as trained."),
]
Fps = Annotated[
    float | None,
    typer.Option("--fps", metavar="RATE", help="Frames per second of video to aim for; else as trained."),
]
Start = Annotated[
    float | None,
    typer.Option("--start", parser=seconds, metavar="TIME", help="From here on; seconds, or H:MM:SS."),
]
End = Annotated[
    float | None,
    typer.Option("--end", parser=seconds, metavar="TIME", help="Up to here; seconds, or H:MM:SS."),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        "--resolution",
        min=LEAST_RESOLUTION,
        metavar="PIXELS",
        help="Pixels of a frame's longest edge; more than the model's image is tiled.",
    ),
]
Rank = Annotated[
    int | None, typer.Option("--rank", min=1, metavar="N", help="Reduce the generated ranks to this many, by SVD.")
]
