"""Find the videos that a command line names, and the files that their adapters are written to."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from v2l.errors import UsageError, V2LError
from v2l.inference.cache import AdapterCache
from v2l.inference.naming import ADAPTER_SUFFIX, OutputNames, is_adapter, is_video, part_name
from v2l.io.files import unreadable
from v2l.io.text import is_address, printable
from v2l.video.sampling import Reading

_SIDECAR_SUFFIXES = frozenset(
    ".ass .csv .description .gguf .html .json .jsonl .log .lrc .md .md5 .nfo .pdf .peft .pt .safetensors .sbv .sha256 "
    ".srt .ssa .torrent .tsv .txt .vtt .xml .ytdl".split()
)
"""Suffixes of files beside videos that are none, and of the folder that `v2l export` writes."""


@dataclass(frozen=True)
class Target:
    """A video and the path of its adapter.

    output: the adapter's path; with segments the composed adapter's, from which the segments' names are derived
    error: why there is no video to encode, empty if there is one; `video` is then the input as given
    cache: where else its adapter may be, by the content of the video
    """

    video: Path
    output: Path
    error: str = ""
    cache: AdapterCache | None = None

    def segment(self, index: int, count: int = 1) -> Target:
        """Return the target of segment `index`, counted from 0, of `count`: lecture.000.v2l.safetensors for
        lecture.v2l.safetensors. Their order by name is that of time."""
        return replace(self, output=self.output.with_name(part_name(self.output.name, index, count)), cache=None)

    def in_cache(self) -> Target:
        """Return the target in the cache; hashes the video. Raises V2LError if it cannot be read."""
        assert self.cache is not None, "a target without a cache has one place"
        return replace(self, output=self.cache.path(self.video, self.output.name), cache=None)


@dataclass(frozen=True)
class Destination:
    """Where adapters are written: beside their videos, to the file `output`, or into `folder`.

    cache: a folder of adapters by the content of their videos, for those that cannot be written beside them
    prefers_cache: write every adapter there
    """

    output: Path | None = None
    folder: Path | None = None
    cache: Path | None = None
    prefers_cache: bool = False


def find_targets(
    inputs: Sequence[Path], destination: Destination, reading: Reading, recursive: bool = False
) -> list[Target]:
    """Return the targets of files and folders in the given order, each video once, the videos of a folder sorted by
    name. An input without a video, or with one that is not there, becomes a target with an `error`.

    reading: its start and end become part of the default names
    recursive: also search subfolders
    In `destination.folder`, adapters have the paths of their videos relative to the folder that all inputs have in
    common.

    Raises UsageError if `destination` does not fit the videos.
    """
    found = [each for given in inputs for each in _videos_of(given, recursive)]
    videos = list({os.path.abspath(path): path for path, error in reversed(found) if not error}.values())
    _check_output(destination.output, len(videos))
    outputs: dict[Path, Path | V2LError] = {}
    if destination.output:
        outputs = dict.fromkeys(videos, destination.output)
    else:
        outputs = OutputNames(destination.folder, _common_folder(inputs), _range_name(reading), videos).outputs()
    targets = []
    for path, error in dict.fromkeys(found):
        if error:
            targets.append(Target(path, path, error))
        elif path in outputs:
            targets.append(_target(path, outputs[path], destination, reading))
    return targets


def _check_output(output: Path | None, videos: int) -> None:
    """Raise UsageError if `-o` does not fit."""
    if output and videos and not is_adapter(output.name):
        raise UsageError(f"-o {printable(output)} must end in {ADAPTER_SUFFIX}, by which `v2l ask` knows an adapter")
    if output and videos > 1:
        raise UsageError(f"-o names one file and {videos} videos were given; use --output-dir")


def _target(video: Path, output: Path | V2LError, destination: Destination, reading: Reading) -> Target:
    if isinstance(output, V2LError):
        return _if_there(Target(video, video, str(output)))
    cache = None
    if destination.cache:
        cache = AdapterCache(destination.cache, _range_name(reading), destination.prefers_cache)
    return _if_there(Target(video, output, cache=cache))


def _common_folder(inputs: Sequence[Path]) -> str:
    """Return the folder that files and folders have in common; the root if they are on several drives."""
    folders = [
        os.path.abspath(given) if os.path.isdir(given) else os.path.dirname(os.path.abspath(given))
        for given in inputs
        if not _is_missing_address(given)
    ]
    try:
        return os.path.commonpath(folders)
    except ValueError:
        return os.path.abspath(os.sep)


def split_sidecars(inputs: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the inputs to encode and those to pass over, as in `v2l encode talks/*`.

    Adapters, subtitles, other text, and every file with the name of a video among the inputs and another suffix are
    passed over if there is a video or a folder beside them.
    """
    named = {(path.parent, path.stem) for path in inputs if is_video(path.name)}

    def is_sidecar(path: Path) -> bool:
        name = path.name
        if is_video(name) or not os.path.exists(path):
            return False
        stems = (name[:place] for place, char in enumerate(name) if char == ".")
        return path.suffix.lower() in _SIDECAR_SUFFIXES or any((path.parent, stem) in named for stem in stems)

    passed = [path for path in inputs if is_sidecar(path)]
    apart = set(passed)
    encoded = [path for path in inputs if path not in apart]
    if any(is_video(path.name) or os.path.isdir(path) for path in encoded):
        return encoded, passed
    return list(inputs), []


