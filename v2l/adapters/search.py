"""Search the answers that timelines hold as their index, in any number of files, by the rare words of a query.

This module reads headers only and imports no torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from v2l.adapters.description import MAX_TIMELINE_HEADER_BYTES, TIMELINE_VERSION, VERSION, BaseModel
from v2l.adapters.index import TextIndex
from v2l.adapters.timeline_description import MAX_TIMELINE_BYTES, Recipe
from v2l.errors import V2LError
from v2l.io.records import from_json
from v2l.io.safetensors_file import damaged, stated_version
from v2l.io.safetensors_parts import read_parts_metadata
from v2l.io.text import printable


@dataclass(frozen=True)
class Finding:
    """A segment that matches a query.

    path: the adapter's file; video: the name of its video; start, end: seconds of the video
    matches: the (question, answer) pairs of the index that together have all words that the segment shares with the
        query, the one with the most words first
    score: the greater, the better; comparable within one search only
    """

    path: Path
    video: str
    start: float
    end: float
    matches: tuple[tuple[str, str], ...]
    score: float


@dataclass(frozen=True)
class IndexedSegment:
    """A segment of a timeline, without its frames. Fields as in `TimelinePart`."""

    recipe: int
    start: float
    end: float
    answers: tuple[str, ...]


@dataclass(frozen=True)
class IndexedTimeline:
    """The fields of a `TimelineDescription` that a search needs. Reading them takes a third of the time of all."""

    base_model: BaseModel
    recipes: tuple[Recipe, ...]
    segments: tuple[IndexedSegment, ...]
    questions: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> IndexedTimeline:
        """Read a timeline file. Raises V2LError as `TimelineFile.read`, but other fields and the entries of the tensors
        are not checked; a file that was cut or whose metadata were changed does not pass."""
        limits = (MAX_TIMELINE_BYTES, MAX_TIMELINE_HEADER_BYTES)
        metadata = read_parts_metadata(path, "adapter", TIMELINE_VERSION, *limits)
        try:
            found = from_json(cls, metadata, "metadata", subset=True)
            if any(each.recipe >= len(found.recipes) or each.start > each.end for each in found.segments):
                raise ValueError("a segment has an unknown recipe or an impossible time")
            if {len(each.answers) for each in found.segments} != {len(found.questions)}:
                raise ValueError("its index and its questions do not agree")
        except ValueError as error:
            raise damaged(path, "timeline", printable(error)) from error
        return found


class SearchIndex:
    """The answers of the segments of many files. Add files, then search them all.

    without_index: number of sound adapter files that hold no index
    fingerprints: of the frozen models that answered
    """

    def __init__(self) -> None:
        self._timelines: list[tuple[Path, IndexedTimeline]] = []
        self._ends: list[int] = []  # numbers of segments up to the end of each timeline
        self.without_index = 0
        self.fingerprints: set[str] = set()

    def __len__(self) -> int:
        """Number of segments."""
        return self._ends[-1] if self._ends else 0

    def add(self, path: Path) -> None:
        """Read the header of an adapter file of either version. Raises V2LError if it is missing or damaged."""
        try:
            timeline = IndexedTimeline.read(path)
        except V2LError:
            if stated_version(path, "adapter", MAX_TIMELINE_HEADER_BYTES) != VERSION:
                raise
            self.without_index += 1
            return
        if not timeline.questions:
            self.without_index += 1
            return
        self.fingerprints.add(timeline.base_model.fingerprint)
        self._ends.append(len(self) + len(timeline.segments))
        self._timelines.append((path, timeline))

    def search(self, query: str, limit: int) -> list[Finding]:
        """Return the best segments, best first; at most `limit`. Segments with equal scores keep their order."""
        index = TextIndex("\n".join(each.answers) for _, timeline in self._timelines for each in timeline.segments)
        findings = []
        for number, score in index.rank(query, limit):
            place = bisect_right(self._ends, number)
            path, timeline = self._timelines[place]
            found = timeline.segments[number - self._ends[place]]  # counted from the end
            video = timeline.recipes[found.recipe].source.name
            matches = tuple((timeline.questions[at], found.answers[at]) for at in covering(found.answers, query))
            findings.append(Finding(path, video, found.start, found.end, matches, score))
        return findings


def covering(texts: Sequence[str], query: str) -> list[int]:
    """Return the numbers of few texts that together have all words of the query that any of them has: one after
    another, the text with the most further words, the shortest of several."""
    matched = TextIndex(texts).matched_words(query)
    chosen: list[int] = []
    while matched:
        best = max(matched, key=lambda number: (len(matched[number]), -len(texts[number]), -number))
        chosen.append(best)
        words = matched[best]
        matched = {number: rest for number, has in matched.items() if (rest := has - words)}
    return chosen
