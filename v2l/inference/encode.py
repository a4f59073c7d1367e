"""Encode a video into an adapter: the only module that combines frames, prompt, model and hypernetwork.

Training, evaluation and benchmarks call its parts. `ask.py` answers from the adapter.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from v2l import __version__
from v2l.adapters.adapter import Adapter
from v2l.adapters.description import BaseModel, Block, Description, HypernetworkInfo, Segment
from v2l.adapters.segments import compose
from v2l.errors import V2LError, V2LWarning
from v2l.inference.preprocess import EncodedFrames, FramePlan, cut_windows, encode_images, plan_frames
from v2l.inference.readings import fill_reading, segment_readings
from v2l.io.files import FileIdentity, identify, time_of_check, unreadable
from v2l.io.text import printable
from v2l.models.checkpoint import check_belongs
from v2l.models.device import FEWER_FRAMES, memory_errors
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import HypernetworkConfig, Provenance
from v2l.models.smolvlm import FrozenVLM, Window
from v2l.video.client import decoder_version, probe
from v2l.video.sampling import Reading, Video, decoded_by, frame_range

logger = logging.getLogger(__name__)

GROUP_BYTES = 32 << 20
"""Memory that the hypernetwork may take on the CPU to resample several layers together: the number of operations
dominates the time of a short video, and the caches that of a long one (docs/speed.md)."""
GROUP_SHARE = 16
"""On CUDA, that memory is one part in so many of the device's."""

ADAPTER_TYPE = torch.bfloat16
"""Number type of adapters, whatever that of the model is. Rounding to it left the answers of `tiny` to 3,439 test
questions unchanged (docs/format.md)."""

Progress = Callable[[int, int], None]
"""Called with the steps done and the total: a step is an encoded frame or a decoder layer."""


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
    """Encode a video into an adapter (paper section 3).

    path: a local video file
    frames: maximum number of frames; fps: frames per second to sample; resolution: longest edge of a frame in pixels.
        None takes the value that the hypernetwork was trained with
    start, end: range of the video in seconds, None for its beginning and its end

    The same file, settings, device, dtype and number of threads give the same adapter, bit for bit.
    Raises V2LError if the video cannot be read, or if the hypernetwork was trained for another model, and ModelError
    if the memory does not suffice.
    """
    return encode_reading(path, vlm, hypernetwork, Reading(frames, fps, start, end, resolution))


def encode_reading(
    path: str | os.PathLike,
    vlm: FrozenVLM,
    hypernetwork: Hypernetwork,
    reading: Reading,
    progress: Progress = lambda done, total: None,
) -> Adapter:
    """`encode` with its settings in one `Reading` and a progress callback."""
    return finish_encode(start_encode(open_video(path), vlm, hypernetwork, reading), vlm, hypernetwork, progress)


def encode_segments(
    path: str | os.PathLike, vlm: FrozenVLM, hypernetwork: Hypernetwork, reading: Reading, segments: int
) -> Adapter:
    """Encode segments of equal length and compose their adapters; one segment is the same as `encode_reading`. Raises
    V2LError as `encode` does, and if the composed rank exceeds what inference engines serve."""
    opened = open_video(path)
    readings = segment_readings(opened.video, reading, segments)
    pending = (start_encode(opened, vlm, hypernetwork, part) for part in readings)
    return compose([finish_encode(part, vlm, hypernetwork) for part in pending])


@dataclass(frozen=True)
class OpenedVideo:
    """A video file before it is read. path: as given; status: of the file; source: its identity; video: its probe"""

    path: str | os.PathLike
    status: tuple[int, int, int, int]
    source: FileIdentity
    video: Video

    def check_unchanged(self) -> None:
        """Raise V2LError if the file may have changed since it was opened. If only its status change time differs, as
        after a chmod or a reset modification time, its content decides."""
        now = _status(self.path)
        if now[:-1] != self.status[:-1] or (now != self.status and identify(self.path) != self.source):
            raise V2LError(
                f"{printable(self.path)} changed while it was being read; encode it again when it is complete"
            )


def open_video(path: str | os.PathLike) -> OpenedVideo:
    """Hash and probe a video. Raises V2LError if it cannot be read."""
    status = _status(path)
    return OpenedVideo(path, status, identify(path), probe(path))


@dataclass(frozen=True)
class PendingEncode:
    """A video whose first frames are being decoded in a background thread. reading: filled"""

    opened: OpenedVideo
    reading: Reading
    provenance: Provenance
    plan: FramePlan


def start_encode(opened: OpenedVideo, vlm: FrozenVLM, hypernetwork: Hypernetwork, reading: Reading) -> PendingEncode:
    """Start to encode a video: the part that does not run the model, so that another video can use it meanwhile."""
    provenance = check_belongs(hypernetwork, vlm)
    reading = fill_reading(reading, provenance.trained_with, vlm.geometry)
    return PendingEncode(opened, reading, provenance, plan_frames(opened.video, vlm, reading).prefetch())


