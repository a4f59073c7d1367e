"""Models of lmms-eval (0.7): `v2l`, the adapter of each video, and `v2l_in_context`, the video in the prompt.

lmms-eval finds `MODELS` through the entry point group `lmms_eval.models`; nothing of v2l imports this module. Requests
are grouped by video and range, each of which is encoded once. Answers are greedy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from v2l.adapters.timeline_description import Segmentation
from v2l.errors import V2LError
from v2l.evaluation.setting import Setting
from v2l.evaluation.sources import ClipEncoder
from v2l.inference.ask import ask_each, ask_each_in_context
from v2l.inference.limits import MAX_NEW_TOKENS
from v2l.inference.model_loader import ModelLoader, choose_model
from v2l.inference.readings import fill_reading
from v2l.io.manifest import Example
from v2l.io.text import printable
from v2l.models.checkpoint import check_belongs
from v2l.video.sampling import Reading

MODELS = tuple(
    ModelManifest(model_id=name, simple_class_path=f"{__name__}.{model}")
    for name, model in (("v2l", "AdapterModel"), ("v2l_in_context", "InContextModel"))
)
"""What lmms-eval registers: the ids for its option `--model`."""


class AdapterModel(lmms):
    """Answers from an adapter of the video; a long one becomes a timeline, as with `v2l encode`."""

    def __init__(
        self,
        model: str | None = None,
        hypernetwork: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        frames: int | None = None,
        fps: float | None = None,
        resolution: int | None = None,
        **batching: object,
    ):
        """Load a model. The arguments are those of `--model_args`; None as in `v2l eval`.

        batching: `batch_size` and `max_batch_size`, which have no effect: the questions about one video are a batch
        Raises V2LError for any other argument, or if the model or its hypernetwork cannot be loaded.
        """
        if unknown := set(batching) - {"batch_size", "max_batch_size"}:
            raise V2LError(f"--model_args: v2l has no {printable(', '.join(sorted(unknown)))}")
        super().__init__()
        self.vlm, self.hypernetwork = ModelLoader(*choose_model(model), hypernetwork, device, dtype).load()
        reading = Reading(
            frames=None if frames is None else int(frames),
            fps=None if fps is None else float(fps),
            resolution=None if resolution is None else int(resolution),
        )
        self.setting = Setting(reading, MAX_NEW_TOKENS, timeline=Segmentation())
        self._encoder = ClipEncoder(self.vlm, self.hypernetwork, self.setting)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests, in their order.

        requests: instances whose `args` are prompt, settings of the generation, function from a sample to its visuals,
            number of the sample, task and split
        Raises V2LError if the visuals of a sample are not one video file, or if a video cannot be read or answered.
        """
        groups: dict[tuple, dict[int, list[int]]] = {}
        examples: dict[int, Example] = {}
        for place, request in enumerate(requests):
            prompt, settings, visuals, number, task, split = request.args
            video = _video(visuals(self.task_dict[task][split][number]), f"{task}, sample {number}")
            examples[place] = Example(str(place), video[0], "qa", task, prompt, "", *video[1:])
            tokens = int(settings.get("max_new_tokens", MAX_NEW_TOKENS))
            groups.setdefault(video, {}).setdefault(tokens, []).append(place)
        answers = [""] * len(requests)
        for batches in groups.values():
            everything = [examples[place] for places in batches.values() for place in places]
            for tokens, places in batches.items():
                found = self._answer([examples[place] for place in places], everything, tokens)
                for place, answer in zip(places, found, strict=True):
                    answers[place] = _until(answer, requests[place].args[1].get("until") or [])
        return answers

    def _answer(self, examples: Sequence[Example], everything: Sequence[Example], tokens: int) -> list[str]:
        """Answer some of the questions about one clip. everything: all of them"""
        source = self._encoder.encode(everything)
        return ask_each([source] * len(examples), [each.prompt for each in examples], self.vlm, tokens)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raises V2LError: tasks that compare given answers are not supported."""
        raise V2LError("v2l runs tasks of lmms-eval whose output_type is generate_until; this one needs loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raises V2LError: tasks of several rounds are not supported."""
        raise V2LError("v2l answers single questions; this task of lmms-eval has several rounds")


class InContextModel(AdapterModel):
    """Answers with the video in the prompt, from as many frames as one adapter is made of."""

    def _answer(self, examples: Sequence[Example], everything: Sequence[Example], tokens: int) -> list[str]:
        video, start, end = examples[0].clip
        reading = replace(self.setting.reading, start=start, end=end)
        trained_with = check_belongs(self.hypernetwork, self.vlm).trained_with
        reading = fill_reading(reading, trained_with, self.vlm.geometry)
        return ask_each_in_context(video, [each.prompt for each in examples], self.vlm, reading, tokens)


def _video(visuals: Sequence[Any], sample: str) -> tuple[Path, float | None, float | None]:
    """Return the video of a sample and its range: a path, or a mapping with `video`, `video_start` and `video_end` as
    in qwen-vl-utils. Raises V2LError for anything else."""
    if len(visuals) == 1:
        (visual,) = visuals
        found = visual if isinstance(visual, Mapping) else {"video": visual}
        video, start, end = (found.get(name) for name in ("video", "video_start", "video_end"))
        if isinstance(video, str | os.PathLike):
            return Path(video), start, end
    raise V2LError(f"{printable(sample)}: its visuals are not one video file; v2l answers about videos alone")


def _until(answer: str, stops: str | Sequence[str]) -> str:
    """Return an answer up to the first of the stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops:
        answer = answer.partition(stop)[0] if stop else answer
    return answer
