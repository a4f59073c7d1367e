"""Questions about a story and their answers, derived from the frames that the model sees.

Every kind of question has several phrasings; the last one is reserved for the test. Many questions name a time: without
them a small model does not learn that things move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from v2l.errors import V2LError
from v2l.models.processor import frame_clock
from v2l.tiny.world.scene import Scene, Shape, Story, place_is_clear, place_name

PHRASINGS = {
    "words": (
        "what is on the whiteboard?",
        "what does the whiteboard say?",
        "read the whiteboard.",
        "which words are written?",
        "tell me the words.",
        "what is written on the whiteboard?",
    ),
    "word at": (
        "what is on the whiteboard at {time}?",
        "which word is there at {time}?",
        "read the whiteboard at {time}.",
        "at {time}, what does the whiteboard say?",
        "tell me the word at {time}.",
        "at {time}, what is written?",
    ),
    "word first": (
        "what is written first?",
        "which word comes first?",
        "tell me the first word.",
        "what does the whiteboard say first?",
        "what is the first word?",
    ),
    "word last": (
        "what is written last?",
        "which word comes last?",
        "tell me the last word.",
        "what does the whiteboard say last?",
        "what is the last word?",
    ),
    "word after": (
        "what comes after {word}?",
        "which word follows {word}?",
        "what is written after {word}?",
        "tell me the word right after {word}.",
        "which word is next after {word}?",
        "what is written next after {word}?",
    ),
    "word before": (
        "what comes before {word}?",
        "which word precedes {word}?",
        "what is written before {word}?",
        "tell me the word right before {word}.",
        "which word is there before {word}?",
        "what is written right before {word}?",
    ),
    "colour": (
        "what colour is the {kind}?",
        "which colour has the {kind}?",
        "what is the colour of the {kind}?",
        "tell me which colour the {kind} has.",
        "tell me the colour of the {kind}.",
    ),
    "shape": (
        "which shape is {colour}?",
        "what is the {colour} thing?",
        "tell me the shape of the {colour} thing.",
        "what shape is the {colour} thing?",
        "tell me which shape is {colour}.",
    ),
    "place at": (
        "where is the {kind} at {time}?",
        "at {time}, where is the {kind}?",
        "tell me where the {kind} is at {time}.",
        "at {time}, find the {kind}.",
        "find the {kind} at {time}.",
    ),
    "start": (
        "where does the {kind} start?",
        "where is the {kind} at first?",
        "find the {kind} at first.",
        "tell me where the {kind} starts.",
        "tell me where the {kind} is at first.",
    ),
    "end": (
        "where does the {kind} end?",
        "where is the {kind} at last?",
        "find the {kind} at last.",
        "tell me where the {kind} ends.",
        "tell me where the {kind} is at last.",
    ),
    "motion": (
        "how does the {kind} move?",
        "which way does the {kind} go?",
        "describe the motion of the {kind}.",
        "tell me how the {kind} moves.",
        "describe how the {kind} moves.",
    ),
    "colour at": (
        "what colour is the {kind} at {time}?",
        "at {time}, which colour has the {kind}?",
        "what is the colour of the {kind} at {time}?",
        "at {time}, tell me the colour of the {kind}.",
        "tell me the colour of the {kind} at {time}.",
    ),
    "shape at": (
        "which shape is {colour} at {time}?",
        "at {time}, what is the {colour} thing?",
        "what shape is the {colour} thing at {time}?",
        "at {time}, tell me which shape is {colour}.",
        "tell me which shape is {colour} at {time}.",
    ),
    "count": (
        "how many shapes are there?",
        "how many shapes can you see?",
        "tell me how many shapes are there.",
        "tell me how many shapes you can see.",
    ),
}
"""Phrasings by kind of question. The last one is for the test; its words all occur in the training phrasings."""

EASY = ("colour", "shape", "colour at", "shape at", "count")
"""Kinds of question that are learned much earlier than the others."""

QA_BENCHMARKS = {
    "tiny-nextqa": ("word first", "word last", "word after", "word before"),
    "tiny-activitynet-qa": ("colour", "shape", "motion", "words"),
    "tiny-plm-sgqa": ("word at", "place at", "colour at", "shape at", "start", "end"),
    "tiny-vidcapbench": tuple(kind for kind in PHRASINGS if kind != "count"),
}
"""Counterparts of the paper's four question benchmarks, as kinds of question: order of events; visible content;
detailed place and time; and everything about the same video, which has one shape."""

CAPTION_PROMPTS = ("Describe what is happening in this video.", "Summarize this video in 1-3 sentences.")


@dataclass(frozen=True)
class Question:
    """A prompt and its answer. kind: one of PHRASINGS, or "caption"."""

    kind: str
    prompt: str
    answer: str


def ask_about(
    story: Story,
    times: Sequence[float],
    random: np.random.Generator,
    kept_phrasing: bool = False,
    whole_seconds: bool = False,
) -> list[Question]:
    """Return one question of every kind that the story allows, each about a random shape, word or time.

    If the story has several scenes, every question names a time or an order.

    times: seconds of the visible frames, ascending; questions are about these frames only
    kept_phrasing: use the phrasing reserved for the test
    whole_seconds: skip times whose whole second has two answers, so that every frame of the second gives the same one
    Raises V2LError if `times` is empty.
    """
    if not times:
        raise V2LError("cannot ask about a clip without visible frames")
    choices = {
        kind: phrasings[-1] if kept_phrasing else phrasings[random.integers(len(phrasings) - 1)]
        for kind, phrasings in PHRASINGS.items()
    }
    return [
        Question(kind, choices[kind].format(**names), answer)
        for kind, names, answer in _facts(story, times, random, whole_seconds)
    ]


def ask_as_benchmarks(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """Return the questions of `ask_about` in whole seconds, once for every one of QA_BENCHMARKS that asks their kind.

    The name of the benchmark replaces the kind.
    """
    asked = ask_about(story, times, random, whole_seconds=True)
    return [
        replace(question, kind=name)
        for name, kinds in QA_BENCHMARKS.items()
        for question in asked
        if question.kind in kinds
    ]


def ask_by_scene(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """Return questions that depend on their time or on an order: ignoring the time gives at most one scene's answer.

    Each scene is asked for its word at a time. It is also asked for the colour, kind or place of its shape, if the
    question names the shapes of all scenes alike and their answers differ. Answers hold for the whole second named.

    Raises V2LError if a scene has no visible second with a single word.
    """
    pick = _picking(random)
    clear = _unambiguous(story.word_at, times)
    by_scene = [[seconds for seconds in clear if story.at(seconds) is scene] for scene in story.scenes]
    if not all(by_scene):
        raise V2LError("every scene needs a visible second with a single word; one scene has none")
    words = visible_words(story, times)
    facts: list[Fact] = [("word first", {}, words[0]), ("word last", {}, words[-1])] if len(words) > 1 else []
    by_kind: dict[str, list[Fact]] = {}
    for own in by_scene:
        for fact in (*_word_facts(story, [pick(own)], pick, True), *_timed_facts(story, own, pick, True)):
            by_kind.setdefault(fact[0], []).append(fact)
    # Keep the kinds whose questions differ in nothing but the time and whose answers all differ.
    for kind, same_kind in by_kind.items():
        named = [{**names, "time": None} for _, names, _ in same_kind]
        differs = len({answer for *_, answer in same_kind}) == len(by_scene)
        if kind != "words" and differs and all(each == named[0] for each in named):
            facts += same_kind
    return [
        Question(kind, PHRASINGS[kind][random.integers(len(PHRASINGS[kind]) - 1)].format(**names), answer)
        for kind, names, answer in facts
    ]


def describe(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """Return counterparts of VDC's five caption styles for a story of one scene.

    Short and detailed ask for the whole caption, camera for the shape's motion, background for the whiteboard, and
    main subject for the shape. Raises V2LError if the story has several scenes.
    """
    if len(story.scenes) > 1:
        raise V2LError("the caption styles need a story of one scene; several scenes have no main subject")
    whole = caption(story, times, random).answer
    facts = {kind: (names, answer) for kind, names, answer in _facts(story, times, random)}
    (colour, subject), (_, words) = facts["shape"], facts["words"]
    styles = [
        Question("short", CAPTION_PROMPTS[1], whole),
        Question("detailed", CAPTION_PROMPTS[0], whole),
        Question("background", "read the whiteboard.", words),
        Question("main subject", f"what is the {colour['colour']} thing?", subject),
    ]
    if "motion" in facts:
        (kind, motion) = facts["motion"]
        styles.insert(2, Question("camera", f"describe the motion of the {kind['kind']}.", motion))
    return styles


def caption(story: Story, times: Sequence[float], random: np.random.Generator) -> Question:
    """Return a prompt of the published training and a caption of the visible frames.

    The caption names the words of all scenes, and the shapes if there is only one scene.
    """
    text = f"The whiteboard says {' then '.join(visible_words(story, times))}."
    if len(story.scenes) == 1:
        scene = story.scenes[0]
        moves = shows_motion(scene, times)
        shapes = " ".join(
            f"{'An' if shape.colour == 'orange' else 'A'} {shape.colour} {shape.kind}"
            f"{' ' + _MOVES[shape.motion] if moves else ''}."
            for shape in scene.shapes
        )
        text = f"{shapes} {text}"
    return Question("caption", CAPTION_PROMPTS[random.integers(len(CAPTION_PROMPTS))], text)


def visible_words(story: Story, times: Sequence[float]) -> list[str]:
    """Return the words on the board in the frames at `times`, in order."""
    words = [story.word_at(seconds) for seconds in times]
    return words[:1] + [after for before, after in pairwise(words) if after != before]


def shows_motion(scene: Scene, times: Sequence[float]) -> bool:
    """Return whether the frames distinguish all motions: four or more that span at least 0.7 of the scene."""
    return len(times) >= 4 and scene.progress(times[-1]) - scene.progress(times[0]) >= 0.7


Fact = tuple[str, dict[str, str], str]
"""Kind, values for the phrasing's placeholders, and answer."""

