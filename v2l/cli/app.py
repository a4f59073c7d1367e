"""The `v2l` command: each command reads its words, calls one function and prints what comes back.

Nothing heavy is imported before a command runs, so that `v2l --help` and completion stay quick.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from v2l.cli.cli_bench import bench
from v2l.cli.cli_eval import evaluate
from v2l.cli.cli_learning import train
from v2l.cli.cli_serving import export, pull, verify
from v2l.cli.console import command
from v2l.cli.options import (
    Debug,
    Device,
    End,
    Fps,
    Frames,
    HypernetworkFile,
    Json,
    Model,
    NumberType,
    Quiet,
    Rank,
    Resolution,
    Start,
    check_above_zero,
    check_range,
)
from v2l.errors import UsageError

app = typer.Typer(
    name="v2l",
    help="Turns a video into a small adapter that a vision-language model answers from, with zero visual tokens.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich help would double the time that `v2l --help` takes
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Versions of v2l and what it stands on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The versions as JSON.")] = False,
) -> None:
    """Options of `v2l` itself."""
    if version:
        with command(as_json, quiet=False, debug=False) as display:
            from v2l.cli.info import versions

            found = versions()
            text = "\n".join(f"{name} {number}" for name, number in found.items())
            display.result(text, {"command": "version", "versions": found})
        raise typer.Exit
    if as_json and context.invoked_subcommand is not None:
        print("v2l: error: --json goes after the command: v2l COMMAND --json", file=sys.stderr)
        raise typer.Exit(2)
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


@app.command(no_args_is_help=True)
def encode(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="VIDEO|FOLDER", help="Videos and folders of videos.", show_default=False),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Folders in folders too.")] = False,
    files_from: Annotated[
        str | None,
        typer.Option("--files-from", metavar="FILE|-", help="More inputs from a list, one a line or NUL-separated."),
    ] = None,
    frames: Frames = None,
    fps: Fps = None,
    start: Start = None,
    end: End = None,
    resolution: Resolution = None,
    segments: Annotated[
        int | None,
        typer.Option("--segments", min=1, help="Cut each video into N adapters.", metavar="N"),
    ] = None,
    segment_seconds: Annotated[
        float | None,
        typer.Option("--segment-seconds", help="Cut into adapters of S seconds.", metavar="S"),
    ] = None,
    compose: Annotated[bool, typer.Option("--compose", help="Also write the segments as one adapter.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", readable=False, metavar="FILE", help="The adapter of the one video."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", readable=False, metavar="FOLDER", help="A folder for all adapters.")
    ] = None,
    keep_damaged: Annotated[
        bool, typer.Option("--keep-damaged", help="Take damaged frames as a player shows them, with a note.")
    ] = False,
    check_hash: Annotated[
        bool,
        typer.Option("--check-hash", help="Compare contents, not sizes and times."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Encode again whatever is there.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N|auto", help="This machine's share of N; auto reads Slurm's job array."),
    ] = None,
    model: Model = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Read videos once, write an adapter beside each.

    lecture.mp4 becomes lecture.v2l.safetensors. What is there and still current is left alone. Prints the adapters'
    paths.
    """
    with command(as_json, quiet, debug) as display:
        if segments and segment_seconds:
            raise UsageError("--segments and --segment-seconds both say how to cut; give one of them")
        if compose and not (segments or segment_seconds):
            raise UsageError("--compose needs segments; give --segments or --segment-seconds")
        if output and output_dir:
            raise UsageError("-o and --output-dir both say where to write; give one of them")
        check_above_zero("--fps", fps)
        check_above_zero("--segment-seconds", segment_seconds)
        check_range(start, end)
        from v2l.cli import commands
        from v2l.inference.batch import EncodeOptions
        from v2l.inference.targets import Destination, read_shard
        from v2l.video.sampling import Reading

        reading = Reading(frames, fps, start, end, resolution, keep_damaged)
        options = EncodeOptions(
            reading, segments, segment_seconds, compose, check_hash, overwrite, replace_foreign=model is not None
        )
        ok = commands.encode(
            commands.encode_inputs(inputs or [], files_from),
            Destination(output, output_dir),
            options,
            commands.choice(model, hypernetwork, device, dtype),
            display,
            recursive=recursive,
            fail_fast=fail_fast,
            shard=shard and read_shard(shard),
        )
        raise typer.Exit(0 if ok else 1)


