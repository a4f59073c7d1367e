"""Questions put to a part of the video whose times start at zero."""

import json
import math

import pytest
from places import ROOT

from v2l.adapters.asked_time import asked_time
from v2l.adapters.own_times import in_own_times

HOUR = 3600.0


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("which word is there at 01:14?", "which word is there at 00:17?"),
        ("what is on the board 74 seconds in?", "what is on the board 17 seconds in?"),
        ("1m14s: what?", "17s: what?"),
        ("what is shown at second 74?", "what is shown at 00:17?"),
        ("between 1:10 and 2:20 what happens?", "between 00:13 and 00:57 what happens?"),  # the part ends before 2:20
        ("Was sieht man nach 74 Sekunden?", "Was sieht man nach 17 Sekunden?"),
        ("which meeting is at 12:30?", "which meeting is at 12:30?"),  # the subject of the question
        ("what is written last?", "what is written last?"),
    ],
)
def test_times_become_those_of_the_part(question, expected):
    """A part from 57.14 s to 114.3 s: its prompt counts from second 57."""
    assert in_own_times(question, [(57.14, 114.3)], HOUR) == expected


def test_a_part_counts_from_the_whole_second_in_which_it_starts():
    assert in_own_times("which word is there at 01:14?", [(57.6, 114.3)], HOUR) == "which word is there at 00:17?"


def test_a_time_that_is_off_by_one_second_is_replaced():
    """In a part that starts at second 1, "two seconds in" would be a second late."""
    late = [(1.0, 17.0)]
    assert "at 00:01" in in_own_times("what is shown two seconds in?", late, HOUR)
    assert "from 00:00 to 00:03" in in_own_times("what happens in the first four seconds?", late, HOUR)


def test_a_subject_one_second_from_the_time_stays():
    asked = in_own_times("at 01:14, does the clock show 01:15?", [(57.0, 114.0)], HOUR)
    assert asked == "at 00:17, does the clock show 01:15?"


def test_two_times_become_those_of_the_parts_that_show_them():
    assert in_own_times("compare 0:20 with 1:30", [(16.0, 32.0), (80.0, 96.0)], HOUR) == "compare 00:04 with 00:10"


def test_a_position_in_words_becomes_a_time():
    assert in_own_times("what is shown halfway?", [(1796.0, 1812.0)], HOUR) == "what is shown at 00:04?"


def test_every_known_phrasing_of_a_moment_asks_about_the_same_moment_of_a_part():
    rows = map(json.loads, (ROOT / "tests/data/phrasings_seen.jsonl").read_text().splitlines())
    checked = 0
    for row in rows:
        duration, stretches = row["duration"], row["stretches"]
        if len(stretches) != 1 or stretches[0][0] != stretches[0][1] or not 0 < stretches[0][0] < duration:
            continue
        moment = math.floor(stretches[0][0])
        start = float(max(0, moment - 7))
        own = in_own_times(row["question"], [(start, min(duration, start + 16))], duration)
        ((first, _),) = asked_time(own, 16.0).stretches
        assert abs(first - (moment - start)) < 1, own
        checked += 1
    assert checked > 200
