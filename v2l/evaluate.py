"""A manifest answered in five ways by the same frozen model, question by question.

Beside the adapter and the video in context stand the controls that the paper leaves out: nothing at all, the
hypernetwork's learned bias alone, and another clip's adapter. Only what the adapter gains over those comes from the
video.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from v2l.adapter import Adapter
from v2l.answer import ask_each, ask_in_context
from v2l.errors import V2LError
from v2l.files import printable
from v2l.hypernetwork import Hypernetwork
from v2l.manifest import Example
from v2l.pipeline import check_belongs, encode_reading
from v2l.records import to_json
from v2l.sampling import Reading
from v2l.scoring import METRICS
from v2l.vlm import FrozenVLM
from v2l.watch import fill_reading

CONDITIONS = ("in_context", "adapter", "nothing", "bias", "other_clip")
"""The video in the prompt; its adapter; neither; the learned bias alone; the adapter of another clip."""


@dataclass(frozen=True)
class Setting:
    """What all answers of an evaluation share."""

    reading: Reading
    max_new_tokens: int
    conditions: tuple[str, ...] = CONDITIONS


@dataclass(frozen=True)
class Result:
    """One question's answers and scores, by condition; or why its clip could not be read.

    clip: number of its clip, counted in the manifest's order
    """

    id: str
    kind: str
    clip: int
    prompt: str
    target: str
    answers: dict[str, str]
    scores: dict[str, dict[str, float]]
    error: str | None = None


class Evaluation:
    """Answers a manifest clip by clip and keeps every result in a JSONL file, which a second run goes on from."""

    def __init__(
        self, examples: Sequence[Example], vlm: FrozenVLM, hypernetwork: Hypernetwork, setting: Setting, output: Path
    ):
        origin = check_belongs(hypernetwork, vlm)
        self.vlm, self.hypernetwork, self.setting, self.output = vlm, hypernetwork, setting, output
        self.clips: dict[tuple, list[Example]] = {}
        for example in examples:
            self.clips.setdefault(example.clip, []).append(example)
        if "other_clip" in setting.conditions and len(self.clips) < 2:
            raise V2LError(
                "another clip's adapter needs a second clip; add one to the manifest, or leave that control out"
            )
        header = {
            "v2l": 1,
            "model": vlm.fingerprint,
            "hypernetwork": origin.sha256,
            "dtype": str(vlm.dtype),
            **to_json(setting),
        }
        self.header = json.loads(json.dumps(header))  # as it comes back from the file
        self.done = self._read_back()

    def run(self) -> Iterator[Result]:
        """All results in the manifest's order of clips, those of an earlier run first read back."""
        keys = list(self.clips)
        with open(self.output, "a", encoding="utf-8") as file:
            if not self.done and file.tell() == 0:
                _write_line(file, self.header)
            previous: Adapter | None = None
            for number, key in enumerate(keys):
                left = [example for example in self.clips[key] if example.id not in self.done]
                yield from (self.done[example.id] for example in self.clips[key] if example.id in self.done)
                if not left:
                    previous = None  # its adapter was not made in this run
                    continue
                adapter, results = self._answer_clip(number, keys, left, previous)
                previous = adapter or previous
                for result in results:
                    _write_line(file, dataclasses.asdict(result))
                    yield result

    def _answer_clip(
        self, number: int, keys: list[tuple], examples: Sequence[Example], previous: Adapter | None
    ) -> tuple[Adapter | None, list[Result]]:
        try:
            adapter = self._encode(keys[number])
            other = None
            if "other_clip" in self.setting.conditions:
                other = previous or self._other_clip(number, keys)
            answers = {
                condition: self._answers(condition, examples, adapter, other) for condition in self.setting.conditions
            }
        except V2LError as error:
            return None, [_unanswered(example, number, str(error)) for example in examples]
        return adapter, [
            _scored(example, number, {condition: answers[condition][place] for condition in answers})
            for place, example in enumerate(examples)
        ]

    def _other_clip(self, number: int, keys: list[tuple]) -> Adapter:
        """The adapter of the nearest clip before this one that can be read; the last comes before the first."""
        for back in range(1, len(keys)):
            try:
                return self._encode(keys[number - back])
            except V2LError:
                continue  # that clip's own turn reports it
        raise V2LError("no other clip can be read, so there is no other clip's adapter to compare with")

    def _encode(self, key: tuple) -> Adapter:
        video, start, end = key
        reading = dataclasses.replace(self.setting.reading, start=start, end=end)
        return encode_reading(video, self.vlm, self.hypernetwork, reading)

    def _answers(
        self, condition: str, examples: Sequence[Example], adapter: Adapter, other: Adapter | None
    ) -> list[str]:
        prompts = [example.prompt for example in examples]
        longest = self.setting.max_new_tokens
        if condition == "in_context":
            reading = dataclasses.replace(self.setting.reading, start=examples[0].start, end=examples[0].end)
            reading = fill_reading(reading, self.hypernetwork.origin.trained_with, self.vlm.geometry)
            return [ask_in_context(example.video, example.prompt, self.vlm, reading, longest) for example in examples]
        if condition == "nothing":
            return ask_each(None, prompts, self.vlm, longest)
        worn = {"adapter": adapter, "bias": bias_alone(adapter), "other_clip": other}[condition]
        return ask_each([worn] * len(prompts), prompts, self.vlm, longest)

    def _read_back(self) -> dict[str, Result]:
        """Results of an earlier run with the same setting. Raises V2LError where the file is of another."""
        if not self.output.exists() or self.output.stat().st_size == 0:
            return {}
        whole, _, cut_off = self.output.read_text(encoding="utf-8").rpartition("\n")
        if cut_off:  # the last run was ended in the middle of a line
            with open(self.output, "w", encoding="utf-8") as file:
                file.write(whole + "\n" if whole else "")
        lines = whole.splitlines()
        if not lines:
            return {}
        try:
            header, *rows = [json.loads(line) for line in lines]
            results = [Result(**row) for row in rows]
        except (ValueError, TypeError) as error:
            raise V2LError(f"{printable(self.output)} is no evaluation to go on from; name another file") from error
        if header != self.header:
            raise V2LError(
                f"{printable(self.output)} was made with another model, hypernetwork or setting; name another file"
            )
        return {result.id: result for result in results if result.error is None}


def bias_alone(adapter: Adapter) -> Adapter:
    """The adapter with its generated ranks at zero: what the hypernetwork says of any video."""
    b = adapter.b.clone()
    b[:, : adapter.rank - adapter.description.bias_rank] = 0
    return dataclasses.replace(adapter, b=b)


def _unanswered(example: Example, clip: int, error: str) -> Result:
    return Result(example.id, example.kind, clip, example.prompt, example.target, {}, {}, error)


def _scored(example: Example, clip: int, answers: dict[str, str]) -> Result:
    scores = {
        condition: {name: metric(answer, example.target) for name, metric in METRICS.items()}
        for condition, answer in answers.items()
    }
    return Result(example.id, example.kind, clip, example.prompt, example.target, answers, scores)


def _write_line(file: TextIO, record: dict[str, Any]) -> None:
    """One record at the end of the file, there before the next is begun."""
    file.write(json.dumps(record) + "\n")
    file.flush()
