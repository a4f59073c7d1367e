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
from v2l.adapters.segments import keep_segments, segments_for
from v2l.errors import V2LError
from v2l.evaluation.ablation import ablated
from v2l.evaluation.conditions import (
    BIAS,
    CONDITIONS,
    IN_CONTEXT,
    NOTHING,
    OTHER_CLIP,
    SEGMENT_IN_CONTEXT,
    WHOLE,
    BasicCondition,
    Condition,
)
from v2l.evaluation.metrics import METRICS
from v2l.inference.ask import ask_each, ask_each_in_context
from v2l.inference.encode import encode_segments
from v2l.inference.readings import fill_reading
from v2l.io.journal import Journal
from v2l.io.manifest import Example, group_by_clip
from v2l.io.records import to_json
from v2l.models.checkpoint import check_belongs
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM
from v2l.video.sampling import Reading


@dataclass(frozen=True)
class Setting:
    """The settings that all answers of an evaluation share.

    conditions: any of CONDITIONS and of `ablations`
    segments: number of segments that each adapter is composed of
    in_context_frames: maximum number of frames in context, None for `reading.frames`
    """

    reading: Reading
    max_new_tokens: int
    conditions: tuple[Condition, ...] = CONDITIONS
    segments: int = 1
    in_context_frames: int | None = None

    def record(self) -> dict[str, Any]:
        """As JSON, the conditions by name."""
        return to_json(self) | {"conditions": [condition.name for condition in self.conditions]}


@dataclass(frozen=True)
class Result:
    """The answers and scores of a question by name of the condition, or the error of its clip.

    digest: of the manifest's row, so that a changed row is answered again
    task: "caption" or "qa", which have different rubrics
    clip: index of its clip in the manifest's order
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
        self._in_context = {} if in_context is None else in_context
        self._last: tuple[tuple, Adapter] | None = None
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
            adapter = self._encode(key)
            answers = {
                condition.name: self._answers(condition, examples, adapter, other)
                for condition in self.setting.conditions
            }
        except V2LError as error:
            yield from (_result(example, number, {}, str(error)) for example in examples)
            return
        for index, example in enumerate(examples):
            yield _result(example, number, {name: texts[index] for name, texts in answers.items()})

    def _other_clip(self, key: tuple) -> Adapter:
        """Return the adapter of the nearest readable clip before this one, cyclically; clips of other videos first."""
        keys = list(self.clips)
        index = keys.index(key)
        candidates = [*reversed(keys[:index]), *reversed(keys[index + 1 :])]
        for candidate in sorted(candidates, key=lambda other: other[0] == key[0]):
            try:
                return self._encode(candidate)
            except V2LError:
                continue  # the error is reported with the clip itself
        raise V2LError("no other clip can be read, so there is no other clip's adapter to compare with")

    def _encode(self, key: tuple) -> Adapter:
        """Return the adapter of a clip. The last one is cached, because it is the other clip of the next one."""
        if self._last is None or self._last[0] != key:
            video, start, end = key
            reading = dataclasses.replace(self.setting.reading, start=start, end=end)
            self._last = key, encode_segments(video, self.vlm, self.hypernetwork, reading, self.setting.segments)
        return self._last[1]

    def _answers(
        self, condition: Condition, examples: Sequence[Example], adapter: Adapter, other: Adapter | None
    ) -> list[str]:
        """Answer the questions about one clip under a condition."""
        prompts = [example.prompt for example in examples]
        longest = self.setting.max_new_tokens
        asked = [segments_for(adapter, prompt) for prompt in prompts]
        if condition == NOTHING:
            return ask_each(None, prompts, self.vlm, longest)
        if condition == IN_CONTEXT:
            return self._answers_in_context(examples, [self._reading(examples[0])] * len(examples))
        if condition == SEGMENT_IN_CONTEXT:
            return self._answers_in_context(examples, [self._reading(examples[0], adapter, some) for some in asked])
        if condition == WHOLE:
            return ask_each([adapter] * len(prompts), prompts, self.vlm, longest, whole=True)
        source = adapter
        if condition == OTHER_CLIP:
            assert other is not None, "_answer_clip encodes the other clip for this condition"
            source = other
        elif condition == BIAS:
            source = adapter.bias_alone()
        answers: dict[int, str] = {}
        for segments in dict.fromkeys(asked):  # one group at a time: together, every row would hold its own factors
            part = _part(source, segments)
            if not isinstance(condition, BasicCondition):
                part = ablated(part, condition)
            group = [index for index, each in enumerate(asked) if each == segments]
            found = ask_each([part] * len(group), [prompts[index] for index in group], self.vlm, longest, whole=True)
            answers.update(zip(group, found, strict=True))
        return [answers[index] for index in range(len(prompts))]

    def _reading(self, example: Example, adapter: Adapter | None = None, segments: Sequence[int] = ()) -> Reading:
        """Return the part of an example's clip that is in context: all of it, or the range of some segments."""
        reading = dataclasses.replace(self.setting.reading, start=example.start, end=example.end)
        reading = fill_reading(reading, self.provenance.trained_with, self.vlm.geometry)
        if self.setting.in_context_frames:
            reading = dataclasses.replace(reading, frames=self.setting.in_context_frames)
        if adapter is None or len(segments) == len(adapter.description.segments):
            return reading
        shown = [adapter.description.segments[number] for number in segments]
        return dataclasses.replace(reading, start=shown[0].start, end=shown[-1].end)

    def _answers_in_context(self, examples: Sequence[Example], readings: Sequence[Reading]) -> list[str]:
        """Answer each example with its own reading of the clip in context."""
        video, longest = examples[0].video, self.setting.max_new_tokens
        keys = [(video, reading, each.prompt, longest) for each, reading in zip(examples, readings, strict=True)]
        for reading in dict.fromkeys(key[1] for key in keys if key not in self._in_context):
            new = [key for key in keys if key[1] == reading and key not in self._in_context]
            answers = ask_each_in_context(video, [key[2] for key in new], self.vlm, reading, longest)
            self._in_context.update(zip(new, answers, strict=True))
        return [self._in_context[key] for key in keys]

    def _read_back(self) -> dict[tuple[str, str], Result]:
        """Read the answered results of an earlier run, by id and digest."""
        try:
            results = [Result(**row) for row in self.journal.rows]
        except TypeError as error:
            raise self.journal.foreign() from error
        return {(result.id, result.digest): result for result in results if result.error is None}


def _part(adapter: Adapter, segments: Sequence[int]) -> Adapter:
    """Return the adapter of some segments; all of them if it, as another clip's may, has none of those."""
    every = range(len(adapter.description.segments))
    return keep_segments(adapter, [number for number in segments if number in every] or every)


def _result(example: Example, clip: int, answers: dict[str, str], error: str | None = None) -> Result:
    scores = {
        condition: {metric: score(answer, example.target) for metric, score in METRICS.items()}
        for condition, answer in answers.items()
    }
    about = (example.id, _digest(example), example.task, example.kind, clip, example.prompt, example.target)
    return Result(*about, answers, scores, error)


def _digest(example: Example) -> str:
    return hashlib.sha256(json.dumps(dataclasses.asdict(example), default=str, sort_keys=True).encode()).hexdigest()
