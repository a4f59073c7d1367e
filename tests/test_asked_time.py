"""The time that a question names, and which segments of a composed adapter answer it."""

import pytest
import torch
from terminal import run

import v2l
from v2l.ablation import ablations
from v2l.answer import answer_each
from v2l.asked_time import asked_time, worn_for
from v2l.composition import segments_alone
from v2l.evaluate import Evaluation, Setting
from v2l.manifest import Example
from v2l.options import Ablation
from v2l.report import summarise
from v2l.watch import fill_reading

LATE = "what is there at 00:05?"
LOUD = 15.0
"""A strength at which random segments say different things."""


@pytest.mark.parametrize(
    ("question", "second"),
    [
        ("what is on the whiteboard at 00:37?", 37),
        ("At 12:30, what does it say?", 750),
        ("what is there at 1:02:03?", 3723),
        ("tell me the word at  0:07.", 7),
        ("is the word at 00:07 still there at 00:07?", 7),
        ("what is on the whiteboard?", None),
        ("what comes after 00:37?", None),
        ("what changes from 00:10 to 00:20?", None),
        ("is the word at 00:07 that of 00:08?", None),
        ("what is there at 00:61?", None),
        ("what is there at 100:07?", None),
        ("what is there at 1:02:03:04?", None),
        ("what is a hat 00:07?", None),
    ],
)
def test_the_second_that_a_question_asks_about(question, second):
    assert asked_time(question) == second


@pytest.fixture(scope="module")
def segments(videos, vlm, hypernetwork):
    """Of a clip of eight seconds: to 2.5, to 5.5, and the rest."""
    borders = (0.0, 2.5, 5.5, 8.0)
    return [v2l.encode(videos[2], vlm, hypernetwork, start=borders[n], end=borders[n + 1]) for n in range(3)]


def same(one, other):
    return torch.equal(one.a, other.a) and torch.equal(one.b, other.b) and one.description == other.description


def test_segments_come_out_as_they_went_in(segments):
    composed = v2l.compose(segments)
    for number, segment in enumerate(segments):
        assert same(segments_alone(composed, [number]), segment)
    assert same(segments_alone(composed, [2, 0]), v2l.compose([segments[0], segments[2]]))


def test_segments_that_were_reduced_together_stay_together(segments):
    pair = v2l.compose(segments[:2], rank=3)
    composed = v2l.compose([pair, segments[2]])
    assert same(segments_alone(composed, [1]), pair)
    assert same(segments_alone(composed, [2]), segments[2])


def test_a_time_is_answered_by_the_segments_that_show_it(segments):
    composed = v2l.compose(segments)
    assert same(worn_for(composed, "what is there at 00:01?"), segments[0])
    assert same(worn_for(composed, "what is there at 00:07?"), segments[2])
    assert same(worn_for(composed, LATE), v2l.compose(segments[1:]))  # second 5 is cut at its half
    for question in ("what is there at 00:08?", "what is there?", "what comes after 00:05?"):
        assert worn_for(composed, question) is composed
    assert worn_for(segments[0], "what is there at 00:07?") is segments[0]  # there is nothing to choose from


def test_every_video_that_shows_the_time_answers(segments, adapters):
    composed = v2l.compose([adapters[0], *segments])  # of four seconds
    assert same(worn_for(composed, "what is there at 00:01?"), v2l.compose([adapters[0], segments[0]]))
    assert same(worn_for(composed, "what is there at 00:07?"), segments[2])


def test_answers_come_from_them(segments, vlm):
    composed, last = v2l.compose(segments), v2l.compose(segments[1:])
    alone, whole = (v2l.ask(adapter, LATE, vlm, 8, LOUD, whole=True) for adapter in (last, composed))
    assert alone != whole
    assert v2l.ask(composed, LATE, vlm, 8, LOUD) == alone
    other = "what is there?"
    both = answer_each([composed] * 2, [LATE, other], vlm, 8, LOUD)
    assert [answer.text for answer in both] == [alone, v2l.ask(composed, other, vlm, 8, LOUD)]
    assert answer_each([composed], [LATE], vlm, 8, LOUD, whole=True)[0].text == whole


def test_the_command_asks_them_and_all_on_request(segments, model_folder, vlm, tmp_path):
    composed = v2l.compose(segments)
    composed.save(tmp_path / "c.v2l.safetensors")
    words = ["ask", "c.v2l.safetensors", "--strength", str(LOUD), "--max-new-tokens", "8", LATE]
    for more in ([], ["--whole"]):
        told = v2l.ask(composed, LATE, vlm, 8, LOUD, whole=bool(more))
        one = run(*words, *more, cwd=tmp_path, model=model_folder)
        two = run(*words, "what is there?", *more, cwd=tmp_path, model=model_folder)
        assert one.out == told + "\n"
        assert two.lines[0].split("\t")[2] == told.replace("\n", " ")


def test_an_evaluation_asks_both_ways(videos, vlm, hypernetwork, tmp_path):
    conditions = ("in_context", "adapter", *ablations(Ablation.times, 4, 3))
    setting = Setting(v2l.Reading(), 8, conditions, segments=2)
    asked = [Example(str(clip), videos[clip], "qa", "word at", LATE, "a", None, None) for clip in (1, 2)]
    known = {}
    results = list(Evaluation(asked, vlm, hypernetwork, setting, tmp_path / "r.jsonl", in_context=known).run())
    for result, clip, border in zip(results, (1, 2), (3.0, 4.0), strict=True):
        parts = [v2l.encode(videos[clip], vlm, hypernetwork, start=0.0, end=border)]
        parts += [v2l.encode(videos[clip], vlm, hypernetwork, start=border, end=2 * border)]
        assert result.answers["adapter"] == v2l.ask(parts[1], LATE, vlm, 8)
        assert result.answers["whole"] == v2l.ask(v2l.compose(parts), LATE, vlm, 8, whole=True)
        late = fill_reading(v2l.Reading(start=border, end=2 * border), hypernetwork.origin.trained_with, vlm.geometry)
        assert result.answers["segment_in_context"] == v2l.ask_in_context(videos[clip], LATE, vlm, late, 8)
    report = summarise(results, "exact", 0.05)
    header = ["question", "n", "in context", "adapter", "all segments", "its segment in context"]
    assert report.means_table()[0] == header
    known.update(dict.fromkeys(known, "told before"))  # what another setting found is not asked again
    single = Setting(v2l.Reading(), 8, ("in_context", "adapter"))
    for result in Evaluation(asked, vlm, hypernetwork, single, tmp_path / "s.jsonl", in_context=known).run():
        assert result.answers["in_context"] == "told before" != result.answers["adapter"]


def test_an_evaluation_of_single_encodings_has_no_segments_to_choose(tmp_path):
    told = run("eval", "q.jsonl", "--ablate", "times", cwd=tmp_path)
    assert told.code == 2
    assert told.notes == ["v2l: error: --ablate times is about adapters of several segments; give --segments 2 or more"]
