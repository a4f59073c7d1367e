"""`v2l demo`: the demonstration of `v2l.tiny.demo` as a table."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from v2l.cli.console import Display, announce_model, command, shown
from v2l.cli.help import GroupedCommand
from v2l.cli.options import (
    READ,
    WRITE,
    Debug,
    DemoModel,
    Device,
    HypernetworkFile,
    Json,
    NumberType,
    Overwrite,
    Quiet,
    model_loader,
)
from v2l.cli.sources import encode_source
from v2l.io.text import amount, printable

if TYPE_CHECKING:
    from v2l.inference.model_loader import ModelLoader
    from v2l.tiny.demo import DemoAnswer


class DemoCommand(GroupedCommand):
    """`v2l demo --help` with an example."""

    example = "v2l demo --output-dir /tmp"
    runs_alone = True


def demo(
    video: Annotated[
        Path | None,
        typer.Argument(
            readable=False,
            metavar="VIDEO",
            help="Ask about this video instead of the lecture.",
            show_default=False,
            rich_help_panel=READ,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            metavar="FOLDER",
            help="Write the lecture and its adapter into FOLDER, or the adapter of VIDEO.",
            show_default="the current folder, or that of VIDEO",
            rich_help_panel=WRITE,
        ),
    ] = None,
    overwrite: Overwrite = False,
    model: DemoModel = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show how it works, with nothing but what is installed.

    Writes a sample lecture, encodes it with the embedded model, and asks questions about it: from its adapter, and
    with the video in context. Prints the answers, the visual tokens and the time to the first token of both. Another
    model is also asked what happens in the lecture. A VIDEO is encoded as by `v2l encode`.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.inference.model_loader import ModelLoader

        if video is not None:
            loader = model_loader(model, hypernetwork, device, dtype, display)
            ok = demonstrate_on(video, loader, output_dir, overwrite, display)
            raise typer.Exit(0 if ok else 1)
        loader = ModelLoader(model or "tiny", "option", hypernetwork, device, dtype, display.loading)
        demonstrate(loader, output_dir or Path(), overwrite, display)


def demonstrate(loader: ModelLoader, folder: Path, overwrite: bool, display: Display) -> None:
    """Run the demonstration on the lecture and print the answers side by side."""
    from v2l.tiny.demo import run

    _print_answers(*run(loader, folder, overwrite, display.note), loader, display)


def demonstrate_on(video: Path, loader: ModelLoader, folder: Path | None, overwrite: bool, display: Display) -> bool:
    """Run the demonstration on a video of the user's; True if it could be encoded.

    folder: receives the adapter; None for the folder of the video
    """
    from v2l.adapters.timeline import open_adapter
    from v2l.inference.targets import Destination
    from v2l.tiny.demo import NATURAL_QUESTIONS, answers
    from v2l.video.sampling import Reading

    announce_model(loader, display)
    adapter = encode_source(video, Destination(folder=folder), Reading(), loader, display, overwrite)
    if adapter is None:
        return False
    questions = [(question, None) for question in NATURAL_QUESTIONS]
    _print_answers(video, adapter, answers(open_adapter(adapter), video, questions, loader), loader, display)
    return True


def _print_answers(
    video: Path, adapter: Path, answers: Sequence[DemoAnswer], loader: ModelLoader, display: Display
) -> None:
    size = os.stat(adapter).st_size
    display.note(f"{printable(adapter)}: its adapter, {amount(size)}; questions no longer need the video")
    if display.as_json:
        for answer in answers:
            record = {"command": "demo", "video": video, "adapter": adapter, "model": loader.folder.id}
            display.result("", {**record, **dataclasses.asdict(answer)})
        return
    knows_truth = answers[0].truth is not None
    header = ["question", *(["the clip shows"] if knows_truth else [])]
    header += ["adapter", "in context", "visual tokens", "first token (ms)"]
    rows = [
        [
            answer.question,
            *([answer.truth] if answer.truth is not None else []),
            *(answer.from_adapter, answer.in_context),
            f"{answer.visual_tokens[0]} / {answer.visual_tokens[1]}",
            " / ".join(map(_milliseconds, answer.first_token)),
        ]
        for answer in answers
    ]
    display.table(header, rows, justify="left")
    display.note("adapter / in context; in context, the video is decoded and encoded again for every question")
    display.note(f'try it: v2l ask {shown(adapter)} "{"what is written first?" if knows_truth else "what is shown?"}"')


def _milliseconds(seconds: float | None) -> str:
    """Format a time with three digits, in milliseconds."""
    time = (seconds or 0.0) * 1000
    return f"{time:.3g}" if time < 999.5 else f"{time:,.0f}"
