"""Answer a manifest under several conditions with the same frozen model, question by question.

Besides the adapter and the video in context there are controls that the paper does not have: no video, the learned bias
of the hypernetwork alone, and the adapter of another clip. Only the gain over those comes from the video.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2l.adapters.adapter import Adapter
from v2l.adapters.timeline import Timeline
from v2l.errors import ModelError, V2LError
from v2l.evaluation.answering import ClipAnswerer, ConditionAnswer, duration, route
from v2l.evaluation.conditions import OTHER_CLIP
from v2l.evaluation.metrics import METRICS
from v2l.evaluation.setting import Setting
from v2l.evaluation.sources import ClipEncoder
from v2l.io.journal import Journal
from v2l.io.manifest import Example, group_by_clip
from v2l.models.checkpoint import check_belongs
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM


@dataclass(frozen=True)
class Result:
    """The answers and scores of a question by name of the condition, or the error of its clip.

    digest: of the manifest's row, so that a changed row is answered again
    task: "caption" or "qa", which have different rubrics
    clip: index of its clip in the manifest's order
    uses: the part of the clip that each answer was given from, see `VideoUse.record`
    """

    id: str
    digest: str
    task: str
    kind: str
    clip: int
    prompt: str
    target: str
    answers: dict[str, str]
    scores: dict[str, dict[str, float]]
    error: str | None = None
    uses: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


class Evaluation:
    """Answers a manifest clip by clip and appends every result to a JSONL file, from which a second run resumes.

    Raises V2LError if the manifest asks about one clip only, or if `output` exists and is not an evaluation of this
    model, hypernetwork and setting.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        vlm: FrozenVLM,
        hypernetwork: Hypernetwork,
        setting: Setting,
        output: Path,
        record: Mapping[str, Any] | None = None,
        in_context: dict[tuple, str] | None = None,
    ):
        """record: the benchmark and the choice of its samples, written into `output`; None for a manifest
        in_context: answers shared with evaluations of other settings, by video, reading, question and length
        """
        self.provenance = check_belongs(hypernetwork, vlm)
        self.vlm, self.hypernetwork, self.setting = vlm, hypernetwork, setting
        self.clips = {asked[0].clip: asked for asked in group_by_clip(examples)}
        if len(self.clips) < 2:
            raise V2LError("the manifest asks about one clip only; intervals and controls need at least two, add one")
        header = {
            "v2l": 1,
            "model": vlm.fingerprint,
            "hypernetwork": self.provenance.sha256,
            "dtype": str(vlm.dtype),
            **setting.record(),
            **({"times": "chosen"} if setting.segments > 1 else {}),  # segments are selected by time; once all answered
            **(record or {}),
        }
        of = "model, hypernetwork, setting or choice of samples" if record else "model, hypernetwork or setting"
        self.journal = Journal(output, header, "evaluation", of)
        self._encoder = ClipEncoder(vlm, hypernetwork, setting)
        self._answerer = ClipAnswerer(vlm, hypernetwork, setting, in_context)
        finished = self._read_back()
        self.done = {
            example.id: dataclasses.replace(finished[example.id, _digest(example)], clip=number)
            for number, asked in enumerate(self.clips.values())
            for example in asked
            if (example.id, _digest(example)) in finished
        }

    def run(self) -> Iterator[Result]:
        """Yield all results by clip in the manifest's order. Those of an earlier run are read from the file."""
        with self.journal:
            for number, asked in enumerate(self.clips.values()):
                yield from (self.done[example.id] for example in asked if example.id in self.done)
                for result in self._answer_clip(number, [each for each in asked if each.id not in self.done]):
                    self.journal.add(dataclasses.asdict(result))
                    yield result

    def _answer_clip(self, number: int, examples: Sequence[Example]) -> Iterator[Result]:
        if not examples:
            return
        key = examples[0].clip
        try:
            other = self._other_clip(key) if OTHER_CLIP in self.setting.conditions else None
            source = self._encoder.encode(self.clips[key])
            refused = {example.id: error for example in examples if (error := _refusal(source, example))}
            asked = [example for example in examples if example.id not in refused]
            answers = {
                condition.name: self._answerer.answer(condition, asked, source, other)
                for condition in self.setting.conditions
                if self._answerer.applies(condition, source)
            }
        except ModelError:  # out of memory, as on every other clip
            raise
        except V2LError as error:
            yield from (_result(example, number, {}, error=str(error)) for example in examples)
            return
        places = {example.id: place for place, example in enumerate(asked)}
        for example in examples:
            own = {name: found[places[example.id]] for name, found in answers.items() if example.id in places}
            yield _result(example, number, own, duration(source), refused.get(example.id))

    def _other_clip(self, key: tuple) -> Adapter | Timeline:
        """Return the adapter of the nearest readable clip before this one, cyclically; clips of other videos first."""
        keys = list(self.clips)
        index = keys.index(key)
        candidates = [*reversed(keys[:index]), *reversed(keys[index + 1 :])]
        for candidate in sorted(candidates, key=lambda other: other[0] == key[0]):
            try:
                return self._encoder.encode(self.clips[candidate])
            except ModelError:
                raise
            except V2LError:
                continue  # the error is reported with the clip itself
        raise V2LError("no other clip can be read, so there is no other clip's adapter to compare with")

    def _read_back(self) -> dict[tuple[str, str], Result]:
        """Read the answered results of an earlier run, by id and digest."""
        try:
            results = [Result(**row) for row in self.journal.rows]
        except TypeError as error:
            raise self.journal.foreign() from error
        return {(result.id, result.digest): result for result in results if result.error is None}


def _refusal(source: Adapter | Timeline, example: Example) -> str | None:
    """Return the error of a question that asks about a time outside of the clip."""
    try:
        route(source, example.prompt)
    except V2LError as error:
        return str(error)
    return None


def _result(
    example: Example,
    clip: int,
    answers: Mapping[str, ConditionAnswer],
    duration: float = 0.0,
    error: str | None = None,
) -> Result:
    """Return a scored result. duration: of the clip; error: of a question that was not answered"""
    scores = {
        condition: {metric: score(answer.text, example.target) for metric, score in METRICS.items()}
        for condition, answer in answers.items()
    }
    uses = {name: each.use.record(example.prompt, duration) for name, each in answers.items() if each.use}
    about = (example.id, _digest(example), example.task, example.kind, clip, example.prompt, example.target)
    return Result(*about, {name: answer.text for name, answer in answers.items()}, scores, error, uses)


def _digest(example: Example) -> str:
    return hashlib.sha256(json.dumps(dataclasses.asdict(example), default=str, sort_keys=True).encode()).hexdigest()
