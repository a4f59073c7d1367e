"""Token load and time to first token of every way to ask a video, measured in one process on the same weights.

What is timed runs from the question's text to its first token on the host; what a way does once a video is its
preparation and counts apart. Videos have as many real frames as are asked for; no frame is shown twice to reach a
number.
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

from v2l.bench.methods import METHODS, Method, Ready, Subject, few_frames, prompt_size
from v2l.bench.plan import Plan
from v2l.bench.resources import (
    PeakMemory,
    describe_machine,
    free_bytes,
    prefill_bytes,
    prefill_work,
    synchronise,
    vision_work,
)
from v2l.errors import V2LError
from v2l.inference.encode import generate_factors
from v2l.inference.preprocess import cut_windows, encode_video_images, fill_reading, segment_readings
from v2l.io.files import identify
from v2l.io.journal import Journal
from v2l.io.text import printable
from v2l.models.checkpoint import check_belongs
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.processor import QUESTIONS
from v2l.models.smolvlm import FrozenVLM, Window
from v2l.video.client import probe
from v2l.video.sampling import Reading

QUICK_SECONDS, QUICK_REPEATS, SLOW_REPEATS = 1.0, 30, 5
"""Answers that begin within that time are repeated so often, others so often."""
MEMORY_SHARE = 0.9
"""Of the free memory that a prompt may need before it is only estimated."""


@dataclass(frozen=True)
class Cell:
    """One way at one number of frames and one resolution.

    status: "measured"; "estimated" where it was not tried; "left out" where the budget was spent; why says which
    first_token: seconds of every repeat; an estimate is a single number; tokens_per_second: after it, a median
    prepare: seconds that it takes once a video; kept_bytes: of the video, in memory or on disk
    peak_memory: bytes at the highest while it prepared and answered; beyond_positions: its prompt is longer than the
        model's positions, so that its answers mean nothing
    """

    frames: int
    resolution: int
    way: str
    in_context: bool
    status: str
    why: str = ""
    prompt_tokens: int = 0
    visual_tokens: int = 0
    beyond_positions: bool = False
    first_token: tuple[float, ...] = ()
    tokens_per_second: float | None = None
    prepare: float | None = None
    kept_bytes: int | None = None
    peak_memory: int | None = None

    @property
    def median(self) -> float | None:
        """Seconds to the first token."""
        return statistics.median(self.first_token) if self.first_token else None

    @property
    def p95(self) -> float | None:
        """Seconds within which 95% of the first tokens came."""
        ordered = sorted(self.first_token)
        return ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else None


@dataclass(frozen=True)
class Encoding:
    """What an encoding spends its seconds on: decoding and seeing the frames, reading them with the language model,
    and everything else, the hypernetwork first of all."""

    frames: int
    resolution: int
    windows: int
    see: float
    read: float
    generate: float
    peak_memory: int | None

    @property
    def added(self) -> float:
        """The hypernetwork and bookkeeping, as a share of seeing and reading."""
        return self.generate / (self.see + self.read)


class Bench:
    """A run: yields cells, and an encoding for every frames and resolution, as they finish.

    folder: for the drawn clip and what is kept on disk; journal: where finished ones stand and are gone on from
    Raises V2LError where the video has fewer frames than are asked for, or segments would have none.
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
        self._rate: float | None = None
        self._started = time.perf_counter()

    def header(self) -> dict[str, object]:
        """What the results are about."""
        settings = {name: value for name, value in dataclasses.asdict(self.plan).items() if name != "budget"}
        for swept in ("frames", "resolutions", "video"):
            settings.pop(swept)
        return {
            "v2l": 1,
            "bench": self.vlm.id,
            "model": self.vlm.fingerprint,
            "hypernetwork": self.provenance.sha256,
            "dtype": str(self.vlm.dtype).removeprefix("torch."),
            "machine": describe_machine(self.vlm.device),
            "video": identify(self.video).sha256,
            **settings,
        }

    def run(self, journal: Journal | None = None) -> Iterator[Cell | Encoding]:
        """In the order of the sweep, those that the journal has first."""
        done = read_back(journal) if journal else {}
        with journal or nullcontext():
            for frames in self.plan.frames:
                for resolution in self.resolutions:
                    for result in self._measure(frames, resolution, done):
                        key = _key(result)
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
        ways = [way for way in METHODS if way.prepare is not few_frames or frames > 12]
        for way in ways:
            if way.in_context:
                known = done.get((frames, resolution, way.name))
                cell = known or self._in_context(way, subject, frames, resolution)
                self._learn_rate(cell, subject)
                yield cell
        encoding = done.get((frames, resolution, "encoding"))
        if encoding or self._left() > 0:
            yield encoding or self._encoding(subject, frames, resolution)
        without = [way for way in ways if not way.in_context]
        known = {
            way.name: done[frames, resolution, way.name] for way in without if (frames, resolution, way.name) in done
        }
        lacking = [way for way in without if way.name not in known]
        yield from known.values()
        if lacking:
            yield from self._without_video(lacking, subject, frames, resolution)

    def _in_context(self, way: Method, subject: Subject, frames: int, resolution: int) -> Cell:
        prompt, visual = prompt_size(subject, way)
        cell = Cell(frames, resolution, way.name, True, "left out", "the budget is spent", prompt, visual)
        cell = dataclasses.replace(cell, beyond_positions=prompt + self.plan.new_tokens > self.vlm.max_positions)
        if self._left() <= 0:
            return cell
        images = visual // self.vlm.geometry.tokens_per_image
        work = vision_work(self.vlm, images) + prefill_work(self.vlm, prompt)
        expected = None if self._rate is None else work / self._rate
        needed, free = prefill_bytes(self.vlm, prompt), free_bytes(self.vlm.device)
        estimate = () if expected is None else (expected,)
        if free is not None and needed > MEMORY_SHARE * free:
            why = f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            return dataclasses.replace(cell, status="estimated", why=why, first_token=estimate)
        if expected is not None and expected > self._left():
            return dataclasses.replace(cell, why=f"takes about {expected:.0f} s, more than the budget has left")
        peak = PeakMemory(self.vlm.device)
        start = time.perf_counter()
        ready = way.prepare(subject)
        synchronise(self.vlm.device)
        prepared = time.perf_counter() - start
        return self._filled_cell(cell, ready, prepared, *self._repeat([ready])[0], peak.bytes())

    def _without_video(self, ways: Sequence[Method], subject: Subject, frames: int, resolution: int) -> Iterator[Cell]:
        """These are quick and alike, so their repeats take turns: a machine that slows down slows all of them."""
        if self._left() <= 0:
            why = "the budget is spent"
            yield from (Cell(frames, resolution, way.name, False, "left out", why) for way in ways)
            return
        peak, start = PeakMemory(self.vlm.device), time.perf_counter()
        subject = subject.encoded()
        encoding, encoding_peak = time.perf_counter() - start, peak.bytes()
        ready, prepared, peaks = [], [], []
        for way in ways:
            peak, start = PeakMemory(self.vlm.device), time.perf_counter()
            ready.append(way.prepare(subject))
            prepared.append(time.perf_counter() - start + (encoding if way.wears_adapter else 0.0))
            peaks.append(encoding_peak if way.wears_adapter else peak.bytes())
        for way, each, seconds, timed, peak in zip(ways, ready, prepared, self._repeat(ready), peaks, strict=True):
            cell = Cell(frames, resolution, way.name, False, "measured", "", *prompt_size(subject, way))
            yield self._filled_cell(cell, each, seconds, *timed, peak)

    def _filled_cell(
        self, cell: Cell, ready: Ready, prepared: float, first: tuple[float, ...], speed: float | None, peak: int | None
    ) -> Cell:
        measured = {"first_token": first, "tokens_per_second": speed, "prepare": prepared, "peak_memory": peak}
        return dataclasses.replace(cell, status="measured", why="", kept_bytes=ready.kept_bytes, **measured)

    def _repeat(self, ready: Sequence[Ready]) -> list[tuple[tuple[float, ...], float | None]]:
        """Of each: seconds to the first token of every repeat, and the median of tokens a second after it."""
        timed: list[list[tuple[float, float | None]]] = [[] for _ in ready]
        repeat = -self.plan.warmup
        while repeat < self._repeats(timed[0]):
            for place, each in enumerate(ready):
                with each.attach():
                    if len(ready) > 1:  # what was attached before is still in the processor's caches
                        with closing(each.answer(QUESTIONS[-1])) as warm:
                            next(warm)
                    taken = self._time(each, QUESTIONS[repeat % len(QUESTIONS)])
                if repeat >= 0:
                    timed[place].append(taken)
            repeat += 1
            if self._left() <= 0 and repeat > 0:
                break
        speeds = [[speed for _, speed in times if speed] for times in timed]
        return [
            (tuple(first for first, _ in times), statistics.median(speed) if speed else None)
            for times, speed in zip(timed, speeds, strict=True)
        ]

    def _repeats(self, timed: Sequence[tuple[float, float | None]]) -> int:
        if self.plan.repeats is not None or not timed:
            return self.plan.repeats or 1
        return QUICK_REPEATS if timed[0][0] < QUICK_SECONDS else SLOW_REPEATS

    def _time(self, ready: Ready, question: str) -> tuple[float, float | None]:
        synchronise(self.vlm.device)
        asked = time.perf_counter()
        tokens = ready.answer(question)
        next(tokens)
        first = time.perf_counter()
        more = sum(1 for _ in tokens)
        return first - asked, more / (time.perf_counter() - first) if more else None

    def _encoding(self, subject: Subject, frames: int, resolution: int) -> Encoding:
        """Each part alone, after a run of the whole to warm up."""
        vlm, trained_with = self.vlm, self.provenance.trained_with
        readings = segment_readings(subject.video, subject.reading, subject.segments)

        def windows() -> list[list[Window]]:
            return [cut_windows(encode_video_images(subject.video, vlm, part), vlm, trained_with) for part in readings]

        def read_alone() -> None:
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
        read = timed(read_alone)
        whole = timed(generate)
        return Encoding(frames, resolution, sum(map(len, parts)), see, read, max(0.0, whole - read), peak.bytes())

    # Odds and ends ---------------------------------------------------------------------------------------------

    def _filled(self, resolution: int | None) -> int:
        return fill_reading(
            Reading(1, 1.0, None, None, resolution), self.provenance.trained_with, self.vlm.geometry
        ).resolution

    def _left(self) -> float:
        """Seconds of the budget."""
        return math.inf if self.plan.budget is None else self.plan.budget - (time.perf_counter() - self._started)

    def _learn_rate(self, cell: Cell, subject: Subject) -> None:
        """Arithmetic a second, from the cold way: what estimates are made with."""
        if cell.status == "measured" and cell.way == METHODS[0].name:
            images = cell.visual_tokens // self.vlm.geometry.tokens_per_image
            work = vision_work(self.vlm, images) + prefill_work(self.vlm, cell.prompt_tokens)
            self._rate = work / cell.median


