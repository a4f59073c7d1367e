"""Name the adapters of videos, where several videos could have the same one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from v2l.adapters.timeline_description import read_adapter_file
from v2l.errors import V2LError
from v2l.io.files import FileIdentity
from v2l.io.text import printable

ADAPTER_SUFFIX = ".v2l.safetensors"
VIDEO_SUFFIXES = frozenset(".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
"""Suffixes of the videos in a folder. A file given by name may have any suffix."""


def is_adapter(name: str) -> bool:
    """Return whether a file is an adapter by its name."""
    return name.endswith(ADAPTER_SUFFIX)


def is_video(name: str) -> bool:
    """Return whether a file is a video by its name."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def part_name(adapter: str, index: int, count: int) -> str:
    """Return the name of the file of a segment, by the name of the adapter of the whole."""
    digits = max(3, len(str(count - 1)))
    return f"{adapter.removesuffix(ADAPTER_SUFFIX)}.{index:0{digits}d}{ADAPTER_SUFFIX}"


class OutputNames:
    """The paths of the adapters of a run.

    The adapter of talk.mp4 is talk.v2l.safetensors. If its folder also holds talk.avi, one of them has its full name,
    talk.avi.v2l.safetensors: which one depends on the adapters that exist, then on the names in the folder, and never
    on the other inputs.

    folder: receives the adapters, with the videos' folders below `common`; None for beside the videos
    range_name: of the range that is read, as part of the names; videos: of the run
    """

    def __init__(self, folder: Path | None, common: str, range_name: str, videos: Sequence[Path]):
        self._folder, self._common, self._range = folder, common, range_name
        self._videos = videos
        self._listed: dict[str, dict[str, set[str]]] = {}
        self._places: dict[str, tuple[Path, list[Path], list[Path]]] = {}

    def outputs(self) -> dict[Path, Path | V2LError]:
        """Return the path of the adapter of every video, or why it has none: no two have the same."""
        chosen = {video: self._choose(self._places_of(video)[0], video) for video in self._videos}
        taken = {os.path.abspath(path) for path in chosen.values()}
        for video in sorted(chosen):
            if (found := self._find_elsewhere(video, chosen[video])) and os.path.abspath(found) not in taken:
                chosen[video] = found
                taken.add(os.path.abspath(found))
        owners: dict[str, Path] = {}
        return {video: self._check(video, chosen[video], owners) for video in sorted(chosen)}

    def _check(self, video: Path, output: Path, owners: dict[str, Path]) -> Path | V2LError:
        """Return the output, or the error if it is also that of another video."""
        is_full = output == self._full(output.parent, video) != self._plain(output.parent, video)
        if others := self._named(video, video.name) if is_full else set():  # a.avi.mp4 beside a.avi
            other = video.with_name(min(others))
        elif (other := owners.setdefault(os.path.abspath(output), video)) == video:
            return output
        both = f"{printable(video)} and {printable(other)} would both write {printable(output)}"
        return V2LError(f"{both}; encode them apart, with -o")

    def _plain(self, place: Path, video: Path) -> Path:
        return place / f"{video.stem}{self._range}{ADAPTER_SUFFIX}"

    def _full(self, place: Path, video: Path) -> Path:
        return place / f"{video.name}{self._range}{ADAPTER_SUFFIX}"

    def _choose(self, place: Path, video: Path) -> Path:
        """Return the plain or the full name of a video's adapter."""
        plain, full = self._plain(place, video), self._full(place, video)
        rivals = self._named(video, video.stem)
        has_full = os.path.lexists(full) and not self._named(video, video.name)
        if not rivals and not has_full:
            return plain

        # Whose adapter is there
        family, recorded = {video.name, *rivals}, _sources(plain)
        owners = {source.name for source in recorded} & family
        if recorded and not owners and not has_full:  # renamed together with its video
            alike = {name for name in family if _size(video.with_name(name)) == recorded[0].size}
            owners = alike if len(alike) == 1 else set()
        if video.name in owners:
            return plain
        if owners or has_full:
            return full

        # Nobody's: the first in the folder
        free = {name for name in rivals if not os.path.lexists(self._full(place, video.with_name(name)))}
        return plain if min({video.name, *free}, key=lambda name: (not is_video(name), name)) == video.name else full

    def _named(self, video: Path, stem: str) -> set[str]:
        """Return the names of the other videos in a video's folder whose adapter could be that of a stem."""
        siblings = self._siblings(video)
        found = siblings.get(stem, set()) | siblings.get(f"{stem}{self._range}", set())
        return {name for name in found - {video.name} if not os.path.isdir(video.with_name(name))}

    def _siblings(self, video: Path) -> dict[str, set[str]]:
        """Return the names of the videos in a video's folder, and of those of the run, by their stems."""
        folder = os.path.dirname(os.path.abspath(video))
        if not self._listed:
            for each in self._videos:
                self._listed.setdefault(os.path.dirname(os.path.abspath(each)), {}).setdefault("", set()).add(each.name)
        found = self._listed.setdefault(folder, {})
        if names := found.pop("", None):
            with contextlib.suppress(OSError, ValueError):  # the videos of the run are known in any case
                names |= {name for name in os.listdir(folder) if is_video(name)}
            for name in names:
                found.setdefault(os.path.splitext(name)[0], set()).add(name)
        return found

    # Folders of adapters ---------------------------------------------------------------------------------------

    def _places_of(self, video: Path) -> tuple[Path, list[Path], list[Path]]:
        """Return the folder of a video's adapter, and the existing folders that an earlier run may have written it to,
        which had other inputs: those with more and those with fewer of the video's folders in their path, most first.
        """
        if self._folder is None:
            return video.parent, [], []
        absolute = os.path.dirname(os.path.abspath(video))
        if absolute not in self._places:
            parts = Path(absolute).parts[1:]
            kept = len(Path(os.path.relpath(absolute, self._common)).parts)
            ends = [self._folder.joinpath(*parts[start:]) for start in range(len(parts) + 1)]
            middle = len(parts) - kept
            deeper, shallower = ends[:middle], ends[middle + 1 :]
            self._places[absolute] = (
                ends[middle],
                [place for place in deeper if os.path.isdir(place)],
                [place for place in shallower if os.path.isdir(place)],
            )
        return self._places[absolute]

    def _find_elsewhere(self, video: Path, standard: Path) -> Path | None:
        """Return the adapter that an earlier run wrote to another place: with the same file name and size of the video,
        or with the same name and more of the same folders; None if there is none or the standard place has it."""
        _, deeper, shallower = self._places_of(video)
        if not (deeper or shallower) or (not deeper and os.path.lexists(standard)):
            return None
        size = _size(video)
        candidates = [self._choose(place, video) for place in deeper]
        known = [*candidates, standard, *(self._choose(place, video) for place in shallower)]
        for path in known:
            if any((source.name, source.size) == (video.name, size) for source in _sources(path)):
                return path if path != standard else None
        return next((path for path in candidates if any(each.name == video.name for each in _sources(path))), None)


def _sources(adapter: Path) -> list[FileIdentity]:
    """Return the videos that an adapter records; none if it is missing or cannot be read."""
    if not os.path.lexists(adapter):
        return []
    try:
        return list(read_adapter_file(adapter).description.sources)
    except V2LError:
        return []


def _size(video: Path) -> int | None:
    try:
        return os.stat(video).st_size
    except (OSError, ValueError):
        return None