def read_names(file: BinaryIO) -> list[Path]:
    """Read a list of file names: one per line, or NUL-separated if it contains a NUL (as `find -print0` writes)."""
    content = file.read()
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [Path(os.fsdecode(name)) for name in names if name]


def _if_there(target: Target) -> Target:
    """Return the target, with an error if its video is missing."""
    try:
        os.stat(target.video)
    except (OSError, ValueError) as error:  # a ValueError: a name that no file can have
        return target if target.error else replace(target, error=str(unreadable(target.video, error)))
    return target


def _videos_of(given: Path, recursive: bool) -> Iterator[tuple[Path, str]]:
    """Yield (path, error) for a file, or for the videos of a folder."""
    if _is_missing_address(given):
        yield given, str(unreadable(given, FileNotFoundError()))
    elif is_adapter(given.name) and os.path.isfile(given):
        yield given, f"{printable(given)} is an adapter; name the video to encode"
    elif not os.path.isdir(given):  # False also for a name that no file can have
        yield given, ""
    else:
        empty = True
        for found in _walk(given, recursive, is_video):
            empty = False
            yield found
        if empty:
            hint = "" if recursive else " (--recursive also searches its subfolders)"
            yield given, f"the folder {printable(given)} holds no videos{hint}"


def _is_missing_address(given: Path) -> bool:
    return is_address(given) and not os.path.exists(given)


def find_adapters(inputs: Sequence[Path], recursive: bool = False) -> list[tuple[Path, str]]:
    """Return (path, error) for files and for the adapters of folders, in the given order, each once. The error is empty
    for a path to read; a folder that cannot be listed or has no adapters has one."""
    found: list[tuple[Path, str]] = []
    for given in inputs:
        if not os.path.isdir(given):
            hint = f"{printable(given)} is a video; name its adapter (*{ADAPTER_SUFFIX}), or encode it first"
            found.append((given, hint if is_video(given.name) and os.path.exists(given) else ""))
        elif listed := list(_walk(given, recursive, is_adapter)):
            found += listed
        else:
            hint = "encode its videos first" + ("" if recursive else "; --recursive also searches its subfolders")
            found.append((given, f"the folder {printable(given)} holds no adapters (*{ADAPTER_SUFFIX}); {hint}"))
    return list(dict.fromkeys(found))


def _walk(folder: Path, recursive: bool, wanted: Callable[[str], bool]) -> Iterator[tuple[Path, str]]:
    """Yield (path, error) for the files of a folder with a wanted name, sorted by name, and then for those of its
    subfolders if `recursive`. A folder that cannot be listed has an error. Links to folders are not followed, hidden
    names skipped.
    """
    pending = [folder]  # no recursion: folders may be nested deeper than Python's call stack
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as entries:
                visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            yield current, _listing_error(current, error)
            continue
        folders = []
        for entry in visible:
            if _is_folder(entry):
                folders.append(entry)
            elif wanted(entry.name):
                yield current / entry.name, ""
        if recursive:
            pending += [current / entry.name for entry in reversed(folders) if not entry.is_symlink()]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _listing_error(folder: Path, error: OSError) -> str:
    why = f"{error.strerror or error}; check its permissions"
    if error.errno == errno.ENAMETOOLONG:
        why = "its path is longer than the system allows; move it further up"
    return f"cannot list {printable(folder)}: {why}"


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
    """Shard number `index`, from 1 to `count`."""

    index: int
    count: int

    def of(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets of this shard. A target is assigned by the hash of its name as given, so every machine
        computes the same partition and one more or fewer video moves no other."""
        return [target for target in targets if self._number(target) == self.index]

    def _number(self, target: Target) -> int:
        name = os.fsencode(target.video)
        return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % self.count + 1


def read_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """Parse `2/8`, or read the task of a Slurm job array for `auto`. Raises UsageError if either is impossible."""
    if text == "auto":
        try:
            task, count = int(environment[TASK]), int(environment[COUNT])
            first, step = int(environment.get(FIRST, "0")), int(environment.get(STEP, "1"))
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"--shard auto reads {TASK} and {COUNT}, which a Slurm job array sets; elsewhere give --shard 1/4"
            ) from error
        index = (task - first) // max(step, 1) + 1
        if not 1 <= index <= count:
            raise UsageError(f"{TASK}={task} is outside the {count} tasks from {FIRST}={first}; give --shard I/N")
        return Shard(index, count)
    number, slash, total = text.partition("/")
    if not (slash and number.isascii() and number.isdigit() and total.isascii() and total.isdigit()):
        raise UsageError(f"--shard {printable(text)}: write INDEX/COUNT, the first of four as 1/4, or auto")
    if not 1 <= int(number) <= int(total):
        raise UsageError(f"--shard {printable(text)}: there are shards 1 to {int(total)}")
    return Shard(int(number), int(total))
