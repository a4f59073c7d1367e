"""Manifests from timed scenes, as the published training draws them from FineVideo (method section 5.1).

`python -m v2l.training.finevideo FOLDER MANIFEST` reads the pairs NAME.json and NAME.mp4 in FOLDER/train, or in
FOLDER/val with `--split val`, and writes rows that refer to ranges of those videos, which v2l reads as if they were
files. `--cut CLIPS` also cuts the clips into files, as published.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from v2l.errors import UsageError, V2LError, errors_in_one_line
from v2l.io.files import sweep, temporary_beside, write_atomically
from v2l.io.text import printable, stated_columns
from v2l.training.finevideo_annotations import Span, read_split

PROMPTS = {
    "scene": ("Describe what is happening in this scene.", "Write a short summary of this scene."),
    "adjacent": ("Summarize this video segment.", "Describe the sequence of events in this segment."),
    "full": ("Summarize this video in 1-3 sentences.",),
}
"""The prompts by kind of span."""
SHARES = {"train": {"scene": 6, "adjacent": 3, "full": 1}, "val": {"scene": 1, "adjacent": 1, "full": 1}}
"""The mixture of each split, by kind of span."""
VALIDATION_ROWS = 3 * 384
FFMPEG_TIMEOUT = 3600
"""Seconds that ffmpeg may take to cut one clip."""


# The mixture -------------------------------------------------------------------------------------------------------


def draw(pools: Mapping[str, Sequence[Span]], split: str, target: int | None = None, seed: int = 42) -> list[Span]:
    """Draw the split's mixture in random order, no span twice: 60% scenes, 30% adjacent scenes and 10% full videos for
    training, a third of each for validation.

    target: the number of rows; None for as many as possible for training, and 1,152 for validation

    The choice depends on the seed and the spans' ids alone, so an additional video changes few rows. Raises UsageError
    if the shares do not divide the target, V2LError if there are too few spans.
    """
    shares = SHARES[split]
    unit = sum(shares.values())
    most = min(len(pools[kind]) // share for kind, share in shares.items())
    if target is None:
        target = VALIDATION_ROWS if split == "val" else max(most, 1) * unit
    if target < 1 or target % unit:
        raise UsageError(f"--target {target}: give a multiple of {unit}, of which {_counted(shares)} are taken")
    if target > most * unit:
        available = _counted({kind: len(pool) for kind, pool in pools.items()})
        fix = f"--target {most * unit} is the largest" if most else "more videos are needed"
        raise V2LError(f"{target:,} rows cannot be drawn from {available}, none of them twice; {fix}")

    def rank(span: Span) -> bytes:
        return hashlib.sha256(f"{seed}:{span.id}".encode("utf-8", "surrogateescape")).digest()

    chosen = [
        span for kind, share in shares.items() for span in sorted(pools[kind], key=rank)[: target // unit * share]
    ]
    return sorted(chosen, key=rank)


def prompt_for(span: Span) -> str:
    """Choose a prompt for the span's kind by the first byte of the SHA-256 of its id, as published."""
    prompts = PROMPTS[span.kind]
    return prompts[hashlib.sha256(span.id.encode("utf-8", "surrogateescape")).digest()[0] % len(prompts)]


def row(span: Span, split: str, folder: Path, clip: Path | None = None) -> dict[str, Any]:
    """Return the manifest's row for a span.

    folder: the folder that video paths are relative to; clip: the file that the span was cut into
    """
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
    """Cut a scene into a file as published: re-encoded by ffmpeg, without sound. An existing file is kept.

    Raises V2LError if ffmpeg fails; no partial file is left.
    """
    assert span.start is not None and span.end is not None  # a full video is not cut
    clip = folder / f"{span.id}-{span.start:.3f}-{span.end:.3f}.mp4"
    if clip.exists():
        return clip
    sweep(folder)
    try:
        with temporary_beside(clip) as (part, _):
            _encode(span, (span.start, span.end), part)
            os.replace(part, clip)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise V2LError(f"ffmpeg cannot cut {printable(span.id)}: {printable(error)}") from error
    return clip


def _encode(span: Span, bounds: tuple[float, float], output: Path) -> None:
    start, end = bounds
    line = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-ss", f"{start:.3f}", "-protocol_whitelist", "file"]
    line += ["-i", f"file:{span.video}", "-t", f"{end - start:.3f}", "-an"]
    line += ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "30", "-f", "mp4", f"file:{output}"]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=FFMPEG_TIMEOUT)
    if done.returncode or not output.stat().st_size:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
        raise V2LError(f"ffmpeg cannot cut {printable(span.id)}: {printable(lines[-1])}")


