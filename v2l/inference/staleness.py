"""Whether an adapter that is there still is what encoding would make: content decides, never device or version."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from v2l.adapters.adapter import Adapter, Segment
from v2l.errors import V2LError
from v2l.io.files import identify, time_of_check, unreadable
from v2l.io.text import printable
from v2l.models.hypernetwork import Provenance
from v2l.video.client import probe, read_frames
from v2l.video.sampling import READING_REVISION, Reading, choose_frames, revision_of


@dataclass(frozen=True)
class Wanted:
    """What an adapter would be made from. reading: filled, see `fill_reading`."""

    video: Path
    reading: Reading
    fingerprint: str
    provenance: Provenance


@dataclass(frozen=True)
class Staleness:
    """state: "missing", "stale" (with the reason), "current", or "foreign": made for another model (which one)."""

    state: str
    reason: str = ""


def judge(output: Path, wanted: Wanted, check_hash: bool = False, any_reading: bool = False) -> Staleness:
    """Compares the adapter at `output` with what is wanted. The video is hashed only if its size and times do not
    settle it, or with `check_hash`: a modification or status change later than the adapter's modification time, and
    any time in the future, settle nothing. An adapter that is current all the same is touched, so that the next look
    is quick.

    any_reading: an adapter of the same video is current however it was read, composed of segments too
    Raises V2LError where the video cannot be read."""
    if not os.path.lexists(output):
        return Staleness("missing")
    try:
        adapter = Adapter.load(output)
    except V2LError as error:
        return Staleness("stale", str(error))
    made = adapter.description
    if made.base_model.fingerprint != wanted.fingerprint:
        return Staleness("foreign", f"{printable(made.base_model.id)} ({made.base_model.fingerprint[:12]})")
    if made.hypernetwork.sha256 != wanted.provenance.sha256:
        return Staleness("stale", "it was made by another hypernetwork")
    segment = made.segments[0]
    if any_reading:
        return _judge_source(output, adapter, wanted.video, check_hash)
    if len(made.segments) != 1:
        return Staleness("stale", f"it holds {len(made.segments)} segments")
    now = {**asdict(wanted.reading), "window_frames": wanted.provenance.trained_with.window_frames}
    then = {**asdict(segment.reading), "window_frames": segment.window_frames}
    kept, keep = then.pop("keep_damaged"), now.pop("keep_damaged")
    changed = [f"{name} was {then[name]} and is {now[name]}" for name in now if now[name] != then[name]]
    if segment.prompt != wanted.provenance.trained_with.prompt:
        changed.append("the internalization prompt changed")
    if kept and not keep:
        changed.append("it was made from damaged frames and --keep-damaged was not given")
    if changed:
        return Staleness("stale", ", ".join(changed))
    return _judge_source(output, adapter, wanted.video, check_hash)


def _judge_source(output: Path, made: Adapter, video: Path, check_hash: bool) -> Staleness:
    now, checked = time.time_ns(), time_of_check()
    try:
        status, link = os.stat(video), os.lstat(video)
    except OSError as error:
        raise unreadable(video, error) from error
    source = made.description.segments[0].source
    # status change times too: what replaces a video may have an older modification time
    video_ns = max(status.st_mtime_ns, status.st_ctime_ns, link.st_ctime_ns)
    unchanged = status.st_size == source.size and video_ns <= made.checked_ns <= now and not check_hash
    if not unchanged and (status.st_size != source.size or identify(video).sha256 != source.sha256):
        return Staleness("stale", "the video's content changed")
    if reason := _misread(made, video):
        return Staleness("stale", reason)
    if not unchanged:
        with contextlib.suppress(OSError):  # another user's file: the next look hashes again
            os.utime(output, ns=(checked, checked))
    return Staleness("current")


def _misread(made: Adapter, video: Path) -> str:
    """Why an earlier version misread what an adapter was made from; empty for most."""
    reasons = (misread(video, segment) for segment in made.description.segments)
    return next((reason for reason in reasons if reason), "")


def misread(video: Path, segment: Segment) -> str:
    """Why this segment of the video would be read otherwise today; empty where it was read by today's revision, or
    where the video is none of those that the earlier one misread. Raises V2LError where the video cannot be read.

    Decodes the segment's frames once more, since only that tells whether they are damaged.
    """
    if revision_of(segment.decoder) >= READING_REVISION:
        return ""
    reading, found = segment.reading, probe(video)
    chosen = choose_frames(found, reading.frames or 1, reading.fps or 1.0, reading.start, reading.end)
    times = [float(found.seconds[index]) for index in chosen]
    if found.interlaced:
        return "the video is interlaced, which an earlier version misread"
    if (segment.width, segment.height) != (found.width, found.height):
        return "an earlier version misread the shape of the video's pictures"
    late = len(times) != len(segment.timestamps) or any(
        abs(now - then) > 0.5 / found.fps for now, then in zip(times, segment.timestamps, strict=True)
    )
    if late:
        return "an earlier version misread the times of the video's frames"
    try:
        notes = [*found.notes, *(note for frame in read_frames(found, chosen) for note in frame.notes)]
    except V2LError:
        return "it was made from damaged frames, which an earlier version did not notice"
    return f"an earlier version misread the video ({notes[0]})" if notes else ""
