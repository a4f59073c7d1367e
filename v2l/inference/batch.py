"""Encode many videos into adapters: each one is encoded, found current, or fails without affecting the others.

Torch is imported when the first video has to be encoded, and not before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from v2l.adapters.timeline_description import NO_WISH, Segmentation
from v2l.errors import ModelError, V2LError, reason
from v2l.inference.model_loader import ModelLoader
from v2l.inference.readings import fill_reading, plan_segments, plan_timeline
from v2l.inference.staleness import Staleness, Wanted, check_staleness
from v2l.inference.targets import Target
from v2l.io.claims import Claim, Claims, UnwritableFolder, parts_folder
from v2l.io.files import check_name, make_folder, sweep
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

    status: "encoded", "current", "kept" (made for another model or with other settings, or composed) or "failed"
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
    planned: called before a timeline is encoded; waiting: before another process is awaited that encodes a target
    """

    step: Callable[[Target, float, int], None] = lambda target, done, total: None
    planned: Callable[[Target, TimelineEstimate], None] = lambda target, estimate: None
    waiting: Callable[[Target], None] = lambda target: None


def encode_targets(
    targets: Sequence[Target], options: EncodeOptions, loader: ModelLoader, watch: Watch
) -> Iterator[Outcome]:
    """Encode each video: into one adapter, into a timeline if it is long or segments were asked for, or, with
    `split`, into one adapter per segment.

    The next video is planned and decoded while one is in the model. A video that another process encodes comes last,
    when that process has finished with it. Failures are outcomes, except for a ModelError, which would affect every
    other video too.
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
    _check_output(target.segment(0))  # before the video is read, which takes longer
    video = probe(target.video)
    parts = plan_segments(video, fill(options, loader), loader.provenance.trained_with, options.segmentation)
    count = len(parts)
    _check_output(target.segment(0, count))
    alone = replace(options, split=False, segmentation=Segmentation(segments=1))
    return [(target.segment(index, count), replace(alone, reading=part)) for index, part in enumerate(parts)]


@dataclass(frozen=True)
class _Prepared:
    """A target after its checks: `outcome` if nothing is left to do, else the encode, started unless it is a timeline,
    why it is needed, and the claim on its adapter.

    elsewhere: another process encodes it; inode: of its adapter then
    """

    target: Target
    outcome: Outcome | None = None
    pending: PendingEncode | TimelineJob | None = None
    reason: str = ""
    claim: Claim | None = None
    elsewhere: bool = False
    inode: int | None = None


def _encode_in_turn(
    jobs: Sequence[tuple[Target, EncodeOptions]], loader: ModelLoader, watch: Watch
) -> Iterator[Outcome]:
    """Yield the outcome of each job. A worker thread prepares the next job while one is in the model."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="v2l-prepare")
    elsewhere: list[tuple[_Prepared, EncodeOptions]] = []
    with Claims() as claims:

        def submit(index: int) -> list[Future[_Prepared]]:
            return [executor.submit(_prepare, *job, loader, Claim(claims)) for job in jobs[index : index + 1]]

        try:
            upcoming = submit(0)
            for index, (_, options) in enumerate(jobs):
                prepared = upcoming.pop().result()
                upcoming = submit(index + 1)
                if prepared.elsewhere:
                    elsewhere.append((prepared, options))
                else:
                    yield _finish(prepared, loader, watch)
        finally:  # do not wait for the worker: an interrupt ends the run at once
            executor.shutdown(wait=False, cancel_futures=True)
        for prepared, options in elsewhere:  # holding no other claim, so that no two processes wait for each other
            watch.waiting(prepared.target)
            yield _finish(_await(prepared, options, loader, Claim(claims)), loader, watch)


def _await(prepared: _Prepared, options: EncodeOptions, loader: ModelLoader, claim: Claim) -> _Prepared:
    """Wait until no other process encodes a target, and prepare it if that is still needed. Raises ModelError only."""
    target = prepared.target
    try:
        claim.take(target.output, wait=True)
    except V2LError as error:
        return _Prepared(target, _failed(target, error))
    if _inode(target) != prepared.inode:  # the other process replaced it
        options = replace(options, overwrite=False)
    return _prepare(target, options, loader, claim)


def _prepare(target: Target, options: EncodeOptions, loader: ModelLoader, claim: Claim) -> _Prepared:
    """Compare a target with its existing adapter; claim it and start to encode it if needed. Raises ModelError only."""
    if target.error:
        return _Prepared(target, Outcome(target, "failed", target.error))
    prepared = None
    try:
        sweep(target.output.parent)
        prepared = _compare_and_claim(target, options, loader, claim)
        if prepared.claim:
            return replace(prepared, pending=_start(prepared.target, options, loader))
    except Exception as error:
        prepared = _Prepared(target, _failed(target, error))
    claim.give_back()
    return prepared


