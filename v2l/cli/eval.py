"""`v2l eval`: questions answered from adapters, in context and without the video, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2l.cli.console import Display, announce_fallback, command
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
    check_plot,
    model_loader,
    numbers_above_zero,
    one_of,
    whole_numbers,
)
from v2l.cli.settings import NamedSetting, number, read_settings, whole_number
from v2l.errors import UsageError, V2LError
from v2l.evaluation.conditions import Ablation, Control
from v2l.evaluation.datasets.names import MANIFEST_MAX_NEW_TOKENS, MAX_NEW_TOKENS, BenchmarkName
from v2l.io.text import printable
from v2l.video.limits import LEAST_RESOLUTION

if TYPE_CHECKING:
    from v2l.evaluation.datasets.registry import Chosen
    from v2l.evaluation.grading import Grading
    from v2l.evaluation.judge import Judge
    from v2l.evaluation.paper import Published
    from v2l.evaluation.report import Run
    from v2l.evaluation.setting import Setting
    from v2l.inference.model_loader import ModelLoader
    from v2l.models.hypernetwork import Hypernetwork
    from v2l.models.smolvlm import FrozenVLM

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
        check_plot(plot)
        axes: dict[str, Sequence[int]] = {
            "frames": whole_numbers(frames, "--frames"),
            "resolution": whole_numbers(resolution, "--resolution", LEAST_RESOLUTION),
            "segments": whole_numbers(segments, "--segments"),
            "in_context_frames": named.get("in_context_frames", ()),
        }
        from v2l.evaluation.conditions import CONDITIONS
        from v2l.evaluation.report import settings as sweep
        from v2l.evaluation.setting import Setting
        from v2l.video.sampling import Reading

        metric = metric or (Metric.judge if judge else Metric.f1 if benchmark or paper else Metric.exact)
        tokens = max_new_tokens or (MAX_NEW_TOKENS if benchmark else MANIFEST_MAX_NEW_TOKENS)
        kept = tuple(condition for condition in CONDITIONS if condition.name not in (without or []))
        setting = Setting(Reading(fps=named.get("fps")), tokens, kept)
        ok = run(
            QuestionSource(manifest, root, benchmark, named.get("samples"), named.get("seed")),
            sweep(setting, {axis: values for axis, values in axes.items() if values}),
            ablate,
            EvalOutputs(output, metric, named.get("margin", ()), plot, paper, _grading(judge, judge_model, named)),
            model_loader(model, hypernetwork, device, dtype, display),
            display,
        )
        raise typer.Exit(0 if ok else 1)


def _grading(judge: str | None, judge_model: str | None, named: dict[str, Any]) -> Grading | None:
    from v2l.evaluation.grading import Grading
    from v2l.evaluation.judge import Server

    if judge is None or judge_model is None:
        return None
    timeout = {"timeout": named["judge_timeout"]} if "judge_timeout" in named else {}
    return Grading(Server(judge, judge_model, **timeout), named.get("rubric"))


@dataclass(frozen=True)
class QuestionSource:
    """A manifest or a benchmark. root: the folder of its videos; samples, seed: of the choice from a benchmark."""

    manifest: Path | None
    root: Path | None
    benchmark: str | None = None
    samples: int | None = None
    seed: int | None = None

    @property
    def path(self) -> Path:
        """The manifest, or a path in the current folder that is named after the benchmark. Raises UsageError unless
        exactly one of them was given."""
        if self.manifest and not self.benchmark:
            return self.manifest
        if self.benchmark and not self.manifest:
            return Path(self.benchmark)
        raise UsageError("name either a manifest or a --benchmark")

    def read(self) -> Chosen:
        """Return all examples of the manifest, or those chosen from the benchmark."""
        from v2l.evaluation.datasets.registry import SEED, Chosen, read_benchmark
        from v2l.io.manifest import read_manifest

        path = self.path
        if self.benchmark is None:
            if self.samples is not None or self.seed is not None:
                raise UsageError("samples and seed choose from a --benchmark; a manifest is answered completely")
            return Chosen(read_manifest(path, self.root))
        if self.root is None:
            raise UsageError(f"--benchmark {self.benchmark} needs --root, the folder with its files")
        return read_benchmark(self.benchmark, self.root, self.samples, SEED if self.seed is None else self.seed)


@dataclass(frozen=True)
class EvalOutputs:
    """The files of an evaluation and what its tables show.

    output: the file of the answers, named after the questions if None; for a sweep, the first part of their names
    margins: empty for the margin of the paper
    plot: an image of the tables; paper: the model whose published results are shown; grading: the judge
    """

    output: Path | None
    metric: str
    margins: tuple[float, ...]
    plot: Path | None
    paper: str | None
    grading: Grading | None


def run(
    questions: QuestionSource,
    settings: Sequence[Setting],
    ablation: Ablation | None,
    outputs: EvalOutputs,
    loader: ModelLoader,
    display: Display,
) -> bool:
    """Answer the questions under every setting and print the tables; True if all were answered, and judged."""
    from v2l.cli.eval_report import answer, judge_answers, note_missing, print_run, write_plot
    from v2l.evaluation.evaluate import Evaluation
    from v2l.evaluation.metrics import MARGINS, check_extras
    from v2l.evaluation.report import Run, describe_setting, output_of, summarise, sweep_table, varying

    if ablation == Ablation.times and not any(setting.segments > 1 for setting in settings):
        raise UsageError("--ablate times needs adapters of several segments; give --segments 2 or more")
    asked = questions.read()
    check_extras()
    margin, *stricter = outputs.margins or (MARGINS[outputs.metric],)
    axes = varying(settings)
    base = outputs.output or questions.path.with_suffix(".eval.jsonl")
    paths = [_check_output(output_of(base, setting, axes), questions.manifest) for setting in settings]
    published, judge = _open(outputs, asked, questions.benchmark, base)
    announce_fallback(loader, display)
    note_missing(asked, display)
    models = loader.load()
    runs: list[Run] = []
    in_context: dict[tuple, str] = {}
    for setting, path in zip(settings, paths, strict=True):
        if axes:
            display.note(describe_setting(setting, axes))
        setting = _with_ablation(setting, ablation, *models)
        results = answer(Evaluation(asked.examples, *models, setting, path, asked.record, in_context), asked, display)
        results, cost = judge_answers(judge, results, display) if judge else (results, None)
        try:
            runs.append(Run(setting, summarise(results, outputs.metric, margin, stricter)))
        except V2LError as error:
            if not axes:
                raise
            display.error(f"{describe_setting(setting, axes)}: {error}")
            continue  # with the other settings
        print_run(runs[-1], asked, published, cost, path, display)
    if len(runs) > 1 and not display.as_json:
        display.table(*sweep_table(runs))
    if runs and outputs.plot:
        write_plot(runs, models, outputs.metric, len(asked.examples), outputs.plot, display)
    return len(runs) == len(settings) and not any(run.report.failed for run in runs)


def _check_output(path: Path, manifest: Path | None) -> Path:
    if manifest and path.exists() and path.samefile(manifest):
        raise UsageError(f"{printable(path)} is the manifest itself; name another file with -o")
    return path


def _open(
    outputs: EvalOutputs, asked: Chosen, benchmark: str | None, base: Path
) -> tuple[dict[str, Published], Judge | None]:
    """Return the published results to show and the judge, as far as they are wanted."""
    from v2l.evaluation.paper import published

    kinds = sorted({example.kind for example in asked.examples})
    rows = published(outputs.paper, outputs.metric, kinds, benchmark) if outputs.paper else {}
    tasks = {example.task for example in asked.examples}
    return rows, outputs.grading.open(tasks, base) if outputs.grading else None


def _with_ablation(setting: Setting, ablation: Ablation | None, vlm: FrozenVLM, hypernetwork: Hypernetwork) -> Setting:
    from v2l.evaluation.conditions import IN_CONTEXT, SEGMENT_IN_CONTEXT, ablations

    if ablation is None or (ablation == Ablation.times and setting.segments == 1):
        return setting
    more = ablations(ablation, hypernetwork.config.rank * setting.segments, vlm.num_layers)
    if IN_CONTEXT not in setting.conditions:
        more = tuple(condition for condition in more if condition != SEGMENT_IN_CONTEXT)
    return replace(setting, conditions=(*setting.conditions, *more))
