"""Decide whether an existing adapter is still what encoding would produce.

The content of video, settings and weights decides, never the device or the version of v2l.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from v2l.adapters.description import AdapterFile, Segment
from v2l.adapters.timeline_description import NO_WISH, Recipe, Segmentation, TimelineFile, read_adapter_file
from v2l.errors import V2LError
from v2l.inference.readings import is_long
from v2l.io.files import identify, time_of_check, unreadable
from v2l.io.text import clock, printable
from v2l.models.hypernetwork_file import Provenance
from v2l.models.presets import is_tiny
from v2l.video.client import probe, read_frames
from v2l.video.sampling import READING_REVISION, Reading, choose_frames, revision_of


@dataclass(frozen=True)
class Wanted:
    """The inputs that an adapter should be made from. reading: filled, see `fill_reading`"""

    video: Path
    reading: Reading
    fingerprint: str
    provenance: Provenance
    segmentation: Segmentation = NO_WISH


@dataclass(frozen=True)
class Staleness:
    """The state of an adapter.

    state: "missing", "stale", "current" or "foreign" (made for another model; one made for tiny is stale)
    reason: why it is stale, the model of a foreign adapter, or a remark about a current one
    """

    state: str
    reason: str = ""


def check_staleness(
    output: Path, wanted: Wanted, check_hash: bool = False, any_reading: bool = False, touch: bool = True
) -> Staleness:
    """Compare the adapter at `output` with what is wanted.

    The video is hashed only with `check_hash`, or if its size and times leave doubt: a modification or status change
    after the adapter's modification time, or any time in the future. An adapter that is current after hashing is
    touched, so that the next comparison needs no hash.

    any_reading: accept an adapter of the same video regardless of how the video was read, composed ones included
    touch: False leaves the adapter as it is in any case
    Raises V2LError if the video cannot be read.
    """
    if not os.path.lexists(output):
        return Staleness("missing")
    checked = time_of_check()
    try:
        adapter = read_adapter_file(output)
    except V2LError as error:
        return Staleness("stale", str(error))
    made = adapter.description
    if made.base_model.fingerprint != wanted.fingerprint:
        model = f"{printable(made.base_model.id)} ({made.base_model.fingerprint[:12]})"
        if is_tiny(made.base_model.fingerprint):  # a demonstration does not outlive the choice of a real model
            return Staleness("stale", f"it was made for {model}, the demonstration model")
        return Staleness("foreign", model)
    if made.hypernetwork.sha256 != wanted.provenance.sha256:
        return Staleness("stale", "it was made by another hypernetwork")
    if not any_reading:
        changed = _changed_timeline(adapter, wanted) if isinstance(adapter, TimelineFile) else _changed(adapter, wanted)
        if changed:
            return Staleness("stale", ", ".join(changed))
    found, unsure = _compare_source(adapter, wanted.video, check_hash, _remark(adapter, wanted))
    if unsure and touch:
        with contextlib.suppress(OSError):  # another user's file: the next comparison hashes again
            os.utime(output, ns=(checked, checked))
    return found


def _changed(adapter: AdapterFile, wanted: Wanted) -> list[str]:
    """Describe every setting of an adapter that differs from what is wanted."""
    segment, *more = adapter.description.segments
    if more:
        return [f"it holds {1 + len(more)} segments"]
    wish = wanted.segmentation
    if (wish.segments or 1) > 1 or (wish.seconds or segment.end) < segment.end - segment.start:
        return ["it is one encoding and segments were asked for"]
    return _changed_reading(segment.reading, segment.reading.keep_damaged, segment, wanted)


def _changed_timeline(timeline: TimelineFile, wanted: Wanted) -> list[str]:
    made = timeline.description
    if made.request is None:
        return ["it was joined from other files"]
    damaged = any(recipe.reading.keep_damaged for recipe in made.recipes)
    changed = _changed_reading(made.request.reading, damaged, made.recipes[0], wanted)
    if made.request.segmentation != wanted.segmentation:
        changed.append("it was cut into other segments")
    if not all(made.recipes[part.recipe].reading.own_times for part in made.segments):
        changed.append("its segments were read with the times of the whole video")
    return changed


def _changed_reading(reading: Reading, damaged: bool, made: Segment | Recipe, wanted: Wanted) -> list[str]:
    """reading: as requested; damaged: whether damaged frames were used"""
    now = {**asdict(wanted.reading), "window_frames": wanted.provenance.trained_with.window_frames}
    then = {**asdict(reading), "window_frames": made.window_frames}
    del then["keep_damaged"]
    keep = now.pop("keep_damaged")
    changed = [f"{name} was {then[name]} and is {now[name]}" for name in now if now[name] != then[name]]
    if made.prompt != wanted.provenance.trained_with.prompt:
        changed.append("the internalization prompt changed")
    if damaged and not keep:
        changed.append("it was made from damaged frames and --keep-damaged was not given")
    return changed


def _remark(adapter: AdapterFile | TimelineFile, wanted: Wanted) -> str:
    """Return a line about an earlier version's single encoding of a long video, which is kept; empty for others."""
    if isinstance(adapter, TimelineFile) or wanted.segmentation.is_chosen or len(adapter.description.segments) > 1:
        return ""
    (segment,), trained_with = adapter.description.segments, wanted.provenance.trained_with
    length = segment.end - segment.start
    if is_long(length, segment.reading, trained_with):
        return f"it is one encoding of {clock(length)}; --overwrite makes a timeline of it"
    return ""


