"""`v2l demo`: the demonstration of `v2l.tiny.demo` as a table."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from v2l.cli.console import Display, command, shown
from v2l.cli.help import GroupedCommand
from v2l.cli.options import WRITE, Debug, Device, Json, Overwrite, Quiet
from v2l.io.text import amount, printable

if TYPE_CHECKING:
    from v2l.inference.model_loader import ModelLoader


class DemoCommand(GroupedCommand):
    """`v2l demo --help` with an example."""

    example = "v2l demo --output-dir /tmp"


def demo(
    output_dir: Annotated[
        Path,
        typer.Option(
            readable=False,
            metavar="FOLDER",
            help="Write the lecture and its adapter into FOLDER.",
            show_default="the current folder",
            rich_help_panel=WRITE,
        ),
    ] = Path(),
    overwrite: Overwrite = False,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show how it works, with nothing but what is installed.

    Writes a sample lecture, encodes it with the embedded model, and asks questions about it: from its adapter, and
    with the video in context. Prints the answers, the visual tokens and the time to the first token of both.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.inference.model_loader import ModelLoader

        loader = ModelLoader("tiny", "option", device=device, announce=display.loading)
        demonstrate(loader, output_dir, overwrite, display)


def demonstrate(loader: ModelLoader, folder: Path, overwrite: bool, display: Display) -> None:
    """Run the demonstration and print the answers side by side."""
    from v2l.tiny.demo import run

    video, adapter, answers = run(loader, folder, overwrite, display.note)
    size = os.stat(adapter).st_size
    display.note(f"{printable(adapter)}: its adapter, {amount(size)}; questions no longer need the video")
    if display.as_json:
        for answer in answers:
            record = {"command": "demo", "video": video, "adapter": adapter, "model": loader.folder.id}
            display.result("", {**record, **dataclasses.asdict(answer)})
        return
    header = ["question", "the clip shows", "adapter", "in context", "visual tokens", "time to first token"]
    rows = [
        [
            *(answer.question, answer.truth, answer.from_adapter, answer.in_context),
            f"{answer.visual_tokens[0]} / {answer.visual_tokens[1]}",
            " / ".join(f"{(seconds or 0.0) * 1000:.1f}" for seconds in answer.first_token) + " ms",
        ]
        for answer in answers
    ]
    display.table(header, rows)
    display.note("adapter / in context; in context, the video is decoded and encoded again for every question")
    display.note(f'try it: v2l ask {shown(adapter)} "what is written first?"')
