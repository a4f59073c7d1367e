"""What `v2l eval` does once its options are understood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from v2l.cli.commands import announce_fallback
from v2l.cli.console import Display, shown
from v2l.errors import UsageError, V2LError
from v2l.evaluation.conditions import IN_CONTEXT, SEGMENT_IN_CONTEXT, Ablation, ablations
from v2l.evaluation.datasets.registry import SEED, Chosen, read_benchmark
from v2l.evaluation.evaluate import Evaluation, Result, Setting
from v2l.evaluation.judging import Grading, judged, open_judge
from v2l.evaluation.metrics import MARGINS, check_extras
from v2l.evaluation.paper import Published, published
from v2l.evaluation.report import (
    Run,
    describe_setting,
    layer_table,
    output_of,
    place,
    rank_table,
    summarise,
    sweep_table,
    varying,
)
from v2l.inference.model_loader import ModelLoader
from v2l.io.files import write_atomically
from v2l.io.manifest import read_manifest
from v2l.io.text import printable
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM


@dataclass(frozen=True)
class Questions:
    """Where the questions come from: a manifest and the folder that its videos are in, or a benchmark and its folder.

    samples, seed: of the choice from a benchmark, None for the paper's number and this project's seed
    """

    manifest: Path | None
    root: Path | None
    benchmark: str | None = None
    samples: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Tables:
    """How the answers are told.

    output: the file that keeps all of them, the manifest's own name where None; of a sweep, files of such names
    margins: the paper's for that metric where there are none
    plot: an image of what the tables say; paper: the model whose rows the paper's tables have; grading: who judges
    """

    output: Path | None
    metric: str
    margins: tuple[float, ...]
    plot: Path | None
    paper: str | None
    grading: Grading | None


def evaluate(
    questions: Questions,
    settings: Sequence[Setting],
    ablation: Ablation | None,
    tables: Tables,
    choice: ModelLoader,
    display: Display,
) -> bool:
    """Answers the questions in every way under every setting and prints how the ways compare; True where all were
    answered, and judged where that is asked for."""
    if ablation == Ablation.times and not any(setting.segments > 1 for setting in settings):
        raise UsageError("--ablate times is about adapters of several segments; give --segments 2 or more")
    asked = _read(questions)
    check_extras()
    if tables.plot:
        from v2l.cli.plots import check_extra

        check_extra()
    kinds = sorted({example.kind for example in asked.examples})
    paper = published(tables.paper, tables.metric, kinds, questions.benchmark) if tables.paper else {}
    margin, *stricter = tables.margins or (MARGINS[tables.metric],)
    axes = varying(settings)
    source = questions.manifest or Path(questions.benchmark)
    base = tables.output or source.with_suffix(".eval.jsonl")
    outputs = [output_of(base, setting, axes) for setting in settings]
    for output in outputs:
        if questions.manifest and output.exists() and output.samefile(questions.manifest):
            raise UsageError(f"{printable(output)} is the manifest itself; name another file with -o")
    judge = open_judge(tables.grading, {example.task for example in asked.examples}, base) if tables.grading else None
    announce_fallback(choice, display)
    _announce(asked, display)
    models = choice.load()
    runs, in_context = [], {}
    for setting, output in zip(settings, outputs, strict=True):
        if axes:
            display.note(describe_setting(setting, axes))
        setting = _with_ablation(setting, ablation, *models)
        evaluation = Evaluation(asked.examples, *models, setting, output, asked.record, in_context)
        results = _answered(evaluation, asked, display)
        results, cost = judged(judge, results, display) if judge else (results, None)
        try:
            run = Run(setting, summarise(results, tables.metric, margin, stricter))
        except V2LError as error:
            if not axes:
                raise
            display.error(f"{describe_setting(setting, axes)}: {error}")  # the other settings go on
            continue
        runs.append(run)
        _tell(run, asked, paper, cost, output, display)
    if len(runs) > 1 and not display.as_json:
        display.table(*sweep_table(runs))
    if runs and tables.plot:
        from v2l.cli.plots import plot_eval

        title = f"{models[0].id}, {models[1].provenance.id}, {tables.metric}, {len(asked.examples)} questions"
        write_atomically(tables.plot, plot_eval(runs, title, tables.plot.suffix[1:]))
        display.note(f"wrote {shown(tables.plot)}")
    return len(runs) == len(settings) and not any(run.report.failed for run in runs)


def _with_ablation(setting: Setting, ablation: Ablation | None, vlm: FrozenVLM, hypernetwork: Hypernetwork) -> Setting:
    if ablation is None or (ablation == Ablation.times and setting.segments == 1):
        return setting
    ranks = hypernetwork.config.rank * setting.segments
    more = ablations(ablation, ranks, vlm.num_layers)
    if IN_CONTEXT not in setting.conditions:
        more = tuple(condition for condition in more if condition != SEGMENT_IN_CONTEXT)
    return replace(setting, conditions=(*setting.conditions, *more))


def _read(questions: Questions) -> Chosen:
    """The examples of a manifest, all of them, or those chosen from a benchmark."""
    if (questions.manifest is None) == (questions.benchmark is None):
        raise UsageError("name either a manifest or a --benchmark")
    if questions.benchmark is None:
        if questions.samples is not None or questions.seed is not None:
            raise UsageError("--samples and --seed choose from a --benchmark; a manifest is answered whole")
        return Chosen(read_manifest(questions.manifest, questions.root))
    if questions.root is None:
        raise UsageError(f"--benchmark {questions.benchmark} needs --root, the folder that it was fetched to")
    return read_benchmark(questions.benchmark, questions.root, questions.samples, questions.seed or SEED)


def _announce(asked: Chosen, display: Display) -> None:
    """What is lacking of a benchmark, before it is answered."""
    if asked.unanswerable:
        display.note(f"{asked.unanswerable} questions have no reference in the annotations and are not asked")
    if asked.missing:
        names = [printable(name) for name in asked.missing.values()]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        display.error(
            f"{len(names)} of {asked.videos} videos are missing: {', '.join(names[:3])}{more}; what is asked about "
            "them counts as failed, fetch them and run the same command again"
        )


def _answered(evaluation: Evaluation, asked: Chosen, display: Display) -> list[Result]:
    """All results, with a bar; what could not be answered is told at once, of a clip each reason once, but for
    videos known to be missing."""
    number = len(asked.examples)
    if evaluation.done:
        display.note(f"{len(evaluation.done)} of {number} questions were answered before")
    clips = [video for video, _, _ in evaluation.clips]
    results = []
    reasons = set()
    display.start_progress(number, "question")
    for result in evaluation.run():
        results.append(result)
        display.progress(len(results), number)
        reason = result.clip, result.error
        if result.error is not None and reason not in reasons and clips[result.clip] not in asked.missing:
            reasons.add(reason)
            display.error(f"{printable(result.id)}: {result.error}")
    display.end_progress()
    failed = sum(result.error is not None for result in results)
    if failed:
        display.error(f"{failed} of {number} questions could not be answered")
    return results


def _tell(
    run: Run,
    asked: Chosen,
    paper: Mapping[str, Published],
    cost: Mapping[str, Any] | None,
    path: Path,
    display: Display,
) -> None:
    """One setting's tables, or its record. cost: of its judgements"""
    report = run.report
    if display.as_json:
        about = {"command": "eval", "results": path, **asked.record, **place(run.setting)}
        rows = {kind: asdict(row) for kind, row in paper.items()}
        display.result("", about | report.record() | {"paper": rows, "judge": cost})
        return
    display.note(f"{report.metric}; every answer is in {printable(path)}")
    by_kind = report.kinds_table(paper) if report.by_kind else None
    ablated = rank_table(run), layer_table(run)
    for each in (report.means_table(), report.against_table(), by_kind, *ablated):
        if each and each[1]:
            display.table(*each)
            display.write("\n")
    if by_kind:
        display.write(f"{report.summary()}\n")
