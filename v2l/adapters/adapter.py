"""The adapter and its file format, version 1.

The file is safetensors. Its tensors have the names that PEFT gives them in a SmolVLMForConditionalGeneration, with
`lora_alpha` folded into B, so that the scale is 1 for every reader. The ranks are in the order segment 1, segment 2,
..., then the learned bias of the hypernetwork once. All other data is one canonical JSON string under the metadata key
`v2l`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from v2l.errors import V2LError
from v2l.io.files import FileIdentity, unreadable
from v2l.io.records import from_json, to_json
from v2l.io.safetensors_file import MAX_HEADER_BYTES, content_sha256, damaged, read_tensors, write_tensors
from v2l.io.text import printable
from v2l.video.sampling import Reading

VERSION = 1
MAX_RANK = 512
"""Largest total rank, bias included: the limit of the serving engines."""
MAX_FILE_BYTES = 1 << 30

_PEFT_NAME = "base_model.model.model.text_model.layers.{layer}.mlp.down_proj.lora_{factor}.weight"
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class BaseModel:
    """The frozen model that an adapter was made for. Only the fingerprint is compared; the rest is for display."""

    id: str
    revision: str | None
    fingerprint: str


@dataclass(frozen=True)
class HypernetworkInfo:
    """The hypernetwork that made an adapter, and the most windows and segments that it was trained with together."""

    id: str
    sha256: str
    trained_windows: int
    trained_segments: int


@dataclass(frozen=True)
class Segment:
    """One segment of video in an adapter, and everything that its content depends on.

    start, end: seconds between which the frames were chosen
    timestamps: seconds of each frame; the prompt states them floored
    width, height: pixels of the displayed video
    windows: number of frames in each prompt; several if the video exceeds the model's positions
    window_frames: the setting for the size of such windows
    reading, prompt: as requested, completed with the hypernetwork's settings
    decoder: name and version of the decoder, the revision of the frame reader, and notes (`sampling.decoded_by`)
    """

    source: FileIdentity
    start: float
    end: float
    timestamps: tuple[float, ...]
    width: int
    height: int
    windows: tuple[int, ...]
    window_frames: int
    reading: Reading
    prompt: str
    decoder: str


@dataclass(frozen=True)
class Block:
    """Consecutive ranks for consecutive segments: one segment as generated, or several after a reduction.

    relative_error: Frobenius norm of the part that the last reduction to `rank` dropped, relative to the whole; 0 if
        nothing was reduced
    """

    rank: int
    segments: int
    relative_error: float


@dataclass(frozen=True)
class Description:
    """All metadata of an adapter."""

    base_model: BaseModel
    hypernetwork: HypernetworkInfo
    segments: tuple[Segment, ...]
    blocks: tuple[Block, ...]
    bias_rank: int
    v2l_version: str

    @property
    def rank(self) -> int:
        """Total rank: all blocks and the bias."""
        return sum(block.rank for block in self.blocks) + self.bias_rank

    @property
    def not_validated(self) -> list[str]:
        """The ways in which this adapter exceeds the training of its hypernetwork, a line each; usually empty."""
        windows = max(len(segment.windows) for segment in self.segments)
        notes = []
        if windows > self.hypernetwork.trained_windows:
            notes.append(f"read in {windows} windows, trained on {self.hypernetwork.trained_windows}: not validated")
        if len(self.segments) > self.hypernetwork.trained_segments:
            trained = self.hypernetwork.trained_segments
            notes.append(f"{len(self.segments)} segments composed, trained on {trained}: not validated")
        return notes


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter for `mlp.down_proj` of every decoder layer: a layer's output changes by (x a^T) b.

    a: (L, R, d_in), b: (L, R, d_out), float32 or bfloat16, `lora_alpha` folded into b
    checked_ns: time in nanoseconds at which the video was last known to be the described one; None if unknown. It is
        the modification time of the file, not part of its content; staleness.py compares it with the video's times
    """

    a: torch.Tensor
    b: torch.Tensor
    description: Description
    checked_ns: int | None = None

    def __post_init__(self) -> None:
        if self.a.dtype != self.b.dtype or self.a.dtype not in _DTYPE_NAMES or self.a.shape[:2] != self.b.shape[:2]:
            raise V2LError(
                f"factors of shapes {tuple(self.a.shape)} and {tuple(self.b.shape)} in {self.a.dtype} and "
                f"{self.b.dtype} are not an adapter; both must be (layers, ranks, width), in float32 or bfloat16"
            )

    @property
    def rank(self) -> int:
        """Total rank R, the learned bias included."""
        return self.a.shape[1]

    def bias_alone(self) -> Adapter:
        """Return a copy with the generated ranks set to zero: the part that all adapters of the hypernetwork share."""
        b = self.b.clone()
        b[:, : self.rank - self.description.bias_rank] = 0
        return replace(self, b=b)

    def sha256(self) -> str:
        """Return the sha256 of metadata and tensors, which the file also states."""
        return content_sha256(self._metadata(), self.named_tensors())

    def save(self, path: str | os.PathLike) -> None:
        """Write the adapter file, atomically. The same adapter gives the same bytes. Raises V2LError if it cannot be
        written, or if `load` would refuse it."""
        try:
            _check_description(from_json(Description, to_json(self.description), "metadata"))
            if not (torch.isfinite(self.a).all() and torch.isfinite(self.b).all()):
                raise ValueError("its factors are not all finite")
            if self.a.nbytes + self.b.nbytes + MAX_HEADER_BYTES > MAX_FILE_BYTES:
                raise ValueError(f"it would have more than {MAX_FILE_BYTES:,} bytes")
        except ValueError as error:
            raise V2LError(
                f"the adapter {printable(path)} was not written, v2l could not read it again: {printable(error)}"
            ) from error
        write_tensors(path, self.named_tensors(), self._metadata(), self.checked_ns)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Adapter:
        """Read an adapter file onto the CPU. Raises V2LError if it is missing, damaged, of another version, or does not
        conform to version 1."""
        try:
            checked_ns = os.stat(path).st_mtime_ns
        except OSError as error:
            raise unreadable(path, error) from error
        tensors, metadata = read_tensors(path, "adapter", VERSION, MAX_FILE_BYTES)
        dtype = metadata.pop("dtype", None)
        metadata.pop("sha256")
        try:
            description = from_json(Description, metadata, "metadata")
            _check_description(description)
            if [*{_DTYPE_NAMES.get(tensor.dtype) for tensor in tensors.values()}] != [dtype]:
                raise ValueError(f"its tensors are not all {dtype}")
            a, b = _stack(tensors, description.rank)
        except ValueError as error:
            raise damaged(path, "adapter", printable(error)) from error
        return cls(a, b, description, checked_ns)

    def _metadata(self) -> dict:
        return {
            "format": "v2l-adapter",
            "version": VERSION,
            "dtype": _DTYPE_NAMES[self.a.dtype],
            **to_json(self.description),
        }

    def named_tensors(self) -> dict[str, torch.Tensor]:
        """Return A, (R, d_in), and B, (d_out, R), of every layer under their PEFT names, contiguous."""
        named = {}
        for layer in range(len(self.a)):
            named[_PEFT_NAME.format(layer=layer, factor="A")] = self.a[layer].contiguous()
            named[_PEFT_NAME.format(layer=layer, factor="B")] = self.b[layer].T.contiguous()
        return named


