"""What is known of a video, and which of its frames the model sees: the published sampling, of all or a part of it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from v2l.errors import V2LError
from v2l.io.records import later

READING_REVISION = 2
"""Of how files become frames. Raised where a fault is mended that gave wrong frames or times: an adapter that records
an earlier one is looked at again."""


@dataclass(frozen=True)
class Video:
    """What `probe` learned of a file. Compares and prints by its plain values; can be pickled.

    path: absolute, symbolic links resolved; stream: index of the video stream in the file
    frame_count: N, those that can be decoded; fps: average rate in frames per second
    duration: seconds from the container's start to the end of the last frame; width, height: pixels as shown
    interlaced: its first frames are; notes: what a person should know about how it is read, one sentence each
    seconds: (N,) float64, presentation time of every frame from the container's start, rounded to microseconds; evenly
        spaced by 1 / fps where the rate is constant
    pts: (N,) int64, the same in the stream's own time base, ascending; packet: (N,) int64, the place of each frame's
        packet in storage order; keys, key_pts: (K,) int64, place and time of the packets that decoding can start at.
        All None where the packets do not tell the frames and only decoding from the start will do.
    """

    path: str
    stream: int
    frame_count: int
    fps: float
    duration: float
    width: int
    height: int
    constant_rate: bool
    interlaced: bool
    notes: tuple[str, ...]
    seconds: np.ndarray = field(repr=False, compare=False)
    pts: np.ndarray | None = field(repr=False, compare=False)
    packet: np.ndarray | None = field(repr=False, compare=False)
    keys: np.ndarray | None = field(repr=False, compare=False)
    key_pts: np.ndarray | None = field(repr=False, compare=False)


@dataclass(frozen=True)
class Reading:
    """How a video is to be read. None leaves a choice to what the hypernetwork was trained with.

    frames: at most this many (the paper's method: one per 1/fps seconds, no more than `frames`)
    fps: frames per second of video that sampling aims for
    start, end: seconds of the video, None for its beginning and its end
    resolution: pixels of a frame's longest edge; beyond the model's image size frames are cut into tiles
    keep_damaged: take damaged frames as a player shows them; in an adapter's file, whether it was made from any
    """

    frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    resolution: int | None = None
    keep_damaged: bool = later(False)


def decoded_by(version: str, notes: Sequence[str]) -> str:
    """How an adapter's file describes what read its frames: the decoder's version, the revision of reading and what a
    person should know about the pictures. Readers of earlier versions take it as a mere text."""
    return "; ".join([f"{version}, reading {READING_REVISION}", *notes])[:1000]


def revision_of(decoder: str) -> int:
    """The revision of reading in such a description; 1 where it has none."""
    found = re.search(r", reading (\d{1,6})(?:;|$)", decoder)
    return int(found[1]) if found else 1


def sample_indices(
    frame_count: int, fps: float, max_frames: int, target_fps: float = 1.0, skip_seconds: float = 1.0
) -> list[int]:
    """Ascending frame indices in 0 .. frame_count - 1, as transformers 4.51.3 samples for SmolVLM.

    One frame per 1 / target_fps seconds, at most max_frames and at least one, evenly spread. A clip that is longer than
    max_frames such steps plus skip_seconds at both ends loses those ends. fps: frames per second.
    V2LError: a frame count or max_frames below 1, a rate that is not a finite positive number, a negative skip.
    """
    if frame_count < 1 or max_frames < 1:
        raise V2LError(f"cannot choose {max_frames} of {frame_count} frames: both must be at least 1")
    for name, rate in (("the video's frame rate", fps), ("the sampling rate (fps)", target_fps)):
        if not (math.isfinite(rate) and rate > 0):
            raise V2LError(f"{name} is {rate}: give a finite number above 0, frames per second")
    if not (math.isfinite(skip_seconds) and skip_seconds >= 0):
        raise V2LError(f"cannot skip {skip_seconds} seconds: give 0 or more")
    duration = frame_count / fps
    wanted = max(1, min(round(target_fps * duration), max_frames))
    start, end = 0, frame_count - 1
    if duration - 2 * skip_seconds > max_frames * target_fps:  # as published: frames and seconds are one at 1 fps
        start, end = int(skip_seconds * fps), int(frame_count - skip_seconds * fps)
    start, end = max(0, start), min(end, frame_count - 1)
    return np.unique(np.linspace(start, end, wanted).astype(int)).tolist()


def frame_range(video: Video, start: float | None = None, end: float | None = None) -> tuple[int, int]:
    """(first, stop): the frames whose presentation time in seconds t satisfies start <= t < end; None: from the
    first, to the last. An `end` past the video's end means its end.
    V2LError: a time that is negative or not finite, start >= end, a start past the end, no frame between."""
    for name, time in (("start", start), ("end", end)):
        if time is not None and not (math.isfinite(time) and time >= 0):
            raise V2LError(f"{name} is {time}: give 0 or more seconds")
    begin = 0.0 if start is None else start
    if end is not None and begin >= end:
        raise V2LError(f"start ({begin:g} s) must lie before end ({end:g} s)")
    if begin >= video.duration:
        raise V2LError(f"start ({begin:g} s) lies past the end of {video.path!r} ({video.duration:.3f} s)")
    # Frame times are rounded to microseconds, so the bounds are too: 1/3 s finds the frame shown at 1/3 s.
    first = int(np.searchsorted(video.seconds, round(begin, 6)))
    stop = video.frame_count if end is None else int(np.searchsorted(video.seconds, round(end, 6)))
    if first >= stop:
        until = video.duration if end is None else end
        raise V2LError(f"no frame of {video.path!r} is shown between {begin:g} and {until:g} s: widen the range")
    return first, stop


def choose_frames(
    video: Video, frames: int, fps: float = 1.0, start: float | None = None, end: float | None = None
) -> list[int]:
    """Ascending indices into the file: the published sampling (`sample_indices`, at most `frames`, `fps` per second)
    of the frames shown in [start, end) seconds, as if they were a file of their own.

    Frames are spread by index, as published, also where the rate varies; which frames belong to the range is decided
    by their own times, and the rate of a variable clip's range is that of the range, so that its seconds count right.
    V2LError: as `frame_range` and `sample_indices`.
    """
    first, stop = frame_range(video, start, end)
    count, rate = stop - first, video.fps
    if not video.constant_rate and (start is not None or end is not None):
        until = video.duration if end is None else min(end, video.duration)
        rate = count / (until - max(start or 0.0, float(video.seconds[0])))
    return [first + index for index in sample_indices(count, rate, frames, fps)]
