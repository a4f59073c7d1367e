"""The decoding worker: what it gives is what video.py gives, and no crash, hang or hunger of it ends anything else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import small

import v2l
from v2l import decoding, video
from v2l.decode_worker import video_from_json, video_to_json
from v2l.decoding import Worker

WANTED = [0, 3, 9, 30, 31]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [small.write_video(folder / f"{n} \N{SNOWMAN}.mp4", seed=n) for n in range(2)]


@pytest.fixture
def worker(monkeypatch):
    """One of this test's own, in the place of the process's."""
    worker = Worker(silence=1.0)
    monkeypatch.setattr(decoding, "_worker", worker)
    yield worker
    worker.close()


def test_a_name_is_meant_from_where_this_process_stands(worker, clips, monkeypatch, tmp_path):
    worker.start()
    monkeypatch.chdir(clips[0].parent)
    seen = decoding.probe(clips[0].name)
    assert alike(decoding.read_frames(seen, WANTED), video.read_frames(video.probe(clips[0]), WANTED))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(v2l.V2LError, match="no file"):
        decoding.probe(clips[0].name)


def alike(frames, others) -> bool:
    pairs = list(zip(frames, others, strict=True))
    return all((a.index, a.seconds) == (b.index, b.seconds) and np.array_equal(a.pixels, b.pixels) for a, b in pairs)


def test_the_worker_gives_what_the_decoder_gives(clips):
    for clip in clips:
        here, there = video.probe(clip), decoding.probe(clip)
        assert here == there
        assert all(np.array_equal(getattr(here, name), getattr(there, name)) for name in ("seconds", "clock", "keys"))
        assert alike(decoding.read_frames(there, WANTED), video.read_frames(here, WANTED))
    assert decoding.decoder_version() == video.load_cv2().__version__


def test_several_files_are_open_at_once(clips):
    videos = [decoding.probe(clip) for clip in clips]
    together = list(zip(*(decoding.read_frames(each, WANTED) for each in videos), strict=True))
    for frames, clip in zip(zip(*together, strict=True), clips, strict=True):
        assert alike(frames, video.read_frames(video.probe(clip), WANTED))


def test_a_video_without_a_clock_crosses_the_border(clips):
    found = video.probe(clips[0])
    bare = video.Video(**{**vars(found), "clock": None, "keys": found.keys[:0]})
    again = video_from_json(*video_to_json(bare))
    assert again == bare and again.clock is None and len(again.keys) == 0
    assert alike(decoding.read_frames(bare, WANTED), video.read_frames(bare, WANTED))


def test_errors_are_the_decoders_own(tmp_path, clips):
    (tmp_path / "empty.mp4").touch()
    for path, says in (
        (tmp_path / "empty.mp4", "is empty"),
        (tmp_path / "gone.mp4", "no file"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(v2l.V2LError, match=says):
            decoding.probe(path)
    with pytest.raises(v2l.V2LError, match="must ascend"):
        list(decoding.read_frames(decoding.probe(clips[0]), [3, 3]))


def test_a_crash_fails_one_file_and_the_next_starts_anew(worker, clips):
    found = decoding.probe(clips[0])
    frames = decoding.read_frames(found, WANTED)
    next(frames)
    os.kill(worker.process.pid, signal.SIGSTOP)  # so that the request below is under way when it dies
    killer = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(0.3); os.kill({worker.process.pid}, 9)"]
    )
    with pytest.raises(v2l.V2LError, match=r"1 .*\.mp4 crashed the decoder \(SIGKILL\); the file is damaged"):
        decoding.probe(clips[1])
    killer.wait()
    # the file that was open meanwhile is opened again and misses nothing
    assert alike(list(frames), list(video.read_frames(video.probe(clips[0]), WANTED))[1:])
    assert decoding.probe(clips[1]).frame_count == 32


def test_a_file_that_is_cut_short_while_it_is_decoded_is_an_error(worker, clips, tmp_path):
    """Too large to be held in the decoder's buffers."""
    path, noise = tmp_path / "large.avi", np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 8.0, (640, 480))
    for _ in range(30):
        writer.write(noise.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    writer.release()
    assert path.stat().st_size > 2**22
    frames = decoding.read_frames(decoding.probe(path), list(range(30)))
    next(frames)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(v2l.V2LError, match=r"large\.avi"):
        list(frames)
    assert decoding.probe(clips[0]).frame_count == 32


def test_a_worker_that_died_between_requests_costs_nothing(worker, clips):
    first = decoding.probe(clips[0])
    worker.process.kill()
    worker.process.wait()
    assert decoding.probe(clips[0]) == first


def test_a_hang_is_an_error(worker, clips):
    decoding.probe(clips[0])
    pid = worker.process.pid
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(v2l.V2LError, match="kept the decoder busy for 1 s without a sign of life"):
        decoding.probe(clips[0])
    assert time.monotonic() - start < 30
    assert not Path(f"/proc/{pid}").exists()
    assert decoding.probe(clips[0]).frame_count == 32


def test_long_work_that_shows_signs_of_life_may_take_its_time(monkeypatch, clips, tmp_path):
    """A second a frame, and a tenth of a second of silence that is allowed for: the decoder's own loop tells."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\n"
        "from v2l import decode_worker, video\n"
        "decode_worker.BEAT = 0.05\n"
        "grab = video.Decoder.grab\n"
        "def slowly(self):\n    time.sleep(0.2)\n    return grab(self)\n"
        "video.Decoder.grab = slowly\n"
    )
    monkeypatch.setattr(
        decoding,
        "_COMMAND",
        f"exec(open({str(slow)!r}).read()); {decoding._COMMAND}".replace(
            "exec", "import sys; sys.path.insert(0, sys.argv[1]); exec", 1
        ),
    )
    worker = Worker(silence=1.5)
    monkeypatch.setattr(decoding, "_worker", worker)
    try:
        start = time.monotonic()
        assert decoding.probe(clips[0]).frame_count == 32
        assert time.monotonic() - start > 1.5
    finally:
        worker.close()


def test_a_file_that_needs_too_much_memory_is_an_error(monkeypatch, tmp_path):
    worker = Worker(memory=700 * 2**20)
    monkeypatch.setattr(decoding, "_worker", worker)
    large = small.write_video(tmp_path / "large.mp4", frames=3, width=7680, height=4320)
    try:
        with pytest.raises(v2l.V2LError, match=r"large\.mp4"):
            list(decoding.read_frames(decoding.probe(large), [0, 1, 2]))
        fine = small.write_video(tmp_path / "fine.mp4")
        assert decoding.probe(fine).frame_count == 32
    finally:
        worker.close()


def test_the_worker_ends_with_its_process(clips):
    script = (
        f"from v2l import decoding; decoding.probe({str(clips[0])!r}); print(decoding._worker.process.pid, flush=True)"
    )
    pid = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    killed = subprocess.run(
        [sys.executable, "-c", f"{script}; import os; os.kill(os.getpid(), 9)"], capture_output=True, text=True
    )
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{each}").exists() for each in (pid, int(killed.stdout))):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_worker_imports_neither_torch_nor_anything_of_the_model():
    script = "import sys, v2l.decode_worker; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "PIL", "safetensors", "typer", "tokenizers"} & set(loaded)
