"""Put a question about a long video to a part that was read as a video of its own, whose times start at zero."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from v2l.adapters.asked_time import asked_time
from v2l.adapters.description import Segment
from v2l.adapters.number_words import UNIT_SECONDS
from v2l.adapters.time_text import CLOCK, Stretch, clock_seconds
from v2l.models.processor import frame_clock

_UNIT = rf"(?:{'|'.join(sorted(map(re.escape, UNIT_SECONDS), key=len, reverse=True))})(?![^\W\d_])"
_AMOUNT = rf"(\d+(?:\.\d+)?) ?({_UNIT})"
_AMOUNTS = rf"(?<![\d.:]){_AMOUNT}(?:(?:,| and)? ?{_AMOUNT}){{0,2}}"
_TIMES = re.compile(rf"{CLOCK}|{_AMOUNTS}", re.IGNORECASE)
"""Written times that are replaced in place: 12:30 and 1:12:30, and amounts such as "37 s" and "1 minute and 14 s"."""

MOST_WORDS = 40
"""Words of a question up to which other forms of a time are located. The search takes the square of it."""


def for_segments(question: str, segments: Sequence[Segment], duration: float) -> str:
    """Return a question in the times of the attached segments; unchanged unless all of them were read with
    `own_times`. duration: seconds of the video"""
    is_own = all(segment.reading.own_times for segment in segments)
    spans = [(segment.start, segment.end) for segment in segments]
    return in_own_times(question, spans, duration) if is_own else question


def in_own_times(question: str, spans: Sequence[Stretch], duration: float) -> str:
    """Replace the times that a question asks about by those in parts of the video.

    A time becomes the time since the whole second in which the part that shows it starts; one outside of all parts
    becomes the nearest time in them. Times that are the question's subject stay. A form that cannot be replaced in
    place, such as "halfway" or "two minutes in", becomes "at 00:05" or "from 00:05 to 00:12".

    spans: start and end of each part, in seconds of the video; duration: seconds of the video
    """
    asked = asked_time(question, duration).stretches
    if not asked:
        return question
    wanted = [(_own(start, spans), _own(end, spans)) for start, end in asked]
    length = max(end - math.floor(start) for start, end in spans)
    moments = {seconds for stretch in asked for seconds in stretch}
    in_place = _TIMES.sub(lambda found: _rewrite(found, moments, spans), question)
    is_clock = moments <= {clock_seconds(found) for found in re.finditer(CLOCK, question)}
    if is_clock or len(asked) > 1 or _agree(in_place, wanted, length):
        return in_place
    return _relocate(question, asked[0], wanted[0], duration) or in_place


def _own(seconds: float, spans: Sequence[Stretch]) -> int:
    """Return a time of the video in the part that is nearest to it, in whole seconds. The end of a part belongs to the
    next one."""

    def nearest(span: Stretch) -> float:
        return min(max(seconds, span[0]), max(span[0], math.ceil(span[1]) - 1))

    shown = min(spans, key=lambda span: abs(nearest(span) - seconds))
    return math.floor(nearest(shown)) - math.floor(shown[0])


def _agree(question: str, wanted: Sequence[tuple[int, int]], length: float) -> bool:
    """Return whether a question asks about these stretches, to the second, of a video of that length."""
    asked = asked_time(question, length).stretches
    return len(asked) == len(wanted) and all(
        abs(min(start, length - 1) - own) < 1 and abs(min(end, length - 1) - own_end) < 1
        for (start, end), (own, own_end) in zip(asked, wanted, strict=True)
    )


def _rewrite(found: re.Match, moments: set[float], spans: Sequence[Stretch]) -> str:
    """Write the time of a match in its own form, if it is one of the moments that the question asks about."""
    if found[4] is not None:
        value = clock_seconds(found)
        return frame_clock(_own(value, spans)) if _is_in(value, moments) else found[0]
    amounts = re.findall(_AMOUNT, found[0], re.IGNORECASE)
    value = sum(UNIT_SECONDS[unit.lower()] * float(number) for number, unit in amounts)
    if not _is_in(value, moments):
        return found[0]
    number, unit = amounts[-1]
    space = " " if f"{number} {unit}" in found[0] else ""
    own = _own(value, spans)
    return f"{own}{space}{unit}" if UNIT_SECONDS[unit.lower()] == 1 else f"{own} seconds"


def _is_in(value: float, moments: set[float]) -> bool:
    return any(abs(value - each) < 1 for each in moments)


def _relocate(question: str, asked: Stretch, own: tuple[int, int], duration: float) -> str | None:
    """Replace the fewest words that name a stretch, without which the question names none; None if there are none."""
    words = question.split()
    if len(words) > MOST_WORDS:
        return None
    start, end = map(frame_clock, own)
    time = f"at {start}" if start == end else f"from {start} to {end}"
    for count in range(1, len(words) + 1):
        for first in range(len(words) - count + 1):
            before, named, after = words[:first], words[first : first + count], words[first + count :]
            if asked_time(" ".join(named), duration).stretches != (asked,):
                continue
            if asked_time(" ".join(before + after), duration).stretches:
                continue
            if before and before[-1].lower() in ("at", "in", "from"):
                before.pop()
            mark = re.search(r"[,.:;?!]*$", named[-1])
            return " ".join([*before, time + (mark[0] if mark else ""), *after])
    return None
