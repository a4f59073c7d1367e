"""The drawn world is deterministic, its answers match its pixels, and no test data leaks into training."""

import hashlib
import math
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from v2l.errors import V2LError
from v2l.io.manifest import group_by_clip, read_manifest
from v2l.models.processor import frame_clock, question_text
from v2l.tiny.world.clip import ClipFormat, frames, write_clip
from v2l.tiny.world.dataset import FILMINGS, Filming, story_of, write_dataset
from v2l.tiny.world.draw import draw
from v2l.tiny.world.questions import (
    PHRASINGS,
    QA_BENCHMARKS,
    ask_about,
    ask_by_scene,
    caption,
    describe,
    visible_words,
)
from v2l.tiny.world.scene import (
    COLOURS,
    KINDS,
    MOTIONS,
    SPLITS,
    WORDS,
    Story,
    held_out_in,
    is_held_out,
    place_is_clear,
    place_name,
    sample_story,
)
from v2l.video.probe import probe, read_frames
from v2l.video.sampling import choose_frames

SECONDS = range(8)

FINGERPRINT = """
import hashlib
from v2l.tiny.world.clip import ClipFormat, frames
from v2l.tiny.world.scene import sample_story
digest = hashlib.sha256()
for seed in range(3):
    for pixels in frames(sample_story("train", seed, 4.0), ClipFormat(64, 64, 2.0)):
        digest.update(pixels.tobytes())
print(digest.hexdigest())
"""


def scenes(split: str, count: int):
    return [sample_story(split, seed, 8.0).scenes[0] for seed in range(count)]


def test_the_world_is_large_enough():
    assert len(set(WORDS)) >= 48
    assert len(KINDS) >= 4
    assert len(COLOURS) >= 6
    assert len(MOTIONS) >= 5


