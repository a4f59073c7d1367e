"""Measure what a timeline of eight scenes answers without a time in the question.

    python tests/stress/eight_scenes.py FOLDER [--clips 100] [--from 6000] [--json FILE]

Draws clips of eight scenes of 8 seconds in the embedded world, encodes each as a timeline of eight segments with an
index, and asks about what exactly one scene shows: the colour, shape and motion of a thing, and the neighbours of a
word. Each question is answered by the plain command's routing, by all segments together, by the overview, and by the
scene's own segment.

Then asks every segment for its words (`--each`) and compares the joined list with the drawn words: word errors (edit
distance over words) over drawn words, for segments of 8 seconds, for the default length, and for each 8 seconds encoded
as a video of its own, whose times start at zero.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from figures import print_figures

import v2l
from v2l.inference.ask import ask_each
from v2l.inference.each import ask_segments
from v2l.tiny.world.clip import write_clip
from v2l.tiny.world.dataset import scenes_of_eight_seconds, story_of
from v2l.tiny.world.questions import PHRASINGS, shows_motion, visible_words
from v2l.tiny.world.scene import Story

SCENES, SECONDS = 8, 8.0
WORDS = "which words are written?"
MAX_NEW_TOKENS = 40


def write_clips(folder: Path, clips: int, first: int) -> Iterator[tuple[Story, Path]]:
    """Write the clips that are not there yet: each story and its video."""
    film = scenes_of_eight_seconds(SCENES)(np.random.default_rng(0))
    for seed in range(first, first + clips):
        story, video = story_of("test", seed, film), folder / f"{seed}.mp4"
        if not video.exists():
            write_clip(story, video, film.form)
        yield story, video


def questions(story: Story, seen: Sequence[Sequence[float]]) -> Iterator[tuple[str, str, str, int]]:
    """Yield kind, question, answer and scene of everything that one scene alone shows. seen: frame times by scene"""
    shapes = [scene.shapes[0] for scene in story.scenes]
    kinds, colours = Counter(shape.kind for shape in shapes), Counter(shape.colour for shape in shapes)
    words = [visible_words(story, times) for times in seen]
    often = Counter(word for each in words for word in each)
    for number, (scene, shape) in enumerate(zip(story.scenes, shapes, strict=True)):
        if kinds[shape.kind] == 1:
            yield "colour", PHRASINGS["colour"][-1].format(kind=shape.kind), shape.colour, number
            if shows_motion(scene, seen[number]):
                yield "motion", PHRASINGS["motion"][-1].format(kind=shape.kind), shape.motion, number
        if colours[shape.colour] == 1:
            yield "shape", PHRASINGS["shape"][-1].format(colour=shape.colour), shape.kind, number
        for before, after in list(pairwise(words[number]))[:1]:
            if often[before] == often[after] == 1:
                yield "word after", PHRASINGS["word after"][-1].format(word=before), after, number
                yield "word before", PHRASINGS["word before"][-1].format(word=after), before, number


def things(folder: Path, clips: int, first: int) -> dict[str, dict[str, float]]:
    """Return the accuracy of each kind of question and way of answering, and the number of questions."""
    vlm, hypernetwork = v2l.load_vlm("tiny"), v2l.load_hypernetwork("tiny")
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for story, video in write_clips(folder, clips, first):
        output = folder / f"{video.stem}.v2l.safetensors"
        timeline = v2l.encode_timeline(video, vlm, hypernetwork, output, segments=SCENES)
        parts = timeline.description.segments
        asked = list(questions(story, [part.timestamps for part in parts]))
        texts = [question for _, question, _, _ in asked]
        segments = [timeline.select([number]) for number in range(len(parts))]
        answers = {
            "routed": ask_each([timeline] * len(asked), texts, vlm, MAX_NEW_TOKENS),
            "all segments": ask_each([timeline] * len(asked), texts, vlm, MAX_NEW_TOKENS, whole=True),
            "overview": ask_each([timeline.overview()] * len(asked), texts, vlm, MAX_NEW_TOKENS),
            "own segment": ask_each([segments[number] for *_, number in asked], texts, vlm, MAX_NEW_TOKENS),
        }
        for way, found in answers.items():
            for (kind, _, target, _), answer in zip(asked, found, strict=True):
                right[kind][way].append(answer == target)
    return {
        kind: {**{way: round(sum(each) / len(each), 4) for way, each in ways.items()}, "n": len(ways["routed"])}
        for kind, ways in right.items()
    }


def word_errors(folder: Path, clips: int, first: int) -> dict[str, float]:
    """Return word errors per drawn word of the joined answers."""
    vlm, hypernetwork = v2l.load_vlm("tiny"), v2l.load_hypernetwork("tiny")
    errors: Counter[str] = Counter()
    drawn = 0
    for story, video in write_clips(folder, clips, first):
        truth = visible_words(story, list(np.arange(0.0, SCENES * SECONDS)))
        drawn += len(truth)
        for name, seconds in (("segments of 8 s", SECONDS), ("default length", None)):
            timeline = v2l.encode_timeline(
                video, vlm, hypernetwork, folder / "words.v2l.safetensors", segment_seconds=seconds, index=False
            )
            answers = [each.text for each in ask_segments(timeline, WORDS, lambda: vlm, MAX_NEW_TOKENS)]
            errors[name] += _edits(_join(answers), truth)
        cut = [v2l.encode(part, vlm, hypernetwork) for part in _cut(video, folder)]
        errors["8 s as own videos"] += _edits(_join(ask_each(cut, [WORDS] * len(cut), vlm, MAX_NEW_TOKENS)), truth)
    return {"drawn words": drawn, **{name: round(count / drawn, 4) for name, count in errors.items()}}


def _cut(video: Path, folder: Path) -> Iterator[Path]:
    """Write each 8 seconds of a video as a video of its own, and yield its path, always the same."""
    opened, output = cv2.VideoCapture(str(video)), folder / "part.mp4"
    fps = opened.get(cv2.CAP_PROP_FPS)
    size = int(opened.get(cv2.CAP_PROP_FRAME_WIDTH)), int(opened.get(cv2.CAP_PROP_FRAME_HEIGHT))
    for _ in range(SCENES):
        writer = cv2.VideoWriter(str(output), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        for _ in range(round(SECONDS * fps)):
            writer.write(opened.read()[1])
        writer.release()
        yield output


def _join(answers: Sequence[str]) -> list[str]:
    """Return the words of all answers in order, neighbours once."""
    words = [word for answer in answers for word in answer.split(" then ")]
    return words[:1] + [after for before, after in pairwise(words) if after != before]


def _edits(found: Sequence[str], truth: Sequence[str]) -> int:
    """Return the edit distance of two lists of words."""
    row = list(range(len(truth) + 1))
    for number, word in enumerate(found, start=1):
        above, row = row, [number]
        for place, target in enumerate(truth):
            row.append(min(above[place + 1] + 1, row[place] + 1, above[place] + (word != target)))
    return row[-1]


def main(folder: Path, clips: int, first: int) -> dict[str, object]:
    """Return all figures. The joined lists come from the first 30 clips."""
    return {"things": things(folder, clips, first), "word errors": word_errors(folder, min(clips, 30), first)}


if __name__ == "__main__":
    print_figures("Measure what a timeline of eight scenes answers.", main, clips=100, first=6000)
