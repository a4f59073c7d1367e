"""Render a story to a video file."""

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
    """Frame size in pixels and frame rate of a clip."""

    width: int = 128
    height: int = 96
    fps: float = 8.0


def frame_times(seconds: float, form: ClipFormat, frames: int) -> list[float]:
    """Return the times, in seconds, that the published sampling selects: one frame per second, at most `frames`."""
    total = max(1, round(seconds * form.fps))
    return [index / form.fps for index in sample_indices(total, form.fps, frames)]


def frames(story: Story, form: ClipFormat) -> Iterator[np.ndarray]:
    """Yield all frames of the story, (height, width, 3) uint8 RGB."""
    for index in range(max(1, round(story.duration * form.fps))):
        seconds = story.start + index / form.fps
        yield draw(story.at(seconds), seconds, form.height, form.width)


def write_clip(story: Story, path: str | os.PathLike, form: ClipFormat | None = None) -> None:
    """Write the story as an MPEG-4 file, atomically. The first frame shows the start of the story.

    Raises V2LError if the format is not supported or the file cannot be written.
    """
    form, path = form or ClipFormat(), Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(part), cv2.CAP_FFMPEG, codec, form.fps, (form.width, form.height))
    try:
        if not writer.isOpened():
            raise V2LError(
                f"cannot write {printable(path)} with {form.width} x {form.height} pixels at {form.fps:g} frames per "
                "second; choose a .mp4 file in an existing folder and an even frame size"
            )
        written = 0
        for pixels in frames(story, form):
            writer.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
            written += 1
        writer.release()
        if cv2.VideoCapture(str(part), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT) != written:
            raise unwritable(path, OSError("OpenCV wrote only a part of it"))  # OpenCV does not report a full disk
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        writer.release()
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
