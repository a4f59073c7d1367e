"""What a step of stage 2 reads: clips drawn at random, questions about them in rows, and what is to be found where.

Beside the answers there are labels for the middle of the model: what each frame shows, and at which frames a token of a
question should look and what it should find.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer

from v2l.models.processor import INTERNALIZATION_PROMPT, PromptFrame, frame_images, question_text, tile_grid, video_text
from v2l.tiny.recipe.vision_stage import GEOMETRY, LABELS, frame_labels
from v2l.tiny.world.draw import draw
from v2l.tiny.world.questions import EASY, PHRASINGS, Question, ask_about, caption, clock
from v2l.tiny.world.scene import SHAPES, WORDS, Story, sample_story
from v2l.training.packing import IGNORED, PLACE, UNASKED, pack_questions, place_in_rows

BEFORE = "word a frame before"
LOOKS = LABELS | {"second": 60, "minute": 60, BEFORE: len(WORDS) + 1}
"""What the middle of the language model is asked at the end of a frame: what it shows, when it stands, and which word
the frame before it showed."""
LONGEST_SECONDS = 3000.0
"""Clips begin up to that far into the video that they are cut out of."""
ROWS, ROW = 5, 64
"""PackedRows of questions behind a clip, and tokens in each."""
ASKED = ("caption", *PHRASINGS)
"""Kinds of question."""
FIRST = ("caption", "words", "word before")
"""Kinds of question that find room before others."""


@dataclass(frozen=True)
class SeenClip:
    """A story and what is seen of it: seconds, tiles and images, (F * images a frame, 3, S, S) uint8, of its frames.

    total: seconds of the whole video that it is cut out of
    """

    story: Story
    frames: tuple[PromptFrame, ...]
    images: np.ndarray
    total: float

    @property
    def times(self) -> list[float]:
        return [frame.seconds for frame in self.frames]

    @property
    def words(self) -> list[str]:
        """The word on the board in each frame."""
        return [self.story.word_at(time) for time in self.times]

    def labels(self) -> dict[str, torch.Tensor]:
        """What stage 1 asks of a frame, its time and what stood before it, (F,) by label."""
        places = [len(WORDS), *(WORDS.index(word) for word in self.words)]
        seen = []
        for time, before in zip(self.times, places[:-1], strict=True):
            moment = {"second": int(time) % 60, "minute": int(time) // 60 % 60}
            seen.append({**frame_labels(self.story.at(time), time), **moment, BEFORE: before})
        return {name: torch.tensor([frame[name] for frame in seen]) for name in LOOKS}


def sample_clip(
    random: np.random.Generator, count: int, tiled: int = 1, split: str = "train", shapes: int = SHAPES
) -> SeenClip:
    """A clip of which `count` frames are seen, a second or more apart, of any size; one in three is cut out of a longer
    video, of one in four only a part of what happens is seen, and half of the others have several scenes.

    tiled: sides of the frames in images
    """
    spacing = 1.0 if random.random() < 0.5 else float(random.uniform(1, 6 if count > 12 else 20))
    start = float(random.uniform(0, LONGEST_SECONDS)) if random.random() < 1 / 3 else 0.0
    duration = max(2.0, count * spacing)
    parts = int(random.integers(2, 5)) if random.random() < 0.25 else 1
    several = parts == 1 and random.random() < 0.5
    scenes = int(random.integers(1, max(1, min(16, count)) + 1)) if several else 1
    begin = start - duration * int(random.integers(parts)) if start > 4 * duration else start
    seed = int(random.integers(2**31))
    story = sample_story(split, seed, max(2.0, duration * parts), begin, count * parts, scenes, shapes)
    times = [start + spacing * index for index in range(count)]
    total = max(begin + duration * parts, times[-1] + 1)
    total += float(random.uniform(0, 600)) if random.random() < 1 / 3 else 0.0
    height, width = (int(side) for side in random.integers(64, 129, 2))
    edge = tiled * GEOMETRY.image_size
    images = [frame_images(draw(story.at(seconds), seconds, height, width), GEOMETRY, edge) for seconds in times]
    grid = tile_grid(width, height, GEOMETRY, edge)
    return SeenClip(story, tuple(PromptFrame(seconds, *grid) for seconds in times), np.concatenate(images), total)


def clip_questions(clip: SeenClip, random: np.random.Generator, easy: float = 1.0) -> list[Question]:
    """Questions about the clip, none twice, of the easy ones that share: a caption, the words, what came before others,
    which is learned last, and the rest in a random order. One clip in four is also told to internalize."""
    asked = [question for _ in range(3) for question in ask_about(clip.story, clip.times, random)]
    asked = [question for question in asked if question.kind not in EASY or random.random() < easy]
    told = caption(clip.story, clip.times, random)
    if random.random() < 0.25:
        told = Question("caption", INTERNALIZATION_PROMPT, told.answer)
    one_each = list({question.prompt: question for question in asked}.values())
    shuffled = [one_each[place] for place in random.permutation(len(one_each))]
    return sorted([told, *shuffled], key=lambda question: question.kind not in FIRST)


def shown(clip: SeenClip | None) -> str:
    """What stands around a question about the clip, as v2l itself writes it; None: about one that is not seen."""
    if clip is None:
        return question_text(PLACE)
    return video_text(clip.frames, clip.total, PLACE, GEOMETRY, generation_prompt=True)


@dataclass(frozen=True)
class Pointer:
    """A token of a question or of its answer that should look at the video.

    place: of the token; frames: that it should look at; word: on the board there, or before, that it should find
    whole: whether everything else that the frame shows is asked for, too
    back: whether it looks from a word to the one before it
    answers: places of the tokens whose next one depends on what is found
    """

    place: int
    frames: tuple[int, ...]
    word: str
    whole: bool
    back: bool
    answers: tuple[int, ...]


def pointers(clip: SeenClip, question: Question, ids: Sequence[int], heard: int, tokenizer: Tokenizer) -> list[Pointer]:
    """Of one question and its answer, whose tokens have those ids; the first `heard` are the question's.

    A time looks at its frames. A word that another follows looks at the first frame of that one, whose own past tells
    that it follows; a word that is asked what came before it, at its own first frame, for the same reason.
    """
    words = clip.words
    time = re.search(r"\d\d:(\d\d)", question.prompt)
    if time is not None:
        place = max(place for place, token in enumerate(ids) if token == tokenizer.token_to_id(time[1]))
        frames = tuple(frame for frame, seconds in enumerate(clip.times) if clock(seconds) == time[0])
        return [Pointer(place, frames, words[frames[0]], True, False, tuple(range(heard - 1, len(ids) - 2)))]
    known = {tokenizer.token_to_id(f"Ġ{word}"): word for word in WORDS}
    first = 0 if question.kind in ("word after", "word before") else heard
    said = [(place, known[token]) for place, token in enumerate(ids) if token in known and place >= first]
    found = []
    for (place, word), (after, following) in pairwise(said):
        back = question.kind == "word before"
        frame = words.index(word if back else following)
        found.append(Pointer(place, (frame,), following, False, back, (after - 1,)))
    return found


@dataclass(frozen=True)
class AskedClip:
    """A clip and what is asked about it.

    ids: (V,) int64, of what stands before a question
    R rows of W tokens: rows, labels, positions, (R, W) int64; question: (R, W) int64, its number, or UNASKED where
    nothing stands; points: (R, W) int64, bit f for a frame f that the token should look at; finds: (R, W) int64, the
    word that it should find, or IGNORED; whole, back: (R, W) bool; refers: (R, W) int64, the place in the row of the
    token that found what the next one depends on, or IGNORED
    kinds: of each question, its place in ASKED
    images: (F * images a frame, 3, S, S) uint8 and looks: (F,) by name, of what is seen of it; None where nothing is
    """

    ids: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    question: torch.Tensor
    points: torch.Tensor
    finds: torch.Tensor
    whole: torch.Tensor
    back: torch.Tensor
    refers: torch.Tensor
    kinds: torch.Tensor
    images: torch.Tensor | None
    looks: dict[str, torch.Tensor] | None


def write_rows(clip: SeenClip, seen: bool, questions: Sequence[Question], tokenizer: Tokenizer) -> AskedClip:
    """Questions about a clip in rows, in their order, as many as find room."""
    sequence = pack_questions(
        shown(clip if seen else None), [(question.prompt, question.answer) for question in questions], tokenizer
    )
    columns = {
        "rows": torch.zeros(ROWS, ROW, dtype=torch.int64),
        "labels": torch.full((ROWS, ROW), IGNORED),
        "positions": torch.zeros(ROWS, ROW, dtype=torch.int64),
        "question": torch.full((ROWS, ROW), UNASKED),
        "points": torch.zeros(ROWS, ROW, dtype=torch.int64),
        "finds": torch.full((ROWS, ROW), IGNORED),
        "whole": torch.zeros(ROWS, ROW, dtype=torch.bool),
        "back": torch.zeros(ROWS, ROW, dtype=torch.bool),
        "refers": torch.full((ROWS, ROW), IGNORED),
    }
    kinds: list[int] = []
    places, _ = place_in_rows(torch.bincount(sequence.group)[1:].tolist(), ROW)
    for number, (question, (row, place)) in enumerate(zip(questions, places, strict=True), 1):
        if row >= ROWS:
            continue
        own = sequence.group == number
        columns["rows"][row, place] = sequence.ids[own]
        columns["labels"][row, place] = sequence.labels[own]
        columns["positions"][row, place] = sequence.positions[own]
        columns["question"][row, place] = len(kinds)
        heard = int((sequence.labels[own] == IGNORED).sum())
        for pointer in pointers(clip, question, sequence.ids[own].tolist(), heard, tokenizer) if seen else ():
            token = row, place.start + pointer.place
            columns["points"][token] = sum(1 << frame for frame in pointer.frames)
            columns["finds"][token] = WORDS.index(pointer.word)
            columns["whole"][token], columns["back"][token] = pointer.whole, pointer.back
            columns["refers"][row, [place.start + answer for answer in pointer.answers]] = token[1]
        kinds.append(ASKED.index(question.kind))
    return AskedClip(
        sequence.ids[sequence.group == 0],
        **columns,
        kinds=torch.tensor(kinds),
        images=torch.from_numpy(clip.images) if seen else None,
        looks=clip.labels() if seen else None,
    )
