"""Write folders of clips with a manifest for `v2l train` and `v2l eval`.

`python -m v2l.tiny.world.dataset FOLDER SPLIT COUNT [FILMING] [--kept|--scenes|--styles|--benchmarks] [--from SEED]
[--like SPLIT]` writes COUNT clips of a split and the manifest FOLDER/SPLIT[-FILMING].jsonl. --kept asks in the
phrasings reserved for the test, --scenes asks questions that depend on a time or an order, --styles asks for the
paper's five caption styles and --benchmarks asks the questions of its four benchmarks. --from sets the seed of the
first clip. --like chooses clips with as many words as the first COUNT clips of another split. The name of the manifest
ends with these options. docs/world.md describes filmings and questions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from v2l.errors import errors_in_one_line
from v2l.io.files import make_folder, write_atomically
from v2l.tiny.world.clip import ClipFormat, frame_times, write_clip
from v2l.tiny.world.questions import EASY, Question, ask_about, ask_as_benchmarks, ask_by_scene, caption, describe
from v2l.tiny.world.scene import SHAPES, SPLITS, WORDS, Story, sample_story


@dataclass(frozen=True)
class Filming:
    """Length in seconds, number of scenes and format of a video.

    clip: start and end, in whole seconds, of the excerpt to read; None for the whole video
    """

    seconds: float = 8.0
    scenes: int = 1
    form: ClipFormat = field(default_factory=ClipFormat)
    clip: tuple[int, int] | None = None

    @property
    def views(self) -> int:
        """Number of frames to ask about in the whole video: one per second, or all if there are fewer."""
        return math.ceil(round(self.seconds * min(1.0, self.form.fps), 6))

    @property
    def times(self) -> list[float]:
        """Times of the frames to read, in seconds."""
        if self.clip is None:
            return frame_times(self.seconds, self.form, self.views)
        start, end = self.clip
        return [start + seconds for seconds in frame_times(end - start, self.form, end - start)]

    @property
    def unanswerable(self) -> tuple[str, ...]:
        """Kinds of question that the excerpt cannot answer for the whole video. They are not asked: a segment's adapter
        that mistakes its own last frame for the video's would overrule the adapter of the next segment."""
        if self.clip is None:
            return ()
        start, end = self.clip
        return (*(BEGINNING if start > 0 else ()), *(ENDING if end < self.seconds else ()))


def plain(random: np.random.Generator) -> Filming:
    """One scene of 8 seconds, 128 x 96 pixels at 8 frames per second."""
    return Filming()


