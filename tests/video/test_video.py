"""Probing and reading of files written here: safe opening, true counts and times, sparse reads equal to sequential."""

import multiprocessing
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import wave

import cv2
import numpy as np
import pytest
from places import CLIPS, ROOT

from v2l.errors import V2LError
from v2l.video.container import open_source
from v2l.video.decoder import Decoder, frames_to_decode
from v2l.video.probe import probe, read_frames
from v2l.video.sampling import choose_frames

SIDE = 64
CELL = SIDE // 4


def numbered(index):
    """Return pixels (64, 64, 3) whose 4 x 4 light and dark cells encode the index in binary, safe from compression."""
    bits = [(index >> bit) & 1 for bit in range(16)]
    grey = np.kron(np.array(bits, np.uint8).reshape(4, 4) * 200 + 25, np.ones((CELL, CELL), np.uint8))
    return np.repeat(grey[..., None], 3, axis=2)


def number_of(pixels):
    cells = pixels[..., 0].reshape(4, CELL, 4, CELL).mean(axis=(1, 3)).ravel()
    return sum(int(value > 128) << bit for bit, value in enumerate(cells))


def write(path, frames, fps=30.0, fourcc="mp4v"):
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*fourcc), fps, (SIDE, SIDE))
    assert writer.isOpened()
    for index in range(frames):
        writer.write(numbered(index))
    writer.release()
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", 300)


def edit_box(data, names, change):
    """Replace the payload of one MP4 box, found by its path of names, and adjust the sizes.

    The sample data must precede the index, as in files that OpenCV writes.
    """
    out, at = b"", 0
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + size]
        if kind == names[0]:
            body = change(body) if len(names) == 1 else edit_box(body, names[1:], change)
        out += struct.pack(">I4s", len(body) + 8, kind) + body
        at += size
    return out


def refused(path):
    with pytest.raises(V2LError) as caught:
        probe(path)
    message = str(caught.value)
    assert "\n" not in message and os.path.basename(str(path)).split("\n")[0] in message
    return message


