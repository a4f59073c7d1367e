"""Adapters of an earlier reading revision are stale, with a reason, if it misread the video, and else current."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import odd_videos
import pytest
from terminal import run

import v2l
from v2l.inference.encode import encode_reading
from v2l.inference.staleness import misread
from v2l.io.files import identify
from v2l.video.sampling import READING_REVISION, Reading, decoded_by, revision_of

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


def read_by_opencv(adapter: v2l.Adapter, **changes) -> v2l.Adapter:
    """Describe the adapter as the first revision of 0.1.0 did."""
    segment = replace(adapter.description.segments[0], decoder="opencv 5.0.0", **changes)
    return replace(adapter, description=replace(adapter.description, segments=(segment,)))


def test_the_revision_stands_behind_the_version_and_before_the_notes():
    assert revision_of("opencv 5.0.0") == 1
    assert revision_of(decoded_by("PyAV 18.1.0 (FFmpeg 8.1.2)", [])) == READING_REVISION
    assert revision_of(decoded_by("PyAV 18.1.0 (FFmpeg 8.1.2)", ["deinterlaced, reading 9"])) == READING_REVISION


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd videos")
    return lambda name: odd_videos.make(name, folder)


@pytest.mark.parametrize(
    "name, changes, reason",
    [
        ("plain.mp4", {}, ""),
        ("interlaced top.mp4", {}, "interlaced"),
        ("late.ts", {"late": True}, "times"),
        ("anamorphic.mp4", {"width": 64}, "frame size"),
        ("damaged.mp4", {}, "damaged frames"),
    ],
)
def test_only_what_an_earlier_version_misread_is_stale(odd, vlm, hypernetwork, tmp_path, name, changes, reason):
    sound = odd("plain.mp4")
    if name == "late.ts":
        video = odd("sound first.ts")
    elif name == "anamorphic.mp4":
        video = tmp_path / name
        again = ["-vf", "setsar=2/1", "-c:v", "libx264", "-y", str(video)]
        subprocess.run(["ffmpeg", "-v", "error", "-i", str(sound), *again], check=True)
    elif name == "damaged.mp4":
        video = tmp_path / name
        data = bytearray(sound.read_bytes())
        start = data.index(b"mdat") + 2000
        data[start : start + 400] = bytes(np.random.default_rng(0).integers(0, 256, 400, dtype=np.uint8))
        video.write_bytes(data)
    else:
        video = odd(name)
    reading = Reading(keep_damaged=True)
    adapter = encode_reading(video, vlm, hypernetwork, reading)
    segment = adapter.description.segments[0]
    assert revision_of(segment.decoder) == READING_REVISION and misread(video, segment) == ""
    if changes.pop("late", False):
        changes["timestamps"] = tuple(time - segment.timestamps[0] for time in segment.timestamps)
    old = read_by_opencv(adapter, reading=replace(segment.reading, keep_damaged=False), **changes)
    found = misread(video, old.description.segments[0])
    assert (reason in found) if reason else not found


def test_encode_says_why_it_reads_a_misread_video_again(odd, model_folder, vlm, hypernetwork, tmp_path):
    for name in ("plain.mp4", "interlaced top.mp4"):
        shutil.copy(odd(name), tmp_path / name)
        output = tmp_path / f"{name.removesuffix('.mp4')}.v2l.safetensors"
        read_by_opencv(v2l.encode(tmp_path / name, vlm, hypernetwork)).save(output)
    done = run("encode", ".", "--json", cwd=tmp_path, model=model_folder)
    outcomes = {record["video"]: (record["status"], record.get("note", "")) for record in done.records}
    assert outcomes["plain.mp4"] == ("current", "")
    status, note = outcomes["interlaced top.mp4"]
    assert status == "encoded" and "interlaced, which an earlier version misread" in note
    assert "deinterlaced with bwdif" in done.err
    again = run("encode", ".", "--json", cwd=tmp_path, model=model_folder)
    assert [record["status"] for record in again.records] == ["current", "current"]
    assert identify(tmp_path / "plain.mp4").size  # the videos still exist


def test_damaged_frames_are_refused_unless_asked_for_and_marked(odd, model_folder, tmp_path):
    data = bytearray(odd("plain.mp4").read_bytes())
    start = data.index(b"mdat") + 2000
    data[start : start + 400] = bytes(np.random.default_rng(0).integers(0, 256, 400, dtype=np.uint8))
    (tmp_path / "talk.mp4").write_bytes(data)
    output = tmp_path / "talk.v2l.safetensors"
    refused = run("encode", "talk.mp4", cwd=tmp_path, model=model_folder)
    assert refused.code == 1 and "is damaged at 0:0" in refused.err and "--keep-damaged" in refused.err
    assert not output.exists()
    kept = run("encode", "talk.mp4", "--keep-damaged", cwd=tmp_path, model=model_folder)
    assert kept.code == 0 and "damaged at 0:0" in kept.err
    segment = v2l.Adapter.load(output).description.segments[0]
    assert segment.reading.keep_damaged and "kept" in segment.decoder
    assert "current" in run("encode", "talk.mp4", "--keep-damaged", cwd=tmp_path, model=model_folder).err
    stale = run("encode", "talk.mp4", cwd=tmp_path, model=model_folder)
    assert stale.code == 1 and "is damaged at" in stale.err


def test_a_sound_video_carries_no_mark_of_the_option(videos, model_folder, tmp_path):
    shutil.copy(videos[0], tmp_path / "talk.mp4")
    assert run("encode", "talk.mp4", "--keep-damaged", cwd=tmp_path, model=model_folder).code == 0
    assert not v2l.Adapter.load(tmp_path / "talk.v2l.safetensors").description.segments[0].reading.keep_damaged
    assert "1 current" in run("encode", "talk.mp4", cwd=tmp_path, model=model_folder).err
