"""Training batches of stage 2: randomly drawn clips, their questions packed in rows, and labels for auxiliary losses.

The auxiliary labels supervise the middle of the model: the content of each frame, the frames that a question's token
should attend to, and the content it should retrieve there. They come from the drawn world, not from the pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer

from v2l.models.hypernetwork_file import INTERNALIZATION_PROMPT
from v2l.models.processor import PromptFrame, frame_clock, frame_images, question_text, tile_grid, video_text
from v2l.tiny.recipe.vision_stage import GEOMETRY, LABELS, frame_labels
from v2l.tiny.world.draw import draw
from v2l.tiny.world.questions import EASY, PHRASINGS, Question, ask_about, caption
from v2l.tiny.world.scene import SHAPES, WORDS, Story, sample_story
from v2l.training.packing import IGNORED, PLACE, UNASKED, pack_questions, place_in_rows

BEFORE = "word a frame before"
FRAME_LABELS = LABELS | {"second": 60, "minute": 60, BEFORE: len(WORDS) + 1}
"""Labels of a frame's last token and their numbers of classes: content, time, and the word of the frame before."""
LONGEST_SECONDS = 3000.0
"""Latest start of a clip within the video it is cut from."""
ROWS, ROW = 5, 64
"""Rows of questions per clip, and tokens per row."""
ASKED = ("caption", *PHRASINGS)
"""Kinds of question."""
FIRST = ("caption", "words", "word before")
"""Kinds of question that are packed before others."""


