"""A manifest answered in five ways by the same frozen model, question by question.

Beside the adapter and the video in context stand the controls that the paper leaves out: nothing at all, the
hypernetwork's learned bias alone, and another clip's adapter. Only what the adapter gains over those comes from the
video.
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
from v2l.evaluation.ablation import SEGMENT_IN_CONTEXT, WHOLE, ablated
from v2l.evaluation.metrics import METRICS
from v2l.inference.ask import ask_each, ask_each_in_context
from v2l.inference.encode import encode_segments
from v2l.inference.preprocess import fill_reading
from v2l.io.journal import Journal
from v2l.io.manifest import Example, group_by_clip
from v2l.io.records import to_json
from v2l.models.checkpoint import check_belongs
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM
from v2l.video.sampling import Reading

CONDITIONS = ("in_context", "adapter", "nothing", "bias", "other_clip")
"""The video in the prompt; its adapter; neither; the learned bias alone; the adapter of another clip."""


@dataclass(frozen=True)
class Setting:
    """What all answers of an evaluation share.

    conditions: of CONDITIONS and of what ablation.py names
    segments: of how many the adapters are composed; 1 for a single encoding
    in_context_frames: the most that stand in context, where that is not `reading.frames`
    """

    reading: Reading
    max_new_tokens: int
    conditions: tuple[str, ...] = CONDITIONS
    segments: int = 1
    in_context_frames: int | None = None


@dataclass(frozen=True)
class Result:
    """One question's answers and scores, by condition; or why its clip could not be read.

    digest: of the manifest's row, so that the answer to another question is not taken for this one's
    task: "caption" or "qa", which a judge grades differently
    clip: number of its clip, counted in the manifest's order
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
    """Answers a manifest clip by clip and keeps every result in a JSONL file, which a second run goes on from.

    Raises V2LError where the manifest asks about one clip only, or `output` is anything but an evaluation of this
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
        """record: which choice of which benchmark the examples are, written into `output`; a manifest has none
        in_context: answers that evaluations of other settings share, by video, reading, question and length
        """
        provenance = check_belongs(hypernetwork, vlm)
        self.vlm, self.hypernetwork, self.setting = vlm, hypernetwork, setting
        self.clips = {asked[0].clip: asked for asked in group_by_clip(examples)}
        if len(self.clips) < 2:
            raise V2LError("the manifest asks about one clip only; intervals and controls need at least two, add one")
        header = {
            "v2l": 1,
            "model": vlm.fingerprint,
            "hypernetwork": provenance.sha256,
            "dtype": str(vlm.dtype),
            **to_json(setting),
            **({"times": "chosen"} if setting.segments > 1 else {}),  # which segments answer; before, all did
            **(record or {}),
        }
        of = "model, hypernetwork, setting or choice of samples" if record else "model, hypernetwork or setting"
        self.journal = Journal(output, header, "evaluation", of)
        self._in_context = {} if in_context is None else in_context
        self._last: tuple[tuple, Adapter] | None = None
        kept = self._read_back()
        self.done = {
            example.id: dataclasses.replace(kept[example.id, _digest(example)], clip=number)
            for number, asked in enumerate(self.clips.values())
            for example in asked
            if (example.id, _digest(example)) in kept
        }

    def run(self) -> Iterator[Result]:
        """All results in the manifest's order of clips, those of an earlier run first read back."""
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
            other = self._other_clip(key) if "other_clip" in self.setting.conditions else None
            adapter = self._encode(key)
            answers = {
                condition: self._answers(condition, examples, adapter, other) for condition in self.setting.conditions
            }
        except V2LError as error:
            yield from (_result(example, number, {}, str(error)) for example in examples)
            return
        for place, example in enumerate(examples):
            yield _result(example, number, {condition: answers[condition][place] for condition in answers})

    def _other_clip(self, key: tuple) -> Adapter:
        """The adapter of the nearest clip before this one, the last before the first, that is of another video where
        there is one and that can be read."""
        keys = list(self.clips)
        place = keys.index(key)
        before = [*reversed(keys[:place]), *reversed(keys[place + 1 :])]
        for candidate in sorted(before, key=lambda other: other[0] == key[0]):
            try:
                return self._encode(candidate)
            except V2LError:
                continue  # that clip's own turn reports it
        raise V2LError("no other clip can be read, so there is no other clip's adapter to compare with")

    def _encode(self, key: tuple) -> Adapter:
        """A clip's adapter; the last one made is kept, because the next clip asks for it again."""
        if self._last is None or self._last[0] != key:
            video, start, end = key
            reading = dataclasses.replace(self.setting.reading, start=start, end=end)
            self._last = key, encode_segments(video, self.vlm, self.hypernetwork, reading, self.setting.segments)
        return self._last[1]

    def _answers(
        self, condition: str, examples: Sequence[Example], adapter: Adapter, other: Adapter | None
    ) -> list[str]:
        prompts = [example.prompt for example in examples]
        longest = self.setting.max_new_tokens
        chosen = [segments_for(adapter, prompt) for prompt in prompts]
        if condition == "nothing":
            return ask_each(None, prompts, self.vlm, longest)
        if condition == "in_context":
            return self._answers_in_context(examples, [self._reading(examples[0])] * len(examples))
        if condition == SEGMENT_IN_CONTEXT:
            return self._answers_in_context(examples, [self._reading(examples[0], adapter, some) for some in chosen])
        if condition == WHOLE:
            return ask_each([adapter] * len(prompts), prompts, self.vlm, longest, whole=True)
        worn = other if condition == "other_clip" else adapter.bias_alone() if condition == "bias" else adapter
        answers: dict[int, str] = {}
        for some in dict.fromkeys(chosen):  # one by one: together every row would hold factors of its own
            places = [place for place, each in enumerate(chosen) if each == some]
            part = _part(worn, some)
            if condition not in CONDITIONS:
                part = ablated(part, condition)
            asked = [prompts[place] for place in places]
            found = ask_each([part] * len(asked), asked, self.vlm, longest, whole=True)
            answers.update(zip(places, found, strict=True))
        return [answers[place] for place in range(len(prompts))]

    def _reading(self, example: Example, adapter: Adapter | None = None, numbers: Sequence[int] = ()) -> Reading:
        """What of an example's clip stands in context: all of it, or what some segments of its adapter show."""
        reading = dataclasses.replace(self.setting.reading, start=example.start, end=example.end)
        reading = fill_reading(reading, self.hypernetwork.provenance.trained_with, self.vlm.geometry)
        if self.setting.in_context_frames:
            reading = dataclasses.replace(reading, frames=self.setting.in_context_frames)
        if adapter is None or len(numbers) == len(adapter.description.segments):
            return reading
        shown = [adapter.description.segments[number] for number in numbers]
        return dataclasses.replace(reading, start=shown[0].start, end=shown[-1].end)

    def _answers_in_context(self, examples: Sequence[Example], readings: Sequence[Reading]) -> list[str]:
        """Each example's answer with its own reading of their clip in context."""
        video, longest = examples[0].video, self.setting.max_new_tokens
        keys = [(video, reading, each.prompt, longest) for each, reading in zip(examples, readings, strict=True)]
        for reading in dict.fromkeys(key[1] for key in keys if key not in self._in_context):
            asked = [key for key in keys if key[1] == reading and key not in self._in_context]
            answers = ask_each_in_context(video, [key[2] for key in asked], self.vlm, reading, longest)
            self._in_context.update(zip(asked, answers, strict=True))
        return [self._in_context[key] for key in keys]

    def _read_back(self) -> dict[tuple[str, str], Result]:
        """Answered results of an earlier run, by id and digest."""
        try:
            results = [Result(**row) for row in self.journal.rows]
        except TypeError as error:
            raise self.journal.foreign() from error
        return {(result.id, result.digest): result for result in results if result.error is None}


def _part(adapter: Adapter, numbers: Sequence[int]) -> Adapter:
    """Some segments of an adapter, which may be another clip's that has fewer; all where it has none of those."""
    every = range(len(adapter.description.segments))
    return keep_segments(adapter, [number for number in numbers if number in every] or every)


def _result(example: Example, clip: int, answers: dict[str, str], error: str | None = None) -> Result:
    scores = {
        condition: {name: metric(answer, example.target) for name, metric in METRICS.items()}
        for condition, answer in answers.items()
    }
    shown = (example.id, _digest(example), example.task, example.kind, clip, example.prompt, example.target)
    return Result(*shown, answers, scores, error)


def _digest(example: Example) -> str:
    return hashlib.sha256(json.dumps(dataclasses.asdict(example), default=str, sort_keys=True).encode()).hexdigest()
