"""Encode many videos into adapters: each one is encoded, found current, or fails without affecting the others.

Torch is imported when the first video has to be encoded, and not before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from v2l.adapters.description import AdapterFile, check_rank
from v2l.errors import ModelError, V2LError, reason
from v2l.inference.model_loader import ModelLoader
from v2l.inference.readings import cut, fill_reading
from v2l.inference.staleness import Wanted, check_staleness
from v2l.inference.targets import Target
from v2l.io.files import check_name, make_folder
from v2l.io.text import printable
from v2l.video.sampling import Reading

if TYPE_CHECKING:
    from v2l.adapters.adapter import Adapter
    from v2l.inference.encode import PendingEncode


@dataclass(frozen=True)
class EncodeOptions:
    """How to read videos, which existing adapters to replace, and how many adapters to make of a video.

    segments: cut each video into this many segments of equal length; segment_seconds: cut it into segments of this
        many seconds; compose: also write the composed adapter of a video's segments
    check_hash: compare the hash of a video, not only its size and times; overwrite: encode without comparing
    replace_foreign: also replace adapters that were made for another model
    any_reading: accept an adapter of the same video regardless of how the video was read
    """

    reading: Reading
    segments: int | None = None
    segment_seconds: float | None = None
    compose: bool = False
    check_hash: bool = False
    overwrite: bool = False
    replace_foreign: bool = False
    any_reading: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result for one adapter.

    status: "encoded", "composed", "current", "kept" (it was made for another model) or "failed"
    note: why it was encoded again or kept, or the error
    seconds: encoding time; adapter: the adapter if this run made it
    """

    target: Target
    status: str
    note: str = ""
    seconds: float = 0.0
    adapter: Adapter | None = None


Watch = Callable[[Target, int, int], None]
"""Called with the target being encoded, the steps done and the total number of steps."""


def encode_targets(
    targets: Sequence[Target], options: EncodeOptions, loader: ModelLoader, watch: Watch
) -> Iterator[Outcome]:
    """Encode each video into an adapter, or into one per segment and, if asked for, the composed one.

    The next video is planned and decoded while one is in the model. Failures are outcomes, except for a ModelError,
    which would affect every other video too.
    """
    if options.segments is None and options.segment_seconds is None:
        yield from _encode_in_turn([(target, options) for target in targets], loader, watch)
        return
    for target in targets:
        yield from _encode_segments(target, options, loader, watch)


def _encode_segments(target: Target, options: EncodeOptions, loader: ModelLoader, watch: Watch) -> Iterator[Outcome]:
    if target.error:
        yield Outcome(target, "failed", target.error)
        return
    try:
        _check_output(target.segment(0))
        readings = cut(target.video, options.reading, options.segments, options.segment_seconds)
    except V2LError as error:
        yield Outcome(target, "failed", str(error))
        return
    outcomes: list[Outcome] = []
    parts = [(target.segment(index), replace(options, reading=reading)) for index, reading in enumerate(readings)]
    for outcome in _encode_in_turn(parts, loader, watch):
        outcomes.append(outcome)
        yield outcome
        if options.compose and len(outcomes) == 1:
            try:
                _check_total_rank(outcome, len(readings))
            except Exception as error:
                yield _failed(target, error)
                return
    if options.compose:
        try:
            yield _compose_segments(target, outcomes, options, loader)
        except Exception as error:
            yield _failed(target, error)


@dataclass(frozen=True)
class _Prepared:
    """A target after its checks: `outcome` if nothing is left to do, else the started encode and why it is needed."""

    target: Target
    outcome: Outcome | None = None
    pending: PendingEncode | None = None
    reason: str = ""


