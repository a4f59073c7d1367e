"""Manifests from timed scenes, as the published training draws them from FineVideo (method section 5.1).

`python -m v2l.training.finevideo FOLDER MANIFEST` reads the pairs NAME.json and NAME.mp4 in FOLDER/train, or in FOLDER/val with
`--split val`, and writes rows that point into those videos: v2l reads a range of a video as if it were a file. `--cut
CLIPS` cuts the clips into files as well, as published.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from v2l.cli.console import Display, command, shown
from v2l.cli.options import Debug, Quiet
from v2l.errors import UsageError, V2LError
from v2l.io.files import part_of, sweep, write_atomically
from v2l.io.text import printable
from v2l.training.finevideo_annotations import Span, read_split

PROMPTS = {
    "scene": ("Describe what is happening in this scene.", "Write a short summary of this scene."),
    "adjacent": ("Summarize this video segment.", "Describe the sequence of events in this segment."),
    "full": ("Summarize this video in 1-3 sentences.",),
}
"""By kind of span."""
SHARES = {"train": {"scene": 6, "adjacent": 3, "full": 1}, "val": {"scene": 1, "adjacent": 1, "full": 1}}
VALIDATION_ROWS = 3 * 384


class Split(StrEnum):
    """The folders of a data set."""

    train = "train"
    val = "val"


# The mixture -------------------------------------------------------------------------------------------------------


def draw(pools: Mapping[str, Sequence[Span]], split: str, target: int | None = None, seed: int = 42) -> list[Span]:
    """The split's mixture, no span twice: 60% scenes, 30% adjacent ones and 10% full videos to train on, a third each
    to validate. As many as there can be to train on, 1,152 to validate, or `target`; in random order.

    Which ones follows from the seed and the spans' ids alone, so one more video changes few of the others. Raises
    UsageError for a target that the shares do not divide, V2LError where there are not as many.
    """
    shares = SHARES[split]
    unit = sum(shares.values())
    most = min(len(pools[kind]) // share for kind, share in shares.items())
    if target is None:
        target = VALIDATION_ROWS if split == "val" else max(most, 1) * unit
    if target < 1 or target % unit:
        raise UsageError(f"--target {target}: give a multiple of {unit}, of which {_counted(shares)} are taken")
    if target > most * unit:
        there = _counted({kind: len(pool) for kind, pool in pools.items()})
        fix = f"--target {most * unit} is the largest" if most else "more videos are needed"
        raise V2LError(f"{target:,} rows cannot be drawn from {there}, none of them twice; {fix}")

    def rank(span: Span) -> bytes:
        return hashlib.sha256(f"{seed}:{span.id}".encode("utf-8", "surrogateescape")).digest()

    chosen = [
        span for kind, share in shares.items() for span in sorted(pools[kind], key=rank)[: target // unit * share]
    ]
    return sorted(chosen, key=rank)


def prompt_for(span: Span) -> str:
    """One of the prompts for its kind, by the first byte of the SHA-256 of its id, as published."""
    prompts = PROMPTS[span.kind]
    return prompts[hashlib.sha256(span.id.encode("utf-8", "surrogateescape")).digest()[0] % len(prompts)]


def row(span: Span, split: str, folder: Path, clip: Path | None = None) -> dict[str, Any]:
    """The manifest's row of a span. folder: that video paths start from; clip: the file it was cut into"""
    bounds = {} if span.start is None else {"clip_start_sec": span.start, "clip_end_sec": span.end}
    return {
        "id": span.id,
        "video_path": os.path.relpath(clip or span.video, folder),
        "task_type": "caption",
        "prompt": prompt_for(span),
        "target_text": span.target,
        "dataset": "finevideo",
        "split": split,
        "metadata": span.about | (bounds if clip else {}),
        **({} if clip else bounds),
    }


def _counted(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in numbers.items())


# Clips -------------------------------------------------------------------------------------------------------------


