"""The output of `v2l eval`: progress, errors and tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from v2l.cli.console import Display, shown
from v2l.cli.plots import plot_eval, write_pictures
from v2l.evaluation.conditions import WHOLE
from v2l.evaluation.datasets.registry import Chosen
from v2l.evaluation.evaluate import Evaluation, Result
from v2l.evaluation.grading import cost_of, prepare
from v2l.evaluation.judge import Judge, Judgement
from v2l.evaluation.paper import Published
from v2l.evaluation.report import Run, layer_table, place, rank_table
from v2l.io.text import printable
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM


def note_missing(asked: Chosen, display: Display) -> None:
    """Print which questions and videos of a benchmark are missing."""
    if asked.unanswerable:
        display.note(f"{asked.unanswerable} questions have no reference in the annotations and are not asked")
    if asked.missing:
        names = [printable(name) for name in asked.missing.values()]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        display.error(
            f"{len(names)} of {asked.videos} videos are missing: {', '.join(names[:3])}{more}; questions about them "
            "count as failed, fetch the videos and run the same command again"
        )


def answer(evaluation: Evaluation, asked: Chosen, display: Display) -> list[Result]:
    """Return all results and move a bar. Each reason for a failure is printed once per clip, except that a video is
    missing, which is known before."""
    number = len(asked.examples)
    if evaluation.done:
        display.note(f"{len(evaluation.done)} of {number} questions were answered before")
    clips = [video for video, _, _ in evaluation.clips]
    results = []
    failures = set()
    display.start_progress(number, "question")
    for result in evaluation.run():
        results.append(result)
        display.progress(len(results), number)
        failure = result.clip, result.error
        if result.error is not None and failure not in failures and clips[result.clip] not in asked.missing:
            failures.add(failure)
            display.error(f"{printable(result.id)}: {result.error}")
    display.end_progress()
    failed = sum(result.error is not None for result in results)
    if failed:
        display.error(f"{failed} of {number} questions could not be answered")
    return results


def judge_answers(judge: Judge, results: Sequence[Result], display: Display) -> tuple[list[Result], dict[str, Any]]:
    """Return the results with the scores of the judge, and the record of the judge and its cost."""
    grading = prepare(judge, results)
    names, number = grading.names, len(grading.missing)
    if number < len(names):
        display.note(f"{len(names) - number} of {len(names)} different answers were judged before")
    judgements: list[Judgement] = []

    def on_judgement(judgement: Judgement) -> None:
        judgements.append(judgement)
        display.progress(len(judgements), number)
        if judgement.error is not None:
            display.error(f"{printable(names[judgement.item])}: {judgement.error}")

    started = time.monotonic()
    display.start_progress(number, "answer")
    try:
        grading.grade(on_judgement)
    finally:
        display.end_progress()
        seconds = time.monotonic() - started
        cost = cost_of(judgements, seconds)
        display.note(
            f"judge {printable(judge.server.model)}: {cost['replies']} replies, {cost['prompt_tokens']:,} prompt and "
            f"{cost['completion_tokens']:,} completion tokens, {cost['seconds']:.0f} s; every reply is in "
            f"{printable(judge.journal.path)}"
        )
    if failed := grading.still_missing():
        display.error(f"{failed} of {len(names)} answers could not be judged; the same command asks for them again")
    return grading.scored(), grading.record(judgements, seconds)


def print_run(
    run: Run,
    asked: Chosen,
    paper: Mapping[str, Published],
    cost: Mapping[str, Any] | None,
    path: Path,
    display: Display,
) -> None:
    """Print the tables of a setting, or its record. cost: the record of the judge; path: the file of the answers"""
    report = run.report
    if display.as_json:
        about = {"command": "eval", "results": path, **asked.record, **place(run.setting)}
        rows = {kind: asdict(row) for kind, row in paper.items()}
        display.result("", about | report.record() | {"paper": rows, "judge": cost})
        return
    display.note(f"{report.metric}; every answer is in {printable(path)}")
    by_kind = report.kinds_table(paper) if report.by_kind else None
    ablated = rank_table(run), layer_table(run)
    if WHOLE in run.setting.conditions and WHOLE.name not in report.macro:
        display.note("all segments are left out: those of a clip are too many to attach together")
    for each in (report.means_table(), report.uses_table(), report.against_table(), by_kind, *ablated):
        if each and each[1]:
            display.table(*each)
            display.write("\n")
    if by_kind:
        display.write(f"{report.summary()}\n")


def write_plot(
    runs: Sequence[Run], models: tuple[FrozenVLM, Hypernetwork], metric: str, count: int, path: Path, display: Display
) -> None:
    """Write the pictures of all runs. count: of the questions"""
    vlm, hypernetwork = models
    assert hypernetwork.provenance is not None, "a hypernetwork that was loaded has its provenance"
    title = f"{vlm.id}, {hypernetwork.provenance.id}, {metric}, {count} questions"
    written = write_pictures(path, plot_eval(runs, title, path.suffix[1:]))
    display.note(f"wrote {', '.join(map(shown, written))}")
