"""The description of a timeline: a video as an overview and consecutive segments, in one file of version 2.

This module imports no torch, so that listing and searching timelines needs neither a model nor its libraries.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from v2l.adapters.description import (
    DTYPES,
    MAX_TIMELINE_HEADER_BYTES,
    TIMELINE_VERSION,
    VERSION,
    AdapterFile,
    BaseModel,
    Block,
    Description,
    HypernetworkInfo,
    Segment,
)
from v2l.errors import V2LError
from v2l.io.files import FileIdentity, unreadable
from v2l.io.records import from_json
from v2l.io.safetensors_file import NUMBER_TYPES, damaged, stated_version
from v2l.io.safetensors_parts import TensorEntry, read_parts_header
from v2l.io.text import printable
from v2l.models.presets import MAX_INDEX_QUESTIONS
from v2l.video.sampling import Reading

MAX_SEGMENTS = 10_000
"""Limit of a timeline. An hour in steps of 12 seconds has 300 segments."""
MAX_TIMELINE_BYTES = 1 << 40
"""Limit of its file: `MAX_SEGMENTS` segments of a large model fit."""


@dataclass(frozen=True)
class Recipe:
    """How encodings of one video were made: the fields of a `Segment` that they share, so that a file states them
    once.

    reading: without start and end, which each encoding states
    """

    source: FileIdentity
    width: int
    height: int
    window_frames: int
    reading: Reading
    prompt: str
    decoder: str


@dataclass(frozen=True)
class TimelinePart:
    """An encoding in a timeline: the overview or a segment.

    recipe: index of its recipe; start, end, timestamps, windows: as in `Segment`; rank, relative_error: as in `Block`
    sha256: of its two tensors, see `tensor_sha256`
    answers: to the questions of the index, in their order; empty if there is no index
    """

    recipe: int
    start: float
    end: float
    timestamps: tuple[float, ...]
    windows: tuple[int, ...]
    rank: int
    relative_error: float
    sha256: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Segmentation:
    """The wishes of a user about segments; None for the default.

    segments: number of segments of equal length; seconds: length of a segment, the last may be shorter
    frames: whether the number of frames was chosen too; it is then that of a segment
    """

    segments: int | None = None
    seconds: float | None = None
    frames: bool = False

    @property
    def is_chosen(self) -> bool:
        """Whether the number or the length of segments was chosen."""
        return self.segments is not None or self.seconds is not None


NO_WISH = Segmentation()


@dataclass(frozen=True)
class TimelineRequest:
    """The settings that a timeline was asked for with. reading: filled, its range as requested"""

    reading: Reading
    segmentation: Segmentation


@dataclass(frozen=True)
class TimelineDescription:
    """All metadata of a timeline, except its number type and its checksum.

    request: None if it was joined from other files
    questions: of the index, answered by every segment while it was encoded
    overview: one encoding of the whole video; None if the segments come from several videos
    segments: in order of time, or in the order in which several timelines were joined
    bias_sha256: of the two tensors of the learned bias
    """

    base_model: BaseModel
    hypernetwork: HypernetworkInfo
    request: TimelineRequest | None
    recipes: tuple[Recipe, ...]
    overview: TimelinePart | None
    segments: tuple[TimelinePart, ...]
    questions: tuple[str, ...]
    bias_rank: int
    bias_sha256: str
    v2l_version: str

    @property
    def parts(self) -> dict[str, TimelinePart]:
        """The overview, if any, and the segments, by the names of their tensors in the file."""
        overview = {} if self.overview is None else {"overview": self.overview}
        return overview | {segment_name(number): part for number, part in enumerate(self.segments)}

    @property
    def rank(self) -> int:
        """Largest rank of a part with the learned bias, as it is attached."""
        return max(part.rank for part in self.parts.values()) + self.bias_rank

    @property
    def sources(self) -> tuple[FileIdentity, ...]:
        """The videos, each once, in order."""
        return tuple(dict.fromkeys(self.recipes[each.recipe].source for each in self.segments))

    @property
    def span(self) -> tuple[float, float]:
        """Start and end of the encoded video in seconds; of several videos, the least and the greatest."""
        return min(each.start for each in self.segments), max(each.end for each in self.segments)

    @property
    def not_validated(self) -> list[str]:
        """The ways in which its encodings, each attached alone, exceed the training of the hypernetwork."""
        found = (self.describe([each]).not_validated for each in self.parts.values())
        return list(dict.fromkeys(note for notes in found for note in notes))

    def segment(self, encoding: TimelinePart) -> Segment:
        """Return an encoding as a segment of an adapter of version 1."""
        recipe = self.recipes[encoding.recipe]
        return Segment(
            source=recipe.source,
            start=encoding.start,
            end=encoding.end,
            timestamps=encoding.timestamps,
            width=recipe.width,
            height=recipe.height,
            windows=encoding.windows,
            window_frames=recipe.window_frames,
            reading=dataclasses.replace(recipe.reading, start=encoding.start or None, end=encoding.end),
            prompt=recipe.prompt,
            decoder=recipe.decoder,
        )

    def describe(self, encodings: Iterable[TimelinePart]) -> Description:
        """Return the description of the adapter that holds these encodings and the learned bias."""
        encodings = tuple(encodings)
        return Description(
            base_model=self.base_model,
            hypernetwork=self.hypernetwork,
            segments=tuple(map(self.segment, encodings)),
            blocks=tuple(Block(each.rank, 1, each.relative_error) for each in encodings),
            bias_rank=self.bias_rank,
            v2l_version=self.v2l_version,
        )


@dataclass(frozen=True)
class TimelineFile:
    """A timeline file whose header was read and conforms to version 2.

    dtype: number type of the factors, "float32" or "bfloat16"; layers: number of decoder layers
    entries: places of the tensors in the file; sha256: of the metadata, which includes the hashes of all parts
    size: bytes of the file; checked_ns: modification time in nanoseconds, as in `Adapter`
    """

    path: Path
    description: TimelineDescription
    dtype: str
    layers: int
    entries: dict[str, TensorEntry] = field(repr=False)
    sha256: str
    size: int
    checked_ns: int

    @property
    def attached_bytes(self) -> int:
        """Bytes of the factors that usually answer a question: of the largest part and the learned bias."""
        sizes = {name: entry.stop - entry.start for name, entry in self.entries.items()}
        parts = [sum(sizes[each] for each in tensor_names(name)) for name in self.description.parts]
        return max(parts) + sum(sizes[each] for each in tensor_names("bias"))

    @classmethod
    def read(cls, path: str | os.PathLike) -> TimelineFile:
        """Read the header of a timeline file. Raises V2LError if it is missing, damaged, of another version, or does
        not conform to version 2."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            header = read_parts_header(path, "adapter", TIMELINE_VERSION, MAX_TIMELINE_BYTES, MAX_TIMELINE_HEADER_BYTES)
        except V2LError:
            if stated_version(path, "adapter", MAX_TIMELINE_HEADER_BYTES) != VERSION:
                raise
            raise V2LError(f"{printable(path)} is an adapter of one encoding; open it with v2l.Adapter.load") from None
        dtype = header.metadata.pop("dtype", None)
        try:
            description = from_json(TimelineDescription, header.metadata, "metadata")
            check_timeline(description)
            layers = _check_entries(header.entries, description, dtype)
        except ValueError as error:
            raise damaged(path, "timeline", printable(error)) from error
        size, checked_ns = status.st_size, status.st_mtime_ns
        return cls(Path(path), description, dtype, layers, header.entries, header.sha256, size, checked_ns)

    @staticmethod
    def is_at(path: str | os.PathLike) -> bool:
        """Return whether a file states version 2 of the adapter format. Checks nothing else."""
        return stated_version(path, "adapter", MAX_TIMELINE_HEADER_BYTES) == TIMELINE_VERSION


