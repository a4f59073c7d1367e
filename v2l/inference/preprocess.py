"""A video as the frozen model gets it: frames through the vision tower, then prompts that fit its positions.

Encoding and in-context inference both start here, so that they see the same pixels and the same words.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch

from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.models.hypernetwork import TrainedWith
from v2l.models.processor import PromptFrame, VisionGeometry, frame_images, prompt_frames, tile_grid, video_text
from v2l.models.smolvlm import IMAGES_AT_ONCE, FrozenVLM, Window
from v2l.video.client import probe, read_frames
from v2l.video.sampling import Reading, Video, choose_frames

AHEAD = 2
"""Micro-batches of pixels that are decoded before they are seen."""


@dataclass(frozen=True)
class EncodedFrames:
    """A video as the vision tower saw it.

    frames: time and tiles of each frame, in order
    images: (N, tokens, D) embeddings of all images, frame by frame; N is the number of frames where none is tiled
    notes: what a person should know about the pictures; damaged: whether any of them is
    """

    video: Video
    frames: tuple[PromptFrame, ...]
    images: torch.Tensor
    notes: tuple[str, ...] = ()
    damaged: bool = False


def fill_reading(reading: Reading, trained_with: TrainedWith, geometry: VisionGeometry) -> Reading:
    """The reading with every None but start and end replaced by what the hypernetwork was trained with, or by the
    model's own frame size. Raises V2LError for a number of frames, a rate or a resolution that is not positive."""
    if isinstance(reading.frames, bool) or not isinstance(reading.frames, Integral | None):
        raise V2LError(f"frames is {reading.frames!r}; give a whole number")
    own_resolution = trained_with.resolution or geometry.longest_edge
    filled = replace(
        reading,
        frames=trained_with.frames if reading.frames is None else int(reading.frames),
        fps=float(trained_with.fps if reading.fps is None else reading.fps),
        resolution=own_resolution if reading.resolution is None else int(reading.resolution),
        start=float(reading.start) if reading.start else None,  # from 0 on is from the beginning
        end=None if reading.end is None else float(reading.end),
    )
    for name in ("frames", "fps", "resolution"):
        if not getattr(filled, name) > 0:
            raise V2LError(f"{name} is {getattr(reading, name)}; give a number above 0")
    return filled


