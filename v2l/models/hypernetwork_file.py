"""A hypernetwork's file, read and checked without torch: its sizes, its provenance and what it was trained with.

The file is sealed safetensors: the published state dict under its published names, and metadata that states the sizes,
the frozen model that the hypernetwork belongs to, and the settings it was trained with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.records import added_later, from_json, to_json
from v2l.io.safetensors_file import NUMBER_TYPES, TensorBytes, damaged, read_metadata, read_sealed
from v2l.io.text import printable
from v2l.models.config import MAX_FRAME_SIZE
from v2l.models.presets import EMBEDDED, MAX_INDEX_QUESTIONS, PRESETS, cached_hypernetwork, check_no_repository

VERSION = 1
MAX_SIZE = 2**18
"""Largest width, rank or number of layers: ten times that of any such network, and no product of them overflows."""
MAX_BLOCKS = 1000
MAX_FILE_BYTES = 4 << 30
FILE_NAME = "hypernetwork.safetensors"
"""Name of the hypernetwork's file in a model folder."""

TARGET = "down_proj"
"""The one module of each decoder layer that is adapted, by its name in the published state dict."""

INTERNALIZATION_PROMPT = "Internalize this video for later captioning."
"""The text after the video with which the published hypernetworks were trained and are used."""


@dataclass(frozen=True)
class HypernetworkConfig:
    """Sizes of a hypernetwork. The defaults are those of the published checkpoints.

    num_layers, hidden_size, intermediate_size: L, D and the MLP width of the frozen model that it belongs to
    lora_alpha: the multiplier of the product of the factors; 2 * rank ** 1.5 in the published checkpoints
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    rank: int = 16
    lora_alpha: float = 128.0
    latent_size: int = 512
    num_latents: int = 8
    num_blocks: int = 9
    num_heads: int = 16
    num_kv_heads: int = 4
    head_dim: int = 128


@dataclass(frozen=True)
class TrainedWith:
    """Settings that a hypernetwork was trained with: the defaults for encoding with it.

    frames, fps: at most this many frames, sampled at this rate
    resolution: pixels of a frame's longest edge; None for the default of the frozen model
    prompt: the text that follows the video
    window_frames: frames in each window of a video that exceeds the model's positions
    windows, segments: the largest number of windows in one adapter, and of segments composed together, in training
    marks_end: whether the prompt announces the last frame of the video as such, which distinguishes the last segment
        from the others; False for the published checkpoints
    index_questions: questions about the contents of its training videos, which every segment of a timeline answers so
        that it can be found; empty for the default, see `inference.timeline.index_questions`
    """

    frames: int = 12
    fps: float = 1.0
    resolution: int | None = None
    prompt: str = INTERNALIZATION_PROMPT
    window_frames: int = 12
    windows: int = 1
    segments: int = 1
    marks_end: bool = added_later(False)
    index_questions: tuple[str, ...] = added_later(())

    def check(self) -> None:
        """Raise ValueError for a value that v2l cannot encode with."""
        for name, (lowest, highest) in _TRAINING_LIMITS.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                raise ValueError(f"trained_with.{name} must be from {lowest:,} to {highest:,}")
        if len(self.index_questions) > MAX_INDEX_QUESTIONS or not all(map(str.strip, self.index_questions)):
            raise ValueError(f"trained_with.index_questions has an empty one or more than {MAX_INDEX_QUESTIONS}")
        for name, texts in (("prompt", (self.prompt,)), ("index_questions", self.index_questions)):
            if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
                raise ValueError(f"trained_with.{name} is not UTF-8 text")


_TRAINING_LIMITS = {
    "frames": (1, 999_999),  # the prompt spells their number
    "fps": (1e-6, 1e6),
    "resolution": (1, MAX_FRAME_SIZE),
    "window_frames": (1, 999_999),
    "windows": (1, 999_999),
    "segments": (1, 999_999),
}


@dataclass(frozen=True)
class Provenance:
    """The provenance of a hypernetwork's weights.

    base_model: public name of the frozen model that it was trained for
    base_fingerprint: the fingerprint of that model; None for published checkpoints, which do not state it
    sha256: of configuration, provenance and weights
    """

    id: str
    base_model: str
    base_fingerprint: str | None
    trained_with: TrainedWith
    sha256: str

    def check(self) -> None:
        """Raise ValueError if a hash is not 64 hex digits, or if `TrainedWith.check` does."""
        for name in ("base_fingerprint", "sha256"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
                raise ValueError(f"{name} is not 64 hex digits")
        self.trained_with.check()


@dataclass(frozen=True)
class HypernetworkFile:
    """A hypernetwork's file that was read whole: exactly the weights of its sizes, under their published names."""

    config: HypernetworkConfig
    provenance: Provenance
    weights: dict[str, TensorBytes] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> HypernetworkFile:
        """Read a .safetensors file. Raises V2LError if it is missing, damaged or not a hypernetwork that v2l
        implements."""
        weights, metadata = read_sealed(path, "hypernetwork", VERSION, MAX_FILE_BYTES)
        config, provenance = _described(metadata, path)
        try:
            check_weights(config, {name: (NUMBER_TYPES[each.dtype], each.shape) for name, each in weights.items()})
        except ValueError as error:
            raise damaged(path, "hypernetwork", printable(error)) from error
        return cls(config, provenance, weights)


