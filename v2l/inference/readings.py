"""Complete the settings with which a video is read, and divide them among its segments. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import replace
from numbers import Integral

from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.models.config import VisionGeometry
from v2l.models.hypernetwork_file import TrainedWith
from v2l.video.client import probe
from v2l.video.sampling import Reading


def fill_reading(reading: Reading, trained_with: TrainedWith, geometry: VisionGeometry) -> Reading:
    """Fill every None except start and end with the value that the hypernetwork was trained with, or with the model's
    own frame size. Raises V2LError if the number of frames, the rate or the resolution is not positive."""
    if isinstance(reading.frames, bool) or not isinstance(reading.frames, Integral | None):
        raise V2LError(f"frames is {reading.frames!r}; give a whole number")
    own_resolution = trained_with.resolution or geometry.longest_edge
    filled = replace(
        reading,
        frames=trained_with.frames if reading.frames is None else int(reading.frames),
        fps=float(trained_with.fps if reading.fps is None else reading.fps),
        resolution=own_resolution if reading.resolution is None else int(reading.resolution),
        start=float(reading.start) if reading.start else None,  # 0 is the beginning
        end=None if reading.end is None else float(reading.end),
    )
    for name in ("frames", "fps", "resolution"):
        if not getattr(filled, name) > 0:
            raise V2LError(f"{name} is {getattr(reading, name)}; give a number above 0")
    return filled


def cut(path: str | os.PathLike, reading: Reading, segments: int | None, seconds: float | None = None) -> list[Reading]:
    """Return the readings of a video's consecutive segments: `segments` of equal length, or as many of `seconds` as
    needed if `segments` is None. Raises V2LError if the video cannot be read or the range is empty."""
    start = reading.start or 0.0
    video = probe(path)
    end = min(video.duration if reading.end is None else reading.end, video.duration)
    if start >= end:
        raise V2LError(f"{printable(path)} ends at {video.duration:.3f} s, before the start at {start:g} s")
    if segments:
        count, length = segments, (end - start) / segments
    else:
        assert seconds is not None, "either the number of segments or their length is given"
        count, length = max(1, -int((start - end) // seconds)), seconds
    starts = [round(start + index * length, 6) for index in range(count)]
    while len(starts) > 1 and starts[-1] > min(video.seconds[-1], end - 1e-6):
        starts.pop()  # the last segment has no frame: merge it into the one before
    while len(starts) > 1 and starts[1] <= video.seconds[0]:
        starts.pop(1)  # the video starts after its sound: merge the first segment into the next one
    return [
        replace(reading, start=begin, end=finish)
        for begin, finish in zip(starts, [*starts[1:], round(end, 6)], strict=True)
    ]


def segment_readings(path: str | os.PathLike, reading: Reading, segments: int) -> list[Reading]:
    """Return the readings that an adapter of `segments` segments is made from: those of `cut`, or `reading` unchanged
    if there is one segment."""
    return [reading] if segments == 1 else cut(path, reading, segments)
