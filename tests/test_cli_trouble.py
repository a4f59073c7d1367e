"""Videos that cannot be read, machines that lack something, readers that leave, people who press Ctrl-C."""

import os
import signal
import wave

import pytest
from terminal import (
    LIBGL_MISSING,
    SUFFIX,
    Running,
    counts,
    fill,
    nobody_reads,
    obey_permissions,
    run,
    tree,
    wait_for,
)

import v2l

ADDRESS = "http://example.org/a.mp4"
UNDECODABLE = os.fsdecode(b"na\xffme.mp4")


@pytest.fixture(scope="module")
def wreckage(tmp_path_factory, videos, model_folder):
    """A folder where only good.mp4 is a video that can be encoded, and what a batch over all of it does."""
    names = ["good", "locked", "last", "address"]
    folder = fill(tmp_path_factory.mktemp("wreckage"), **dict.fromkeys(names, videos[0]))
    (folder / "locked.mp4").chmod(0)
    (folder / "last.mp4").rename(folder / UNDECODABLE)
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
    "audio.mp4": "no video stream",
    "truncated.mp4": "truncated.mp4",
    "text.mp4": "no video stream",
    "locked.mp4": "ermission",
    "dir.mp4": "no videos",
    "no videos here": "no videos",
    "dangling.mp4": "dangling.mp4",
    "pipe.mp4": "pipe",
    ADDRESS: "local",
    UNDECODABLE: "not UTF-8",
    "sealed": "ermission",
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
    name = {UNDECODABLE: ascii(UNDECODABLE)[1:-1], ADDRESS: "example.org/a.mp4"}.get(given, given)
    (line,) = (line for line in lines if name in line)
    assert BROKEN[given] in line


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
    """Two commands at once: one that meets a failure in its middle, and one that nobody listens to."""
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


def test_a_machine_without_libgl_gets_one_line_that_names_the_package(tmp_path, videos, model_folder):
    """As a server without a desktop has it; a cv2 that fails exactly so stands in front of the real one."""
    fill(tmp_path / "here", talk=videos[0])
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2" / "__init__.py").write_text(LIBGL_MISSING)
    env = {"PYTHONPATH": str(tmp_path)}
    encoding = Running("encode", "talk.mp4", cwd=tmp_path / "here", model=model_folder, env=env)
    version = run("--version", "--json", env=env)
    done = encoding.end()
    assert (done.code, done.out) == (1, "")
    assert tree(tmp_path / "here") == ["talk.mp4"]
    (line,) = (line for line in done.notes if line.startswith("v2l: error: "))
    assert "libgl1" in line
    assert version.code == 0
    assert version.records[0]["versions"]["v2l"] == v2l.__version__


def test_nobody_reads_stdout_any_more_and_the_files_are_written_all_the_same(cut_short):
    """What `v2l encode folder | head -1` comes to, at its worst: the reader left before the first line."""
    here, done = cut_short[1]
    assert done.code == 0
    assert counts(done.err.strip()) == {"encoded": 3}
    for name in "abc":
        v2l.Adapter.load(here / f"{name}{SUFFIX}")


SLOW_SETTINGS = ["--frames", "24", "--fps", "8", "--resolution", "192"]
"""Seconds of work for a clip, so that there is a middle of a batch to interrupt."""


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
