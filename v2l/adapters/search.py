"""Search the answers that timelines hold as their index, in any number of files, by the rare words of a query.

This module reads headers only and imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from v2l.adapters.description import MAX_TIMELINE_HEADER_BYTES, VERSION
from v2l.adapters.index import TextIndex
from v2l.adapters.timeline_description import TimelineDescription, TimelineFile
from v2l.errors import V2LError
from v2l.io.safetensors_file import stated_version


@dataclass(frozen=True)
class Finding:
    """A segment that matches a query.

    path: the adapter's file; video: the name of its video; start, end: seconds of the video
    question, answer: of the index, the answer that shares the most words with the query; or those of the query
    score: the greater, the better; comparable within one search only
    """

    path: Path
    video: str
    start: float
    end: float
    question: str
    answer: str
    score: float


class SearchableTimelines:
    """The timelines of a search. Add files, then search them all.

    without_index: number of sound adapter files that hold no index
    """

    def __init__(self) -> None:
        self._timelines: list[tuple[Path, TimelineDescription]] = []
        self.without_index = 0

    def add(self, path: Path) -> None:
        """Read the header of an adapter file of either version. Raises V2LError if it is missing or damaged."""
        try:
            description = TimelineFile.read(path).description
        except V2LError:
            if stated_version(path, "adapter", MAX_TIMELINE_HEADER_BYTES) != VERSION:
                raise
            self.without_index += 1
            return
        if description.questions:
            self._timelines.append((path, description))
        else:
            self.without_index += 1

    @property
    def segments(self) -> int:
        """Number of segments with an index."""
        return sum(len(description.segments) for _, description in self._timelines)

    def search(self, query: str, limit: int) -> list[Finding]:
        """Return the best segments, best first; at most `limit`. Segments with equal scores keep their order."""
        places = [(at, number) for at, (_, d) in enumerate(self._timelines) for number in range(len(d.segments))]
        index = TextIndex("\n".join(self._timelines[at][1].segments[number].answers) for at, number in places)
        ranked = index.rank(query)[:limit]
        return [self._finding(*places[place], query, score) for place, score in ranked]

    def _finding(self, at: int, number: int, query: str, score: float) -> Finding:
        path, description = self._timelines[at]
        part = description.segments[number]
        best = most_matching(part.answers, query)
        video = description.recipes[part.recipe].source.name
        return Finding(path, video, part.start, part.end, description.questions[best], part.answers[best], score)


def most_matching(texts: Sequence[str], query: str) -> int:
    """Return the number of the text that has the most words of the query, the shortest of several."""
    counts = TextIndex(texts).matched_words(query)
    return max(range(len(texts)), key=lambda number: (counts[number], -len(texts[number]), -number))
