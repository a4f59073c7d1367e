"""Evaluations of timelines: which part of a clip each condition uses, and the questions that it could answer at all."""

import dataclasses
import json

import pytest
import small
from terminal import run

import v2l
from v2l.adapters.adapter import Adapter
from v2l.adapters.timeline import Timeline
from v2l.adapters.timeline_description import Segmentation
from v2l.evaluation.answering import ClipAnswerer
from v2l.evaluation.conditions import (
    ADAPTER,
    BIAS,
    IN_CONTEXT,
    NOTHING,
    OTHER_CLIP,
    OVERVIEW,
    SEGMENT_IN_CONTEXT,
    WHOLE,
)
from v2l.evaluation.evaluate import Evaluation
from v2l.evaluation.report import summarise
from v2l.evaluation.setting import Setting
from v2l.evaluation.sources import ClipEncoder
from v2l.inference.timeline import encode_timeline
from v2l.io.manifest import Example
from v2l.video.sampling import Reading

QUESTIONS = ("what is on the whiteboard at 0:09?", "where is the square at 0:05?", "what is written first?")
EVERY = (IN_CONTEXT, ADAPTER, NOTHING, BIAS, OTHER_CLIP, WHOLE, SEGMENT_IN_CONTEXT, OVERVIEW)
SETTING = Setting(Reading(frames=3), 4, EVERY, timeline=Segmentation(seconds=4.0))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 4 and of 12 seconds: the first is one encoding, the other has three segments."""
    folder = tmp_path_factory.mktemp("clips")
    return [small.write_video(folder / f"{n}.mp4", frames=frames, seed=n) for n, frames in enumerate((32, 96))]


@pytest.fixture(scope="module")
def examples(clips):
    """Every question about the long clip, the last one about the short clip."""
    asked = [(clips[0], QUESTIONS[-1]), *((clips[1], question) for question in QUESTIONS)]
    return [
        Example(str(number), video, "qa", f"kind {question[-2]}", question, "a square", None, None)
        for number, (video, question) in enumerate(asked)
    ]


@pytest.fixture(scope="module")
def results(examples, vlm, hypernetwork, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation") / "r.jsonl"
    return output, list(Evaluation(examples, vlm, hypernetwork, SETTING, output).run())


def test_each_condition_answers_from_its_own_part(results, clips, vlm, hypernetwork, tmp_path):
    timeline = encode_timeline(
        clips[1], vlm, hypernetwork, tmp_path / "t.v2l.safetensors", Reading(frames=3), segment_seconds=4.0, index=False
    )
    short = v2l.encode(clips[0], vlm, hypernetwork, frames=3)
    _, (first, *rest) = results
    assert first.answers["adapter"] == first.answers["whole"] == v2l.ask(short, QUESTIONS[-1], vlm, 4)
    for result, segment in zip(rest, (2, 1, 0), strict=True):
        question, part = result.prompt, timeline.select([segment])
        assert list(result.answers) == [condition.name for condition in EVERY]
        assert result.answers["adapter"] == v2l.ask(timeline, question, vlm, 4) == v2l.ask(part, question, vlm, 4)
        assert result.answers["overview"] == v2l.ask(timeline.overview(), question, vlm, 4)
        assert result.answers["whole"] == v2l.ask(timeline, question, vlm, 4, whole=True)
        assert result.answers["other_clip"] == v2l.ask(short, question, vlm, 4)
        assert result.answers["bias"] == v2l.ask(short.bias_alone(), question, vlm, 4)
        own = part.description.segments[0].reading
        assert result.answers["segment_in_context"] == v2l.ask_in_context(clips[1], question, vlm, own, 4)


def test_a_time_can_be_answered_where_its_second_is_shown(results):
    """The segment of three frames in 4 s shows 8, 9 and 11 s, or the like; the overview three frames of 12 s."""
    by_time = {result.prompt: result.uses for result in results[1]}
    shown = by_time[QUESTIONS[0]]
    assert shown["adapter"]["answerable"] is shown["segment_in_context"]["answerable"]
    assert shown["in_context"]["answerable"] is True  # as many frames as fit are all of its seconds
    assert {name for name, use in shown.items() if use["visual_tokens"]} == {"in_context", "segment_in_context"}
    assert "answerable" not in by_time[QUESTIONS[2]]["adapter"]
    assert not {"nothing", "bias", "other_clip"} & shown.keys()
    assert shown["in_context"]["bytes"] > shown["segment_in_context"]["bytes"] > 0
    assert shown["whole"]["bytes"] > shown["overview"]["bytes"] == shown["adapter"]["bytes"]
    report = summarise(results[1], "exact", 0.05)
    assert report.timed == 2
    assert report.uses["in_context"]["answerable"] == 1.0
    assert report.uses["overview"]["answerable"] < 1.0
    assert [row[0] for row in report.uses_table()[1]] == [
        "in context",
        "adapter",
        "all segments",
        "its segment in context",
        "overview",
    ]


def test_all_segments_are_left_out_where_they_are_too_many(examples, vlm, hypernetwork, monkeypatch):
    answerer, encoder = ClipAnswerer(vlm, hypernetwork, SETTING), ClipEncoder(vlm, hypernetwork, SETTING)
    short, long = encoder.encode(examples[:1]), encoder.encode(examples[1:])
    assert isinstance(short, Adapter) and isinstance(long, Timeline)
    assert answerer.applies(WHOLE, long)
    monkeypatch.setattr("v2l.evaluation.answering.MAX_RANK", 8)
    assert answerer.applies(WHOLE, short) and answerer.applies(OVERVIEW, long) and not answerer.applies(WHOLE, long)


def test_the_index_is_made_where_words_choose_the_segment(examples, vlm, hypernetwork):
    encoder = ClipEncoder(vlm, hypernetwork, SETTING)
    assert not encoder.encode(examples[1:]).description.questions
    words = [dataclasses.replace(examples[1], prompt="where is the red ring?")]
    assert ClipEncoder(vlm, hypernetwork, SETTING).encode(words).description.questions


def test_results_of_timelines_resume_apart_from_others(results, examples, vlm, hypernetwork):
    output, found = results
    assert list(Evaluation(examples, vlm, hypernetwork, SETTING, output).run()) == found
    with pytest.raises(v2l.V2LError, match="not a resumable evaluation"):
        Evaluation(examples, vlm, hypernetwork, dataclasses.replace(SETTING, timeline=None), output)
    assert "timeline" not in dataclasses.replace(SETTING, timeline=None).record()


def test_a_question_about_a_time_after_the_end_fails_alone(examples, vlm, hypernetwork, tmp_path):
    late = dataclasses.replace(examples[1], id="late", prompt="what is on the whiteboard at 9:00?")
    setting = dataclasses.replace(SETTING, conditions=(ADAPTER, OVERVIEW))
    found = list(Evaluation([*examples, late], vlm, hypernetwork, setting, tmp_path / "r.jsonl").run())
    assert [result.id for result in found if result.error] == ["late"]
    assert "encoded from 0:00 to 0:12" in found[-1].error


def test_eval_compares_timelines_on_the_command_line(examples, model_folder, tmp_path):
    rows = [
        {"id": each.id, "video_path": str(each.video), "question": each.prompt, "answer": each.target}
        for each in examples
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "q.jsonl", "--model", model_folder, "--max-new-tokens", "4", "--frames", "3"]
    chosen = ["--timeline", "--segment-seconds", "4", "--ablate", "times", "--without", "other_clip"]
    done = run(*words, *chosen, cwd=tmp_path)
    assert done.code == 0, done.err
    assert any(line.startswith("overview\t") for line in done.lines)
    (record,) = run(*words, *chosen, "--json", cwd=tmp_path).records
    assert record["timed"] == 2 and record["uses"]["in_context"]["answerable"] == 1.0
    for wrong in (["--timeline", "--segments", "2"], ["--segment-seconds", "4"], ["--timeline", "--ablate", "ranks"]):
        assert run(*words, *wrong, cwd=tmp_path).code == 2