def drawn_video(frames: int, resolution: int, folder: Path) -> Path:
    """A clip of the embedded world with exactly that many frames, one a second, or more where an hour is too short.
    Its longer side has the resolution's pixels, 128 at least."""
    from v2l.tiny.world.clip import ClipFormat, write_clip
    from v2l.tiny.world.scene import MOST_SECONDS, sample_story

    seconds = float(min(max(2, frames), MOST_SECONDS))
    width = max(128, resolution + resolution % 2)
    form = ClipFormat(width, width * 3 // 8 * 2, frames / seconds)
    story = sample_story("test", 0, seconds, views=frames, count=max(1, min(8, frames // 16)))
    path = folder / f"drawn-{frames}.mp4"
    write_clip(story, path, form)
    return path


def read_back(journal: Journal) -> dict[tuple, Cell | Encoding]:
    """What an earlier run measured, by frames, resolution and way. Raises V2LError where it is anything else."""
    kinds, found = {"Cell": Cell, "Encoding": Encoding}, []
    try:
        for row in journal.rows:
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items() if name != "kind"}
            found.append(kinds[row["kind"]](**values))
    except (KeyError, TypeError) as error:
        raise journal.foreign() from error
    return {_key(result): result for result in found}


def _key(result: Cell | Encoding) -> tuple:
    return result.frames, result.resolution, getattr(result, "way", "encoding")
