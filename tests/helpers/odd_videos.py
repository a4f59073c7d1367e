"""Real-world kinds of videos, made by ffmpeg from numbered frames, with the expected results of a correct reader.

`KINDS` maps a file name to its `Kind`: the recipe of the file, and either the expected frames, times, size, pixels and
notes, or a pattern of the expected error. `make(name, folder)` writes a file and its inputs. Every source frame encodes
its number in 4 x 4 cells of known colours, so that the expected values of nearly every file follow from its recipe. A
slow test checks the times against ffprobe (`Kind.truth` names the exceptions).

Conventions. Times are seconds from the container's start time (AVFormatContext.start_time). The video stream is the one
that FFmpeg selects by its `default` disposition, never an attached picture. Sizes are as shown: width scaled by the
sample aspect ratio, height kept, then the display matrix applied. A frame of another size keeps its own size. Wide
gamut and high dynamic range colours are converted by their matrix and range alone, as `ffmpeg -pix_fmt rgb24` does.

    python tests/helpers/odd_videos.py FOLDER        writes every file into FOLDER
"""

import math
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

SIDE = 64
RED, BLUE = (40, 128, 215), (215, 128, 40)


@dataclass(frozen=True)
class Kind:
    """A file and the expected results of reading it.

    command: ffmpeg's arguments without the output; a word `@name` is an input to make first: another kind, a part of
    `PARTS` or `NofWxH.rgb`, N raw numbered frames. edit: makes the bytes of the file from those of the inputs `of`.
    refused: pattern that the error must match; empty for a file that must be read.
    numbers: number encoded in each frame, (N,). times: seconds from the container's start, (N,). within: tolerance of
    the times in seconds, half a frame. size: (width, height) as shown. sizes: the same for each frame if it varies.
    upright: restores the source's orientation of pixels (H, W, 3). levels: tolerance of the cells' colours in
    0 .. 255, None if the codec distorts them. like: ffmpeg's output options for the reference pixels, None to skip
    this. most: greatest difference from that reference in levels; decibels: least PSNR, used instead if given.
    notes: patterns, each matched by some note. stream: index of the video stream in the file, None if unspecified.
    truth: "ffprobe" if ffprobe's times are correct, else the reason why not. slow: used only by slow tests.
    """

    command: str = ""
    edit: Callable[..., bytes] | None = None
    of: Sequence[str] = ()
    refused: str = ""
    numbers: Sequence[int] = ()
    times: Sequence[float] = ()
    within: float = 0.05
    size: tuple[int, int] = (SIDE, SIDE)
    sizes: Sequence[tuple[int, int]] = ()
    upright: Callable[[np.ndarray], np.ndarray] | None = None
    levels: float | None = 24
    like: str | None = None
    most: float = 2
    decibels: float | None = None
    notes: Sequence[str] = ()
    stream: int | None = None
    truth: str = "ffprobe"
    slow: bool = False


KINDS: dict[str, Kind] = {}
PARTS: dict[str, Kind] = {}
"""Files that others are made from, without expected values."""


