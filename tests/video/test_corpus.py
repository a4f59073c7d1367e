"""One `v2l encode` over a folder of all kinds of files, with an expected outcome for each.

The second test adds files that OpenCV cannot write, if ffmpeg is installed.
"""

import os
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import small
from places import DATA
from terminal import SUFFIX, run

FRAMES = "encoded"
"""The outcome of every file that is a video."""


def write_clip(path, fourcc="mp4v", frames=12, fps=8.0, width=64, height=48):
    """Write a moving grey gradient in any container and codec of OpenCV."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*fourcc), fps, (width, height))
    assert writer.isOpened(), path
    for index in range(frames):
        row = (np.arange(width) * 2 + index * 8) % 256
        writer.write(np.repeat(np.tile(row, (height, 1))[..., None], 3, axis=2).astype(np.uint8))
    writer.release()
    return path


def with_opencv(folder):
    """Write the files and return their outcomes by name: FRAMES, or a part of the error."""
    clip = write_clip(folder / "plain.mp4").read_bytes()
    outcomes = {
        "plain.mp4": FRAMES,
        "one frame.mp4": FRAMES,
        "odd sizes.avi": FRAMES,
        "8K.mp4": FRAMES,
        "VP9.webm": FRAMES,
        "wrong extension.avi": FRAMES,
        "no video by its name.dat": FRAMES,
        "\N{SNOWMAN} \N{CYRILLIC SMALL LETTER YA}.mp4": FRAMES,
        "two\nlines.mp4": FRAMES,
        "%d pattern.mp4": FRAMES,
        "concat:plain.mp4": FRAMES,
        "[red]markup[-].mp4": FRAMES,
        "link.mp4": FRAMES,
        "zero bytes.mp4": "is empty (0 bytes)",
        "header only.mp4": "no video stream",
        "noise.mp4": "no video stream",
        "a folder.mp4": "holds no videos",
        "playlist.m3u8": "is a playlist that names other files",
        "script.ffconcat": "is a concat script that names other files",
        "session.sdp": "is a session description (SDP) that names other files",
        "manifest.mpd": "is a DASH manifest that names other files",
        "dangling.mp4": "No such file",
        "pipe.mp4": "a device, pipe or socket",
        "zero device.mp4": "a device, pipe or socket",
        "adapter.mp4": "no video stream",
    }
    write_clip(folder / "one frame.mp4", frames=1)
    write_clip(folder / "odd sizes.avi", "MJPG", width=63, height=47)
    write_clip(folder / "8K.mp4", frames=2, width=7680, height=4320)
    write_clip(folder / "VP9.webm", "VP90")
    for name in ("wrong extension.avi", "no video by its name.dat", *list(outcomes)[7:12]):
        (folder / name).write_bytes(clip)
    (folder / "link.mp4").symlink_to("plain.mp4")
    (folder / "zero bytes.mp4").touch()
    (folder / "header only.mp4").write_bytes(clip[:40])
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "a folder.mp4").mkdir()
    (folder / "playlist.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nplain.mp4\n")
    (folder / "script.ffconcat").write_text("ffconcat version 1.0\nfile plain.mp4\n")
    (folder / "session.sdp").write_text("v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n")
    (folder / "manifest.mpd").write_text('<?xml version="1.0"?><MPD></MPD>')
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "zero device.mp4").symlink_to("/dev/zero")
    shutil.copy(next((DATA / "golden").iterdir()), folder / "adapter.mp4")
    # cut at many points: an error, never a silently shortened video
    for tenths in range(1, 10):
        outcomes[f"cut at {tenths}0%.mp4"] = "cut at"
        (folder / f"cut at {tenths}0%.mp4").write_bytes(clip[: len(clip) * tenths // 10])
    avi = write_clip(folder / "whole.avi", "MJPG", frames=40).read_bytes()
    (folder / "whole.avi").unlink()
    for tenths in range(2, 10, 2):
        outcomes[f"AVI cut at {tenths}0%.avi"] = "40 frames" if tenths > 2 else "cut at"
        (folder / f"AVI cut at {tenths}0%.avi").write_bytes(avi[: len(avi) * tenths // 10])
    return outcomes


FFMPEG = {
    "variable rate.mp4": "-i in.mp4 -vf setpts='if(gt(N\\,5)\\,PTS*3\\,PTS)' -fps_mode vfr",
    "ten bit.mkv": "-i in.mp4 -pix_fmt yuv420p10le -c:v ffv1",
    "grey.mkv": "-i in.mp4 -pix_fmt gray -c:v ffv1",
    "alpha.mkv": "-i in.mp4 -pix_fmt yuva420p -c:v ffv1",
    "1x1.mkv": "-i in.mp4 -vf scale=1:1 -pix_fmt yuv444p -c:v ffv1",
    "many audio tracks.mkv": "-i in.mp4 -f lavfi -i sine=d=1.5 " + "-map 0:v " + "-map 1:a " * 20 + "-c:a pcm_s16le",
    "audio only.mp4": "-f lavfi -i sine=d=1 -c:a aac",
    "picture.png": "-i in.mp4 -frames:v 1",
}


def with_ffmpeg(folder, scratch):
    write_clip(scratch / "in.mp4")
    for name, options in FFMPEG.items():
        command = f"ffmpeg -hide_banner -loglevel error -y {options} '{folder / name}'"
        made = subprocess.run(command, shell=True, cwd=scratch, capture_output=True)
        assert made.returncode == 0, (name, made.stderr)
    return dict.fromkeys(FFMPEG, FRAMES) | {
        "audio only.mp4": "sound without video",
        "picture.png": "an image, not a video",
    }


def check(folder, outcomes, model_folder):
    """Run one command over all files and check that each has its own outcome."""
    done = run("encode", *(f"./{name}" for name in sorted(outcomes)), "--json", cwd=folder, model=model_folder)
    assert done.code == 1
    records = {os.path.basename(record["video"]): record for record in done.records}
    assert records.keys() == outcomes.keys()
    for name, outcome in outcomes.items():
        record = records[name]
        if outcome == FRAMES:
            assert record["status"] == "encoded", record
            assert (folder / record["adapter"]).exists() and record["frames"] >= 1
        else:
            assert record["status"] == "failed" and outcome in record["error"], record
            assert "\n" not in record["error"] and record["error"].isprintable()
    kept = [path.name for path in folder.iterdir() if path.name.endswith(SUFFIX)]
    assert len(kept) == list(outcomes.values()).count(FRAMES)


def test_every_file_has_its_outcome(model_folder, tmp_path):
    check(tmp_path, with_opencv(tmp_path), model_folder)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_every_file_of_ffmpegs_has_its_outcome(model_folder, tmp_path):
    (tmp_path / "clips").mkdir()
    check(tmp_path / "clips", with_ffmpeg(tmp_path / "clips", tmp_path), model_folder)
    small.write_video(tmp_path / "after.mp4")
    assert run("encode", "after.mp4", cwd=tmp_path, model=model_folder).code == 0
