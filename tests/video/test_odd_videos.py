"""Every kind of `odd_videos` is read with the right frames, times, size and colours, or refused for the right reason.

The slow tests cover the rarer kinds, and compare the expected times with those of ffprobe in a table:

    python -m pytest -m slow tests/video/test_odd_videos.py -s
"""

import json
import re
import shutil
import subprocess

import numpy as np
import odd_videos
import pytest
from odd_videos import KINDS, Kind

from v2l.errors import V2LError
from v2l.video import client
from v2l.video.probe import probe, read_frames
from v2l.video.sampling import choose_frames

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
SLOW = [pytest.param(name, marks=pytest.mark.slow) if kind.slow else name for name, kind in KINDS.items()]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder shared by all xdist workers; `odd_videos.make` writes each file once."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if base.name.startswith("popen-") else base) / "odd videos"
    shared.mkdir(exist_ok=True)
    return shared


def read_by_ffmpeg(path, stream, options, sizes):
    """Return the frames (H, W, 3) of a stream, converted by ffmpeg with these output options."""
    command = ["ffmpeg", "-v", "quiet", "-nostdin", "-i", str(path), "-map", f"0:{stream}", *options.split()]
    command += ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    width, height = sizes[0]
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)


def check_pixels(path, kind: Kind, frames, stream):
    upright = kind.upright or (lambda pixels: pixels)
    if kind.levels is not None:
        pairs = zip(kind.numbers, frames, strict=True)
        errors = [np.abs(odd_videos.cells_of(upright(f.pixels)) - odd_videos.colours(n)).max() for n, f in pairs]
        assert max(errors) <= kind.levels, errors
    if kind.like is None:
        return
    width, height = kind.size
    scaled = f"{kind.like},scale={width}:{height}" if "-vf" in kind.like else kind.like
    expected = read_by_ffmpeg(path, stream, scaled, [kind.size]).astype(float)
    difference = expected - np.array([frame.pixels for frame in frames])
    if kind.decibels is None:
        assert np.abs(difference).max() <= kind.most
    else:
        assert (difference**2).mean() <= 255**2 / 10 ** (kind.decibels / 10)


@pytest.mark.parametrize("name", SLOW)
def test_is_read_right_or_refused_for_its_reason(name, folder):
    kind = KINDS[name]
    path = odd_videos.make(name, folder)
    if kind.refused:
        with pytest.raises(V2LError) as caught:
            list(read_frames(video := probe(path), range(video.frame_count)))
        message = str(caught.value)
        assert re.search(kind.refused, message) and name in message and message.isprintable()
        return
    video = probe(path)
    frames = list(read_frames(video, range(video.frame_count)))
    upright = kind.upright or (lambda pixels: pixels)
    assert [odd_videos.number_of(upright(frame.pixels)) for frame in frames] == list(kind.numbers)
    assert video.frame_count == len(frames) and [frame.index for frame in frames] == list(range(len(frames)))
    assert np.array_equal(video.seconds, [frame.seconds for frame in frames])
    assert np.abs(video.seconds - np.array(kind.times)).max() <= kind.within and (np.diff(video.seconds) > 0).all()
    assert (video.width, video.height) == kind.size
    sizes = [frame.pixels.shape[1::-1] for frame in frames]
    assert sizes == list(kind.sizes or [kind.size] * len(frames))
    check_pixels(path, kind, frames, video.stream)
    assert kind.stream is None or video.stream == kind.stream
    notes = {*video.notes, *(note for frame in frames for note in getattr(frame, "notes", ()))}
    for pattern in kind.notes:
        assert any(re.search(pattern, note) for note in notes), notes
    some = sorted({len(frames) // 3, len(frames) * 3 // 4, len(frames) - 1})
    for frame in read_frames(video, some):
        assert np.array_equal(frame.pixels, frames[frame.index].pixels)


def shown_by_ffprobe(path, stream):
    """Return the seconds of each frame from the container's start time, or from its first frame; NaN if unknown."""
    asked = "format=start_time:frame=best_effort_timestamp_time,width"
    command = ["ffprobe", "-v", "quiet", "-of", "json", "-select_streams", str(stream), "-show_entries", asked]
    found = json.loads(subprocess.run([*command, str(path)], capture_output=True, check=True).stdout)
    times = [float(frame.get("best_effort_timestamp_time", "nan")) for frame in found["frames"] if "width" in frame]
    return np.sort(np.array(times) - float(found["format"].get("start_time", times[0])))


@pytest.mark.slow
def test_the_right_times_are_those_of_ffprobe(folder):
    compared = 0
    for name, kind in KINDS.items():
        if kind.refused or kind.truth != "ffprobe":
            continue
        path = odd_videos.make(name, folder)
        video = probe(path)
        theirs = shown_by_ffprobe(path, video.stream)
        assert len(theirs) == video.frame_count, name
        known = ~np.isnan(theirs)  # the last frames may lack a time because of the decoder's delay
        worst = np.abs(video.seconds - theirs)[known].max()
        print(f"| {name} | {video.frame_count} | {video.seconds[0]:.3f} | {video.seconds[-1]:.3f} | {worst:.4f} |")
        assert worst <= kind.within, name
        compared += 1
    assert compared >= 40


@pytest.mark.slow
def test_one_worker_reads_them_all(folder, monkeypatch):
    """Sound and damaged files in any order: none of them ends the worker process."""
    worker = client.WorkerProcess()
    monkeypatch.setattr(client, "_worker", worker)
    outcomes = {"read": 0, "refused": 0}
    try:
        for name, kind in KINDS.items():
            path = odd_videos.make(name, folder)
            try:
                video = client.probe(path)
                list(client.read_frames(video, choose_frames(video, 12)))
                outcomes["read"] += 1
            except V2LError as error:
                assert kind.refused and "decoder" not in str(error), (name, error)
                outcomes["refused"] += 1
            if name == next(iter(KINDS)):
                first = worker.process.pid
        assert worker.process.pid == first
        assert outcomes["read"] >= 200 and outcomes["refused"] >= 15, outcomes
    finally:
        worker.close()
