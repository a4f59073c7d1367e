"""Crashes and processes that meet: nothing half-written, nothing lost, nothing left lying about."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small
from terminal import SUFFIX, Running, fill, run

import v2l
from v2l import batch, files
from v2l.choice import Choice
from v2l.files import part_prefix, part_suffix, write_atomically
from v2l.sampling import Reading
from v2l.targets import Target

TESTS = Path(__file__).parent


def test_twenty_kills_of_a_folder_encode():
    """The documented run has a thousand: `python tests/kills.py 1000`."""
    command = [sys.executable, TESTS / "kills.py", "20", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = ast.literal_eval(done.stdout.splitlines()[-1])
    assert counts["kills"] == 20
    assert counts["finished runs, equal to the byte"] == 2 and counts["adapters found whole"] > 20


def test_what_a_killed_process_left_is_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_swept", set())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    place = tmp_path / "a.bin"
    ours, theirs = part_suffix(), part_suffix().replace(str(os.getpid()), str(dead.pid))
    elsewhere = theirs.replace(theirs[1:9], "0" * 8)
    kept = [part_prefix(place) + "x" + ours, part_prefix(place) + "x" + elsewhere, ".mine.part", "b.bin"]
    for name in [*kept, part_prefix(place) + "x" + theirs]:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / (".clip.peft.y" + theirs)).mkdir()
    write_atomically(place, b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "a.bin"])


def test_two_processes_on_one_folder_make_one_set(model_folder, vlm, hypernetwork, tmp_path):
    for number in range(4):
        small.write_video(tmp_path / f"{number}.mp4", frames=24, seed=number)
    both = [Running("encode", ".", cwd=tmp_path, model=model_folder) for _ in range(2)]
    assert [each.end().code for each in both] == [0, 0]
    for number in range(4):
        expected = v2l.encode(tmp_path / f"{number}.mp4", vlm, hypernetwork)
        assert v2l.Adapter.load(tmp_path / f"{number}{SUFFIX}").sha256() == expected.sha256()
    assert len(list(tmp_path.iterdir())) == 8
    assert "4 current" in run("encode", ".", cwd=tmp_path, model=model_folder).err


# While a video is being read -----------------------------------------------------------------------------------------


def cut_short(video):
    os.truncate(video, video.stat().st_size // 2)


def grow(video):
    with open(video, "ab") as file:
        file.write(b"more")


def replaced(video):
    other = video.with_name("other.mp4")
    shutil.copy(video, other)
    os.replace(other, video)


def its_folder_vanishes(video):
    shutil.rmtree(video.parent)


def encode_while(happens, video, output, model_folder, vlm, hypernetwork):
    """The outcome where that happens once the model has seen the first frame."""
    choice = Choice(str(model_folder), "option")
    choice.vlm, choice.hypernetwork = vlm, hypernetwork
    happened = []

    def watch(*_):
        if not happened:
            happened.append(happens(video))

    (outcome,) = batch.encode_targets([Target(video, output)], batch.EncodeOptions(Reading()), choice, watch)
    assert happened
    return outcome


@pytest.mark.parametrize("happens", [Path.unlink, cut_short, grow, replaced, its_folder_vanishes])
def test_a_video_that_changes_while_it_is_read_fails_and_nothing_is_written(
    happens, tmp_path, videos, model_folder, vlm, hypernetwork
):
    video = fill(tmp_path / "in", talk=videos[0]) / "talk.mp4"
    for output in (video.with_name(f"talk{SUFFIX}"), tmp_path / f"talk{SUFFIX}"):
        fill(tmp_path / "in", talk=videos[0])
        outcome = encode_while(happens, video, output, model_folder, vlm, hypernetwork)
        assert outcome.status == "failed" and "talk.mp4" in outcome.note and outcome.note.isprintable()
        assert video.parent.exists() == (happens is not its_folder_vanishes)
        assert not list(tmp_path.rglob("*.part")) + list(tmp_path.rglob(f"*{SUFFIX}"))


def test_a_folder_for_adapters_that_vanishes_is_made_again(tmp_path, videos, model_folder, vlm, hypernetwork):
    video = fill(tmp_path, talk=videos[0]) / "talk.mp4"
    output = tmp_path / "out" / f"talk{SUFFIX}"
    output.parent.mkdir()
    outcome = encode_while(lambda _: output.parent.rmdir(), video, output, model_folder, vlm, hypernetwork)
    assert outcome.status == "encoded" and v2l.Adapter.load(output).sha256() == outcome.adapter.sha256()


# Where the results go ------------------------------------------------------------------------------------------------


def test_a_full_standard_output_is_one_line_and_1(tmp_path, adapters):
    adapters[0].save(tmp_path / f"a{SUFFIX}")
    with open("/dev/full", "w") as full:
        done = run("info", f"a{SUFFIX}", cwd=tmp_path, stdout=full.fileno())
        assert (done.code, done.notes) == (
            1,
            ["v2l: error: cannot write standard output: No space left on device; free some space, then run this again"],
        )
        done = run("--help", stdout=full.fileno())
        assert (done.code, done.notes) == (1, ["v2l: error: No space left on device"])
