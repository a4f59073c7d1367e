"""Measure `v2l find`: the right video first among many, and the time of a thousand files.

    python tests/stress/search.py FOLDER [--clips 200] [--from 9000] [--json FILE]

Draws clips of one scene in the embedded world, encodes each as a timeline of two segments, and searches all of them for
the colour, shape and words of each clip, in words that are not those of the index. Then searches single timelines of
eight scenes, each a segment, for a word and for a colour and shape that one scene alone shows. Then searches 1,000
files of 64 segments (the same file under 1,000 names), in processor seconds of the whole command.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from eight_scenes import SCENES, write_clips
from figures import print_figures

import v2l
from v2l.adapters.search import SearchIndex
from v2l.tiny.world.clip import ClipFormat, write_clip
from v2l.tiny.world.questions import visible_words
from v2l.tiny.world.scene import SHAPES, sample_story

FILES, SEGMENTS = 1_000, 64
SECONDS = 8.0


def right_video(folder: Path, clips: int, first: int) -> dict[str, float]:
    """Return how often the clip that a query describes comes first."""
    vlm, hypernetwork = v2l.load_vlm("tiny"), v2l.load_hypernetwork("tiny")
    index, queries = SearchIndex(), {}
    for seed in range(first, first + clips):
        story = sample_story("test", seed, SECONDS, shapes=SHAPES)
        video, output = folder / f"{seed}.mp4", folder / f"{seed}.v2l.safetensors"
        if not output.exists():
            write_clip(story, video, ClipFormat())
            v2l.encode_timeline(video, vlm, hypernetwork, output, segments=2)
        index.add(output)
        shape = story.scenes[0].shapes[0]
        words = visible_words(story, list(np.arange(0.0, SECONDS, 1.0)))
        queries[output] = f"{', '.join(words)} beside some {shape.colour} {shape.kind}"
    found = [index.search(query, 1)[0].path == output for output, query in queries.items()]
    return {"clips": clips, "right video first": sum(found) / len(found)}


def right_segment(folder: Path, clips: int, first: int) -> dict[str, float]:
    """Return how often the segment that a query describes comes first of eight, and the number of queries."""
    vlm, hypernetwork = v2l.load_vlm("tiny"), v2l.load_hypernetwork("tiny")
    folder.mkdir(exist_ok=True)
    found: dict[str, list[bool]] = {"word": [], "colour and shape": []}
    for story, video in write_clips(folder, clips, first):
        output = folder / f"{video.stem}.v2l.safetensors"
        if not output.exists():
            v2l.encode_timeline(video, vlm, hypernetwork, output, segments=SCENES)
        parts = v2l.Timeline.load(output).description.segments
        index = SearchIndex()
        index.add(output)
        words = [visible_words(story, part.timestamps) for part in parts]
        often = Counter(word for each in words for word in {*each})
        pairs = [(scene.shapes[0].colour, scene.shapes[0].kind) for scene in story.scenes]
        for number, part in enumerate(parts):
            queries = [("word", f"where is {word} on the board") for word in words[number] if often[word] == 1]
            if pairs.count(pairs[number]) == 1:
                queries.append(("colour and shape", "some {} thing, a {}".format(*pairs[number])))
            for kind, query in queries:
                best = index.search(query, 1)
                found[kind].append(bool(best) and best[0].start == part.start)
    counts = {f"{kind}, queries": float(len(each)) for kind, each in found.items()}
    return {f"right segment of eight, {kind}": sum(each) / len(each) for kind, each in found.items()} | counts


def thousand_files(folder: Path, source: Path) -> dict[str, float]:
    """Return the processor seconds of searching a thousand files by the command."""
    library = folder / "library"
    library.mkdir(exist_ok=True)
    for number in range(FILES):
        if not (name := library / f"{number:04d}.v2l.safetensors").exists():
            os.link(source, name)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [str(Path(sys.executable).with_name("v2l")), "find", "a red ring", str(library), "--quiet"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"files": FILES, "processor seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def main(folder: Path, clips: int, first: int) -> dict[str, object]:
    """Return all figures."""
    vlm, hypernetwork = v2l.load_vlm("tiny"), v2l.load_hypernetwork("tiny")
    source = folder / "hour.v2l.safetensors"
    if not source.exists():
        write_clip(
            sample_story("test", first, 256.0, count=16, shapes=SHAPES), folder / "hour.mp4", ClipFormat(fps=2.0)
        )
        v2l.encode_timeline(folder / "hour.mp4", vlm, hypernetwork, source, segments=SEGMENTS)
    return {
        **thousand_files(folder, source),
        **right_video(folder, clips, first),
        **right_segment(folder / "eight", clips // 2, first),
    }


if __name__ == "__main__":
    print_figures("Measure v2l find.", main, clips=200, first=9000)