def cut_all(spans: Sequence[Span], folder: Path, progress: tqdm) -> dict[str, Path]:
    """Cut the spans into files, and return these by the spans' ids; a full video is used as it is. A span that cannot
    be cut is reported and left out."""
    folder.mkdir(exist_ok=True)
    folder = Path(os.path.realpath(folder))
    files: dict[str, Path] = {}
    progress.reset(len(spans))
    for span in spans:
        try:
            files[span.id] = span.video if span.start is None else cut(span, folder)
        except V2LError as error:
            _report(f"error: {error}")
        progress.update()
    return files


def check_ffmpeg() -> None:
    """Raises V2LError if ffmpeg is not installed."""
    if shutil.which("ffmpeg") is None:
        raise V2LError("--cut needs the program ffmpeg; install it (apt-get install ffmpeg), or leave --cut out")


# The program -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m v2l.training.finevideo",
        description="Write a manifest for v2l train from timed-scene annotations like FineVideo's. Entries that cannot "
        "be used are left out and named on standard error. The exit code is 1 if nothing could be written or a clip "
        "could not be cut.",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="Contains train/ and val/ with pairs of json and mp4."
    )
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="The file to write, one JSON object a line.")
    parser.add_argument("--split", choices=tuple(SHARES), default="train", help="Which split to read (default: train).")
    parser.add_argument(
        "--target", type=int, metavar="N", help="Number of rows (default: all for training, 1,152 for validation)."
    )
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="Seed of the draw (default: 42).")
    parser.add_argument("--cut", type=Path, metavar="CLIPS", help="Cut the clips into files in this folder, by ffmpeg.")
    parser.add_argument("--quiet", action="store_true", help="Print no notes and no progress.")
    parser.add_argument("--debug", action="store_true", help="Show where an error came from.")
    return parser


def build(options: argparse.Namespace) -> int:
    """Write the manifest and return the exit code: 1 if a clip could not be cut. Raises V2LError if nothing could be
    written."""
    if options.cut is not None:
        check_ffmpeg()
    for place in (options.manifest.parent, *([options.cut.parent] if options.cut else [])):
        if not place.is_dir():
            raise V2LError(f"there is no folder {printable(place)} to write into; make it first")

    # Read the annotations
    with _progress("video", options.quiet) as bar:
        pools, faults = read_split(options.folder, options.split, lambda done, total: _move(bar, done, total))
    for fault in faults:
        _report(f"warning: {fault}")

    # Draw, and cut the clips if asked for
    drawn, files = draw(pools, options.split, options.target, options.seed), {}
    if options.cut is not None:
        with _progress("clip", options.quiet) as bar:
            files = cut_all(drawn, options.cut, bar)
    kept = [span for span in drawn if options.cut is None or span.id in files]

    # Write the rows
    home = Path(os.path.realpath(options.manifest.parent))
    rows = [row(span, options.split, home, files.get(span.id)) for span in kept]
    write_atomically(options.manifest, "".join(json.dumps(each) + "\n" for each in rows).encode())

    available = _counted({kind: len(pool) for kind, pool in pools.items()})
    taken = _counted({kind: sum(span.kind == kind for span in kept) for kind in pools})
    if not options.quiet:
        _report(f"{len(rows):,} rows: {taken}; drawn from {available}")
    if faults:
        _report(f"warning: {len(faults):,} annotations, scenes or spans could not be used; they are named above")
    failed = len(drawn) - len(kept)
    if failed:
        _report(f"error: {failed:,} clips could not be cut and are left out; the same command tries them again")
    path = printable(options.manifest) if sys.stdout.isatty() else os.fspath(options.manifest)
    sys.stdout.buffer.write(os.fsencode(f"{path}\n"))
    return 1 if failed else 0


@contextlib.contextmanager
def _progress(unit: str, quiet: bool) -> Iterator[tqdm]:
    hidden = quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb"
    columns = stated_columns()
    with tqdm(unit=unit, ncols=columns, dynamic_ncols=not columns, leave=False, disable=hidden) as bar:
        yield bar


def _move(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _report(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def main() -> int:
    """Run the program and return its exit code."""
    parser = _parser()
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # partial files are removed
    with contextlib.nullcontext() if options.debug else errors_in_one_line():
        try:
            return build(options)
        except UsageError as error:
            parser.error(str(error))
        except KeyboardInterrupt:
            _report("interrupted; clips that were cut are kept")
            return 130


if __name__ == "__main__":
    sys.exit(main())
