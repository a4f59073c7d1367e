"""Find the times of a video that a question asks about, from its text alone.

The written times of the question become placeholders (see `time_text`). Rules then turn placeholders, together with
the words around them, into places in the video, or into plain words where they are no positions, as in "the clock shows
12:30". The words are those of four languages (see `time_words`).

Parsers of dates and numbers do not fit: they read 12:30 as a time of day, and need to know the language.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from v2l.adapters.time_text import Action, Stretch, read_times


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


def asked_time(question: str, duration: float) -> Asked:
    """Return the times of a video that a question asks about.

    duration: seconds of the video, for positions such as "halfway" and "in the last minute"

    Times that are the subject of the question are not included, as in "which meeting is at 12:30?", and neither are
    durations. A question that asks when, how long or how often has no times, unless it names a stretch to search.
    """
    text = read_times(question)
    for pattern, action in _RULES_OF_COMPARISON if text.has("<COMPARE>") else _RULES:
        text.rewrite(pattern, action, duration)
    times = tuple(dict.fromkeys(text.stretches()))
    is_moment = any(start == end for start, end in times)
    if text.has("<HOWLONG>") or (text.has("<WHEN>", "<HOWOFTEN>") and (is_moment or not times)):
        return Asked()
    if not times and text.has(r"\bother\b"):
        return Asked()
    if not times:
        return _order(text.has, duration)
    if is_moment and len(times) == 1 and text.has(*_ANOTHER_MOMENT):
        return Asked()
    relation = next((name for name, patterns in _NEIGHBOURS.items() if text.has(*patterns)), "at")
    return Asked(times, relation, not text.has(*_UNCLEAR))


def _order(has: Callable[..., bool], duration: float) -> Asked:
    """Return what a question without a time asks about: the first or the last part, or a neighbour."""
    is_first, is_last = has(*_FIRST), has(*_LAST)
    if has("<NO_ORDER>", r"(?:<FIRST>|<LAST>) (?:<NUMBER>|<ORDINAL>|<AND>|few|couple)") and (is_first or is_last):
        return Asked()
    if is_first and is_last:
        return Asked(((0.0, 0.0), (duration, duration)), "at")
    if has("<NO_ORDER>"):
        return Asked()
    for name, patterns in _NEIGHBOURS_OF_THINGS.items():
        if has(*patterns):
            return Asked((), name)
    return Asked((), "first" if is_first else "last" if is_last else "none")


def _moment(fraction: float) -> Action:
    return lambda times, duration: (fraction * duration, fraction * duration)


def _part(start: float, end: float) -> Action:
    return lambda times, duration: (start * duration, end * duration)


def _share(times: list[Stretch], duration: float) -> Stretch:
    return times[0][0] * duration, times[0][0] * duration


def _last(times: list[Stretch], duration: float) -> Stretch:
    return duration - times[0][0], duration


def _first(times: list[Stretch], duration: float) -> Stretch:
    return 0.0, min(times[0][0], duration)


def _from_end(times: list[Stretch], duration: float) -> Stretch:
    return duration - times[0][0], duration - times[0][0]


def _same(times: list[Stretch], duration: float) -> Stretch:
    return times[0]


def _between(times: list[Stretch], duration: float) -> Stretch:
    (start, _), (end, last) = times
    return (start, last) if start <= end else (end, start)


def _until(times: list[Stretch], duration: float) -> Stretch:
    return 0.0, times[0][1]


def _since(times: list[Stretch], duration: float) -> Stretch:
    return times[0][0], max(duration, times[0][0])


def _minute(times: list[Stretch], duration: float) -> Stretch:
    """Return the minute that begins at a whole one, or else the moment."""
    start, end = times[0]
    return (start, start + 60) if start == end and start % 60 == 0 else times[0]


_THE = "(?:<THE> )*"
_OWN_VIDEO = rf"(?:<OF> {_THE}|(?:<THE> )+)<VIDEO>"
_FREE = r"(?:<EDGE>|(?= (?:<WH>|<AND>|<TO>|<BEFORE>|on|in|with|than|as|from|for|auf|an|mit|zu|sur|avec|con|PLACE)))"
"""What may follow the mark of a video: "at the end of the table" and "at the start button" are no times."""

_Rules = tuple[tuple[str, Action], ...]

_SURE: _Rules = (
    (rf"(?:(?:<AT>|in|en) )?{_THE}(?:<LABEL>|<UNITNAME>) (?:<TIME>)", _same),
    (r"(?:CLOCK|STAMP)\d+ <MARK>", _same),
    (rf"<CLOCK>(?: ,)? {_OWN_VIDEO}", _same),
    (r"(?:CLOCK|STAMP)\d+(?: <UNIT>)? (?:in|into)(?:<EDGE>|(?= <WH>)| <THE> <VIDEO>)", _same),
    (rf"<OF> {_THE}<VIDEO>(?: ,)? (?:<AT> )?<CLOCK>", _same),
)
"""Clock times that are certainly positions."""

_OTHER_CLOCKS: _Rules = (
    # Times of day
    (r"<TIME>(?: <DAYTIME>| am(?:<EDGE>| <AND>| on| in| <WH>))", None),
    (r"<TODAY> (?:<AT> |um |en |a las )?<CLOCK>", None),
    (r"(?:it|il|es|time|now|heure|hora) <BE> <TIME>|<BE> it CLOCK\d+|(?:son|a) las CLOCK\d+", None),
    (r"<CLOCKFACE> (?:<BE> )?(?:<SET>|at|on|auf) <CLOCK>", None),
    (r"<CLOCKFACE> <GAP>(?:<SHOWS>|<SET>) <TIME>", None),
    (r"<SHOWS> <GAP><CLOCKFACE> (?:(?!<CUE>)[a-z]+ )*<CLOCK>", None),
    # Scores, ratios and verses
    (r"<SCORE> (?:(?:of|by|with|is|was|being|mit|von|de|par|por|<BE> at) )?<TIME>", None),
    (r"<TIME> (?:<TO> )?<WIN>", None),
    (r"<VERSE> <TIME>|(?<!the )(?<!at )(?<!time )\bmark <TIME>", None),
    # Events and schedules
    (r"<CLOCK> <EVENT>", None),
    (r"<EVENT> <GAP><BEGINS> <GAP><CLOCK>", None),
    (
        (
            r"(?<!in the )(?<!during the )(?<!of the )(?<!im )(?<!in der )<EVENT> "
            r"(?:(?:<BE>|do|does|we|they|you|he|she|i|have|has|will|be|held) )*(?:<AT>|um|en|a las|for) <CLOCK>"
        ),
        None,
    ),
    (r"<SCHEDULE>.*<CLOCK>", None),
    (r"<CLOCK>.*<SCHEDULE>", None),
    (r"\bother (?:<AND>|<TO>|or) <CLOCK>", None),
    # Durations
    (
        r"(?:takes|take|took|lasts|lasted|within|run|ran|finishes|finished|<OF> time|time of|duration of) <GAP><CLOCK>",
        None,
    ),
    (r"(?:takes|take|took|lasts|lasted|within) <TIME>", None),
    (r"(?:in|for) (?:(?:under|just|only) )?<CLOCK>", None),
    (r"<THE> <TIME> <LONG>|<TIME> (?:long|lang|old|later|spater|plus tard|mas tarde)", None),
)
"""Clock times that are no positions."""

_SPANS: _Rules = (
    (rf"at (?:the|la) <LAST> <SPAN>(?! {_OWN_VIDEO})|\bin letzter <SPAN>", None),
    # A span from another time or from an end of the video
    (r"<LAST> <SPAN> (?:<BEFORE>|vor) <TIME>", lambda times, _: (times[1][0] - times[0][0], times[1][0])),
    (
        r"(?:<FIRST>|next|nachsten|prochaines|proximos) <SPAN> (?:<AFTER>|<FROM>|<AFTERWARDS>) <TIME>",
        lambda times, _: (times[1][0], times[1][0] + times[0][0]),
    ),
    (r"(?:<AT> )?<SPAN> <AFTER> <TIME>", lambda times, _: (times[1][0] + times[0][0],) * 2),
    (r"(?:<AT> )?<SPAN> (?:<BEFORE>|vor) <TIME>", lambda times, _: (times[1][0] - times[0][0],) * 2),
    (rf"(?:<AT> )?<SPAN> (?:<BEFORE>|vor|<FROM>) {_THE}<END>(?: {_OWN_VIDEO}|{_FREE})", _from_end),
    (r"(?:with )?<SPAN> <LEFT><EDGE>", _from_end),
    (rf"(?:<AT> )?<SPAN> (?:<AFTER>|<FROM>|into) {_THE}<START>(?: {_OWN_VIDEO}|{_FREE})", _same),
    (rf"(?:\bin )?{_THE}<LAST> <SPAN>(?: {_OWN_VIDEO})?", _last),
    (rf"(?:\bin )?{_THE}<FIRST> <SPAN>(?: {_OWN_VIDEO})?", _first),
    # Ranges
    (rf"(?:<BETWEEN>|<FROM>|<AT>) {_THE}<SPAN> (?:<AND>|<TO>) {_THE}<SPAN>", _between),
    # Durations
    (r"<THE> <SPAN> (?:<LONG>)", None),
    (r"<SPAN> <LONG>", None),
    (rf"<SPAN> (?:of|de|in|into|im|en|au|al) (?!{_THE}(?:<VIDEO>|<WH>))(?=\w)", None),
    (
        rf"(?<!after )(?<!bout )(?<!cabo )<LASTS> (?:<ROUND> )?<SPAN>(?! <MARK>| in<EDGE>| in(?:to)? {_THE}<VIDEO>)",
        None,
    ),
    # Positions
    (rf"(?:<AT> )?(?:<ROUND> )?{_THE}<SPAN> <MARK>", _same),
    (rf"(?:<AT> )?(?:<ROUND> )?<SPAN> (?:in|into|through|im|de|del) {_THE}<VIDEO>", _same),
    (r"(?:<AT> )?(?:<ROUND> )?<SPAN> (?:into|in to|in|deep)(?:<EDGE>|(?= <WH>))", _same),
    (rf"(?:<AT>|a)(?: <ROUND>)? {_THE}<SPAN>", _same),
    (rf"<ROUND> {_THE}<SPAN>", _same),
    (
        rf"(?:<AFTER>|at bout de|au bout de|pasados|transcurridos|al cabo de) (?:<ROUND> )?{_THE}<SPAN>",
        _same,
    ),
    (r"(?:(?<=^)|(?<=, ))<SPAN>(?:<EDGE>|(?= <WH>))", _same),
    (r"(?<=\w )<SPAN>$", _same),
)
"""Amounts of time: positions or durations."""

_MARKS: _Rules = (
    *(
        (rf"(?:\bin )?{_THE}(?:{order}) <PART{parts}>(?: {_OWN_VIDEO})?", _part(number / parts, (number + 1) / parts))
        for parts in (2, 3, 4)
        for number, order in (
            (0, "<FIRST>"),
            (parts - 1, "<LAST>"),
            (1, "second|zweiten?|seconde|deuxieme|segund[ao]"),
            (2, "third|dritten?|troisieme|tercera?"),
        )
        if number < parts
    ),
    (
        (
            r"(?:<AT> |nach |zu |aux |au |en |a )?SHARE\d+(?: of the way)? "
            rf"(?:(?:in|into|through)(?: {_THE}<VIDEO>|{_FREE})|{_OWN_VIDEO})"
        ),
        _share,
    ),
    (
        (
            rf"(?:<AT> |nach |auf |en )?{_THE}<HALFWAY>(?: <MARK>)?(?: (?:through|in|into))?"
            rf"(?: (?:<OF> )?{_THE}<VIDEO>|{_FREE})"
        ),
        _moment(0.5),
    ),
    (rf"(?:(?:in|<AT>|en|zur) )?<MIDDLE> {_OWN_VIDEO}", _moment(0.5)),
    (rf"<SHOWN> (?:<GAP>)(?:in|au|en) <MIDDLE>{_FREE}", _moment(0.5)),
    (rf"(?:<AT> )?{_THE}<VIDEO> s (?:start|beginning)", _moment(0.0)),
    (rf"(?:<AT> )?{_THE}<VIDEO> s end(?:ing)?", _moment(1.0)),
    (rf"(?:(?:<AT>|in|zu|zum|am|at) )?<START>(?: {_OWN_VIDEO}|{_FREE})", _moment(0.0)),
    (rf"(?:(?:<AT>|in|zu|zum|am|at) )?<END>(?: {_OWN_VIDEO}|{_FREE})", _moment(1.0)),
)
"""Positions in the video as a whole."""

_RANGES: _Rules = (
    (r"<BETWEEN> (?:<THE> )*<TIME> <AND> (?:<THE> )*<TIME>", _between),
    (r"(?<!\w )(?:<FROM> )?<TIME> <TO> <TIME>|(?<=\w )<FROM> <TIME> <TO> <TIME>|<TIME> (?:-|bis) <TIME>", _between),
    (r"PLACE\d+ PLACE\d+", _between),
    (r"<UNTIL> <TIME>", _until),
    (r"(?:<SINCE>|from|von|de) <TIME> <ONWARD>", _since),
    (r"(?<!\w )from <TIME>|<SINCE> <TIME>", _since),
    (r"(?:during|wahrend|pendant|durante) (?:<THE> )*PLACE\d+", _minute),
    (r"(?:<SPAN>|SHARE\d+)", None),
)
"""Stretches between two places."""

_RULES = _SURE + _OTHER_CLOCKS + _SPANS + _MARKS + _RANGES
_RULES_OF_COMPARISON = tuple(rule for rule in _RULES if rule not in _RANGES or rule[1] is not _between)

_NEIGHBOURS = {
    "after": (
        r"(?<!look )(?<!looks )(?<!looking )(?!<NO_ORDER>)<AFTER> <GAP><TIME>",
        r"(?!<NO_ORDER>)<AFTERWARDS>",
        r"<HAPPENS> (?:right |directly |immediately |just |shortly )?<AFTER>",
    ),
    "before": (
        r"<BEFORE> <GAP><TIME>",
        r"\bvor (?:<TIME>|<THE> (?:[a-z]+ )?<THING> <GAP><TIME>)",
        r"<BEFOREHAND>",
        r"<HAPPENS> (?:right |directly |immediately |just |shortly )?<BEFORE>",
    ),
}
"""What asks for a neighbour of a time."""

_NEIGHBOURS_OF_THINGS = {
    "after": (
        r"(?<!look )(?<!looks )(?<!looking )(?<!named )(?!<NO_ORDER>)<AFTER> \w",
        r"(?:follows|followed|folgt|folgte) \w",
        r"(?:<AFTERWARDS>) \w+$",
    ),
    "before": (r"<BEFORE> \w", r"\bvor <THE> (?:[a-z]+ )?<THING>", r"<BEFOREHAND> \w"),
}
"""What asks for a neighbour of a thing, in a question without a time."""

_ANOTHER_MOMENT = ("<ELSEWHERE>", r"^(?:is|are|was|were|does|do|did|ist|war|est|es) .*(?:<FIRST>|<LAST>)")
"""What makes a question about a moment need another one as well."""

_UNCLEAR = (r"(?<![a-z])(?!<CUE> )[a-z]+ <CLOCK>",)
"""A clock time after a word that does not make it a position."""

_ASKS = r"\b(?:where|how|what|wo|wie|comment|ou|como|donde) <GAP>"
_FIRST = (
    r"(?<!finishes )(?<!finish )(?<!finished )(?<!wins )(?!(?:starting|opening|initial)(?! <THING>))<FIRST>",
    rf"{_ASKS}(?:start|starts|begin|begins|beginnt|commence|empieza)(?: with)?$",
)
_LAST = (
    r"(?<!finishes )(?<!finish )(?<!finished )(?!(?:closing|ending|concluding)(?! <THING>))<LAST>",
    rf"{_ASKS}(?:end|ends|endet|finit|termine|termina)(?: with)?$",
)
"""What asks for the first or the last thing of a video."""
