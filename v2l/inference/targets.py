"""Which videos a command line means, and where their adapters go."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from v2l.errors import UsageError, V2LError
from v2l.io.text import printable
from v2l.video.sampling import Reading

ADAPTER_SUFFIX = ".v2l.safetensors"
VIDEO_SUFFIXES = frozenset(".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
"""What a folder's videos are known by; a file that is named itself may have any name."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a Path has lost the second slash


@dataclass(frozen=True)
class Target:
    """A video and its adapter's place. With segments, `output` is the composed adapter's and the segments' names come
    from it."""

    video: Path
    output: Path

    def segment(self, index: int) -> Target:
        """The place of segment `index`, counted from 0: lecture.000.v2l.safetensors beside lecture.v2l.safetensors."""
        stem = self.output.name.removesuffix(ADAPTER_SUFFIX)
        return replace(self, output=self.output.with_name(f"{stem}.{index:03d}{ADAPTER_SUFFIX}"))


@dataclass(frozen=True)
class Nothing:
    """An input with no video to encode, and why."""

    given: Path
    reason: str


@dataclass(frozen=True)
class Destination:
    """Where adapters are to go: beside their videos unless `output` (one file) or `folder` is given."""

    output: Path | None = None
    folder: Path | None = None


def find_targets(
    inputs: Sequence[Path], destination: Destination, reading: Reading, recursive: bool = False
) -> list[Target | Nothing]:
    """The targets of files and folders, in the order given, folders sorted by name; `Nothing` in the place of an input
    that holds none.

    reading: its start and end go into the default names
    recursive: look into the folders of folders; with `destination.folder` their tree is kept there

    Raises UsageError where two videos would write one adapter, or `destination` cannot serve them all.
    """
    found: list[Target | Nothing] = []
    for given in inputs:
        if _ADDRESS.match(os.fspath(given)) and not os.path.exists(given):
            found.append(Nothing(given, f"{printable(given)} is an address; v2l reads local files, fetch it first"))
            continue
        if not os.path.isdir(given):  # False also for a name that no file can have
            found.append(Target(given, _place(given, Path(given.name), destination, reading)))
            continue
        inside = [
            each
            if isinstance(each, Nothing)
            else Target(each, _place(each, each.relative_to(given), destination, reading))
            for each in _videos(given, recursive)
        ]
        deeper = "" if recursive else " (--recursive looks into its folders too)"
        found += inside or [Nothing(given, f"the folder {printable(given)} holds no videos{deeper}")]
    found = list(dict.fromkeys(found))
    targets = [target for target in found if isinstance(target, Target)]
    if destination.output and len(targets) > 1:
        raise UsageError(f"-o names one file and {len(targets)} videos were given; use --output-dir")
    taken: dict[Path, Path] = {}
    for target in targets:
        other = taken.setdefault(Path(os.path.abspath(target.output)), target.video)
        if os.path.abspath(other) != os.path.abspath(target.video):
            raise UsageError(
                f"{printable(other)} and {printable(target.video)} would both write {printable(target.output)}; "
                "encode them apart, with -o or --output-dir"
            )
    return found


def read_names(file: BinaryIO) -> list[Path]:
    """File names of a list, one a line, or separated by NUL where it holds one (as `find -print0` writes)."""
    content = file.read()
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [Path(os.fsdecode(name)) for name in names if name]


def adapters_in(folder: Path) -> list[Path]:
    """A folder's adapters, sorted by name. Raises V2LError if there are none, or the folder cannot be listed."""
    try:
        found = sorted(path for path in folder.iterdir() if path.name.endswith(ADAPTER_SUFFIX))
    except OSError as error:
        raise V2LError(_unlisted(folder, error)) from error
    if not found:
        raise V2LError(f"the folder {printable(folder)} holds no adapters (*{ADAPTER_SUFFIX}); encode its videos first")
    return found


def _videos(folder: Path, recursive: bool) -> Iterator[Path | Nothing]:
    """A folder's videos, sorted by name, then those of the folders in it, if `recursive`, each in the same order. A
    folder that cannot be listed is a `Nothing` in its place. Links to folders are not followed, hidden names are left
    out."""
    waiting = [folder]  # no recursion: folders may be nested deeper than Python's calls
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            yield Nothing(place, _unlisted(place, error))
            continue
        folders = []
        for entry in shown:
            if _is_folder(entry):
                folders.append(entry)
            elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
                yield place / entry.name
        if recursive:
            waiting += [place / entry.name for entry in reversed(folders) if not entry.is_symlink()]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _unlisted(folder: Path, error: OSError) -> str:
    why = f"{error.strerror or error}; check its permissions"
    if error.errno == errno.ENAMETOOLONG:
        why = "its path is longer than the system takes; move it further up"
    return f"cannot list {printable(folder)}: {why}"


def _place(video: Path, relative: Path, destination: Destination, reading: Reading) -> Path:
    if destination.output:
        if not destination.output.name.endswith(ADAPTER_SUFFIX):
            raise UsageError(
                f"-o {printable(destination.output)} must end in {ADAPTER_SUFFIX}, by which `v2l ask` knows an adapter"
            )
        return destination.output
    name = f"{video.stem}{_range_name(reading)}{ADAPTER_SUFFIX}"
    return destination.folder / relative.parent / name if destination.folder else video.with_name(name)


def _range_name(reading: Reading) -> str:
    if reading.start is None and reading.end is None:
        return ""
    end = "end" if reading.end is None else _seconds(reading.end)
    return f".{_seconds(reading.start or 0.0)}-{end}"


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


TASK, COUNT = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"
FIRST, STEP = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"


@dataclass(frozen=True)
class Shard:
    """Number `index`, 1 to `count`, of that many."""

    index: int
    count: int

    def of(self, targets: Sequence[Target | Nothing]) -> list[Target | Nothing]:
        """Those that belong to it, by the name of each as it was given: the same command on every machine parts them
        alike, and one more or less video moves no other."""
        return [target for target in targets if self._number(target) == self.index]

    def _number(self, target: Target | Nothing) -> int:
        name = os.fsencode(target.video if isinstance(target, Target) else target.given)
        return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % self.count + 1


def read_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """`2/8`, or `auto` for what a Slurm job array says. Raises UsageError."""
    if text == "auto":
        try:
            task, count = int(environment[TASK]), int(environment[COUNT])
            first, step = int(environment.get(FIRST, "0")), int(environment.get(STEP, "1"))
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"--shard auto reads {TASK} and {COUNT}, which a Slurm job array sets; outside one say --shard 1/4"
            ) from error
        index = (task - first) // max(step, 1) + 1
        if not 1 <= index <= count:
            raise UsageError(f"{TASK}={task} lies outside the {count} tasks from {FIRST}={first} on; say --shard I/N")
        return Shard(index, count)
    index, slash, count = text.partition("/")
    if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise UsageError(f"--shard {printable(text)}: write INDEX/COUNT, the first of four as 1/4, or auto")
    if not 1 <= int(index) <= int(count):
        raise UsageError(f"--shard {printable(text)}: there are shards 1 to {int(count)}")
    return Shard(int(index), int(count))
