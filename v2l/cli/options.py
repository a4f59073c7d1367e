"""The options that several commands share, and how their values are parsed and checked.

Only what was given reaches the library: an option's default is `None`, and the default that its help shows is read
from the library or described in words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2l.errors import UsageError, V2LError, missing_extra
from v2l.io.text import printable
from v2l.video.limits import LEAST_RESOLUTION

if TYPE_CHECKING:
    from v2l.cli.console import Display
    from v2l.inference.model_loader import ModelLoader
    from v2l.inference.targets import Destination

READ, WRITE, MODEL, OUTPUT, SETTINGS = "What to read", "Where to write", "Model", "Output", "Settings"
"""Groups of options that most commands have."""


DEVICES = frozenset(
    "cpu cuda fpga hip hpu ideep ipu lazy maia meta mkldnn mps mtia npu opencl opengl privateuseone ve vulkan xla "
    "xpu".split()
)
"""The kinds of devices that torch names, and npu, the name that a backend of its own is commonly given."""


class Dtype(StrEnum):
    """Number types that a model can be loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Arch(StrEnum):
    """Architectures that can be pulled, or built with random weights."""

    smolvlm2_500m = "smolvlm2-500m"
    smolvlm2_2_2b = "smolvlm2-2.2b"


class ExportFormat(StrEnum):
    """Formats that an adapter can be exported to."""

    peft = "peft"
    gguf = "gguf"


class Metric(StrEnum):
    """Scores of an answer, see `v2l.evaluation.metrics` and `v2l.evaluation.judge`."""

    exact = "exact"
    f1 = "f1"
    rouge_l = "rouge_l"
    judge = "judge"


class PaperModel(StrEnum):
    """Models that the paper reports results of."""

    of_500m = "500m"
    of_2_2b = "2.2b"


def one_of(words: type[StrEnum]) -> str:
    """Return the members of an enum for a sentence: `a, b or c`."""
    *others, last = words
    return f"{', '.join(others)} or {last}"


# Parse -------------------------------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    """Parse a time in seconds or as [H:]MM:SS[.s]. Raises BadParameter."""
    try:
        parts = [float(part) for part in text.split(":")]
        value = sum(part * 60**place for place, part in enumerate(reversed(parts)))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a valid time; use seconds (90.5) or H:MM:SS") from error
    if len(parts) > 3 or not all(0 <= part < float("inf") for part in parts):
        raise typer.BadParameter(f"{text!r} is not a valid time; use seconds (90.5) or H:MM:SS")
    return value


def whole_numbers(text: str | None, option: str, least: int = 1) -> tuple[int, ...]:
    """Parse a list such as `12,64`; empty for None. Raises UsageError if the text is not such a list or a
    number is below `least`."""
    if text is None:
        return ()
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: give comma-separated whole numbers, such as 12,64") from error
    if min(numbers) < least:
        raise UsageError(f"{option} {text!r}: give numbers of at least {least}")
    return tuple(dict.fromkeys(numbers))


def numbers_above_zero(text: str | None, option: str) -> tuple[float, ...]:
    """Parse a list such as `0.05,0.02`; empty for None. Raises UsageError if a number is not finite and above 0."""
    try:
        numbers = tuple(dict.fromkeys(float(part) for part in text.split(","))) if text else ()
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: give comma-separated numbers, such as 0.05,0.02") from error
    for number in numbers:
        check_above_zero(option, number)
    return numbers


def model_loader(
    model: str | None,
    hypernetwork: str | None,
    device: str | None,
    dtype: str | None,
    display: Display,
) -> ModelLoader:
    """Return the loader of the model that the options name, or of the default model if they name none. The display
    shows when it is being loaded. Raises UsageError if the device cannot be one."""
    from v2l.inference.model_loader import ModelLoader, choose_model

    check_device(device)
    name, chosen_by = choose_model(model)
    return ModelLoader(name, chosen_by, hypernetwork, device, dtype, display.loading)


# Check -------------------------------------------------------------------------------------------------------------


def check_plot(path: Path | None) -> None:
    """Raise UsageError if the suffix of an image file is not a format that can be drawn, V2LError if matplotlib is
    missing."""
    if path is None:
        return
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {path}: name a .png, .svg or .pdf")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra("--plot", "matplotlib", "plot") from error


def check_above_zero(name: str, value: float | None) -> None:
    """Raise UsageError if an option was given and its number is not finite and above 0."""
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{name} is {value}; give a number above 0")


def check_device(name: str | None) -> None:
    """Raise UsageError for a name that is none of torch's devices. The device need not be there: only torch knows."""
    kind, colon, number = (name or "cpu").partition(":")
    if kind not in DEVICES or (colon and not re.fullmatch(r"0|[1-9]\d{0,4}", number, re.ASCII)):
        raise UsageError(f"--device {printable(name or '')} is no device; name cpu, cuda, cuda:1, mps or xpu")


def check_no_video(paths: Sequence[Path], advice: str) -> None:
    """Raise UsageError if one of the adapters on a command line is a video. advice: the command, with {} for it"""
    from v2l.inference.naming import is_video

    for path in paths:
        if is_video(path.name) and os.path.isfile(path):
            raise UsageError(f"{printable(path)} is a video and no adapter; {advice.format(printable(path))}")


