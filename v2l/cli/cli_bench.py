"""The words and options of `v2l bench`, for cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2l.cli.console import command
from v2l.cli.options import (
    Arch,
    Debug,
    Device,
    HypernetworkFile,
    Json,
    Model,
    NumberType,
    Quiet,
    check_above_zero,
    check_plot,
    whole_numbers,
)
from v2l.errors import UsageError
from v2l.video.limits import LEAST_RESOLUTION


def bench(
    video: Annotated[
        Path | None,
        typer.Argument(readable=False, metavar="VIDEO", help="Else one is drawn, with as many real frames as asked."),
    ] = None,
    frames: Annotated[
        str, typer.Option("--frames", metavar="N,...", help="Frames of the video, a sweep if several.")
    ] = "12,64",
    resolution: Annotated[
        str | None,
        typer.Option("--resolution", metavar="PIXELS,...", help="Of a frame's longest edge; else as trained."),
    ] = None,
    segments: Annotated[
        int, typer.Option("--segments", min=1, metavar="N", help="Compose the adapter from N segments' adapters.")
    ] = 1,
    arch: Annotated[
        Arch | None, typer.Option("--arch", help="Build this architecture in memory; needs --random-weights.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Its weights mean nothing: times and sizes alone.")
    ] = False,
    questions: Annotated[
        int, typer.Option("--questions", min=1, metavar="N", help="Amortize over up to N questions a video.")
    ] = 20,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", min=1, metavar="N", help="Else 30 where one takes under a second, 5 where not."),
    ] = None,
    warmup: Annotated[int, typer.Option("--warmup", min=0, metavar="N", help="Runs left out before them.")] = 1,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", min=2, metavar="N", help="Of an answer, to time those after the first.")
    ] = 32,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="SECONDS", help="Begin nothing new after this time.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", readable=False, metavar="FILE", help="Measurements as they finish; gone on from."
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", readable=False, metavar="FILE", help="All of it as one table.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", readable=False, metavar="FILE", help="Heat maps and the amortization curve, .png .svg"),
    ] = None,
    model: Model = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure what an adapter saves, and what it does not.

    Every way to ask a video, on the same weights and frames: in context, cold (the usual baseline), with frames,
    features or the KV cache kept, with 12 frames only; from its adapter; and without any video, the floor. Prints the
    token load, the time to the first token, and what it comes to over many questions about one video.
    """
    with command(as_json, quiet, debug) as display:
        check_above_zero("--budget", budget)
        if bool(arch) != random_weights:
            raise UsageError("--arch and --random-weights belong together: give both, or neither for real weights")
        if arch and (model or hypernetwork):
            raise UsageError("--arch builds its own model and hypernetwork; leave --model and --hypernetwork out")
        check_plot(plot)
        from v2l.bench.runner import Plan
        from v2l.cli import benching, commands

        resolutions = whole_numbers(resolution, "--resolution", LEAST_RESOLUTION) or (None,)
        chosen = commands.choice(model, hypernetwork, device, dtype)
        if not arch:
            commands.announce_fallback(chosen, display)
        benching.bench(
            Plan(whole_numbers(frames, "--frames"), resolutions, video, repeats, warmup, new_tokens, segments, budget),
            chosen,
            arch,
            benching.Outputs(output, table, plot, questions),
            display,
        )
