"""What a training step reads: clips of a manifest, cut and sampled at random, with some of the questions about them.

Everything follows from the seed and the step's number, in any process. A clip is met whole, in joint windows or in
segments whose adapters will be composed (method section 6 and paper section 3.4), so that length and composition are
learned and not hoped for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from v2l.errors import V2LError
from v2l.io.manifest import Example, group_by_clip
from v2l.models.processor import (
    IMAGE,
    PromptFrame,
    VisionGeometry,
    frame_images,
    prompt_frames,
    tile_grid,
    video_text,
)
from v2l.models.processor import question_text as asked
from v2l.training.common import Steps
from v2l.training.packing import PLACE, PackedSequence, pack_questions
from v2l.training.settings import SamplingConfig
from v2l.video.decoding import probe, read_frames
from v2l.video.sampling import Video, choose_frames


@dataclass(frozen=True)
class SampleReader:
    """What turns a video into prompts: the frozen model's tokenizer, image geometry and number of positions."""

    tokenizer: Tokenizer
    geometry: VisionGeometry
    positions: int

    def ids(self, text: str) -> torch.Tensor:
        """Token ids, (T,)."""
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def ends(self, ids: torch.Tensor, seconds: Sequence[float]) -> torch.Tensor:
        """`Part.ends` of a prompt, (T,), of frames at those seconds."""
        images = (ids == self.tokenizer.token_to_id(IMAGE)).nonzero().flatten()
        ends = torch.full_like(ids, NO_END)
        ends[images.view(len(seconds), -1)[:, -1] + 1] = torch.tensor([math.floor(second) for second in seconds])
        return ends


NO_END = -1
"""The second of a token that ends no frame."""


@dataclass(frozen=True)
class Part:
    """A window or a segment of so many frames: the ids, (T,), of its prompt and the `count` images that stand in it,
    (N, 3, S, S) uint8, or None where they were seen before.

    ends: (T,) int64, of the token that ends a frame the whole second that the frame is announced at, else NO_END
    """

    ids: torch.Tensor
    ends: torch.Tensor
    images: torch.Tensor | None
    count: int
    frames: int


