"""Folders of clips with a manifest that `v2l train` and `v2l eval` read.

`python -m v2l.tiny.world.dataset FOLDER SPLIT COUNT [FILMING] [--kept|--scenes|--styles|--benchmarks] [--from SEED]` writes
COUNT clips of a split and the manifest FOLDER/SPLIT.jsonl, or FOLDER/SPLIT-FILMING.jsonl where they are not filmed
plainly. --kept asks in the phrasings that are kept for the test, --scenes what only its time or an order ties to a
scene, --styles what the paper's five caption styles ask, --benchmarks what its four question benchmarks ask; --from
begins with another clip than the first; the manifest's name tells.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from v2l.errors import errors_in_one_line
from v2l.io.files import make_folder, write_atomically
from v2l.tiny.world.clip import ClipFormat, seen_times, write_clip
from v2l.tiny.world.questions import EASY, Question, ask_about, ask_as_benchmarks, ask_by_scene, caption, describe
from v2l.tiny.world.scene import SHAPES, SPLITS, WORDS, Story, sample_story


@dataclass(frozen=True)
class Filming:
    """A video's length in seconds, its number of scenes and how it is filmed.

    clip: whole seconds from which and up to which it is read; None for all of it
    """

    seconds: float = 8.0
    scenes: int = 1
    form: ClipFormat = field(default_factory=ClipFormat)
    clip: tuple[int, int] | None = None

    @property
    def views(self) -> int:
        """How many frames are asked about where all of it is read: one a second, or all where there are fewer."""
        return math.ceil(round(self.seconds * min(1.0, self.form.fps), 6))

    @property
    def times(self) -> list[float]:
        """Seconds of the frames that are read."""
        if self.clip is None:
            return seen_times(self.seconds, self.form, self.views)
        start, end = self.clip
        return [start + seconds for seconds in seen_times(end - start, self.form, end - start)]

    @property
    def beyond(self) -> tuple[str, ...]:
        """Kinds of question that an excerpt does not know the whole video's answer to. They are not asked: a segment's
        adapter that takes its own last frame for the last one drowns that of the segment after it."""
        if self.clip is None:
            return ()
        start, end = self.clip
        return (*(BEGINNING if start > 0 else ()), *(ENDING if end < self.seconds else ()))


def plain(random: np.random.Generator) -> Filming:
    """Eight seconds of one scene, 128 x 96 pixels at 8 frames a second."""
    return Filming()


def varied(random: np.random.Generator) -> Filming:
    """What training needs: in six clips of ten one scene of 3 to 12 seconds, in the others two to eight in 4 to 20.
    Their frames are small, of any shape, and few a second."""
    seconds, scenes = float(random.uniform(3, 12)), 1
    if random.random() < 0.4:
        seconds = float(random.uniform(4, 20))
        scenes = int(random.integers(2, min(8, int(seconds) // 2) + 1))
    return Filming(seconds, scenes, ClipFormat(*_small(random), float(random.integers(2, 5))))


def long(random: np.random.Generator) -> Filming:
    """What composing many segments needs: two to sixteen scenes in 20 to 64 seconds, filmed as `varied` is."""
    seconds = float(random.uniform(20, 64))
    sides = _small(random)
    return Filming(seconds, int(random.integers(2, 17)), ClipFormat(*sides, float(random.integers(1, 4))))


def excerpt(random: np.random.Generator) -> Filming:
    """What late seconds need: 4 to 16 out of 24 to 64, with a scene for every four to twelve, filmed as `long` is. They
    cost a training step no more than short clips do."""
    seconds, length = int(random.integers(24, 65)), int(random.integers(4, 17))
    scenes = int(random.integers(math.ceil(seconds / 12), seconds // 4 + 1))
    start = int(random.integers(seconds - length + 1))
    form = ClipFormat(*_small(random), float(random.integers(1, 4)))
    return Filming(float(seconds), scenes, form, (start, start + length))


def sparse(random: np.random.Generator) -> Filming:
    """What many segments need: 22 to 63 seconds with a frame every two seconds or more rarely, 9 to 20 of them, and two
    scenes to as many as frames. Early and late seconds stand beside each other at the price of a short clip, so that a
    rank has to tell its own second from others that are a rank's number apart."""
    return _few_frames(float(random.uniform(25, 63)), random)


