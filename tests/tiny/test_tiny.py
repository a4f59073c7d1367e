"""Accuracy of the shipped weights, and the demonstration."""

import json

import numpy as np
import pytest
from terminal import run

import v2l
from v2l.evaluation.metrics import METRICS
from v2l.inference.model_loader import ModelLoader
from v2l.models.presets import EMBEDDED, RELEASE
from v2l.tiny import demo
from v2l.tiny.demo import ASKED, FORM, SECONDS, sample_lecture
from v2l.tiny.world.clip import frame_times, write_clip
from v2l.tiny.world.dataset import scenes_of_eight_seconds, story_of
from v2l.tiny.world.questions import ask_about, ask_by_scene
from v2l.tiny.world.scene import SHAPES, sample_story

CLIPS = range(9000, 9012)
"""Seeds of the test split that no table in docs/ uses."""


@pytest.fixture(scope="module")
def tiny():
    return v2l.load_vlm("tiny", device="cpu")


@pytest.fixture(scope="module")
def fresh(tiny, tmp_path_factory):
    """Adapters of test clips and the questions about each clip."""
    folder = tmp_path_factory.mktemp("fresh")
    hypernetwork = v2l.load_hypernetwork("tiny", device="cpu")
    adapters, questions = [], []
    for seed in CLIPS:
        story = sample_story("test", seed, SECONDS, shapes=SHAPES)
        write_clip(story, folder / f"{seed}.mp4", FORM)
        adapters.append(v2l.encode(folder / f"{seed}.mp4", tiny, hypernetwork))
        asked = ask_about(story, frame_times(SECONDS, FORM, 12), np.random.default_rng(seed))
        questions.append([question for question in asked if question.kind != "count"])  # tiny knows one shape per scene
    return adapters, questions


def accuracy(adapters, questions, tiny):
    right = []
    for adapter, asked in zip(adapters, questions, strict=True):
        answers = v2l.ask_each([adapter] * len(asked), [question.prompt for question in asked], tiny, 16)
        right += [METRICS["exact"](text, question.answer) for text, question in zip(answers, asked, strict=True)]
    return np.mean(right)


def test_a_clip_is_answered_from_its_own_adapter_only(fresh, tiny):
    adapters, questions = fresh
    own = accuracy(adapters, questions, tiny)
    shuffled = accuracy([*adapters[1:], adapters[0]], questions, tiny)
    print(f"own adapter {own:.3f}, another clip's {shuffled:.3f}")
    assert own > 0.95
    assert shuffled < 0.15


def test_the_segment_that_shows_a_time_answers(tiny, tmp_path):
    """Without the choice of a segment, most of these answers are those of another segment."""
    hypernetwork = v2l.load_hypernetwork("tiny", device="cpu")
    adapters, questions = [], []
    for seed in CLIPS[:4]:
        random = np.random.default_rng(seed)
        film = scenes_of_eight_seconds(8)(random)
        story = story_of("test", seed, film)
        path = tmp_path / f"{seed}.mp4"
        write_clip(story, path, film.form)
        parts = [v2l.encode(path, tiny, hypernetwork, start=8.0 * n, end=8.0 * n + 8) for n in range(8)]
        adapters.append(v2l.compose(parts))
        asked = ask_by_scene(story, film.times, random)
        questions.append([question for question in asked if question.kind == "word at"])
    chosen = accuracy(adapters, questions, tiny)
    print(f"the segment that shows a time {chosen:.3f}")
    assert chosen > 0.6


def test_it_is_small_and_names_its_release(fresh):
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) < 12e6
    adapters, _ = fresh
    assert {adapter.description.base_model.id for adapter in adapters} == {RELEASE}


def test_the_demo_writes_a_clip_an_adapter_and_a_table(tmp_path):
    done = run("demo", cwd=tmp_path)
    assert done.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lecture.mp4", "lecture.v2l.safetensors"]
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert header[:4] == ["question", "the clip shows", "adapter", "in context"]
    assert len(rows) == len(ASKED)
    assert rows[0][0] == "what is on the whiteboard?"
    assert all(row[4] == "0 / 32" for row in rows)
    again = run("demo", "--json", cwd=tmp_path)
    records = [json.loads(line) for line in again.out.splitlines()]
    assert [record["adapter"] for record in records] == ["lecture.v2l.safetensors"] * len(ASKED)
    assert all(min(record["first_token"]) > 0 for record in records)
    asked = run("ask", "lecture.v2l.safetensors", rows[0][0], cwd=tmp_path)
    assert asked.out == rows[0][2] + "\n"


def test_the_demo_keeps_existing_files(tmp_path):
    (tmp_path / "lecture.mp4").write_bytes(b"mine")
    done = run("demo", cwd=tmp_path)
    assert done.code == 1
    assert "lecture.mp4 already exists" in done.notes[-1]
    assert (tmp_path / "lecture.mp4").read_bytes() == b"mine"
    assert run("demo", "--overwrite", cwd=tmp_path).code == 0


def test_the_demo_keeps_the_adapter_of_another_video(adapters, tmp_path):
    mine = tmp_path / "lecture.v2l.safetensors"
    adapters[0].save(mine)
    before = mine.read_bytes()
    with pytest.raises(v2l.V2LError, match="of another video; --overwrite replaces it"):
        demo.run(ModelLoader("tiny", "option"), tmp_path, False, lambda line: None)
    assert mine.read_bytes() == before


def test_the_demo_asks_what_the_clip_shows():
    story, questions = sample_lecture()
    assert questions[0].prompt == "what is on the whiteboard?"
    assert [question.kind for question in questions] == list(ASKED)
    assert len(story.scenes) == 1
