"""Training data: clips of a manifest, cut and sampled at random, with some of the questions about them.

Everything follows from the seed and the step's number, in any process. A clip is read whole, in joint windows or in
segments whose adapters are composed (method section 6 and paper section 3.4), with a random number of frames, so that
the hypernetwork generalises over length and composition.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from v2l.errors import V2LError
from v2l.inference.preprocess import fitting_windows
from v2l.inference.readings import covered, segment_readings
from v2l.io.manifest import Example, group_by_clip
from v2l.io.text import printable
from v2l.models.config import VisionGeometry
from v2l.models.processor import (
    END_OF_TURN,
    IMAGE,
    PromptFrame,
    frame_images,
    prompt_frames,
    question_text,
    tile_grid,
    video_text,
)
from v2l.training.common import Steps
from v2l.training.packing import PLACE, PackedSequence, pack_questions
from v2l.training.settings import SamplingConfig
from v2l.video.client import probe, read_frames
from v2l.video.sampling import Reading, Video, choose_frames

VALIDATION_INTERVAL = 100
"""One clip in every VALIDATION_INTERVAL is kept for validation."""
NO_END = -1
"""The second of a token that ends no frame."""


# Samples -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A window or a segment: the ids of its prompt, (T,), and its images, (N, 3, S, S) uint8, or None if their
    embeddings are cached.

    ends: (T,) int64, for the token that ends a frame the whole second that the frame is announced at, else NO_END
    count, frames: the number of images and of frames
    """

    ids: torch.Tensor
    ends: torch.Tensor
    images: torch.Tensor | None
    count: int
    frames: int


@dataclass(frozen=True)
class TrainingSample:
    """One clip in one step.

    composed: whether each part becomes a separate adapter
    edges: whether the first frame is the video's first, and the last frame the video's last
    shows: the video, the numbers of its frames and their resolution
    sequence: questions and answers, without the video
    in_context: the same after the whole video; None if that exceeds the model's positions
    """

    parts: tuple[Part, ...]
    composed: bool
    edges: tuple[bool, bool]
    shows: tuple[str, tuple[int, ...], int | None]
    sequence: PackedSequence
    in_context: PackedSequence | None


@dataclass(frozen=True)
class UnreadableClip:
    """A clip that could not be read, and why."""

    video: Path
    reason: str


@dataclass(frozen=True)
class SampleReader:
    """The frozen model's tokenizer, image geometry and number of positions, which turn a video into prompts."""

    tokenizer: Tokenizer
    geometry: VisionGeometry
    positions: int

    def ids(self, text: str) -> torch.Tensor:
        """Tokenize text without special tokens; (T,) int64."""
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def ends(self, ids: torch.Tensor, seconds: Sequence[float]) -> torch.Tensor:
        """`Part.ends` of a prompt, (T,), for frames at those seconds."""
        image = self.tokenizer.token_to_id(IMAGE)
        assert image is not None  # every SmolVLM tokenizer has it
        images = (ids == image).nonzero().flatten()
        ends = torch.full_like(ids, NO_END)
        ends[images.view(len(seconds), -1)[:, -1] + 1] = torch.tensor([math.floor(second) for second in seconds])
        return ends


class MicroBatches(Steps):
    """The micro-batches of one process, in order: `per_step` of them make its share of a step.

    batch: clips in a step, over all processes; together: at most this many of them in a micro-batch
    process: the index of this process and the number of processes
    """

    def __init__(
        self,
        examples: Sequence[Example],
        reader: SampleReader,
        sampling: SamplingConfig,
        seed: int,
        steps: int,
        batch: int,
        together: int,
        process: tuple[int, int] = (0, 1),
    ):
        self.clips = group_by_clip(examples)
        self.reader, self.sampling, self.seed = reader, sampling, seed
        self.steps, self.clips_in_step, self.together = steps, batch, together
        self.process, self.processes = process
        self.per_step = math.ceil(batch / self.processes / together)
        self.cached: Container = ()
        """`TrainingSample.shows` of the samples whose images need not be decoded."""

    def __len__(self) -> int:
        return self.steps * self.per_step

    def batch(self, step: int) -> list[TrainingSample | UnreadableClip]:
        """Read the samples of micro-batch number `step`."""
        step, part = divmod(step, self.per_step)
        mine = range(self.process, self.clips_in_step, self.processes)
        chosen = mine[part * self.together : (part + 1) * self.together]
        return [self.sample(step * self.clips_in_step + place) for place in chosen]

    def sample(self, number: int) -> TrainingSample | UnreadableClip:
        """Read the sample with this number, counted from the start of training. Every epoch visits each clip once, in
        random order."""
        epoch, place = divmod(number, len(self.clips))
        clip = self.clips[_shuffled(self.seed, epoch, len(self.clips))[place]]
        random = np.random.default_rng([self.seed, number, 1])
        try:
            return read_sample(clip, self.reader, self.sampling, random, self.cached)
        except V2LError as error:
            return UnreadableClip(clip[0].video, str(error))