@app.command(no_args_is_help=True)
def ask(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ADAPTER|QUESTION", help="Adapters, videos or folders of adapters; questions; - for stdin."
        ),
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", metavar="TEXT", help="A question, whatever it looks like.")
    ] = None,
    in_context: Annotated[
        list[Path] | None,
        typer.Option(
            "--in-context", readable=False, metavar="VIDEO", help="Ask this video the expensive way, for comparison."
        ),
    ] = None,
    frames: Frames = None,
    fps: Fps = None,
    start: Start = None,
    end: End = None,
    resolution: Resolution = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, metavar="N", help="The longest answer.")
    ] = 128,
    strength: Annotated[float, typer.Option("--strength", metavar="X", help="How much of the adapter to wear.")] = 1.0,
    whole: Annotated[
        bool, typer.Option("--whole", help="All segments answer, whatever time a question asks about.")
    ] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Whole answers only.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Answers' control characters as they are, not escaped.")] = False,
    model: Model = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Answer questions about encoded videos.

    Text alone goes in, not one visual token. One answer is printed with its line ends; several as adapter, question and
    answer, separated by tabs. Control characters are escaped. Of an adapter composed of segments, a question about one
    time ("at 12:30") is answered by those that show it. Without a question, on a terminal, a chat begins (Ctrl-D ends
    it); each question stands for itself. --frames, --fps, --start, --end and --resolution are for videos: those given
    by name, encoded first where needed, and those asked in context.
    """
    with command(as_json, quiet, debug) as display:
        check_above_zero("--fps", fps)
        check_range(start, end)
        if not math.isfinite(strength):
            raise UsageError(f"--strength is {strength}; give a finite number, 1 for the adapter as made")
        from v2l.cli import chat, commands
        from v2l.cli.session import AnswerOptions
        from v2l.video.sampling import Reading

        ok = chat.ask(
            [*(words or [])],
            [*(question or [])],
            [*(in_context or [])],
            AnswerOptions(max_new_tokens, strength, whole, Reading(frames, fps, start, end, resolution), raw),
            commands.choice(model, hypernetwork, device, dtype),
            display,
            streaming=not no_stream,
        )
        raise typer.Exit(0 if ok else 1)


app.command()(bench)
app.command("eval", no_args_is_help=True)(evaluate)
app.command(no_args_is_help=True)(train)


@app.command()
def demo(
    output_dir: Annotated[
        Path, typer.Option("--output-dir", readable=False, metavar="FOLDER", help="Where to; else here.")
    ] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a lecture.mp4 that is there.")] = False,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """See it work, with nothing but what is installed.

    Writes a sample lecture, encodes it with the embedded model and asks it several questions, from its adapter and
    with the video in context, with the visual tokens and the time to the first token of both.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.cli import commands
        from v2l.inference.model_loader import ModelLoader

        commands.demonstrate(ModelLoader("tiny", "option", device=device), output_dir, overwrite, display)


@app.command(no_args_is_help=True)
def compose(
    adapters: Annotated[
        list[Path], typer.Argument(readable=False, metavar="ADAPTER", help="Adapters of segments, in their order.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", readable=False, metavar="FILE", help="The composed adapter.")
    ],
    rank: Rank = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put several adapters into one.

    Their ranks stand one after the other, in the order given, and the learned bias once.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.cli import commands

        commands.compose(adapters, output, rank, overwrite, display)


@app.command(no_args_is_help=True)
def info(
    files: Annotated[list[Path], typer.Argument(readable=False, metavar="FILE", help="Adapters and hypernetworks.")],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what is in a file.

    Of an adapter: its model, ranks, segments with their times, size and hashes.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.cli import commands

        raise typer.Exit(0 if commands.info(files, display) else 1)


app.command(no_args_is_help=True)(pull)
app.command(no_args_is_help=True)(verify)
app.command(no_args_is_help=True)(export)


@app.command("import", no_args_is_help=True)
def import_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(readable=False, metavar="CHECKPOINT.pt", help="A published hypernetwork.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", readable=False, metavar="FILE", help="v2l's own file (.safetensors).")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn a published checkpoint into v2l's own file.

    The checkpoint is a pickle; it is read as data, and nothing in it is executed.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.cli import commands

        commands.import_published(checkpoint, output, overwrite, display)


def main() -> None:
    """The console script."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # for as long as the process lives
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # the help could not be written
        sys.exit(f"v2l: error: {error.strerror or error}")
