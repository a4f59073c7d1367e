"""A video to an adapter: the only place where frames, prompt, model and hypernetwork meet.

Training, evaluation and benchmarks call its parts; answer.py has the other half of the story.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from v2l import __version__
from v2l.adapters.adapter import Adapter, BaseModel, Block, Description, HypernetworkInfo, Segment
from v2l.adapters.segments import compose
from v2l.errors import V2LError, V2LWarning
from v2l.inference.preprocess import (
    EncodedFrames,
    FramePlan,
    cut_windows,
    encode_images,
    fill_reading,
    plan_frames,
    segment_readings,
)
from v2l.io.files import FileIdentity, identify, time_of_check, unreadable
from v2l.io.text import printable
from v2l.models.checkpoint import check_belongs
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM, Window
from v2l.video.client import decoder_version
from v2l.video.sampling import Reading, decoded_by, frame_range

TOKENS_OF_ALL_LAYERS = 8192
"""Tokens times decoder layers up to which the hypernetwork reads all layers at once: so little that it is the number of
operations that takes the time, and that all of it is soon in memory."""

Progress = Callable[[int, int], None]
"""Called with the steps done and their number: a step is a frame seen or a decoder layer read."""


def encode(
    path: str | os.PathLike,
    vlm: FrozenVLM,
    hypernetwork: Hypernetwork,
    frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    resolution: int | None = None,
) -> Adapter:
    """Reads a video once and returns the adapter that stands for it (paper section 3).

    path: a local video file
    frames: at most this many; fps: frames per second aimed for; resolution: pixels of a frame's longest edge. Where
        None, what the hypernetwork was trained with
    start, end: seconds of the video, None for its beginning and its end

    The same file, settings, device, dtype and number of threads give the same adapter, bit for bit.
    Raises V2LError where the video cannot be read, or model and hypernetwork do not belong together.
    """
    return encode_reading(path, vlm, hypernetwork, Reading(frames, fps, start, end, resolution))


def encode_reading(
    path: str | os.PathLike,
    vlm: FrozenVLM,
    hypernetwork: Hypernetwork,
    reading: Reading,
    progress: Progress = lambda done, total: None,
) -> Adapter:
    """`encode` with its settings as one value and a callback for those who wait."""
    return finish_encode(start_encode(path, vlm, hypernetwork, reading), vlm, hypernetwork, progress)


def encode_segments(
    path: str | os.PathLike, vlm: FrozenVLM, hypernetwork: Hypernetwork, reading: Reading, segments: int
) -> Adapter:
    """An adapter composed of those of so many segments of one length; `encode_reading`'s where there is one. Raises
    V2LError as `encode` does, and where the segments together have more ranks than engines serve."""
    readings = segment_readings(path, reading, segments)
    return compose([encode_reading(path, vlm, hypernetwork, part) for part in readings])


@dataclass(frozen=True)
class PendingEncode:
    """A video whose first frames are being decoded, in a thread of their own.

    path: as it was given; status: of its file before anything was read
    """

    path: str | os.PathLike
    reading: Reading
    status: tuple[int, int, int, int]
    source: FileIdentity
    plan: FramePlan


def start_encode(
    path: str | os.PathLike, vlm: FrozenVLM, hypernetwork: Hypernetwork, reading: Reading
) -> PendingEncode:
    """The half of encoding that needs no model, so that it can be done while another video is in it."""
    provenance = check_belongs(hypernetwork, vlm)
    reading = fill_reading(reading, provenance.trained_with, vlm.geometry)
    before = _status(path)
    source = identify(path)
    return PendingEncode(path, reading, before, source, plan_frames(path, vlm, reading).prefetch())


def finish_encode(
    pending: PendingEncode, vlm: FrozenVLM, hypernetwork: Hypernetwork, progress: Progress = lambda done, total: None
) -> Adapter:
    """The other half: the frames seen and read, and the factors made of them."""
    path, reading, provenance = pending.path, pending.reading, hypernetwork.provenance
    trained_with, layers = provenance.trained_with, vlm.num_layers
    seen = encode_images(pending.plan, vlm, lambda done, frames: progress(done, frames + layers))
    windows = cut_windows(seen, vlm, trained_with)
    frames = len(seen.frames)
    a, b = generate_factors(windows, vlm, hypernetwork, lambda done, _: progress(frames + done, frames + layers))
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise V2LError(f"{printable(path)} gave factors that are not finite in {vlm.dtype}; use bfloat16 or float32")
    for note in seen.notes:
        warnings.warn(f"{printable(path)}: {printable(note)}", V2LWarning, stacklevel=2)
    checked_ns = time_of_check()
    if _changed(pending):
        raise V2LError(f"{printable(path)} changed while it was being read; encode it again when it is complete")
    start, end = _span(seen, reading)
    segment = Segment(
        source=pending.source,
        start=start,
        end=end,
        timestamps=tuple(frame.seconds for frame in seen.frames),
        width=seen.video.width,
        height=seen.video.height,
        windows=tuple(window.frames for window in windows),
        window_frames=trained_with.window_frames,
        reading=replace(reading, keep_damaged=seen.damaged),
        prompt=trained_with.prompt,
        decoder=decoded_by(decoder_version(), seen.notes),
    )
    rank = hypernetwork.config.rank
    description = Description(
        base_model=BaseModel(vlm.id, vlm.revision, vlm.fingerprint),
        hypernetwork=HypernetworkInfo(provenance.id, provenance.sha256, trained_with.windows, trained_with.segments),
        segments=(segment,),
        blocks=(Block(rank, segments=1, relative_error=0.0),),
        bias_rank=rank,
        v2l_version=__version__,
    )
    return Adapter(a, b, description, checked_ns)


@torch.no_grad()
def generate_factors(
    windows: Sequence[Window],
    vlm: FrozenVLM,
    hypernetwork: Hypernetwork,
    progress: Progress = lambda done, total: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One video's factors, (L, 2R, d_in) and (L, 2R, d_out), float32 on the CPU: the hypernetwork reads the hidden
    states of all windows together, a decoder layer at a time, or all layers at once where they are few."""

    def layers() -> Iterator[Iterator[torch.Tensor]]:
        for index, layer in enumerate(vlm.read_layers(windows)):
            progress(index, vlm.num_layers)
            yield layer

    tokens = sum(len(window.input_ids) for window in windows)
    if tokens * vlm.num_layers <= TOKENS_OF_ALL_LAYERS:
        states = torch.stack([torch.cat(list(pieces), dim=1) for pieces in layers()], dim=1)  # (1, L, T, D)
        factors = hypernetwork.generate(states)
    else:
        factors = hypernetwork.generate(layers())
    progress(vlm.num_layers, vlm.num_layers)
    a, b = zip(*factors, strict=True)
    return torch.cat(a).cpu(), torch.cat(b).cpu()


def _span(seen: EncodedFrames, reading: Reading) -> tuple[float, float]:
    """Seconds that the frames were chosen from, as far as the video goes."""
    frame_range(seen.video, reading.start, reading.end)
    end = seen.video.duration if reading.end is None else min(reading.end, seen.video.duration)
    return round(reading.start or 0.0, 6), round(end, 6)


def _changed(pending: PendingEncode) -> bool:
    """Whether the video may be another than the one that was pending. Where all but the time of its last status change is
    the same, as after a chmod or where somebody set the modification time back, its content decides."""
    now = _status(pending.path)
    return now[:-1] != pending.status[:-1] or (now != pending.status and identify(pending.path) != pending.source)


def _status(path: str | os.PathLike) -> tuple[int, int, int, int]:
    """Inode, size, modification time and status change time."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
