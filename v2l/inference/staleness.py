"""Decide whether an existing adapter is still what encoding would produce, and whether encoding may replace it.

The content of video, settings and weights decides, never the device or the version of v2l. A file that encoding the
same video would not make again is never replaced unasked: that of another video or program, and a composition.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from v2l.adapters.description import AdapterFile, Segment
from v2l.adapters.timeline_description import (
    NO_WISH,
    Recipe,
    Segmentation,
    TimelineDescription,
    TimelineFile,
    read_adapter_file,
)
from v2l.errors import V2LError
from v2l.inference.readings import is_long
from v2l.io.files import FileIdentity, identify, open_regular, time_of_check, unreadable
from v2l.io.text import clock, printable
from v2l.models.hypernetwork_file import Provenance
from v2l.models.presets import is_tiny
from v2l.video.client import probe, read_frames
from v2l.video.sampling import READING_REVISION, Reading, choose_frames, revision_of

_DEFECTS = {"window_frames", "prompt", "keep_damaged", "own_times"}
"""Differences that are no other way to read a video that a user may ask for."""


@dataclass(frozen=True)
class Wanted:
    """The inputs that an adapter should be made from.

    reading: filled, see `fill_reading`
    defaults: names of the settings that nobody chose; an adapter that differs in these alone is kept
    """

    video: Path
    reading: Reading
    fingerprint: str
    provenance: Provenance
    segmentation: Segmentation = NO_WISH
    defaults: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Staleness:
    """The state of an adapter.

    state: "missing", "stale", "current", "foreign" (made for another model; one made for tiny is stale), or "kept" (a
        composition, or other settings than the defaults)
    reason: why it is stale or kept, the model of a foreign adapter, or a remark about a current one
    other_reading: the video was read in another way than was asked for
    """

    state: str
    reason: str = ""
    other_reading: bool = False


def check_staleness(
    output: Path, wanted: Wanted, check_hash: bool = False, any_reading: bool = False, touch: bool = True
) -> Staleness:
    """Compare the adapter at `output` with what is wanted.

    The video is hashed only with `check_hash`, or if its size and times leave doubt: a modification or status change
    after the adapter's modification time, or any time in the future. An adapter that is current after hashing is
    touched, so that the next comparison needs no hash.

    any_reading: accept an adapter of the same video regardless of how the video was read, composed ones included
    touch: False leaves the adapter as it is in any case
    Raises V2LError if the video cannot be read, or the file at `output` is of another video or no adapter at all.
    """
    if not os.path.lexists(output):
        return Staleness("missing")
    checked = time_of_check()
    try:
        adapter = read_adapter_file(output)
    except V2LError as error:
        _check_damaged(output)
        return Staleness("stale", str(error))
    made = adapter.description
    is_beside = _is_beside(output, made.sources, wanted.video)
    compared = None if is_beside else _check_same_video(output, adapter, wanted.video, check_hash)
    if made.base_model.fingerprint != wanted.fingerprint:
        model = f"{printable(made.base_model.id)} ({made.base_model.fingerprint[:12]})"
        if is_tiny(made.base_model.fingerprint):  # a demonstration does not outlive the choice of a real model
            return Staleness("stale", f"it was made for {model}, the demonstration model")
        return Staleness("foreign", model)
    if made.hypernetwork.sha256 != wanted.provenance.sha256:
        return Staleness("stale", "it was made by another hypernetwork")
    if not any_reading:
        if joined := _joined(adapter):
            return Staleness("kept", f"{joined}; --overwrite replaces it", True)
        changed = _changed_timeline(adapter, wanted) if isinstance(adapter, TimelineFile) else _changed(adapter, wanted)
        if changed.keys() - wanted.defaults:
            return Staleness("stale", ", ".join(changed.values()), not changed.keys() & _DEFECTS)
        if changed:
            different = ", ".join(changed.values())
            return Staleness("kept", f"other settings were chosen for it ({different}); --overwrite replaces it")
    unchanged, hashed = compared or _is_unchanged(made.sources[0], adapter.checked_ns, wanted.video, check_hash)
    if not unchanged:
        return Staleness("stale", "the video's content changed")
    if why := _misread(adapter, wanted.video):
        return Staleness("stale", why)
    if hashed and touch:
        with contextlib.suppress(OSError):  # another user's file: the next comparison hashes again
            os.utime(output, ns=(checked, checked))
    return Staleness("current", _remark(adapter, wanted))


def _check_damaged(output: Path) -> None:
    """Raise V2LError if a file that is no sound adapter is something else than a damaged one."""
    with contextlib.suppress(OSError), open_regular(output) as file:
        start = file.read(9)
        if start and start[8:] != b"{":
            raise V2LError(
                f"{printable(output)} is there and is no adapter; --overwrite replaces it, -o or --output-dir writes "
                "elsewhere"
            )


def _is_beside(output: Path, sources: Sequence[FileIdentity], video: Path) -> bool:
    """Return whether an adapter lies beside its video and states its name. If the content differs, the video changed;
    anywhere else, it may as well be another video."""
    is_named = any(source.name == video.name for source in sources)
    return is_named and os.path.realpath(output.parent) == os.path.realpath(video.parent)


def _check_same_video(
    output: Path, adapter: AdapterFile | TimelineFile, video: Path, check_hash: bool
) -> tuple[bool, bool]:
    """Return what `_is_unchanged` does. Raises V2LError if no source of an adapter has the content of the video."""
    sources = adapter.description.sources
    for source in sources:
        compared = _is_unchanged(source, adapter.checked_ns, video, check_hash)
        if compared[0]:
            return compared
    name = printable(sources[0].name)
    other = f"another {name}, or of an earlier version of it" if sources[0].name == video.name else name
    raise V2LError(
        f"{printable(output)} is the adapter of {other}; --overwrite replaces it, -o or --output-dir writes elsewhere"
    )


def _joined(adapter: AdapterFile | TimelineFile) -> str:
    """Describe an adapter that was joined from others; empty for those that encoding makes."""
    made = adapter.description
    joined = made.request is None if isinstance(made, TimelineDescription) else len(made.segments) > 1
    return f"it was composed of {len(made.segments)} segments" if joined else ""


def _changed(adapter: AdapterFile, wanted: Wanted) -> dict[str, str]:
    """Describe every setting of an adapter that differs from what is wanted, by its name."""
    (segment,), wish = adapter.description.segments, wanted.segmentation
    if (wish.segments or 1) > 1 or (wish.seconds or segment.end) < segment.end - segment.start:
        return {"segments": "it is one encoding and segments were asked for"}
    return _changed_reading(segment.reading, segment.reading.keep_damaged, segment, wanted)


def _changed_timeline(timeline: TimelineFile, wanted: Wanted) -> dict[str, str]:
    made = timeline.description
    assert made.request is not None, "a timeline that was not joined states its request"
    damaged = any(recipe.reading.keep_damaged for recipe in made.recipes)
    changed = _changed_reading(made.request.reading, damaged, made.recipes[0], wanted)
    if made.request.segmentation != wanted.segmentation:
        changed["segments"] = "it was cut into other segments"
    if not all(made.recipes[part.recipe].reading.own_times for part in made.segments):
        changed["own_times"] = "its segments were read with the times of the whole video"
    return changed


def _changed_reading(reading: Reading, damaged: bool, made: Segment | Recipe, wanted: Wanted) -> dict[str, str]:
    """reading: as requested; damaged: whether damaged frames were used"""
    now = {**asdict(wanted.reading), "window_frames": wanted.provenance.trained_with.window_frames}
    then = {**asdict(reading), "window_frames": made.window_frames}
    del then["keep_damaged"]
    keep = now.pop("keep_damaged")
    changed = {name: f"{name} was {then[name]} and is {now[name]}" for name in now if now[name] != then[name]}
    if made.prompt != wanted.provenance.trained_with.prompt:
        changed["prompt"] = "the internalization prompt changed"
    if damaged and not keep:
        changed["keep_damaged"] = "it was made from damaged frames and --keep-damaged was not given"
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


def _is_unchanged(source: FileIdentity, checked_ns: int, video: Path, check_hash: bool) -> tuple[bool, bool]:
    """Return whether a video has the content of a source, and whether it had to be hashed for that.

    checked_ns: when the video was last known to have it
    """
    now = time.time_ns()
    try:
        status, link = os.stat(video), os.lstat(video)
    except OSError as error:
        raise unreadable(video, error) from error
    if status.st_size != source.size:
        return False, False
    # include status change times: a file that replaces the video may have an older modification time
    video_ns = max(status.st_mtime_ns, status.st_ctime_ns, link.st_ctime_ns)
    if video_ns <= checked_ns <= now and not check_hash:
        return True, False
    return identify(video).sha256 == source.sha256, True


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
