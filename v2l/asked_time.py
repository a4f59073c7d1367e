"""The time that a question names, and the segments of an adapter that show it.

Ranks of other segments answer a question about one time, too, and there are more of them: composed of eight, the
embedded model's adapters tell what is there at a time from the right segment alone and hardly ever from all of them
(docs/tiny.md). What a question says in digits no model has to work out.
"""

from __future__ import annotations

import re

from v2l.adapter import Adapter
from v2l.composition import segments_alone

_TIME = re.compile(r"(\bat\s+)?(?<![\d:.])(?:(\d{1,2}):)?(\d{1,2}):([0-5]\d)(?![\d:])", re.IGNORECASE)
"""12:30 or 1:02:03, and whether "at" stands before it."""


def asked_time(question: str) -> int | None:
    """The whole second of a video that a question asks about, as in "what is on the board at 12:30?"; None where it
    names no time, several, or one without "at", of which the answer may stand elsewhere ("after 12:30")."""
    named = _TIME.findall(question)
    seconds = {3600 * int(hours or 0) + 60 * int(minutes) + int(rest) for _, hours, minutes, rest in named}
    return seconds.pop() if len(seconds) == 1 and any(at for at, *_ in named) else None


def shows(start: float, end: float, second: int) -> bool:
    """Whether something of that whole second lies between two times, in seconds of a video."""
    return start < second + 1 and second < end


def worn_for(adapter: Adapter, question: str) -> Adapter:
    """What of an adapter answers a question: the segments that show the second it asks about, all of them where it
    names none, or one that the adapter does not show."""
    second = asked_time(question)
    segments = adapter.description.segments
    if second is None or len(segments) == 1:
        return adapter
    shown = {number for number, each in enumerate(segments) if shows(each.start, each.end, second)}
    return segments_alone(adapter, shown) if shown else adapter
