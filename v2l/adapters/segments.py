"""Compose adapters of segments into one, reduce its rank, and select segments by the time that a question names.

Composition concatenates the generated ranks of all segments and adds the learned bias once (paper section 5.6).

Selection: the ranks of other segments also contribute to an answer about one time, and outnumber those of the segment
in question (docs/model-card.md). A question that names a time is therefore answered from the segments that show it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

import torch

from v2l.adapters.adapter import Adapter
from v2l.adapters.asked_time import asked_time
from v2l.adapters.description import Block, Segment, check_rank
from v2l.errors import V2LError
from v2l.io.text import printable


def compose(adapters: Sequence[Adapter], rank: int | None = None) -> Adapter:
    """Compose adapters into one with all of their segments, in order.

    The change of a layer is the sum of the generated changes, without averaging, plus the learned bias once. The total
    rank is the sum of the generated ranks plus the rank of the bias.

    rank: reduce the generated ranks together to this many by singular value decomposition of each layer's change. The
        bias stays separate and exact, so a reduced adapter can be composed again. The relative error of the reduction
        is in `description.blocks` of the result.

    The result is float32 if one of the adapters is or the rank is reduced, else bfloat16.

    Raises V2LError if the adapters were made for different models or by different hypernetworks, or if the total rank
    exceeds the limit of the engines.
    """
    adapters = list(adapters)
    if not adapters:
        raise V2LError("nothing to compose; give at least one adapter")
    first = adapters[0].description
    finest = next((adapter for adapter in adapters if adapter.a.dtype == torch.float32), adapters[0])
    for adapter in adapters:
        check_alike(finest, adapter)
    # Concatenate the generated ranks of all adapters
    generated = [split_bias(adapter)[0] for adapter in adapters]
    a, b = (torch.cat([each.to(finest.a.dtype) for each in factors], dim=1) for factors in zip(*generated, strict=True))
    blocks = tuple(block for adapter in adapters for block in adapter.description.blocks)
    segments = tuple(segment for adapter in adapters for segment in adapter.description.segments)
    if rank is not None:
        a, b, error = reduce_rank(a, b, rank)
        blocks = (Block(a.shape[1], len(segments), error),)
    description = dataclasses.replace(first, segments=segments, blocks=blocks)
    check_rank(description.rank)
    bias_a, bias_b = (bias.to(a.dtype) for bias in split_bias(finest)[1])
    oldest = oldest_check([adapter.checked_ns for adapter in adapters])
    return Adapter(torch.cat([a, bias_a], dim=1), torch.cat([b, bias_b], dim=1), description, oldest)


def oldest_check(times: Sequence[int | None]) -> int | None:
    """Return the check that holds for several videos together, the oldest; None if one of them is unknown."""
    known = [time for time in times if time is not None]
    return min(known) if len(known) == len(times) else None


def keep_segments(adapter: Adapter, numbers: Collection[int]) -> Adapter:
    """Return an adapter with only some of the segments: their ranks and the learned bias, in the original order.
    Segments that were reduced together cannot be separated, so all of them are kept. Returns the same object if no
    segment is dropped.

    numbers: indices of the segments to keep, from 0, at least one of them valid
    """
    blocks: list[Block] = []
    segments: list[Segment] = []
    ranks: list[int] = []
    rank = segment = 0
    for block in adapter.description.blocks:
        if any(segment <= number < segment + block.segments for number in numbers):
            blocks.append(block)
            segments += adapter.description.segments[segment : segment + block.segments]
            ranks += range(rank, rank + block.rank)
        rank += block.rank
        segment += block.segments
    if len(ranks) == rank:
        return adapter
    ranks += range(rank, adapter.rank)  # the bias
    description = dataclasses.replace(adapter.description, segments=tuple(segments), blocks=tuple(blocks))
    return dataclasses.replace(adapter, a=adapter.a[:, ranks], b=adapter.b[:, ranks], description=description)


def reduce_rank(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the best approximation of every layer's change b^T a of the given rank.

    a: (L, R, d_in), b: (L, R, d_out). Returns the reduced a and b, and the Frobenius norm of the dropped part over all
    layers, relative to the whole. Raises V2LError if `rank` is not from 1 to R - 1, or if the reduced factors exceed
    float32.
    """
    # QR of both factors, so that the SVD is that of a small (R, R) matrix
    if not 1 <= rank < a.shape[1]:
        raise V2LError(f"cannot reduce {a.shape[1]} generated ranks to {rank}; choose from 1 to {a.shape[1] - 1}")
    rows_a, left_a = torch.linalg.qr(a.double().transpose(1, 2))  # (L, d_in, k), (L, k, R)
    rows_b, left_b = torch.linalg.qr(b.double().transpose(1, 2))
    u, singular, vh = torch.linalg.svd(left_b @ left_a.transpose(1, 2), full_matrices=False)  # descending
    # Keep the largest singular values, split evenly between the factors
    kept = singular[:, :rank].sqrt()
    reduced_a = kept[..., None] * (vh[:, :rank] @ rows_a.transpose(1, 2))
    reduced_b = kept[..., None] * (rows_b @ u[..., :rank]).transpose(1, 2)
    # Relative error of the reduction
    whole = singular.norm()
    error = float(singular[:, rank:].norm() / whole) if whole > 0 else 0.0
    reduced_a, reduced_b = reduced_a.float(), reduced_b.float()
    if not (torch.isfinite(reduced_a).all() and torch.isfinite(reduced_b).all()):
        raise V2LError(f"the factors reduced to rank {rank} are too large for float32; compose without a rank")
    return reduced_a, reduced_b, error


