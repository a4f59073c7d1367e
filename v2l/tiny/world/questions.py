"""What can be asked about a story, with the answers, from the frames that are seen of it.

Every kind of question has several phrasings, the last of which is kept for the test. Many questions bind a time to
what is seen then: without them a small model does not learn that things move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from v2l.errors import V2LError
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
"""Kind of question to its phrasings, the one for the test last: training hears all of its words, in other sentences."""

EASY = ("colour", "shape", "colour at", "shape at", "count")
"""Kinds of question that are learned long before the others."""

QA_BENCHMARKS = {
    "tiny-nextqa": ("word first", "word last", "word after", "word before"),
    "tiny-activitynet-qa": ("colour", "shape", "motion", "words"),
    "tiny-plm-sgqa": ("word at", "place at", "colour at", "shape at", "start", "end"),
    "tiny-vidcapbench": tuple(kind for kind in PHRASINGS if kind != "count"),
}
"""What the four question benchmarks of the paper ask, in this world: the order of events; what is seen; what is where
and when, in detail; and everything about the same video, which has one shape."""

CAPTION_PROMPTS = ("Describe what is happening in this video.", "Summarize this video in 1-3 sentences.")


@dataclass(frozen=True)
class Question:
    """kind: one of PHRASINGS, or "caption"."""

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
    """One question of every kind that the story allows, about one of its shapes, words and times each.

    times: seconds of the frames that are seen, ascending; nothing is asked that they do not show. Of a story of
        several scenes every question names its time or an order.
    kept_phrasing: the phrasing that is kept for the test instead of one of the others
    whole_seconds: nothing is asked at a time where the second that names it has two answers, so that the answer is the
        same whichever of its frames is seen
    """
    if not times:
        raise V2LError("nothing can be asked about a clip of which no frame is seen")
    choices = {
        kind: phrasings[-1] if kept_phrasing else phrasings[random.integers(len(phrasings) - 1)]
        for kind, phrasings in PHRASINGS.items()
    }
    return [
        Question(kind, choices[kind].format(**names), answer)
        for kind, names, answer in _facts(story, times, random, whole_seconds)
    ]


def ask_as_benchmarks(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """The same questions, at times in whole seconds, under the names of QA_BENCHMARKS, in each that asks their kind."""
    asked = ask_about(story, times, random, whole_seconds=True)
    return [
        replace(question, kind=name)
        for name, kinds in QA_BENCHMARKS.items()
        for question in asked
        if question.kind in kinds
    ]


def ask_by_scene(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """Questions that only their time or an order ties to a scene: each scene is asked for its word at a time, and for
    the colour, the kind or the place of its shape where all scenes' shapes go by the same name and differ in it.
    Whoever ignores the time is right about one scene of all at most. What is asked holds for the whole second that is
    named. Raises V2LError where of a scene no second with one word is seen."""
    pick = _picking(random)
    clear = _clear(story.word_at, times)
    seen = [[seconds for seconds in clear if story.at(seconds) is scene] for scene in story.scenes]
    if not all(seen):
        raise V2LError("every scene is asked about, and of one no frame is seen in whose second there is one word")
    words = seen_words(story, times)
    facts = [("word first", {}, words[0]), ("word last", {}, words[-1])] if len(words) > 1 else []
    by_kind: dict[str, list[Fact]] = {}
    for own in seen:
        for fact in (*_word_facts(story, [pick(own)], pick, True), *_timed_facts(story, own, pick, True)):
            by_kind.setdefault(fact[0], []).append(fact)
    for kind, told in by_kind.items():
        named = [{**names, "time": None} for _, names, _ in told]
        differs = len({answer for *_, answer in told}) == len(seen)
        if kind != "words" and differs and all(each == named[0] for each in named):
            facts += told
    return [
        Question(kind, PHRASINGS[kind][random.integers(len(PHRASINGS[kind]) - 1)].format(**names), answer)
        for kind, names, answer in facts
    ]


def describe(story: Story, times: Sequence[float], random: np.random.Generator) -> list[Question]:
    """What the five caption styles of VDC ask, in this world, of one scene: the whole in short and in detail, the
    motion in place of the camera's, the whiteboard that is the background, and the main subject."""
    if len(story.scenes) > 1:
        raise V2LError("the caption styles are asked of one scene; several have no main subject")
    told = caption(story, times, random).answer
    facts = {kind: (names, answer) for kind, names, answer in _facts(story, times, random)}
    (colour, subject), (_, words) = facts["shape"], facts["words"]
    styles = [
        Question("short", CAPTION_PROMPTS[1], told),
        Question("detailed", CAPTION_PROMPTS[0], told),
        Question("background", "read the whiteboard.", words),
        Question("main subject", f"what is the {colour['colour']} thing?", subject),
    ]
    if "motion" in facts:
        (kind, motion) = facts["motion"]
        styles.insert(2, Question("camera", f"describe the motion of the {kind['kind']}.", motion))
    return styles