def _compare_and_claim(target: Target, options: EncodeOptions, loader: ModelLoader, claim: Claim) -> _Prepared:
    """Compare a target with its existing adapter, and claim it if it is to be encoded."""
    target, found = compare(target, options, loader)
    if found.state in ("current", "kept"):
        if found.state == "current" and os.path.isdir(parts_folder(target.output)):  # of an interrupted --overwrite
            from v2l.inference.timeline import discard_parts

            discard_parts(target.output)
        return _Prepared(target, Outcome(target, found.state, found.reason))
    inode = _inode(target)
    try:
        if not claim.take(target.output):
            return _Prepared(target, elsewhere=True, inode=inode)
    except UnwritableFolder as error:
        if not target.cache:
            hint = "v2l encode --output-dir FOLDER writes to another folder, --cache to your cache"
            raise V2LError(f"{error}; {hint}") from error
        return _compare_and_claim(target.in_cache(), options, loader, claim)
    if _inode(target) != inode:  # another process was faster
        return _compare_and_claim(target, replace(options, overwrite=False), loader, claim)
    return _Prepared(target, reason=found.reason, claim=claim)


def compare(
    target: Target, options: EncodeOptions, loader: ModelLoader, touch: bool = True
) -> tuple[Target, Staleness]:
    """Return the target at the place of its adapter, beside the video or in the cache, and the state of the adapter:
    "missing" or "stale" if it is to be encoded, "current" or "kept" if not. Claims nothing. Raises V2LError.

    touch: as for `check_staleness`
    """
    target, found = locate_adapter(target, options, loader, touch)
    if found.state != "foreign":
        return target, found
    made = f"it was made for {found.reason}"
    if options.replace_foreign:
        return target, Staleness("stale", made)
    return target, Staleness("kept", f"{made}; --model replaces it")


def locate_adapter(
    target: Target, options: EncodeOptions, loader: ModelLoader, touch: bool = True
) -> tuple[Target, Staleness]:
    """Return the target at the place of its adapter, beside the video or in the cache, and the adapter's state as
    `check_staleness` returns it. Raises V2LError."""
    _check_output(target)
    cache = target.cache
    if options.overwrite:
        target = target.in_cache() if cache and cache.is_preferred else target
        return target, Staleness("stale" if os.path.lexists(target.output) else "missing")
    defaults = {name for name in ("frames", "fps", "resolution") if getattr(options.reading, name) is None}
    wanted = Wanted(
        target.video,
        fill(options, loader),
        loader.fingerprint,
        loader.provenance,
        options.segmentation,
        frozenset(defaults if options.segmentation.is_chosen else {*defaults, "segments"}),
    )
    settled = {"current", "kept"} if options.replace_foreign else {"current", "kept", "foreign"}

    def check(output: Path) -> Staleness:
        return check_staleness(output, wanted, options.check_hash, options.any_reading, touch)

    found = check(target.output)
    if not cache or found.state in settled or not (cache.is_preferred or os.path.isdir(cache.folder)):
        return target, found
    there = target.in_cache()
    found_there = check(there.output)
    if cache.is_preferred or found_there.state in settled:
        return there, found_there
    return target, found


def fill(options: EncodeOptions, loader: ModelLoader) -> Reading:
    """Return the reading of an encoding, with the settings of the hypernetwork where none were given."""
    return fill_reading(options.reading, loader.provenance.trained_with, loader.folder.geometry)


def _inode(target: Target) -> int | None:
    """Return the number of the file of an adapter, None if it is missing: every write makes a new file."""
    try:
        return os.stat(target.output).st_ino
    except OSError:
        return None


def _start(target: Target, options: EncodeOptions, loader: ModelLoader) -> PendingEncode | TimelineJob:
    reading, models = fill(options, loader), loader.load()
    from v2l.inference.encode import open_video, start_encode
    from v2l.inference.timeline import make_job

    opened, trained_with = open_video(target.video), loader.provenance.trained_with
    if segments := plan_timeline(opened.video, reading, trained_with, options.segmentation):
        return make_job(opened, reading, segments, models[1], options.segmentation, options.index)
    return start_encode(opened, *models, reading)


def _finish(prepared: _Prepared, loader: ModelLoader, watch: Watch) -> Outcome:
    """Return the outcome of a prepared target; encode and save it first if it is pending, and give its claim back.
    Raises ModelError only."""
    target = prepared.target
    if prepared.pending is None or prepared.claim is None:
        assert prepared.outcome is not None, "a target without a pending encode has an outcome"
        return prepared.outcome
    started = time.perf_counter()
    try:
        adapter = _encode(prepared.pending, target, loader, watch)
    except Exception as error:
        return _failed(target, error)
    finally:
        prepared.claim.give_back()
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
