"""Videos with flipped bits: v2l does not accept wrong frames if ffmpeg reports the damage.

    python tests/stress/flipped_videos.py --files 1000
    python tests/stress/flipped_videos.py --files 150 --only h264 --keep FOLDER --verdicts

Each file is an intact clip with 1 to 50 flipped bits in its coded pictures. ffmpeg's verdict is the output of `ffmpeg
-v error -i FILE -f null -`. Each file is then probed, and the frames that `v2l encode` selects are compared with those
of the intact clip. The run prints a table of outcomes by verdict. It fails if a file crashes the reader, or if the
reader accepts a picture that differs from the intact one although ffmpeg reports damage of it or of a frame it refers
to (`ffprobe -show_log` assigns reports to frames). Other changed pictures, which no decoder reports, are counted.
--verdicts only makes the files and `verdicts.json`.
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

from v2l.errors import V2LError
from v2l.video.sampling import choose_frames

SCENE = "-f lavfi -i mandelbrot=size=160x120:rate=25:end_scale=0.05 -t 8 -pix_fmt yuv420p"
X264 = "-c:v libx264 -preset veryfast -g 50"
SOURCES = {
    "h264.mp4": f"{SCENE} {X264}",
    "h264.ts": f"{SCENE} {X264}",
    "h264 baseline.mp4": f"{SCENE} {X264} -profile:v baseline",
    "h264 open.ts": f"{SCENE} {X264} -x264-params open-gop=1:bframes=8:b-pyramid=strict",
    "h264.mkv": f"{SCENE} {X264}",
    "hevc.mp4": f"{SCENE} -c:v libx265 -preset ultrafast -g 50 -x265-params log-level=none",
    "mpeg4.avi": f"{SCENE} -c:v mpeg4 -q:v 4 -g 50",
    "mpeg2.ts": f"{SCENE} -c:v mpeg2video -q:v 4 -g 12 -bf 2",
    "vp9.webm": f"{SCENE} -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 500k -g 50",
    "av1.mp4": f"{SCENE} -c:v libsvtav1 -preset 12 -g 50",
}
FLIPS = (1, 3, 10, 50)
RATE = 25


def ffmpeg(words: list[str], **more) -> subprocess.CompletedProcess:
    return subprocess.run(["ffmpeg", "-nostdin", "-y", "-v", "error", *words], capture_output=True, text=True, **more)


def coded_part(data: bytes, name: str) -> tuple[int, int]:
    """Return the first and last byte of the part with coded pictures and without an index."""
    if name.endswith(".mp4"):
        at = data.find(b"mdat")
        return at + 64, at - 4 + int.from_bytes(data[at - 4 : at], "big") - 64
    return len(data) // 20, len(data) * 19 // 20


def flipped(data: bytes, name: str, seed: int) -> bytes:
    chance = random.Random(f"{name} {seed}")
    first, last = coded_part(data, name)
    changed = bytearray(data)
    for _ in range(FLIPS[seed % len(FLIPS)]):
        changed[chance.randrange(first, last)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def verdict(path: Path) -> dict:
    """Return ffmpeg's report on a file: the number of lines and the first of them."""
    done = ffmpeg(["-threads", "1", "-i", str(path), "-f", "null", "-"], errors="replace")
    lines = done.stderr.splitlines()
    return {"reports": len(lines), "first": lines[0] if lines else "", "exit": done.returncode}


