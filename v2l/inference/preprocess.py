"""Convert a video into the input of the frozen model: encoded frames, then prompts that fit its positions.

Encoding and in-context inference both start here, so that they use the same pixels and the same words.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from v2l.errors import V2LError
from v2l.inference.readings import covered
from v2l.io.text import printable
from v2l.models.device import FEWER_FRAMES, memory_errors
from v2l.models.hypernetwork_file import TrainedWith
from v2l.models.processor import PromptFrame, frame_images, prompt_frames, tile_grid, video_text
from v2l.models.smolvlm import IMAGES_AT_ONCE, FrozenVLM, Window
from v2l.video.client import probe, read_frames
from v2l.video.sampling import Reading, Video, frames_of

AHEAD = 2
"""Number of micro-batches of pixels that are decoded ahead of the vision tower."""


@dataclass(frozen=True)
class EncodedFrames:
    """The output of the vision tower for a video.

    frames: time and tiles of each frame, in order
    images: (N, tokens, D) embeddings of all images, frame by frame; N is the number of frames if none is tiled
    span: start and end, in seconds of the video, of what the prompt presents as a video
    notes: remarks about the pictures for the user; damaged: whether any picture is damaged
    waited: seconds for which the vision tower waited for decoded frames
    """

    video: Video
    frames: tuple[PromptFrame, ...]
    images: torch.Tensor
    span: tuple[float, float]
    notes: tuple[str, ...] = ()
    damaged: bool = False
    waited: float = 0.0


@dataclass(frozen=True)
class FramePlan:
    """The frames of a video that the vision tower will encode.

    frames: time and tiles of each frame; images: micro-batches (n, 3, S, S) uint8, decoded on demand
    span: as in `EncodedFrames`
    notes: remarks about the pictures for the user; damage: descriptions of damaged pictures; both are complete once all
        images are consumed
    """

    video: Video
    frames: tuple[PromptFrame, ...]
    images: Iterator[torch.Tensor]
    span: tuple[float, float]
    notes: list[str]
    damage: list[str]

    def prefetch(self) -> FramePlan:
        """Return the same plan with its images decoded in a background thread, starting now."""
        return replace(self, images=Prefetcher(self.images))


def plan_frames(video: Video, vlm: FrozenVLM, reading: Reading) -> FramePlan:
    """Choose the frames of a probed video for `reading`, which must be filled. Raises V2LError if the range has no
    frame or a frame does not fit into a prompt."""
    assert reading.frames and reading.fps and reading.resolution, "fill_reading fills these"
    resolution, keep_damaged = reading.resolution, reading.keep_damaged
    chosen = frames_of(video, reading)
    grid = tile_grid(video.width, video.height, vlm.geometry, resolution)
    _check_tiles(*grid, vlm, resolution)
    notes, damage = list(video.notes), list[str]()

    def images() -> Iterator[np.ndarray]:
        for frame in read_frames(video, chosen, keep_damaged):
            notes.extend(note for note in frame.notes if note not in notes)
            damage.extend([frame.damage] if frame.damage else [])
            yield from frame_images(frame.pixels, vlm.geometry, resolution, grid)

    end = None if reading.own_times else reading.end  # a part read as a video of its own ends with its last frame
    frames = tuple(prompt_frames(video, chosen, end, grid))
    return FramePlan(video, frames, _batches(images()), presented_span(video, reading), notes, damage)


def presented_span(video: Video, reading: Reading) -> tuple[float, float]:
    """Return the start and the end, in seconds, of what the prompt presents as a video: the whole video, or with
    `own_times` the range of the reading, from a whole second."""
    if not reading.own_times:
        return 0.0, video.duration
    start, end = covered(video, reading)
    return float(math.floor(start)), end


def encode_video_images(
    path: str | os.PathLike,
    vlm: FrozenVLM,
    reading: Reading,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncodedFrames:
    """Decode the frames for `reading`, which must be filled, and encode them with the vision tower in micro-batches.
    A background thread decodes at most `AHEAD` micro-batches ahead. `progress` is called with the number of encoded
    frames and the total. Raises V2LError if the video cannot be read."""
    with memory_errors(f"reading {printable(path)}", vlm.device, vlm.dtype, fix=FEWER_FRAMES):
        return encode_images(plan_frames(probe(path), vlm, reading).prefetch(), vlm, progress)


def encode_images(
    plan: FramePlan, vlm: FrozenVLM, progress: Callable[[int, int], None] = lambda done, total: None
) -> EncodedFrames:
    """Encode the planned frames with the vision tower."""
    images_per_frame = plan.frames[0].rows * plan.frames[0].cols + 1
    embeddings: list[torch.Tensor] = []
    waited = 0.0
    while True:
        asked = time.perf_counter()
        batch = next(plan.images, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        embeddings.append(vlm.encode_images(batch))
        progress(sum(map(len, embeddings)) // images_per_frame, len(plan.frames))
    notes, damaged = tuple(plan.notes), bool(plan.damage)
    return EncodedFrames(plan.video, plan.frames, torch.cat(embeddings), plan.span, notes, damaged, waited)


def _check_tiles(rows: int, cols: int, vlm: FrozenVLM, resolution: int) -> None:
    """Raises V2LError, before decoding, if a single frame cannot fit into a prompt."""
    tokens = (rows * cols + 1) * vlm.geometry.tokens_per_image
    if tokens > vlm.max_positions:
        raise V2LError(
            f"at resolution {resolution} one frame takes {tokens:,} image tokens and the model has "
            f"{vlm.max_positions:,} positions; use a lower resolution"
        )
    if rows and vlm.tokenizer and vlm.tokenizer.token_to_id(f"<row_{rows}_col_{cols}>") is None:
        raise V2LError(
            f"at resolution {resolution} a frame is cut into {rows} x {cols} tiles and the model has no token for the "
            "last one; use a lower resolution"
        )


def _batches(images: Iterator[np.ndarray]) -> Iterator[torch.Tensor]:
    """Stack images into micro-batches (n, 3, S, S) uint8 of `IMAGES_AT_ONCE`; the last may be smaller."""
    batch: list[np.ndarray] = []
    for image in images:
        batch.append(image)
        if len(batch) == IMAGES_AT_ONCE:
            yield torch.from_numpy(np.stack(batch))
            batch.clear()
    if batch:
        yield torch.from_numpy(np.stack(batch))


class Prefetcher(Iterator[torch.Tensor]):
    """Produce the items of an iterator in a background thread, starting now, at most `AHEAD` of them ahead. An error is
    raised at the item that caused it."""

    def __init__(self, items: Iterator[torch.Tensor]):
        self._queue: queue.Queue = queue.Queue(AHEAD)
        self._cancelled = threading.Event()
        # The thread must not refer to this object, or it would never be garbage-collected.
        weakref.finalize(self, self._cancelled.set)
        threading.Thread(target=_produce, args=(items, self._queue, self._cancelled)).start()

    def __next__(self) -> torch.Tensor:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # for the next call
            raise item
        return item


def _produce(items: Iterator[torch.Tensor], output: queue.Queue, cancelled: threading.Event) -> None:
    """Put the items into the queue, and at last the StopIteration or error that ended them. Ends early if cancelled."""

    def wanted() -> bool:  # the interpreter waits for this thread before it exits
        return not cancelled.is_set() and threading.main_thread().is_alive()

    def put(item: object) -> None:
        while wanted():
            try:
                output.put(item, timeout=0.1)
                break
            except queue.Full:
                continue

    try:
        while wanted():
            put(next(items))
    except BaseException as end:  # including StopIteration
        put(end)


def cut_windows(encoded: EncodedFrames, vlm: FrozenVLM, trained_with: TrainedWith) -> list[Window]:
    """Split a video into prompts that fit the model's positions.

    A video that fits is one window, as published. A longer one is split into windows of `window_frames` frames, or
    fewer if those do not fit. Each window is a complete prompt with its own intro line, the times of its frames
    and positions from zero. Raises V2LError if a single frame does not fit.
    """

    def ids(start: int, stop: int) -> torch.Tensor:
        return video_ids(encoded, vlm, trained_with.prompt, start, stop, marks_end=trained_with.marks_end)

    count = len(encoded.frames)
    windows = fitting_windows(count, ids, vlm.max_positions, trained_with.window_frames)
    per_frame = len(encoded.images) // count
    return [
        Window(stop - start, window, encoded.images[start * per_frame : stop * per_frame])
        for start, stop, window in windows
    ]


def fitting_windows(
    frames: int, ids: Callable[[int, int], torch.Tensor], positions: int, window_frames: int
) -> list[tuple[int, int, torch.Tensor]]:
    """Return the windows of `cut_windows`: their first frame, the frame after their last, and their ids, (T,).

    ids: the prompt with frames start .. stop - 1; positions: the most tokens of a prompt
    """
    size = frames
    while True:
        spans = [(start, min(start + size, frames)) for start in range(0, frames, size)]
        windows = [(*span, ids(*span)) for span in spans]
        longest = max(len(window) for _, _, window in windows)
        if longest <= positions:
            return windows
        if size == 1:
            raise V2LError(
                f"one frame takes {longest:,} tokens and the model has {positions:,} positions; use a lower resolution"
            )
        size = min(window_frames, size - 1, max(1, size * positions // longest))


def video_ids(
    encoded: EncodedFrames,
    vlm: FrozenVLM,
    prompt: str,
    start: int = 0,
    stop: int | None = None,
    answer: bool = False,
    marks_end: bool = False,
) -> torch.Tensor:
    """Tokenize the prompt with frames start .. stop - 1 and the text `prompt`: ids, (T,). `answer` adds the generation
    prompt; `marks_end` as for `video_text`."""
    first, last = encoded.span
    frames = [replace(frame, seconds=max(0.0, frame.seconds - first)) for frame in encoded.frames[start:stop]]
    return vlm.tokenize(video_text(frames, last - first, prompt, vlm.geometry, answer, marks_end))
