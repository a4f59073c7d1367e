"""Crashes and processes that meet: nothing half-written, nothing lost, nothing left lying about."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import small
from terminal import SUFFIX, Running, run

import v2l
from v2l import files
from v2l.files import part_prefix, part_suffix, write_atomically

TESTS = Path(__file__).parent


def test_twenty_kills_of_a_folder_encode():
    """The documented run has a thousand: `python tests/kills.py 1000`."""
    command = [sys.executable, TESTS / "kills.py", "20", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = ast.literal_eval(done.stdout.splitlines()[-1])
    assert counts["kills"] == 20 and counts["in time"] >= 10
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
