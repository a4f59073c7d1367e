"""CPU time of decoding selected frames of a long video with v2l, PyAV and torchcodec, alternating in one run.

    python tests/stress/seek.py [VIDEO]        default: ten minutes of 720p with a key frame every 250 frames

Each reader runs in a separate process that opens the file and decodes 12, 64 and 256 evenly spread frames to RGB. The
figures are CPU seconds (user and system) without imports, the median of three turns. PyAV seeks to the key frame before
each frame, or decodes on if that is nearer. torchcodec (`pip install torchcodec`, which needs FFmpeg's libraries) gets
all indices at once, with one thread per processor.
"""

from __future__ import annotations

import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

COUNTS = (12, 64, 256)
TURNS = 3
MAKE = (
    "ffmpeg -v error -y -f lavfi -i testsrc2=s=1280x720:r=25:d=600,noise=alls=6:allf=t -c:v libx264 -preset veryfast "
    "-crf 28 -g 250 -pix_fmt yuv420p"
)


def with_v2l(path: str, count: int) -> int:
    from v2l.video.probe import probe, read_frames

    video = probe(path)
    return sum(1 for _ in read_frames(video, spread(video.frame_count, count)))


def with_pyav(path: str, count: int) -> int:
    import av

    container = av.open(path)
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    rate, base, read, decoded, near = stream.average_rate, stream.time_base, 0, iter(()), 0
    for index in spread(stream.frames, count):
        wanted = round(index / rate / base)
        if wanted - near > 125 / rate / base or not read:
            container.seek(wanted, stream=stream)
            decoded = container.decode(stream)
        for frame in decoded:
            near = frame.pts
            if frame.pts >= wanted:
                frame.to_ndarray(format="rgb24")
                read += 1
                break
    return read


def with_torchcodec(path: str, count: int) -> int:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=os.cpu_count() or 1)
    return len(decoder.get_frames_at(spread(len(decoder), count)).data)


READERS = {"v2l": with_v2l, "PyAV": with_pyav, "torchcodec": with_torchcodec}
IMPORTS = {"v2l": "v2l.video.probe", "PyAV": "av", "torchcodec": "torchcodec.decoders"}


def spread(frames: int, count: int) -> list[int]:
    """Return `count` evenly spread indices, without the first and the last second (at 25 frames per second)."""
    return np.unique(np.linspace(25, frames - 26, count).astype(int)).tolist()


def used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def turn(reader: str, path: str, count: int) -> float | None:
    """Return the CPU seconds of a reader in a new process; None if it is not installed."""
    done = subprocess.run([sys.executable, __file__, reader, path, str(count)], capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def main(path: str) -> None:
    print(f"{'frames':>6}  " + "  ".join(f"{name:>10}" for name in READERS) + "  v2l against the best other")
    for count in COUNTS:
        turns: dict[str, list[float | None]] = {name: [] for name in READERS}
        for _ in range(TURNS):
            for name, found in turns.items():
                found.append(turn(name, path, count))
        medians = {name: None if None in found else statistics.median(found) for name, found in turns.items()}
        others = [seconds for name, seconds in medians.items() if name != "v2l" and seconds is not None]
        cells = "  ".join(f"{'-' if seconds is None else f'{seconds:.2f} s':>10}" for seconds in medians.values())
        print(f"{count:>6}  {cells}  {medians['v2l'] / min(others):.2f} x")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        __import__(IMPORTS[sys.argv[1]])
        before = used()
        assert READERS[sys.argv[1]](sys.argv[2], int(sys.argv[3])) == int(sys.argv[3])
        print(used() - before)
    elif len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "ten minutes.mp4"
            subprocess.run([*shlex.split(MAKE), made], check=True)
            main(str(made))
