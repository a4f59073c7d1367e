"""What `v2l eval` does once its options are understood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from v2l.choice import Choice
from v2l.commands import announce_fallback
from v2l.display import Display
from v2l.errors import UsageError
from v2l.evaluate import Evaluation, Result, Setting
from v2l.files import printable
from v2l.manifest import read_manifest
from v2l.report import summarise
from v2l.scoring import check_extras


@dataclass(frozen=True)
class Questions:
    """Where the questions come from: a manifest, and the folder that its videos are in."""

    manifest: Path
    root: Path | None


@dataclass(frozen=True)
class Tables:
    """How the answers are told. output: the file that keeps all of them, the manifest's own name where None"""

    output: Path | None
    metric: str
    margin: float


def evaluate(questions: Questions, setting: Setting, tables: Tables, choice: Choice, display: Display) -> bool:
    """Answers the questions in every way and prints how the ways compare; True where all were answered."""
    examples = read_manifest(questions.manifest, questions.root)
    check_extras()
    output = tables.output or questions.manifest.with_suffix(".eval.jsonl")
    if output.exists() and output.samefile(questions.manifest):
        raise UsageError(f"{printable(output)} is the manifest itself; name another file with -o")
    announce_fallback(choice, display)
    evaluation = Evaluation(examples, *choice.load(), setting, output)
    if evaluation.done:
        display.note(f"{len(evaluation.done)} of {len(examples)} questions were answered before")
    results = _answered(evaluation, len(examples), display)
    report = summarise(results, tables.metric, tables.margin)
    if display.as_json:
        display.result("", {"command": "eval", "results": output, **report.record()})
    else:
        display.note(f"{tables.metric}; every answer is in {printable(output)}")
        display.table(*report.means_table())
        display.write("\n")
        display.table(*report.against_table())
    if report.failed:
        display.error(f"{report.failed} of {len(results)} questions could not be answered")
    return not report.failed


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
