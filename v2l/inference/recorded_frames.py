"""Read again the frames that an adapter was made from. Imports no torch."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from v2l.adapters.description import Description, Segment
from v2l.adapters.routing import segments_between
from v2l.adapters.timeline_description import read_adapter_file
from v2l.errors import V2LError
from v2l.io.files import FileIdentity, identify, unreadable, write_atomically
from v2l.io.text import clock, printable
from v2l.video.client import probe, read_frames
from v2l.video.probe import Frame

COLUMNS, CELL_WIDTH, LABEL_HEIGHT, GAP = 6, 156, 20, 4
"""Most frames in a row of a strip, and the sizes of its cells in pixels: six columns fill a page of 960 pixels."""
PAPER, INK = (255, 255, 255), (36, 41, 47)


def recorded_segments(path: str | os.PathLike, at: float | None = None, number: int | None = None) -> list[Segment]:
    """Return the segments of an adapter file whose frames were read: that with a number, from 0; those that show a
    time; or by default the overview of a timeline, and all segments of an adapter of one encoding or composed.

    Raises V2LError if the file is missing or damaged, or has no such segment.
    """
    overview, segments = _segments_of(path)
    if at is not None:
        shown = segments_between(segments, at, at)
        if not shown:
            start, end = min(each.start for each in segments), max(each.end for each in segments)
            raise V2LError(
                f"{printable(path)} shows {clock(start)} to {clock(end)} and not {clock(at)}; give a time in it"
            )
        return [segments[each] for each in shown]
    if number is not None:
        if number >= len(segments):
            raise V2LError(
                f"{printable(path)} has no segment {number}: its segments are 0 to {len(segments) - 1}; v2l info lists "
                "their times"
            )
        return [segments[number]]
    if overview is None:
        return list(segments)
    return [overview]


def _segments_of(path: str | os.PathLike) -> tuple[Segment | None, Sequence[Segment]]:
    """Return the overview, if any, and the segments of an adapter file of either version."""
    made = read_adapter_file(path).description
    if isinstance(made, Description):
        return None, made.segments
    overview = None if made.overview is None else made.segment(made.overview)
    return overview, [made.segment(part) for part in made.segments]


def find_video(source: FileIdentity, folder: Path, given: Path | None = None) -> Path:
    """Return the path of a recorded video: `given`, or the file of the recorded name in a folder. Raises V2LError
    unless it has the recorded content."""
    if given is None and (source.name in ("", ".", "..") or os.path.basename(source.name) != source.name):
        raise V2LError(f"the adapter names its video {printable(source.name)!r}, which is no file name; use --video")
    path = folder / source.name if given is None else given
    if given is None and not os.path.exists(path):
        raise V2LError(f"the video {printable(path)} is not there; name it with --video")
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise unreadable(path, error) from error
    if size != source.size or identify(path).sha256 != source.sha256:
        raise V2LError(
            f"{printable(path)} is not the video that was encoded: its content differs; name the right file with "
            "--video, or encode it again"
        )
    return path


def read_recorded(segments: Sequence[Segment], video: Path) -> Iterator[Frame]:
    """Decode the frames of segments of one video, each once, in order of time and in full size.

    Raises V2LError if the video cannot be read, or has no frame at a recorded time.
    """
    probed = probe(video)
    times = np.unique([seconds for segment in segments for seconds in segment.timestamps])
    indices = np.searchsorted(probed.seconds, times)
    found = probed.seconds[np.minimum(indices, probed.frame_count - 1)]
    if (found != times).any():
        raise V2LError(
            f"{printable(video)} has no frame at {times[found != times][0]:.6f} s, where the adapter's frame was read: "
            "another version of the decoder gives other times; encode it again"
        )
    damaged = any(segment.reading.keep_damaged for segment in segments)
    return read_frames(probed, indices.tolist(), keep_damaged=damaged)


def frame_names(segments: Sequence[Segment]) -> dict[float, str]:
    """Return the file names of the frames of segments of one video by their time in seconds: `lecture.00-12-30.000.png`
    for 12:30. Their alphabetical order is that of time."""
    times = sorted({seconds for segment in segments for seconds in segment.timestamps})
    stem = Path(segments[0].source.name).stem
    names = {seconds: f"{stem}.{_sortable(seconds, 3)}.png" for seconds in times}
    if len(set(names.values())) < len(times):  # a variable rate may have two frames in a millisecond
        names = {seconds: f"{stem}.{_sortable(seconds, 6)}.png" for seconds in times}
    return names


def _sortable(seconds: float, digits: int) -> str:
    whole, fraction = divmod(round(seconds * 10**digits), 10**digits)
    return f"{whole // 3600:02d}-{whole // 60 % 60:02d}-{whole % 60:02d}.{fraction:0{digits}d}"


def write_png(picture: np.ndarray | Image.Image, path: Path) -> None:
    """Write a picture, (height, width, 3) uint8, atomically. Raises V2LError if that fails."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    data = io.BytesIO()
    image.save(data, "PNG")
    write_atomically(path, data.getvalue())


class Strip:
    """Small copies of frames in rows, with their times below."""

    def __init__(self) -> None:
        self._cells: list[tuple[Image.Image, str]] = []

    def add(self, picture: np.ndarray, seconds: float) -> None:
        """Add a frame, (height, width, 3) uint8."""
        small = ImageOps.contain(Image.fromarray(picture), (CELL_WIDTH, CELL_WIDTH), Image.Resampling.LANCZOS)
        self._cells.append((small, clock(seconds)))

    def draw(self) -> Image.Image:
        """Return the picture."""
        rows = math.ceil(len(self._cells) / COLUMNS)
        columns = math.ceil(len(self._cells) / rows)
        height = max(small.height for small, _ in self._cells) + LABEL_HEIGHT
        sheet = Image.new("RGB", (columns * (CELL_WIDTH + GAP) + GAP, rows * (height + GAP) + GAP), PAPER)
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
        for number, (small, time) in enumerate(self._cells):
            left = GAP + (number % columns) * (CELL_WIDTH + GAP)
            top = GAP + (number // columns) * (height + GAP)
            bottom = top + height - LABEL_HEIGHT
            sheet.paste(small, (left + (CELL_WIDTH - small.width) // 2, bottom - small.height))
            pen.text((left + CELL_WIDTH / 2, bottom + LABEL_HEIGHT / 2), time, INK, font, anchor="mm")
        return sheet
