"""The adapter's file format, version 1, read and checked without torch.

The file is safetensors. Its tensors have the names that PEFT gives them in a SmolVLMForConditionalGeneration, with
`lora_alpha` folded into B, so that the scale is 1 for every reader. The ranks are in the order segment 1, segment 2,
..., then the learned bias of the hypernetwork once. All other data is one canonical JSON string under the metadata key
`v2l`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from v2l.errors import V2LError
from v2l.io.files import FileIdentity, unreadable
from v2l.io.records import from_json
from v2l.io.safetensors_file import NUMBER_TYPES, TensorBytes, damaged, read_sealed, stated_version
from v2l.io.text import printable
from v2l.video.sampling import Reading

VERSION, TIMELINE_VERSION = 1, 2
"""Versions of the format: an adapter, and a timeline (`timeline_description.py`)."""
MAX_TIMELINE_HEADER_BYTES = 64 << 20
"""Limit of a timeline's header: thousands of segments fit."""
MAX_RANK = 512
"""Largest total rank, bias included: the limit of the serving engines."""
MAX_FILE_BYTES = 1 << 30
DTYPES = ("float32", "bfloat16")
"""The number types of factors."""
PEFT_NAME = "base_model.model.model.text_model.layers.{layer}.mlp.down_proj.lora_{factor}.weight"
"""Name of a factor in the file: A is (R, d_in), B is (d_out, R)."""


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
    def sources(self) -> tuple[FileIdentity, ...]:
        """The videos, each once, in order."""
        return tuple(dict.fromkeys(segment.source for segment in self.segments))

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


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file that was read whole and conforms to version 1.

    dtype: number type of the factors, "float32" or "bfloat16"; layers: number of decoder layers
    sha256: of metadata and tensors, as the file states it; size: bytes of the file
    checked_ns: modification time in nanoseconds: when the video was last known to be the described one
    tensors: the factors under their PEFT names
    """

    description: Description
    dtype: str
    layers: int
    sha256: str
    size: int
    checked_ns: int
    tensors: dict[str, TensorBytes] = field(repr=False)

    @property
    def attached_bytes(self) -> int:
        """Bytes of the factors that answer a question."""
        return self.size

    @classmethod
    def read(cls, path: str | os.PathLike) -> AdapterFile:
        """Read an adapter file. Raises V2LError if it is missing, damaged, of another version, or does not conform to
        version 1."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            tensors, metadata = read_sealed(path, "adapter", VERSION, MAX_FILE_BYTES)
        except V2LError:
            if stated_version(path, "adapter", MAX_TIMELINE_HEADER_BYTES) != TIMELINE_VERSION:
                raise
            raise V2LError(f"{printable(path)} is a timeline; open it with v2l.Timeline.load") from None
        dtype, sha256 = metadata.pop("dtype", None), metadata.pop("sha256")
        try:
            description = from_json(Description, metadata, "metadata")
            check_description(description)
            if dtype not in DTYPES or {NUMBER_TYPES[tensor.dtype] for tensor in tensors.values()} != {dtype}:
                raise ValueError(f"its tensors are not all {dtype}")
            layers = _check_factors(tensors, description.rank)
        except ValueError as error:
            raise damaged(path, "adapter", printable(error)) from error
        return cls(description, dtype, layers, sha256, status.st_size, status.st_mtime_ns, tensors)


def check_rank(rank: int) -> None:
    """Raise V2LError if a total rank is larger than engines serve."""
    if rank > MAX_RANK:
        raise V2LError(
            f"the adapter would have rank {rank}, and engines serve at most {MAX_RANK}; use fewer segments, "
            "or reduce them with: v2l compose --rank (rank= in Python)"
        )


def check_description(description: Description) -> None:
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


def _check_factors(tensors: dict[str, TensorBytes], rank: int) -> int:
    """Return the number of layers. Raises ValueError unless there is exactly one pair of factors per layer, all of one
    size and of this rank."""
    layers = len(tensors) // 2
    names = {f: [PEFT_NAME.format(layer=layer, factor=f) for layer in range(layers)] for f in "AB"}
    if not layers or tensors.keys() != {*names["A"], *names["B"]}:
        raise ValueError("its tensors are not one pair of factors for each layer")
    shapes_a, shapes_b = ({tensors[name].shape for name in names[factor]} for factor in "AB")
    uniform = len(shapes_a) == len(shapes_b) == 1 and {len(shape) for shape in shapes_a | shapes_b} == {2}
    if not uniform or shapes_a.pop()[0] != rank or shapes_b.pop()[1] != rank:
        raise ValueError(f"its factors are not all of rank {rank} and of one size")
    return layers