_MOVES = {
    "still": "stands still",
    "left": "moves to the left",
    "right": "moves to the right",
    "up": "moves up",
    "down": "moves down",
    "back and forth": "moves back and forth",
}


def _facts(
    story: Story, times: Sequence[float], random: np.random.Generator, whole_seconds: bool = False
) -> Iterator[Fact]:
    pick = _picking(random)
    yield from _word_facts(story, times, pick, whole_seconds)
    yield from _timed_facts(story, times, pick, whole_seconds)
    if len(story.scenes) == 1:
        yield from _lasting_facts(story.scenes[0], times, pick)


def _picking(random: np.random.Generator) -> Callable[[Sequence], Any]:
    return lambda items: items[int(random.integers(len(items)))]


def _unambiguous(answer: Callable[[float], object], times: Sequence[float]) -> list[float]:
    """Keep the times whose answer is the same at both ends of their whole second."""

    def holds(seconds: float) -> bool:
        begin = math.floor(seconds)
        return answer(begin) == answer(seconds) == answer(math.nextafter(begin + 1, 0))

    return [seconds for seconds in times if holds(seconds)]


def _word_facts(story: Story, times: Sequence[float], pick: Callable, whole_seconds: bool) -> Iterator[Fact]:
    words = visible_words(story, times)
    yield "words", {}, " then ".join(words)
    clear = _unambiguous(story.word_at, times) if whole_seconds else times
    if clear:
        seconds = pick(clear)
        yield "word at", {"time": frame_clock(seconds)}, story.word_at(seconds)
    if len(words) > 1:  # with one word these repeat the question for all words
        before, after = pick(list(pairwise(words)))
        yield "word first", {}, words[0]
        yield "word last", {}, words[-1]
        yield "word after", {"word": before}, after
        yield "word before", {"word": after}, before