def read_header(path: Path) -> tuple[HypernetworkConfig, Provenance]:
    """Read the sizes and the provenance in a .safetensors file, without its weights. Raises V2LError."""
    return _described(read_metadata(path, "hypernetwork", VERSION, MAX_FILE_BYTES), path)


def _described(metadata: dict[str, Any], path: Path) -> tuple[HypernetworkConfig, Provenance]:
    try:
        config = from_json(HypernetworkConfig, metadata.pop("config", None), "config")
        provenance = from_json(Provenance, metadata, "metadata")
        provenance.check()
        return config, provenance
    except ValueError as error:
        raise damaged(path, "hypernetwork", printable(error)) from error


def file_metadata(config: HypernetworkConfig, provenance: Provenance) -> dict[str, Any]:
    """Return the metadata of the file without the sha256, which is computed over it and the weights."""
    described = to_json(provenance)
    described.pop("sha256")
    return {"format": "v2l-hypernetwork", "version": VERSION, "config": to_json(config), **described}


def locate(source: str | os.PathLike) -> Path:
    """Return the path of a hypernetwork's file, a .safetensors or a published .pt. Raises V2LError if it cannot be one.

    source: a preset, a file, or a folder that holds `FILE_NAME`
    """
    source = os.fspath(source)
    if source == "tiny":
        return EMBEDDED / FILE_NAME
    if source in PRESETS:
        return cached_hypernetwork(PRESETS[source])
    path = Path(source)
    if os.path.isdir(path):  # unlike Path.is_dir, it never raises
        path = path / FILE_NAME
        if not os.path.lexists(path):
            raise V2LError(
                f"{printable(source)} has no hypernetwork ({FILE_NAME}), which encoding needs; train one with v2l "
                "train, name one with --hypernetwork, or ask with the video in the prompt: v2l ask --in-context VIDEO"
            )
    check_no_repository(source)
    if path.suffix not in (".pt", ".safetensors"):
        raise V2LError(
            f"{printable(path)} is not a hypernetwork; name a .safetensors, a published .pt or one of "
            f"{', '.join(['tiny', *PRESETS])}"
        )
    return path


def check_weights(config: HypernetworkConfig, stored: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise ValueError unless the sizes are in range and the weights are exactly theirs.

    stored: number type ("float32", or one of half precision) and shape by name
    """
    sizes = to_json(config).values()
    in_range = 0 < min(sizes) <= max(sizes) <= MAX_SIZE and config.num_blocks <= MAX_BLOCKS
    if not in_range or config.num_heads % config.num_kv_heads:
        raise ValueError("its sizes are out of range")
    expected = dict(weight_shapes(config))
    for name in sorted(expected.keys() ^ stored.keys()):
        raise ValueError(f"{name} is {'missing' if name in expected else 'not part of such a hypernetwork'}")
    for name, (dtype, shape) in stored.items():
        if shape != expected[name] or dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"{name} is {shape} {dtype}, not {expected[name]} float32")


def weight_shapes(config: HypernetworkConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every weight of a hypernetwork: those of the state dict in `hypernetwork.py`."""
    c, width = config, config.latent_size
    reader = "aggregator.perceiver."
    yield from _gated_mlp(f"{reader}modality_projection.", c.hidden_size, 4 * c.hidden_size, width)
    for name, latents, blocks in (("encoder", c.num_latents, c.num_blocks), ("decoder", c.rank, 1)):
        yield f"{reader}{name}.latents_q", (latents, width)
        yield f"{reader}{name}.layernorm.weight", (width,)
        for index in range(blocks):
            yield from _resampler_layer(f"{reader}{name}.layers.{index}.", c)
    for place, rows, columns in ((2, 4 * width, width), (5, width, 4 * width)):
        yield f"layers.0.mlp.{place}.weight", (rows, columns)
        yield f"layers.0.mlp.{place}.bias", (rows,)
    for place in (0, 6):
        yield f"layers.0.mlp.{place}.weight", (width,)
        yield f"layers.0.mlp.{place}.bias", (width,)
    yield "head.weight", (c.num_layers, width, c.intermediate_size + c.hidden_size)
    for factor, size in (("A", c.intermediate_size), ("B", c.hidden_size)):
        yield f"bias_{factor}.{TARGET}", (c.num_layers, c.rank, size)
        yield f"scaler_{factor}.{TARGET}", (1, c.num_layers, c.rank, 1)


def _resampler_layer(prefix: str, c: HypernetworkConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = c.latent_size
    for name in ("input_latents", "input_context", "post_attention", "pre_ff", "post_ff"):
        yield f"{prefix}{name}_layernorm.weight", (width,)
    for name, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
        yield f"{prefix}self_attn.{name}_proj.weight", (heads * c.head_dim, width)
    yield f"{prefix}self_attn.o_proj.weight", (width, c.num_heads * c.head_dim)
    yield from _gated_mlp(f"{prefix}mlp.", width, 4 * width, width)


def _gated_mlp(prefix: str, inputs: int, inner: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}gate_proj.weight", (inner, inputs)
    yield f"{prefix}up_proj.weight", (inner, inputs)
    yield f"{prefix}down_proj.weight", (outputs, inner)