def read_sample(
    clip: Sequence[Example],
    reader: SampleReader,
    sampling: SamplingConfig,
    random: np.random.Generator | None,
    cached: Container = (),
) -> TrainingSample:
    """Read one clip as a sample.

    random: None reads the clip as encoding does, with its first questions: at most `frames` frames of it, or, where
        training composes and the clip is longer than that, of each of its segments
    cached: `TrainingSample.shows` of the samples whose images need not be decoded

    Raises V2LError if the video cannot be read or a part of it exceeds the model's positions.
    """
    # Frames and their images
    video = _probe(str(clip[0].video))
    segments = _segments(video, clip[0], sampling) if random is None else [_frames(video, clip[0], sampling, random)]
    chosen = [frame for segment in segments for frame in segment]
    resolution = _resolution(video, len(chosen), reader.geometry, sampling, random)
    rows, cols = tile_grid(video.width, video.height, reader.geometry, resolution)
    shows = str(video.path), tuple(int(frame) for frame in chosen), resolution
    frames = prompt_frames(video, chosen, clip[0].end, (rows, cols))
    images = None
    if shows not in cached:
        pixels = (frame.pixels for frame in read_frames(video, chosen))
        images = [torch.from_numpy(frame_images(each, reader.geometry, resolution)) for each in pixels]
    shown = _ShownClip(video, frames, images, rows * cols + 1, reader, sampling)

    # Questions, and the same after the video
    order = np.arange(len(clip)) if random is None else random.permutation(len(clip))
    questions = [(clip[place].prompt, clip[place].target) for place in order[: sampling.questions]]
    text = video_text(frames, video.duration, PLACE, reader.geometry, generation_prompt=True)
    end = f"{END_OF_TURN}\n" if sampling.newline else END_OF_TURN
    in_context = pack_questions(text, questions, reader.tokenizer, end)

    composed, parts = shown.parts(segments) if random is None else shown.drawn_parts(random)
    return TrainingSample(
        tuple(parts),
        composed,
        (int(chosen[0]) == 0, frames[-1].last),
        shows,
        pack_questions(question_text(PLACE), questions, reader.tokenizer, end),
        in_context if int(in_context.positions.max()) < reader.positions else None,
    )


@dataclass(frozen=True)
class _ShownClip:
    """The chosen frames of a clip, and their images unless these are cached.

    per_frame: the number of images of a frame
    """

    video: Video
    frames: Sequence[PromptFrame]
    images: Sequence[torch.Tensor] | None
    per_frame: int
    reader: SampleReader
    sampling: SamplingConfig

    def ids(self, start: int, stop: int) -> torch.Tensor:
        """The ids of the prompt with frames start .. stop - 1, (T,)."""
        frames, geometry = self.frames[start:stop], self.reader.geometry
        text = video_text(
            frames, self.video.duration, self.sampling.prompt, geometry, marks_end=self.sampling.marks_end
        )
        return self.reader.ids(text)

    def part(self, start: int, stop: int, ids: torch.Tensor | None = None) -> Part:
        """The part with frames start .. stop - 1. ids: of its prompt, if known"""
        ids = self.ids(start, stop) if ids is None else ids
        ends = self.reader.ends(ids, [frame.seconds for frame in self.frames[start:stop]])
        images = None if self.images is None else torch.cat(list(self.images[start:stop]))
        return Part(ids, ends, images, (stop - start) * self.per_frame, stop - start)

    def parts(self, segments: Sequence[Sequence[int]]) -> tuple[bool, list[Part]]:
        """Return whether the parts are composed, and the parts, as encoding reads these segments. A prompt that is too
        long is cut into windows, or, of a composed clip, into more segments."""
        stops = list(itertools.accumulate(map(len, segments)))
        if len(stops) == 1:
            windows = fitting_windows(len(self.frames), self.ids, self.reader.positions, self.sampling.frames)
            return False, [self.part(*window) for window in windows]
        return True, self._fitting([self.part(*span) for span in itertools.pairwise([0, *stops])])

    def drawn_parts(self, random: np.random.Generator) -> tuple[bool, list[Part]]:
        """Draw whether the parts are composed, and their number."""
        count = len(self.frames)
        ids = self.ids(0, count)
        fewest = 1 if len(ids) <= self.reader.positions else math.ceil(count / self.sampling.frames)
        composed, number = _cut(count, fewest, self.sampling, random)
        return composed, self._fitting([self.part(0, count, ids)] if number == 1 else self._even(number))

    def _even(self, number: int) -> list[Part]:
        places = np.array_split(np.arange(len(self.frames)), number)
        return [self.part(int(each[0]), int(each[-1]) + 1) for each in places]

    def _fitting(self, parts: list[Part]) -> list[Part]:
        """Return the parts, more of them if a prompt is too long: each repeats the text."""
        while max(len(part.ids) for part in parts) > self.reader.positions:
            if len(parts) == len(self.frames):
                path, most = printable(self.video.path), self.reader.positions
                raise V2LError(f"{path}: one frame does not fit the model's {most:,} positions")
            parts = self._even(len(parts) + 1)
        return parts