def _timed_facts(story: Story, times: Sequence[float], pick: Callable, whole_seconds: bool) -> Iterator[Fact]:
    clear = _unambiguous(story.at, times) if whole_seconds else times
    if clear:
        seconds = pick(clear)
        shape: Shape = pick(story.at(seconds).shapes)
        yield "colour at", {"kind": shape.kind, "time": frame_clock(seconds)}, shape.colour
        yield "shape at", {"colour": shape.colour, "time": frame_clock(seconds)}, shape.kind
    placed = [
        (shape, seconds, place)
        for seconds in clear
        for shape in story.at(seconds).shapes
        if (place := _clear_place(story.at(seconds), shape, seconds))
        and (not whole_seconds or _unambiguous(partial(_clear_place, story.at(seconds), shape), [seconds]))
    ]
    if placed:
        shape, seconds, place = pick(placed)
        yield "place at", {"kind": shape.kind, "time": frame_clock(seconds)}, place


def _clear_place(scene: Scene, shape: Shape, seconds: float) -> str | None:
    """Return the region of the shape at `seconds`, or None if it is too close to a border."""
    place = scene.where(shape, seconds)
    return place_name(*place) if place_is_clear(*place) else None


def _lasting_facts(scene: Scene, times: Sequence[float], pick: Callable) -> Iterator[Fact]:
    shape: Shape = pick(scene.shapes)
    yield "colour", {"kind": shape.kind}, shape.colour
    yield "shape", {"colour": shape.colour}, shape.kind
    for kind, seconds in (("start", times[0]), ("end", times[-1])):
        place = _clear_place(scene, shape, seconds)
        if len(times) > 1 and place:
            yield kind, {"kind": shape.kind}, place
    if shows_motion(scene, times):
        yield "motion", {"kind": shape.kind}, shape.motion
    yield "count", {}, ("one", "two")[len(scene.shapes) - 1]