def far(random: np.random.Generator) -> Filming:
    """What minutes need: as `sparse`, of one to eighteen minutes, short ones as often as ones of twice their length."""
    return _few_frames(float(np.exp(random.uniform(np.log(64), np.log(1_100)))), random)


def many(random: np.random.Generator) -> Filming:
    """What hundreds of frames need: 96 to 256 of them in 96 to 1,100 seconds, with two scenes to sixteen. Their first
    and last frame share their ranks with many others."""
    return _all_frames(96, 256, random)


def thousand(random: np.random.Generator) -> Filming:
    """What a thousand frames need: as `many`, of 256 to 1,024 frames in 256 to 1,100 seconds."""
    return _all_frames(256, 1_024, random)


def _few_frames(seconds: float, random: np.random.Generator) -> Filming:
    """A clip of about so many seconds and 8 to 20 frames, with two scenes to as many as frames."""
    seconds, fps = _at_rate(seconds, min(int(random.integers(10, 21)) / seconds, 0.5))
    return Filming(seconds, int(random.integers(2, round(seconds * fps) + 1)), ClipFormat(*_small(random), fps))


def _all_frames(least: int, most: int, random: np.random.Generator) -> Filming:
    """A clip of that many frames, one a second or more rarely, and two scenes to sixteen, of up to 1,100 seconds; short
    ones as often as ones of twice their length."""
    seconds = float(np.exp(random.uniform(np.log(least), np.log(1_100))))
    frames = min(seconds, float(np.exp(random.uniform(np.log(least), np.log(most)))))
    seconds, fps = _at_rate(seconds, frames / seconds)
    return Filming(seconds, int(random.integers(2, 17)), ClipFormat(*_small(random), fps))


def _at_rate(seconds: float, fps: float) -> tuple[float, float]:
    """About so many seconds at about so many frames a second, as OpenCV writes them: what is 0.001 off is good
    enough."""
    thousandths = round(1000 * fps)
    fps = (thousandths - (thousandths % 10 in (1, 9))) / 1000
    return int(seconds * fps) / fps, fps


def _small(random: np.random.Generator) -> tuple[int, ...]:
    """Width and height of a training clip's frames."""
    return tuple(2 * int(side) for side in random.integers(40, 73, 2))


def scenes_of_eight_seconds(count: int) -> Callable[[np.random.Generator], Filming]:
    """So many scenes one after the other, filmed as `plain` is."""
    return lambda random: Filming(8.0 * count, count)


def length(seconds: int) -> Callable[[np.random.Generator], Filming]:
    """So many seconds of up to sixteen scenes: what one of them shows is there for a sixteenth of the time at most."""
    return lambda random: Filming(float(seconds), min(seconds, 16), ClipFormat(fps=2.0))


