"""The command of those who measure: `v2l eval`, for cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2l.errors import UsageError
from v2l.options import (
    Control,
    Debug,
    Device,
    Fps,
    Frames,
    HypernetworkFile,
    Json,
    Manifest,
    Metric,
    Model,
    NumberType,
    PaperModel,
    Quiet,
    Resolution,
    Root,
    check_above_zero,
    numbers_above_zero,
)
from v2l.running import command


def evaluate(
    manifest: Manifest,
    root: Root = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            readable=False,
            metavar="FILE",
            help="Every answer, gone on from; else MANIFEST.eval.jsonl.",
        ),
    ] = None,
    metric: Annotated[
        Metric | None, typer.Option("--metric", help="What the tables show; else exact, f1 with --paper, or the judge.")
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
        typer.Option("--rubric", readable=False, metavar="FILE", help="What the judge is asked; else v2l/rubric.md."),
    ] = None,
    judge_timeout: Annotated[
        float, typer.Option("--judge-timeout", metavar="SECONDS", help="For one of its replies.")
    ] = 120.0,
    judge_jobs: Annotated[int, typer.Option("--judge-jobs", min=1, metavar="N", help="Requests at once.")] = 8,
    without: Annotated[
        list[Control] | None, typer.Option("--without", help="A control to leave out; may be given again.")
    ] = None,
    frames: Frames = None,
    fps: Fps = None,
    resolution: Resolution = None,
    segments: Annotated[
        int, typer.Option("--segments", min=1, metavar="N", help="Compose each adapter from N segments' adapters.")
    ] = 1,
    in_context_frames: Annotated[
        int | None,
        typer.Option("--in-context-frames", min=1, metavar="N", help="The most in context; else as many as encoded."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, metavar="N", help="The longest answer.")
    ] = 64,
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
    learned bias alone and with another clip's adapter; the differences come with intervals resampled by clip.
    """
    with command(as_json, quiet, debug) as display:
        check_above_zero("--fps", fps)
        check_above_zero("--judge-timeout", judge_timeout)
        margins = numbers_above_zero("--margin", margin) if margin else ()
        if bool(judge) != bool(judge_model):
            raise UsageError("--judge and --judge-model belong together: give the address and the name there")
        if judge and metric not in (None, Metric.judge):
            raise UsageError(f"--judge gives its own scores, not {metric}; leave one of them out")
        if metric == Metric.judge and not judge:
            raise UsageError("--metric judge needs --judge URL and --judge-model NAME")
        if rubric and not judge:
            raise UsageError("--rubric is what a judge is asked; name one with --judge")
        if paper and Control.in_context in (without or []):
            raise UsageError("--paper compares with the video in context; leave --without in_context out")
        from v2l import evaluating
        from v2l.commands import choice
        from v2l.evaluate import CONDITIONS, Setting
        from v2l.judge import Server
        from v2l.judging import Grading
        from v2l.sampling import Reading

        kept = tuple(name for name in CONDITIONS if name not in (without or []))
        ok = evaluating.evaluate(
            evaluating.Questions(manifest, root),
            Setting(Reading(frames, fps, None, None, resolution), max_new_tokens, kept, segments, in_context_frames),
            evaluating.Tables(output, metric, margins, paper),
            Grading(Server(judge, judge_model, judge_timeout, judge_jobs), rubric) if judge else None,
            choice(model, hypernetwork, device, dtype),
            display,
        )
        raise typer.Exit(0 if ok else 1)
