"""The command of those who measure: `v2l eval`, for cli.py."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from v2l.cli.console import command
from v2l.cli.options import (
    Debug,
    Device,
    Fps,
    HypernetworkFile,
    Json,
    Metric,
    Model,
    NumberType,
    PaperModel,
    Quiet,
    Root,
    check_above_zero,
    check_plot,
    numbers_above_zero,
    whole_numbers,
)
from v2l.errors import UsageError
from v2l.evaluation.conditions import Ablation, Control
from v2l.evaluation.datasets.names import MAX_NEW_TOKENS, NAMES
from v2l.video.limits import LEAST_RESOLUTION

BenchmarkName = StrEnum("BenchmarkName", {name.replace("-", "_"): name for name in NAMES})


def evaluate(
    manifest: Annotated[
        Path | None, typer.Argument(readable=False, metavar="MANIFEST", help="Examples, one JSON object a line.")
    ] = None,
    benchmark: Annotated[
        BenchmarkName | None, typer.Option("--benchmark", help="The paper's, instead of a manifest; --root has it.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, metavar="N", help="Chosen from it; else 500, or VidCapBench's 100 videos."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Of that choice; else 0.")] = None,
    root: Root = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            readable=False,
            metavar="FILE",
            help="Every answer, gone on from; else MANIFEST.eval.jsonl, or BENCHMARK.eval.jsonl here.",
        ),
    ] = None,
    metric: Annotated[
        Metric | None,
        typer.Option("--metric", help="What the tables show; else the judge, f1 for a benchmark or --paper, exact."),
    ] = None,
    margin: Annotated[
        str | None,
        typer.Option("--margin", metavar="X,...", help="For equivalence; else the paper's: 0.05, a judge's 0.15."),
    ] = None,
    paper: Annotated[
        PaperModel | None, typer.Option("--paper", help="Put the paper's rows of that model under the measured ones.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", metavar="URL", help="An OpenAI-compatible server's; its key from V2L_JUDGE_KEY."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", metavar="NAME", help="The judge's name at that server.")
    ] = None,
    rubric: Annotated[
        Path | None,
        typer.Option(
            "--rubric", readable=False, metavar="FILE", help="What the judge is asked; else v2l/evaluation/rubric.md."
        ),
    ] = None,
    judge_timeout: Annotated[
        float, typer.Option("--judge-timeout", metavar="SECONDS", help="For one of its replies.")
    ] = 120.0,
    judge_jobs: Annotated[int, typer.Option("--judge-jobs", min=1, metavar="N", help="Requests at once.")] = 8,
    without: Annotated[
        list[Control] | None, typer.Option("--without", help="A control to leave out; may be given again.")
    ] = None,
    frames: Annotated[
        str | None, typer.Option("--frames", metavar="N,...", help="At most this many frames; a sweep if several.")
    ] = None,
    fps: Fps = None,
    resolution: Annotated[
        str | None, typer.Option("--resolution", metavar="PIXELS,...", help="Of a frame's longest edge.")
    ] = None,
    segments: Annotated[
        str, typer.Option("--segments", metavar="N,...", help="Compose each adapter from N segments' adapters.")
    ] = "1",
    in_context_frames: Annotated[
        str | None,
        typer.Option("--in-context-frames", metavar="N,...", help="The most in context; else as many as encoded."),
    ] = None,
    ablate: Annotated[
        Ablation | None,
        typer.Option("--ablate", help="Answer also with some ranks, without a layer, or with times ignored."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", readable=False, metavar="FILE", help="What the tables say as an image, .png .svg"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, metavar="N", help="The longest answer; else 64, 128 for a benchmark."),
    ] = None,
    model: Model = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Hold adapters against the video in context.

    The same frozen model answers every question with the video in context, with its adapter, with neither, with the
    learned bias alone and with another clip's adapter; the differences come with intervals resampled by clip. Several
    values of --frames, --resolution, --segments or --in-context-frames are a sweep over all their combinations.
    """
    with command(as_json, quiet, debug) as display:
        check_above_zero("--fps", fps)
        check_above_zero("--judge-timeout", judge_timeout)
        if bool(judge) != bool(judge_model):
            raise UsageError("--judge and --judge-model belong together: give the address and the name there")
        if judge and metric not in (None, Metric.judge):
            raise UsageError(f"--judge gives its own scores, not {metric}; leave one of them out")
        if not judge and (rubric or metric == Metric.judge):
            raise UsageError("--metric judge and --rubric need --judge URL and --judge-model NAME")
        if paper and Control.in_context in (without or []):
            raise UsageError("--paper compares with the video in context; leave --without in_context out")
        margins = numbers_above_zero(margin, "--margin")
        check_plot(plot)
        given = {
            "frames": whole_numbers(frames, "--frames"),
            "resolution": whole_numbers(resolution, "--resolution", LEAST_RESOLUTION),
            "segments": whole_numbers(segments, "--segments"),
            "in_context_frames": whole_numbers(in_context_frames, "--in-context-frames"),
        }
        axes = {axis: values for axis, values in given.items() if values}
        from v2l.cli import evaluating
        from v2l.cli.commands import choice
        from v2l.evaluation.conditions import CONDITIONS
        from v2l.evaluation.evaluate import Setting
        from v2l.evaluation.judge import Server
        from v2l.evaluation.judging import Grading
        from v2l.evaluation.report import settings
        from v2l.video.sampling import Reading

        grading = Grading(Server(judge, judge_model, judge_timeout, judge_jobs), rubric) if judge else None
        metric = metric or (Metric.judge if judge else Metric.f1 if benchmark or paper else Metric.exact)
        kept = tuple(condition for condition in CONDITIONS if condition.name not in (without or []))
        ok = evaluating.evaluate(
            evaluating.Questions(manifest, root, benchmark, samples, seed),
            settings(Setting(Reading(fps=fps), max_new_tokens or (MAX_NEW_TOKENS if benchmark else 64), kept), axes),
            ablate,
            evaluating.Tables(output, metric, margins, plot, paper, grading),
            choice(model, hypernetwork, device, dtype),
            display,
        )
        raise typer.Exit(0 if ok else 1)
