"""The facts about a video, and the choice of the frames that the model sees, by the published sampling."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from v2l.errors import V2LError
from v2l.io.records import added_later

READING_REVISION = 2
"""Revision of the decoding. Raised by every fix of wrong frames or times: adapters that record an earlier revision are
checked again."""


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """Where the N frames of a video are stored in its file.

    pts: (N,) int64, presentation times in the stream's time base, ascending
    packet: (N,) int64, position of each frame's packet in storage order
    keys, key_pts: (K,) int64, position and presentation time of the packets at which decoding can start
    """

    pts: np.ndarray
    packet: np.ndarray
    keys: np.ndarray
    key_pts: np.ndarray


@dataclass(frozen=True)
class Video:
    """The result of probing a file. Equality and repr use the plain values only; can be pickled.

    path: absolute, symbolic links resolved; stream: index of the video stream in the file
    frame_count: N, the number of decodable frames; fps: average rate in frames per second
    duration: seconds from the container's start to the end of the last frame; width, height: pixels as shown
    interlaced: True if any of its first frames is; notes: remarks for the user on how it is read, one sentence each
    seconds: (N,) float64, presentation time of every frame from the container's start, rounded to microseconds; evenly
        spaced by 1 / fps if the rate is constant
    index: None if the packets do not determine the frames, so that every read decodes from the start
    frame_cost: processor seconds that decoding a frame takes, measured on the first ones
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
    index: FrameIndex | None = field(repr=False, compare=False)
    frame_cost: float = field(default=0.0, repr=False, compare=False)


@dataclass(frozen=True)
class Reading:
    """Options for reading a video. None selects the value that the hypernetwork was trained with.

    `TrainedWith` of models/hypernetwork.py holds these defaults, among them the number of frames.

    frames: maximum number of frames (the paper's method: one frame every 1 / fps seconds, at most `frames`)
    fps: sampling rate in frames per second of video
    start, end: range in seconds of the video, None for the start and the end of the video
    resolution: pixels of a frame's longest edge; frames larger than the model's image size are split into tiles
    keep_damaged: accept damaged frames as a player shows them; in an adapter's file, True if it was made from any
    skip_ends: leave out the first and the last second of a long range, as published; False for the consecutive
        segments of a timeline
    own_times: count the times in the prompt from the whole second in which the range starts, as in a video of its own,
        which the hypernetwork was trained to read; True for the segments of a timeline
    """

    frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    resolution: int | None = None
    keep_damaged: bool = added_later(False)
    skip_ends: bool = added_later(True)
    own_times: bool = added_later(False)


def decoded_by(version: str, notes: Sequence[str]) -> str:
    """Return an adapter's `decoder` entry: the decoder's version, the reading revision, and notes on the frames.

    Earlier versions of v2l treat it as plain text.
    """
    return "; ".join([f"{version}, reading {READING_REVISION}", *notes])[:1000]


def revision_of(decoder: str) -> int:
    """Return the reading revision in an adapter's `decoder` entry; 1 if it has none."""
    found = re.search(r", reading (\d{1,6})(?:;|$)", decoder)
    return int(found[1]) if found else 1


def sample_indices(
    frame_count: int, fps: float, max_frames: int, target_fps: float = 1.0, skip_seconds: float = 1.0
) -> list[int]:
    """Return ascending frame indices in 0 .. frame_count - 1, sampled as transformers 4.51.3 does for SmolVLM.

    One frame every 1 / target_fps seconds, at most max_frames and at least one, evenly spread. A clip longer than
    max_frames such steps plus skip_seconds at both ends is sampled without those ends. fps: frames per second.
    Raises V2LError if frame_count or max_frames is below 1, a rate is not finite and positive, or the skip is negative.
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
    if duration - 2 * skip_seconds > max_frames * target_fps:  # as published: units match only at 1 fps
        start, end = int(skip_seconds * fps), int(frame_count - skip_seconds * fps)
    start, end = max(0, start), min(end, frame_count - 1)
    return sorted({*np.linspace(start, end, wanted).astype(int).tolist()})


def frame_range(video: Video, start: float | None = None, end: float | None = None) -> tuple[int, int]:
    """Return (first, stop), the range of frames with start <= presentation time in seconds < end, or, if no frame
    begins there, the frame that is shown throughout.

    None means the first and the last frame. An `end` after the end of the video is accepted. Raises V2LError if a
    time is negative or not finite, start >= end, start is after the end of the video, or the range precedes the first
    frame.
    """
    for name, time in (("start", start), ("end", end)):
        if time is not None and not (math.isfinite(time) and time >= 0):
            raise V2LError(f"{name} is {time}: give 0 or more seconds")
    begin = 0.0 if start is None else start
    if end is not None and begin >= end:
        raise V2LError(f"start ({begin:g} s) must be before end ({end:g} s)")
    if begin >= video.duration:
        raise V2LError(f"start ({begin:g} s) is after the end of {video.path!r} ({video.duration:.3f} s)")
    # Round like the frame times, so that a start of 1/3 s finds the frame at 1/3 s.
    first = int(np.searchsorted(video.seconds, round(begin, 6)))
    stop = video.frame_count if end is None else int(np.searchsorted(video.seconds, round(end, 6)))
    if stop == 0:
        raise V2LError(
            f"no frame of {video.path!r} is shown between {begin:g} and {end:g} s: its first frame is at "
            f"{video.seconds[0]:g} s, widen the range"
        )
    return min(first, stop - 1), stop


def choose_frames(
    video: Video,
    frames: int,
    fps: float = 1.0,
    start: float | None = None,
    end: float | None = None,
    skip_ends: bool = True,
) -> list[int]:
    """Return ascending indices of the frames to read: `sample_indices` over the frames shown in [start, end) seconds.

    The range is sampled like a file of its own, with at most `frames` frames at `fps` per second. As published, frames
    are spread evenly by index even if the rate varies; the range itself is selected by presentation times, and for a
    variable rate its own average rate is used. skip_ends: as in `Reading`. Raises V2LError as `frame_range` and
    `sample_indices` do.
    """
    first, stop = frame_range(video, start, end)
    count, rate = stop - first, video.fps
    if not video.constant_rate and (start is not None or end is not None):
        until = video.duration if end is None else min(end, video.duration)
        rate = count / (until - max(start or 0.0, float(video.seconds[0])))
    return [first + index for index in sample_indices(count, rate, frames, fps, skip_seconds=float(skip_ends))]


def frames_of(video: Video, reading: Reading) -> list[int]:
    """Return `choose_frames` for a reading whose number of frames and rate are filled."""
    assert reading.frames and reading.fps, "fill_reading fills these"
    return choose_frames(video, reading.frames, reading.fps, reading.start, reading.end, reading.skip_ends)
