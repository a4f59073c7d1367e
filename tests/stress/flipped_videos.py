"""Videos with flipped bits: no frame is invented where ffmpeg itself reports the damage.

    python tests/stress/flipped_videos.py --files 1000
    python tests/stress/flipped_videos.py --files 150 --only h264 --keep FOLDER --verdicts

Each file is a sound clip with 1 to 50 flipped bits in its coded pictures. ffmpeg's verdict is what `ffmpeg -v error -i
FILE -f null -` prints. Each file is then probed and 12 frames are read as `v2l encode` does, and compared with those of
the sound clip. The run prints a table of outcomes against verdicts, and fails if a file crashes the reader, or if it
accepts a picture that differs from the sound one although ffmpeg reports damage when it decodes just what that picture
needs, from its key frame on. Changed pictures that ffmpeg does not report cannot be told by a decoder; they are
counted. --verdicts makes the files and `verdicts.json` only.
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
from v2l.sampling import choose_frames

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


def ffmpeg(words: list[str], **more) -> subprocess.CompletedProcess:
    return subprocess.run(["ffmpeg", "-nostdin", "-y", "-v", "error", *words], capture_output=True, text=True, **more)


def coded_part(data: bytes, name: str) -> tuple[int, int]:
    """First and last byte of what holds coded pictures and no index."""
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
    """What ffmpeg reports of a file: the number of lines and the first of them."""
    done = ffmpeg(["-threads", "1", "-i", str(path), "-f", "null", "-"], errors="replace")
    lines = done.stderr.splitlines()
    return {"reports": len(lines), "first": lines[0] if lines else "", "exit": done.returncode}


def make(folder: Path, count: int, only: str):
    """Yield (source, path, verdict) of each damaged file, written into `folder` together with its sources."""
    names = [name for name in SOURCES if name.startswith(only)]
    sound = {}
    for name in names:
        path = folder / f"sound {name}"
        done = ffmpeg([*shlex.split(SOURCES[name]), str(path)])
        assert done.returncode == 0, done.stderr
        assert not verdict(path)["reports"], f"{name} is not sound"
        sound[name] = path.read_bytes()
    for number in range(count):
        name = names[number % len(names)]
        stem, form = name.rsplit(".", 1)
        path = folder / f"{stem} {number:04d}.{form}"
        path.write_bytes(flipped(sound[name], name, number // len(names)))
        yield name, path, verdict(path)


def outcome(path: Path, sound: dict[int, np.ndarray]) -> tuple[str, str, list[float]]:
    """One of refused, same, changed and crashed; the message or the greatest difference in levels; seconds of the
    frames that are changed."""
    from v2l import decoding

    try:
        video = decoding.probe(path)
        worst, changed = 0, []
        for frame in decoding.read_frames(video, choose_frames(video, 12)):
            expected = sound.get(round(float(frame.seconds) * 25))
            if expected is None or expected.shape != frame.pixels.shape:
                return "changed", f"no such frame in the sound clip: {frame.seconds} s", [frame.seconds]
            difference = int(np.abs(expected.astype(int) - frame.pixels).max())
            worst = max(worst, difference)
            changed += [frame.seconds] if difference else []
        return ("changed", f"by up to {worst} of 255", changed) if worst else ("same", "", [])
    except V2LError as error:
        kind = "crashed" if "crashed the decoder" in str(error) or "hang" in str(error) else "refused"
        return kind, str(error), []
    except Exception as error:  # no file may raise anything else
        return "crashed", repr(error), []


def key_times(path: Path) -> tuple[list[float], int]:
    """Seconds of the key frames of a sound clip, from its first frame, and by how many frames its decoder is ahead of
    the one it shows."""
    asked = ["-select_streams", "v:0", "-show_entries", "packet=pts_time,flags:stream=has_b_frames", "-of", "json"]
    done = subprocess.run(["ffprobe", "-v", "quiet", *asked, str(path)], capture_output=True, check=True)
    found = json.loads(done.stdout)
    timed = [(float(packet["pts_time"]), packet["flags"]) for packet in found["packets"] if "pts_time" in packet]
    first = min(time for time, _ in timed)
    return [time - first for time, flags in timed if "K" in flags], found["streams"][0]["has_b_frames"]


def reported_on_the_way(path: Path, keys: list[float], ahead: int, seconds: float) -> str:
    """What ffmpeg reports first while it decodes from the key frame before this frame up to it, and nothing else."""
    start = max((key for key in keys if key <= seconds + 1e-3), default=0.0)
    length = max(seconds - start + 0.02 - ahead / 25, 0.02)
    stretch = ["-ss", f"{start + 1e-3:.3f}" if start else "0", "-i", str(path), "-t", f"{length:.3f}"]
    done = ffmpeg(["-threads", "1", *stretch, "-f", "null", "-"], errors="replace")
    return next((line for line in done.stderr.splitlines() if not any(each in line for each in ASTRAY)), "")


ASTRAY = ("co located POCs unavailable", "mmco: unref short failure", "Last message repeated")
"""Reports of pictures that are stored behind a key frame and shown before it, where decoding starts at that frame."""


def every_frame(path: Path) -> dict[int, np.ndarray]:
    """The pixels of a sound clip by the number of the frame."""
    from v2l import decoding

    video = decoding.probe(path)
    return {round(float(f.seconds) * 25): f.pixels for f in decoding.read_frames(video, range(video.frame_count))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--only", default="", help="sources whose name begins so")
    parser.add_argument("--keep", type=Path, help="folder for the files, which are removed otherwise")
    parser.add_argument("--verdicts", action="store_true", help="only make the files and verdicts.json")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    verdicts, counts, frames, keys, bad = {}, collections.Counter(), {}, {}, []
    for source, path, said in make(folder, options.files, options.only):
        verdicts[path.name] = said | {"source": f"sound {source}"}
        if options.verdicts:
            continue
        if source not in frames:
            frames[source] = every_frame(folder / f"sound {source}")
            keys[source] = key_times(folder / f"sound {source}")
        kind, why, changed = outcome(path, frames[source])
        reported = "reported" if said["reports"] else "not reported"
        counts[source, reported, kind] += 1
        verdicts[path.name] |= {"outcome": kind, "why": why}
        if kind == "crashed":
            bad.append(f"{path.name}: {why}")
        for seconds in changed if said["reports"] else []:
            if report := reported_on_the_way(path, *keys[source], seconds):
                bad.append(f"{path.name}: changed at {seconds} s, {why}; ffmpeg: {report}")
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