@pytest.mark.parametrize("name, fourcc", [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.webm", "VP80"), ("a.webm", "VP90")])
def test_count_rate_times_and_order(tmp_path, name, fourcc):
    video = probe(write(tmp_path / name, 75, 25.0, fourcc))
    assert (video.frame_count, video.fps, video.duration, video.width, video.height) == (75, 25.0, 3.0, SIDE, SIDE)
    frames = list(read_frames(video, range(75)))
    assert [number_of(frame.pixels) for frame in frames] == [frame.index for frame in frames] == list(range(75))
    assert [frame.seconds for frame in frames] == [round(i / 25, 6) for i in range(75)]
    assert frames[0].pixels.shape == (SIDE, SIDE, 3) and frames[0].pixels.dtype == np.uint8


def test_colours_are_rgb(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "r.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 5, (SIDE, SIDE))
    writer.write(np.full((SIDE, SIDE, 3), (0, 0, 255), np.uint8))
    writer.release()
    (frame,) = read_frames(probe(tmp_path / "r.avi"), [0])
    assert frame.pixels[..., 0].min() > 200 and frame.pixels[..., 1:].max() < 60


def test_sparse_reads_are_the_sequential_pixels(clip):
    video = probe(clip)
    every = [frame.pixels for frame in read_frames(video, range(300))]
    for indices in ([299], [0], [0, 299], [1, 100, 101, 250], list(range(7, 300, 41)), choose_frames(video, 12)):
        for frame in read_frames(video, indices):
            assert number_of(frame.pixels) == frame.index
            assert np.array_equal(frame.pixels, every[frame.index])


def test_twelve_frames_of_an_hour_decode_under_a_twentieth(tmp_path):
    video = probe(write(tmp_path / "hour.mp4", 36000, 10.0))
    assert video.duration == 3600
    indices = choose_frames(video, 12)
    with open_source(video.path, "hour.mp4") as source:
        decoder = Decoder(source, video, keep_damaged=False, heartbeat=lambda: None)
        numbers = [number_of(frame.pixels) for frame in decoder.frames(indices)]
    assert numbers == indices and len(numbers) == 12
    assert decoder.decoded == frames_to_decode(video, indices) < 36000 / 20


def stretched(clip):
    """Return the clip's bytes with frames 100 to 249 shown four times as long."""

    def stretch(body):
        _, count, delta = struct.unpack(">III", body[4:16])
        return body[:4] + struct.pack(">7I", 3, 100, delta, 150, 4 * delta, count - 250, delta)

    return edit_box(clip.read_bytes(), [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"], stretch)


def test_variable_rate_keeps_true_times_and_frames(clip, tmp_path):
    path = tmp_path / "variable.mp4"
    longer = struct.pack(">I", 30000)  # the edit list's duration, in milliseconds, would cut the slower clip
    elst = [b"moov", b"trak", b"edts", b"elst"]
    path.write_bytes(edit_box(stretched(clip), elst, lambda body: body[:8] + longer + body[12:]))
    video = probe(path)
    paces = np.concatenate([np.full(100, 1 / 30), np.full(150, 4 / 30), np.full(49, 1 / 30)])
    expected = np.concatenate([[0.0], np.cumsum(paces)])
    assert not video.constant_rate and video.frame_count == 300
    assert np.abs(video.seconds - expected).max() < 0.002
    assert video.fps == pytest.approx(300 / (expected[-1] + 1 / 30), rel=1e-3)
    assert video.duration == pytest.approx(expected[-1] + 1 / 30, abs=0.002)
    for indices in ([290], [50, 240], list(range(3, 300, 37))):
        assert [number_of(frame.pixels) for frame in read_frames(video, indices)] == indices
    assert all(5 <= video.seconds[i] < 12 for i in choose_frames(video, 12, start=5, end=12))


def test_frames_hidden_by_an_edit_list_are_not_missing(clip, tmp_path):
    path = tmp_path / "edited.mp4"
    path.write_bytes(stretched(clip))  # its edit list still ends at ten seconds
    video = probe(path)
    assert 140 <= video.frame_count <= 160
    assert [number_of(f.pixels) for f in read_frames(video, [0, 139])] == [0, 139]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotated_clips_come_out_upright(clip, tmp_path, turns):
    matrix = {0: (1, 0, 0, 1), 1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[turns]

    def rotate(body):
        a, b, c, d = (value << 16 for value in matrix)
        return body[:40] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + body[76:]

    path = tmp_path / "rotated.mp4"
    path.write_bytes(edit_box(clip.read_bytes(), [b"moov", b"trak", b"tkhd"], rotate))
    (frame,) = read_frames(probe(path), [173])
    assert number_of(np.rot90(frame.pixels, turns)) == 173


def test_a_wide_clip_turned_is_tall(tmp_path):
    path = tmp_path / "wide.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 64))
    for _ in range(5):
        writer.write(np.zeros((64, 128, 3), np.uint8))
    writer.release()
    turn = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    tkhd = [b"moov", b"trak", b"tkhd"]
    path.write_bytes(edit_box(path.read_bytes(), tkhd, lambda body: body[:40] + turn + body[76:]))
    video = probe(path)
    (frame,) = read_frames(video, [2])
    assert (video.width, video.height, frame.pixels.shape) == (64, 128, (128, 64, 3))


def test_closing_early_releases_the_file(clip):
    video = probe(clip)
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    frames = read_frames(video, range(300))
    assert next(frames).index == 0
    frames.close()
    if before is not None:
        assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("indices", [[3, 2], [3, 3], [-1], [300]])
def test_wrong_indices_are_refused(clip, indices):
    with pytest.raises(V2LError, match="indices"):
        next(read_frames(probe(clip), indices))


def test_header_that_promises_too_much_is_an_error_with_both_numbers(tmp_path):
    whole = write(tmp_path / "whole.avi", 100, 25.0, "MJPG").read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: len(whole) // 2])
    message = refused(cut)
    assert "promises 100 frames" in message and "can be decoded" in message


def test_a_slightly_wrong_count_is_corrected(tmp_path):
    data = write(tmp_path / "whole.avi", 100, 25.0, "MJPG").read_bytes()
    at = data.index(b"strh") + 8 + 32
    assert struct.unpack("<I", data[at : at + 4]) == (100,)
    path = tmp_path / "lie.avi"
    path.write_bytes(data[:at] + struct.pack("<I", 104) + data[at + 4 :])
    assert probe(path).frame_count == 100
    path.write_bytes(data[:at] + struct.pack("<I", 200) + data[at + 4 :])
    assert "promises 200 frames" in refused(path) and "100 can be decoded" in refused(path)


def test_a_frame_lost_since_the_probe_is_named(tmp_path):
    path = tmp_path / "clip.avi"
    write(path, 100, 25.0, "MJPG")
    video = probe(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(V2LError, match=r"clip\.avi.* is damaged at 0:03\.6 "):
        list(read_frames(video, [0, 90]))


def test_files_that_hold_no_video(tmp_path, clip):
    (tmp_path / "zero.mp4").touch()
    assert "empty" in refused(tmp_path / "zero.mp4")
    (tmp_path / "head.mp4").write_bytes(clip.read_bytes()[:2000])
    refused(tmp_path / "head.mp4")
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 64)
    refused(tmp_path / "noise.mp4")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    assert "sound without video" in refused(tmp_path / "sound.wav")


def wiped(data, which):
    """Return the bytes of an MJPG AVI with the packets of these frames zeroed."""
    data = bytearray(data)
    at, stop, frame = data.index(b"movi") + 4, data.index(b"idx1"), 0
    while at < stop:
        size = struct.unpack("<I", data[at + 4 : at + 8])[0]
        if frame in which:
            data[at + 8 : at + 8 + size] = bytes(size)
        at += 8 + size + size % 2
        frame += 1
    return data


def test_undecodable_frames_are_an_error(tmp_path):
    path = tmp_path / "a.avi"
    path.write_bytes(wiped(write(path, 20, 25.0, "MJPG").read_bytes(), range(20)))
    assert "no frame" in refused(path)


def test_a_damaged_frame_is_named_and_shifts_no_other(tmp_path):
    path = tmp_path / "a.avi"
    path.write_bytes(wiped(write(path, 100, 25.0, "MJPG").read_bytes(), [55]))
    video = probe(path)
    assert video.frame_count == 100
    for indices in ([54, 56], [90], [*range(55), 56, 57, 99]):
        assert [number_of(frame.pixels) for frame in read_frames(video, indices)] == indices
    for indices in ([55], range(100)):
        with pytest.raises(V2LError, match=r"a\.avi.* is damaged at 0:02\.2 .*--keep-damaged"):
            list(read_frames(video, indices))
    kept = list(read_frames(video, range(100), keep_damaged=True))
    assert [frame.index for frame in kept] == list(range(100))
    assert [frame.index for frame in kept if frame.damage] == [55]
    assert kept[55].notes == ("damaged at 0:02.2, kept",)


def test_only_regular_files_are_opened(tmp_path, clip):
    assert "folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "pipe" in refused(tmp_path / "pipe.mp4")
    assert "device" in refused("/dev/zero")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    assert "device" in refused(tmp_path / "zero.mp4")
    (tmp_path / "link.mp4").symlink_to(clip)
    assert probe(tmp_path / "link.mp4").frame_count == 300
    for name in ("missing.mp4", "a\0b.mp4", "img_%02d.jpg", "concat:a.mp4|b.mp4", "rtsp://127.0.0.1/a"):
        with pytest.raises(V2LError):
            probe(name)


def test_names_are_never_patterns_or_protocols(tmp_path, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("clip_%02d.mp4", "concat:clip.mp4", "data:clip.mp4", "üñí 视频.mp4", "new\nline.mp4"):
        shutil.copy(clip, name)
        assert probe(name).frame_count == 300
    for index in range(3):
        cv2.imwrite(f"img_{index:02d}.jpg", numbered(index))
    shutil.copy("img_00.jpg", "img_%02d.jpg")
    refused("img_%02d.jpg")


def test_a_url_makes_no_connection():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)  # a connection would be waiting by then
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"
        assert "local files" in refused(url)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    "text, says",
    [
        ("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{clip}\n#EXT-X-ENDLIST\n", "playlist"),
        ("ffconcat version 1.0\nfile '{clip}'\n", "concat script"),
        ("v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n", "SDP"),
        ('<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011">{clip}</MPD>', "DASH"),
        ("[playlist]\nFile1={clip}\n", "playlist"),
        ("ID3\x03\0\0\0\0\0\0#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{clip}\n#EXT-X-ENDLIST\n", ""),
    ],
)
def test_files_that_name_other_files_are_refused(tmp_path, clip, text, says):
    path = tmp_path / "list.mp4"
    path.write_text(text.format(clip=clip))
    assert says in refused(path)


def test_no_permission(tmp_path, clip):
    path = tmp_path / "secret.mp4"
    shutil.copy(clip, path)
    path.chmod(0)
    # Root may read everything, so the test runs in a process that switches to another user.
    script = (
        "import os, sys\nfrom v2l.video.probe import probe, V2LError\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: probe(sys.argv[1])\nexcept V2LError as error: print(error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, env=checkout_env())
    assert "no permission" in run.stdout, run.stderr


def checkout_env(**extra):
    return os.environ | {"PYTHONPATH": str(ROOT)} | extra


def test_a_damaged_file_leaves_stderr_to_us(tmp_path, clip):
    path = tmp_path / "bad.mp4"
    path.write_bytes(clip.read_bytes()[:3000])
    script = "import sys\nfrom v2l.video.probe import probe, V2LError\ntry: probe(sys.argv[1])\nexcept V2LError: pass"
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, env=checkout_env())
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_decoder_that_does_not_load_is_one_line(tmp_path, clip):
    (tmp_path / "av.py").write_text("raise ImportError('no libavcodec')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    script = (
        "import sys\nfrom v2l.video.probe import probe, V2LError\n"
        "try: probe(sys.argv[1])\nexcept V2LError as e: print(e)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, clip], capture_output=True, text=True, env=checkout_env(PYTHONPATH=path)
    )
    assert "no libavcodec" in run.stdout and "pip install av" in run.stdout and run.stdout.count("\n") == 1, run.stderr


def in_worker(path):
    video = probe(path)
    frames = list(read_frames(video, [0, 150, 299]))
    return video, [pickle.loads(pickle.dumps(f)).index for f in frames], {"torch", "transformers"} & set(sys.modules)


def test_works_in_a_spawned_worker_without_torch(clip):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        video, indices, heavy = pool.apply(in_worker, (str(clip),))
    assert video == probe(clip) and indices == [0, 150, 299] and not heavy
    assert [number_of(frame.pixels) for frame in read_frames(video, indices)] == indices


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs ffmpeg")
@pytest.mark.parametrize(
    "name, options",
    [
        ("b.mp4", "-bf 3 -g 100"),
        ("open.mkv", "-bf 3 -g 50 -x264-params open-gop=1"),
        ("refresh.ts", "-x264-params intra-refresh=1:keyint=50"),
    ],
)
def test_b_frames_open_groups_and_refresh(tmp_path, clip, name, options):
    path = tmp_path / name
    encode = ["-c:v", "libx264", "-pix_fmt", "yuv420p", *options.split()]
    done = subprocess.run(["ffmpeg", "-v", "error", "-i", clip, *encode, path], capture_output=True, text=True)
    if "Unknown encoder" in done.stderr:
        pytest.skip("needs ffmpeg")
    video = probe(path)
    every = [frame.pixels for frame in read_frames(video, range(video.frame_count))]
    assert [number_of(pixels) for pixels in every] == list(range(300))
    for index in range(0, 300, 7):
        (frame,) = read_frames(video, [index])
        assert np.array_equal(frame.pixels, every[index]), index


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs the real clips")
@pytest.mark.parametrize(
    "name, count, fps, size",
    [
        ("Tarsier_20.mp4", 56, 8, (1904, 1024)),
        ("v_00014063_0.mp4", 314, 30, (1280, 720)),
        ("v_00016555_0.mp4", 180, 30, (1280, 720)),
    ],
)
def test_real_clips(name, count, fps, size):
    video = probe(CLIPS / name)
    assert (video.frame_count, video.fps, (video.width, video.height)) == (count, fps, size)
    indices = choose_frames(video, 12)
    wanted = set(indices)
    every = {f.index: f.pixels for f in read_frames(video, range(count)) if f.index in wanted}
    for frame in read_frames(video, indices):
        assert np.array_equal(frame.pixels, every[frame.index])
        assert frame.seconds == round(frame.index / fps, 6)
