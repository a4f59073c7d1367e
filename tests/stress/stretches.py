"""Measure how many segments may answer together: accuracy about one second by the number of neighbours attached.

    python tests/stress/stretches.py FOLDER [--clips 6] [--from 7000] [--json FILE]

Draws clips of 256 seconds in the embedded world, encodes timelines of 16-second segments, and asks every question that
names a time with 1 to 6 consecutive segments attached, among them the one that shows the time.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from figures import print_figures

import v2l
from v2l.adapters.asked_time import asked_time
from v2l.adapters.routing import segments_between
from v2l.inference.ask import ask_each
from v2l.io.manifest import group_by_clip, read_manifest
from v2l.tiny.world.dataset import length, write_dataset

MOST = 6


def main(folder: Path, clips: int, first: int) -> dict[str, object]:
    """Return the accuracy by number of attached segments, and the number of questions."""
    vlm, hypernetwork = v2l.load_vlm("tiny"), v2l.load_hypernetwork("tiny")
    manifest = write_dataset(folder, "test", clips, length(256), "test-length-256", "scenes", first)
    right: dict[int, list[bool]] = defaultdict(list)
    for asked in group_by_clip(read_manifest(manifest)):
        timeline = v2l.encode_timeline(
            asked[0].video, vlm, hypernetwork, folder / "clip.v2l.safetensors", segment_seconds=16, index=False
        )
        parts = timeline.description.segments
        for example in asked:
            stretches = asked_time(example.prompt, 256.0).stretches
            if not stretches:
                continue
            (number,) = segments_between(parts, *stretches[0])
            for count in range(1, MOST + 1):
                start = min(max(0, number - count // 2), len(parts) - count)
                adapter = timeline.select(range(start, start + count))
                (answer,) = ask_each([adapter], [example.prompt], vlm, 40, whole=True)
                right[count].append(answer == example.target)
    found = {f"{count} segments": round(sum(each) / len(each), 4) for count, each in right.items()}
    return {**found, "questions": len(right[1])}


if __name__ == "__main__":
    print_figures("Measure how many segments may answer together.", main, clips=6, first=7000)
