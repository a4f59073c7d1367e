"""What `v2l eval` does once its options are understood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from v2l.ablation import ablations, layer_table, rank_table
from v2l.choice import Choice
from v2l.commands import announce_fallback
from v2l.display import Display, shown
from v2l.errors import UsageError
from v2l.evaluate import Evaluation, Result, Setting
from v2l.files import printable, write_atomically
from v2l.hypernetwork import Hypernetwork
from v2l.manifest import Example, read_manifest
from v2l.options import Ablation
from v2l.report import Report, summarise
from v2l.scoring import check_extras
from v2l.sweep import Run, output_of, place, table, told, varying
from v2l.vlm import FrozenVLM


@dataclass(frozen=True)
class Questions:
    """Where the questions come from: a manifest, and the folder that its videos are in."""

    manifest: Path
    root: Path | None


@dataclass(frozen=True)
class Tables:
    """How the answers are told.

    output: the file that keeps all of them, the manifest's own name where None; of a sweep, files of such names
    plot: an image of what the tables say
    """

    output: Path | None
    metric: str
    margin: float
    plot: Path | None


def evaluate(
    questions: Questions,
    settings: Sequence[Setting],
    ablation: Ablation | None,
    tables: Tables,
    choice: Choice,
    display: Display,
) -> bool:
    """Answers the questions in every way under every setting and prints how the ways compare; True where all were
    answered."""
    examples = read_manifest(questions.manifest, questions.root)
    check_extras()
    if tables.plot:
        from v2l.plots import check_extra

        check_extra()
    output = tables.output or questions.manifest.with_suffix(".eval.jsonl")
    axes = varying(settings)
    for path in (output_of(output, setting, axes) for setting in settings):
        if path.exists() and path.samefile(questions.manifest):
            raise UsageError(f"{printable(path)} is the manifest itself; name another file with -o")
    announce_fallback(choice, display)
    models = choice.load()
    runs = []
    for setting in settings:
        if axes:
            display.note(told(setting, axes))
        setting = _with_ablation(setting, ablation, *models)
        path = output_of(output, setting, axes)
        report = _report(Evaluation(examples, *models, setting, path), examples, tables, display)
        runs.append(Run(setting, report))
        _tell(runs[-1], tables.metric, path, display)
    if axes and not display.as_json:
        display.table(*table(runs))
    if tables.plot:
        from v2l.plots import plot_eval

        title = f"{models[0].id}, {tables.metric}, {len(examples)} questions"
        write_atomically(tables.plot, plot_eval(runs, title, tables.plot.suffix[1:]))
        display.note(f"wrote {shown(tables.plot)}")
    return not any(run.report.failed for run in runs)


def _with_ablation(setting: Setting, ablation: Ablation | None, vlm: FrozenVLM, hypernetwork: Hypernetwork) -> Setting:
    if ablation is None:
        return setting
    ranks = hypernetwork.config.rank * setting.segments
    return replace(setting, conditions=(*setting.conditions, *ablations(ablation, ranks, vlm.num_layers)))


def _report(evaluation: Evaluation, examples: Sequence[Example], tables: Tables, display: Display) -> Report:
    """All questions answered and summed up."""
    if evaluation.done:
        display.note(f"{len(evaluation.done)} of {len(examples)} questions were answered before")
    results = _answered(evaluation, len(examples), display)
    report = summarise(results, tables.metric, tables.margin)
    if report.failed:
        display.error(f"{report.failed} of {len(results)} questions could not be answered")
    return report


def _answered(evaluation: Evaluation, number: int, display: Display) -> list[Result]:
    """All results, with a bar; what could not be answered is told at once."""
    results = []
    display.start_progress(number, "question")
    for result in evaluation.run():
        results.append(result)
        display.progress(len(results), number)
        if result.error is not None:
            display.error(f"{printable(result.id)}: {result.error}")
    display.end_progress()
    return results


def _tell(run: Run, metric: str, path: Path, display: Display) -> None:
    """One setting's tables, or its record."""
    report = run.report
    if display.as_json:
        display.result("", {"command": "eval", "results": path, **place(run.setting), **report.record()})
        return
    display.note(f"{metric}; every answer is in {printable(path)}")
    for each in (report.means_table(), report.against_table(), rank_table(report.macro), layer_table(report.macro)):
        if each:
            display.table(*each)
            display.write("\n")
