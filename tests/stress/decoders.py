"""Comparison of v2l and three libraries, with their default use, on the corpus of odd videos.

    python tests/stress/decoders.py            includes torchcodec if it is installed

A result is right if every frame has the expected number, time (within half a frame), size and colours, or if a file
that must be refused is refused. It is wrong if a file is read otherwise without an error.
"""

import collections
import importlib.util
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import odd_videos
from odd_videos import KINDS, Kind

PATIENCE = 120
Pictures = list[tuple[float, np.ndarray]]
"""Seconds from the container's start and pixels (H, W, 3) of every frame."""


def with_v2l(path: str) -> Pictures:
    from v2l.video.probe import probe, read_frames

    video = probe(path)
    return [(frame.seconds, frame.pixels) for frame in read_frames(video, range(video.frame_count))]


def with_pyav(path: str) -> Pictures:
    import av

    with av.open(path) as container:
        start = (container.start_time or 0) / av.time_base
        return [(frame.time - start, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def with_opencv(path: str) -> Pictures:
    import cv2

    capture, found = cv2.VideoCapture(path, cv2.CAP_FFMPEG), []
    while capture.grab():
        ok, image = capture.retrieve()
        assert ok
        found.append((capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)))
    return found


def with_torchcodec(path: str) -> Pictures:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path)
    start = decoder.metadata.begin_stream_seconds or 0.0
    frames = [decoder.get_frame_at(index) for index in range(len(decoder))]
    return [(frame.pts_seconds - start, frame.data.permute(1, 2, 0).numpy()) for frame in frames]


READERS = {"v2l": with_v2l, "PyAV": with_pyav, "OpenCV": with_opencv, "torchcodec": with_torchcodec}


def is_right(kind: Kind, pictures: Pictures) -> bool:
    upright = kind.upright or (lambda pixels: pixels)
    turned = [upright(pixels) for _, pixels in pictures]
    if [odd_videos.number_of(pixels) for pixels in turned] != list(kind.numbers):
        return False
    times = np.array([seconds for seconds, _ in pictures])
    sizes = [pixels.shape[1::-1] for _, pixels in pictures]
    errors = [
        np.abs(odd_videos.cells_of(pixels) - odd_videos.colours(number)).max()
        for pixels, number in zip(turned, kind.numbers, strict=True)
    ]
    return (
        bool(np.abs(times - np.array(kind.times)).max() <= kind.within + 1e-9)
        and sizes == list(kind.sizes or [kind.size] * len(sizes))
        and (kind.levels is None or max(errors) <= kind.levels)
    )


def verdict(reader: str, name: str, path: str, answers: multiprocessing.SimpleQueue) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    kind = KINDS[name]
    try:
        pictures = READERS[reader](path)
    except BaseException:
        pictures = []
    if not pictures:
        answers.put("right" if kind.refused else "refused, and is sound")
    elif kind.refused:
        answers.put("read, and must be refused")
    else:
        answers.put("right" if is_right(kind, pictures) else "wrong, without an error")


def main() -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        paths = {name: str(odd_videos.make(name, Path(place))) for name in KINDS}
        print(f"{len(paths)} files")
        for reader in READERS:
            if reader == "torchcodec" and not importlib.util.find_spec("torchcodec"):
                continue
            counts: collections.Counter = collections.Counter()
            for name, path in paths.items():
                answers = context.SimpleQueue()
                child = context.Process(target=verdict, args=(reader, name, path, answers))
                child.start()
                child.join(PATIENCE)
                child.kill()
                found = "crashed or hung" if answers.empty() else answers.get()
                counts[found] += 1
                if reader == "v2l" and found != "right":
                    print(f"  v2l: {name}: {found}")
            print(f"{reader:10}  " + ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common()))


if __name__ == "__main__":
    main()
