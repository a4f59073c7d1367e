"""Answer the questions about one clip under a condition, and record how much of the video the condition uses."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from v2l.adapters.adapter import Adapter
from v2l.adapters.asked_time import asked_time
from v2l.adapters.description import MAX_RANK, Segment
from v2l.adapters.routing import Route, RoutedBy
from v2l.adapters.segments import keep_segments, segments_for
from v2l.adapters.timeline import Timeline
from v2l.adapters.timeline_description import tensor_names
from v2l.evaluation.ablation import ablated
from v2l.evaluation.conditions import (
    ADAPTER,
    BIAS,
    IN_CONTEXT,
    NOTHING,
    OTHER_CLIP,
    OVERVIEW,
    SEGMENT_IN_CONTEXT,
    WHOLE,
    BasicCondition,
    Condition,
)
from v2l.evaluation.setting import Setting
from v2l.inference.ask import ask_each, ask_each_in_context
from v2l.inference.preprocess import plan_frames
from v2l.inference.readings import fill_reading
from v2l.io.manifest import Example
from v2l.models.checkpoint import check_belongs
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.processor import video_text
from v2l.models.smolvlm import FrozenVLM
from v2l.video.client import probe
from v2l.video.sampling import Reading

Encoded = Adapter | Timeline


@dataclass(frozen=True)
class VideoUse:
    """The part of a clip that an answer was given from.

    timestamps: seconds of its frames; visual_tokens: image tokens in the prompt
    used_bytes: size of the attached adapter, or of the KV cache of the frames in the prompt
    """

    timestamps: tuple[float, ...]
    visual_tokens: int
    used_bytes: int

    def record(self, prompt: str, duration: float) -> dict[str, Any]:
        """As JSON. For a question that names times, `answerable` states whether all of them are shown: a frame of the
        whole second, or a frame in the stretch."""
        found: dict[str, Any] = {"visual_tokens": self.visual_tokens, "bytes": self.used_bytes}
        stretches = asked_time(prompt, duration).stretches
        if not stretches:
            return found
        seconds = {math.floor(each) for each in self.timestamps}
        shown = [any(math.floor(start) <= second <= end for second in seconds) for start, end in stretches]
        return found | {"answerable": all(shown)}


@dataclass(frozen=True)
class ConditionAnswer:
    """An answer under a condition. use: None if the condition shows nothing of the clip"""

    text: str
    use: VideoUse | None = None


class ClipAnswerer:
    """Answers questions under the conditions of a setting.

    in_context: answers in context so far, by video, reading, question and length
    """

    def __init__(
        self, vlm: FrozenVLM, hypernetwork: Hypernetwork, setting: Setting, in_context: dict[tuple, str] | None = None
    ):
        self.vlm, self.setting = vlm, setting
        self.trained_with = check_belongs(hypernetwork, vlm).trained_with
        self._in_context = {} if in_context is None else in_context
        self._uses: dict[tuple[Path, Reading], VideoUse] = {}

    def applies(self, condition: Condition, source: Encoded) -> bool:
        """Return whether a clip can be answered under a condition: all segments of a timeline may be too many."""
        if condition != WHOLE or isinstance(source, Adapter):
            return True
        return source.description.describe(source.description.segments).rank <= MAX_RANK

    def answer(
        self, condition: Condition, examples: Sequence[Example], source: Encoded, other: Encoded | None
    ) -> list[ConditionAnswer]:
        """Answer the questions about one clip.

        source: the encoded clip; other: another clip, for `OTHER_CLIP`
        Raises V2LError if the clip cannot be read, or if a question asks about a time outside of it.
        """
        prompts, longest = [example.prompt for example in examples], self.setting.max_new_tokens
        if condition == NOTHING:
            return [ConditionAnswer(text) for text in ask_each(None, prompts, self.vlm, longest)]
        routes = [route(source, prompt) for prompt in prompts]
        if condition in (IN_CONTEXT, SEGMENT_IN_CONTEXT):
            shown = source if condition == SEGMENT_IN_CONTEXT else None
            return self._answer_in_context(examples, self._readings(examples, shown, routes))
        if condition == ADAPTER and isinstance(source, Timeline):
            texts = ask_each([source] * len(prompts), prompts, self.vlm, longest)
            uses = [_use_of_timeline(source, each) for each in routes]
            return [ConditionAnswer(text, use) for text, use in zip(texts, uses, strict=True)]
        parts = _parts(condition, routes, source, other)
        shows_clip = condition not in (BIAS, OTHER_CLIP)
        answers: dict[int, ConditionAnswer] = {}
        for part in {id(part): part for part in parts}.values():  # in groups: together, each row would hold factors
            group = [index for index, each in enumerate(parts) if each is part]
            found = ask_each([part] * len(group), [prompts[index] for index in group], self.vlm, longest, whole=True)
            use = _use_of_adapter(part) if shows_clip else None
            answers.update({index: ConditionAnswer(text, use) for index, text in zip(group, found, strict=True)})
        return [answers[index] for index in range(len(prompts))]

    # In context ------------------------------------------------------------------------------------------------

    def _readings(self, examples: Sequence[Example], source: Encoded | None, routes: Sequence[Route]) -> list[Reading]:
        """Return what is in context for each question: the whole clip, or the segments that it is routed to if
        `source` is given."""
        start, end = examples[0].start, examples[0].end
        whole = replace(self.setting.reading, start=start, end=end)
        whole = fill_reading(whole, self.trained_with, self.vlm.geometry)
        most = self.setting.in_context_frames
        if most is None and self.setting.timeline is not None:
            most = self._most_frames(examples, whole)
        whole = replace(whole, frames=most or whole.frames)
        if source is None:
            return [whole] * len(examples)
        segments = _segments(source)
        readings = []
        for each in routes:
            shown = [segments[number] for number in each.segments]
            if self.setting.timeline is not None:
                readings.append(_own_frames(shown, most) if shown else whole)
            elif len(shown) == len(segments):
                readings.append(whole)
            else:
                readings.append(replace(whole, start=shown[0].start, end=shown[-1].end))
        return readings

    def _most_frames(self, examples: Sequence[Example], reading: Reading) -> int:
        """Return how many frames of a clip fit in context beside its longest question and an answer."""
        video, prompts = probe(examples[0].video), [example.prompt for example in examples]
        question = max(prompts, key=lambda prompt: len(self.vlm.tokenize(prompt)))

        def too_long(frames: int) -> bool:
            plan = plan_frames(video, self.vlm, replace(reading, frames=frames))
            text = video_text(plan.frames, video.duration, question, self.vlm.geometry, generation_prompt=True)
            return len(self.vlm.tokenize(text)) + self.setting.max_new_tokens > self.vlm.max_positions

        upper = self.vlm.max_positions // self.vlm.geometry.tokens_per_image + 1
        return max(1, bisect_left(range(1, upper + 1), True, key=too_long))

    def _answer_in_context(self, examples: Sequence[Example], readings: Sequence[Reading]) -> list[ConditionAnswer]:
        """Answer each example with its own reading of the clip in context."""
        video, longest = examples[0].video, self.setting.max_new_tokens
        keys = [(video, reading, each.prompt, longest) for each, reading in zip(examples, readings, strict=True)]
        for reading in dict.fromkeys(key[1] for key in keys if key not in self._in_context):
            new = [key for key in keys if key[1] == reading and key not in self._in_context]
            answers = ask_each_in_context(video, [key[2] for key in new], self.vlm, reading, longest)
            self._in_context.update(zip(new, answers, strict=True))
        return [
            ConditionAnswer(self._in_context[key], self._use_in_context(video, reading))
            for key, reading in zip(keys, readings, strict=True)
        ]

    def _use_in_context(self, video: Path, reading: Reading) -> VideoUse:
        if (video, reading) not in self._uses:
            plan = plan_frames(probe(video), self.vlm, reading)
            ids = self.vlm.tokenize(video_text(plan.frames, plan.video.duration, "", self.vlm.geometry))
            visual, size = int((ids == self.vlm.image_token_id).sum()), self.vlm.kv_bytes(len(ids))
            timestamps = tuple(frame.seconds for frame in plan.frames)
            self._uses[video, reading] = VideoUse(timestamps, visual, size)
        return self._uses[video, reading]


def route(source: Encoded, question: str) -> Route:
    """Return the segments that answer a question, as `v2l ask` chooses them. Raises V2LError if the question asks about
    a position outside of a timeline."""
    if isinstance(source, Timeline):
        return source.router.route(question)
    numbers = segments_for(source, question)
    return Route(RoutedBy.whole if len(numbers) == len(source.description.segments) else RoutedBy.time, numbers)


def duration(source: Encoded) -> float:
    """Return the end of an encoded clip, in seconds of its video."""
    return source.description.segments[-1].end


def _segments(source: Encoded) -> list[Segment]:
    if isinstance(source, Timeline):
        return [source.description.segment(part) for part in source.description.segments]
    return list(source.description.segments)


def _parts(condition: Condition, routes: Sequence[Route], source: Encoded, other: Encoded | None) -> list[Adapter]:
    """Return the adapter that answers each question under a condition; equal ones are the same object."""
    if condition in (WHOLE, OVERVIEW, BIAS):
        one = source
        if isinstance(one, Timeline):
            one = one.whole() if condition == WHOLE else one.overview()
        return [one.bias_alone() if condition == BIAS else one] * len(routes)
    if condition == OTHER_CLIP:
        assert other is not None, "an evaluation encodes the other clip for this condition"
        source = other
    parts = {each: _part(source, each) for each in dict.fromkeys(routes)}
    if not isinstance(condition, BasicCondition):
        parts = {each: ablated(part, condition) for each, part in parts.items()}
    return [parts[each] for each in routes]


def _part(source: Encoded, chosen: Route) -> Adapter:
    """Return the adapter of the segments of a route; the whole of a source that, as another clip may, has none of
    those."""
    every = range(len(source.description.segments))
    numbers = [number for number in chosen.segments if number in every]
    if isinstance(source, Adapter):
        return keep_segments(source, numbers or every)
    is_whole = not numbers or chosen.one_by_one or chosen.routed_by == RoutedBy.whole
    return source.overview() if is_whole else source.select(numbers)


def _own_frames(segments: Sequence[Segment], most: int | None) -> Reading:
    """Return a reading of the frames that segments were encoded from, or of as many of them as are allowed."""
    frames = sum(segment.reading.frames or 0 for segment in segments)
    frames = frames if most is None else min(frames, most)
    first = segments[0].reading
    if len(segments) == 1:
        return replace(first, frames=frames)
    return replace(first, frames=frames, end=segments[-1].end)


def _use_of_adapter(part: Adapter) -> VideoUse:
    timestamps = (seconds for segment in part.description.segments for seconds in segment.timestamps)
    return VideoUse(tuple(timestamps), 0, part.a.nbytes + part.b.nbytes)


def _use_of_timeline(timeline: Timeline, chosen: Route) -> VideoUse:
    description = timeline.description
    parts = [description.segments[number] for number in chosen.segments]
    parts = parts or [description.overview] if description.overview else parts
    bias = [timeline.file.entries[name] for name in tensor_names("bias")]
    bytes_per_rank = sum(entry.stop - entry.start for entry in bias) // description.bias_rank
    attached = description.describe(parts[:1] if chosen.one_by_one else parts)
    timestamps = (seconds for part in parts for seconds in part.timestamps)
    return VideoUse(tuple(timestamps), 0, bytes_per_rank * attached.rank)
