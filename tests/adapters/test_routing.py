"""The part of a timeline that answers a question, from its description alone."""

import pytest

from v2l.adapters.description import BaseModel, HypernetworkInfo
from v2l.adapters.routing import Route, RoutedBy, Router
from v2l.adapters.timeline_description import Recipe, TimelineDescription, TimelinePart
from v2l.io.files import FileIdentity
from v2l.video.sampling import Reading

ANSWERS = ("a red ring", "a red ring", "lemon then ladder", "a blue drum", "red", "a red castle on the left")
"""What the index holds of six segments of five seconds."""


@pytest.fixture(scope="module")
def router():
    recipe = Recipe(FileIdentity("a.mp4", 1, "0" * 64), 64, 48, 4, Reading(frames=4), "Read.", "decoder")
    segments = tuple(
        TimelinePart(0, 5.0 * number, 5.0 * number + 5, (5.0 * number,), (1,), 4, 0.0, "0" * 64, (answer,))
        for number, answer in enumerate(ANSWERS)
    )
    base, hypernetwork = BaseModel("m", None, "0" * 64), HypernetworkInfo("h", "0" * 64, 1, 1)
    questions = ("what is shown?",)
    return Router(TimelineDescription(base, hypernetwork, None, (recipe,), None, segments, questions, 4, "0" * 64, "0"))


@pytest.mark.parametrize(
    ("question", "segments", "one_by_one"),
    [
        ("what is shown at 0:07?", (1,), False),
        ("what is shown at 0:05?", (1,), False),
        ("what is shown at 0:30?", (5,), False),  # the end of the video
        ("what happens between 0:01 and 0:03?", (0,), False),
        ("what happens between 0:01 and 0:05?", (0,), False),
        ("what happens between 0:01 and 0:06?", (0, 1), True),
        ("compare 0:02 and 0:17", (0, 3), False),
        ("what happens after 0:08?", (1,), False),
        ("what happens after 0:09?", (2,), False),
        ("what happens before 0:05?", (0,), False),
        ("what happens before 0:06?", (1,), False),
        ("what happens after 0:30?", (5,), False),  # nothing follows
        ("what happens before 0:00?", (0,), False),
    ],
)
def test_times(router, question, segments, one_by_one):
    assert router.route(question) == Route(RoutedBy.time, segments, one_by_one)


@pytest.mark.parametrize(
    ("question", "segments"),
    [
        ("where is the drum?", (3,)),
        ("where is the ring?", ()),  # two segments match alike
        ("is anything red?", ()),  # in more than half of the segments
        ("what comes after the ladder?", (3,)),
        ("what comes before the ladder?", (2,)),
        ("what comes after the lemon?", (2,)),
        ("what comes before the lemon?", (1,)),
        ("what comes after the castle?", (5,)),
    ],
)
def test_words(router, question, segments):
    assert router.route(question) == Route(RoutedBy.words if segments else RoutedBy.overview, segments)