def make(folder: Path, count: int, only: str):
    """Write the sources and damaged files into `folder`; yield (source, path, verdict) of each damaged file."""
    names = [name for name in SOURCES if name.startswith(only)]
    sound = {}
    for name in names:
        path = folder / f"sound {name}"
        done = ffmpeg([*shlex.split(SOURCES[name]), str(path)])
        assert done.returncode == 0, done.stderr
        assert not verdict(path)["reports"], f"{name} is not intact"
        sound[name] = path.read_bytes()
    for number in range(count):
        name = names[number % len(names)]
        stem, form = name.rsplit(".", 1)
        path = folder / f"{stem} {number:04d}.{form}"
        path.write_bytes(flipped(sound[name], name, number // len(names)))
        yield name, path, verdict(path)


def outcome(path: Path, sound: dict[int, np.ndarray]) -> tuple[str, str, list[int]]:
    """Read a damaged file and return the outcome (refused, same, changed or crashed), the error message or the greatest
    difference in levels, and the numbers of the changed frames."""
    from v2l.video import client

    try:
        video = client.probe(path)
        changed = {}
        for frame in client.read_frames(video, choose_frames(video, 12)):
            number = round(float(frame.seconds) * RATE)
            expected = sound.get(number, np.zeros(0))
            if expected.shape != frame.pixels.shape:
                changed[number] = 255
            elif not np.array_equal(expected, frame.pixels):
                changed[number] = int(np.abs(expected.astype(int) - frame.pixels).max())
        return ("changed", f"by up to {max(changed.values())} of 255", list(changed)) if changed else ("same", "", [])
    except V2LError as error:
        kind = "crashed" if "crashed the decoder" in str(error) or "made the decoder hang" in str(error) else "refused"
        return kind, str(error), []
    except Exception as error:  # anything else is a bug
        return "crashed", repr(error), []


def decoded(path: Path, *options: str) -> tuple[list[tuple[int, bool]], dict[int, str], set[int]]:
    """Return (number, key) of each packet, ffmpeg's reports by frame number, and the numbers of the frames it outputs.

    ffprobe logs a report with the frame that is output at that time, which lags by the decoder's delay.
    """
    command = ["ffprobe", "-v", "error", "-threads", "1", *options, "-show_log", "16", "-select_streams", "v:0"]
    entries = "packet=pts_time,flags:frame=best_effort_timestamp_time:stream=has_b_frames:format=start_time:log"
    done = subprocess.run([*command, "-show_entries", entries, "-of", "json", str(path)], capture_output=True)
    found = json.loads(done.stdout)
    start, delay = float(found["format"].get("start_time", 0)), found["streams"][0]["has_b_frames"]

    def number(time: str) -> int:
        return round((float(time) - start) * RATE)

    entries = found["packets_and_frames"]
    packets = [(number(each.get("pts_time", start)), "K" in each["flags"]) for each in entries if "flags" in each]
    frames = [each for each in entries if each["type"] == "frame"]
    reports = {}
    for at, frame in enumerate(frames):
        if frame.get("logs"):
            about = packets[min(at + delay, len(packets) - 1)][0]
            reports[about] = "; ".join(log["message"].strip() for log in frame["logs"])
    times = [frame.get("best_effort_timestamp_time") for frame in frames]
    return packets, reports, {number(time) for time in times if time}


def reported_before(path: Path, numbers: list[int]) -> str:
    """Return ffmpeg's report, if any, on one of these frames or on a reference frame between it and its key frame."""
    packets, reports, _ = decoded(path)
    referred = decoded(path, "-skip_frame", "noref")[2]
    needed: list[int] = []
    for number, key in packets:
        needed = [] if key else needed
        concerned = [at for at in [*needed, number] if at in reports]
        if number in numbers and concerned:
            return f"frame {number}, ffmpeg on {concerned[0]}: {reports[concerned[0]]}"
        if number in referred:
            needed.append(number)
    return ""


def every_frame(path: Path) -> dict[int, np.ndarray]:
    """Return the pixels of an intact clip by frame number."""
    from v2l.video import client

    video = client.probe(path)
    return {round(float(f.seconds) * RATE): f.pixels for f in client.read_frames(video, range(video.frame_count))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--only", default="", help="prefix of the sources to use")
    parser.add_argument("--keep", type=Path, help="folder in which the files are kept")
    parser.add_argument("--verdicts", action="store_true", help="only make the files and verdicts.json")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    verdicts, counts, frames, bad = {}, collections.Counter(), {}, []
    for source, path, report in make(folder, options.files, options.only):
        verdicts[path.name] = report | {"source": f"sound {source}"}
        if options.verdicts:
            continue
        if source not in frames:
            frames[source] = every_frame(folder / f"sound {source}")
        kind, detail, changed = outcome(path, frames[source])
        reported = "reported" if report["reports"] else "not reported"
        counts[source, reported, kind] += 1
        verdicts[path.name] |= {"outcome": kind, "detail": detail}
        reported_frame = reported_before(path, changed) if changed and report["reports"] else ""
        if kind == "crashed" or reported_frame:
            bad.append(f"{path.name}: {kind}, {detail}; {reported_frame}")
        if not options.keep:
            path.unlink()
    (folder / "verdicts.json").write_text(json.dumps(verdicts, indent=1))
    for (source, reported, kind), number in sorted(counts.items()):
        print(f"{source:20} {reported:13} {kind:8} {number:5}")
    print(*bad, sep="\n")
    print(f"{len(verdicts)} files, {sum(bool(v['reports']) for v in verdicts.values())} reported, {len(bad)} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
