"""Many videos to many adapters: each made, found current, or failed on its own, the others undisturbed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from v2l.adapters.adapter import Adapter, check_rank
from v2l.adapters.segments import compose
from v2l.errors import ModelError, V2LError, reason
from v2l.inference.encode import PendingEncode, finish_encode, start_encode
from v2l.inference.model_loader import ModelLoader
from v2l.inference.preprocess import cut, fill_reading
from v2l.inference.staleness import Wanted, judge
from v2l.inference.targets import Nothing, Target
from v2l.io.files import check_name, make_folder
from v2l.io.text import printable
from v2l.video.sampling import Reading


@dataclass(frozen=True)
class EncodeOptions:
    """What to encode again, and into how many adapters.

    segments: cut each video into this many stretches of one length; segment_seconds: or into stretches of this
        many seconds; compose: also write the composed adapter of a video's segments
    check_hash, overwrite: look closer than size and time, or do not look at all
    replace_foreign: also replace adapters that were made for another model
    any_reading: an adapter of the same video will do, however it was read
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
    """What became of one adapter.

    status: "encoded", "composed", "current", "kept" (made for another model) or "failed"
    note: why it was encoded again or kept, or the error
    seconds: that encoding took; adapter: where it was made just now
    """

    target: Target
    status: str
    note: str = ""
    seconds: float = 0.0
    adapter: Adapter | None = None


Watch = Callable[[Target, int, int], None]
"""Hears which target's video is being encoded, the steps done and their number."""


def encode_targets(
    targets: Sequence[Target | Nothing], options: EncodeOptions, choice: ModelLoader, watch: Watch
) -> Iterator[Outcome]:
    """Each video's adapter, or one per segment and then, if asked for, the composed one; while one video is in the
    model the next is plan at and decoded. Failures are outcomes, all but the ModelError that would meet every other
    video too."""
    if options.segments is None and options.segment_seconds is None:
        yield from _one_after_another([(target, options) for target in targets], choice, watch)
        return
    for target in targets:
        yield from _encode_segments(target, options, choice, watch)


def _encode_segments(
    target: Target | Nothing, options: EncodeOptions, choice: ModelLoader, watch: Watch
) -> Iterator[Outcome]:
    if isinstance(target, Nothing):
        yield _nothing(target)
        return
    try:
        _check_output(target.segment(0))
        readings = cut(target.video, options.reading, options.segments, options.segment_seconds)
    except V2LError as error:
        yield Outcome(target, "failed", str(error))
        return
    outcomes = []
    parts = [(target.segment(index), replace(options, reading=reading)) for index, reading in enumerate(readings)]
    for outcome in _one_after_another(parts, choice, watch):
        outcomes.append(outcome)
        yield outcome
        if options.compose and len(outcomes) == 1:
            too_many = _guarded(target, lambda: _check_total_rank(outcomes[0], len(readings)))
            if too_many is not None:
                yield too_many
                return
    if options.compose:
        yield _guarded(target, lambda: _compose_segments(target, outcomes, options, choice))


def _one_after_another(
    jobs: Sequence[tuple[Target | Nothing, EncodeOptions]], choice: ModelLoader, watch: Watch
) -> Iterator[Outcome]:
    """The outcome of each; the next is pending, in a thread of its own, while one is finished."""
    coming = [_Coming(*job, choice) for job in jobs[:1]]
    for place, (target, _) in enumerate(jobs):
        found = coming[0].result()
        coming = [_Coming(*job, choice) for job in jobs[place + 1 : place + 2]]
        if isinstance(found, Outcome):
            yield found
        else:
            yield _guarded(target, lambda found=found: _finish_one(*found, choice, watch))


