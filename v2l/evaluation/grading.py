"""The answers of an evaluation scored by a judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from v2l.evaluation.evaluate import Result
from v2l.evaluation.judge import Judge, Judgement, Server
from v2l.evaluation.report import TITLES
from v2l.evaluation.rubric import Item, read_rubric

Answered = tuple[str, str]
"""The id of a question and a condition."""


@dataclass(frozen=True)
class Grading:
    """The judge and the file with its rubric, None for the rubric of v2l."""

    server: Server
    rubric: Path | None = None

    def open(self, tasks: Iterable[str], answers: Path) -> Judge:
        """Return the judge, whose judgements are kept beside the file with the answers; sends no request."""
        rubric = read_rubric(self.rubric)
        rubric.check(tasks)
        return Judge(self.server, rubric, answers.with_suffix(".judge.jsonl"))


@dataclass(frozen=True)
class GradingRun:
    """One run of a judge over the results of an evaluation.

    names: the different answers, each with a name for messages
    missing: those that no earlier run judged
    """

    judge: Judge
    results: Sequence[Result]
    items: dict[Answered, Item]
    names: dict[Item, str]
    missing: list[Item]

    def grade(self, on_judgement: Callable[[Judgement], None]) -> None:
        """Judge the missing answers; `on_judgement` is called after each."""
        for judgement in self.judge.run(self.missing):
            on_judgement(judgement)

    def still_missing(self) -> int:
        """Return how many answers could not be judged."""
        return len(self.judge.missing(self.missing))

    def scored(self) -> list[Result]:
        """Return the results with the scores of the judge; a result with an answer that was not judged has failed."""
        return [self._scored(result) for result in self.results]

    def record(self, judgements: Sequence[Judgement], seconds: float) -> dict[str, Any]:
        """Return the judge, its files, and what this run cost."""
        about = {"model": self.judge.server.model, "rubric": self.judge.rubric.sha256}
        return {**about, "judgements": self.judge.journal.path, **cost_of(judgements, seconds)}

    def _scored(self, result: Result) -> Result:
        if result.error is not None:
            return result
        judged = {}
        for condition, scores in result.scores.items():
            score = self.judge.score(self.items[result.id, condition])
            if score is None:
                return replace(result, error="not all of its answers were judged")
            judged[condition] = {**scores, "judge": score}
        return replace(result, scores=judged)


def prepare(judge: Judge, results: Sequence[Result]) -> GradingRun:
    """Collect the different answers of results and which of them no earlier run judged."""
    items = {
        (result.id, condition): Item(result.task, result.prompt, result.target, answer)
        for result in results
        for condition, answer in result.answers.items()
    }
    names = {item: f"{name}, {TITLES.get(condition, condition)}" for (name, condition), item in reversed(items.items())}
    return GradingRun(judge, results, items, names, judge.missing(list(names)))


def cost_of(judgements: Sequence[Judgement], seconds: float) -> dict[str, float]:
    """Return the replies and tokens of judgements, and the seconds that they took."""
    return {
        "replies": sum(len(judgement.replies) for judgement in judgements),
        "prompt_tokens": sum(judgement.tokens("prompt") for judgement in judgements),
        "completion_tokens": sum(judgement.tokens("completion") for judgement in judgements),
        "seconds": round(seconds, 3),
    }