def test_two_processes_draw_the_same_pixels():
    def drawn(hash_seed):
        run = [sys.executable, "-c", FINGERPRINT]
        environment = {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout

    assert drawn("1") == drawn("2")


def look(scene):
    """Return content of a scene that is the same in clips of any length and frame rate."""
    return scene.board.words[0], scene.background


def test_splits_share_no_scene():
    """Neither with the same seed nor with one that is off by a round number, in clips of any length."""
    shifts = [place * base**power for base in (2, 10) for power in range(17 - base) for place in (1, 2, 3)]
    seeds = sorted({seed + more for seed in (0, *shifts) for more in (0, 1)})
    films = [FILMINGS[name](np.random.default_rng(0)) for name in ("plain", "varied")]
    looks = {}
    for split in SPLITS:
        stories = [story_of(split, seed, replace(film, scenes=1)) for film in films for seed in seeds]
        looks[split] = {look(story.scenes[0]) for story in stories}
        assert len(looks[split]) >= len(seeds)
    for one, other in combinations(SPLITS, 2):
        assert not looks[one] & looks[other], (one, other)


def test_held_out_combinations_appear_in_their_split_only():
    for split in ("train", "validation", "test"):
        assert not any(held_out_in(scene) for scene in scenes(split, 300))
    assert all(held_out_in(scene) for scene in scenes("held-out", 100))
    share = np.mean([is_held_out(c, k, m, w) for c in COLOURS for k in KINDS for m in MOTIONS for w in WORDS])
    assert 0.04 < share < 0.09


def test_kept_phrasings_appear_in_the_test_only():
    def patterns(kept):
        asked = set()
        for seed, scene in enumerate(scenes("train", 60)):
            asked |= {
                (question.kind, question.prompt)
                for question in ask_about(Story((scene,)), SECONDS, np.random.default_rng(seed), kept_phrasing=kept)
            }
        return asked

    training, kept = patterns(False), patterns(True)
    assert {kind for kind, _ in training} == set(PHRASINGS) == {kind for kind, _ in kept}
    assert not training & kept


def shape_pixels(scene, seconds, shape, size=96):
    """Return a mask of the pixels that the shape changes."""
    clean = replace(scene, noise=0.0, brightness=1.0)
    without = replace(clean, shapes=tuple(other for other in scene.shapes if other is not shape))
    return np.any(draw(clean, seconds, size, size) != draw(without, seconds, size, size), axis=-1)


def test_places_and_colours_match_the_pixels():
    for seed, scene in enumerate(scenes("train", 40)):
        for shape in scene.shapes:
            for seconds in (0.0, 3.0, 7.0):
                mask = shape_pixels(scene, seconds, shape)
                rows, cols = np.nonzero(mask)
                x, y = scene.where(shape, seconds)
                assert abs(cols.mean() / 96 - x) < 0.05, seed
                assert abs(rows.mean() / 96 - y) < 0.05, seed
                shown = draw(replace(scene, noise=0.0, brightness=1.0), seconds, 96, 96)[mask].astype(int)
                distance = {name: np.abs(shown - colour).sum(-1).min() for name, colour in COLOURS.items()}
                assert min(distance, key=distance.get) == shape.colour


def test_answers_match_the_scene():
    for seed, scene in enumerate(scenes("train", 200)):
        by_kind = {
            question.kind: question for question in ask_about(Story((scene,)), SECONDS, np.random.default_rng(seed))
        }
        words = visible_words(Story((scene,)), SECONDS)
        assert by_kind["words"].answer == " then ".join(words)
        assert by_kind["count"].answer == ("one", "two")[len(scene.shapes) - 1]
        at = next(t for t in SECONDS if frame_clock(t) in by_kind["word at"].prompt)
        assert by_kind["word at"].answer == scene.board.word_at(at)
        if len(words) > 1:
            assert (by_kind["word first"].answer, by_kind["word last"].answer) == (words[0], words[-1])
            word = next(word for word in words if word in by_kind["word after"].prompt.rstrip("?.").split())
            assert by_kind["word after"].answer == words[words.index(word) + 1]
        (shape,) = [each for each in scene.shapes if each.kind in by_kind["motion"].prompt]
        start, end = scene.where(shape, 0), scene.where(shape, 7)
        assert ("start" in by_kind) == place_is_clear(*start)
        assert "start" not in by_kind or by_kind["start"].answer == place_name(*start)
        moved = {
            "left": end[0] < start[0],
            "right": end[0] > start[0],
            "up": end[1] < start[1],
            "down": end[1] > start[1],
        }
        assert moved.get(by_kind["motion"].answer, True)
        description = caption(Story((scene,)), SECONDS, np.random.default_rng(0)).answer
        assert all(word in description for word in words)


def test_a_question_can_hardly_be_guessed_from_its_words():
    """Print and bound the blind score: the most frequent answer to a prompt, ignoring its time."""
    answers = defaultdict(lambda: defaultdict(Counter))
    for seed, scene in enumerate(scenes("train", 1500)):
        for question in ask_about(Story((scene,)), SECONDS, np.random.default_rng(seed)):
            answers[question.kind][re.sub(r"\d\d:\d\d", "T", question.prompt)][question.answer] += 1
    blind = {
        kind: sum(max(each.values()) for each in prompts.values()) / sum(each.total() for each in prompts.values())
        for kind, prompts in answers.items()
    }
    print("\n".join(f"{kind:12} {score:.3f}" for kind, score in blind.items()))
    assert blind.pop("count") < 0.65
    assert max(blind.values()) < 0.35


def test_a_clip_is_an_ordinary_video_file(tmp_path):
    story = sample_story("train", 3, 5.0, start=100.0, count=2)
    write_clip(story, tmp_path / "clip.mp4", ClipFormat(320, 180, 10.0))
    video = probe(tmp_path / "clip.mp4")
    assert (video.frame_count, video.fps, video.width, video.height) == (50, 10.0, 320, 180)
    drawn = list(frames(story, ClipFormat(320, 180, 10.0)))
    for frame in read_frames(video, choose_frames(video, 12)):
        assert np.abs(frame.pixels.astype(int) - drawn[frame.index]).mean() < 12
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_clip_that_cannot_be_written_leaves_nothing(tmp_path):
    story = sample_story("train", 0, 2.0)
    with pytest.raises(V2LError, match="cannot write"):
        write_clip(story, tmp_path / "no" / "clip.mp4")
    with pytest.raises(V2LError, match="cannot write"):
        write_clip(story, tmp_path / "clip.mp4", ClipFormat(0, 0))
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_a_manifest_and_its_clips(tmp_path):
    def short(random):
        return Filming(seconds=4.0, scenes=2, form=ClipFormat(64, 64, 4.0))

    manifest = write_dataset(tmp_path, "test", 3, short)
    examples = read_manifest(manifest)
    assert len({example.video for example in examples}) == 3
    assert all(example.video.is_file() for example in examples)
    assert {example.kind for example in examples} <= {*PHRASINGS, "caption"}
    kept = write_dataset(tmp_path, "test", 3, short, asking="kept")
    assert kept.name == "test-kept.jsonl"
    assert not {e.prompt for e in read_manifest(kept) if e.kind != "caption"} & {e.prompt for e in examples}
    assert all(question_text(example.prompt) for example in examples)
    again = write_dataset(tmp_path / "again", "test", 3, short)
    assert again.read_bytes() == manifest.read_bytes()
    one, other = (hashlib.sha256((folder / "test/00002.mp4").read_bytes()) for folder in (tmp_path, tmp_path / "again"))
    assert one.digest() == other.digest()


def test_a_dataset_can_start_at_another_seed(tmp_path):
    def short(random):
        return Filming(seconds=4.0, form=ClipFormat(64, 64, 4.0))

    whole = write_dataset(tmp_path / "whole", "test", 4, short).read_text().splitlines()
    late = write_dataset(tmp_path, "test", 2, short, first=2)
    assert late.name == "test-from-2.jsonl"
    assert late.read_text().splitlines() == [row for row in whole if '"test/00002' in row or '"test/00003' in row]
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == ["00002.mp4", "00003.mp4"]


def test_seen_clips_can_have_as_many_words_as_held_out_ones(tmp_path):
    """Held-out clips have more words than those of the other splits, and more words are harder."""

    def short(random):
        return Filming(form=ClipFormat(64, 64, 1.0))

    def words(manifest):
        return Counter(len(each.target.split(" then ")) for each in read_manifest(manifest) if each.kind == "words")

    held_out, seen = (write_dataset(tmp_path, split, 40, short) for split in ("held-out", "test"))
    like = write_dataset(tmp_path, "test", 40, short, like="held-out")
    assert like.name == "test-like-held-out.jsonl"
    assert words(like) == words(held_out) != words(seen)
    clips = [clip[0].video for clip in group_by_clip(read_manifest(like))]
    assert len(set(clips)) == 40 and {video.parent.name for video in clips} == {"test"}
    assert len(set(clips) & {each.video for each in read_manifest(seen)}) > 20


def test_questions_about_an_excerpt_are_about_its_frames(tmp_path):
    """Times are those of the video; an excerpt within one scene is asked about like a single scene."""
    clips = group_by_clip(read_manifest(write_dataset(tmp_path, "train", 12, FILMINGS["excerpt"], "train-excerpt")))
    scenes = set()
    for seed, clip in enumerate(clips):
        video, film = probe(clip[0].video), FILMINGS["excerpt"](np.random.default_rng(seed))
        assert film.clip == (clip[0].start, clip[0].end)
        assert [video.seconds[i] for i in choose_frames(video, 96, 1.0, *film.clip)] == pytest.approx(film.times)
        story = story_of("train", seed, film)
        words = visible_words(story, film.times)
        assert {e.target for e in clip if e.kind == "words"} == {" then ".join(words)}
        for example in clip:
            if example.kind == "word at":
                second = 60 * int(example.prompt.split(":")[0][-2:]) + int(example.prompt.split(":")[1][:2])
                assert example.start <= second < example.end
                assert example.target == story.at(second).board.word_at(second)
        kinds = {example.kind for example in clip}
        assert kinds & {"word first", "start"} == set() or film.clip[0] == 0
        assert kinds & {"word last", "end"} == set() or film.clip[1] == film.seconds
        shown = {story.at(seconds).start for seconds in film.times}
        scenes.add(len(shown))
        assert any(e.kind == "shape" for e in clip) == (len(shown) == 1)
    assert 1 in scenes and len(scenes) > 2


@pytest.mark.parametrize(
    ("filming", "frames", "length"),
    [
        ("sparse", (9, 20), (22, 63)),
        ("far", (8, 20), (55, 1_100)),
        ("many", (95, 256), (95, 1_100)),
        ("thousand", (255, 1_024), (255, 1_100)),
    ],
)
def test_every_frame_of_a_sparse_clip_is_read_and_asked_about(tmp_path, filming, frames, length):
    clips = group_by_clip(read_manifest(write_dataset(tmp_path, "train", 8, FILMINGS[filming], f"train-{filming}")))
    asked = set()
    for seed, clip in enumerate(clips):
        video, film = probe(clip[0].video), FILMINGS[filming](np.random.default_rng(seed))
        assert frames[0] <= video.frame_count == film.views <= frames[1]
        assert length[0] <= film.seconds <= length[1]
        assert [video.seconds[i] for i in choose_frames(video, 1_024, 1.0)] == pytest.approx(film.times, abs=1e-3)
        seconds = {math.floor(second) for second in film.times}
        assert len(seconds) == film.views
        story = story_of("train", seed, film)
        assert {e.target for e in clip if e.kind == "words"} == {" then ".join(visible_words(story, film.times))}
        for example in clip:
            for minute, second in re.findall(r"(\d\d):(\d\d)", example.prompt):
                assert 60 * int(minute) + int(second) in seconds
                asked.add(4 * (60 * int(minute) + int(second)) // film.seconds)
    assert asked == {0, 1, 2, 3}


def test_the_papers_benchmarks_have_counterparts(tmp_path):
    everything = read_manifest(write_dataset(tmp_path, "test", 6))
    asked = {(example.video, example.prompt): example for example in everything}
    counterparts = read_manifest(write_dataset(tmp_path, "test", 6, asking="benchmarks"))
    assert {example.kind for example in counterparts} == {*QA_BENCHMARKS}
    for example in counterparts:
        same = asked[example.video, example.prompt]
        assert (same.kind in QA_BENCHMARKS[example.kind], same.target) == (True, example.target)
    whole = [example for example in counterparts if example.kind == "tiny-vidcapbench"]
    assert len(whole) == len([example for example in everything if example.kind != "caption"])
    styles = read_manifest(write_dataset(tmp_path, "test", 6, asking="styles"))
    assert {example.task for example in styles} == {"caption"}
    by_clip = [[example.kind for example in styles if example.video == video] for video in {e.video for e in styles}]
    assert all(kinds == ["short", "detailed", "camera", "background", "main subject"] for kinds in by_clip)
    answers = {(example.video, example.kind): example.target for example in everything}
    for example in styles:
        kind = {"camera": "motion", "background": "words", "main subject": "shape"}.get(example.kind, "caption")
        assert example.target == answers[example.video, kind]
    with pytest.raises(V2LError, match="need a story of one scene"):
        describe(sample_story("test", 0, 8.0, count=2), [0, 4], np.random.default_rng(0))


@pytest.mark.parametrize("scenes", [2, 8])
def test_ignoring_the_time_answers_at_most_one_scene(scenes):
    kinds = Counter()
    for seed in range(80):
        story = sample_story("test", seed, 8.0 * scenes, views=8 * scenes, count=scenes, shapes=1)
        times = [seconds + 0.5 for seconds in range(8 * scenes)]
        asked = ask_by_scene(story, times, np.random.default_rng(seed))
        assert Counter(question.kind for question in asked)["word at"] == scenes
        alike = defaultdict(list)  # answers to questions that differ only in phrasing and time
        for question in asked:
            named = next((word for word in question.prompt.rstrip("?.").split() if word in (*KINDS, *COLOURS)), None)
            alike[question.kind, named].append(question.answer)
            if " at 0" in f" {question.prompt}" and question.kind != "place at":
                at = re.search(r"(\d\d):(\d\d)", question.prompt)
                scene = story.at(int(at[1]) * 60 + int(at[2]) + 0.5)
                shape = scene.shapes[0]
                assert question.answer in (*scene.board.words, shape.colour, shape.kind)
                assert named in (None, shape.kind, shape.colour)
        for (kind, _), answers in alike.items():
            kinds[kind] += 1
            assert len(set(answers)) == len(answers) == (1 if kind in ("word first", "word last") else scenes)
    assert kinds["word first"] == kinds["word last"] == kinds["word at"] == 80
    assert (scenes == 8) or min(kinds[kind] for kind in ("colour at", "shape at", "place at")) > 4
    with pytest.raises(V2LError, match="every scene"):
        ask_by_scene(story, times[:7], np.random.default_rng(0))


def second_has_other_answers(question, story) -> bool:
    """Return whether another frame of the question's second has another answer."""
    named = re.search(r"(\d\d):(\d\d)", question.prompt)
    answers = set()
    for moment in np.linspace(0, 0.999, 20) + (int(named[1]) * 60 + int(named[2])):
        scene = story.at(moment)
        answers |= {
            "word at": {scene.board.word_at(moment)},
            "colour at": {shape.colour for shape in scene.shapes if f" {shape.kind}" in question.prompt},
            "shape at": {shape.kind for shape in scene.shapes if shape.colour in question.prompt},
            "place at": {
                place_name(*scene.where(shape, moment)) for shape in scene.shapes if f" {shape.kind}" in question.prompt
            },
        }[question.kind]
    return answers != {question.answer}


def test_a_question_at_a_time_has_one_answer_in_its_second():
    """Separately encoded segments and sparse sampling show other frames of that second."""
    unclear, clear = Counter(), Counter()
    for seed in range(60):
        story = sample_story("test", seed, 8.0, views=8, count=2, shapes=1)
        times = np.linspace(0, 7.875, 8).tolist()
        for whole_seconds, found in ((False, unclear), (True, clear)):
            asked = ask_about(story, times, np.random.default_rng(seed), whole_seconds=whole_seconds)
            asked += ask_by_scene(story, times, np.random.default_rng(seed)) if whole_seconds else []
            for question in asked:
                if question.kind.endswith(" at"):
                    found[question.kind] += second_has_other_answers(question, story)
    assert unclear["word at"] > 3 and unclear["place at"] > 3
    assert set(clear) == {"word at", "colour at", "shape at", "place at"} and not clear.total()


@pytest.mark.parametrize("seconds", [12, 64, 1024])
def test_a_fact_lasts_at_most_a_sixteenth_of_a_long_video(seconds):
    film = FILMINGS[f"length-{seconds}"](np.random.default_rng(0))
    story = sample_story("test", 0, film.seconds, views=seconds, count=film.scenes, shapes=1)
    words = [story.word_at(second) for second in range(seconds)]
    assert len(words) == seconds and max(words.count(word) for word in words) <= max(1, seconds / 16)
    assert FILMINGS[f"facts-{seconds}"](np.random.default_rng(0)).scenes == min(seconds // 4, len(WORDS))


def test_a_question_about_several_scenes_names_a_time_or_an_order():
    story = sample_story("train", 4, 16.0, views=16, count=4)
    assert [scene.start for scene in story.scenes] == [0, 4, 8, 12]
    written = [word for scene in story.scenes for word in scene.board.words]
    assert len(set(written)) == len(written)
    times = range(16)
    for draw_of_lots in range(20):
        for question in ask_about(story, times, np.random.default_rng(draw_of_lots)):
            assert question.kind == "words" or " at " in question.kind + " " or question.kind.startswith("word ")
            if question.kind in ("colour at", "shape at", "word at"):
                (seconds,) = [t for t in times if frame_clock(t) in question.prompt]
                scene = story.scenes[seconds // 4]
                shapes = {shape.kind: shape.colour for shape in scene.shapes}
                if question.kind == "colour at":
                    assert question.answer == next(c for k, c in shapes.items() if f" {k}" in question.prompt)
                elif question.kind == "shape at":
                    assert shapes[question.answer] in question.prompt
                else:
                    assert question.answer == scene.board.word_at(seconds)


@pytest.mark.parametrize(
    ("split", "seconds", "count"), [("nowhere", 8.0, 1), ("train", 1.0, 1), ("train", 4000.0, 1), ("train", 4.0, 5)]
)
def test_invalid_stories_are_refused(split, seconds, count):
    with pytest.raises(V2LError):
        sample_story(split, 0, seconds, count=count)


def test_frames_below_32_pixels_are_refused():
    story = sample_story("train", 0, 2.0)
    with pytest.raises(V2LError, match="at least 32"):
        draw(story.at(0.0), 0.0, 16, 16)
    with pytest.raises(V2LError, match="without visible frames"):
        ask_about(story, [], np.random.default_rng(0))
