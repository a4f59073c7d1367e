"""Whether an adapter was made from a video that an earlier version of v2l misread."""

from __future__ import annotations

from pathlib import Path

from v2l.adapters.adapter import Segment
from v2l.errors import V2LError
from v2l.video.decoding import probe, read_frames
from v2l.video.sampling import READING_REVISION, choose_frames, revision_of


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