def cut(path: str | os.PathLike, reading: Reading, segments: int | None, seconds: float | None = None) -> list[Reading]:
    """The readings of a video's segments, which follow one another without a gap: that many of one length, or as many
    of `seconds` as it takes. Raises V2LError where the video cannot be read or the range holds nothing."""
    start = reading.start or 0.0
    found = probe(path)
    end = min(found.duration if reading.end is None else reading.end, found.duration)
    if start >= end:
        raise V2LError(f"{printable(path)} ends at {found.duration:.3f} s, before the start at {start:g} s")
    if segments:
        count, length = segments, (end - start) / segments
    else:
        length = seconds
        count = max(1, -int((start - end) // length))
    borders = [round(start + index * length, 6) for index in range(count)]
    while len(borders) > 1 and borders[-1] > min(found.seconds[-1], end - 1e-6):
        borders.pop()  # no frame is left for the last stretch: it joins the one before
    while len(borders) > 1 and borders[1] <= found.seconds[0]:
        borders.pop(1)  # the video starts after its sound: the first stretch joins the one behind
    return [
        replace(reading, start=begin, end=finish)
        for begin, finish in zip(borders, [*borders[1:], round(end, 6)], strict=True)
    ]


def segment_readings(path: str | os.PathLike, reading: Reading, segments: int) -> list[Reading]:
    """What an adapter of that many segments is made from: the readings that `cut` gives, or `reading` as it is where
    there is one segment."""
    return [reading] if segments == 1 else cut(path, reading, segments)


@dataclass(frozen=True)
class FramePlan:
    """What is about to be seen of a video.

    frames: time and tiles of each frame; images: (n, 3, S, S) uint8, a few at a time, decoded as they are asked for
    notes: what a person should know about the pictures, and damage: what is wrong with some, both complete once all
        images were taken
    """

    video: Video
    frames: tuple[PromptFrame, ...]
    images: Iterator[torch.Tensor]
    notes: list[str]
    damage: list[str]

    def prefetch(self) -> FramePlan:
        """The same, its images decoded in a thread of their own from now on."""
        return replace(self, images=Prefetcher(self.images))


def plan_frames(path: str | os.PathLike, vlm: FrozenVLM, reading: Reading) -> FramePlan:
    """Chooses the frames that `reading` (filled) asks for. Raises V2LError where the video cannot be read."""
    video = probe(path)
    chosen = choose_frames(video, reading.frames, reading.fps, reading.start, reading.end)
    grid = tile_grid(video.width, video.height, vlm.geometry, reading.resolution)
    _check_tiles(*grid, vlm, reading.resolution)
    notes, damage = list(video.notes), []

    def images() -> Iterator[np.ndarray]:
        for frame in read_frames(video, chosen, reading.keep_damaged):
            notes.extend(note for note in frame.notes if note not in notes)
            damage.extend([frame.damage] if frame.damage else [])
            yield from frame_images(frame.pixels, vlm.geometry, reading.resolution, grid)

    frames = tuple(prompt_frames(video, chosen, reading.end, grid))
    return FramePlan(video, frames, _batches(images()), notes, damage)


def encode_video_images(
    path: str | os.PathLike,
    vlm: FrozenVLM,
    reading: Reading,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncodedFrames:
    """Decodes the frames that `reading` (filled) asks for and shows them to the vision tower a few at a time; the next
    few are decoded meanwhile, and pixels of no more than `AHEAD` micro-batches wait. `progress` hears of the frames
    seen and of their number. Raises V2LError where the video cannot be read."""
    return encode_images(plan_frames(path, vlm, reading).prefetch(), vlm, progress)


def encode_images(
    plan: FramePlan, vlm: FrozenVLM, progress: Callable[[int, int], None] = lambda done, total: None
) -> EncodedFrames:
    """Shows what is plan at to the vision tower."""
    count, seen = len(plan.frames), []
    images_each = plan.frames[0].rows * plan.frames[0].cols + 1
    for batch in plan.images:
        seen.append(vlm.encode_images(batch))
        progress(sum(map(len, seen)) // images_each, count)
    return EncodedFrames(plan.video, plan.frames, torch.cat(seen), tuple(plan.notes), bool(plan.damage))


def _check_tiles(rows: int, cols: int, vlm: FrozenVLM, resolution: int) -> None:
    """Refuses what no prompt could hold before anything is decoded for it."""
    tokens = (rows * cols + 1) * vlm.geometry.tokens_per_image
    if tokens > vlm.max_positions:
        raise V2LError(
            f"at resolution {resolution} one frame takes {tokens:,} image tokens and the model has "
            f"{vlm.max_positions:,} positions; use a lower resolution"
        )
    if rows and vlm.tokenizer and vlm.tokenizer.token_to_id(f"<row_{rows}_col_{cols}>") is None:
        raise V2LError(
            f"at resolution {resolution} a frame is cut into {rows} x {cols} tiles and the model has no token for the "
            "last of them; use a lower resolution"
        )


def _batches(images: Iterator[np.ndarray]) -> Iterator[torch.Tensor]:
    """(n, 3, S, S) uint8, `IMAGES_AT_ONCE` at a time and the rest at the end."""
    held: list[np.ndarray] = []
    for image in images:
        held.append(image)
        if len(held) == IMAGES_AT_ONCE:
            yield torch.from_numpy(np.stack(held))
            held.clear()
    if held:
        yield torch.from_numpy(np.stack(held))


class Prefetcher(Iterator[torch.Tensor]):
    """The same items, made in a thread of their own from now on, at most `AHEAD` before they are asked for; an error
    comes where the item would have."""

    def __init__(self, items: Iterator[torch.Tensor]):
        self._made: queue.Queue = queue.Queue(AHEAD)
        self._unwanted = threading.Event()
        # the thread must not refer back to this object: it would never be forgotten
        weakref.finalize(self, self._unwanted.set)
        threading.Thread(target=_make, args=(items, self._made, self._unwanted)).start()

    def __next__(self) -> torch.Tensor:
        item = self._made.get()
        if isinstance(item, BaseException):
            self._made.put(item)  # whoever asks again
            raise item
        return item


def _make(items: Iterator[torch.Tensor], made: queue.Queue, unwanted: threading.Event) -> None:
    """Ends with the StopIteration, or with the error, that ended the items; or as soon as nobody wants more."""

    def wanted() -> bool:  # the process waits for this thread before it ends
        return not unwanted.is_set() and threading.main_thread().is_alive()

    def hand_over(item: object) -> None:
        while wanted():
            try:
                made.put(item, timeout=0.1)
                break
            except queue.Full:
                continue

    try:
        while wanted():
            hand_over(next(items))
    except BaseException as end:  # StopIteration too
        hand_over(end)


def cut_windows(seen: EncodedFrames, vlm: FrozenVLM, trained_with: TrainedWith) -> list[Window]:
    """The prompts that make up the video: one, as published, while that fits the model's positions; beyond them
    windows of `window_frames` frames (fewer where even those do not fit), each a complete prompt with its own intro
    line, absolute timestamps and positions from zero. Raises V2LError where a single frame does not fit."""
    count = len(seen.frames)
    size = count
    while True:
        spans = [(start, min(start + size, count)) for start in range(0, count, size)]
        ids = [video_ids(seen, vlm, trained_with.prompt, *span, marks_end=trained_with.marks_end) for span in spans]
        longest = max(len(window) for window in ids)
        if longest <= vlm.max_positions:
            break
        if size == 1:
            raise V2LError(
                f"one frame takes {longest:,} tokens and the model has {vlm.max_positions:,} positions; use a lower "
                "resolution"
            )
        size = min(trained_with.window_frames, size - 1, max(1, size * vlm.max_positions // longest))
    per_frame = len(seen.images) // count
    return [
        Window(stop - start, window, seen.images[start * per_frame : stop * per_frame])
        for (start, stop), window in zip(spans, ids, strict=True)
    ]


def video_ids(
    seen: EncodedFrames,
    vlm: FrozenVLM,
    prompt: str,
    start: int = 0,
    stop: int | None = None,
    answer: bool = False,
    marks_end: bool = False,
) -> torch.Tensor:
    """Token ids, (T,), of the prompt that shows frames start .. stop - 1 and says `prompt`; `answer` asks for one;
    `marks_end` as for `video_text`."""
    frames, duration = seen.frames[start:stop], seen.video.duration
    return vlm.tokenize(video_text(frames, duration, prompt, vlm.geometry, answer, marks_end))