def _segments(video: Video, clip: Example, sampling: SamplingConfig) -> list[list[int]]:
    """Choose the frames of each segment as encoding does: of the whole clip, or, where training composes, of as many
    equal segments as have the length of a clip that is read whole."""
    reading = Reading(sampling.frames, sampling.fps, clip.start, clip.end)
    start, end = covered(video, reading)
    wanted = math.ceil(round((end - start) * sampling.fps / sampling.frames, 6))
    readings = segment_readings(video, reading, max(1, min(wanted, sampling.segments)))
    return [
        choose_frames(video, sampling.frames, sampling.fps, each.start, each.end, each.skip_ends) for each in readings
    ]


def _frames(video: Video, clip: Example, sampling: SamplingConfig, random: np.random.Generator) -> list[int]:
    """Draw the frames of all parts together."""
    most = sampling.longest or sampling.frames * max(sampling.windows, sampling.segments)
    denser = float(random.uniform(1, sampling.denser))
    rate = sampling.fps * denser
    start, end = clip.start or 0.0, min(clip.end or math.inf, video.duration)
    if sampling.denser > 1 and random.random() < 0.5 and end - start > 2 / rate:
        start += float(random.uniform(0, 1 / rate))
    return choose_frames(video, math.ceil(most * denser), rate, start or None, clip.end)


def _resolution(
    video: Video, frames: int, geometry: VisionGeometry, sampling: SamplingConfig, random: np.random.Generator | None
) -> int | None:
    """Choose the resolution of a clip with `frames` frames."""
    if not sampling.resolutions:
        return None
    first = sampling.resolutions[0]
    if random is None or random.random() < sampling.at_first:
        return first
    drawn = int(random.choice(sampling.resolutions))
    rows, cols = tile_grid(video.width, video.height, geometry, drawn)
    return drawn if frames * (rows * cols + 1) <= (sampling.longest or math.inf) else first


def _cut(frames: int, fewest: int, sampling: SamplingConfig, random: np.random.Generator) -> tuple[bool, int]:
    """Draw whether the parts are composed, and their number.

    A third of the clips stays whole if that fits, a third is read in joint windows, and a third is composed. Few
    segments are more frequent than many: no user cuts videos into segments of a second or two.
    """
    method = random.choice(["whole", "windows", "segments"])
    least = max(fewest, math.ceil(frames / (sampling.frames * sampling.denser)))
    most = min(frames, sampling.segments)
    if method == "segments" and most > 1:
        least = min(max(2, least), most)
        return True, least + int((most - least + 1) * random.random() ** 2)
    most = min(frames, max(sampling.windows, fewest))
    if method == "windows" and most > fewest:
        return False, int(random.integers(fewest + 1, most + 1))
    return False, fewest


@functools.lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


@functools.lru_cache(maxsize=4096)
def _probe(path: str) -> Video:
    return probe(path)


def validation_split(
    examples: Sequence[Example], interval: int = VALIDATION_INTERVAL
) -> tuple[list[Example], list[Example]]:
    """Split examples into training and validation examples. One clip in `interval`, at least one, spread evenly over
    the manifest, is kept for validation. Raises V2LError if there is only one clip."""
    clips = group_by_clip(examples)
    if len(clips) < 2:
        raise V2LError("the manifest has only one clip; training needs another one to validate on")

    def of(validation: bool) -> Iterator[Example]:
        for place, clip in enumerate(clips):
            if (place % interval == 0) == validation:
                yield from clip

    return list(of(False)), list(of(True))
