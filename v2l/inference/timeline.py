"""Encode a long video into a timeline, a segment at a time, with bounded memory and from where it was interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from v2l.adapters.adapter import Adapter
from v2l.adapters.timeline import PartSource, Timeline, write_timeline
from v2l.adapters.timeline_description import Segmentation, TimelineRequest
from v2l.errors import V2LError
from v2l.inference.ask import ask_each
from v2l.inference.encode import OpenedVideo, PendingEncode, finish_encode, open_video, start_encode
from v2l.inference.estimate import Networks, factor_bytes, seconds_per_encoding, seconds_to_decode
from v2l.inference.naming import ADAPTER_SUFFIX
from v2l.inference.readings import check_wish, covered, fill_reading, plan_segments
from v2l.io.claims import parts_folder
from v2l.io.files import (
    make_folder,
    open_regular,
    time_of_check,
    try_lock,
    unwritable,
    write_atomically,
)
from v2l.io.safetensors_file import canonical_json
from v2l.io.text import amount, clock, counted, printable, span
from v2l.models.checkpoint import check_belongs
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import Provenance
from v2l.models.presets import INDEX_QUESTIONS
from v2l.models.smolvlm import FrozenVLM
from v2l.video.client import decoder_version
from v2l.video.sampling import READING_REVISION, Reading, frames_of

INDEX_TOKENS = 48
"""Maximum length of an answer in the index."""

Progress = Callable[[float, int], None]
"""Called with the parts done, a fraction while one is being encoded, and their number."""


def encode_timeline(
    path: str | os.PathLike,
    vlm: FrozenVLM,
    hypernetwork: Hypernetwork,
    output: str | os.PathLike,
    reading: Reading | None = None,
    segments: int | None = None,
    segment_seconds: float | None = None,
    index: bool = True,
) -> Timeline:
    """Encode a video into a timeline file: an overview and segments.

    output: the file to write; the finished segments of an interrupted call are kept beside it and used again
    reading: as for `encode`, with the frames of a segment; None fields take the values that the hypernetwork was
        trained with
    segments: number of segments of equal length; segment_seconds: their length. None for both takes the span that the
        hypernetwork was trained to read, or as much more as keeps the number at 64
    index: let every segment answer the questions of the index

    The same file, settings, device, dtype and number of threads give the same file, bit for bit.
    Raises V2LError as `encode` does, and if the file cannot be written.
    """
    opened = open_video(path)
    trained_with = check_belongs(hypernetwork, vlm).trained_with
    wanted = reading or Reading()
    wish = Segmentation(segments, segment_seconds, wanted.frames is not None)
    filled = fill_reading(wanted, trained_with, vlm.geometry)
    parts = plan_segments(opened.video, filled, trained_with, wish)
    return make_job(opened, filled, parts, hypernetwork, wish, index).run(vlm, hypernetwork, Path(output))


def make_job(
    opened: OpenedVideo,
    reading: Reading,
    segments: Sequence[Reading],
    hypernetwork: Hypernetwork,
    wish: Segmentation,
    index: bool = True,
) -> TimelineJob:
    """Return the job of a timeline with these segments, planned with this wish.

    reading: of the overview, filled; index: as for `encode_timeline`
    """
    assert hypernetwork.provenance is not None, "check_belongs refuses a hypernetwork without provenance"
    questions = index_questions(hypernetwork.provenance) if index else ()
    return TimelineJob(opened, TimelineRequest(reading, check_wish(wish)), tuple(segments), questions)


def index_questions(provenance: Provenance) -> tuple[str, ...]:
    """Return the questions that every segment answers for the index: those that the hypernetwork lists, those that
    belong to its frozen model, or a request for a caption."""
    listed = provenance.trained_with.index_questions
    return listed or INDEX_QUESTIONS.get(provenance.base_model, CAPTION_QUESTIONS)


CAPTION_QUESTIONS = ("Describe what is happening in this video.",)


@dataclass(frozen=True)
class TimelineJob:
    """A video to be encoded into a timeline.

    request: as recorded in the file, its reading is that of the overview; segments: readings of the segments
    questions: of the index
    """

    opened: OpenedVideo
    request: TimelineRequest
    segments: tuple[Reading, ...]
    questions: tuple[str, ...]

    def run(
        self,
        vlm: FrozenVLM,
        hypernetwork: Hypernetwork,
        output: Path,
        progress: Progress = lambda done, total: None,
    ) -> Timeline:
        """Encode what is not finished yet and write the file. Raises V2LError as `encode_timeline` does; the finished
        parts are then kept for the next call."""
        checked_ns = time_of_check()
        readings = [self.request.reading, *self.segments]
        with FinishedParts.beside(output, self._key(vlm, hypernetwork)) as parts:
            missing = [number for number in range(len(readings)) if not parts.has(number)]
            # The file, and the parts that it is assembled from
            _check_space(output, self.bytes(hypernetwork) * (len(readings) + len(missing)) // len(readings))
            pending = self._prepare([readings[number] for number in missing], vlm, hypernetwork)
            with contextlib.closing(pending):
                for done, number in enumerate(missing, start=len(readings) - len(missing)):

                    def step(steps: int, total: int, done: int = done) -> None:
                        progress(done + steps / total, len(readings))

                    adapter = finish_encode(next(pending), vlm, hypernetwork, step)
                    asked = self.questions if number else ()
                    parts.add(number, adapter, ask_each([adapter] * len(asked), asked, vlm, INDEX_TOKENS))
            self.opened.check_unchanged()
            overview, *segments = (parts.source(number) for number in range(len(readings)))
            timeline = write_timeline(output, segments, overview, self.questions, self.request, checked_ns)
            parts.remove()
        return timeline

    def bytes(self, hypernetwork: Hypernetwork) -> int:
        """Return the size of the factors in the file."""
        return factor_bytes(hypernetwork.config, 1 + len(self.segments))

    def estimate(self, vlm: FrozenVLM, hypernetwork: Hypernetwork, output: Path) -> TimelineEstimate:
        """Estimate the work that is left before it begins."""
        finished: set[int] = set()
        with contextlib.suppress(V2LError), FinishedParts.beside(output, self._key(vlm, hypernetwork)) as parts:
            finished = parts.stored()
        networks = Networks(vlm.folder.config, vlm.geometry, hypernetwork.config, vlm.device, vlm.dtype)
        seconds = 0.0
        for number, reading in enumerate([self.request.reading, *self.segments]):
            if number not in finished:
                chosen = frames_of(self.opened.video, reading)
                seconds += seconds_per_encoding(networks, len(chosen), len(self.questions) if number else 0)
                seconds += seconds_to_decode(self.opened.video, chosen)
        return TimelineEstimate(self, seconds, self.bytes(hypernetwork))

    def _prepare(
        self, readings: Sequence[Reading], vlm: FrozenVLM, hypernetwork: Hypernetwork
    ) -> Generator[PendingEncode]:
        """Start every encode while the one before it is in the model."""
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="v2l-prepare")

        def start(place: int) -> list[Future[PendingEncode]]:
            return [
                executor.submit(start_encode, self.opened, vlm, hypernetwork, reading)
                for reading in readings[place : place + 1]
            ]

        try:
            upcoming = start(0)
            for place in range(len(readings)):
                pending = upcoming.pop().result()
                upcoming = start(place + 1)
                yield pending
        finally:  # do not wait for the worker: an interrupt ends the run at once
            executor.shutdown(wait=False, cancel_futures=True)

    def _key(self, vlm: FrozenVLM, hypernetwork: Hypernetwork) -> dict:
        """Everything that the parts depend on: parts of another key are not used."""
        assert hypernetwork.provenance is not None, "check_belongs refuses a hypernetwork without provenance"
        return {
            "source": asdict(self.opened.source),
            "readings": [asdict(reading) for reading in (self.request.reading, *self.segments)],
            "questions": self.questions,
            "fingerprint": vlm.fingerprint,
            "hypernetwork": hypernetwork.provenance.sha256,
            "dtype": str(vlm.dtype),
            "decoder": f"{decoder_version()}, reading {READING_REVISION}",
        }


@dataclass(frozen=True)
class TimelineEstimate:
    """What encoding a timeline will take. seconds: of the parts that are not finished yet; bytes: of the file"""

    job: TimelineJob
    seconds: float
    bytes: int

    def __str__(self) -> str:
        """`"1:00:00: overview and 64 segments of 56 s, 12 frames each, about 27 min, 240 MB; ..."`"""
        first, count = self.job.segments[0], len(self.job.segments)
        length = (first.end or 0.0) - (first.start or 0.0)
        start, end = covered(self.job.opened.video, self.job.request.reading)
        frames = counted(first.frames or 1, "frame")
        text = (
            f"{clock(end - start)}: overview and {count} segments of {length:.3g} s, {frames} each, about "
            f"{span(self.seconds)}, {amount(self.bytes)}"
        )
        spacing = length / (first.frames or 1)
        if spacing > 1.5 / (first.fps or 1.0):
            dense = (first.frames or 1) / (first.fps or 1.0)
            text += f"; --segment-seconds {dense:g} reads {counted(first.fps or 1.0, 'frame')} a second"
        return text


def _check_space(output: Path, size: int) -> None:
    """Raise V2LError if the disk of the output has fewer than `size` bytes free."""
    free = shutil.disk_usage(output.parent).free
    if free < size:
        raise V2LError(
            f"{printable(output)} needs {amount(size)} while it is made and {amount(free)} are free; free some, or use "
            "fewer segments"
        )


def discard_parts(output: Path) -> None:
    """Delete the finished parts of a timeline that was interrupted and is not wanted any more, unless another process
    makes them."""
    folder = parts_folder(output)
    if not folder.is_dir():
        return
    with contextlib.suppress(OSError):
        lock = os.open(folder / "lock", os.O_RDWR)
        try:
            if _lock_unless_taken(lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _lock_unless_taken(lock: int) -> bool:
    """Lock the folder of an open file; False if another process has it, True if the file system has no locks."""
    try:
        return try_lock(lock)
    except OSError:
        return True


class FinishedParts:
    """The finished parts of a timeline that is being encoded: a hidden folder `.NAME.partial` beside the output.

    It holds an adapter file and the answers of every part, and a lock, so that one process works in it. Use it as a
    context manager.
    """

    def __init__(self, folder: Path, lock: int):
        self.folder, self._lock = folder, lock

    @classmethod
    @contextlib.contextmanager
    def beside(cls, output: Path, key: dict) -> Iterator[FinishedParts]:
        """Open the folder of an output; one with another key is emptied first. Raises V2LError if another process
        works in it."""
        folder = parts_folder(output)
        make_folder(folder)
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise unwritable(folder, error) from error
        try:
            if not _lock_unless_taken(lock):
                raise V2LError(f"{printable(output)} is being encoded by another process; wait until it is finished")
            parts = cls(folder, lock)
            parts._check_key(canonical_json(key))
            yield parts
        finally:
            os.close(lock)

    def has(self, number: int) -> bool:
        """Return whether a part is finished and sound."""
        try:
            self._load(number), self._answers(number)
        except (V2LError, ValueError):
            return False
        return True

    def stored(self) -> set[int]:
        """Return the numbers of the finished parts, sound or not."""
        files = self.folder.glob(f"*{ADAPTER_SUFFIX}")
        return {int(number) for file in files if (number := file.name.removesuffix(ADAPTER_SUFFIX)).isdecimal()}

    def add(self, number: int, adapter: Adapter, answers: Sequence[str]) -> None:
        """Keep a part. Raises V2LError if it cannot be written."""
        write_atomically(self._answers_file(number), json.dumps(list(answers)).encode())
        adapter.save(self._adapter_file(number))

    def source(self, number: int) -> PartSource:
        """Return a part for `write_timeline`."""
        return PartSource(lambda: self._load(number), self._answers(number))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_key(self, key: str) -> None:
        file = self.folder / "key.json"
        try:
            with open_regular(file) as found:
                same = found.read() == key.encode()
        except (OSError, V2LError):
            same = False
        if not same:
            try:
                for entry in os.scandir(self.folder):
                    if entry.name != "lock":
                        os.unlink(entry)
            except OSError as error:
                raise unwritable(self.folder, error) from error
            write_atomically(file, key.encode())

    def _load(self, number: int) -> Adapter:
        return Adapter.load(self._adapter_file(number))

    def _answers(self, number: int) -> tuple[str, ...]:
        try:
            found = json.loads(self._answers_file(number).read_bytes())
        except OSError as error:
            raise V2LError(f"{printable(self._answers_file(number))} is missing") from error
        if not isinstance(found, list) or any(type(answer) is not str for answer in found):
            raise ValueError("not a list of answers")
        return tuple(found)

    def _adapter_file(self, number: int) -> Path:
        return self.folder / f"{number:05d}{ADAPTER_SUFFIX}"

    def _answers_file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"
