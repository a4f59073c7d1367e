"""An evaluation on a small random model: the answers of each condition, and resuming."""

import dataclasses
import json

import pytest
from terminal import run

import v2l
from v2l.evaluation.conditions import ADAPTER, CONDITIONS, IN_CONTEXT, RankAblation, Selection
from v2l.evaluation.evaluate import Evaluation
from v2l.evaluation.report import summarise
from v2l.evaluation.setting import Setting
from v2l.io.manifest import Example
from v2l.video.probe import probe

SETTING = Setting(v2l.Reading(), max_new_tokens=6)
NAMES = [condition.name for condition in CONDITIONS]
QUESTIONS = ("what is on the whiteboard?", "where is the square?", "what comes first?", "who is it?")


@pytest.fixture(scope="module")
def examples(videos):
    return [
        Example(f"{clip}-{number}", video, "qa", f"kind {number % 2}", question, "a square", None, None)
        for clip, video in enumerate(videos)
        for number, question in enumerate(QUESTIONS)
    ]


@pytest.fixture(scope="module")
def finished(examples, vlm, hypernetwork, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation") / "results.jsonl"
    results = list(Evaluation(examples, vlm, hypernetwork, SETTING, output).run())
    return output, results


def test_every_condition_gives_its_own_answers(finished, examples, adapters, videos, vlm):
    _, results = finished
    assert [result.id for result in results] == [example.id for example in examples]
    for place, result in enumerate(results):
        clip, question = place // 4, result.prompt
        assert list(result.answers) == NAMES
        reading = adapters[clip].description.segments[0].reading
        assert result.answers["in_context"] == v2l.ask_in_context(videos[clip], question, vlm, reading, 6)
        assert result.answers["adapter"] == v2l.ask(adapters[clip], question, vlm, 6)
        assert result.answers["bias"] == v2l.ask(adapters[clip].bias_alone(), question, vlm, 6)
        assert result.answers["other_clip"] == v2l.ask(adapters[clip - 1], question, vlm, 6)
        assert result.answers["nothing"] == v2l.ask(adapters[clip], question, vlm, 6, strength=0.0)


def test_adapters_may_be_composed_and_see_more_than_the_context(examples, videos, vlm, hypernetwork, tmp_path):
    setting = dataclasses.replace(SETTING, conditions=(IN_CONTEXT, ADAPTER), segments=2, in_context_frames=3)
    results = list(Evaluation(examples[:8], vlm, hypernetwork, setting, tmp_path / "r.jsonl").run())
    for result in results:
        video, question = videos[result.clip], result.prompt
        parts = [v2l.encode(video, vlm, hypernetwork, start=s, end=e) for s, e in _halves(video)]
        assert result.answers["adapter"] == v2l.ask(v2l.compose(parts), question, vlm, 6)
        few = v2l.Reading(frames=3)
        assert result.answers["in_context"] == v2l.ask_in_context(video, question, vlm, few, 6)


def _halves(video):
    middle = probe(video).duration / 2
    return (0.0, middle), (middle, 2 * middle)


def test_the_bias_alone_is_the_same_for_every_clip(adapters, vlm):
    answers = {v2l.ask(adapter.bias_alone(), QUESTIONS[0], vlm, 8) for adapter in adapters}
    assert len(answers) == 1


def test_a_second_run_resumes_and_ends_with_the_same_file(finished, examples, vlm, hypernetwork, tmp_path):
    output, results = finished
    again = tmp_path / "results.jsonl"
    lines = output.read_text().splitlines(keepends=True)
    again.write_text("".join(lines[:7]) + lines[7][:20])  # ended in the middle of a line
    evaluation = Evaluation(examples, vlm, hypernetwork, SETTING, again)
    assert len(evaluation.done) == 6
    assert list(evaluation.run()) == results
    assert sorted(again.read_text().splitlines()) == sorted(output.read_text().splitlines())
    assert list(Evaluation(examples, vlm, hypernetwork, SETTING, again).run()) == results


def test_the_header_lists_conditions_by_name():
    setting = dataclasses.replace(SETTING, conditions=(IN_CONTEXT, RankAblation(Selection.without_top, 2)))
    assert json.dumps(setting.record()) == (
        '{"reading": {"frames": null, "fps": null, "start": null, "end": null, "resolution": null}, '
        '"max_new_tokens": 6, "conditions": ["in_context", "ranks without top 2"], "segments": 1, '
        '"in_context_frames": null}'
    )


def test_another_settings_results_are_not_mixed_in(finished, examples, vlm, hypernetwork, tmp_path):
    output, _ = finished
    with pytest.raises(v2l.V2LError, match="another model, hypernetwork or setting"):
        Evaluation(examples, vlm, hypernetwork, dataclasses.replace(SETTING, max_new_tokens=7), output)
    (tmp_path / "x.jsonl").write_text("no json\n")
    with pytest.raises(v2l.V2LError, match="not a resumable evaluation"):
        Evaluation(examples, vlm, hypernetwork, SETTING, tmp_path / "x.jsonl")


def test_a_clip_that_cannot_be_read_is_counted_and_tried_again(examples, vlm, hypernetwork, tmp_path):
    missing = dataclasses.replace(examples[0], id="missing", video=tmp_path / "missing.mp4")
    chosen = [*examples[4:], missing]
    output = tmp_path / "results.jsonl"
    results = list(Evaluation(chosen, vlm, hypernetwork, SETTING, output).run())
    (failed,) = [result for result in results if result.error]
    assert failed.id == "missing"
    assert "cannot read" in failed.error
    assert summarise(results, "f1", 0.05).failed == 1
    assert "missing" not in Evaluation(chosen, vlm, hypernetwork, SETTING, output).done


def test_the_report_is_the_means_and_their_differences(finished):
    results = finished[1]
    scored = [
        dataclasses.replace(
            result,
            scores={name: {"exact": float(name == "in_context" or result.kind == "kind 0")} for name in NAMES},
        )
        for result in results
    ]
    report = summarise(scored, "exact", margin=0.05)
    assert report.counts == {"kind 0": 6, "kind 1": 6}
    assert report.macro["in_context"] == 1.0
    assert report.macro["adapter"] == 0.5
    assert report.against["in_context"].difference == -0.5
    assert not report.against["in_context"].non_inferior
    assert report.against["bias"].too_few and not report.against["bias"].equivalent
    _, kinds = report.kinds_table()
    assert [row[:5] for row in kinds] == [
        ["kind 0", "6", "1.000", "1.000", "+0.000"],
        ["kind 1", "6", "1.000", "0.000", "-1.000"],
        ["all kinds", "12", "1.000", "0.500", "-0.500"],
    ]
    few = "too few"
    assert [row[-3:] for row in kinds] == [[few, few, "100.0%"], [few, few, "0.0%"], [few, few, "50.0%"]]
    equivalent = "adapter and video in context are equivalent on"
    assert report.summary() == f"{equivalent} 0 of 2 kinds at a margin of 0.05 (2 with too few clips)"
    assert summarise(scored, "exact", margin=0.99).summary() == f"{equivalent} 1 of 2 kinds at a margin of 0.99"
    record = json.loads(json.dumps(report.record()))
    assert record["against"]["bias"]["too_few"] is True
    header, rows = report.means_table()
    assert header[:4] == ["question", "n", "in context", "adapter"]
    assert rows[-1][:4] == ["all kinds", "12", "1.000", "0.500"]


def test_kinds_without_score_in_context_are_counted(finished):
    nothing = [dataclasses.replace(each, scores={name: {"exact": 0.0} for name in NAMES}) for each in finished[1]]
    summary = summarise(nothing, "exact", margin=0.05).summary()
    assert "on 0 of 2 kinds at a margin of 0.05 (2 with too few clips); 2 of them score 0 in context, where" in summary


def test_a_kind_about_one_clip_has_no_interval(finished):
    results = [result for result in finished[1] if result.kind == "kind 0" or result.clip == 0]
    report = summarise(results, "f1", 0.05, stricter=[0.01])
    assert report.record()["by_kind"]["kind 1"] is None
    row = report.kinds_table()[1][1]
    assert row[:2] == ["kind 1", "2"] and row[5:10] == ["-"] * 5
    assert len(report.against_table()[1]) == 2 * (len(CONDITIONS) - 1)


def test_one_clip_is_too_few(examples, vlm, hypernetwork, tmp_path):
    with pytest.raises(v2l.V2LError, match="one clip only"):
        Evaluation(examples[:4], vlm, hypernetwork, SETTING, tmp_path / "r.jsonl")


def test_a_changed_manifest_is_answered_anew(finished, examples, vlm, hypernetwork, tmp_path):
    output, results = finished
    again = tmp_path / "results.jsonl"
    again.write_text(output.read_text())
    changed = [dataclasses.replace(examples[0], target="a circle"), *examples[1:]]
    assert examples[0].id not in Evaluation(changed, vlm, hypernetwork, SETTING, again).done
    turned = [*examples[8:], *examples[:4]]
    rerun = list(Evaluation(turned, vlm, hypernetwork, SETTING, again).run())
    assert [result.id for result in rerun] == [example.id for example in turned]
    assert [result.clip for result in rerun] == [0] * 4 + [1] * 4
    assert rerun[0].answers == results[8].answers


@pytest.mark.parametrize("content", [b"line 1\nlast", b"precious", b"\xff\xfe\n", b'{"v2l": 1}\n', b"{}\n{}\n"])
def test_a_file_that_is_no_evaluation_stays_as_it_is(examples, vlm, hypernetwork, tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(v2l.V2LError, match="not a resumable evaluation"):
        Evaluation(examples, vlm, hypernetwork, SETTING, path)
    assert path.read_bytes() == content


def test_another_range_of_the_same_video_is_the_last_choice(examples, adapters, vlm, hypernetwork, tmp_path):
    parts = [dataclasses.replace(examples[0], id=f"part {n}", start=n, end=n + 2.0) for n in (0.0, 2.0)]
    first, second, third = Evaluation([*parts, examples[4]], vlm, hypernetwork, SETTING, tmp_path / "r.jsonl").run()
    other = v2l.ask(adapters[1], QUESTIONS[0], vlm, 6)
    assert [first.answers["other_clip"], second.answers["other_clip"]] == [other, other]
    assert third.answers["other_clip"] == second.answers["adapter"]


# The command -------------------------------------------------------------------------------------------------------


def test_eval_prints_means_and_differences_and_goes_on(examples, model_folder, tmp_path):
    rows = [
        {"id": each.id, "video_path": str(each.video), "question": each.prompt, "answer": each.target}
        for each in examples
    ]
    manifest = tmp_path / "questions.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", manifest, "--model", model_folder, "--max-new-tokens", "4", "--without", "bias"]
    done = run(*words)
    assert done.code == 0, done.err
    tables = [line.split("\t") for line in done.lines if "\t" in line]
    assert sum(len(row) == len(tables[0]) for row in tables) >= 2
    assert str(tmp_path / "questions.eval.jsonl") in done.err
    before = (tmp_path / "questions.eval.jsonl").read_bytes()
    (record,) = run(*words, "--json").records
    assert record["results"] == str(tmp_path / "questions.eval.jsonl")
    assert record["macro"].keys() == {"in_context", "adapter", "nothing", "other_clip"}
    assert (tmp_path / "questions.eval.jsonl").read_bytes() == before
    assert run("eval", manifest, "-o", manifest, "--model", model_folder).code == 2


def test_eval_tells_once_why_a_clip_cannot_be_read(videos, model_folder, tmp_path):
    rows = [
        {"id": f"{path.stem}-{number}", "video_path": str(path), "question": question, "answer": "a square"}
        for path in (*videos, tmp_path / "missing.mp4")
        for number, question in enumerate(QUESTIONS)
    ]
    manifest = tmp_path / "questions.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("eval", manifest, "--model", model_folder, "--max-new-tokens", "1", "--without", "bias")
    assert done.code == 1
    assert done.err.count("cannot read") == 1
    assert f"{len(QUESTIONS)} of {len(rows)} questions could not be answered" in done.err