def varied(random: np.random.Generator) -> Filming:
    """Standard training clips: 60% have one scene of 3 to 12 seconds, the others two to eight in 4 to 20 seconds.

    Frames have 80 to 144 pixels per side, at 2 to 4 frames per second.
    """
    seconds, scenes = float(random.uniform(3, 12)), 1
    if random.random() < 0.4:
        seconds = float(random.uniform(4, 20))
        scenes = int(random.integers(2, min(8, int(seconds) // 2) + 1))
    return Filming(seconds, scenes, ClipFormat(*_frame_size(random), float(random.integers(2, 5))))


def long(random: np.random.Generator) -> Filming:
    """For composing many segments: two to sixteen scenes in 20 to 64 seconds, at 1 to 3 frames per second."""
    seconds = float(random.uniform(20, 64))
    sides = _frame_size(random)
    return Filming(seconds, int(random.integers(2, 17)), ClipFormat(*sides, float(random.integers(1, 4))))


def excerpt(random: np.random.Generator) -> Filming:
    """For late seconds at the cost of a short clip: 4 to 16 seconds of a video of 24 to 64.

    The video has one scene per 4 to 12 seconds, at 1 to 3 frames per second.
    """
    seconds, length = int(random.integers(24, 65)), int(random.integers(4, 17))
    scenes = int(random.integers(math.ceil(seconds / 12), seconds // 4 + 1))
    start = int(random.integers(seconds - length + 1))
    form = ClipFormat(*_frame_size(random), float(random.integers(1, 4)))
    return Filming(float(seconds), scenes, form, (start, start + length))


def sparse(random: np.random.Generator) -> Filming:
    """For distant seconds in one clip at the cost of a short one: 22 to 63 seconds, 9 to 20 frames at least 2 s apart.

    The number of scenes is 2 to the number of frames. A rank must distinguish its own second from those that differ by
    a multiple of the rank count.
    """
    return _few_frames(float(random.uniform(25, 63)), random)


def far(random: np.random.Generator) -> Filming:
    """For minutes: like `sparse`, of 1 to 18 minutes (log-uniform), 8 to 20 frames."""
    return _few_frames(float(np.exp(random.uniform(np.log(64), np.log(1_100)))), random)


def many(random: np.random.Generator) -> Filming:
    """For hundreds of frames: 96 to 256 in 96 to 1,100 seconds, two to sixteen scenes.

    The first and the last frame share their ranks with many other frames.
    """
    return _all_frames(96, 256, random)


def thousand(random: np.random.Generator) -> Filming:
    """For a thousand frames: like `many`, 256 to 1,024 frames in 256 to 1,100 seconds."""
    return _all_frames(256, 1_024, random)


def _few_frames(seconds: float, random: np.random.Generator) -> Filming:
    """Film about `seconds` with 8 to 20 frames and two scenes to as many as frames."""
    seconds, fps = _at_rate(seconds, min(int(random.integers(10, 21)) / seconds, 0.5))
    return Filming(seconds, int(random.integers(2, round(seconds * fps) + 1)), ClipFormat(*_frame_size(random), fps))


def _all_frames(least: int, most: int, random: np.random.Generator) -> Filming:
    """Film `least` to `most` frames, at most one per second, in up to 1,100 seconds, with two to sixteen scenes.

    Length and number of frames are log-uniform.
    """
    seconds = float(np.exp(random.uniform(np.log(least), np.log(1_100))))
    frames = min(seconds, float(np.exp(random.uniform(np.log(least), np.log(most)))))
    seconds, fps = _at_rate(seconds, frames / seconds)
    return Filming(seconds, int(random.integers(2, 17)), ClipFormat(*_frame_size(random), fps))


def _at_rate(seconds: float, fps: float) -> tuple[float, float]:
    """Round length and frame rate to values that OpenCV writes exactly, within 0.001 frames per second."""
    thousandths = round(1000 * fps)
    fps = (thousandths - (thousandths % 10 in (1, 9))) / 1000
    return int(seconds * fps) / fps, fps


def _frame_size(random: np.random.Generator) -> tuple[int, int]:
    """Sample width and height of a training clip's frames, in pixels."""
    width, height = (2 * int(side) for side in random.integers(40, 73, 2))
    return width, height


def scenes_of_eight_seconds(count: int) -> Callable[[np.random.Generator], Filming]:
    """Return a filming of `count` scenes of 8 seconds each, in the format of `plain`."""
    return lambda random: Filming(8.0 * count, count)


def length(seconds: int) -> Callable[[np.random.Generator], Filming]:
    """Return a filming of that many seconds and up to sixteen scenes, so that no fact lasts longer than 1/16."""
    return lambda random: Filming(float(seconds), min(seconds, 16), ClipFormat(fps=2.0))


def facts(seconds: int) -> Callable[[np.random.Generator], Filming]:
    """Return a filming of that many seconds with one scene per 4 seconds, at most one per known word."""
    return lambda random: Filming(float(seconds), min(seconds // 4, len(WORDS)), ClipFormat(fps=2.0))


def lines(height: int) -> Callable[[np.random.Generator], Filming]:
    """Return the filming `plain` with frames of that height."""
    return lambda random: Filming(form=ClipFormat(2 * round(height * 2 / 3), height))


FILMINGS: dict[str, Callable[[np.random.Generator], Filming]] = {
    "plain": plain,
    "varied": varied,
    "long": long,
    "excerpt": excerpt,
    "sparse": sparse,
    "far": far,
    "many": many,
    "thousand": thousand,
    "two": scenes_of_eight_seconds(2),
    "eight": scenes_of_eight_seconds(8),
    **{f"length-{seconds}": length(seconds) for seconds in (8, 12, 16, 24, 36, 64, 256, 1024, 3600)},
    **{f"facts-{seconds}": facts(seconds) for seconds in (8, 12, 64, 256, 1024)},
    **{f"lines-{height}": lines(height) for height in (64, 96, 240, 480, 1080)},
}


EARLY = (*EASY, "start", "end", "motion")
"""Kinds of question that adapters learn long before those about words, their order, and places at a time."""
LATE = "word before"
"""The kind of question that adapters learn last."""
BEGINNING, ENDING = ("word first", "start"), ("word last", "end")
"""Kinds of question about the beginning and about the end of a video."""


def story_of(split: str, seed: int, film: Filming) -> Story:
    """Return the story of the clip with that seed, with as many shapes per scene as the embedded model knows."""
    return sample_story(split, seed, film.seconds, views=film.views, count=film.scenes, shapes=SHAPES)


Asking = Callable[[Story, Sequence[float], np.random.Generator], list[Question]]


def everything(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """Return each kind of question once, in whole seconds, and a caption."""
    return [*ask_about(story, times, random, whole_seconds=True), caption(story, times, random)]


def everything_often(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """Return the questions of a training clip and a caption.

    Most kinds are asked three times, those of EARLY once, LATE up to nine times.
    """
    asked = ask_about(story, times, random)
    for turn in range(8):
        more = ask_about(story, times, random)
        asked += [each for each in more if each.kind == LATE or (turn < 2 and each.kind not in EARLY)]
    return [*asked, caption(story, times, random)]


def everything_kept(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """Return `everything` in the phrasings that are reserved for the test."""
    asked = ask_about(story, times, random, kept_phrasing=True, whole_seconds=True)
    return [*asked, caption(story, times, random)]


ASKINGS: dict[str, Asking] = {
    "kept": everything_kept,
    "scenes": ask_by_scene,
    "styles": describe,
    "benchmarks": ask_as_benchmarks,
}
"""Alternatives to `everything`, by option name."""


def seeds_like(
    split: str, other: str, count: int, filming: Callable[[np.random.Generator], Filming], first: int = 0
) -> Iterator[int]:
    """Yield `count` seeds of a split, from `first` on, whose clips have as many words as the clips of another split.

    For every number of words there are as many clips as among those with the first `count` seeds of the other split.
    Clips with more words are harder, and contain a held-out combination more often.
    """

    def words(split: str, seed: int) -> int:
        story = story_of(split, seed, filming(np.random.default_rng(seed)))
        return sum(len(scene.board.words) for scene in story.scenes)

    missing = Counter(words(other, seed) for seed in range(count))
    for seed in itertools.count(first):
        if not missing.total():
            return
        if missing[number := words(split, seed)]:
            missing[number] -= 1
            yield seed


def write_dataset(
    folder: str | os.PathLike,
    split: str,
    count: int,
    filming: Callable[[np.random.Generator], Filming] = plain,
    name: str | None = None,
    asking: str | None = None,
    first: int = 0,
    like: str | None = None,
) -> Path:
    """Write clips of a split and their questions; return the path of the manifest, `{name}.jsonl` in the folder.

    Questions are about the frames that one frame per second shows. Existing clips are kept.

    count: number of clips, with the seeds from `first` on
    filming: samples the filming of each clip from a generator seeded by the clip's seed
    name: of the folder of clips and of the manifest; the split by default
    asking: one of ASKINGS, added to the manifest's name; by default `everything_often` for training, else `everything`
    first: seed of the first clip; if not 0, the manifest's name ends in `-from-{first}`
    like: choose the clips by `seeds_like` another split; the manifest's name ends in `-like-{like}`
    """
    folder, name = Path(folder), name or split
    make_folder(folder / name)
    rows = []
    ask = ASKINGS[asking] if asking else everything_often if split == "train" else everything
    seeds = seeds_like(split, like, count, filming, first) if like else range(first, first + count)
    for seed in tqdm(seeds, total=count, unit="clip", disable=not sys.stderr.isatty()):
        path = f"{name}/{seed:05d}.mp4"
        random = np.random.default_rng(seed)
        film = filming(random)
        story = story_of(split, seed, film)
        if not (folder / path).exists():
            write_clip(story, folder / path, film.form)
        times = film.times
        visible = story.between(times[0], times[-1])
        distinct = {(question.kind, question.prompt): question for question in ask(visible, times, random)}
        span = {} if film.clip is None else {"clip_start_sec": film.clip[0], "clip_end_sec": film.clip[1]}
        excluded = film.unanswerable if SHAPES > 1 else (*film.unanswerable, "count")
        asked = [question for question in distinct.values() if question.kind not in excluded]
        for number, question in enumerate(asked):
            rows.append(
                {
                    "id": f"{name}-{seed:05d}-{number:02d}",
                    "video_path": path,
                    "task_type": "caption" if asking == "styles" or question.kind == "caption" else "qa",
                    "prompt": question.prompt,
                    "target_text": question.answer,
                    "split": split,
                    "metadata": {"kind": question.kind, "kept_phrasing": asking == "kept"},
                    **span,
                }
            )
    parts = (name, asking, f"from-{first}" if first else None, f"like-{like}" if like else None)
    manifest = folder / f"{'-'.join(filter(None, parts))}.jsonl"
    write_atomically(manifest, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return manifest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m v2l.tiny.world.dataset", description="Write clips of a split and their questions."
    )
    parser.add_argument("folder")
    parser.add_argument("split", choices=SPLITS)
    parser.add_argument("count", type=int)
    parser.add_argument("filming", nargs="?", choices=FILMINGS, default="plain")
    for name in ASKINGS:
        parser.add_argument(f"--{name}", dest="asking", action="store_const", const=name)
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="SEED", help="seed of the first clip")
    parser.add_argument("--like", choices=SPLITS, help="choose clips with as many words as those of another split")
    given = parser.parse_args()
    if given.first < 0:
        parser.error(f"--from {given.first}: seeds start at 0")
    name = given.split if given.filming == "plain" else f"{given.split}-{given.filming}"
    with errors_in_one_line():
        filming = FILMINGS[given.filming]
        options = (name, given.asking, given.first, given.like)
        print(write_dataset(given.folder, given.split, given.count, filming, *options))
