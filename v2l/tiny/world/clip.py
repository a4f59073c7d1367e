"""A story as a real video file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2l.errors import V2LError
from v2l.io.files import unwritable
from v2l.io.text import printable
from v2l.tiny.world.draw import draw
from v2l.tiny.world.opencv import cv2
from v2l.tiny.world.scene import Story
from v2l.video.sampling import sample_indices


@dataclass(frozen=True)
class ClipFormat:
    """How a story is filmed: pixels and frames per second."""

    width: int = 128
    height: int = 96
    fps: float = 8.0


def seen_times(seconds: float, form: ClipFormat, frames: int) -> list[float]:
    """Seconds of the frames that the published sampling shows of such a clip: one a second, at most so many."""
    total = max(1, round(seconds * form.fps))
    return [index / form.fps for index in sample_indices(total, form.fps, frames)]


def frames(story: Story, form: ClipFormat) -> Iterator[np.ndarray]:
    """All frames of the story, one at a time, (height, width, 3) uint8 RGB."""
    for index in range(max(1, round(story.duration * form.fps))):
        seconds = story.start + index / form.fps
        yield draw(story.at(seconds), seconds, form.height, form.width)


def write_clip(story: Story, path: str | os.PathLike, form: ClipFormat | None = None) -> None:
    """Writes the story as an MPEG-4 file, whole or not at all; its first frame is the story's start.

    Raises V2LError where the format cannot be written or the place takes no file.
    """
    form, path = form or ClipFormat(), Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(part), cv2.CAP_FFMPEG, codec, form.fps, (form.width, form.height))
    try:
        if not writer.isOpened():
            raise V2LError(
                f"cannot write {printable(path)} with {form.width} x {form.height} pixels at {form.fps:g} frames a "
                "second; name a .mp4 in a folder that is there, with even sizes"
            )
        written = 0
        for pixels in frames(story, form):
            writer.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
            written += 1
        writer.release()
        if cv2.VideoCapture(str(part), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT) != written:
            raise unwritable(path, OSError("OpenCV wrote only a part of it"))  # it tells nobody of a full disk
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        writer.release()
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
