"""The times that a question asks about, from its text."""

import json

import numpy as np
import pytest
from places import ROOT

from v2l.adapters import time_patterns
from v2l.adapters.asked_time import Asked, asked_time
from v2l.models.processor import frame_clock
from v2l.tiny.world.questions import PHRASINGS

DATA = ROOT / "tests" / "data"
ORDER = {"first": "first", "start": "first", "last": "last", "end": "last", "after": "after", "before": "before"}


def phrasings(name):
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def answer(row):
    asked = asked_time(row["question"], row["duration"])
    return [list(stretch) for stretch in asked.stretches], asked.relation, asked.is_position


def test_every_phrasing_of_the_list_is_routed_right():
    rows = phrasings("phrasings_seen.jsonl")
    assert len(rows) >= 600
    wrong = [
        (row["question"], answer(row))
        for row in rows
        if answer(row) != (row["stretches"], row["relation"], row["is_position"])
    ]
    assert not wrong


@pytest.mark.parametrize("kind", PHRASINGS)
def test_the_questions_of_the_embedded_model(kind):
    random = np.random.default_rng(0)
    for phrasing in PHRASINGS[kind] * 4:
        seconds = float(random.integers(1024))
        question = phrasing.format(time=frame_clock(seconds), word="ladder", kind="circle", colour="red")
        relation = next((ORDER[word] for word in kind.split() if word in ORDER), "none")
        timed = Asked(((seconds, seconds),), "at", True)
        assert asked_time(question, 1024.0) == (timed if "{time}" in phrasing else Asked((), relation))


@pytest.mark.parametrize(
    ("name", "duration", "count"),
    [
        ("phrasings_unseen.jsonl", 3600.0, 130),
        ("phrasings_unseen_2.jsonl", 7200.0, 138),
        ("phrasings_unseen_3.jsonl", 7200.0, 200),
        ("phrasings_unseen_4.jsonl", 7200.0, 200),
    ],
)
def test_the_lists_written_without_knowledge_of_the_rules(name, duration, count):
    """A row has the stretches that answer. It has none if the answer is in a neighbour."""
    # At first reading, before the rules were mended, 135 of 138 rows of the second list were right and none misled;
    # 184 of 200 rows of the third were right and 9 misled. These lists are seen now and measure no new phrasings. The
    # fourth was written and read after that: 196 of 200 rows were right and none misled.
    rows = phrasings(name)
    assert len(rows) >= count
    answered = [asked_time(row["question"], duration) for row in rows]
    found = [[list(each) for each in asked.stretches] if asked.relation == "at" else [] for asked in answered]
    wrong = [row["question"] for row, stretches in zip(rows, found, strict=True) if stretches != row["stretches"]]
    misled = [row["question"] for row, stretches in zip(rows, found, strict=True) if stretches and not row["stretches"]]
    assert len(wrong) <= 0.02 * len(rows), wrong
    assert len(misled) <= 0.01 * len(rows), misled


def test_a_time_after_the_end_of_the_video():
    assert asked_time("what is there at 37 seconds?", 30.0).outside(30.0) == 37
    assert asked_time("what is there at 37 seconds?", 37.0).outside(37.0) is None
    assert asked_time("what dish is being made 12:30", 30.0) == Asked()  # not clearly a position
    assert asked_time("what is shown in the last minute?", 30.0).stretches == ((0.0, 30.0),)
    assert asked_time("what is shown in the first minute?", 30.0).stretches == ((0.0, 30.0),)


def test_a_question_without_words_about_time_compiles_no_pattern():
    before = time_patterns._compiled.cache_info().misses
    assert asked_time("which animal is taller than the blue fence?", 30.0) == Asked()
    assert time_patterns._compiled.cache_info().misses == before
    asked_time("which animal is seen at 12:31?", 30.0)
    assert time_patterns._compiled.cache_info().hits + time_patterns._compiled.cache_info().misses > before