def facts(seconds: int) -> Callable[[np.random.Generator], Filming]:
    """So many seconds with a scene for every four of them, as far as there are words."""
    return lambda random: Filming(float(seconds), min(seconds // 4, len(WORDS)), ClipFormat(fps=2.0))


def lines(height: int) -> Callable[[np.random.Generator], Filming]:
    """`plain` with so many lines of pixels."""
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
    **{f"length-{seconds}": length(seconds) for seconds in (8, 12, 64, 256, 1024)},
    **{f"facts-{seconds}": facts(seconds) for seconds in (8, 12, 64, 256, 1024)},
    **{f"lines-{height}": lines(height) for height in (64, 96, 240, 480, 1080)},
}


SOON = (*EASY, "start", "end", "motion")
"""Kinds of question that adapters answer long before those about words and their order and about places at a time."""
LATE = "word before"
"""The kind of question that they answer last."""
BEGINNING, ENDING = ("word first", "start"), ("word last", "end")
"""Kinds of question about the beginning and about the end of what is seen."""


def story_of(split: str, seed: int, film: Filming) -> Story:
    """What the clip of that seed shows where it is filmed so, with as many shapes as the embedded model knows."""
    return sample_story(split, seed, film.seconds, views=film.views, count=film.scenes, shapes=SHAPES)


Asking = Callable[[Story, Sequence[float], np.random.Generator], list[Question]]


def everything(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """Each kind of question once, at times in whole seconds, and a caption."""
    return [*ask_about(story, times, random, whole_seconds=True), caption(story, times, random)]


def everything_often(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """For training: each kind of question three times, of different times and words, but those that adapters answer
    long before the others once, and what came before a word, which is learned last, up to nine times; and a caption."""
    asked = ask_about(story, times, random)
    for turn in range(8):
        often = ask_about(story, times, random)
        asked += [each for each in often if each.kind == LATE or (turn < 2 and each.kind not in SOON)]
    return [*asked, caption(story, times, random)]


def everything_kept(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """`everything` in the phrasings that training never hears."""
    asked = ask_about(story, times, random, kept_phrasing=True, whole_seconds=True)
    return [*asked, caption(story, times, random)]


ASKINGS: dict[str, Asking] = {
    "kept": everything_kept,
    "scenes": ask_by_scene,
    "styles": describe,
    "benchmarks": ask_as_benchmarks,
}
"""What can be asked instead of everything."""


def write_dataset(
    folder: str | os.PathLike,
    split: str,
    count: int,
    filming: Callable[[np.random.Generator], Filming] = plain,
    name: str | None = None,
    asking: str | None = None,
    first: int = 0,
) -> Path:
    """`count` clips of a split, seeds `first` up, with their questions; returns the manifest, `{name}.jsonl` in the
    folder.

    filming: how each clip is filmed, from a generator of its own
    name: of the clips' folder and of the manifest, the split's where None
    asking: one of ASKINGS, in `{name}-{asking}.jsonl`; everything where None, for training often
    first: seed of the first clip; where that is not 0, the manifest's name ends in `-from-{first}`

    Scenes have as many shapes as the embedded model knows. Questions are about what a frame a second shows; how many
    shapes there are, where it differs. Clips that are there already are not written again.
    """
    folder, name = Path(folder), name or split
    make_folder(folder / name)
    rows = []
    ask = ASKINGS[asking] if asking else everything_often if split == "train" else everything
    for seed in tqdm(range(first, first + count), unit="clip", disable=not sys.stderr.isatty()):
        path = f"{name}/{seed:05d}.mp4"
        random = np.random.default_rng(seed)
        film = filming(random)
        story = story_of(split, seed, film)
        if not (folder / path).exists():
            write_clip(story, folder / path, film.form)
        times = film.times
        seen = story.between(times[0], times[-1])
        told = {(question.kind, question.prompt): question for question in ask(seen, times, random)}
        span = {} if film.clip is None else {"clip_start_sec": film.clip[0], "clip_end_sec": film.clip[1]}
        unasked = film.beyond if SHAPES > 1 else (*film.beyond, "count")
        asked = [question for question in told.values() if question.kind not in unasked]
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
    parts = (name, asking, f"from-{first}" if first else None)
    manifest = folder / f"{'-'.join(filter(None, parts))}.jsonl"
    write_atomically(manifest, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return manifest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m v2l.tiny.world.dataset", description="Clips of a split, and questions."
    )
    parser.add_argument("folder")
    parser.add_argument("split", choices=SPLITS)
    parser.add_argument("count", type=int)
    parser.add_argument("filming", nargs="?", choices=FILMINGS, default="plain")
    for name in ASKINGS:
        parser.add_argument(f"--{name}", dest="asking", action="store_const", const=name)
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="SEED", help="of the first clip")
    given = parser.parse_args()
    if given.first < 0:
        parser.error(f"--from {given.first}: seeds begin at 0")
    name = given.split if given.filming == "plain" else f"{given.split}-{given.filming}"
    with errors_in_one_line():
        filming = FILMINGS[given.filming]
        print(write_dataset(given.folder, given.split, given.count, filming, name, given.asking, given.first))