@dataclass(frozen=True)
class SampledClip:
    """A story and its sampled frames.

    frames: time and tile grid of each frame; images: (F * images per frame, 3, S, S) uint8
    total: length in seconds of the video that the clip is cut from
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
        """Return FRAME_LABELS of each frame, (F,) int64 by name."""
        places = [len(WORDS), *(WORDS.index(word) for word in self.words)]
        labels = []
        for time, before in zip(self.times, places[:-1], strict=True):
            moment = {"second": int(time) % 60, "minute": int(time) // 60 % 60}
            labels.append({**frame_labels(self.story.at(time), time), **moment, BEFORE: before})
        return {name: torch.tensor([frame[name] for frame in labels]) for name in FRAME_LABELS}


def sample_clip(
    random: np.random.Generator, count: int, tiled: int = 1, split: str = "train", shapes: int = SHAPES
) -> SampledClip:
    """Sample a clip with `count` frames of random size, at least one second apart.

    One in three starts late in a longer video. One in four covers only a part of its scene; half of the others have
    several scenes.

    tiled: side of a frame in units of the model's image size; shapes: maximum number of shapes per scene
    """
    # Sample times and scenes.
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
    # Draw the frames and cut them into tiles.
    height, width = (int(side) for side in random.integers(64, 129, 2))
    edge = tiled * GEOMETRY.image_size
    images = [frame_images(draw(story.at(seconds), seconds, height, width), GEOMETRY, edge) for seconds in times]
    grid = tile_grid(width, height, GEOMETRY, edge)
    return SampledClip(story, tuple(PromptFrame(seconds, *grid) for seconds in times), np.concatenate(images), total)


def clip_questions(clip: SampledClip, random: np.random.Generator, easy: float = 1.0) -> list[Question]:
    """Return distinct questions about the clip: the kinds of FIRST, then the others in random order.

    One clip in four uses the internalization prompt for its caption.

    easy: share of the easy questions to keep
    """
    asked = [question for _ in range(3) for question in ask_about(clip.story, clip.times, random)]
    asked = [question for question in asked if question.kind not in EASY or random.random() < easy]
    described = caption(clip.story, clip.times, random)
    if random.random() < 0.25:
        described = Question("caption", INTERNALIZATION_PROMPT, described.answer)
    one_each = list({question.prompt: question for question in asked}.values())
    shuffled = [one_each[place] for place in random.permutation(len(one_each))]
    return sorted([described, *shuffled], key=lambda question: question.kind not in FIRST)


def prompt_text(clip: SampledClip | None) -> str:
    """Return the prompt around a question, with PLACE for the question. None: the prompt without a video."""
    if clip is None:
        return question_text(PLACE)
    return video_text(clip.frames, clip.total, PLACE, GEOMETRY, generation_prompt=True)


@dataclass(frozen=True)
class Pointer:
    """A token of a question or answer that should attend to frames.

    place: index of the token; frames: indices of the frames to attend to
    word: the word to retrieve, on the board in these frames or before them
    whole: whether to retrieve the shape, its colour and its place, too
    back: whether the question asks for the word before
    answers: indices of the tokens whose prediction depends on the retrieved content
    """

    place: int
    frames: tuple[int, ...]
    word: str
    whole: bool
    back: bool
    answers: tuple[int, ...]


def pointers(
    clip: SampledClip, question: Question, ids: Sequence[int], prompt_length: int, tokenizer: Tokenizer
) -> list[Pointer]:
    """Return the pointers of one question and its answer.

    A time points to its frames. A word followed by another points to the first frame of the following word, because
    that frame's token attends to the word before. A word whose predecessor is asked for points to its own first frame.

    ids: tokens of question and answer; prompt_length: how many of them are the question's
    """
    words = clip.words
    time = re.search(r"\d\d:(\d\d)", question.prompt)
    if time is not None:
        place = max(place for place, token in enumerate(ids) if token == tokenizer.token_to_id(time[1]))
        frames = tuple(frame for frame, seconds in enumerate(clip.times) if frame_clock(seconds) == time[0])
        return [Pointer(place, frames, words[frames[0]], True, False, tuple(range(prompt_length - 1, len(ids) - 2)))]
    known = {tokenizer.token_to_id(f"Ġ{word}"): word for word in WORDS}
    first = 0 if question.kind in ("word after", "word before") else prompt_length
    named = [(place, known[token]) for place, token in enumerate(ids) if token in known and place >= first]
    found = []
    for (place, word), (after, following) in pairwise(named):
        back = question.kind == "word before"
        frame = words.index(word if back else following)
        found.append(Pointer(place, (frame,), following, False, back, (after - 1,)))
    return found


@dataclass(frozen=True)
class AskedClip:
    """A clip and its questions, packed in R rows of W tokens.

    ids: (V,) int64, tokens of the prompt before a question
    rows, labels, positions: (R, W) int64, token ids, targets and positions of questions and answers
    question: (R, W) int64, number of the question, UNASKED for padding
    points: (R, W) int64, bit mask of the frames that the token should attend to
    finds: (R, W) int64, the word that it should retrieve, or IGNORED
    whole, back: (R, W) bool, as in Pointer
    refers: (R, W) int64, column of the token whose retrieved content the prediction depends on, or IGNORED
    kinds: (Q,) int64, kind of each question as an index into ASKED
    images: (F * images per frame, 3, S, S) uint8; None if the video is not shown
    frame_labels: (F,) int64 by name in FRAME_LABELS; None if the video is not shown
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
    frame_labels: dict[str, torch.Tensor] | None


def write_rows(clip: SampledClip, visible: bool, questions: Sequence[Question], tokenizer: Tokenizer) -> AskedClip:
    """Pack questions about a clip in rows, in order, as many as fit. visible: whether the prompt shows the video."""
    asked = [(question.prompt, question.answer) for question in questions]
    sequence = pack_questions(prompt_text(clip if visible else None), asked, tokenizer)
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
        # Copy the question into its row.
        own = sequence.group == number
        columns["rows"][row, place] = sequence.ids[own]
        columns["labels"][row, place] = sequence.labels[own]
        columns["positions"][row, place] = sequence.positions[own]
        columns["question"][row, place] = len(kinds)
        # Mark the tokens that should attend to frames.
        prompt_length = int((sequence.labels[own] == IGNORED).sum())
        found = pointers(clip, question, sequence.ids[own].tolist(), prompt_length, tokenizer) if visible else []
        for pointer in found:
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
        images=torch.from_numpy(clip.images) if visible else None,
        frame_labels=clip.labels() if visible else None,
    )