def is_adapter_file(path: str | os.PathLike) -> bool:
    """Return whether a file states that it is an adapter or a timeline, of any version and under any name."""
    return stated_version(path, "adapter", MAX_TIMELINE_HEADER_BYTES) is not None


def read_adapter_file(path: str | os.PathLike) -> AdapterFile | TimelineFile:
    """Read an adapter file of either version, a timeline by its header only. Raises V2LError as their `read` do."""
    return TimelineFile.read(path) if TimelineFile.is_at(path) else AdapterFile.read(path)


def segment_name(number: int) -> str:
    """Return the name of a segment's tensors in the file."""
    return f"segments.{number:05d}"


def tensor_names(name: str) -> tuple[str, str]:
    """Return the names of a part's two tensors: A (L, r, d_in) and B (L, r, d_out)."""
    return f"{name}.A", f"{name}.B"


def recipe_of(segment: Segment) -> Recipe:
    """Return the recipe of a segment. `TimelineDescription.segment` is the inverse."""
    return Recipe(
        segment.source,
        segment.width,
        segment.height,
        segment.window_frames,
        dataclasses.replace(segment.reading, start=None, end=None),
        segment.prompt,
        segment.decoder,
    )


def check_timeline(description: TimelineDescription) -> None:
    """Check the conditions that the types do not express. Raises ValueError."""
    segments, recipes = description.segments, description.recipes
    parts = description.parts.values()
    if not 1 <= len(segments) <= MAX_SEGMENTS:
        raise ValueError(f"it has {len(segments):,} segments; from 1 to {MAX_SEGMENTS:,} are allowed")
    if len(description.questions) > MAX_INDEX_QUESTIONS:
        raise ValueError(f"its index has more than {MAX_INDEX_QUESTIONS} questions")
    hashes = [description.bias_sha256, *(each.sha256 for each in parts)]
    if any(not re.fullmatch("[0-9a-f]{64}", each) for each in hashes):
        raise ValueError("a sha256 is not 64 hex digits")
    for each in parts:
        if each.recipe >= len(recipes) or each.rank < 1 or each.start > each.end:
            raise ValueError("a segment has an unknown recipe, an impossible time or no rank")
        if not each.timestamps or sum(each.windows) != len(each.timestamps) or 0 in each.windows:
            raise ValueError("a segment's windows and its frames do not agree")
    if {each.recipe for each in parts} != set(range(len(recipes))):
        raise ValueError("its recipes are not those of its segments")
    if any(recipe.reading.start is not None or recipe.reading.end is not None for recipe in recipes):
        raise ValueError("a recipe states a range")
    if description.request and any(one.end != two.start for one, two in itertools.pairwise(segments)):
        raise ValueError("its segments do not follow one another")
    answered = {len(each.answers) for each in segments}
    if answered != {len(description.questions)} or (description.overview and description.overview.answers):
        raise ValueError("its index and its questions do not agree")


def _check_entries(entries: Mapping[str, TensorEntry], description: TimelineDescription, dtype: str | None) -> int:
    """Return the number of layers. Raises ValueError unless the tensors are those of the parts and the bias, with
    their ranks, in one number type and of one size."""
    ranks = {"bias": description.bias_rank} | {name: part.rank for name, part in description.parts.items()}
    names = {name: tensor_names(name) for name in ranks}
    if list(entries) != [each for pair in names.values() for each in pair]:
        raise ValueError("its tensors are not one pair of factors for the bias and each of its parts, in order")
    if dtype not in DTYPES or {NUMBER_TYPES[entry.dtype] for entry in entries.values()} != {dtype}:
        raise ValueError(f"its tensors are not all {printable(dtype)}")
    sizes = set()
    for name, rank in ranks.items():
        a, b = (entries[each].shape for each in names[name])
        if len(a) != 3 or len(b) != 3 or a[:2] != b[:2] or a[1] != rank:
            raise ValueError(f"the factors of {name} are not of rank {rank}")
        sizes.add((a[0], a[2], b[2]))
    if len(sizes) != 1 or 0 in (size := sizes.pop()):
        raise ValueError("its factors are not all of one size")
    return size[0]