def finish_encode(
    pending: PendingEncode, vlm: FrozenVLM, hypernetwork: Hypernetwork, progress: Progress = lambda done, total: None
) -> Adapter:
    """Run the model on a started encode and return the adapter."""
    path, started = pending.opened.path, time.perf_counter()
    with memory_errors(f"encoding {printable(path)}", vlm.device, vlm.dtype, fix=FEWER_FRAMES):
        encoded = encode_images(pending.plan, vlm, lambda done, frames: progress(done, frames + vlm.num_layers))
    tower = time.perf_counter() - started - encoded.waited
    logger.debug(
        "%s: %d frames, waited %.2f s for decoding, vision tower %.2f s",
        path,
        len(encoded.frames),
        encoded.waited,
        tower,
    )
    return adapter_from_frames(pending, encoded, vlm, hypernetwork, progress)


def adapter_from_frames(
    pending: PendingEncode,
    encoded: EncodedFrames,
    vlm: FrozenVLM,
    hypernetwork: Hypernetwork,
    progress: Progress = lambda done, total: None,
) -> Adapter:
    """Return the adapter of a started encode whose frames the vision tower has encoded."""
    path, reading, provenance = pending.opened.path, pending.reading, pending.provenance
    trained_with, frames, layers = provenance.trained_with, len(encoded.frames), vlm.num_layers
    started = time.perf_counter()

    # Read the hidden states
    with memory_errors(f"encoding {printable(path)}", vlm.device, vlm.dtype, fix=FEWER_FRAMES):
        windows = cut_windows(encoded, vlm, trained_with)
        factors = generate_factors(windows, vlm, hypernetwork, lambda done, _: progress(frames + done, frames + layers))
    a, b = (factor.to(ADAPTER_TYPE) for factor in factors)
    logger.debug("%s: language model and hypernetwork %.2f s", path, time.perf_counter() - started)

    # Check the factors and that the file did not change meanwhile
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise V2LError(f"{printable(path)} gave factors that are not finite in {vlm.dtype}; use bfloat16 or float32")
    for note in encoded.notes:
        warnings.warn(f"{printable(path)}: {printable(note)}", V2LWarning, stacklevel=2)
    checked_ns = time_of_check()
    pending.opened.check_unchanged()

    # Describe how the adapter was made
    start, end = _span(encoded, reading)
    segment = Segment(
        source=pending.opened.source,
        start=start,
        end=end,
        timestamps=tuple(frame.seconds for frame in encoded.frames),
        width=encoded.video.width,
        height=encoded.video.height,
        windows=tuple(window.frames for window in windows),
        window_frames=trained_with.window_frames,
        reading=replace(reading, keep_damaged=encoded.damaged),
        prompt=trained_with.prompt,
        decoder=decoded_by(decoder_version(), encoded.notes),
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
    """Generate the factors of one video: (L, 2R, d_in) and (L, 2R, d_out), float32 on the CPU. The hypernetwork reads
    the hidden states of all windows together, one decoder layer at a time, and resamples `layers_at_once`."""

    def layers() -> Iterator[Iterator[torch.Tensor]]:
        for index, layer in enumerate(vlm.read_layers(windows)):
            progress(index, vlm.num_layers)
            yield layer

    tokens = sum(len(window.input_ids) for window in windows)
    together = layers_at_once(hypernetwork.config, tokens, group_bytes(vlm.device), vlm.dtype)
    factors = hypernetwork.generate(layers(), layers_at_once=together)
    progress(vlm.num_layers, vlm.num_layers)
    a, b = zip(*factors, strict=True)
    return torch.cat(a).cpu(), torch.cat(b).cpu()


def group_bytes(device: torch.device) -> int:
    """Return the memory for a group of layers. It does not depend on what else runs: groups affect the order of sums,
    and the same video gives the same bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // GROUP_SHARE
    return GROUP_BYTES


def layers_at_once(config: HypernetworkConfig, tokens: int, budget: int, dtype: torch.dtype) -> int:
    """Return how many layers of so many tokens are resampled together in `budget` bytes, at least one."""
    # Per token: the context and its copy; the scores in their type twice, and in float32 three times
    context = 2 * config.latent_size * dtype.itemsize
    scores = config.num_heads * config.num_latents * (2 * dtype.itemsize + 3 * 4)
    return max(1, min(config.num_layers, budget // max(1, tokens * (context + scores))))


def _span(encoded: EncodedFrames, reading: Reading) -> tuple[float, float]:
    """Range in seconds that the frames were chosen from, clipped to the video."""
    frame_range(encoded.video, reading.start, reading.end)
    end = encoded.video.duration if reading.end is None else min(reading.end, encoded.video.duration)
    return round(reading.start or 0.0, 6), round(end, 6)


def _status(path: str | os.PathLike) -> tuple[int, int, int, int]:
    """Inode, size, modification time and status change time."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