class _Coming:
    """One video judged, and pending where it must be encoded, in a thread of its own."""

    def __init__(self, target: Target | Nothing, options: EncodeOptions, choice: ModelLoader):
        self._found: list[Outcome | tuple[Target, PendingEncode, str] | ModelError] = []
        self._thread = threading.Thread(target=self._run, args=(target, options, choice))
        self._thread.start()

    def _run(self, target: Target | Nothing, options: EncodeOptions, choice: ModelLoader) -> None:
        if isinstance(target, Nothing):
            self._found.append(_nothing(target))
            return
        try:
            self._found.append(_guarded(target, lambda: _begin_one(target, options, choice)))
        except ModelError as error:
            self._found.append(error)

    def result(self) -> Outcome | tuple[Target, PendingEncode, str]:
        """Its outcome where nothing has to be done, else what `_finish_one` takes."""
        self._thread.join()
        (found,) = self._found
        if isinstance(found, ModelError):
            raise found
        return found


def _nothing(target: Nothing) -> Outcome:
    return Outcome(Target(target.given, target.given), "failed", target.reason)


def _guarded(target: Target, work: Callable[[], Any]) -> Any:
    """What the work returns. Whatever happens to one video happens to it alone and is its outcome, except a ModelError,
    which would happen to all."""
    try:
        return work()
    except ModelError:
        raise
    except V2LError as error:
        return Outcome(target, "failed", str(error))
    except Exception as error:  # decoders and devices raise classes of their own
        return Outcome(target, "failed", printable(reason(error)))


def _check_total_rank(first: Outcome, segments: int) -> None:
    """Refuses what could not be composed before all of it is encoded."""
    if first.status in ("encoded", "current"):
        description = (first.adapter or Adapter.load(first.target.output)).description
        check_rank(description.blocks[0].rank * segments + description.bias_rank)


def _check_output(target: Target) -> None:
    """Raises V2LError if the file system would refuse the adapter's name. A missing video is its own error."""
    if os.path.lexists(target.video):
        check_name(target.output)


def _begin_one(
    target: Target, options: EncodeOptions, choice: ModelLoader
) -> Outcome | tuple[Target, PendingEncode, str]:
    """What is to be done about a video: its outcome where that is nothing, else the video pending, and why."""
    _check_output(target)
    reading = fill_reading(options.reading, choice.provenance.trained_with, choice.folder.geometry)
    reason = ""
    if not options.overwrite:
        wanted = Wanted(target.video, reading, choice.fingerprint, choice.provenance)
        verdict = judge(target.output, wanted, options.check_hash, options.any_reading)
        if verdict.state == "current":
            return Outcome(target, "current")
        if verdict.state == "foreign" and not options.replace_foreign:
            return Outcome(target, "kept", f"it was made for {verdict.reason}; --model replaces it")
        reason = f"it was made for {verdict.reason}" if verdict.state == "foreign" else verdict.reason
    return target, start_encode(target.video, *choice.load(), reading), reason


def _finish_one(target: Target, pending: PendingEncode, reason: str, choice: ModelLoader, watch: Watch) -> Outcome:
    started = time.perf_counter()
    adapter = finish_encode(pending, *choice.load(), lambda done, total: watch(target, done, total))
    make_folder(target.output.parent)
    adapter.save(target.output)
    return Outcome(target, "encoded", reason, time.perf_counter() - started, adapter)


def _compose_segments(
    target: Target, outcomes: Sequence[Outcome], options: EncodeOptions, choice: ModelLoader
) -> Outcome:
    if any(outcome.status in ("kept", "failed") for outcome in outcomes):
        return Outcome(target, "failed", "not composed: not all of its segments could be encoded for this model")
    parts = [outcome.adapter or Adapter.load(outcome.target.output) for outcome in outcomes]
    whole = compose(parts)
    reason = ""
    if not options.overwrite and target.output.exists():
        try:
            there = Adapter.load(target.output)
        except V2LError as error:
            reason = str(error)
        else:
            base = there.description.base_model
            if there.sha256() == whole.sha256():
                return Outcome(target, "current")
            if base.fingerprint != choice.fingerprint and not options.replace_foreign:
                return Outcome(target, "kept", f"it was made for {printable(base.id)}; --model replaces it")
            reason = "it held something else"
    whole.save(target.output)
    return Outcome(target, "composed", reason, adapter=whole)