def cut(span: Span, folder: Path) -> Path:
    """The span in a file of its own, as published: re-encoded by ffmpeg, without sound. One that is there already is
    taken as it is. Raises V2LError, nothing half-written left, where ffmpeg cannot."""
    clip = folder / f"{span.id}-{span.start:.3f}-{span.end:.3f}.mp4"
    if clip.exists():
        return clip
    sweep(folder)
    try:
        with part_of(clip) as (part, _):
            _encode(span, part)
            os.replace(part, clip)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise V2LError(f"ffmpeg cannot cut {printable(span.id)}: {printable(error)}") from error
    return clip


def _encode(span: Span, output: Path) -> None:
    line = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-ss", f"{span.start:.3f}", "-protocol_whitelist", "file"]
    line += ["-i", f"file:{span.video}", "-t", f"{span.end - span.start:.3f}", "-an"]
    line += ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "30", "-f", "mp4", f"file:{output}"]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=3600)
    if done.returncode or not output.stat().st_size:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
        raise V2LError(f"ffmpeg cannot cut {printable(span.id)}: {printable(said[-1])}")


def _cut_each(spans: Sequence[Span], folder: Path, display: Display) -> dict[str, Path]:
    """The files of the spans by id, that of a full video its own; those that cannot be cut are told."""
    folder.mkdir(exist_ok=True)
    folder = Path(os.path.realpath(folder))
    files: dict[str, Path] = {}
    display.start_progress(len(spans), "clip")
    for done, span in enumerate(spans):
        display.progress(done, len(spans))
        try:
            files[span.id] = span.video if span.start is None else cut(span, folder)
        except V2LError as error:
            display.error(str(error))
    display.end_progress()
    return files


def check_ffmpeg() -> None:
    """Raises V2LError where the program is not installed."""
    if shutil.which("ffmpeg") is None:
        raise V2LError("--cut needs the program ffmpeg; install it (apt-get install ffmpeg), or leave --cut out")


# The command -------------------------------------------------------------------------------------------------------


def build(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Holds train/ and val/, pairs of json and mp4.")],
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Where the rows go, one JSON object a line.")],
    split: Annotated[Split, typer.Option("--split", help="Which of the two, and its mixture.")] = Split.train,
    target: Annotated[
        int | None, typer.Option("--target", metavar="N", help="PackedRows; else all that can be, 1,152 to validate.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the draw.")] = 42,
    clips: Annotated[
        Path | None, typer.Option("--cut", metavar="CLIPS", help="Cut the clips into files there, by ffmpeg.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a manifest for v2l train from timed-scene annotations like FineVideo's.

    What cannot be used is left out and named on standard error; the exit code is 1 where nothing could be written or a
    clip could not be cut.
    """
    with command(False, quiet, debug) as display:
        if clips is not None:
            check_ffmpeg()
        for place in (manifest.parent, *([clips.parent] if clips else [])):
            if not place.is_dir():
                raise V2LError(f"there is no folder {printable(place)} to write into; make it first")
        display.start_progress(1, "video")
        pools, faults = read_split(folder, split, display.progress)
        display.end_progress()
        for fault in faults:
            display.warn(fault)
        drawn = draw(pools, split, target, seed)
        files = {} if clips is None else _cut_each(drawn, clips, display)
        kept = [span for span in drawn if clips is None or span.id in files]
        home = Path(os.path.realpath(manifest.parent))
        rows = [row(span, split, home, files.get(span.id)) for span in kept]
        write_atomically(manifest, "".join(json.dumps(each) + "\n" for each in rows).encode())
        there = _counted({kind: len(pool) for kind, pool in pools.items()})
        taken = _counted({kind: sum(span.kind == kind for span in kept) for kind in pools})
        display.note(f"{len(rows):,} rows: {taken}; drawn from {there}")
        if faults:
            display.warn(f"{len(faults):,} annotations, scenes or spans could not be used; they are named above")
        failed = len(drawn) - len(kept)
        if failed:
            display.error(f"{failed:,} clips could not be cut and are left out; the same command tries them again")
        display.result(shown(manifest), {})
        raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(build)
