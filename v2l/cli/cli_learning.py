"""The commands of those who train hypernetworks: `v2l train`, for cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2l.cli.console import command
from v2l.cli.options import (
    Debug,
    Device,
    Fps,
    Frames,
    HypernetworkFile,
    Json,
    Manifest,
    Model,
    NumberType,
    Quiet,
    Root,
    check_above_zero,
    whole_numbers,
)
from v2l.video.limits import LEAST_RESOLUTION


def train(
    manifest: Manifest,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", readable=False, metavar="FOLDER", help="Where the run lives; gone on with."),
    ],
    validation: Annotated[
        Path | None,
        typer.Option(
            "--validation", readable=False, metavar="MANIFEST", help="To choose the best by; else every 100th clip."
        ),
    ] = None,
    root: Root = None,
    sizes: Annotated[
        str | None,
        typer.Option("--sizes", metavar="NAME=N,...", help="Of a fresh hypernetwork (rank, latent_size, ...)."),
    ] = None,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Learn the frozen model's own answers, not the manifest's.")
    ] = False,
    kl_weight: Annotated[
        float, typer.Option("--kl-weight", min=0, metavar="X", help="Of staying near the frozen model in context.")
    ] = 0.0,
    hidden_weight: Annotated[
        float, typer.Option("--hidden-weight", min=0, metavar="X", help="Of staying near its hidden states, too.")
    ] = 0.0,
    steer_weight: Annotated[
        float, typer.Option("--steer-weight", min=0, metavar="X", help="Of each latent looking at the end of a frame.")
    ] = 0.0,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Optimisation steps.")] = 9000,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Clips in a step, all told.")] = 384,
    together: Annotated[
        int, typer.Option("--together", min=1, metavar="N", help="Clips in memory at a time; gradients add up.")
    ] = 8,
    learning_rate: Annotated[float, typer.Option("--learning-rate", metavar="X", help="Its peak.")] = 1e-4,
    questions: Annotated[
        int, typer.Option("--questions", min=1, metavar="N", help="At most this many of a clip at a time.")
    ] = 4,
    segments: Annotated[
        int, typer.Option("--segments", min=1, metavar="N", help="Compose up to N adapters of a clip; 1 for never.")
    ] = 8,
    windows: Annotated[
        int, typer.Option("--windows", min=1, metavar="N", help="Read a clip in up to N joint windows; 1 for never.")
    ] = 8,
    denser: Annotated[
        float, typer.Option("--denser", min=1, metavar="X", help="Take up to X times the frames, from any offset.")
    ] = 1.5,
    frames: Frames = None,
    fps: Fps = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            "--resolution",
            metavar="PIXELS,...",
            help="Of a frame's longest edge; of several, half the clips the first.",
        ),
    ] = None,
    mark_end: Annotated[
        bool | None,
        typer.Option(
            "--mark-end/--no-mark-end",
            help="Announce a video's last frame as such, so that segments know; else as --hypernetwork had it.",
        ),
    ] = None,
    validate_every: Annotated[
        int, typer.Option("--validate-every", min=1, metavar="N", help="Steps between validations.")
    ] = 1000,
    save_every: Annotated[
        int, typer.Option("--save-every", min=1, metavar="N", help="Steps between states to go on from.")
    ] = 100,
    workers: Annotated[int, typer.Option("--workers", min=0, metavar="N", help="Processes that read clips ahead.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of weights, order and cuts.")] = 42,
    model: Model = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a hypernetwork for a frozen model.

    The folder gets the best hypernetwork by validation loss (hypernetwork.safetensors), the figures (metrics.jsonl),
    the settings and a state: the same command goes on where it was interrupted. Clips are met whole, in joint windows
    and as segments whose adapters are composed. Several GPUs: accelerate launch -m v2l train ...
    --hypernetwork FILE starts from trained weights. Steps, batch and optimiser are by default the published recipe's;
    how clips are met is as published with --segments 1 --windows 1 --denser 1 --questions 1.
    """
    with command(as_json, quiet, debug) as display:
        for name, value in (("--learning-rate", learning_rate), ("--fps", fps), ("--denser", denser)):
            check_above_zero(name, value)
        from v2l.cli import learning
        from v2l.cli.commands import choice
        from v2l.training.data import SamplingConfig
        from v2l.training.trainer import Training

        curriculum = SamplingConfig(
            frames or SamplingConfig.frames,
            fps or SamplingConfig.fps,
            whole_numbers(resolution, "--resolution", LEAST_RESOLUTION),
            denser,
            windows,
            segments,
            questions,
        )
        learning.train(
            learning.Material(manifest, validation, root, teacher),
            Training(
                curriculum,
                steps=steps,
                batch=batch,
                together=together,
                learning_rate=learning_rate,
                kl_weight=kl_weight,
                hidden_weight=hidden_weight,
                steer_weight=steer_weight,
                validate_every=validate_every,
                save_every=save_every,
                workers=workers,
                seed=seed,
            ),
            learning.read_sizes(sizes),
            mark_end,
            choice(model, hypernetwork, device, dtype),
            output,
            display,
        )
