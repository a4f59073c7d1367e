"""Folders of clips with a manifest that `v2l train` and `v2l eval` read.

`python -m v2l.world.dataset FOLDER SPLIT COUNT [FILMING] [--kept]` writes COUNT clips of a split and the manifest
FOLDER/SPLIT.jsonl, or FOLDER/SPLIT-FILMING.jsonl where they are not filmed plainly; --kept asks in the phrasings that
are kept for the test.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from v2l.files import make_folder, write_atomically
from v2l.world.clip import ClipFormat, seen_times, write_clip
from v2l.world.questions import ask_about, caption
from v2l.world.scene import SHAPES, sample_story


@dataclass(frozen=True)
class Filming:
    """A clip's length in seconds, its number of scenes and how it is filmed."""

    seconds: float = 8.0
    scenes: int = 1
    form: ClipFormat = field(default_factory=ClipFormat)


def plain(random: np.random.Generator) -> Filming:
    """Eight seconds of one scene, 128 x 96 pixels at 8 frames a second."""
    return Filming()


def varied(random: np.random.Generator) -> Filming:
    """What training needs: 3 to 36 seconds, up to eight scenes, small frames of any shape, few a second."""
    seconds = float(random.uniform(3, 12) if random.random() < 0.8 else random.uniform(12, 36))
    scenes = int(random.integers(1, min(8, int(seconds) // 2) + 1)) if random.random() < 0.5 else 1
    width, height = (2 * int(side) for side in random.integers(40, 73, 2))
    return Filming(seconds, scenes, ClipFormat(width, height, float(random.integers(2, 5))))


def scenes_of_eight_seconds(count: int) -> Callable[[np.random.Generator], Filming]:
    """So many scenes one after the other, filmed as `plain` is."""
    return lambda random: Filming(8.0 * count, count)


FILMINGS: dict[str, Callable[[np.random.Generator], Filming]] = {
    "plain": plain,
    "varied": varied,
    "two": scenes_of_eight_seconds(2),
    "eight": scenes_of_eight_seconds(8),
}


def write_dataset(
    folder: str | os.PathLike,
    split: str,
    count: int,
    filming: Callable[[np.random.Generator], Filming] = plain,
    name: str | None = None,
    kept_phrasing: bool = False,
) -> Path:
    """`count` clips of a split, seeds 0 up, with their questions; returns the manifest, `{name}.jsonl` in the folder.

    filming: how each clip is filmed, from a generator of its own
    name: of the clips' folder and of the manifest, the split's where None
    kept_phrasing: ask in the phrasings that training never hears, in `{name}-kept.jsonl`

    Scenes have as many shapes as the embedded model knows. Questions are about what a frame a second shows, each kind
    asked once, for training twice, of different times and shapes; how many shapes there are, where it differs. Clips
    that are there already are not written again.
    """
    folder, name = Path(folder), name or split
    make_folder(folder / name)
    rows, draws = [], 2 if split == "train" else 1
    for seed in tqdm(range(count), unit="clip", disable=not sys.stderr.isatty()):
        path = f"{name}/{seed:05d}.mp4"
        random = np.random.default_rng(seed)
        film = filming(random)
        views = math.ceil(film.seconds)
        story = sample_story(split, seed, film.seconds, views=views, count=film.scenes, shapes=SHAPES)
        if not (folder / path).exists():
            write_clip(story, folder / path, film.form)
        times = seen_times(film.seconds, film.form, views)
        asked = [each for _ in range(draws) for each in ask_about(story, times, random, kept_phrasing)]
        told = {question.prompt: question for question in asked if SHAPES > 1 or question.kind != "count"}
        for number, question in enumerate([*told.values(), caption(story, times, random)]):
            rows.append(
                {
                    "id": f"{name}-{seed:05d}-{number:02d}",
                    "video_path": path,
                    "task_type": "caption" if question.kind == "caption" else "qa",
                    "prompt": question.prompt,
                    "target_text": question.answer,
                    "split": split,
                    "metadata": {"kind": question.kind, "kept_phrasing": kept_phrasing},
                }
            )
    manifest = folder / f"{name}{'-kept' if kept_phrasing else ''}.jsonl"
    write_atomically(manifest, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return manifest


if __name__ == "__main__":
    place, split, number, *how = sys.argv[1:]
    kept = "--kept" in how
    filming = next((word for word in how if word != "--kept"), "plain")
    name = split if filming == "plain" else f"{split}-{filming}"
    print(write_dataset(place, split, int(number), FILMINGS[filming], name, kept))
