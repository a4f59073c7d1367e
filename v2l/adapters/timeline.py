"""The timeline: a long video as an overview and segments in one file, of which a question reads only its part.

The file, version 2, is safetensors like version 1 (docs/format.md). The factors of every part are two stacked tensors
with a hash of their own, and the learned bias is stored once. Opening a timeline reads its header; the parts that are
attached are read and checked when they are needed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from v2l import __version__
from v2l.adapters.adapter import Adapter
from v2l.adapters.description import MAX_RANK, MAX_TIMELINE_HEADER_BYTES, TIMELINE_VERSION, check_rank
from v2l.adapters.own_times import for_segments
from v2l.adapters.routing import RoutedBy, Router
from v2l.adapters.segments import Factors, check_alike, select_segments, split_bias
from v2l.adapters.timeline_description import (
    Recipe,
    TimelineDescription,
    TimelineFile,
    TimelinePart,
    TimelineRequest,
    check_timeline,
    recipe_of,
    segment_name,
    tensor_names,
)
from v2l.errors import V2LError
from v2l.io.records import from_json, to_json
from v2l.io.safetensors_file import TensorBytes, canonical_json, damaged
from v2l.io.safetensors_parts import read_entries, write_parts
from v2l.io.tensors import dtype_name, to_bytes, to_tensors
from v2l.io.text import printable

KEPT_ATTACHED = 4
"""Adapters of a timeline that stay in memory for further questions."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """A timeline file that is open: its description, and its parts on demand.

    description, dtype, sha256, checked_ns: as in `TimelineFile`
    """

    file: TimelineFile

    _attached: dict[tuple[str, ...], Adapter] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Timeline:
        """Open a timeline file by its header. Raises V2LError if it is missing, damaged, or of another version."""
        return cls(TimelineFile.read(path))

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def description(self) -> TimelineDescription:
        """All metadata."""
        return self.file.description

    def overview(self) -> Adapter:
        """Read the overview as an adapter. Raises V2LError if it is damaged, or if the file has none because it joins
        several videos."""
        if self.description.overview is None:
            raise V2LError(
                f"{printable(self.path)} joins several videos and has no overview; name a time, or ask every segment "
                "with --each"
            )
        return self._adapter({"overview": self.description.overview})

    def select(self, numbers: Sequence[int]) -> Adapter:
        """Read segments as one adapter: their ranks in the given order, and the learned bias once.

        numbers: indices of segments, from 0
        Raises V2LError if a segment is damaged, or if the total rank exceeds the limit of the engines.
        """
        return self._adapter({segment_name(number): self.description.segments[number] for number in numbers})

    def whole(self) -> Adapter:
        """Read all segments as one adapter. Raises V2LError if there are too many."""
        ranks = self.description.describe(self.description.segments).rank
        if ranks > MAX_RANK:
            raise V2LError(
                f"the {len(self.description.segments)} segments of {printable(self.path)} together have rank {ranks:,} "
                f"and at most {MAX_RANK} can be attached; --each asks them one by one"
            )
        return self.select(range(len(self.description.segments)))

    def check(self) -> None:
        """Read every part. Raises V2LError if one is damaged."""
        _ = self._bias
        for name, part in self.description.parts.items():
            self._read(name, part.sha256)

    @cached_property
    def router(self) -> Router:
        """Chooses the part that answers a question."""
        return Router(self.description)

    @cached_property
    def _bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._read("bias", self.description.bias_sha256)

    def _read(self, name: str, sha256: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the checked factors of a part, (L, r, d_in) and (L, r, d_out)."""
        names = tensor_names(name)
        stored = dict(
            zip(names, read_entries(self.path, [self.file.entries[n] for n in names], "timeline"), strict=True)
        )
        if tensor_sha256(stored) != sha256:
            raise damaged(self.path, "timeline", f"the factors of {name} do not match their sha256")
        if not all(tensor.is_finite() for tensor in stored.values()):
            raise damaged(self.path, "timeline", f"the factors of {name} are not finite")
        tensors = to_tensors(stored)
        return tensors[names[0]], tensors[names[1]]

    def _adapter(self, parts: dict[str, TimelinePart]) -> Adapter:
        """Return the parts and the bias as one adapter; the latest ones are kept for the next question."""
        if tuple(parts) in self._attached:
            return self._attached[tuple(parts)]
        description = self.description.describe(parts.values())
        check_rank(description.rank)
        a, b = zip(*[self._read(name, part.sha256) for name, part in parts.items()], self._bias, strict=True)
        adapter = Adapter(torch.cat(a, dim=1), torch.cat(b, dim=1), description, self.file.checked_ns)
        while len(self._attached) >= KEPT_ATTACHED:
            self._attached.pop(next(iter(self._attached)))
        self._attached[tuple(parts)] = adapter
        return adapter


@dataclass(frozen=True)
class Attachment:
    """The adapters that answer a question, and the reason for the choice.

    adapters: one; or several, one for each segment of a long stretch, which answer one by one. Their descriptions have
        the segments
    questions: the question to each of them, in the times that its segments were read with
    """

    adapters: tuple[Adapter, ...]
    questions: tuple[str, ...]
    routed_by: RoutedBy


