"""Complete the settings with which a video is read, and divide them among its segments. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Integral

from v2l.adapters.timeline_description import Segmentation
from v2l.errors import V2LError
from v2l.io.text import counted, printable
from v2l.models.config import VisionGeometry
from v2l.models.hypernetwork_file import TrainedWith
from v2l.video.sampling import Reading, Video

SINGLE_SPANS = 1.0
"""Length of a video, in spans that the hypernetwork was trained to read, beyond which a timeline answers better than
one encoding (docs/long-video.md)."""
MOST_SEGMENTS = 64
"""Number of segments up to which the default length is the trained span; longer videos get longer segments."""
OF_TIMELINE = {"skip_ends": False, "own_times": True}
"""Settings of `Reading` for the segments of a timeline."""


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


def check_wish(wish: Segmentation) -> Segmentation:
    """Return a wish with its length as a float. Raises V2LError unless number and length are above 0, and at most one
    of them is given."""
    if wish.segments is not None and wish.seconds is not None:
        raise V2LError("give the number of segments or their length, not both")
    if wish.segments is not None and (isinstance(wish.segments, bool) or not isinstance(wish.segments, Integral)):
        raise V2LError(f"segments is {wish.segments!r}; give a whole number")
    for name, value in (("segments", wish.segments), ("segment_seconds", wish.seconds)):
        if value is not None and not 0 < value < math.inf:
            raise V2LError(f"{name} is {value}; give a number above 0")
    return replace(wish, seconds=None if wish.seconds is None else float(wish.seconds))


def plan_timeline(video: Video, reading: Reading, trained_with: TrainedWith, wish: Segmentation) -> list[Reading]:
    """Return the readings of the segments of a timeline, or an empty list if the video is to be one encoding.

    By default a video longer than `SINGLE_SPANS` trained spans becomes a timeline, whose segments have the length of
    the trained span, or as much more as keeps their number at `MOST_SEGMENTS`. More frames than trained are a wish for
    one encoding.

    reading: filled, see `fill_reading`
    Raises V2LError if the range is empty.
    """
    assert reading.frames, "fill_reading fills it"
    wish = check_wish(wish)
    start, end = covered(video, reading)
    if wish.segments == 1:
        return []
    if not wish.is_chosen:
        if not is_long(end - start, reading, trained_with):
            return []
        span = trained_with.frames / trained_with.fps
        wish = replace(wish, seconds=max(span, math.ceil(round((end - start) / MOST_SEGMENTS, 6))))
    parts = cut(video, replace(reading, **OF_TIMELINE), wish.segments, wish.seconds)
    return parts if len(parts) > 1 else []


def plan_segments(video: Video, reading: Reading, trained_with: TrainedWith, wish: Segmentation) -> list[Reading]:
    """`plan_timeline` where segments are wanted in any case: one segment if one encoding would do."""
    return plan_timeline(video, reading, trained_with, wish) or cut(video, replace(reading, **OF_TIMELINE), 1)


def is_long(seconds: float, reading: Reading, trained_with: TrainedWith) -> bool:
    """Return whether a stretch of video becomes a timeline if nothing else was asked for."""
    span = trained_with.frames / trained_with.fps
    return seconds > SINGLE_SPANS * span and (reading.frames or 0) <= trained_with.frames


def covered(video: Video, reading: Reading) -> tuple[float, float]:
    """Return the start and end, in seconds, of the range that a reading selects. Raises V2LError if it is empty."""
    start = reading.start or 0.0
    end = min(video.duration if reading.end is None else reading.end, video.duration)
    if start >= end:
        raise V2LError(f"{printable(video.path)} ends at {video.duration:.3f} s, before the start at {start:g} s")
    return start, end


def cut(video: Video, reading: Reading, segments: int | None, seconds: float | None = None) -> list[Reading]:
    """Return the readings of a video's consecutive segments: `segments` of equal length, or as many of `seconds` as
    needed if `segments` is None. Raises V2LError if the range is empty."""
    start, end = covered(video, reading)
    if segments:
        count, length = segments, (end - start) / segments
    else:
        assert seconds is not None, "either the number of segments or their length is given"
        count, length = max(1, math.ceil(round((end - start) / seconds, 6))), seconds
    if count > 1 and video.constant_rate and length * video.fps < 1:
        raise V2LError(
            f"{printable(video.path)} has {counted(video.fps, 'frame')} a second, too few for {count:,} segments of "
            f"{length:g} s; use fewer or longer segments"
        )
    starts = [round(start + index * length, 6) for index in range(count)]
    if len(starts) > 1 and end - starts[-1] < min(length, 1 / (reading.fps or 1.0)) - 1e-6:
        starts.pop()  # a rest too short for a frame of its own: merge it into the segment before
    while len(starts) > 1 and starts[1] <= video.seconds[0]:
        starts.pop(1)  # the video starts after its sound: merge the first segment into the next one
    return [
        replace(reading, start=begin, end=finish)
        for begin, finish in zip(starts, [*starts[1:], round(end, 6)], strict=True)
    ]


def segment_readings(video: Video, reading: Reading, segments: int) -> list[Reading]:
    """Return the readings that an adapter of `segments` segments is made from: those of `cut`, or `reading` unchanged
    if there is one segment."""
    return [reading] if segments == 1 else cut(video, reading, segments)
