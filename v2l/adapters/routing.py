"""Choose the part of a video that answers a question: by the time that it names, by order, or by its rarest words.

Only the text of the question and the description of the file are involved, not the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from v2l.adapters.asked_time import Asked, asked_time
from v2l.adapters.description import Segment
from v2l.adapters.index import TextIndex, search_words
from v2l.adapters.timeline_description import TimelineDescription, TimelinePart
from v2l.errors import V2LError
from v2l.io.text import clock

MOST_TOGETHER = 1
"""Segments of a stretch that answer together; those of a longer stretch answer one by one. Two together already know
less about each second than one alone (docs/long-video.md)."""
MATTERS = 1e-3
"""Score of a match below which its words are in half of the segments or more."""


class RoutedBy(StrEnum):
    """Reasons for the choice of the part that answers."""

    time = "time"
    order = "order"
    words = "words"
    overview = "overview"
    whole = "whole"


@dataclass(frozen=True)
class Route:
    """The part that answers a question.

    segments: their numbers, from 0; none for the overview
    one_by_one: whether each of them answers alone, because the question is about a stretch of several
    """

    routed_by: RoutedBy
    segments: tuple[int, ...] = ()
    one_by_one: bool = False


class Router:
    """Routes questions about one timeline."""

    def __init__(self, description: TimelineDescription):
        self.description = description

    @cached_property
    def _index(self) -> TextIndex:
        return TextIndex(["\n".join(part.answers) for part in self.description.segments])

    def route(self, question: str) -> Route:
        """Return the part that answers a question.

        A time or a stretch selects the segments that show it, "first" and "last" the first and the last segment, and
        otherwise the rarest words that the question shares with the answers of the index select one segment. "After"
        and "before" select the neighbour if the time or the words are at the end or the beginning of their segment.
        Anything else is answered by the overview.

        Raises V2LError if the question asks about a position outside of the video.
        """
        segments = self.description.segments
        asked = asked_time(question, self.description.span[1])
        if asked.stretches:
            return self._at(asked, segments)
        if asked.relation in ("first", "last"):
            return Route(RoutedBy.order, (0 if asked.relation == "first" else len(segments) - 1,))
        if (best := self._by_words(question)) is not None:
            return Route(RoutedBy.words, (self._beside_words(best, question, asked.relation),))
        return Route(RoutedBy.overview)

    def _at(self, asked: Asked, segments: Sequence[TimelinePart]) -> Route:
        found: dict[int, None] = {}
        for start, end in asked.stretches:
            shown = segments_between(segments, start, end)
            if not shown and asked.is_position:
                first, last = self.description.span
                raise V2LError(
                    f"the question asks about {clock(start)}, and the video is encoded from {clock(first)} to "
                    f"{clock(last)}; ask about a time in it"
                )
            found |= dict.fromkeys(_beside_time(shown, segments, asked.relation, start, end))
        if not found:
            return Route(RoutedBy.overview)
        is_stretch = asked.relation == "at" and any(start < end for start, end in asked.stretches)
        return Route(RoutedBy.time, tuple(sorted(found)), is_stretch and len(found) > MOST_TOGETHER)

    def _beside_words(self, number: int, question: str, relation: str) -> int:
        """Return the segment that shows what is after or before the words that a question shares with a segment: the
        neighbour if they end or begin the shortest answer that has them, else the segment itself."""
        segments = self.description.segments
        words = [re.findall(r"\w+", answer.casefold()) for answer in segments[number].answers]
        asked = set(search_words(question))
        sharing = [answer for answer in words if not asked.isdisjoint(answer)]
        neighbour, edge = {"after": (number + 1, -1), "before": (number - 1, 0)}.get(relation, (number, 0))
        if sharing and min(sharing, key=len)[edge] in asked and 0 <= neighbour < len(segments):
            return neighbour
        return number

    def _by_words(self, question: str) -> int | None:
        """Return the segment that alone has the best match; None if there is no index or no such segment."""
        if not self.description.questions:
            return None
        ranked = self._index.rank(question)[:2]
        if not ranked or ranked[0][1] < MATTERS or (len(ranked) == 2 and ranked[1][1] >= ranked[0][1]):
            return None
        return ranked[0][0]


def segments_between(segments: Sequence[TimelinePart | Segment], start: float, end: float) -> list[int]:
    """Return the numbers of the segments that show a stretch; a moment is the whole second that begins at it. The end
    of the last segment counts as shown."""
    end = max(end, start + 1) if start == end else end
    last = max(part.end for part in segments)
    return [
        number
        for number, part in enumerate(segments)
        if (part.start < end and start < part.end) or (start >= last == part.end and start <= last)
    ]


def _beside_time(
    shown: Sequence[int], segments: Sequence[TimelinePart], relation: str, start: float, end: float
) -> Sequence[int]:
    """Return the segments that show a stretch, or the one that shows the second after or before it."""
    beside = {"after": end + 1, "before": start - 1}.get(relation)
    return shown if beside is None else segments_between(segments, beside, beside) or shown