def check_rank(rank: int) -> None:
    """Raise V2LError if a total rank is larger than engines serve."""
    if rank > MAX_RANK:
        raise V2LError(
            f"the adapter would have rank {rank}, and engines serve at most {MAX_RANK}; use fewer segments, "
            "or reduce them with: v2l compose --rank (rank= in Python)"
        )


def _stack(tensors: dict[str, torch.Tensor], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the file's tensors, exactly one pair per layer, to (L, R, d_in) and (L, R, d_out). Raises ValueError."""
    layers = len(tensors) // 2
    names = {(layer, f): _PEFT_NAME.format(layer=layer, factor=f) for layer in range(layers) for f in "AB"}
    if not layers or tensors.keys() != set(names.values()):
        raise ValueError("its tensors are not one pair of factors for each layer")
    factors_a = [tensors[names[layer, "A"]] for layer in range(layers)]
    factors_b = [tensors[names[layer, "B"]] for layer in range(layers)]
    shapes_a, shapes_b = {tensor.shape for tensor in factors_a}, {tensor.shape for tensor in factors_b}
    uniform = len(shapes_a) == len(shapes_b) == 1 and {len(shape) for shape in shapes_a | shapes_b} == {2}
    if not uniform or factors_a[0].shape[0] != rank or factors_b[0].shape[1] != rank:
        raise ValueError(f"its factors are not all of rank {rank} and of one size")
    return torch.stack(factors_a), torch.stack([factor.T for factor in factors_b])


def _check_description(description: Description) -> None:
    """Check the conditions that the types do not express. Raises ValueError."""
    if not description.segments or sum(block.segments for block in description.blocks) != len(description.segments):
        raise ValueError("its ranks and its segments do not agree")
    if any(block.rank < 1 or block.segments < 1 for block in description.blocks):
        raise ValueError("it has an empty block of ranks")
    if description.rank > MAX_RANK:
        raise ValueError(f"it has rank {description.rank}, more than {MAX_RANK}")
    for segment in description.segments:
        if not segment.timestamps or sum(segment.windows) != len(segment.timestamps) or 0 in segment.windows:
            raise ValueError("a segment's windows and its frames do not agree")
