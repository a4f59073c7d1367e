"""The time that a question names, and the segments of a composed adapter that answer it."""

import dataclasses
import json

import pytest
import torch
from terminal import run

import v2l
from v2l.adapters.segments import keep_segments, segments_for, select_segments
from v2l.evaluation.ablation import ablated
from v2l.evaluation.conditions import ADAPTER, IN_CONTEXT, Ablation, RankAblation, Selection, ablations
from v2l.evaluation.evaluate import Evaluation
from v2l.evaluation.report import summarise
from v2l.evaluation.setting import Setting
from v2l.inference.ask import answer_each
from v2l.inference.readings import fill_reading
from v2l.io.manifest import Example

LATE = "what is there at 00:05?"
LOUD = 15.0
"""A strength at which random segments give different answers."""


@pytest.fixture(scope="module")
def segments(videos, vlm, hypernetwork):
    """Three segments of a clip of eight seconds: up to 2.5, up to 5.5, and the rest."""
    borders = (0.0, 2.5, 5.5, 8.0)
    return [v2l.encode(videos[2], vlm, hypernetwork, start=borders[n], end=borders[n + 1]) for n in range(3)]


def same(one, other):
    return torch.equal(one.a, other.a) and torch.equal(one.b, other.b) and one.description == other.description


def test_segments_come_out_as_they_went_in(segments):
    composed = v2l.compose(segments)
    for number, segment in enumerate(segments):
        assert same(keep_segments(composed, [number]), segment)
    assert same(keep_segments(composed, [2, 0]), v2l.compose([segments[0], segments[2]]))


def test_segments_that_were_reduced_together_stay_together(segments):
    pair = v2l.compose(segments[:2], rank=3)
    composed = v2l.compose([pair, segments[2]])
    assert same(keep_segments(composed, [1]), pair)
    assert same(keep_segments(composed, [2]), segments[2])


def test_a_time_is_answered_by_the_segments_that_show_it(segments):
    composed = v2l.compose(segments)
    assert same(select_segments(composed, "what is there at 00:01?"), segments[0])
    assert same(select_segments(composed, "what is there at 00:07?"), segments[2])
    assert same(select_segments(composed, LATE), v2l.compose(segments[1:]))  # second 5 is cut at its half
    assert segments_for(composed, LATE) == (1, 2)
    assert segments_for(composed, "what is there at 00:01 and at 00:07?") == (0, 2)
    assert (
        segments_for(composed, "what is there at the end?") == segments_for(composed, "at 00:08, what is it?") == (2,)
    )
    assert segments_for(composed, "what is there in the first half?") == (0, 1)
    assert (
        segments_for(composed, "what comes after 00:03?") == segments_for(composed, "what follows 00:05?")[:2] == (1, 2)
    )
    assert segments_for(composed, "what was there before 00:03?") == (0, 1)
    for question in ("what is there at 00:09?", "what is there?", "what comes first?"):
        assert select_segments(composed, question) is composed
    assert select_segments(segments[0], "what is there at 00:07?") is segments[0]  # there is nothing to choose from


def test_a_second_that_ends_where_a_segment_starts_is_not_in_it(segments):
    """Segments of whole seconds: up to 2, up to 5, and the rest."""
    composed, borders = v2l.compose(segments), (0.0, 2.0, 5.0, 8.0)
    whole = tuple(
        dataclasses.replace(each, start=borders[number], end=borders[number + 1])
        for number, each in enumerate(composed.description.segments)
    )
    composed = dataclasses.replace(composed, description=dataclasses.replace(composed.description, segments=whole))
    asked = [segments_for(composed, f"what is there at 00:0{second}?") for second in range(9)]
    assert asked == [(0,)] * 2 + [(1,)] * 3 + [(2,)] * 4


def test_every_video_that_shows_the_time_answers(segments, adapters):
    composed = v2l.compose([adapters[0], *segments])  # of four seconds
    assert same(select_segments(composed, "what is there at 00:01?"), v2l.compose([adapters[0], segments[0]]))
    assert same(select_segments(composed, "what is there at 00:07?"), segments[2])


def test_answers_come_from_them(segments, vlm):
    composed = v2l.compose(segments)
    late = v2l.compose(segments[1:])
    alone, whole = (v2l.ask(adapter, LATE, vlm, 8, LOUD, whole=True) for adapter in (late, composed))
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


