"""`v2l eval`: questions answered from adapters, in context and without the video, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2l.cli.console import command
from v2l.cli.eval_run import EvalOutputs, QuestionSource, run
from v2l.cli.help import GroupedCommand
from v2l.cli.options import (
    READ,
    WRITE,
    Debug,
    Device,
    HypernetworkFile,
    Json,
    Metric,
    Model,
    NumberType,
    OptionalManifest,
    PaperModel,
    Plot,
    Quiet,
    Resolutions,
    Root,
    Settings,
    check_above_zero,
    check_plot,
    model_loader,
    numbers_above_zero,
    one_of,
    whole_numbers,
)
from v2l.cli.settings import NamedSetting, number, read_settings, whole_number
from v2l.errors import UsageError
from v2l.evaluation.conditions import Ablation, Control
from v2l.evaluation.datasets.names import MANIFEST_MAX_NEW_TOKENS, MAX_NEW_TOKENS, BenchmarkName
from v2l.video.limits import LEAST_RESOLUTION

if TYPE_CHECKING:
    from v2l.evaluation.grading import Grading

SCORES, ANSWERS = "Scores", "Answers"


class EvalCommand(GroupedCommand):
    """`v2l eval --help` with an example and the settings that `--set` takes."""

    example = "v2l eval questions.jsonl --model smolvlm2-500m --metric f1"

    @classmethod
    def named_settings(cls) -> Sequence[NamedSetting]:
        """Return the settings of the choice of questions, of the answers and of the scores."""
        from v2l.evaluation.datasets.registry import SEED
        from v2l.evaluation.judge import Server

        frames = NamedSetting(
            "in_context_frames",
            "The most frames in context. Several values (N,...) are a sweep.",
            "as many as are encoded",
            lambda text: whole_numbers(text, "in_context_frames"),
            "comma-separated whole numbers",
        )
        margin = NamedSetting(
            "margin",
            "The margins of equivalence. Several values (X,...) are compared.",
            "as in the paper: 0.05, and 0.15 for a judge",
            lambda text: numbers_above_zero(text, "margin"),
            "comma-separated positive numbers",
        )
        timeout = f"{Server.timeout:g}"
        return [
            frames,
            NamedSetting("fps", "The frames per second to read.", "as in training", *number()),
            NamedSetting("samples", "The samples to choose from a benchmark.", "as many as the paper", *whole_number()),
            NamedSetting("seed", "The seed of that choice.", str(SEED), *whole_number(least=0)),
            margin,
            NamedSetting(
                "rubric", "The file with the prompt of the judge.", "the one that v2l contains", Path, "a file"
            ),
            NamedSetting("judge_timeout", "The seconds to wait for a reply of the judge.", timeout, *number()),
        ]


def evaluate(
    manifest: OptionalManifest = None,
    benchmark: Annotated[
        BenchmarkName | None,
        typer.Option(
            metavar="NAME",
            help=f"Answer a benchmark of the paper instead, whose files are in --root: {one_of(BenchmarkName)}.",
            rich_help_panel=READ,
        ),
    ] = None,
    root: Root = None,
    frames: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Read at most N frames. Several values are a sweep.",
            show_default="as in training",
            rich_help_panel=READ,
        ),
    ] = None,
    resolution: Resolutions = None,
    segments: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Compose each adapter from N segments. Several values are a sweep.",
            show_default="a single encoding",
            rich_help_panel=READ,
        ),
    ] = None,
    timeline: Annotated[
        bool,
        typer.Option(
            "--timeline",
            help="Encode long clips into timelines, as encode does. --frames is then that of each segment.",
            rich_help_panel=READ,
        ),
    ] = False,
    segment_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Cut each timeline into segments of S seconds.",
            show_default="as encode does",
            rich_help_panel=READ,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            readable=False,
            metavar="FILE",
            help="Append the answers to FILE, and resume from it.",
            show_default="MANIFEST.eval.jsonl, or BENCHMARK.eval.jsonl in the current folder",
            rich_help_panel=WRITE,
        ),
    ] = None,
    plot: Plot = None,
    without: Annotated[
        list[Control] | None,
        typer.Option(
            metavar="CONDITION",
            help=f"Leave out {one_of(Control)}. May be given several times.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    ablate: Annotated[
        Ablation | None,
        typer.Option(
            metavar="PART",
            help=f"Answer also from parts of the adapter, or ignoring times: {one_of(Ablation)}.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Generate at most N tokens.",
            show_default=f"{MANIFEST_MAX_NEW_TOKENS}, or {MAX_NEW_TOKENS} for a benchmark",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    metric: Annotated[
        Metric | None,
        typer.Option(
            metavar="NAME",
            help=f"Show this score in the tables: {one_of(Metric)}.",
            show_default="judge with --judge, f1 for a benchmark or --paper, else exact",
            rich_help_panel=SCORES,
        ),
    ] = None,
    paper: Annotated[
        PaperModel | None,
        typer.Option(
            metavar="MODEL",
            help=f"Show the results of the paper below the measured ones: {one_of(PaperModel)}.",
            rich_help_panel=SCORES,
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Score the answers with an OpenAI-compatible server; V2L_JUDGE_KEY holds its key.",
            rich_help_panel=SCORES,
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Use the model NAME of that server.", rich_help_panel=SCORES),
    ] = None,
    settings: Settings = None,
    model: Model = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare adapters with the video in context.

    The frozen model answers every question under five conditions: with the video in context, with its adapter, with
    neither, with the learned bias alone, and with the adapter of another clip. The differences are shown with
    intervals, which are resampled by clip. Several values of --frames, --resolution, --segments or --set
    in_context_frames are a sweep over all combinations.
    """
    with command(as_json, quiet, debug) as display:
        named = read_settings(settings, EvalCommand.named_settings())
        if bool(judge) != bool(judge_model):
            raise UsageError("--judge and --judge-model belong together: give the address and the name there")
        if judge and metric not in (None, Metric.judge):
            raise UsageError(f"--judge gives its own scores, not {metric}; leave one of them out")
        if not judge and ("rubric" in named or metric == Metric.judge):
            raise UsageError("--metric judge and --set rubric need --judge URL and --judge-model NAME")
        if paper and Control.in_context in (without or []):
            raise UsageError("--paper compares with the video in context; leave --without in_context out")
        _check_timeline(timeline, segment_seconds, segments, ablate)
        check_plot(plot)
        axes: dict[str, Sequence[int]] = {
            "frames": whole_numbers(frames, "--frames"),
            "resolution": whole_numbers(resolution, "--resolution", LEAST_RESOLUTION),
            "segments": whole_numbers(segments, "--segments"),
            "in_context_frames": named.get("in_context_frames", ()),
        }
        from v2l.adapters.timeline_description import Segmentation
        from v2l.evaluation.conditions import CONDITIONS
        from v2l.evaluation.report import settings as sweep
        from v2l.evaluation.setting import Setting
        from v2l.video.sampling import Reading

        metric = metric or (Metric.judge if judge else Metric.f1 if benchmark or paper else Metric.exact)
        tokens = max_new_tokens or (MAX_NEW_TOKENS if benchmark else MANIFEST_MAX_NEW_TOKENS)
        kept = tuple(condition for condition in CONDITIONS if condition.name not in (without or []))
        wish = Segmentation(seconds=segment_seconds) if timeline else None
        setting = Setting(Reading(fps=named.get("fps")), tokens, kept, timeline=wish)
        ok = run(
            QuestionSource(manifest, root, benchmark, named.get("samples"), named.get("seed")),
            sweep(setting, {axis: values for axis, values in axes.items() if values}),
            ablate,
            EvalOutputs(output, metric, named.get("margin", ()), plot, paper, _grading(judge, judge_model, named)),
            model_loader(model, hypernetwork, device, dtype, display),
            display,
        )
        raise typer.Exit(0 if ok else 1)


def _check_timeline(
    timeline: bool, segment_seconds: float | None, segments: str | None, ablate: Ablation | None
) -> None:
    if segment_seconds is not None and not timeline:
        raise UsageError("--segment-seconds is the length of a timeline's segments; give --timeline too")
    if timeline and segments:
        raise UsageError("--segments composes one adapter and --timeline keeps segments apart; leave one out")
    if timeline and ablate in (Ablation.ranks, Ablation.layers):
        raise UsageError(f"--ablate {ablate} removes parts of a single adapter; leave --timeline out")
    check_above_zero("--segment-seconds", segment_seconds)


def _grading(judge: str | None, judge_model: str | None, named: dict[str, Any]) -> Grading | None:
    from v2l.evaluation.grading import Grading
    from v2l.evaluation.judge import Server

    if judge is None or judge_model is None:
        return None
    timeout = {"timeout": named["judge_timeout"]} if "judge_timeout" in named else {}
    return Grading(Server(judge, judge_model, **timeout), named.get("rubric"))