def _encode_in_turn(
    jobs: Sequence[tuple[Target, EncodeOptions]], loader: ModelLoader, watch: Watch
) -> Iterator[Outcome]:
    """Yield the outcome of each job. A worker thread prepares the next job while one is in the model."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="v2l-prepare")
    try:
        upcoming = [executor.submit(_prepare, *job, loader) for job in jobs[:1]]
        for index in range(len(jobs)):
            prepared = upcoming.pop().result()
            upcoming += [executor.submit(_prepare, *job, loader) for job in jobs[index + 1 : index + 2]]
            yield _finish(prepared, loader, watch)
    finally:  # do not wait for the worker: an interrupt ends the run at once
        executor.shutdown(wait=False, cancel_futures=True)


def _prepare(target: Target, options: EncodeOptions, loader: ModelLoader) -> _Prepared:
    """Compare a target with its existing adapter and start to encode it if needed. Raises ModelError only."""
    if target.error:
        return _Prepared(target, Outcome(target, "failed", target.error))
    try:
        return _compare_and_start(target, options, loader)
    except Exception as error:
        return _Prepared(target, _failed(target, error))


def _compare_and_start(target: Target, options: EncodeOptions, loader: ModelLoader) -> _Prepared:
    _check_output(target)
    reading = fill_reading(options.reading, loader.provenance.trained_with, loader.folder.geometry)
    why = ""
    if not options.overwrite:
        wanted = Wanted(target.video, reading, loader.fingerprint, loader.provenance)
        found = check_staleness(target.output, wanted, options.check_hash, options.any_reading)
        if found.state == "current":
            return _Prepared(target, Outcome(target, "current"))
        if found.state == "foreign" and not options.replace_foreign:
            return _Prepared(target, _kept(target, found.reason))
        why = f"it was made for {found.reason}" if found.state == "foreign" else found.reason
    return _Prepared(target, pending=_start(target, loader, reading), reason=why)


def _start(target: Target, loader: ModelLoader, reading: Reading) -> PendingEncode:
    models = loader.load()
    from v2l.inference.encode import start_encode

    return start_encode(target.video, *models, reading)


def _finish(prepared: _Prepared, loader: ModelLoader, watch: Watch) -> Outcome:
    """Return the outcome of a prepared target; encode and save it first if it is pending. Raises ModelError only."""
    target = prepared.target
    if prepared.pending is None:
        assert prepared.outcome is not None, "a target without a pending encode has an outcome"
        return prepared.outcome
    from v2l.inference.encode import finish_encode

    started = time.perf_counter()
    try:
        adapter = finish_encode(prepared.pending, *loader.load(), lambda done, total: watch(target, done, total))
        make_folder(target.output.parent)
        adapter.save(target.output)
    except Exception as error:
        return _failed(target, error)
    return Outcome(target, "encoded", prepared.reason, time.perf_counter() - started, adapter)


def _failed(target: Target, error: Exception) -> Outcome:
    """Convert an error of one video, of any class since decoders and devices raise their own, into its outcome.
    Re-raises a ModelError, which would affect every video."""
    if isinstance(error, ModelError):
        raise error
    return Outcome(target, "failed", str(error) if isinstance(error, V2LError) else printable(reason(error)))


def _kept(target: Target, model: str) -> Outcome:
    return Outcome(target, "kept", f"it was made for {model}; --model replaces it")


def _check_output(target: Target) -> None:
    """Raises V2LError if the file system would refuse the adapter's name. A missing video has its own error."""
    if os.path.lexists(target.video):
        check_name(target.output)


def _check_total_rank(first: Outcome, segments: int) -> None:
    """Refuse what cannot be composed before all of it is encoded."""
    if first.status in ("encoded", "current"):
        description = (first.adapter or AdapterFile.read(first.target.output)).description
        check_rank(description.blocks[0].rank * segments + description.bias_rank)


def _compose_segments(
    target: Target, outcomes: Sequence[Outcome], options: EncodeOptions, loader: ModelLoader
) -> Outcome:
    if any(outcome.status in ("kept", "failed") for outcome in outcomes):
        return Outcome(target, "failed", "not composed: not all of its segments could be encoded for this model")
    from v2l.adapters.adapter import Adapter
    from v2l.adapters.segments import compose

    composed = compose([outcome.adapter or Adapter.load(outcome.target.output) for outcome in outcomes])
    why = ""
    if not options.overwrite and target.output.exists():
        try:
            existing = AdapterFile.read(target.output)
        except V2LError as error:
            why = str(error)
        else:
            base = existing.description.base_model
            if existing.sha256 == composed.sha256():
                return Outcome(target, "current")
            if base.fingerprint != loader.fingerprint and not options.replace_foreign:
                return _kept(target, printable(base.id))
            why = "it had different content"
    composed.save(target.output)
    return Outcome(target, "composed", why, adapter=composed)
