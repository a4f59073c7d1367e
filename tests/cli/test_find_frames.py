"""`v2l find` and `v2l frames`: segments found by words and by likelihood, and the pictures that were read."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from terminal import SUFFIX, run

import v2l
from v2l.adapters.search import covering
from v2l.adapters.timeline import PartSource, write_timeline
from v2l.inference.likelihood import answer_likelihoods
from v2l.inference.recorded_frames import find_video, recorded_segments
from v2l.models.processor import question_text
from v2l.video.client import probe, read_frames

ANSWERS = (
    ("a red ring. The board says ladder.", "ladder"),
    ("a red square", "drum"),
    ("a blue ring", "drum then ladder"),
)
QUESTIONS = "what is shown?", "which words are written?"


@pytest.fixture(scope="module")
def shelf(adapters, videos, tmp_path_factory):
    """A folder with a timeline of three segments and its video, an adapter without an index, and a damaged file."""
    folder = tmp_path_factory.mktemp("shelf")
    shutil.copy(videos[2], folder)
    parts = [PartSource(lambda: adapters[2], answers) for answers in ANSWERS]
    write_timeline(folder / f"talk{SUFFIX}", parts, PartSource(lambda: adapters[2]), QUESTIONS)
    (folder / "more").mkdir()
    adapters[0].save(folder / "more" / f"short{SUFFIX}")
    (folder / "more" / f"bad{SUFFIX}").write_text("no adapter")
    (folder / ".talk.partial").mkdir()
    return folder


def found(done):
    return [(record["adapter"].rpartition("/")[2], record["answer"]) for record in done.records]


def test_words_rank_segments_and_damaged_files_are_left_out_with_an_error(shelf):
    done = run("find", "a RED ring, ladder", "talk" + SUFFIX, "more", "--json", cwd=shelf)
    assert done.code == 1
    assert found(done) == [
        (f"talk{SUFFIX}", "a red ring. The board says ladder."),
        (f"talk{SUFFIX}", "a blue ring"),
        (f"talk{SUFFIX}", "a red square"),
    ]
    first, second, _ = done.records
    assert first.keys() == {*"v2l command adapter video start end question answer matches score".split()}
    assert (first["video"], first["start"], first["question"]) == ("clip 2.mp4", 0.0, QUESTIONS[0])
    assert [match["answer"] for match in second["matches"]] == ["a blue ring", "drum then ladder"]
    error, note = done.notes
    assert f"bad{SUFFIX} is not a sound" in error
    assert "no index: 1 of 3 adapters" in note


def test_the_current_folder_is_searched_without_torch_and_nothing_found_is_no_error(shelf):
    program = [sys.executable, "-X", "importtime", "-m", "v2l"]
    done = run("find", "drum", "-n", "1", cwd=shelf, program=program)
    assert (done.code, done.out) == (0, f"talk{SUFFIX}\t0\t8\tdrum\n")
    assert "torch" not in {line.split()[-1] for line in done.notes if line.startswith("import time:")}
    done = run("find", "unicorn", cwd=shelf)
    nothing = "nothing found in the 3 segments that have an index"
    assert (done.code, done.out) == (0, "")
    assert done.notes == [nothing, "2 more adapters in subfolders; --recursive searches them"]


def test_a_search_that_cannot_be_meant_is_a_usage_error(shelf):
    unquoted = (["red", "ring", "more"], 'quote a text of several words: "red ring"')
    for words, says in (["the"], "no word to search for"), (["more"], "what to find"), unquoted:
        done = run("find", *words, cwd=shelf)
        assert done.code == 2 and says in done.err


def test_few_answers_cover_the_words_that_were_found():
    texts = ["cyan", "cross", "the cyan cross moves", "lora", "lora then lora"]
    assert covering(texts, "a cyan cross, lora, unicorn") == [2, 3]
    assert covering(texts, "unicorn") == []


def test_likelihoods_are_those_of_each_adapter_alone(adapters, vlm):
    question, answer = "what is shown?", "Frame from 12"
    ids = vlm.tokenize(question_text(question) + " " + answer)
    target = vlm.tokenize(" " + answer)
    for adapter, likelihood in zip(adapters, answer_likelihoods(adapters, question, answer, vlm), strict=True):
        with v2l.applied(vlm, adapter, merged=False):
            logits = vlm.logits(ids)[-len(target) - 1 : -1].float().log_softmax(-1)
        assert likelihood == pytest.approx(logits.gather(1, target[:, None]).sum().item(), rel=1e-4)


def test_adapters_are_ranked_by_likelihood_with_or_without_an_index(shelf, adapters, vlm, model_folder):
    words = ["--question", "what is shown?", "--answer", "Frame", "-r", "--json"]
    done = run("find", *words, cwd=shelf, model=model_folder)
    assert done.code == 1 and "bad" in done.err
    scores = [record["score"] for record in done.records]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    expected = answer_likelihoods([adapters[0], adapters[2]], "what is shown?", "Frame", vlm)
    assert {record["adapter"]: record["score"] for record in done.records} == pytest.approx(
        {f"more/short{SUFFIX}": expected[0], f"talk{SUFFIX}": expected[1]}, rel=1e-4
    )


# frames --------------------------------------------------------------------------------------------------------------


def test_frames_are_those_that_were_read(shelf, adapters, videos, tmp_path):
    done = run("frames", shelf / f"talk{SUFFIX}", "-o", tmp_path / "out", "--strip", tmp_path / "strip.png", "--json")
    assert done.code == 0
    *each, strip = done.records
    times = adapters[2].description.segments[0].timestamps
    assert [record["seconds"] for record in each] == list(times)
    files = sorted((tmp_path / "out").iterdir())
    assert [str(file) for file in files] == [record["file"] for record in each]
    assert files[0].name == "clip 2.00-00-00.000.png"
    video = probe(videos[2])
    indices = np.flatnonzero(np.isin(video.seconds, times)).tolist()
    for frame, file in zip(read_frames(video, indices), files, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), frame.pixels)
    assert strip["frames"] == len(times)
    assert Image.open(tmp_path / "strip.png").width <= 964


def test_pictures_are_not_replaced_unless_asked(shelf, tmp_path):
    command = ["frames", shelf / f"talk{SUFFIX}", "--at", "0:03", "--strip", tmp_path / "strip.png"]
    (tmp_path / "strip.png").write_bytes(b"own")
    done = run(*command, "-o", tmp_path / "out")
    assert done.code == 1 and "--overwrite" in done.err
    assert (tmp_path / "strip.png").read_bytes() == b"own" and not (tmp_path / "out").exists()
    assert run(*command, "--overwrite").code == 0
    assert Image.open(tmp_path / "strip.png").size


def test_only_the_recorded_video_will_do(shelf, videos, tmp_path):
    (segment,) = recorded_segments(shelf / f"talk{SUFFIX}", number=2)
    assert find_video(segment.source, shelf) == shelf / "clip 2.mp4"
    assert find_video(segment.source, tmp_path, videos[2]) == videos[2]
    with pytest.raises(v2l.V2LError, match=r"clip 2\.mp4 is not there; name it with --video"):
        find_video(segment.source, tmp_path)
    data = bytearray(videos[2].read_bytes())
    data[-1] ^= 1
    (tmp_path / "clip 2.mp4").write_bytes(data)  # of the same size
    for folder, given in ((tmp_path, None), (shelf, videos[0])):
        with pytest.raises(v2l.V2LError, match="not the video that was encoded"):
            find_video(segment.source, folder, given)
    away = dataclasses.replace(segment.source, name="../../etc/passwd")
    with pytest.raises(v2l.V2LError, match="no file name; use --video"):
        find_video(away, shelf)


def test_segments_are_chosen_by_time_or_number(shelf, adapters):
    path, (made,) = shelf / f"talk{SUFFIX}", adapters[2].description.segments
    assert [each.timestamps for each in recorded_segments(path)] == [made.timestamps]
    assert [each.timestamps for each in recorded_segments(path, at=3.0)] == [made.timestamps] * 3
    assert recorded_segments(shelf / "more" / f"short{SUFFIX}") == list(adapters[0].description.segments)
    with pytest.raises(v2l.V2LError, match="shows 0:00 to 0:08 and not 9:00"):
        recorded_segments(path, at=540.0)
    with pytest.raises(v2l.V2LError, match="no segment 3: its segments are 0 to 2"):
        recorded_segments(path, number=3)