def attach(source: Adapter | Timeline, question: str, whole: bool = False) -> Attachment:
    """Return the part of an adapter or a timeline that answers a question, see `Router.route`. An adapter of composed
    segments is answered by those that show the time that the question names, or by all.

    whole: all segments, whatever the question names
    Raises V2LError if the question asks about a position outside of the video, if the part is damaged, or if all
    segments of a timeline exceed the limit of the engines.
    """
    adapters, routed_by = _choose(source, question, whole)
    duration = max(segment.end for segment in source.description.segments)
    questions = (for_segments(question, adapter.description.segments, duration) for adapter in adapters)
    return Attachment(adapters, tuple(questions), routed_by)


def _choose(source: Adapter | Timeline, question: str, whole: bool) -> tuple[tuple[Adapter, ...], RoutedBy]:
    if isinstance(source, Adapter):
        selected = source if whole else select_segments(source, question)
        return (selected,), RoutedBy.whole if selected is source else RoutedBy.time
    if whole:
        return (source.whole(),), RoutedBy.whole
    route = source.router.route(question)
    if route.one_by_one:
        return tuple(source.select([number]) for number in route.segments), route.routed_by
    if route.segments:
        return (source.select(route.segments),), route.routed_by
    if source.description.overview is None:
        return (source.whole(),), RoutedBy.whole
    return (source.overview(),), route.routed_by


def open_adapter(path: str | os.PathLike) -> Adapter | Timeline:
    """Open an adapter file of either version. Raises V2LError as `Adapter.load` and `Timeline.load` do."""
    return Timeline.load(path) if TimelineFile.is_at(path) else Adapter.load(path)


def tensor_sha256(tensors: dict[str, TensorBytes]) -> str:
    """Compute the sha256 of a part: number type, shape and bytes of its two tensors in order, without their names, so
    that a part keeps its hash in another file."""
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(canonical_json({"dtype": tensor.dtype, "shape": list(tensor.shape)}).encode())
        digest.update(tensor.data)
    return digest.hexdigest()


# Writing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartSource:
    """A part to write. load: returns its adapter of one segment, the same at every call; answers: to the questions of
    the index"""

    load: Callable[[], Adapter]
    answers: tuple[str, ...] = ()


def write_timeline(
    path: str | os.PathLike,
    segments: Sequence[PartSource],
    overview: PartSource | None = None,
    questions: Sequence[str] = (),
    request: TimelineRequest | None = None,
    checked_ns: int | None = None,
    dtype: torch.dtype | None = None,
) -> Timeline:
    """Write a timeline of adapters and open it. Holds one adapter in memory at a time.

    overview: None if the segments come from several videos; request: None if they were encoded before
    checked_ns: as in `Adapter`; dtype: number type of the factors, None for that of the first segment
    Raises V2LError if the adapters do not belong together, or if the file cannot be written.
    """
    first = segments[0].load()
    base = first.description
    dtype = dtype or first.a.dtype
    bias = _cast(split_bias(first)[1], dtype)
    recipes: dict[Recipe, int] = {}
    entries: dict[str, tuple[str, tuple[int, ...]]] = {}

    def announce(name: str, factors: tuple[torch.Tensor, torch.Tensor]) -> str:
        stored = to_bytes(dict(zip(tensor_names(name), factors, strict=True)))
        entries.update({each: (tensor.dtype, tensor.shape) for each, tensor in stored.items()})
        return tensor_sha256(stored)

    # Hash every part, for the header that precedes them
    bias_sha256 = announce("bias", bias)
    names = [*(["overview"] if overview else []), *map(segment_name, range(len(segments)))]
    sources = [*([overview] if overview else []), *segments]
    parts = []
    for name, source in zip(names, sources, strict=True):
        adapter = source.load()
        check_alike(first, adapter)
        if len(adapter.description.segments) != 1:
            raise V2LError("a part of a timeline holds one segment; split the composed adapter first")
        (segment,), (block,) = adapter.description.segments, adapter.description.blocks
        parts.append(
            TimelinePart(
                recipes.setdefault(recipe_of(segment), len(recipes)),
                segment.start,
                segment.end,
                segment.timestamps,
                segment.windows,
                block.rank,
                block.relative_error,
                announce(name, _cast(split_bias(adapter)[0], dtype)),
                tuple(source.answers),
            )
        )
    description = TimelineDescription(
        base.base_model,
        base.hypernetwork,
        request,
        tuple(recipes),
        parts[0] if overview else None,
        tuple(parts[1:] if overview else parts),
        tuple(questions),
        base.bias_rank,
        bias_sha256,
        __version__,
    )
    _check_writable(path, description)
    metadata = {
        "format": "v2l-adapter",
        "version": TIMELINE_VERSION,
        "dtype": dtype_name(dtype),
        **to_json(description),
    }

    def tensors() -> Iterator[TensorBytes]:
        yield from to_bytes(dict(zip("ab", bias, strict=True))).values()
        for source in sources:
            yield from to_bytes(dict(zip("ab", _cast(split_bias(source.load())[0], dtype), strict=True))).values()

    write_parts(path, entries, tensors(), metadata, MAX_TIMELINE_HEADER_BYTES, checked_ns)
    return Timeline.load(path)


def _cast(factors: Factors, dtype: torch.dtype) -> Factors:
    return factors[0].to(dtype), factors[1].to(dtype)


def _check_writable(path: str | os.PathLike, description: TimelineDescription) -> None:
    """Raise V2LError if `Timeline.load` would refuse the description."""
    try:
        check_timeline(from_json(TimelineDescription, to_json(description), "metadata"))
    except ValueError as error:
        raise V2LError(
            f"the timeline {printable(path)} was not written, v2l could not read it again: {printable(error)}"
        ) from error
