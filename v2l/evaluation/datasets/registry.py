"""The list of benchmarks and the paper's protocol: a number of samples of each, selected by a seed and recorded.

The selection depends on the annotations, the number and the seed only, not on the videos that exist: an incomplete
download is reported and does not change the selection. The paper states no seed; the default here is 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.evaluation.datasets import activitynet, carebench, nextqa, plm, vdc, vidcapbench
from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Folder, Unit
from v2l.io.manifest import Example
from v2l.io.text import printable

SEED = 0


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    read: reads the units of its published files; videos: folders that may contain its videos
    task: "caption" or "qa"; samples: number of units in the paper
    """

    read: Callable[[Folder], Iterator[Unit]]
    videos: tuple[str, ...]
    task: str
    samples: int = 500


BENCHMARKS = {
    "activitynet-captions": Benchmark(activitynet.read_captions, activitynet.VIDEOS, "caption"),
    "plm-rdcap": Benchmark(plm.read_rdcap, plm.SAV_VIDEOS, "caption"),
    "plm-rcap": Benchmark(plm.read_rcap, plm.SAV_VIDEOS, "caption"),
    "vdc": Benchmark(vdc.read, vdc.VIDEOS, "caption"),
    "carebench": Benchmark(carebench.read, carebench.VIDEOS, "caption"),
    "nextqa": Benchmark(nextqa.read, nextqa.VIDEOS, "qa"),
    "activitynet-qa": Benchmark(activitynet.read_qa, activitynet.VIDEOS, "qa"),
    "plm-sgqa": Benchmark(plm.read_sgqa, plm.SGQA_VIDEOS, "qa"),
    "vidcapbench": Benchmark(vidcapbench.read, vidcapbench.VIDEOS, "qa", samples=100),
}
"""The benchmarks by name. `names.py` repeats the names, so that the command line need not import the readers."""


@dataclass(frozen=True)
class Chosen:
    """The selected questions of a benchmark, or those of a manifest, which sets the examples only.

    record: benchmark, samples, seed and sha256 of the annotations, which reproduce the selection
    videos: number of videos; missing: videos that were not found, with their names in the annotations
    unanswerable: number of questions without a reference, removed before the selection
    """

    examples: list[Example]
    record: dict[str, Any] = field(default_factory=dict)
    videos: int = 0
    missing: dict[Path, str] = field(default_factory=dict)
    unanswerable: int = 0


def read_benchmark(name: str, root: Path, samples: int | None = None, seed: int = SEED) -> Chosen:
    """Read the published files of a benchmark in the folder `root` and select `samples` units, None for the paper's
    number. Raises V2LError if files are missing or not as published, or if none of the selected videos exists."""
    benchmark, folder = BENCHMARKS[name], Folder(root)
    units, unanswerable = _answerable(name, benchmark.read(folder))
    samples = samples or benchmark.samples
    examples: list[Example] = []
    missing: dict[Path, str] = {}
    videos = set()
    for unit in choose(units, samples, seed):
        found = folder.video(unit.videos, benchmark.videos)
        video = found or root / benchmark.videos[0] / unit.videos[0]
        videos.add(video)
        if found is None:
            missing[video] = unit.videos[0]
        examples += [_example(question, unit, video, benchmark.task) for question in unit.questions]
    if len(missing) == len(videos):
        raise V2LError(
            f"none of the {len(videos)} videos that {name} asks about is in {printable(root)}; the first was looked "
            f"for as {printable(next(iter(missing)))}, docs/benchmarks.md describes the folders"
        )
    record = {"benchmark": name, "samples": samples, "seed": seed, "annotations": folder.digests}
    return Chosen(examples, record, len(videos), missing, unanswerable)


def choose(units: Sequence[Unit], samples: int, seed: int) -> list[Unit]:
    """Select `samples` units, or all if there are fewer, sorted by key. Those with the lowest sha256 of seed and key
    are selected: the same ones on every machine, and a smaller selection is part of a larger one."""

    def rank(unit: Unit) -> str:
        return hashlib.sha256(f"{seed}:{unit.key}".encode("utf-8", "surrogatepass")).hexdigest()

    return sorted(sorted(units, key=rank)[:samples], key=lambda unit: unit.key)


def _answerable(name: str, units: Iterator[Unit]) -> tuple[list[Unit], int]:
    """Return the units without the questions that have no reference, and the number of those questions."""
    kept: dict[str, Unit] = {}
    unanswerable = 0
    for unit in units:
        if unit.key in kept:
            raise V2LError(
                f"the annotations of {name} have {printable(unit.key)} twice; fetch the published files again"
            )
        questions = tuple(question for question in unit.questions if question.target)
        unanswerable += len(unit.questions) - len(questions)
        if questions:
            kept[unit.key] = Unit(unit.key, unit.videos, questions, unit.start, unit.end)
    if not kept:
        raise V2LError(f"the annotations of {name} ask nothing; fetch the published files again")
    return list(kept.values()), unanswerable


def _example(question: BenchmarkQuestion, unit: Unit, video: Path, task: str) -> Example:
    return Example(question.id, video, task, question.kind, question.prompt, question.target, unit.start, unit.end)
