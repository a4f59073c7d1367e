"""The answers of an evaluation before the judge, for evaluating.py."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from v2l.cli.console import Display
from v2l.evaluation.evaluate import Result
from v2l.evaluation.judge import Judge, Judgement, Server
from v2l.evaluation.report import TITLES
from v2l.evaluation.rubric import Item, read_rubric
from v2l.io.text import printable


@dataclass(frozen=True)
class Grading:
    """The judge that is asked, and the file with its rubric, v2l's own where None."""

    server: Server
    rubric: Path | None


def open_judge(grading: Grading, tasks: Iterable[str], answers: Path) -> Judge:
    """The judge, its judgements beside the file with the answers; nothing is asked yet."""
    rubric = read_rubric(grading.rubric)
    rubric.check(tasks)
    return Judge(grading.server, rubric, answers.with_suffix(".judge.jsonl"))


def judged(judge: Judge, results: Sequence[Result], display: Display) -> tuple[list[Result], dict[str, Any]]:
    """The results with the judge's scores, as failed where one is missing; and what this run asked and cost."""
    items = {
        (result.id, condition): Item(result.task, result.prompt, result.target, answer)
        for result in results
        for condition, answer in result.answers.items()
    }
    names = {item: f"{name}, {TITLES.get(condition, condition)}" for (name, condition), item in reversed(items.items())}
    missing = judge.missing(list(names))
    if len(missing) < len(names):
        display.note(f"{len(names) - len(missing)} of {len(names)} different answers were judged before")
    judgements: list[Judgement] = []
    began = time.monotonic()
    display.start_progress(len(missing), "answer")
    try:
        for judgement in judge.run(missing):
            judgements.append(judgement)
            display.progress(len(judgements), len(missing))
            if judgement.error is not None:
                display.error(f"{printable(names[judgement.item])}: {judgement.error}")
    finally:
        display.end_progress()
        cost = _cost(judgements, time.monotonic() - began)
        display.note(
            f"judge {printable(judge.server.model)}: {cost['replies']} replies, {cost['prompt_tokens']:,} prompt and "
            f"{cost['completion_tokens']:,} completion tokens, {cost['seconds']:.0f} s; every reply is in "
            f"{printable(judge.journal.path)}"
        )
    failed = len(judge.missing(missing))
    if failed:
        display.error(f"{failed} of {len(names)} answers could not be judged; the same command asks for them again")
    about = {"model": judge.server.model, "rubric": judge.rubric.sha256, "judgements": judge.journal.path}
    return [_scored(result, items, judge) for result in results], {**about, **cost}


def _cost(judgements: Sequence[Judgement], seconds: float) -> dict[str, float]:
    return {
        "replies": sum(len(judgement.replies) for judgement in judgements),
        "prompt_tokens": sum(judgement.tokens("prompt") for judgement in judgements),
        "completion_tokens": sum(judgement.tokens("completion") for judgement in judgements),
        "seconds": round(seconds, 3),
    }


def _scored(result: Result, items: dict[tuple[str, str], Item], judge: Judge) -> Result:
    if result.error is not None:
        return result
    found = {condition: judge.score(items[result.id, condition]) for condition in result.answers}
    if None in found.values():
        return replace(result, error="not all of its answers were judged")
    return replace(result, scores={name: {**scores, "judge": found[name]} for name, scores in result.scores.items()})