@pytest.fixture(scope="module")
def loud(model_folder):
    """A random hypernetwork whose adapters give different answers."""
    hypernetwork = v2l.load_hypernetwork(model_folder)
    with torch.no_grad():
        hypernetwork.head.weight.mul_(LOUD)
    return hypernetwork


def test_an_evaluation_asks_both_ways(videos, vlm, loud, tmp_path):
    top_8, top_1 = RankAblation(Selection.top, 8), RankAblation(Selection.top, 1)
    conditions = (IN_CONTEXT, ADAPTER, *ablations(Ablation.times, 4, 3), top_8, top_1)
    setting = Setting(v2l.Reading(), 8, conditions, segments=2)
    asked = [
        Example(f"{clip} {prompt}", videos[clip], "qa", "word at", prompt, "a", None, None)
        for clip in (1, 2)
        for prompt in (LATE, "what is there?", "what is there at 00:01?")
    ]
    known = {}
    results = list(Evaluation(asked, vlm, loud, setting, tmp_path / "r.jsonl", in_context=known).run())
    borders = {videos[1]: 3.0, videos[2]: 4.0}
    halves = {
        video: [v2l.encode(video, vlm, loud, start=start, end=start + border) for start in (0.0, border)]
        for video, border in borders.items()
    }
    for result, example in zip(results, asked, strict=True):
        border, parts = borders[example.video], halves[example.video]
        ends = {LATE: (border, 2 * border), "what is there at 00:01?": (0.0, border)}
        composed = v2l.compose(parts)
        start, end = ends.get(example.prompt, (None, None))
        worn = composed if start is None else parts[int(start == border)]
        told = {
            "in_context": reading_of(loud, vlm),
            "segment_in_context": reading_of(loud, vlm, start=start, end=end),
        }
        for condition, reading in told.items():
            assert result.answers[condition] == v2l.ask_in_context(example.video, example.prompt, vlm, reading, 8)
        told = {"adapter": worn, "whole": composed, "ranks top 8": worn, "ranks top 1": ablated(worn, top_1)}
        for condition, adapter in told.items():
            assert result.answers[condition] == v2l.ask(adapter, example.prompt, vlm, 8, whole=True), condition
    assert any(result.answers["adapter"] != result.answers["whole"] for result in results)
    assert any(result.answers["in_context"] != result.answers["segment_in_context"] for result in results)
    header = ["question", "n", "in context", "adapter", "all segments", "its segment in context"]
    assert summarise(results, "exact", 0.05).means_table()[0] == header
    known.update(dict.fromkeys(known, "told before"))  # what another setting found is not asked again
    single = Setting(v2l.Reading(), 8, (IN_CONTEXT, ADAPTER))
    for result in Evaluation(asked, vlm, loud, single, tmp_path / "s.jsonl", in_context=known).run():
        assert result.answers["in_context"] == "told before" != result.answers["adapter"]


def reading_of(hypernetwork, vlm, **span):
    return fill_reading(v2l.Reading(**span), hypernetwork.provenance.trained_with, vlm.geometry)


def test_the_command_evaluates_composed_adapters_in_both_ways(videos, model_folder, tmp_path):
    rows = [{"id": str(clip), "video_path": str(videos[clip]), "question": LATE, "answer": "a"} for clip in (1, 2)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "q.jsonl", "--segments", "1,2", "--ablate", "times", "--max-new-tokens", "2", "--json"]
    for without in ([], ["--without", "in_context"]):
        told = run(*words, *without, "-o", f"{len(without)}.jsonl", cwd=tmp_path, model=model_folder)
        assert told.code == 0
        one, two = (set(record["macro"]) for record in told.records)
        assert one == {"in_context", "adapter", "nothing", "bias", "other_clip"} - {*without}
        assert two - one == {"whole", "segment_in_context"} - {"segment_" + name for name in without[1:]}


def test_an_evaluation_of_single_encodings_has_no_segments_to_choose(tmp_path):
    told = run("eval", "q.jsonl", "--ablate", "times", cwd=tmp_path)
    assert told.code == 2
    assert told.notes == [
        "v2l: error: --ablate times needs adapters of several segments; give --segments 2 or more, or --timeline"
    ]
