"""Find the times of a video that a question asks about, from its text alone.

The written times of the question become placeholders (see `time_text`). Rules then turn placeholders, together with
the words around them, into places in the video, or into plain words where they are no positions, as in "the clock shows
12:30" (see `time_rules`). The words are those of four languages (see `time_words`).
Only the rules run whose words the question has (see `time_patterns`).

Parsers of dates and numbers do not fit: they read 12:30 as a time of day, and need to know the language.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from v2l.adapters.time_rules import (
    ANOTHER_MOMENT,
    FIRST,
    LAST,
    NEIGHBOURS,
    NEIGHBOURS_OF_THINGS,
    READS_A_CLOCK,
    RULES,
    RULES_OF_COMPARISON,
    UNCLEAR,
)
from v2l.adapters.time_text import Stretch, read_times


@dataclass(frozen=True)
class Asked:
    """The times of a video that a question asks about.

    stretches: start and end in seconds of each named time, in the question's order; equal for a moment
    relation: where the answer is: "at" the stretches; "after" or "before" them, or after or before something else that
        the question names if there are none; "first" or "last" in the video; "none" if the question does not say
    is_position: the phrasing is clearly a position in the video, so that a time outside of the video is an error
    """

    stretches: tuple[Stretch, ...] = ()
    relation: str = "none"
    is_position: bool = False

    def outside(self, duration: float) -> float | None:
        """Return the first time that is clearly meant as a position, but after the end of a video; else None."""
        late = [start for start, _ in self.stretches if start > duration]
        return late[0] if late and self.is_position else None


@lru_cache(maxsize=64)  # a question is routed and put in the times of its segments
def asked_time(question: str, duration: float) -> Asked:
    """Return the times of a video that a question asks about.

    duration: seconds of the video, for positions such as "halfway" and "in the last minute"

    Times that are the subject of the question are not included, as in "which meeting is at 12:30?", and neither are
    durations. A question that asks when, how long or how often has no times, unless it names a stretch to search.
    """
    text = read_times(question)
    if text is None:
        return Asked()
    for needed, rules in RULES_OF_COMPARISON if text.has("<COMPARE>") else RULES:
        if not needed.isdisjoint(text.words.names):
            text.rewrite(rules, duration)
    times = tuple(dict.fromkeys(text.stretches()))
    is_moment = any(start == end for start, end in times)
    is_when = text.has("<WHEN>", "<HOWOFTEN>") and not text.has(READS_A_CLOCK)
    if text.has("<HOWLONG>") or (is_when and (is_moment or not times)):
        return Asked()
    if not times and text.has("<other>"):
        return Asked()
    if not times:
        return _order(text.has, duration)
    if is_moment and len(times) == 1 and text.has(*ANOTHER_MOMENT):
        return Asked()
    relation = next((name for name, patterns in NEIGHBOURS.items() if text.has(*patterns)), "at")
    is_unclear = text.has(UNCLEAR) or (text.has("<CLOCK>") and any(start >= 3600 for start, _ in times))  # 12h30
    if is_unclear and all(start > duration for start, _ in times):
        return Asked()
    return Asked(times, relation, not is_unclear)


def _order(has: Callable[..., bool], duration: float) -> Asked:
    """Return what a question without a time asks about: the first or the last part, or a neighbour."""
    is_first, is_last = has(*FIRST), has(*LAST)
    if has("<NO_ORDER>", r"(?:<FIRST>|<LAST>) (?:<NUMBER>|<ORDINAL>|<AND>|<few|couple>)") and (is_first or is_last):
        return Asked()
    if is_first and is_last:
        return Asked(((0.0, 0.0), (duration, duration)), "at")
    if has("<NO_ORDER>"):
        return Asked()
    for name, patterns in NEIGHBOURS_OF_THINGS.items():
        if has(*patterns):
            return Asked((), name)
    return Asked((), "first" if is_first else "last" if is_last else "none")
