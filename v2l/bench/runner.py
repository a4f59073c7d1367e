"""Measure token load and time to first token of every method, in one process on the same weights.

The timed interval runs from the question's text to its first token on the host. The work that a method does once per
video is its preparation and is timed separately. Videos have as many real frames as are asked for; no frame is
repeated to reach a number.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from v2l.adapters.timeline_description import NO_WISH
from v2l.bench.methods import (
    METHODS,
    Method,
    PreparedMethod,
    Subject,
    distinct_methods,
    prompt_size,
    trained_reading,
    warm_up,
)
from v2l.bench.plan import Plan
from v2l.bench.resources import (
    PeakMemory,
    describe_machine,
    prefill_bytes,
    prefill_work,
    synchronise,
    vision_work,
)
from v2l.bench.results import Cell, Encoding, read_back, result_key
from v2l.errors import V2LError
from v2l.inference.encode import generate_factors
from v2l.inference.preprocess import cut_windows, encode_video_images
from v2l.inference.readings import SINGLE_SPANS, fill_reading, plan_timeline, segment_readings
from v2l.io.files import identify
from v2l.io.journal import Journal
from v2l.io.tensors import dtype_name
from v2l.io.text import printable
from v2l.models.checkpoint import check_belongs
from v2l.models.device import free_bytes
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.processor import QUESTIONS
from v2l.models.smolvlm import FrozenVLM, Window
from v2l.video.client import probe
from v2l.video.sampling import Reading, choose_frames

QUICK_SECONDS, QUICK_REPEATS, SLOW_REPEATS = 1.0, 30, 5
"""A method whose first token takes less than QUICK_SECONDS is repeated QUICK_REPEATS times, others SLOW_REPEATS."""
MEMORY_SHARE = 0.9
"""Share of the free memory that a prompt may need; beyond it, its time is only estimated."""


class Bench:
    """A run of the bench, which yields cells and, for every number of frames and resolution, an encoding.

    folder: for the drawn clip and the files that methods keep
    Raises V2LError if the video has fewer frames than are asked for, or fewer than one per segment.
    """

    def __init__(self, vlm: FrozenVLM, hypernetwork: Hypernetwork, plan: Plan, folder: Path):
        if min(plan.frames) < plan.segments:
            raise V2LError(f"{min(plan.frames):,} frames cannot make {plan.segments:,} segments; give a frame for each")
        self.provenance = check_belongs(hypernetwork, vlm)
        self.vlm, self.hypernetwork, self.plan, self.folder = vlm, hypernetwork, plan, folder
        self.resolutions = tuple(self._filled(resolution) for resolution in plan.resolutions)
        self.video = plan.video or drawn_video(max(plan.frames), max(self.resolutions), folder)
        self.probed = probe(self.video)
        if self.probed.frame_count < max(plan.frames):
            raise V2LError(
                f"{printable(self.video)} has {self.probed.frame_count:,} frames and {max(plan.frames):,} were asked "
                "for; name a longer video, or none to have one drawn"
            )
        self._in_context_cells: dict[tuple, Cell] = {}
        self._rate: float | None = None
        self._is_warm = False
        self._started = time.perf_counter()

    def header(self) -> dict[str, object]:
        """Describe what the results depend on."""
        settings = {name: value for name, value in dataclasses.asdict(self.plan).items() if name != "budget"}
        for swept in ("frames", "resolutions", "video"):
            settings.pop(swept)
        return {
            "v2l": 1,
            "bench": self.vlm.id,
            "model": self.vlm.fingerprint,
            "hypernetwork": self.provenance.sha256,
            "dtype": dtype_name(self.vlm.dtype),
            "machine": describe_machine(self.vlm.device),
            "video": identify(self.video).sha256,
            **settings,
        }

    def run(self, journal: Journal | None = None) -> Iterator[Cell | Encoding]:
        """Yield all results in the order of the sweep. Results in the journal are not measured again, new ones are
        appended to it."""
        done = read_back(journal) if journal else {}
        with journal or nullcontext():
            for frames in self.plan.frames:
                for resolution in self.resolutions:
                    for result in self._measure(frames, resolution, done):
                        key = result_key(result)
                        if journal and key not in done and getattr(result, "status", "") != "left out":
                            journal.add({"kind": type(result).__name__, **dataclasses.asdict(result)})
                        yield result

    # One number of frames at one resolution --------------------------------------------------------------------

    def _measure(self, frames: int, resolution: int, done: dict[tuple, Cell | Encoding]) -> Iterator[Cell | Encoding]:
        rate = frames / self.probed.duration
        reading = fill_reading(
            Reading(frames, rate, None, None, resolution), self.provenance.trained_with, self.vlm.geometry
        )
        plan = self.plan
        subject = Subject(self.video, reading, self.vlm, self.hypernetwork, self.folder, plan.new_tokens, plan.segments)
        methods = distinct_methods(self.vlm, frames, self._is_timeline(reading))
        finished = {
            name: cell
            for (count, size, name), cell in done.items()
            if (count, size) == (frames, resolution) and isinstance(cell, Cell)
        }
        for method in methods:
            if method.in_context:
                cell = finished.get(method.name) or self._in_context_once(method, subject, frames, resolution)
                self._in_context_cells[self._work(method, subject)] = cell
                self._update_rate(cell)
                yield cell
        encoding = done.get((frames, resolution, "encoding"))
        if encoding or self._remaining() > 0:
            yield encoding or self._encoding(subject, frames, resolution)
        without = [method for method in methods if not method.in_context]
        yield from (finished[method.name] for method in without if method.name in finished)
        missing = [method for method in without if method.name not in finished]
        if missing:
            yield from self._without_video(missing, subject, frames, resolution)

    def _is_timeline(self, reading: Reading) -> bool:
        """Whether by default the video would become a timeline, and the reading has more frames than one encoding."""
        trained_with = self.provenance.trained_with
        one = trained_reading(reading, self.hypernetwork, self.vlm)
        segments = plan_timeline(self.probed, one, trained_with, NO_WISH)
        return bool(segments) and (reading.frames or 0) > SINGLE_SPANS * trained_with.frames

    def _work(self, method: Method, subject: Subject) -> tuple:
        """Identify the work of a method in context: two methods that use the same frames may do the same."""
        reading = method.reading(subject.reading)
        assert reading.frames and reading.fps, "the reading is filled"
        return method.prepare, reading.resolution, *choose_frames(self.probed, reading.frames, reading.fps)

    def _in_context_once(self, method: Method, subject: Subject, frames: int, resolution: int) -> Cell:
        """Measure a method, or reuse the cell of another name that does the same work."""
        known = self._in_context_cells.get(self._work(method, subject))
        if known is None or known.status != "measured":
            return self._in_context(method, subject, frames, resolution)
        return dataclasses.replace(known, frames=frames, way=method.name)

    def _in_context(self, method: Method, subject: Subject, frames: int, resolution: int) -> Cell:
        prompt, visual = prompt_size(subject, method)
        cell = Cell(frames, resolution, method.name, True, "left out", "the budget is spent", prompt, visual)
        cell = dataclasses.replace(cell, beyond_positions=prompt + self.plan.new_tokens > self.vlm.max_positions)
        if self._remaining() <= 0:
            return cell
        expected = None if self._rate is None else self._work_of_prompt(cell) / self._rate
        needed, free = prefill_bytes(self.vlm, prompt), free_bytes(self.vlm.device)
        estimate = () if expected is None else (expected,)
        if free is not None and needed > MEMORY_SHARE * free:
            why = f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            return dataclasses.replace(cell, status="estimated", why=why, first_token=estimate)
        if expected is not None and expected > self._remaining():
            return dataclasses.replace(cell, why=f"takes about {expected:.0f} s, more than the budget has left")
        self._warm_up(subject)
        peak = PeakMemory(self.vlm.device)
        start = time.perf_counter()
        prepared = method.prepare(dataclasses.replace(subject, reading=method.reading(subject.reading)))
        synchronise(self.vlm.device)
        seconds = time.perf_counter() - start
        (timing,) = self._repeat([prepared])
        return self._measured(cell, prepared, seconds, timing, peak.bytes())

    def _without_video(
        self, methods: Sequence[Method], subject: Subject, frames: int, resolution: int
    ) -> Iterator[Cell]:
        """These methods are quick and similar, so their repeats alternate: a slow phase of the machine affects all."""
        if self._remaining() <= 0:
            why = "the budget is spent"
            yield from (Cell(frames, resolution, method.name, False, "left out", why) for method in methods)
            return
        self._warm_up(subject)
        peak, start = PeakMemory(self.vlm.device), time.perf_counter()
        subject = subject.encoded()
        encoding, encoding_peak = time.perf_counter() - start, peak.bytes()
        prepared, seconds, peaks = [], [], []
        for method in methods:
            peak, start = PeakMemory(self.vlm.device), time.perf_counter()
            prepared.append(method.prepare(subject))
            seconds.append(time.perf_counter() - start + (encoding if method.needs_adapter else 0.0))
            peaks.append(encoding_peak if method.needs_adapter else peak.bytes())
        timings = self._repeat(prepared)
        for method, each, taken, timing, most in zip(methods, prepared, seconds, timings, peaks, strict=True):
            cell = Cell(frames, resolution, method.name, False, "measured", "", *prompt_size(subject, method))
            yield self._measured(cell, each, taken, timing, most)

    def _measured(
        self, cell: Cell, prepared: PreparedMethod, seconds: float, timing: _Timings, peak: int | None
    ) -> Cell:
        return dataclasses.replace(
            cell,
            status="measured",
            why="",
            first_token=tuple(timing.first_token),
            tokens_per_second=statistics.median(timing.speed) if timing.speed else None,
            prepare=seconds if prepared.kept_bytes else 0.0,  # what keeps nothing of the video prepares nothing
            kept_bytes=prepared.kept_bytes,
            peak_memory=peak,
        )

    def _repeat(self, prepared: Sequence[PreparedMethod]) -> list[_Timings]:
        """Time the answers of each method, with alternating repeats."""
        timings = [_Timings() for _ in prepared]
        repeat = -self.plan.warmup
        while repeat < self._repeats(timings[0]):
            for method, timing in zip(prepared, timings, strict=True):
                with method.attach():
                    if len(prepared) > 1:  # the processor's caches still hold the weights of the method before
                        with closing(method.answer(QUESTIONS[-1])) as warm:
                            next(warm)
                    first, speed = self._time(method, QUESTIONS[repeat % len(QUESTIONS)])
                if repeat >= 0:
                    timing.first_token.append(first)
                    timing.speed += [speed] if speed else []
            repeat += 1
            if self._remaining() <= 0 and repeat > 0:
                break
        return timings

    def _repeats(self, timing: _Timings) -> int:
        if self.plan.repeats is not None or not timing.first_token:
            return self.plan.repeats or 1
        return QUICK_REPEATS if timing.first_token[0] < QUICK_SECONDS else SLOW_REPEATS

    def _time(self, method: PreparedMethod, question: str) -> tuple[float, float | None]:
        """Return the seconds to the first token and the tokens per second after it."""
        synchronise(self.vlm.device)
        start = time.perf_counter()
        tokens = method.answer(question)
        next(tokens)
        first = time.perf_counter()
        more = sum(1 for _ in tokens)
        return first - start, more / (time.perf_counter() - first) if more else None

    def _encoding(self, subject: Subject, frames: int, resolution: int) -> Encoding:
        """Time each part of an encoding alone, after a warm-up of the whole."""
        vlm, trained_with = self.vlm, self.provenance.trained_with
        readings = segment_readings(self.probed, subject.reading, subject.segments)

        def windows() -> list[list[Window]]:
            return [cut_windows(encode_video_images(subject.video, vlm, part), vlm, trained_with) for part in readings]

        def read() -> None:
            for part in parts:
                for layer in vlm.read_layers(part):
                    for _ in layer:
                        pass

        def generate() -> None:
            for part in parts:
                generate_factors(part, vlm, self.hypernetwork)

        def timed(work: Callable[[], object]) -> float:
            synchronise(vlm.device)
            start = time.perf_counter()
            work()
            synchronise(vlm.device)
            return time.perf_counter() - start

        parts = windows()
        generate()
        peak = PeakMemory(vlm.device)
        see = timed(windows)
        reading = timed(read)
        whole = timed(generate)
        return Encoding(frames, resolution, sum(map(len, parts)), see, reading, max(0.0, whole - reading), peak.bytes())

    # Helpers ---------------------------------------------------------------------------------------------------

    def _filled(self, resolution: int | None) -> int:
        reading = Reading(1, 1.0, None, None, resolution)
        filled = fill_reading(reading, self.provenance.trained_with, self.vlm.geometry).resolution
        assert filled is not None, "fill_reading fills the resolution"
        return filled

    def _warm_up(self, subject: Subject) -> None:
        """Run everything once before the first measurement, whichever it is in a resumed journal."""
        if not self._is_warm:
            warm_up(subject)
            self._is_warm = True

    def _remaining(self) -> float:
        """Seconds left of the budget."""
        return math.inf if self.plan.budget is None else self.plan.budget - (time.perf_counter() - self._started)

    def _work_of_prompt(self, cell: Cell) -> float:
        """Multiply-adds of encoding the images of a prompt and prefilling it."""
        images = cell.visual_tokens // self.vlm.geometry.tokens_per_image
        return vision_work(self.vlm, images) + prefill_work(self.vlm, cell.prompt_tokens)

    def _update_rate(self, cell: Cell) -> None:
        """Set the multiply-adds per second for estimates, from the cold method."""
        if cell.status == "measured" and cell.way == METHODS[0].name and cell.median:
            self._rate = self._work_of_prompt(cell) / cell.median


@dataclass
class _Timings:
    """Seconds to the first token, and tokens per second after it, of every timed repeat."""

    first_token: list[float] = dataclasses.field(default_factory=list)
    speed: list[float] = dataclasses.field(default_factory=list)


def drawn_video(frames: int, resolution: int, folder: Path) -> Path:
    """Write a synthetic clip with exactly `frames` frames, one per second, or more per second if an hour is too short.
    Its longer side has `resolution` pixels, at least 128."""
    from v2l.tiny.world.clip import ClipFormat, write_clip
    from v2l.tiny.world.scene import MOST_SECONDS, sample_story

    seconds = float(min(max(2, frames), MOST_SECONDS))
    width = max(128, resolution + resolution % 2)
    form = ClipFormat(width, width * 3 // 8 * 2, frames / seconds)
    story = sample_story("test", 0, seconds, views=frames, count=max(1, min(8, frames // 16)))
    path = folder / f"drawn-{frames}.mp4"
    write_clip(story, path, form)
    return path
