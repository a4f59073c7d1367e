"""Intact recordings that are cut at any point: none is refused or shows a broken or misplaced frame.

    python tests/stress/cut_videos.py --files 200
    python tests/stress/cut_videos.py --files 200 --keep FOLDER --only-make

The files are parts of numbered clips with closed and open groups of pictures: transport streams from any packet or
byte, parts of `-f segment` (also those that start between key frames), and `-ss T -c copy` into ts, mkv and mp4.
Errors that a decoder reports before the first complete key frame are not damage. The expected result is every frame
from the first complete key frame (in mp4: from the cut, by its edit list) to the end, each with the pixels of its
number, at a constant distance from that number's time. The run prints every wrong file and fails if there is one.
"""

import argparse
import collections
import json
import random
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import odd_videos

from v2l.errors import V2LError

RATE, COUNT = 25, 150
SOURCES = {
    "h264": odd_videos.h264(key=25),
    "h264 open": odd_videos.h264("open-gop=1", 25),
    "h264 pyramid": odd_videos.h264("open-gop=1:ref=6:b-pyramid=strict", 30, 12),
    "hevc open": odd_videos.h265("open-gop=1:repeat-headers=1", 25),
    "mpeg2 open": odd_videos.MPEG2,
}
METHODS = ("packet", "byte", "segment", "segment anywhere", "copy.ts", "copy.mkv", "copy.mp4")


def ffmpeg(*words: str) -> str:
    done = subprocess.run(["ffmpeg", "-nostdin", "-y", "-v", "error", *words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stderr


def packets(path: Path) -> list[tuple[float, bool]]:
    """Return (seconds, key) of each packet of the video stream in storage order; NaN for a packet without a time."""
    command = ["ffprobe", "-v", "quiet", "-of", "json", "-select_streams", "v:0"]
    command += ["-show_entries", "packet=pts_time,flags", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["packets"]
    return [(float(packet.get("pts_time", "nan")), "K" in packet["flags"]) for packet in found]


def make(folder: Path, count: int):
    """Yield (path, first, last) for each part, with the numbers of its first and last frame."""
    for name, coder in SOURCES.items():
        raw = odd_videos.make(f"{COUNT}of64x64.rgb", folder)
        given = f"-f rawvideo -pixel_format rgb24 -video_size 64x64 -framerate {RATE} -i {raw} {coder}"
        ffmpeg(*shlex.split(given), str(folder / f"sound {name}.ts"))
        ffmpeg("-i", str(folder / f"sound {name}.ts"), "-c", "copy", str(folder / f"sound {name}.mkv"))
        ffmpeg("-i", str(folder / f"sound {name}.ts"), "-c", "copy", str(folder / f"sound {name}.mp4"))
    for number in range(count):
        name = list(SOURCES)[number % len(SOURCES)]
        method = METHODS[number // len(SOURCES) % len(METHODS)]
        chance = random.Random(number)
        cut = chance.randrange(10, COUNT - 40) / RATE
        source = folder / f"sound {name}.ts"
        path = folder / f"{name} {number:04d} {method.replace('copy', '')}"
        if method in ("packet", "byte"):
            path = path.with_name(path.name + ".ts")
            data = source.read_bytes()
            at = chance.randrange(4, len(data) // 188 * 2 // 3) * 188 + (
                chance.randrange(1, 188) if method == "byte" else 0
            )
            path.write_bytes(data[at:])
        elif method.startswith("segment"):
            form, muxer = chance.choice([("ts", "mpegts"), ("mkv", "matroska"), ("mp4", "mp4")])
            if method.endswith("anywhere"):
                form, muxer = "ts", "mpegts"  # the only format whose parts keep the stream's headers
            path, source = path.with_name(f"{path.name}.{form}"), folder / f"sound {name}.{form}"
            between = ["-break_non_keyframes", "1"] if method.endswith("anywhere") else []
            muxing = ["-map", "0", "-f", "segment", "-segment_format", muxer, "-segment_times", f"{cut}", *between]
            ffmpeg("-i", str(source), "-c", "copy", *muxing, f"{path}.%d")
            Path(f"{path}.1").rename(path)
            Path(f"{path}.0").unlink()
        else:
            form = method.rsplit(".")[-1]
            source = folder / f"sound {name}.mp4" if form == "mp4" else source
            path = path.with_name(path.name.rsplit(" ", 1)[0] + f".{form}")
            ffmpeg("-ss", f"{cut}", "-i", str(source), "-c", "copy", str(path))
        first, last = shown(path, method)
        yield path, first, last


def shown(path: Path, method: str) -> tuple[int, int]:
    """Return the numbers of the first and the last frame of a part; all parts reach to the end of their clip."""
    times = packets(path)
    last = max(time for time, _ in times)
    first = next(time for time, key in times if key)
    if path.suffix == ".mp4" and method.startswith("copy"):  # the edit list hides the frames before the cut
        first = max(first, min(time for time, _ in times if time >= -1e-6))
    return COUNT - 1 - round((last - first) * RATE), COUNT - 1


def wrong(path: Path, first: int, last: int) -> str:
    """Read a part with v2l and describe the first deviation; empty if there is none."""
    from v2l.video import client

    try:
        video = client.probe(path)
        frames = list(client.read_frames(video, range(video.frame_count)))
    except V2LError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"crashed: {error!r}"
    numbers = [odd_videos.number_of(frame.pixels) for frame in frames]
    if numbers != list(range(first, last + 1)):
        return f"frames {numbers[:4]} to {numbers[-1]}, not {first} to {last}"
    offsets = np.array([frame.seconds for frame in frames]) - np.array(numbers) / RATE
    if np.ptp(offsets) > 0.5 / RATE:
        return f"times: {offsets.min():.3f} to {offsets.max():.3f} s from the numbers'"
    worst = max(
        np.abs(odd_videos.cells_of(frame.pixels) - odd_videos.colours(number)).max()
        for frame, number in zip(frames, numbers, strict=True)
    )
    return f"colours {worst:.0f} levels off" if worst > 30 else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="folder in which the files are kept")
    parser.add_argument("--only-make", action="store_true", help="only make the files and right.json")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    counts, right = collections.Counter(), {}
    for path, first, last in make(folder, options.files):
        right[path.name] = {"first": first, "last": last}
        if not options.only_make and (reason := wrong(path, first, last)):
            counts[reason.split(":")[0].split(" ")[0]] += 1
            print(f"{path.name}: {reason}")
    (folder / "right.json").write_text(json.dumps(right, indent=1))
    print(f"{len(right)} files, {counts.total()} wrong: {dict(counts)}")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main())
