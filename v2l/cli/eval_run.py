"""The work of `v2l eval`: answer the questions under every setting, print the tables and write the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from v2l.cli.console import Display, announce_model
from v2l.errors import UsageError, V2LError
from v2l.evaluation.conditions import Ablation
from v2l.io.text import printable

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

    if ablation == Ablation.times and not any(setting.segments > 1 or setting.timeline for setting in settings):
        raise UsageError("--ablate times needs adapters of several segments; give --segments 2 or more, or --timeline")
    asked = questions.read()
    check_extras()
    margin, *stricter = outputs.margins or (MARGINS[outputs.metric],)
    axes = varying(settings)
    base = outputs.output or questions.path.with_suffix(".eval.jsonl")
    paths = [_check_output(output_of(base, setting, axes), questions.manifest) for setting in settings]
    published, judge = _open(outputs, asked, questions.benchmark, base)
    announce_model(loader, display)
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

    is_timeline = setting.timeline is not None
    if ablation is None or (ablation == Ablation.times and setting.segments == 1 and not is_timeline):
        return setting
    more = ablations(ablation, hypernetwork.config.rank * setting.segments, vlm.num_layers, is_timeline)
    if IN_CONTEXT not in setting.conditions:
        more = tuple(condition for condition in more if condition != SEGMENT_IN_CONTEXT)
    return replace(setting, conditions=(*setting.conditions, *more))