@dataclass(frozen=True)
class TrainingSample:
    """One clip in one step.

    composed: whether each part becomes an adapter of its own
    edges: whether the video begins with the first of its frames, and ends with the last
    shows: the video, the numbers of its frames and their resolution
    sequence: questions and answers, without the video
    in_context: the same behind the whole video, where that fits the model's positions
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


class MicroBatches(Steps):
    """The micro-batches of one process, in order: `per_step` of them make its share of a step.

    batch: clips in a step, over all processes; together: at most this many of them in a micro-batch
    process, processes: which one this is, of how many
    """

    def __init__(
        self,
        examples: Sequence[Example],
        reader: SampleReader,
        curriculum: SamplingConfig,
        seed: int,
        steps: int,
        batch: int,
        together: int,
        process: tuple[int, int] = (0, 1),
    ):
        self.clips = group_by_clip(examples)
        self.reader, self.curriculum, self.seed = reader, curriculum, seed
        self.steps, self.clips_in_step, self.together = steps, batch, together
        self.process, self.processes = process
        self.per_step = math.ceil(batch / self.processes / together)
        self.seen: Container = ()
        """What `TrainingSample.shows` of samples whose images nobody needs again."""

    def __len__(self) -> int:
        return self.steps * self.per_step

    def batch(self, step: int) -> list[TrainingSample | UnreadableClip]:
        """The samples of micro-batch number `step`."""
        step, part = divmod(step, self.per_step)
        mine = range(self.process, self.clips_in_step, self.processes)
        chosen = mine[part * self.together : (part + 1) * self.together]
        return [self.sample(step * self.clips_in_step + place) for place in chosen]

    def sample(self, number: int) -> TrainingSample | UnreadableClip:
        """The number-th sample since training began: each clip once, in random order, then each once more."""
        turn, place = divmod(number, len(self.clips))
        clip = self.clips[_shuffled(self.seed, turn, len(self.clips))[place]]
        random = np.random.default_rng([self.seed, number, 1])
        try:
            return read_sample(clip, self.reader, self.curriculum, random, self.seen)
        except V2LError as error:
            return UnreadableClip(clip[0].video, str(error))


def read_sample(
    clip: Sequence[Example],
    reader: SampleReader,
    curriculum: SamplingConfig,
    random: np.random.Generator | None,
    seen: Container = (),
) -> TrainingSample:
    """One clip as a sample; without `random` as encoding would read it, whole where that fits, and asked from the
    first question on. Of what stands in `seen` no image is decoded. Raises V2LError where the video cannot be read or a
    part of it does not fit."""
    video = _probe(str(clip[0].video))
    chosen = _frames(video, clip[0], curriculum, random)
    resolution = _resolution(video, len(chosen), reader.geometry, curriculum, random)
    rows, cols = tile_grid(video.width, video.height, reader.geometry, resolution)
    shows = str(video.path), tuple(int(frame) for frame in chosen), resolution
    frames = prompt_frames(video, chosen, clip[0].end, (rows, cols))
    images = None
    if shows not in seen:
        pixels = (frame.pixels for frame in read_frames(video, chosen))
        images = [torch.from_numpy(frame_images(each, reader.geometry, resolution)) for each in pixels]

    order = np.arange(len(clip)) if random is None else random.permutation(len(clip))
    questions = [(clip[place].prompt, clip[place].target) for place in order[: curriculum.questions]]
    text = video_text(frames, video.duration, PLACE, reader.geometry, generation_prompt=True)
    in_context = pack_questions(text, questions, reader.tokenizer)

    def heard(part: Sequence[PromptFrame]) -> torch.Tensor:
        text = video_text(part, video.duration, curriculum.prompt, reader.geometry, marks_end=curriculum.marks_end)
        return reader.ids(text)

    whole = heard(frames)

    def read_in(count: int) -> list[Part]:
        parts = []
        for places in np.array_split(np.arange(len(frames)), count):
            ids = whole if count == 1 else heard([frames[place] for place in places])
            own = None if images is None else torch.cat([images[place] for place in places])
            ends = reader.ends(ids, [frames[place].seconds for place in places])
            parts.append(Part(ids, ends, own, len(places) * (rows * cols + 1), len(places)))
        return parts

    fewest = 1 if len(whole) <= reader.positions else math.ceil(len(frames) / curriculum.frames)
    composed, count = _cut(len(frames), fewest, curriculum, random)
    parts = read_in(count)
    while max(len(part.ids) for part in parts) > reader.positions:  # each part has words of its own, too
        count += 1
        if count > len(frames):
            raise V2LError(f"{video.path}: one frame does not fit the model's {reader.positions:,} positions")
        parts = read_in(count)
    return TrainingSample(
        tuple(parts),
        composed,
        (int(chosen[0]) == 0, frames[-1].last),
        shows,
        pack_questions(asked(PLACE), questions, reader.tokenizer),
        in_context if int(in_context.positions.max()) < reader.positions else None,
    )


def _frames(video: Video, clip: Example, curriculum: SamplingConfig, random: np.random.Generator | None) -> list[int]:
    """The frames that all parts together show."""
    most = curriculum.longest or curriculum.frames * max(curriculum.windows, curriculum.segments)
    if random is None:
        return choose_frames(video, most, curriculum.fps, clip.start, clip.end)
    denser = float(random.uniform(1, curriculum.denser))
    rate = curriculum.fps * denser
    start, end = clip.start or 0.0, min(clip.end or math.inf, video.duration)
    if curriculum.denser > 1 and random.random() < 0.5 and end - start > 2 / rate:
        start += float(random.uniform(0, 1 / rate))
    return choose_frames(video, math.ceil(most * denser), rate, start or None, clip.end)


def _resolution(
    video: Video, frames: int, geometry: VisionGeometry, curriculum: SamplingConfig, random: np.random.Generator | None
) -> int | None:
    """The one that so many frames are met at."""
    if not curriculum.resolutions:
        return None
    first = curriculum.resolutions[0]
    if random is None or random.random() < curriculum.at_first:
        return first
    drawn = int(random.choice(curriculum.resolutions))
    rows, cols = tile_grid(video.width, video.height, geometry, drawn)
    return drawn if frames * (rows * cols + 1) <= (curriculum.longest or math.inf) else first


def _cut(frames: int, fewest: int, curriculum: SamplingConfig, random: np.random.Generator | None) -> tuple[bool, int]:
    """Whether the parts are composed, and how many there are: a third of the clips stay whole where that fits, a third
    are read in joint windows, a third are composed, of few segments more often than of many: of a second or two each
    no user cuts them."""
    if random is None:
        return False, fewest
    way = random.choice(["whole", "windows", "segments"])
    least = max(fewest, math.ceil(frames / (curriculum.frames * curriculum.denser)))
    most = min(frames, curriculum.segments)
    if way == "segments" and most > 1:
        least = min(max(2, least), most)
        return True, least + int((most - least + 1) * random.random() ** 2)
    most = min(frames, max(curriculum.windows, fewest))
    if way == "windows" and most > fewest:
        return False, int(random.integers(fewest + 1, most + 1))
    return False, fewest


@functools.lru_cache(maxsize=4)
def _shuffled(seed: int, turn: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, turn]).permutation(count)


@functools.lru_cache(maxsize=4096)
def _probe(path: str) -> Video:
    return probe(path)


def validation_split(examples: Sequence[Example], share: int = 100) -> tuple[list[Example], list[Example]]:
    """Training and validation examples: one clip in `share`, at least one, evenly spread over the manifest, is kept
    for validation. Raises V2LError where there is one clip only."""
    clips = group_by_clip(examples)
    if len(clips) < 2:
        raise V2LError("the manifest is about one clip only; training needs one more to validate on")
    kept = set(range(0, len(clips), share))

    def of(wanted: bool) -> Iterator[Example]:
        for place, clip in enumerate(clips):
            if (place in kept) == wanted:
                yield from clip

    return list(of(False)), list(of(True))
