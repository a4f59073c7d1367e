"""What 12 frames of a long video cost against all of them: `python tests/hour.py VIDEO`."""

import sys
import time

import cv2

from v2l.sampling import choose_frames
from v2l.video import probe, read_frames

path = sys.argv[1]
start = time.perf_counter()
video = probe(path)
probed = time.perf_counter() - start
frames = list(read_frames(video, choose_frames(video, 12)))
sparse = time.perf_counter() - start

capture, count, start = cv2.VideoCapture(path, cv2.CAP_FFMPEG), 0, time.perf_counter()
while capture.read()[0]:
    count += 1
whole = time.perf_counter() - start
print(
    f"{count} frames: probe {probed:.2f} s, probe and 12 frames {sparse:.2f} s, all {whole:.1f} s, {sparse / whole:.1%}"
)
