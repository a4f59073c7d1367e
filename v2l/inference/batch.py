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

from v2l.adapters.timeline_description import NO_WISH, Segmentation
from v2l.errors import ModelError, V2LError, reason
from v2l.inference.model_loader import ModelLoader
from v2l.inference.readings import fill_reading, plan_segments, plan_timeline
from v2l.inference.staleness import Staleness, Wanted, check_staleness
from v2l.inference.targets import Target
from v2l.io.files import check_name, make_folder
from v2l.io.text import printable
from v2l.video.client import probe
from v2l.video.sampling import Reading

if TYPE_CHECKING:
    from v2l.adapters.adapter import Adapter
    from v2l.adapters.timeline import Timeline
    from v2l.inference.encode import PendingEncode
    from v2l.inference.timeline import TimelineEstimate, TimelineJob


@dataclass(frozen=True)
class EncodeOptions:
    """How to read videos, which existing adapters to replace, and how many adapters to make of a video.

    segmentation: the wishes about segments; split: write an adapter for each segment instead of one timeline
    index: let the segments of a timeline answer the questions of the index
    check_hash: compare the hash of a video, not only its size and times; overwrite: encode without comparing
    replace_foreign: also replace adapters that were made for another model
    any_reading: accept an adapter of the same video regardless of how the video was read
    """

    reading: Reading
    segmentation: Segmentation = NO_WISH
    split: bool = False
    index: bool = True
    check_hash: bool = False
    overwrite: bool = False
    replace_foreign: bool = False
    any_reading: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result for one adapter.

    status: "encoded", "current", "kept" (it was made for another model) or "failed"
    note: why it was encoded again or kept, or the error
    seconds: encoding time; adapter: the adapter or timeline if this run made it
    """

    target: Target
    status: str
    note: str = ""
    seconds: float = 0.0
    adapter: Adapter | Timeline | None = None


@dataclass(frozen=True)
class Watch:
    """Callbacks that show progress.

    step: called with the target being encoded, the steps done and the total number of steps
    planned: called before a timeline is encoded
    """

    step: Callable[[Target, float, int], None] = lambda target, done, total: None
    planned: Callable[[Target, TimelineEstimate], None] = lambda target, estimate: None


def encode_targets(
    targets: Sequence[Target], options: EncodeOptions, loader: ModelLoader, watch: Watch
) -> Iterator[Outcome]:
    """Encode each video: into one adapter, into a timeline if it is long or segments were asked for, or, with
    `split`, into one adapter per segment.

    The next video is planned and decoded while one is in the model. Failures are outcomes, except for a ModelError,
    which would affect every other video too.
    """
    if not options.split:
        yield from _encode_in_turn([(target, options) for target in targets], loader, watch)
        return
    for target in targets:
        yield from _encode_split(target, options, loader, watch)


def _encode_split(target: Target, options: EncodeOptions, loader: ModelLoader, watch: Watch) -> Iterator[Outcome]:
    """Encode every segment of a video into an adapter of its own."""
    if target.error:
        yield Outcome(target, "failed", target.error)
        return
    try:
        jobs = split_jobs(target, options, loader)
    except V2LError as error:
        yield Outcome(target, "failed", str(error))
        return
    yield from _encode_in_turn(jobs, loader, watch)


def split_jobs(target: Target, options: EncodeOptions, loader: ModelLoader) -> list[tuple[Target, EncodeOptions]]:
    """Return the encodings of a video with an adapter for each segment. Raises V2LError if it cannot be read."""
    _check_output(target.segment(0))
    trained_with = loader.provenance.trained_with
    reading = fill_reading(options.reading, trained_with, loader.folder.geometry)
    parts = plan_segments(probe(target.video), reading, trained_with, options.segmentation)
    alone = replace(options, split=False, segmentation=Segmentation(segments=1))
    return [(target.segment(index), replace(alone, reading=part)) for index, part in enumerate(parts)]


@dataclass(frozen=True)
class _Prepared:
    """A target after its checks: `outcome` if nothing is left to do, else the encode, started unless it is a timeline,
    and why it is needed."""

    target: Target
    outcome: Outcome | None = None
    pending: PendingEncode | TimelineJob | None = None
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
    reading, found = compare(target, options, loader)
    if found.state in ("current", "kept"):
        return _Prepared(target, Outcome(target, found.state, found.reason))
    return _Prepared(target, pending=_start(target, options, loader, reading), reason=found.reason)


def compare(
    target: Target, options: EncodeOptions, loader: ModelLoader, touch: bool = True
) -> tuple[Reading, Staleness]:
    """Return the filled reading of a target, and the state of its adapter: "missing" or "stale" if it is to be encoded,
    "current" or "kept" if not. Raises V2LError.

    touch: as for `check_staleness`
    """
    _check_output(target)
    reading = fill_reading(options.reading, loader.provenance.trained_with, loader.folder.geometry)
    if options.overwrite:
        return reading, Staleness("stale" if os.path.lexists(target.output) else "missing")
    wanted = Wanted(target.video, reading, loader.fingerprint, loader.provenance, options.segmentation)
    found = check_staleness(target.output, wanted, options.check_hash, options.any_reading, touch)
    if found.state == "foreign":
        made = f"it was made for {found.reason}"
        found = (
            Staleness("stale", made) if options.replace_foreign else Staleness("kept", f"{made}; --model replaces it")
        )
    return reading, found


def _start(
    target: Target, options: EncodeOptions, loader: ModelLoader, reading: Reading
) -> PendingEncode | TimelineJob:
    models = loader.load()
    from v2l.inference.encode import open_video, start_encode
    from v2l.inference.timeline import make_job

    opened, trained_with = open_video(target.video), loader.provenance.trained_with
    if segments := plan_timeline(opened.video, reading, trained_with, options.segmentation):
        return make_job(opened, reading, segments, models[1], options.segmentation, options.index)
    return start_encode(opened, *models, reading)


def _finish(prepared: _Prepared, loader: ModelLoader, watch: Watch) -> Outcome:
    """Return the outcome of a prepared target; encode and save it first if it is pending. Raises ModelError only."""
    target = prepared.target
    if prepared.pending is None:
        assert prepared.outcome is not None, "a target without a pending encode has an outcome"
        return prepared.outcome
    started = time.perf_counter()
    try:
        adapter = _encode(prepared.pending, target, loader, watch)
    except Exception as error:
        return _failed(target, error)
    return Outcome(target, "encoded", prepared.reason, time.perf_counter() - started, adapter)


def _encode(
    pending: PendingEncode | TimelineJob, target: Target, loader: ModelLoader, watch: Watch
) -> Adapter | Timeline:
    from v2l.inference.encode import PendingEncode, finish_encode
    from v2l.inference.timeline import discard_parts

    models = loader.load()
    if isinstance(pending, PendingEncode):
        adapter = finish_encode(pending, *models, lambda done, total: watch.step(target, done, total))
        make_folder(target.output.parent)
        adapter.save(target.output)
        discard_parts(target.output)
        return adapter
    watch.planned(target, pending.estimate(*models, target.output))
    return pending.run(*models, target.output, lambda done, total: watch.step(target, done, total))


def _failed(target: Target, error: Exception) -> Outcome:
    """Convert an error of one video, of any class since decoders and devices raise their own, into its outcome.
    Re-raises a ModelError, which would affect every video."""
    if isinstance(error, ModelError):
        raise error
    return Outcome(target, "failed", str(error) if isinstance(error, V2LError) else printable(reason(error)))


def _check_output(target: Target) -> None:
    """Raises V2LError if the file system would refuse the adapter's name. A missing video has its own error."""
    if os.path.lexists(target.video):
        check_name(target.output)
