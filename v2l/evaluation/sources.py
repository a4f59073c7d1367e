"""Encode the clips of an evaluation: into one adapter each, into one composed of segments, or into a timeline."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from v2l.adapters.adapter import Adapter
from v2l.adapters.asked_time import asked_time
from v2l.adapters.timeline import Timeline
from v2l.evaluation.setting import Setting
from v2l.inference.encode import encode_segments, open_video
from v2l.inference.readings import covered, fill_reading, plan_timeline
from v2l.inference.timeline import make_job
from v2l.io.manifest import Example
from v2l.models.checkpoint import check_belongs
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM
from v2l.video.sampling import Reading

Clip = tuple[Path, float | None, float | None]
"""A video and the bounds of a clip in it, as of `Example.clip`."""


class ClipEncoder:
    """Encodes clips as `v2l encode` does with the same settings.

    The last two timelines are kept in a temporary folder, which is deleted with this object.
    """

    def __init__(self, vlm: FrozenVLM, hypernetwork: Hypernetwork, setting: Setting):
        self.vlm, self.hypernetwork, self.setting = vlm, hypernetwork, setting
        self._last: tuple[Clip, Adapter | Timeline] | None = None
        self._folder: tempfile.TemporaryDirectory | None = None
        self._written = 0

    def encode(self, examples: Sequence[Example]) -> Adapter | Timeline:
        """Return the adapter of the clip that the examples ask about. The last one is cached, because it is the other
        clip of the next one. Raises V2LError if the clip cannot be read."""
        clip = examples[0].clip
        if self._last is None or self._last[0] != clip:
            video, start, end = clip
            reading = replace(self.setting.reading, start=start, end=end)
            prompts = [each.prompt for each in examples]
            self._last = (
                clip,
                self._timeline(video, reading, prompts)
                or encode_segments(video, self.vlm, self.hypernetwork, reading, self.setting.segments),
            )
        return self._last[1]

    def _timeline(self, video: Path, reading: Reading, prompts: Sequence[str]) -> Timeline | None:
        """Return the timeline of a clip; None if the clip is to be one adapter."""
        if self.setting.timeline is None:
            return None
        opened = open_video(video)
        trained_with = check_belongs(self.hypernetwork, self.vlm).trained_with
        wish = replace(self.setting.timeline, frames=reading.frames is not None)
        reading = fill_reading(reading, trained_with, self.vlm.geometry)
        segments = plan_timeline(opened.video, reading, trained_with, wish)
        if not segments:
            return None
        with_index = _needs_index(prompts, covered(opened.video, reading)[1])
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="v2l-eval-")
        self._written += 1
        output = Path(self._folder.name) / f"{self._written % 2}.v2l.safetensors"
        job = make_job(opened, reading, segments, self.hypernetwork, wish, with_index)
        return job.run(self.vlm, self.hypernetwork, output)


def _needs_index(prompts: Sequence[str], duration: float) -> bool:
    """Return whether a question names neither a time nor an end of the video, so that its words choose a segment."""
    asked = [asked_time(prompt, duration) for prompt in prompts]
    return any(not each.stretches and each.relation not in ("first", "last") for each in asked)