def check_range(start: float | None, end: float | None) -> None:
    """Raise UsageError for a time range that is always empty."""
    if end is not None and (start or 0.0) >= end:
        raise UsageError(f"--start ({start or 0.0:g} s) must lie before --end ({end:g} s)")


def check_replaceable(output: Path, overwrite: bool, same: Callable[[], bool] = lambda: False) -> None:
    """Raise V2LError if `output` exists with other content and may not be overwritten.

    same: whether the existing file already holds this content
    """
    if overwrite or not os.path.lexists(output):
        return
    try:
        if same():
            return
    except V2LError:
        pass  # an unreadable file is a different file
    raise V2LError(f"{printable(output)} already exists; --overwrite replaces it")


def cache_destination(asked: bool = False) -> Destination:
    """Return the destination beside the videos, or in the cache: for all adapters if `--cache` or V2L_CACHE asks for
    it, else for those whose folder cannot be written. Raises UsageError if `--cache` is given without a home folder."""
    from v2l.inference.cache import cache_folder, is_chosen
    from v2l.inference.targets import Destination

    folder = cache_folder()
    if asked and folder is None:
        raise UsageError("--cache: there is no home folder for a cache; name a folder with V2L_CACHE")
    return Destination(cache=folder, prefers_cache=asked or is_chosen())


# Options -----------------------------------------------------------------------------------------------------------

Frames = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Read at most N frames.", show_default="as in training", rich_help_panel=READ
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(
        metavar="RATE",
        help="Read RATE frames per second of video, as far as --frames allows.",
        show_default="as in training",
        rich_help_panel=READ,
    ),
]
Start = Annotated[
    float | None,
    typer.Option(parser=seconds, metavar="TIME", help="Start at TIME, in seconds or as H:MM:SS.", rich_help_panel=READ),
]
End = Annotated[
    float | None,
    typer.Option(parser=seconds, metavar="TIME", help="Stop at TIME, in seconds or as H:MM:SS.", rich_help_panel=READ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        min=LEAST_RESOLUTION,
        metavar="PIXELS",
        help="Scale the longest edge of a frame to PIXELS. A frame larger than the model's image is split into tiles.",
        show_default="as in training",
        rich_help_panel=READ,
    ),
]
Resolutions = Annotated[
    str | None,
    typer.Option(
        "--resolution",
        metavar="PIXELS,...",
        help="Scale the longest edge of a frame to PIXELS. Several values are a sweep.",
        show_default="as in training",
        rich_help_panel=READ,
    ),
]
_MANIFEST = typer.Argument(
    readable=False,
    metavar="MANIFEST",
    help="Read the examples from MANIFEST, one JSON object per line.",
    rich_help_panel=READ,
)
Manifest = Annotated[Path, _MANIFEST]
OptionalManifest = Annotated[Path | None, _MANIFEST]
Root = Annotated[
    Path | None,
    typer.Option(
        readable=False,
        metavar="FOLDER",
        help="Resolve the relative paths of videos against FOLDER.",
        show_default="the folder of the manifest",
        rich_help_panel=READ,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        readable=False,
        metavar="FILE",
        help="Draw pictures of the tables, further ones beside FILE (.png, .svg or .pdf).",
        rich_help_panel=WRITE,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a file that exists already.", rich_help_panel=WRITE)
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache",
        help="Keep the adapters in your cache folder, by the contents of the videos; V2L_CACHE names another folder.",
        rich_help_panel=WRITE,
    ),
]


def _model_option(default: str) -> Any:
    return typer.Option(
        "--model",
        "-m",
        metavar="NAME|FOLDER",
        help="Use this preset or model folder.",
        show_default=default,
        rich_help_panel=MODEL,
    )


Model = Annotated[str | None, _model_option("V2L_MODEL, else the default of v2l pull, else tiny")]
AdapterModel = Annotated[str | None, _model_option("V2L_MODEL, else the model that an adapter names")]
DemoModel = Annotated[
    str | None, _model_option("tiny; for a VIDEO, V2L_MODEL, else the default of v2l pull, else tiny")
]
HypernetworkFile = Annotated[
    str | None,
    typer.Option(
        "--hypernetwork",
        metavar="FILE",
        help="Use this hypernetwork.",
        show_default="the one of the model",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Run on this device, such as cpu, cuda, cuda:1 or mps.",
        show_default="the fastest",
        rich_help_panel=MODEL,
    ),
]
NumberType = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help=f"Load the model in {one_of(Dtype)}.",
        show_default="bfloat16 where it is faster, else float32",
        rich_help_panel=MODEL,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change one of these settings. May be given several times.",
        rich_help_panel=SETTINGS,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line instead of text.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", help="Print no notes and no progress, except that tiny is for demonstration.", rich_help_panel=OUTPUT
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        "--debug",
        help="Print what is loaded and done, with the seconds since the start, and the traceback of an error.",
        rich_help_panel=OUTPUT,
    ),
]
