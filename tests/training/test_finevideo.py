"""Manifests from timed scenes: the published mixture, prompts and targets; every unusable entry is named."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import small
from places import ROOT

from v2l.errors import UsageError, V2LError
from v2l.io.manifest import read_manifest
from v2l.training.finevideo import PROMPTS, draw, prompt_for, row
from v2l.training.finevideo_annotations import read_split
from v2l.training.teacher import with_teacher_answers
from v2l.video.probe import probe
from v2l.video.sampling import Reading

SECONDS = 12
SCENES = 7
VIDEOS = 5


def time(seconds):
    return f"{int(seconds // 3600):02d}:{int(seconds // 60 % 60):02d}:{seconds % 60:06.3f}"


def scene(number, start, end, activities=3):
    described = [{"description": f"activity {number}.{place}"} for place in range(activities)]
    timestamps = {"start_timestamp": time(start), "end_timestamp": time(end)}
    return {
        "sceneId": number + 1,
        "title": f"AnnotatedScene {number}",
        "timestamps": timestamps,
        "activities": described,
    }


def annotation(*scenes, description="What the whole video shows."):
    return {"content_metadata": {"description": description, "scenes": list(scenes)}, "youtube_title": "A title"}


def sound():
    """Seven scenes; the last one ends slightly after the video, as in real annotations."""
    return annotation(*(scene(n, 1.7 * n, 1.7 * (n + 1) + (0.5 if n == SCENES - 1 else 0)) for n in range(SCENES)))


def write_pair(folder, name, content, video):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / f"{name}.json").write_text(text)
    if video is not None:
        shutil.copyfile(video, folder / f"{name}.mp4")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return small.write_video(tmp_path_factory.mktemp("video") / "v.mp4", frames=SECONDS * 8)


@pytest.fixture(scope="module")
def folder(video, tmp_path_factory):
    """Five sound pairs for training, two for validation."""
    folder = tmp_path_factory.mktemp("finevideo")
    for split, count in (("train", VIDEOS), ("val", 2)):
        (folder / split).mkdir()
        for number in range(count):
            write_pair(folder / split, f"video {number}", sound(), video)
    return folder


@pytest.fixture(scope="module")
def pools(folder):
    pools, faults = read_split(folder, "train")
    assert faults == []
    return pools


def build(*words, cwd=None, **changes):
    """Run the program in a process; changes: of its environment."""
    line = [sys.executable, "-m", "v2l.training.finevideo", *map(str, words)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **changes}
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment)


def test_the_pools_hold_every_scene_run_and_video(pools):
    assert {kind: len(pool) for kind, pool in pools.items()} == {
        "scene": VIDEOS * SCENES,
        "adjacent": VIDEOS * (SCENES - 1 + SCENES - 2),
        "full": VIDEOS,
    }
    spans = {span.id: span for pool in pools.values() for span in pool}
    assert len(spans) == sum(len(pool) for pool in pools.values())
    first = spans["train-video 0-scene-001"]
    assert (first.start, first.end) == (pytest.approx(1.7), pytest.approx(3.4))
    assert first.target == "activity 1.0 activity 1.1"
    run = spans["train-video 0-adjacent-001-003"]
    assert (run.start, run.end) == (pytest.approx(1.7), pytest.approx(6.8))
    assert run.target == "activity 1.0 activity 1.1 activity 1.2 activity 2.0"
    assert run.about["scene_indices"] == [1, 2, 3]
    assert run.about["scene_ids"] == [2, 3, 4]
    assert run.about["title"] == "AnnotatedScene 1 / AnnotatedScene 2 / AnnotatedScene 3"
    full = spans["train-video 0-full"]
    assert (full.start, full.end, full.target) == (None, None, "What the whole video shows.")
    assert full.about["youtube_title"] == "A title"
    assert full.about["source_video_path"] == "train/video 0.mp4"
    # an end that annotations round past the video's is the video's
    assert spans["train-video 0-scene-006"].end == SECONDS


def test_the_mixture_is_exact_without_replacement_and_as_large_as_can_be(pools):
    drawn = draw(pools, "train")
    assert Counter(span.kind for span in drawn) == {"scene": 30, "adjacent": 15, "full": 5}
    assert len({span.id for span in drawn}) == 50
    assert Counter(span.kind for span in draw(pools, "train", 20)) == {"scene": 12, "adjacent": 6, "full": 2}
    assert Counter(span.kind for span in draw(pools, "val", 15)) == {"scene": 5, "adjacent": 5, "full": 5}
    kinds = [span.kind for span in drawn]
    assert kinds != sorted(kinds, key=list(pools).index)  # mixed, so that the first thousand are a sample too


def test_the_draw_follows_from_the_seed_alone(pools):
    turned = {kind: pool[::-1] for kind, pool in pools.items()}
    assert draw(turned, "train", 20) == draw(pools, "train", 20)
    assert draw(pools, "train", 20, seed=1) != draw(pools, "train", 20)
    # pinned: a manifest that is drawn again on another machine is the same
    assert [span.id for span in draw(pools, "train", 10)][:2] == [
        "train-video 4-scene-005",
        "train-video 1-adjacent-005-006",
    ]


def test_more_than_there_are_or_a_share_of_a_row_is_refused(pools):
    with pytest.raises(V2LError, match=r"60 rows cannot be drawn from 35 scene, 55 adjacent, 5 full.*--target 50"):
        draw(pools, "train", 60)
    with pytest.raises(V2LError, match=r"1,152 rows cannot be drawn.*--target 15 is the largest"):
        draw(pools, "val")
    with pytest.raises(UsageError, match=r"--target 25: give a multiple of 10"):
        draw(pools, "train", 25)
    with pytest.raises(V2LError, match="more videos are needed"):
        draw({**pools, "full": []}, "train")


def test_prompts_are_chosen_by_hash(pools):
    prompts = set()
    for span in (span for pool in pools.values() for span in pool):
        first = hashlib.sha256(span.id.encode()).digest()[0]
        assert prompt_for(span) == PROMPTS[span.kind][first % len(PROMPTS[span.kind])]
        prompts.add(prompt_for(span))
    assert len(prompts) == 5


def test_the_command_writes_rows_that_are_read_back(folder, tmp_path):
    place = folder / "val.jsonl"
    done = build(folder, "val.jsonl", "--split", "val", "--target", 6, cwd=folder)
    assert (done.returncode, done.stdout) == (0, "val.jsonl\n")
    assert done.stderr == "6 rows: 2 scene, 2 adjacent, 2 full; drawn from 14 scene, 22 adjacent, 2 full\n"
    examples = read_manifest(place)
    assert Counter(example.kind for example in examples) == {"scene": 2, "adjacent": 2, "full": 2}
    assert {example.task for example in examples} == {"caption"}
    for example in examples:
        assert example.video.parent == folder / "val"
        assert example.video.is_file()
        assert (example.start is None) == (example.kind == "full")
    elsewhere = tmp_path / "deep" / "val.jsonl"
    elsewhere.parent.mkdir()
    assert build(folder, elsewhere, "--split", "val", "--target", 6).returncode == 0
    assert [e.video.resolve() for e in read_manifest(elsewhere)] == [e.video.resolve() for e in examples]
    assert build(folder, elsewhere, "--split", "val", "--target", 7).returncode == 2
    nowhere = build(tmp_path, elsewhere)
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert "cannot read the folder" in nowhere.stderr
    assert nowhere.stderr.count("\n") == 1


BAD = {
    "no json": ("{", r"it is not JSON"),
    "no object": ("[]", r"it is not a JSON object"),
    "deep": ("[" * 100_000, r"it is nested too deeply"),
    "no metadata": ({"youtube_title": "x"}, r"it has no content_metadata"),
    "no scenes": (annotation(), r"it has no scenes; the full video alone is used"),
    "no description": (annotation(scene(0, 1, 3), description=" "), r"full: the video has no description"),
    "long": (annotation(scene(0, 1, 3), description="x" * 20_001), r"full: a text of 20,001 characters"),
    "reversed": (annotation(scene(0, 5, 3)), r"scenes\[0\]: it ends at 3 s, not after its start at 5 s"),
    "beyond": (annotation(scene(0, 5, 14)), r"scenes\[0\]: it ends at 14 s, past the end of the video at 12.000 s"),
    "after": (annotation(scene(0, 12.2, 12.9)), r"scenes\[0\]: start \(12.2 s\) is after the end"),
    "silent": (annotation(scene(0, 1, 3, activities=0)), r"scene-000: no activity is described"),
    "disorder": (
        annotation(scene(0, 5, 7), scene(1, 1, 3)),
        r"adjacent-000-001: its scenes do not follow one another",
    ),
    "no time": (
        annotation({"timestamps": {"start_timestamp": "00:61:00", "end_timestamp": "later"}}),
        r"scenes\[0\]: '00:61:00' is not a time of the form HH:MM:SS.sss",
    ),
    "no timestamps": (annotation({"title": "x"}, "x"), r"scenes\[0\]: it has no timestamps"),
}


def test_what_cannot_be_used_is_named(video, tmp_path):
    """Every fault is reported with its file; the rest of the file is used."""
    place = tmp_path / "train"
    place.mkdir()
    for name, (content, _) in BAD.items():
        write_pair(place, name, content, video)
    write_pair(place, "alone", sound(), None)
    write_pair(place, "broken", sound(), Path(__file__))
    shutil.copyfile(video, place / "bare.mp4")
    pools, faults = read_split(tmp_path, "train")
    expected = {name: message for name, (_, message) in BAD.items()} | {
        "alone": "there is no alone.mp4 beside it",
        "broken": "FFmpeg finds no video stream",
        "bare": "there is no annotation bare.json",
    }
    for name, message in expected.items():
        suffix = "mp4" if name == "bare" else "json"
        assert [fault for fault in faults if re.match(rf"train/{name}\.{suffix}: .*{message}", fault)], (name, faults)
    # two scenes of "no timestamps", and nothing else, are wrong twice
    assert len(faults) == len(expected) + 1
    assert {span.id for span in pools["scene"]} == {
        f"train-{name}-scene-{number:03d}"
        for name, number in (("no description", 0), ("long", 0), ("disorder", 0), ("disorder", 1))
    }
    assert pools["adjacent"] == []
    assert len(pools["full"]) == len(BAD) - 6


def test_a_fault_between_scenes_parts_them(video, tmp_path):
    (tmp_path / "train").mkdir()
    write_pair(tmp_path / "train", "a", annotation(scene(0, 0, 2), scene(1, 9, 3), scene(2, 4, 6)), video)
    pools, faults = read_split(tmp_path, "train")
    assert len(faults) == 1
    assert [span.id for span in pools["scene"]] == ["train-a-scene-000", "train-a-scene-002"]
    assert pools["adjacent"] == []


def test_unusable_entries_are_counted_and_the_rest_is_written(folder, video, tmp_path):
    shutil.copytree(folder / "train", tmp_path / "train")
    write_pair(tmp_path / "train", "a\nb", "{", video)
    done = build(tmp_path, tmp_path / "train.jsonl", "--quiet")
    assert done.returncode == 0
    first, last = done.stderr.splitlines()
    assert first.startswith("warning: train/a\\nb.json: it is not JSON")
    assert last == "warning: 1 annotations, scenes or spans could not be used; they are named above"
    assert len(read_manifest(tmp_path / "train.jsonl")) == 50


def test_names_that_lead_out_are_not_followed(video, tmp_path):
    (tmp_path / "train").mkdir()
    write_pair(tmp_path, "secret", sound(), video)
    write_pair(tmp_path / "train", "a", sound(), None)
    (tmp_path / "train" / "a.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "train" / "b.json").symlink_to(tmp_path / "secret.json")
    shutil.copyfile(video, tmp_path / "train" / "b.mp4")
    pools, faults = read_split(tmp_path, "train")
    assert not any(pools.values())
    assert faults == [
        "train/a.json: a.mp4 leads out of its folder and is not followed",
        "train/b.json: b.json leads out of its folder and is not followed",
    ]


def test_cutting_without_ffmpeg_is_one_line(folder, tmp_path):
    done = build(folder, tmp_path / "m.jsonl", "--cut", tmp_path / "clips", PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --cut needs the program ffmpeg")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_clips_are_cut_into_files(folder, tmp_path):
    line = (folder, tmp_path / "val.jsonl", "--split", "val", "--target", 3, "--cut", tmp_path / "clips")
    done = build(*line)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    rows = [json.loads(text) for text in (tmp_path / "val.jsonl").read_text().splitlines()]
    times = {}
    for each, example in zip(rows, read_manifest(tmp_path / "val.jsonl"), strict=True):
        assert (example.start, example.end) == (None, None)
        if example.kind == "full":
            assert example.video.resolve() == (folder / each["metadata"]["source_video_path"]).resolve()
            continue
        assert example.video.parent == tmp_path / "clips"
        length = each["metadata"]["clip_end_sec"] - each["metadata"]["clip_start_sec"]
        assert probe(example.video).duration == pytest.approx(length, abs=0.25)
        times[example.video] = example.video.stat().st_mtime_ns
    assert len(times) == 2
    assert sorted(times) == sorted((tmp_path / "clips").iterdir())
    assert build(*line).returncode == 0
    assert {clip: clip.stat().st_mtime_ns for clip in times} == times  # what is there is not cut again


def test_a_clip_that_cannot_be_cut_is_left_out_and_the_run_failed(folder, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").write_text("#!/bin/sh\necho 'no space' >&2\nexit 1\n")
    (tmp_path / "bin" / "ffmpeg").chmod(0o755)
    line = (folder, tmp_path / "val.jsonl", "--split", "val", "--target", 3, "--cut", tmp_path / "clips")
    done = build(*line, PATH=str(tmp_path / "bin"))
    assert done.returncode == 1
    assert len(re.findall(r"^error: ffmpeg cannot cut val-video \S+: no space$", done.stderr, re.MULTILINE)) == 2
    assert "2 clips could not be cut and are left out" in done.stderr
    assert [example.kind for example in read_manifest(tmp_path / "val.jsonl")] == ["full"]
    assert list((tmp_path / "clips").iterdir()) == []


def test_a_teachers_words_go_into_the_manifest_as_documented(folder, tmp_path, vlm, monkeypatch):
    """The script in docs/training.md, on a real file of the teacher's answers."""
    monkeypatch.chdir(tmp_path)
    assert build(folder, "val.jsonl", "--split", "val", "--target", 3, cwd=tmp_path).returncode == 0
    reading = Reading(2, 1.0, None, None, 32)
    answered = with_teacher_answers(read_manifest("val.jsonl"), vlm, reading, Path("val.teacher.jsonl"))
    page = (ROOT / "docs" / "training.md").read_text()
    (script,) = re.findall(r"^```python\n(# taught\.py\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.setattr(sys, "argv", ["taught.py", "val.jsonl", "val.teacher.jsonl", "val-taught.jsonl"])
    exec(compile(script, "taught.py", "exec"), {})
    assert read_manifest("val-taught.jsonl") == answered
    assert answered != read_manifest("val.jsonl")


def test_a_row_has_the_published_fields(pools, folder):
    span = draw(pools, "train", 10)[0]
    assert set(row(span, "train", folder)) == {
        *("id", "video_path", "task_type", "prompt", "target_text", "dataset", "split", "metadata"),
        *(() if span.start is None else ("clip_start_sec", "clip_end_sec")),
    }
