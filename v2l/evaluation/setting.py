"""The settings of an evaluation, as they stand in the header of its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from v2l.adapters.timeline_description import Segmentation
from v2l.evaluation.conditions import CONDITIONS, Condition
from v2l.io.records import to_json
from v2l.video.sampling import Reading


@dataclass(frozen=True)
class Setting:
    """The settings that all answers of an evaluation share.

    reading: of each clip, or of each segment of a timeline
    conditions: any of CONDITIONS and of `ablations`
    segments: number of segments that each adapter is composed of
    in_context_frames: maximum number of frames in context, None for `reading.frames`, or for as many as fit beside a
        timeline
    timeline: the wish for segments of timelines, as of `v2l encode`; None encodes each clip once
    """

    reading: Reading
    max_new_tokens: int
    conditions: tuple[Condition, ...] = CONDITIONS
    segments: int = 1
    in_context_frames: int | None = None
    timeline: Segmentation | None = None

    def record(self) -> dict[str, Any]:
        """As JSON, the conditions by name. Without timelines it does not mention them, so that it stays that of earlier
        files."""
        written = to_json(self) | {"conditions": [condition.name for condition in self.conditions]}
        if self.timeline is None:
            del written["timeline"]
        return written
