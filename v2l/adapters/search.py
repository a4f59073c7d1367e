"""Search the answers that timelines hold as their index, in any number of files, by the rare words of a query.

This module reads headers only and imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from v2l.adapters.description import MAX_TIMELINE_HEADER_BYTES, VERSION
from v2l.adapters.index import TextIndex
from v2l.adapters.timeline_description import TimelineFile
from v2l.errors import V2LError
from v2l.io.safetensors_file import stated_version


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


class _IndexedSegment(NamedTuple):
    path: Path
    video: str
    start: float
    end: float
    questions: tuple[str, ...]
    answers: tuple[str, ...]


class SearchIndex:
    """The answers of the segments of many files. Add files, then search them all.

    without_index: number of sound adapter files that hold no index
    fingerprints: of the frozen models that answered
    """

    def __init__(self) -> None:
        self._segments: list[_IndexedSegment] = []
        self.without_index = 0
        self.fingerprints: set[str] = set()

    def __len__(self) -> int:
        """Number of segments."""
        return len(self._segments)

    def add(self, path: Path) -> None:
        """Read the header of an adapter file of either version. Raises V2LError if it is missing or damaged."""
        try:
            made = TimelineFile.read(path).description
        except V2LError:
            if stated_version(path, "adapter", MAX_TIMELINE_HEADER_BYTES) != VERSION:
                raise
            self.without_index += 1
            return
        if not made.questions:
            self.without_index += 1
            return
        self.fingerprints.add(made.base_model.fingerprint)
        videos = [recipe.source.name for recipe in made.recipes]
        self._segments += [
            _IndexedSegment(path, videos[part.recipe], part.start, part.end, made.questions, part.answers)
            for part in made.segments
        ]

    def search(self, query: str, limit: int) -> list[Finding]:
        """Return the best segments, best first; at most `limit`. Segments with equal scores keep their order."""
        index = TextIndex("\n".join(each.answers) for each in self._segments)
        findings = []
        for number, score in index.rank(query)[:limit]:
            found = self._segments[number]
            matches = tuple((found.questions[each], found.answers[each]) for each in covering(found.answers, query))
            findings.append(Finding(found.path, found.video, found.start, found.end, matches, score))
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