Factors = tuple[torch.Tensor, torch.Tensor]
"""A, (L, r, d_in), and B, (L, r, d_out)."""


def split_bias(adapter: Adapter) -> tuple[Factors, Factors]:
    """Return the factors of the generated ranks and those of the learned bias, in their stored number type."""
    first = adapter.rank - adapter.description.bias_rank
    return (adapter.a[:, :first], adapter.b[:, :first]), (adapter.a[:, first:], adapter.b[:, first:])


def check_alike(one: Adapter, other: Adapter) -> None:
    """Raise V2LError if two adapters are not of one model and one hypernetwork."""
    left, right = one.description, other.description
    if left.base_model.fingerprint != right.base_model.fingerprint:
        raise V2LError(
            f"adapters for different models cannot be composed: {printable(left.base_model.id)} "
            f"({printable(left.base_model.fingerprint[:12])}) and {printable(right.base_model.id)} "
            f"({printable(right.base_model.fingerprint[:12])}); encode both with one model"
        )
    if left.hypernetwork.sha256 != right.hypernetwork.sha256:
        raise V2LError(
            f"adapters of different hypernetworks cannot be composed: {printable(left.hypernetwork.id)} "
            f"({printable(left.hypernetwork.sha256[:12])}) and {printable(right.hypernetwork.id)} "
            f"({printable(right.hypernetwork.sha256[:12])}); encode both with one"
        )
    same_shape = one.a.shape[::2] == other.a.shape[::2] and one.b.shape[::2] == other.b.shape[::2]
    # Compare the biases in the coarser of their types
    coarser = torch.bfloat16 if torch.bfloat16 in (one.a.dtype, other.a.dtype) else torch.float32
    biases = zip(split_bias(one)[1], split_bias(other)[1], strict=True)
    same_bias = left.bias_rank == right.bias_rank and all(torch.equal(x.to(coarser), y.to(coarser)) for x, y in biases)
    if not (same_shape and same_bias):
        raise V2LError(
            "the adapters claim the same hypernetwork but differ in shape or in its learned bias; one description is "
            "wrong, so encode that video again"
        )


def segments_for(adapter: Adapter, question: str) -> tuple[int, ...]:
    """Return the indices, from 0, of the segments that answer a question: those that overlap the times that it asks
    about, and the next or previous one if it asks about a neighbour of a time. Returns all segments if the question
    names no time, or if the adapter does not cover it."""
    segments = adapter.description.segments
    chosen: set[int] = set()
    for source in adapter.description.sources:
        numbers = [number for number, segment in enumerate(segments) if segment.source == source]
        last = max(segments[number].end for number in numbers)
        asked = asked_time(question, last)
        neighbour = {"after": 1, "before": -1}.get(asked.relation, 0)
        for start, end in asked.stretches:
            start, end = _seconds(start, end, last)
            own = [number for number in numbers if segments[number].start < end and start < segments[number].end]
            chosen |= {*own, *(number + neighbour for number in own if number + neighbour in numbers)}
    return tuple(sorted(chosen)) or tuple(range(len(segments)))


def _seconds(start: float, end: float, last: float) -> tuple[float, float]:
    """Return a stretch of time, at least as long as the second in which it starts; the last moment of a video is in
    its last second."""
    start = last - 1 if start == end == last else start
    return start, max(end, math.floor(start) + 1)


def select_segments(adapter: Adapter, question: str) -> Adapter:
    """Return an adapter with only the segments that answer a question (see `segments_for`)."""
    return keep_segments(adapter, segments_for(adapter, question))