def _compare_source(
    made: AdapterFile | TimelineFile, video: Path, check_hash: bool, remark: str
) -> tuple[Staleness, bool]:
    """Return the state, and whether the video had to be hashed and is unchanged."""
    now = time.time_ns()
    try:
        status, link = os.stat(video), os.lstat(video)
    except OSError as error:
        raise unreadable(video, error) from error
    source = _segments(made)[0].source
    # include status change times: a file that replaces the video may have an older modification time
    video_ns = max(status.st_mtime_ns, status.st_ctime_ns, link.st_ctime_ns)
    trusted = video_ns <= made.checked_ns <= now and not check_hash
    unchanged = status.st_size == source.size and trusted
    if not unchanged and (status.st_size != source.size or identify(video).sha256 != source.sha256):
        return Staleness("stale", "the video's content changed"), False
    if why := _misread(made, video):
        return Staleness("stale", why), False
    return Staleness("current", remark), not unchanged


def _segments(made: AdapterFile | TimelineFile) -> list[Segment]:
    """Return the segments of an adapter, or the overview and the segments of a timeline."""
    if isinstance(made, TimelineFile):
        return [made.description.segment(part) for part in made.description.parts.values()]
    return list(made.description.segments)


def _misread(made: AdapterFile | TimelineFile, video: Path) -> str:
    """Return why an earlier version misread the source of an adapter; empty for most adapters."""
    return next((why for why in (misread(video, segment) for segment in _segments(made)) if why), "")


def misread(video: Path, segment: Segment) -> str:
    """Return why this version would read the segment differently.

    Empty if the segment was read by the current revision, or if the earlier revision read this video correctly. Decodes
    the segment's frames again, because only decoding reveals damage. Raises V2LError if the video cannot be read.
    """
    if revision_of(segment.decoder) >= READING_REVISION:
        return ""
    reading, probed = segment.reading, probe(video)
    chosen = choose_frames(
        probed, reading.frames or 1, reading.fps or 1.0, reading.start, reading.end, reading.skip_ends
    )
    times = [float(probed.seconds[index]) for index in chosen]
    if probed.interlaced:
        return "the video is interlaced, which an earlier version misread"
    if (segment.width, segment.height) != (probed.width, probed.height):
        return "an earlier version misread the video's frame size"
    shifted = len(times) != len(segment.timestamps) or any(
        abs(now - then) > 0.5 / probed.fps for now, then in zip(times, segment.timestamps, strict=True)
    )
    if shifted:
        return "an earlier version misread the times of the video's frames"
    try:
        notes = [*probed.notes, *(note for frame in read_frames(probed, chosen) for note in frame.notes)]
    except V2LError:
        return "it was made from damaged frames, which an earlier version did not notice"
    return f"an earlier version misread the video ({notes[0]})" if notes else ""
