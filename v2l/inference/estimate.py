"""Estimate how long encodings take, before the first of them: the operations of the networks, at the measured speed of
a matrix product, and the frames to decode, at the measured speed of the first ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from v2l.inference.encode import ADAPTER_TYPE
from v2l.models.config import SmolVLMConfig, VisionGeometry
from v2l.models.hypernetwork_file import HypernetworkConfig
from v2l.video.container import decoding_threads
from v2l.video.decoder import frames_to_decode
from v2l.video.sampling import Video

MEASURED_SECONDS = 0.05
LEAST_PIXEL_COST = 2e-9
"""Processor seconds that decoding a pixel of any frame takes at least."""
TEXT_TOKENS = 30
"""Tokens of text around a frame in the prompt."""
ANSWER_TOKENS = 16
"""Typical length of an answer in the index."""


@dataclass(frozen=True)
class Networks:
    """The sizes of a frozen model and of its hypernetwork, and where and in which type they run."""

    config: SmolVLMConfig
    geometry: VisionGeometry
    hypernetwork: HypernetworkConfig
    device: torch.device
    dtype: torch.dtype


def factor_bytes(config: HypernetworkConfig, parts: int) -> int:
    """Return the size of the factors of so many encodings, and of the learned bias, in an adapter's file."""
    ranks = parts * config.rank + config.rank
    return config.num_layers * ranks * (config.intermediate_size + config.hidden_size) * ADAPTER_TYPE.itemsize


def seconds_per_encoding(networks: Networks, frames: int, questions: int = 0) -> float:
    """Estimate the seconds of one encoding without tiles, from the number of frames and of questions for the index.

    Within a factor of about two; decoding and overheads are not included.
    """
    language, vision = networks.config.text_config, networks.config.vision_config
    tokens = frames * (networks.geometry.tokens_per_image + TEXT_TOKENS)
    patches = (vision.image_size // vision.patch_size) ** 2
    # Two operations per weight and token, and attention
    tower = vision.num_hidden_layers * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)
    attention = 2 * vision.num_hidden_layers * vision.hidden_size * patches
    operations = 2 * frames * patches * (tower + attention)
    decoder = language.num_hidden_layers * (
        2 * language.hidden_size**2 + 3 * language.hidden_size * language.intermediate_size
    )
    operations += 2 * tokens * (decoder + language.num_hidden_layers * language.hidden_size * tokens)
    # Every decoder layer's tokens are projected and read by each block of the Perceiver
    c = networks.hypernetwork
    projection = 8 * c.hidden_size**2 + 4 * c.hidden_size * c.latent_size
    reading = 2 * c.num_blocks * c.latent_size * c.num_kv_heads * c.head_dim
    operations += 2 * tokens * c.num_layers * (projection + reading)
    # An answer reads all weights of the decoder for every token
    steps = questions and ANSWER_TOKENS * decoder
    return operations * _seconds_per_operation(networks, 256) + 2 * steps * _seconds_per_operation(networks, 1)


def seconds_to_decode(video: Video, wanted: Sequence[int]) -> float:
    """Estimate the seconds of decoding the frames with these ascending indices: all frames from the key frame before
    the first to the last.

    Within a factor of about two (docs/speed.md), and rather too many.
    """
    # The first frames may be empty, and so cheaper than the others
    each = max(video.frame_cost, LEAST_PIXEL_COST * video.width * video.height)
    return frames_to_decode(video, wanted) * each / decoding_threads()


@cache
def _seconds_per_operation(networks: Networks, rows: int) -> float:
    """Measure a product of that many rows with a matrix of the decoder's size, once."""
    text, device, dtype = networks.config.text_config, networks.device, networks.dtype
    x = torch.ones(rows, text.hidden_size, dtype=dtype, device=device)
    weights = torch.ones(text.hidden_size, text.intermediate_size, dtype=dtype, device=device)
    seconds = _timed(lambda: float((x @ weights)[0, 0]))
    return seconds / (2 * rows * text.hidden_size * text.intermediate_size)


def _timed(work: Callable[[], object]) -> float:
    """Return the least time of a call among those that fit into `MEASURED_SECONDS`, after a warm-up."""
    work()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < MEASURED_SECONDS:
        before = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - before)
    return best
