"""The time that a question names, and the segments of an adapter that show it.

Ranks of other segments answer a question about one time, too, and there are more of them: composed of eight, the
embedded model's adapters tell what is there at a time from the right segment alone and hardly ever from all of them
(docs/tiny.md). What a question says in digits no model has to work out.
"""

from __future__ import annotations

import re

from v2l.adapters.adapter import Adapter
from v2l.adapters.segments import segments_alone

_TIME = re.compile(
    r"(\bat(?:\s+(?:about|around|exactly|minute|time|timestamp))*\s+)?"
    r"(?<![\d:.])(?:(\d{1,2}):([0-5]?\d)|(\d{1,3})):([0-5]\d)(?!:?\d)",
    re.IGNORECASE,
)
"""12:30, 100:07 or 1:02:03, and whether "at" stands before it."""
_ELSEWHERE = re.compile(
    r"\b(?:after|before|until|till|since|from|first|last|next|previous|when|how long|how often|[ap]\.?m)\b",
    re.IGNORECASE,
)
"""Words with which the answer may stand elsewhere than at the time, or the time be another clock's."""


def asked_time(question: str) -> int | None:
    """The whole second of a video that a question asks about, as in "what is on the board at 12:30?"; None where it
    names no time, several, one without "at" before it, or one beside a word with which the answer may stand elsewhere
    ("what comes after the word at 12:30?")."""
    named = _TIME.findall(question)
    seconds = {
        3600 * int(hours or 0) + 60 * int(minutes or more) + int(rest) for _, hours, minutes, more, rest in named
    }
    alone = len(seconds) == 1 and any(at for at, *_ in named) and not _ELSEWHERE.search(question)
    return seconds.pop() if alone else None


def segments_asked(adapter: Adapter, question: str) -> tuple[int, ...]:
    """Which of an adapter's segments answer a question, from 0: those that show some of the second that it asks about;
    all of them where it asks about none, or one that the adapter does not show."""
    second, segments = asked_time(question), adapter.description.segments
    every = range(len(segments))
    if second is None:
        return tuple(every)
    return tuple(n for n in every if segments[n].start < second + 1 and second < segments[n].end) or tuple(every)


def worn_for(adapter: Adapter, question: str) -> Adapter:
    """What of an adapter answers a question."""
    return segments_alone(adapter, segments_asked(adapter, question))