def colours(number: int) -> np.ndarray:
    """Return the cells that encode `number`, (4, 4, 3) uint8 RGB: green is the bit, red and blue identify the cell."""
    cells = [(RED[k % 3], 225 if number >> k & 1 else 25, BLUE[k // 3 % 3]) for k in range(16)]
    return np.array(cells, np.uint8).reshape(4, 4, 3)


def cells_of(pixels: np.ndarray) -> np.ndarray:
    """Return the mean colours, (4, 4, 3) float, of the centres of the 4 x 4 cells of a picture (H, W, 3)."""
    spots = (np.arange(4)[:, None] + np.linspace(0.3, 0.7, 5)).ravel() / 4
    rows, columns = (spots * pixels.shape[0]).astype(int), (spots * pixels.shape[1]).astype(int)
    return pixels[rows][:, columns].reshape(4, 5, 4, 5, 3).mean((1, 3))


def number_of(pixels: np.ndarray) -> int:
    """Return the number encoded in a picture (H, W, 3)."""
    return sum(int(value > 128) << k for k, value in enumerate(cells_of(pixels)[..., 1].ravel()))


def make(name: str, folder: Path) -> Path:
    """Return the file of this name in `folder`; makes it if it is missing. Safe to call from several processes."""
    path = folder / name
    with FileLock(folder / f".{name}.lock"):
        if not path.exists():
            kind = KINDS.get(name) or PARTS.get(name) or Kind()
            unfinished = folder / f"unfinished {name}"
            _write(kind, name, unfinished, folder)
            unfinished.rename(path)
    return path


def _write(kind: Kind, name: str, path: Path, folder: Path) -> None:
    raw = re.fullmatch(r"(\d+)of(\d+)x(\d+)\.rgb", name)
    if raw:
        count, width, height = map(int, raw.groups())
        with open(path, "wb") as file:
            for number in range(count):
                rows = np.arange(height) * 4 // height
                columns = np.arange(width) * 4 // width
                file.write(colours(number)[rows][:, columns].tobytes())
    elif kind.edit:
        path.write_bytes(kind.edit(*(make(part, folder).read_bytes() for part in kind.of)))
    else:
        part_of = "-f segment" in kind.command
        words = [str(make(word[1:], folder)) if word[0] == "@" else word for word in shlex.split(kind.command)]
        command = [
            "ffmpeg",
            "-v",
            "error",
            "-nostdin",
            "-y",
            "-threads",
            "1",
            *words,
            f"{path}.%d" if part_of else str(path),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
        if part_of:
            Path(f"{path}.1").rename(path)


def drawn(count: int = 40, rate: float | str = 10, width: int = SIDE, height: int = SIDE) -> str:
    """Return ffmpeg's options for an input of `count` numbered frames at `rate` per second."""
    form = f"-f rawvideo -pixel_format rgb24 -video_size {width}x{height} -framerate {rate}"
    return f"{form} -i @{count}of{width}x{height}.rgb"


def steps(count: int, rate: float = 10, start: float = 0) -> list[float]:
    return [start + index / rate for index in range(count)]


def odd(name: str, command: str = "", count: int = 40, rate: float = 10, start: float = 0, **right) -> None:
    """Add a kind. By default, its frames are 0 .. count - 1 at `rate` per second from `start` seconds."""
    if not right.get("refused"):
        numbers = right.setdefault("numbers", range(count))
        right.setdefault("times", steps(len(numbers), rate, start))
        right.setdefault("within", 0.5 / rate)
    assert name not in KINDS, name
    KINDS[name] = Kind(command, **right)


def part(name: str, command: str = "", edit: Callable[..., bytes] | None = None) -> None:
    PARTS[name] = Kind(command, edit)


def h264(more: str = "", key: int = 12, back: int = 3) -> str:
    """Return x264's options: a key frame every `key` frames, `back` B-frames between two others."""
    plan = f"keyint={key}:min-keyint=1:scenecut=0:b-adapt=0:bframes={back}{more and ':' + more}"
    return f"-c:v libx264 -preset veryfast -crf 10 -threads 1 -pix_fmt yuv420p -x264-params {plan}"


def h265(more: str = "", key: int = 12, pixels: str = "yuv420p") -> str:
    plan = f"log-level=none:pools=none:frame-threads=1:keyint={key}:min-keyint=1:scenecut=0:b-adapt=0:bframes=3:crf=10"
    return f"-c:v libx265 -preset ultrafast -pix_fmt {pixels} -x265-params {plan}{more and ':' + more}"


MPEG2 = "-c:v mpeg2video -g 12 -bf 2 -sc_threshold 1000000000 -qscale:v 2"
MPEG4 = "-c:v mpeg4 -bf 2 -g 12 -sc_threshold 1000000000 -qscale:v 2"
VP8 = "-c:v libvpx -auto-alt-ref 1 -lag-in-frames 16 -g 20 -deadline realtime -cpu-used 8 -b:v 2M -threads 1"
VP9 = "-c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 16 -g 20 -deadline good -cpu-used 8 -b:v 2M -threads 1"
AV1 = "-c:v libsvtav1 -preset 12 -qp 12 -g 20 -pix_fmt yuv420p"


# Containers and codecs ------------------------------------------------------------------------------------------------

for form, coder in (("m4a", "aac"), ("mp2", "mp2"), ("opus", "libopus")):
    part(f"10s.{form}", f"-f lavfi -i sine=d=10:f=300:sample_rate=48000 -c:a {coder}")
NO_PTS = "AVI keeps no presentation times"
odd("plain.mp4", f"{drawn()} {h264()}")
odd("no edit list.mp4", "-i @plain.mp4 -c copy -use_editlist 0")
odd("plain.mkv", "-i @plain.mp4 -c copy")
odd("plain.mov", "-i @plain.mp4 -c copy", slow=True)
odd("plain.flv", "-i @plain.mp4 -c copy")
odd("plain.ts", "-i @plain.mp4 -c copy")
odd("plain.m2ts", "-i @plain.mp4 -c copy", slow=True)
odd("plain.nut", "-i @plain.mp4 -c copy", slow=True)
odd("plain.3gp", "-i @plain.mp4 -c copy", slow=True)
odd("plain.asf", f"{drawn()} {h264(back=0)}", slow=True)
odd("raw.h264", "-i @plain25.mp4 -c copy -f h264", 50, 25, truth="the stream has no times; the rate is in its headers")
odd("plain25.mp4", f"{drawn(50, 25)} {h264()}", 50, 25)
odd("in avi.avi", f"{drawn()} {h264(back=0)}")
odd("mjpeg.avi", f"{drawn()} -c:v mjpeg -q:v 2", levels=8)
odd("huffyuv.avi", f"{drawn()} -c:v huffyuv -pix_fmt rgb24", levels=1, like="")
odd("mpeg4.avi", f"{drawn()} {MPEG4}", truth=NO_PTS)
odd("mpeg4.mp4", f"{drawn()} {MPEG4}", slow=True)
odd("h264.avi", "-i @plain.mp4 -c copy -bsf:v h264_mp4toannexb", truth=NO_PTS, slow=True)
odd("msmpeg4.avi", f"{drawn()} -c:v msmpeg4 -q:v 2", slow=True)
odd("msmpeg4v2.avi", f"{drawn()} -c:v msmpeg4v2 -q:v 2", slow=True)
odd("cinepak.avi", f"{drawn(10)} -c:v cinepak", 10, levels=None, slow=True)
odd("raw.avi", f"{drawn(10)} -c:v rawvideo -pix_fmt bgr24", 10, levels=1, like="", slow=True)
odd("wmv1.wmv", f"{drawn()} -c:v wmv1 -q:v 2", slow=True)
odd("wmv2.wmv", f"{drawn()} -c:v wmv2 -q:v 2", slow=True)
odd("sorenson.flv", f"{drawn()} -c:v flv -q:v 2")
odd("theora.ogv", f"{drawn()} -c:v libtheora -q:v 9")
odd("mpeg1.mpg", f"{drawn(50, 25)} -c:v mpeg1video -bf 2 -g 12 -qscale:v 2", 50, 25, slow=True)
odd("mpeg2.mpg", f"{drawn(50, 25)} {MPEG2}", 50, 25)
odd("mpeg2.ts", f"{drawn(50, 25)} {MPEG2}", 50, 25)
odd("mpeg2.m2v", f"{drawn(50, 25)} {MPEG2} -f mpeg2video", 50, 25, truth="the stream has no times", slow=True)
odd("vp8 alt-ref.webm", f"{drawn()} {VP8}")
odd("vp9 alt-ref.webm", f"{drawn()} {VP9}")
odd("vp9.mp4", f"{drawn()} {VP9}", slow=True)
odd("vp9.ivf", "-i @'vp9 alt-ref.webm' -c copy", slow=True)
odd("av1.mp4", f"{drawn()} {AV1}")
odd("av1.webm", "-i @av1.mp4 -c copy")
odd("av1.mkv", "-i @av1.mp4 -c copy", slow=True)
odd("av1.obu", "-i @av1.mp4 -c copy -f obu", slow=True, truth="the stream has no times", rate=25)
odd("av1 of libaom.webm", f"{drawn()} -c:v libaom-av1 -cpu-used 8 -crf 10 -b:v 0 -g 20 -threads 1", slow=True)
odd("av1 ten bit.mkv", f"{drawn(20)} -c:v libsvtav1 -preset 12 -qp 12 -pix_fmt yuv420p10le", 20, levels=32, slow=True)
odd("hevc.mp4", f"{drawn()} {h265()} -tag:v hvc1", slow=True)
odd("hevc open.mp4", f"{drawn()} {h265('open-gop=1')}")
odd(
    "hevc.hevc",
    "-i @'hevc 25.mp4' -c copy -bsf:v hevc_mp4toannexb -f hevc",
    50,
    25,
    truth="the stream has no times",
    slow=True,
)
odd("hevc 25.mp4", f"{drawn(50, 25)} {h265()}", 50, 25, slow=True)
odd("hevc open.ts", "-i @'hevc open.mp4' -c copy")
odd("hevc ten bit.mkv", f"{drawn()} {h265(pixels='yuv420p10le')}")
odd("h264 ten bit.mkv", f"{drawn()} {h264().replace('yuv420p', 'yuv420p10le')}", slow=True)
odd("prores.mov", f"{drawn(20)} -c:v prores_ks -pix_fmt yuv422p10le", 20, levels=8)
odd(
    "dnxhr.mxf",
    f"{drawn(5, 25, 256, 128)} -c:v dnxhd -profile:v dnxhr_hq -pix_fmt yuv422p",
    5,
    25,
    size=(256, 128),
    levels=32,
)
odd("ffv1.mkv", f"{drawn(20)} -c:v ffv1 -pix_fmt bgr0", 20, levels=1)
odd("jpeg2000.mov", f"{drawn(10)} -c:v jpeg2000 -q:v 1", 10, slow=True)
odd("png.mov", f"{drawn(10)} -c:v png -pix_fmt rgb24", 10, levels=0, like="", slow=True)
odd("qtrle.mov", f"{drawn(10)} -c:v qtrle -pix_fmt rgb24", 10, levels=0, like="", slow=True)
odd("v210.mov", f"{drawn(10, 10, 96, 64)} -c:v v210", 10, size=(96, 64), levels=8, slow=True)
odd("utvideo.avi", f"{drawn(10)} -c:v utvideo -pix_fmt gbrp", 10, levels=0, slow=True)
odd("zmbv.avi", f"{drawn(10)} -c:v zmbv -pix_fmt bgr0", 10, levels=0, slow=True)
odd("h263.3gp", f"{drawn(20, 25, 176, 144)} -c:v h263 -q:v 2", 20, 25, size=(192, 144), slow=True)
odd("svq1.mov", f"{drawn(20)} -c:v svq1 -q:v 2", 20, slow=True)
odd("realvideo.rm", f"{drawn(20, 25, 176, 144)} -c:v rv20 -q:v 2", 20, 25, size=(176, 144), slow=True)
odd("animated.gif", f"{drawn()} -f gif", levels=None)
odd("animated.apng", f"{drawn()} -f apng -plays 0 -pix_fmt rgb24", levels=0)
odd("animated.png", f"{drawn()} -f apng -plays 0 -pix_fmt rgb24", levels=0, slow=True)
odd("frames.y4m", f"{drawn(10)} -pix_fmt yuv444p", 10, levels=4, slow=True)
odd("intra refresh.mp4", f"{drawn()} {h264('intra-refresh=1', key=10, back=0)}")
odd("two keys.mp4", f"{drawn(300, 100)} {h264(key=250)}", 300, 100)
odd("open gop.mp4", f"{drawn()} {h264('open-gop=1')}")
odd("open gop of 16.mkv", f"{drawn(100, 25)} {h264('open-gop=1:ref=8:b-pyramid=strict', 40, 16)}", 100, 25)
odd("fragments.mp4", "-i @plain.mp4 -c copy -movflags frag_keyframe+empty_moov+default_base_moof")
odd("fragments with a delay.mp4", "-i @plain.mp4 -c copy -movflags frag_keyframe+delay_moov", slow=True)
odd("index first.mp4", "-i @plain.mp4 -c copy -movflags faststart", slow=True)
odd("live.mkv", "-i @plain.mp4 -c copy -live 1", slow=True)
odd("timecode.mov", "-i @plain25.mp4 -c copy -timecode 01:00:00:00", 50, 25, slow=True)
odd("attachments.mkv", "-i @plain.mp4 -c copy -attach @still.jpg -metadata:s:t:0 mimetype=font/ttf", slow=True)

# Counts and rates -----------------------------------------------------------------------------------------------------

odd("one frame.mp4", f"{drawn(1)} {h264()}", 1)
odd("one frame.mkv", f"{drawn(1)} {h264()}", 1, slow=True)
odd("two frames.mp4", f"{drawn(2)} {h264()}", 2)
odd("two frames.webm", f"{drawn(2)} {VP9}", 2, slow=True)
odd("1000 fps.mp4", f"{drawn(200, 1000)} {h264()}", 200, 1000)
odd("1000 fps.mkv", f"{drawn(200, 1000)} {h264()}", 200, 1000, slow=True)
odd("one a minute.mp4", f"{drawn(30, '1/60')} {h264()}", 30, 1 / 60)
odd("one a minute.mkv", f"{drawn(30, '1/60')} {h264()}", 30, 1 / 60)
odd("one a minute.avi", f"{drawn(30, '1/60')} -c:v mpeg4 -q:v 2", 30, 1 / 60, slow=True)
odd("a day.mp4", f"{drawn(1440, '1/60')} {h264(key=100)}", 1440, 1 / 60, slow=True)
odd("a day.mkv", "-i @'a day.mp4' -c copy", 1440, 1 / 60, slow=True)
odd("ntsc.mp4", f"{drawn(40, '30000/1001')} {h264()}", 40, 30000 / 1001, slow=True)
odd("ntsc.mkv", f"{drawn(40, '30000/1001')} {h264()}", 40, 30000 / 1001, slow=True)

# Variable rates, gaps and unusual timestamps --------------------------------------------------------------------------

MILLISECONDS = "-fps_mode passthrough -enc_time_base 1/1000"
SLOWER = [n / 10 if n < 20 else 2 + (n - 20) / 4 for n in range(40)]
GAPS = [n / 10 if n < 20 else 2 + (n - 20) * 120 for n in range(40)]
VARIABLE = f"""-vf "settb=1/1000,setpts='if(lt(N,20),N*100,2000+(N-20)*250)'" {MILLISECONDS}"""
MINUTES = f"""-vf "settb=1/1000,setpts='if(lt(N,20),N*100,2000+(N-20)*120000)'" {MILLISECONDS}"""
odd("variable.mp4", f"{drawn()} {VARIABLE} {h264()} -video_track_timescale 1000", times=SLOWER)
odd("variable.mkv", f"{drawn()} {VARIABLE} {h264()}", times=SLOWER)
odd("variable.webm", f"{drawn()} {VARIABLE} {VP9}", times=SLOWER, slow=True)
odd("variable.ts", f"{drawn()} {VARIABLE} {h264()}", times=SLOWER, slow=True)
odd("variable.flv", f"{drawn()} {VARIABLE} {h264()}", times=SLOWER, slow=True)
odd("gaps of minutes.mp4", f"{drawn()} {MINUTES} {h264()} -video_track_timescale 1000", times=GAPS)
odd("gaps of minutes.mkv", f"{drawn()} {MINUTES} {h264()}", times=GAPS)
odd("gaps of minutes.mov", "-i @'gaps of minutes.mkv' -c copy", times=GAPS, slow=True)
TWO = f"-vf settb=1/1000,setpts=N*600000 {MILLISECONDS}"
odd("two frames, ten minutes.mkv", f"{drawn(2)} {TWO} {h264()}", times=[0, 600], numbers=[0, 1])
part("180s.mp2", "-f lavfi -i anullsrc=r=16000:cl=mono -t 180 -c:a mp2")
part("10.mp4", f"{drawn(10)} {h264()}")
odd("last slide held.mp4", "-i @10.mp4 -i @180s.mp2 -map 0 -map 1 -c copy", 10)
odd("last slide held.mkv", "-i @10.mp4 -i @180s.mp2 -map 0 -map 1 -c copy", 10)
odd("last slide held.ts", "-i @10.mp4 -i @180s.mp2 -map 0 -map 1 -c copy", 10, slow=True)
NEGATIVE = "-i @plain.mp4 -c copy -output_ts_offset -3 -avoid_negative_ts disabled"
odd("negative.ts", NEGATIVE)
HIDDEN = {"numbers": range(30, 40)}  # an edit list hides frames before 0
odd("negative.mp4", NEGATIVE, **HIDDEN)
odd("negative.mov", NEGATIVE, **HIDDEN, slow=True)
odd("far from zero.mkv", "-i @plain.mp4 -c copy -output_ts_offset 100000")
odd("far from zero.mp4", "-i @plain.mp4 -c copy -output_ts_offset 1000", slow=True)
odd("wraps.ts", "-i @plain.mp4 -c copy -output_ts_offset 95440 -muxdelay 0 -muxpreload 0")
odd("wraps.mpg", "-i @mpeg2.mpg -c copy -output_ts_offset 95442.5 -muxdelay 0 -muxpreload 0", 50, 25, slow=True)
SETTS = "setts=pts=(N+1-2*mod(N\\\\,2))*100:dts=(N-1)*100"
SWAP = [number ^ 1 for number in range(40)]
odd(
    "swapped times.mkv",
    f"{drawn()} -c:v mjpeg -q:v 2 -bsf:v {SETTS} -avoid_negative_ts disabled",
    numbers=SWAP,
    start=-0.1,
    within=0.11,
    truth="packets are out of order, the start time is that of the first",
)

# Cuts and parts -------------------------------------------------------------------------------------------------------

odd("edit list.mp4", "-ss 1.4 -i @plain.mp4 -c copy", numbers=range(14, 40))
odd("edit list.mov", "-ss 1.4 -i @plain.mp4 -c copy", numbers=range(14, 40), slow=True)
for form, muxer in (("ts", "mpegts"), ("mkv", "matroska"), ("mp4", "mp4")):  # the second part of three
    cut = f"-map 0 -c copy -f segment -segment_times 1.2,2.4 -segment_format {muxer}"
    odd(f"segment.{form}", f"-i @plain.mp4 {cut}", numbers=range(12, 24))
odd(
    "joined.ts",
    edit=lambda a, b: a + b,
    of=["plain.ts", "plain.ts"],
    numbers=[*range(40)] * 2,
    within=0.25,
    truth="the second part's times start again from zero",
)


def cut_at(tenths: float) -> Callable[[bytes], bytes]:
    return lambda data: data[int(len(data) * tenths / 10) :]


odd("cut at a packet.ts", edit=lambda data: data[188 * 40 :], of=["plain.ts"], numbers=range(12, 40), start=0.3)
odd("cut anywhere.ts", edit=lambda data: data[188 * 40 + 77 :], of=["plain.ts"], numbers=range(12, 40), start=0.3)
odd("open cut.ts", edit=lambda data: data[188 * 40 + 77 :], of=["open gop.ts"], numbers=range(24, 40), start=1.4)
odd("open gop.ts", f"{drawn()} {h264('open-gop=1')}")
odd(
    "hevc open cut.ts",
    edit=lambda data: data[188 * 50 + 77 :],
    of=["hevc open.ts"],
    numbers=range(24, 40),
    start=1.4,
    truth="FFmpeg before version 6 shows pictures that lack their references",
)
odd(
    "mpeg2 cut.ts", edit=lambda data: data[188 * 40 + 77 :], of=["mpeg2.ts"], numbers=range(24, 50), start=0.16, rate=25
)
odd("noise before.ts", edit=lambda data: b"garbage" * 31 + data, of=["plain.ts"])

# Sound and subtitles --------------------------------------------------------------------------------------------------

AUDIO = {"mkv": "m4a", "webm": "opus", "ts": "mp2", "flv": "m4a", "avi": "mp2", "mpg": "mp2", "mp4": "m4a"}
VIDEO = {"webm": "vp8 alt-ref.webm", "mpg": "mpeg2.mpg", "avi": "mpeg4.avi"}
for form, sound in AUDIO.items():
    source = VIDEO.get(form, "plain.mp4")
    shape = (50, 25) if form == "mpg" else (40, 10)
    tail = f"-i @10s.{sound} -map 0:v -map 1:a -c copy"
    odd(f"longer sound.{form}", f"-i '@{source}' {tail}", *shape, truth=NO_PTS if form == "avi" else "ffprobe")
    if form != "avi":  # AVI does not store start times of streams
        odd(f"sound first.{form}", f"-itsoffset 5 -i '@{source}' {tail}", *shape, start=5)
    if form in ("mkv", "ts", "mp4"):
        odd(f"picture first.{form}", f"-i '@{source}' -itsoffset 5 {tail}", *shape, slow=form != "mp4")

# A container's start time is that of its pictures and sounds; subtitles before it do not count.
TEXT = b"1\n00:00:00,000 --> 00:00:09,000\nfirst\n\n2\n00:00:09,000 --> 00:01:00,000\nsecond\n"
part("words.srt", edit=lambda: TEXT)
for form, coder in (("mkv", "srt"), ("webm", "webvtt"), ("mp4", "mov_text")):
    source = VIDEO.get(form, "plain.mp4")
    odd(
        f"longer subtitles.{form}",
        f"-i '@{source}' -i @words.srt -map 0:v -map 1 -c:v copy -c:s {coder}",
        slow=form != "mkv",
    )
    late = f"-itsoffset 5 -i '@{source}' -i @words.srt -map 0:v -map 1 -c:v copy -c:s {coder}"
    odd(f"subtitles first.{form}", late, slow=form != "mkv")

# Streams --------------------------------------------------------------------------------------------------------------

part("large.mp4", f"{drawn(20, 10, 96, 80)} {h264()}")
BOTH = "-i @plain.mp4 -i @large.mp4 -map 0 -map 1 -c copy"
SECOND = "-disposition:v:0 0 -disposition:v:1 default"
odd("second is default.mkv", f"{BOTH} {SECOND}", 20, size=(96, 80), stream=1, notes=["stream"])
odd("second is default.mp4", f"{BOTH} {SECOND}", 20, size=(96, 80), stream=1, notes=["stream"])
odd("first is default.mkv", f"{BOTH} -disposition:v:0 default -disposition:v:1 0", stream=0, notes=["stream"])
odd("sound before.mkv", "-i @10s.m4a -i @plain.mp4 -map 0 -map 1 -c copy", stream=1, slow=True)
part("still.jpg", f"{drawn(1, 10, 96, 80)} -q:v 2 -frames:v 1")
odd("cover first.mp4", "-i @still.jpg -i @plain.mp4 -map 0 -map 1 -c copy -disposition:v:0 attached_pic", stream=0)
odd("cover last.mp4", "-i @plain.mp4 -i @still.jpg -map 0 -map 1 -c copy -disposition:v:1 attached_pic", stream=0)
COVER = "-attach @still.jpg -metadata:s:t mimetype=image/jpeg -metadata:s:t filename=cover.jpg"
odd("cover.mkv", f"-i @plain.mp4 -c copy {COVER}", stream=0)
ONLY = "-i @10s.m4a -i @still.jpg -map 0 -map 1 -c copy -disposition:v attached_pic"
odd("cover only.m4a", ONLY, refused="only a cover picture")
odd("cover only.mp4", ONLY, refused="only a cover picture")
odd("sound only.mp4", "-i @10s.m4a -c copy", refused="sound without video")
odd("sound only.mkv", "-i @10s.m4a -c copy", refused="sound without video", slow=True)

# Shapes and orientation -----------------------------------------------------------------------------------------------

odd("wide pixels.mp4", f"{drawn()} -vf setsar=64/45 {h264()}", size=(91, 64))
odd("wide pixels.mkv", "-i @'wide pixels.mp4' -c copy", size=(91, 64))
odd("wide pixels.mpg", f"{drawn(20, 25, 96, 96)} -aspect 16:9 {MPEG2}", 20, 25, size=(171, 96))
odd("narrow pixels.mp4", f"{drawn()} -vf setsar=1/2 {h264()}", size=(32, 64))


def matrix_box(data: bytes, *numbers: float) -> bytes:
    """Return the MP4 with the display matrix (a, b, c, d) in the header of its first track."""
    at = data.find(b"tkhd") + 4
    at += 4 + (20 if data[at] == 0 else 32) + 16
    a, b, c, d = (round(value * 65536) for value in numbers)
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


def turned(*numbers: float) -> dict:
    return {"edit": lambda data: matrix_box(data, *numbers)}


part("broad.mp4", f"{drawn(20, 10, 96, 64)} {h264()}")
BROAD = {"of": ["broad.mp4"], "count": 20}
odd("turned 90.mp4", **BROAD, **turned(0, 1, -1, 0), size=(64, 96), upright=lambda p: np.rot90(p))
odd("turned 180.mp4", **BROAD, **turned(-1, 0, 0, -1), size=(96, 64), upright=lambda p: np.rot90(p, 2))
odd("turned 270.mp4", **BROAD, **turned(0, -1, 1, 0), size=(64, 96), upright=lambda p: np.rot90(p, -1))
odd("mirrored.mp4", **BROAD, **turned(-1, 0, 0, 1), size=(96, 64), upright=lambda p: p[:, ::-1])
odd("upside down.mp4", **BROAD, **turned(1, 0, 0, -1), size=(96, 64), upright=lambda p: p[::-1])
odd("mirrored, turned.mp4", **BROAD, **turned(0, 1, 1, 0), size=(64, 96), upright=lambda p: p.transpose(1, 0, 2))
odd(
    "other diagonal.mp4",
    **BROAD,
    **turned(0, -1, -1, 0),
    size=(64, 96),
    upright=lambda p: np.rot90(p, 2).transpose(1, 0, 2),
)
HALF = math.sqrt(0.5)
odd("turned 45.mp4", **BROAD, **turned(HALF, HALF, -HALF, HALF), size=(96, 64), notes=["45"])
odd("matrix of zeros.mp4", **BROAD, **turned(0, 0, 0, 0), size=(96, 64))
odd("turned and wide.mp4", of=["wide pixels.mp4"], **turned(0, 1, -1, 0), size=(64, 91), upright=lambda p: np.rot90(p))
part("large.ts", "-i @large.mp4 -c copy")
part("large.h264", "-i @large.mp4 -c copy -bsf:v h264_mp4toannexb -f h264")
part("plain.h264", "-i @plain.mp4 -c copy -bsf:v h264_mp4toannexb -f h264")
FLAT = {"size": (64, 32), "levels": None, "upright": lambda p: np.concatenate([p, p * 0])}
odd("cropped.mp4", "-i @plain.mp4 -c copy -bsf:v h264_metadata=crop_bottom=32", **FLAT, slow=True)
PROGRAMS = "-program title=a:program_num=1:st=0 -program title=b:program_num=2:st=1"
odd("two programs.ts", f"-i @plain.mp4 -i @large.mp4 -map 0 -map 1 -c copy {PROGRAMS}", notes=["stream"], slow=True)
TWO_SIZES = {"numbers": [*range(40), *range(20)], "sizes": [(64, 64)] * 40 + [(96, 80)] * 20, "notes": ["size|resol"]}
odd(
    "two sizes.ts",
    edit=lambda a, b: a + b,
    of=["plain.ts", "large.ts"],
    **TWO_SIZES,
    within=0.25,
    truth="the second part's times start again from zero",
)
odd(
    "two sizes.h264",
    edit=lambda a, b: a + b,
    of=["plain.h264", "large.h264"],
    **TWO_SIZES,
    truth="the stream has no times",
)
odd("two sizes.mkv", "-i '@two sizes.ts' -c copy", **TWO_SIZES)
odd("16384 wide.mp4", f"{drawn(2, 10, 16384, 16)} {h264()}", 2, size=(16384, 16), slow=True)
odd("16388 wide.mkv", f"{drawn(2, 10, 16388, 16)} -c:v ffv1", refused="16384", slow=True)
odd("odd size.mkv", f"{drawn(10, 10, 63, 47)} -c:v ffv1 -pix_fmt bgr0", 10, size=(63, 47), levels=1)
odd("odd size.mp4", f"{drawn(10, 10, 65, 63)} {h264().replace('yuv420p', 'yuv444p')}", 10, size=(65, 63), slow=True)

# Colours --------------------------------------------------------------------------------------------------------------


def tagged(matrix: str, scaled: str, full: bool = False, pixels: str = "yuv420p", more: str = "") -> str:
    """Return options that convert to this matrix and range, and write both into the stream."""
    span = "pc" if full else "tv"
    scale = f"scale=out_color_matrix={scaled}:out_range={span}:flags=accurate_rnd+full_chroma_int,format={pixels}"
    return f"-vf {scale} -colorspace {matrix} -color_range {span} {more}"


FINE = h264().replace("crf 10", "qp 1").replace("-pix_fmt yuv420p ", "")
EXACT = {"levels": 6, "like": ""}
odd("untagged.mp4", f"{drawn(10)} {FINE} -pix_fmt yuv420p", 10, **EXACT)
odd("601.mp4", f"{drawn(10)} {tagged('smpte170m', 'bt601')} {FINE}", 10, **EXACT)
odd("709.mp4", f"{drawn(10)} {tagged('bt709', 'bt709')} {FINE}", 10, **EXACT)
odd("709 full.mp4", f"{drawn(10)} {tagged('bt709', 'bt709', True, 'yuvj420p')} {FINE}", 10, **EXACT)
odd("601 full.mp4", f"{drawn(10)} {tagged('smpte170m', 'bt601', True, 'yuvj420p')} {FINE}", 10, **EXACT, slow=True)
odd("240m.mkv", f"{drawn(10)} {tagged('smpte240m', 'smpte240m')} {FINE}", 10, **EXACT, slow=True)
odd("709 444.mkv", f"{drawn(10)} {tagged('bt709', 'bt709', pixels='yuv444p')} {FINE}", 10, **EXACT)
odd("709 422.mkv", f"{drawn(10)} {tagged('bt709', 'bt709', pixels='yuv422p')} {FINE}", 10, **EXACT, slow=True)
odd("rgb.mkv", f"{drawn(10)} -c:v libx264rgb -preset veryfast -qp 0 -threads 1", 10, levels=0)
BT2020 = "-color_primaries bt2020 -color_trc bt2020-10"
TEN = h265("qp=1", pixels="yuv420p10le").replace("crf=10:", "")
odd(
    "2020.mkv",
    f"{drawn(10)} {tagged('bt2020nc', 'bt2020', pixels='yuv420p10le', more=BT2020)} {TEN}",
    10,
    levels=6,
    notes=["BT\\.?2020|gamut"],
)
WIDE = "-color_primaries bt2020 -color_trc {}"
for name, curve in (("pq", "smpte2084"), ("hlg", "arib-std-b67")):
    coder = h265("colorprim=bt2020:colormatrix=bt2020nc:transfer=" + curve, pixels="yuv420p10le")
    shade = tagged("bt2020nc", "bt2020", pixels="yuv420p10le", more=WIDE.format(curve))
    odd(f"{name}.mkv", f"{drawn(10)} {shade} {coder}", 10, levels=10, notes=["HDR|PQ|HLG|dynamic"])
    odd(f"{name}.mp4", f"-i @{name}.mkv -c copy -tag:v hvc1", 10, levels=10, notes=["HDR|PQ|HLG|dynamic"], slow=True)
P3 = "-color_primaries smpte432 -color_trc iec61966-2-1"
odd("p3.mp4", f"{drawn(10)} {tagged('bt709', 'bt709', more=P3)} {FINE}", 10, levels=6, notes=["P3|gamut"])


odd("grey.mkv", f"{drawn(10)} -pix_fmt gray -c:v ffv1", 10, levels=None, like="")
odd("grey ten bit.mkv", f"{drawn(10)} -pix_fmt gray10le -c:v ffv1", 10, levels=None, like="", slow=True)
odd("grey.mp4", f"{drawn(10)} {h264().replace('yuv420p', 'gray')}", 10, levels=None, slow=True)
odd("alpha.webm", f"{drawn(10)} -vf format=yuva420p,colorchannelmixer=aa=0.5 -c:v libvpx -auto-alt-ref 0 -b:v 2M", 10)
odd("alpha.mkv", f"{drawn(10)} -vf format=yuva420p,colorchannelmixer=aa=0.5 -c:v ffv1", 10, levels=6, slow=True)
odd(
    "alpha.mov", f"{drawn(10)} -vf format=yuva444p10le,colorchannelmixer=aa=0.5 -c:v prores_ks", 10, levels=8, slow=True
)
odd("alpha rgb.mov", f"{drawn(10)} -vf format=rgba,colorchannelmixer=aa=0.5 -c:v png", 10, levels=1, slow=True)
odd("410.mkv", f"{drawn(10)} -pix_fmt yuv410p -c:v ffv1", 10, levels=8, slow=True)
odd("411.mkv", f"{drawn(10)} -pix_fmt yuv411p -c:v ffv1", 10, levels=8, slow=True)
odd("sixteen bit.mkv", f"{drawn(10)} -pix_fmt yuv444p16le -c:v ffv1", 10, levels=4, slow=True)
odd("sixteen bit rgb.mkv", f"{drawn(10)} -pix_fmt gbrp16le -c:v ffv1", 10, levels=1, slow=True)

# Interlaced: the two fields of a frame are two pictures; a deinterlaced frame shows the earlier one -------------------


def woven(
    count: int, rate: float, first: str, more: str = "setsar=1", side: str = "64x64", pixels: str = "yuv420p"
) -> str:
    """Return input and filters of `count` interlaced frames: the fields of frame k show the numbers 3 k and 3 k + 1."""
    fields = f"select='lt(mod(n,3),2)',setpts=N/{2 * rate}/TB,format={pixels},tinterlace=mode=interleave_{first}"
    width, height = map(int, side.split("x"))
    return f'{drawn(3 * count, 2 * rate, width, height)} -vf "{fields},{more}" -flags +ildct+ilme'


def deinterlaced(count: int, rate: float = 25, **right) -> dict:
    shown = {"numbers": range(0, 3 * count, 3), "rate": rate, "notes": ["interlac"]}
    return shown | {"like": "-vf bwdif=mode=send_frame", "decibels": 30} | right


odd("interlaced top.mp4", f"{woven(20, 10, 'top')} {h264('tff=1', 6)}", **deinterlaced(20, 10))
odd("interlaced bottom.mp4", f"{woven(20, 10, 'bottom')} {h264('bff=1', 6)}", **deinterlaced(20, 10))
odd("interlaced.mpg", f"{woven(20, 25, 'top')} -top 1 {MPEG2}", **deinterlaced(20))
odd("interlaced.ts", f"{woven(20, 25, 'bottom')} -top 0 {MPEG2}", **deinterlaced(20))
odd("interlaced.mkv", "-i @'interlaced top.mp4' -c copy", **deinterlaced(20, 10), slow=True)
odd("dv.avi", f"{woven(3, 25, 'bottom', 'setsar=16/15', '720x576')} -c:v dvvideo", **deinterlaced(3, size=(768, 576)))
odd("dv.dv", "-i @dv.avi -c copy -f dv", **deinterlaced(3, size=(768, 576)), slow=True)
odd(
    "1080i.ts",
    f"{woven(4, 25, 'top', 'setsar=4/3', '1440x1080')} -top 1 {MPEG2}",
    **deinterlaced(4, size=(1920, 1080)),
    slow=True,
)
odd(
    "interlaced prores.mov",
    f"{woven(10, 25, 'top', 'setfield=tff', '64x64', 'yuv422p10le')} -c:v prores_ks",
    **deinterlaced(10),
    slow=True,
)

# Refused --------------------------------------------------------------------------------------------------------------

part("still.png", f"{drawn(1)} -frames:v 1")
part("still.webp", f"{drawn(1)} -frames:v 1 -c:v libwebp")
part("still.bmp", f"{drawn(1)} -frames:v 1")
IMAGE = "an image, not a video"


def same(data: bytes) -> bytes:
    return data


odd("png.mp4", edit=same, of=["still.png"], refused=IMAGE)
odd("jpeg.mp4", edit=same, of=["still.jpg"], refused=IMAGE)
odd("picture.png", edit=same, of=["still.png"], refused=IMAGE)
odd("picture.jpg", edit=same, of=["still.jpg"], refused=IMAGE)
odd("picture.webp", edit=same, of=["still.webp"], refused=IMAGE)
odd("picture.bmp", edit=same, of=["still.bmp"], refused=IMAGE, slow=True)
odd(
    "picture.avif",
    f"{drawn(1)} -c:v libaom-av1 -cpu-used 8 -still-picture 1 -frames:v 1 -f avif",
    refused=IMAGE,
    slow=True,
)
odd("animated.webp", f"{drawn(10)} -c:v libwebp_anim -lossless 1 -loop 0", refused="WebP")


def without(kind: bytes) -> Callable[[bytes], bytes]:
    """Return an edit that removes the top-level MP4 boxes of this kind."""

    def edit(data: bytes) -> bytes:
        out, at = b"", 0
        while at < len(data):
            size, name = struct.unpack(">I4s", data[at : at + 8])
            out += b"" if name == kind else data[at : at + size]
            at += size
        return out

    return edit


def until(tenths: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * tenths / 10)]


odd("fragments without index.mp4", edit=without(b"moov"), of=["fragments.mp4"], refused="damaged|index|no video|cut")
odd(
    "index cut.mp4",
    edit=lambda data: data[: data.find(b"stsz")],
    of=["plain.mp4"],
    refused="damaged|index|no video|cut",
)
for form in ("mkv", "webm", "flv"):
    odd(
        f"cut off.{form}",
        edit=until(6),
        of=["vp8 alt-ref.webm" if form == "webm" else f"plain.{form}"],
        refused="cut off|damaged|promises",
    )
odd("index first, cut.mp4", edit=until(6), of=["index first.mp4"], refused="cut off|damaged|promises|decode")
SECRET = f"-encryption_key {'0123456789abcdef' * 2} -encryption_kid {'fedcba9876543210' * 2}"
LOCKED = f"-i @plain.mp4 -c copy -encryption_scheme cenc-aes-ctr {SECRET}"
odd("encrypted.mp4", LOCKED, refused="encrypted|protected|damaged|decode")
odd(
    "unknown codec.mp4",
    edit=lambda data: data.replace(b"avc1", b"zzzz"),
    of=["plain.mp4"],
    refused="codec|decode|no video",
)


def zeroed(data: bytes) -> bytes:
    """Set the middle third of the bytes to 0."""
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


def thinned(data: bytes) -> bytes:
    """Remove every tenth packet of a transport stream, except from the first twenty."""
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    return b"".join(packet for at, packet in enumerate(packets) if at < 20 or at % 10)


odd("zeroed.mp4", edit=zeroed, of=["index first.mp4"], refused="damaged|decode")
odd("lost packets.ts", edit=thinned, of=["plain.ts"], refused="damaged|decode")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for each in KINDS:
        make(each, target)
