"""Unreadable videos, missing libraries, closed pipes and Ctrl-C."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import pytest
import torch
from terminal import (
    LIBGL_MISSING,
    SUFFIX,
    Running,
    counts,
    fill,
    nobody_reads,
    obey_permissions,
    run,
    surroundings,
    tree,
    wait_for,
)

import v2l
from v2l.adapters.timeline_description import Segmentation
from v2l.errors import ModelError
from v2l.inference import batch
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import Destination, Target, find_targets
from v2l.video.sampling import Reading

ADDRESS = "http://example.org/a.mp4"
UNDECODABLE = os.fsdecode(b"na\xffme.mp4")


@pytest.fixture(scope="module")
def wreckage(tmp_path_factory, videos, model_folder):
    """A folder where only good.mp4 can be encoded, and the result of a batch over it."""
    names = ["good", "locked", "address"]
    folder = fill(tmp_path_factory.mktemp("wreckage"), **dict.fromkeys(names, videos[0]))
    (folder / "locked.mp4").chmod(0)
    (folder / "empty.mp4").touch()
    whole = videos[2].read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    with wave.open(str(folder / "audio.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    (folder / "audio.wav").rename(folder / "audio.mp4")
    (folder / "text.mp4").write_text("not a video at all\n" * 50)
    (folder / "dir.mp4").mkdir()
    (folder / "no videos here").mkdir()
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(folder / "pipe.mp4")
    fill(folder / "sealed", video=videos[0])
    (folder / "sealed").chmod(0o555)
    return folder


BROKEN = {  # input -> what its line must say
    "missing.mp4": "missing.mp4",
    "empty.mp4": "empty",
    "audio.mp4": "sound without video",
    "truncated.mp4": "truncated.mp4",
    "text.mp4": "no video stream",
    "locked.mp4": "ermission",
    "dir.mp4": "no videos",
    "no videos here": "no videos",
    "dangling.mp4": "dangling.mp4",
    "pipe.mp4": "pipe",
    ADDRESS: "local",
    "sealed": "ermission denied; v2l encode --output-dir",
}


@pytest.fixture(scope="module")
def broken_batch(wreckage, model_folder):
    before = tree(wreckage)
    done = run("encode", *BROKEN, "good.mp4", "--json", cwd=wreckage, model=model_folder, prepare=obey_permissions)
    return done, before


@pytest.mark.parametrize("given", BROKEN, ids=ascii)
def test_what_cannot_be_encoded_is_one_line_that_says_why(broken_batch, given):
    done, _ = broken_batch
    lines = [line for line in done.notes if line.startswith("v2l: error: ")]
    assert len(lines) == len(BROKEN) == len(done.notes) - 1
    name = {ADDRESS: "example.org/a.mp4"}.get(given, given)
    (line,) = (line for line in lines if name in line)
    assert BROKEN[given] in line


def test_a_name_that_is_not_utf_8_is_a_name(videos, model_folder, tmp_path):
    (tmp_path / UNDECODABLE).write_bytes(videos[0].read_bytes())
    done = run("encode", UNDECODABLE, cwd=tmp_path, model=model_folder)
    assert done.code == 0 and (tmp_path / os.fsdecode(b"na\xffme.v2l.safetensors")).exists()


def test_the_rest_of_a_batch_goes_on_and_it_ends_with_1(broken_batch, wreckage, videos):
    done, before = broken_batch
    assert done.code == 1
    assert counts(done.notes[-1]) == {"encoded": 1, "failed": len(BROKEN)}
    assert tree(wreckage) == sorted([*before, f"good{SUFFIX}"])
    (segment,) = v2l.Adapter.load(wreckage / f"good{SUFFIX}").description.segments
    assert segment.source.size == videos[0].stat().st_size


def test_failures_are_records_too(broken_batch):
    done, _ = broken_batch
    failed = [record for record in done.records if record["status"] == "failed"]
    assert len(failed) == len(BROKEN) == len(done.records) - 1
    assert all(record["adapter"] is None and record["error"] for record in failed)
    assert {record["video"] for record in failed} >= BROKEN.keys() - {"sealed", ADDRESS}
    assert done.records[-1]["status"] == "encoded"


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory, videos, model_folder):
    """Two commands at once: one with a failure in its middle, and one whose output has no reader."""
    failing = fill(tmp_path_factory.mktemp("failing"), a=videos[0], c=videos[1])
    (failing / "b.mp4").touch()
    unheard = fill(tmp_path_factory.mktemp("unheard"), a=videos[0], b=videos[1], c=videos[2])
    first = Running("encode", ".", "--fail-fast", cwd=failing, model=model_folder)
    second = Running("encode", ".", cwd=unheard, model=model_folder, stdout=nobody_reads())
    return (failing, first.end()), (unheard, second.end())


def test_fail_fast_stops_at_the_first_failure(cut_short):
    here, done = cut_short[0]
    assert (done.code, done.lines) == (1, [f"a{SUFFIX}"])
    assert counts(done.notes[-1]) == {"encoded": 1, "failed": 1}
    assert tree(here) == ["a.mp4", f"a{SUFFIX}", "b.mp4", "c.mp4"]


def test_a_machine_without_libgl_encodes_and_gets_one_line_where_clips_are_drawn(tmp_path, videos, model_folder):
    """As on a server without a desktop; a cv2 that fails in the same way precedes the real one."""
    fill(tmp_path / "here", talk=videos[0])
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2" / "__init__.py").write_text(LIBGL_MISSING)
    env = {"PYTHONPATH": str(tmp_path)}
    encoding = Running("encode", "talk.mp4", cwd=tmp_path / "here", model=model_folder, env=env)
    version = run("--version", "--json", env=env)
    assert encoding.end().code == 0
    (tmp_path / "demo").mkdir()
    done = run("demo", cwd=tmp_path / "demo", env=env)
    assert (done.code, done.out, tree(tmp_path / "demo")) == (1, "", [])
    (line,) = (line for line in done.notes if line.startswith("v2l: error: "))
    assert "libgl1" in line
    assert version.code == 0
    assert version.records[0]["versions"]["v2l"] == v2l.__version__


def test_nobody_reads_stdout_any_more_and_the_files_are_written_all_the_same(cut_short):
    """The worst case of `v2l encode folder | head -1`: the reader has left before the first line."""
    here, done = cut_short[1]
    assert done.code == 0
    assert counts(done.err.strip()) == {"encoded": 3}
    for name in "abc":
        v2l.Adapter.load(here / f"{name}{SUFFIX}")


def test_a_video_in_a_read_only_folder_is_asked_from_the_cache(videos, model_folder, tmp_path):
    fill(tmp_path / "sealed", talk=videos[0]).chmod(0o555)
    caches = {"XDG_CACHE_HOME": str(tmp_path / "caches")}
    words = ["ask", "sealed/talk.mp4", "what?", "--max-new-tokens", "1", "--json"]
    done = Running(*words, cwd=tmp_path, model=model_folder, env=caches, prepare=obey_permissions).end()
    assert done.code == 0
    (made,) = (tmp_path / "caches" / "v2l" / "adapters").rglob(f"*{SUFFIX}")
    assert done.records[0]["adapter"] == str(made)
    assert done.notes == [f"sealed/talk.mp4: its adapter is kept in the cache, {made}"]
    assert tree(tmp_path / "sealed") == ["talk.mp4"]


# Folders and names --------------------------------------------------------------------------------------------------


def nest(folder, names):
    """Make nested folders whose path may exceed the limit."""
    home = os.getcwd()
    try:
        os.chdir(folder)
        for name in names:
            os.mkdir(name)
            os.chdir(name)
        return os.open(".", os.O_RDONLY)
    finally:
        os.chdir(home)


@pytest.fixture(scope="module")
def odd_tree(videos, model_folder):
    """Encode a tree with a folder without permission, one beyond the longest path, 1,200 nested ones, and a video
    whose adapter would have too long a name, into another folder."""
    home = Path(tempfile.mkdtemp(prefix="v2l-odd-"))  # not pytest's own, which it would fail to remove
    try:
        fill_oddly(fill(home / "tree", a=videos[0], z=videos[0]), videos[0])
        words = ["encode", "-r", "tree", "--output-dir", "out"]
        yield Running(*words, cwd=home, model=model_folder, prepare=obey_permissions).end()
    finally:
        subprocess.run(["chmod", "-R", "u+rwx", home], check=True)
        subprocess.run(["rm", "-rf", home], check=True)


def fill_oddly(folder, video):
    nested = nest(folder, ["nested", *"d" * 1200])
    long = nest(folder, ["long", *["e" * 250] * 20])
    for place in (nested, long):
        shutil.copyfile(video, f"/proc/self/fd/{place}/deep.mp4")
        os.close(place)
    fill(folder / "lost+found", unseen=video)
    fill(folder / "named", **{"漢" * 75: video, "字" * 81: video})
    (folder / "lost+found").chmod(0)


def test_no_folder_stops_the_walk_over_the_others(odd_tree):
    nested = "/".join(["nested", *"d" * 1200])
    assert odd_tree.code == 1
    assert odd_tree.lines == [f"out/{name}{SUFFIX}" for name in ("a", "z", f"named/{'漢' * 75}", f"{nested}/deep")]
    assert counts(odd_tree.notes[-1]) == {"encoded": 4, "failed": 3}


def test_what_was_left_out_of_a_tree_is_a_line_each(odd_tree):
    long, lost, named = sorted(line for line in odd_tree.notes if line.startswith("v2l: error: "))
    assert "tree/lost+found" in lost and "ermission" in lost
    assert "tree/long/" in long and "path is longer than the system allows" in long
    assert (
        "字" in named
        and f"is {81 * 3 + len(SUFFIX)} bytes long; file systems allow at most 255" in named
        and "-o" in named
    )


def test_a_name_that_is_too_long_is_refused_before_the_video_is_looked_at(tmp_path, model_folder):
    """The file is not a video, and is not opened."""
    name = "x" * 241 + ".mp4"
    (tmp_path / name).write_text("no video")
    for options, place, size in (
        (batch.EncodeOptions(Reading()), tmp_path / "new" / "er", 257),
        (batch.EncodeOptions(Reading(), Segmentation(segments=2), split=True), tmp_path, 261),
    ):
        (target,) = find_targets([tmp_path / name], Destination(folder=place), Reading())
        (outcome,) = batch.encode_targets([target], options, ModelLoader(str(model_folder), "option"), batch.Watch())
        assert outcome.status == "failed"
        assert f"is {size} bytes long; file systems allow at most 255; give a shorter one with -o" in outcome.note
    assert tree(tmp_path) == [name]


# Surroundings -------------------------------------------------------------------------------------------------------


def test_a_folder_that_was_deleted_is_the_reason_given(tmp_path, videos, model_folder):
    """The libraries below torch would abort the process."""
    gone = tmp_path / "gone"
    gone.mkdir()
    done = Running("info", videos[0], cwd=gone, model=model_folder, prepare=gone.rmdir).end()
    assert (done.code, done.out) == (1, "")
    assert done.notes == ["v2l: error: the working directory no longer exists; change to one that does"]


def test_python_without_docstrings_encodes_as_always(tmp_path, videos, adapters, model_folder):
    made = tmp_path / "made.v2l.safetensors"
    words = [sys.executable, "-OO", "-m", "v2l", "encode", videos[0], "-o", made, "--model", model_folder]
    done = subprocess.run(words, capture_output=True, text=True, env=surroundings())
    assert (done.returncode, done.stdout) == (0, f"{made}\n"), done.stderr
    assert v2l.Adapter.load(made).sha256() == adapters[0].sha256()


def test_want_of_memory_is_the_reason_given(tmp_path, videos, model_folder, vlm, hypernetwork, monkeypatch):
    def none(*_):
        raise MemoryError

    choice = ModelLoader(str(model_folder), "option")
    choice.vlm, choice.hypernetwork = vlm, hypernetwork
    monkeypatch.setattr(torch, "cat", none)
    target = Target(videos[0], tmp_path / f"a{SUFFIX}")
    with pytest.raises(ModelError, match=r"out of memory on cpu: encoding .* fewer frames \(--frames\), --dtype"):
        list(batch.encode_targets([target, target], batch.EncodeOptions(Reading()), choice, batch.Watch()))


SLOW_SETTINGS = ["--frames", "24", "--fps", "8", "--resolution", "192"]
"""Settings under which a clip takes seconds, so that a batch can be interrupted."""


def test_interrupted_batches_keep_what_was_finished_and_leave_nothing_half_done(tmp_path, videos, model_folder):
    running = {}
    for stop in (signal.SIGINT, signal.SIGTERM):
        here = fill(tmp_path / stop.name, **{f"clip {n}": videos[2] for n in range(8)})
        running[stop] = Running("encode", ".", *SLOW_SETTINGS, cwd=here, model=model_folder)
    for stop, command in running.items():
        wait_for(tmp_path / stop.name / f"clip 0{SUFFIX}", command.process)
        command.process.send_signal(stop)
    for stop, command in running.items():
        done = command.end()
        assert done.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[stop]
        here = tmp_path / stop.name
        finished = sorted(here.glob(f"*{SUFFIX}"))
        assert 1 <= len(finished) < 8
        for adapter in finished:
            v2l.Adapter.load(adapter)
        assert len(tree(here)) == 8 + len(finished), tree(here)  # no temporary, hidden or not
        assert done.lines == [path.name for path in finished][: len(done.lines)]
        assert ("interrupted" in done.err) == (stop == signal.SIGINT)