def caption(story: Story, times: Sequence[float], random: np.random.Generator) -> Question:
    """A prompt of the published training's kind and a caption that says what the frames show: the shapes of one scene,
    and the words of any number."""
    told = f"The whiteboard says {' then '.join(seen_words(story, times))}."
    if len(story.scenes) == 1:
        scene = story.scenes[0]
        moves = shows_motion(scene, times)
        shapes = " ".join(
            f"{'An' if shape.colour == 'orange' else 'A'} {shape.colour} {shape.kind}"
            f"{' ' + _MOVES[shape.motion] if moves else ''}."
            for shape in scene.shapes
        )
        told = f"{shapes} {told}"
    return Question("caption", CAPTION_PROMPTS[random.integers(len(CAPTION_PROMPTS))], told)


def seen_words(story: Story, times: Sequence[float]) -> list[str]:
    """The words on the board in those frames, in their order."""
    words = [story.word_at(seconds) for seconds in times]
    return words[:1] + [after for before, after in pairwise(words) if after != before]


def shows_motion(scene: Scene, times: Sequence[float]) -> bool:
    """Whether those frames tell every motion from every other: four or more that span most of the scene."""
    return len(times) >= 4 and scene.progress(times[-1]) - scene.progress(times[0]) >= 0.7


def clock(seconds: float) -> str:
    """A time as the prompt announces its frame: MM:SS."""
    return f"{math.floor(seconds) // 60:02d}:{math.floor(seconds) % 60:02d}"


Fact = tuple[str, dict[str, str], str]
"""Kind, what its phrasing names, and the answer."""

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


def _picking(random: np.random.Generator) -> Callable[[Sequence], object]:
    return lambda items: items[random.integers(len(items))]


def _clear(told: Callable[[float], object], times: Sequence[float]) -> list[float]:
    """Those at which the same is told as at both ends of the second that names them."""

    def holds(seconds: float) -> bool:
        begin = math.floor(seconds)
        return told(begin) == told(seconds) == told(math.nextafter(begin + 1, 0))

    return [seconds for seconds in times if holds(seconds)]


def _word_facts(story: Story, times: Sequence[float], pick: Callable, whole_seconds: bool) -> Iterator[Fact]:
    words = seen_words(story, times)
    yield "words", {}, " then ".join(words)
    clear = _clear(story.word_at, times) if whole_seconds else times
    if clear:
        seconds = pick(clear)
        yield "word at", {"time": clock(seconds)}, story.word_at(seconds)
    if len(words) > 1:  # with one word, first and last would ask the same as the plain question
        before, after = pick(list(pairwise(words)))
        yield "word first", {}, words[0]
        yield "word last", {}, words[-1]
        yield "word after", {"word": before}, after
        yield "word before", {"word": after}, before


def _timed_facts(story: Story, times: Sequence[float], pick: Callable, whole_seconds: bool) -> Iterator[Fact]:
    clear = _clear(story.at, times) if whole_seconds else times
    if clear:
        seconds = pick(clear)
        shape: Shape = pick(story.at(seconds).shapes)
        yield "colour at", {"kind": shape.kind, "time": clock(seconds)}, shape.colour
        yield "shape at", {"colour": shape.colour, "time": clock(seconds)}, shape.kind
    placed = [
        (shape, seconds, place)
        for seconds in clear
        for shape in story.at(seconds).shapes
        if (place := _clear_place(story.at(seconds), shape, seconds))
        and (not whole_seconds or _clear(partial(_clear_place, story.at(seconds), shape), [seconds]))
    ]
    if placed:
        shape, seconds, place = pick(placed)
        yield "place at", {"kind": shape.kind, "time": clock(seconds)}, place


def _clear_place(scene: Scene, shape: Shape, seconds: float) -> str | None:
    """The ninth that the shape is in at that time, None where it is too near to a border."""
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
