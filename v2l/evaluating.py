"""What `v2l eval` does once its options are understood."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from v2l.benchmarks.registry import SEED, Chosen, read_benchmark
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
    """How the answers are told. output: the file that keeps all of them, the manifest's own name where None"""

    output: Path | None
    metric: str
    margin: float


def evaluate(questions: Questions, setting: Setting, tables: Tables, choice: Choice, display: Display) -> bool:
    """Answers the questions in every way and prints how the ways compare; True where all were answered."""
    asked = _read(questions)
    check_extras()
    source = questions.manifest or Path(questions.benchmark)
    output = tables.output or source.with_suffix(".eval.jsonl")
    if questions.manifest and output.exists() and output.samefile(questions.manifest):
        raise UsageError(f"{printable(output)} is the manifest itself; name another file with -o")
    announce_fallback(choice, display)
    _announce(asked, display)
    examples = asked.examples
    evaluation = Evaluation(examples, *choice.load(), setting, output, asked.record)
    if evaluation.done:
        display.note(f"{len(evaluation.done)} of {len(examples)} questions were answered before")
    results = _answered(evaluation, len(examples), display, asked.missing)
    report = summarise(results, tables.metric, tables.margin)
    if display.as_json:
        display.result("", {"command": "eval", "results": output, **asked.record, **report.record()})
    else:
        display.note(f"{tables.metric}; every answer is in {printable(output)}")
        display.table(*report.means_table())
        display.write("\n")
        display.table(*report.against_table())
    if report.failed:
        display.error(f"{report.failed} of {len(results)} questions could not be answered")
    return not report.failed


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


def _answered(evaluation: Evaluation, number: int, display: Display, missing: Container[Path]) -> Sequence[Result]:
    """All results, with a bar; what could not be answered is told at once, but for videos known to be missing."""
    clips = [video for video, _, _ in evaluation.clips]
    results = []
    display.start_progress(number, "question")
    for result in evaluation.run():
        results.append(result)
        display.progress(len(results), number)
        if result.error is not None and clips[result.clip] not in missing:
            display.error(f"{printable(result.id)}: {result.error}")
    display.end_progress()
    return results
