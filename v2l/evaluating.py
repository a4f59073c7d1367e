"""What `v2l eval` does once its options are understood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from v2l.choice import Choice
from v2l.commands import announce_fallback
from v2l.display import Display
from v2l.errors import UsageError
from v2l.evaluate import Evaluation, Result, Setting
from v2l.files import printable
from v2l.judging import Grading, judged, open_judge
from v2l.manifest import read_manifest
from v2l.paper import Published, published
from v2l.report import Report, summarise
from v2l.scoring import MARGINS, check_extras


@dataclass(frozen=True)
class Questions:
    """Where the questions come from: a manifest, and the folder that its videos are in."""

    manifest: Path
    root: Path | None


@dataclass(frozen=True)
class Tables:
    """How the answers are told.

    output: the file that keeps all of them, the manifest's own name where None
    metric: the judge's where None and there is one, else token-F1 beside the paper, else exact match
    margins: the paper's for that metric where empty; paper: the model that its rows are printed of
    """

    output: Path | None
    metric: str | None
    margins: tuple[float, ...]
    paper: str | None


def evaluate(
    questions: Questions, setting: Setting, tables: Tables, grading: Grading | None, choice: Choice, display: Display
) -> bool:
    """Answers the questions in every way, has the answers judged if that is asked for, and prints how the ways compare;
    True where all were answered and judged."""
    examples = read_manifest(questions.manifest, questions.root)
    check_extras()
    metric = tables.metric or ("judge" if grading else "f1" if tables.paper else "exact")
    margins = tables.margins or (MARGINS[metric],)
    paper = published(tables.paper, metric, sorted({each.kind for each in examples})) if tables.paper else {}
    output = tables.output or questions.manifest.with_suffix(".eval.jsonl")
    if output.exists() and output.samefile(questions.manifest):
        raise UsageError(f"{printable(output)} is the manifest itself; name another file with -o")
    judge = open_judge(grading, {example.task for example in examples}, output) if grading else None
    announce_fallback(choice, display)
    evaluation = Evaluation(examples, *choice.load(), setting, output)
    if evaluation.done:
        display.note(f"{len(evaluation.done)} of {len(examples)} questions were answered before")
    results = _answered(evaluation, len(examples), display)
    results, about_judge = judged(judge, results, display) if judge else (results, None)
    report = summarise(results, metric, margins[0], margins[1:])
    if display.as_json:
        beside = {"paper": {kind: asdict(row) for kind, row in paper.items()}, "judge": about_judge}
        display.result("", {"command": "eval", "results": output, **report.record(), **beside})
    else:
        display.note(f"{metric}; every answer is in {printable(output)}")
        _print(report, paper, display)
    if report.failed:
        done = "answered or judged" if judge else "answered"
        display.error(f"{report.failed} of {len(results)} questions could not be {done}; the same command tries again")
    return not report.failed


def _print(report: Report, paper: Mapping[str, Published], display: Display) -> None:
    display.table(*report.means_table())
    display.write("\n")
    display.table(*report.against_table())
    if "in_context" in report.against:
        display.write("\n")
        display.table(*report.kinds_table(paper))
        display.write(f"\n{report.summary()}\n")


def _answered(evaluation: Evaluation, number: int, display: Display) -> Sequence[Result]:
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
