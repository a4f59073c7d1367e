"""Rules that turn the placeholders of a question into places in the video (see `asked_time`).

A rule is a pattern and an action. Within patterns, <WORD> stands for a class of words or placeholders: see `time_words`
for the words, and `time_text` for the placeholders. The rules are applied in order, each to the result of those before.
An action returns the place in seconds from the matched times and from the duration of the video; without an action, the
matched times are no positions.
"""

from __future__ import annotations

from v2l.adapters.time_patterns import PLACEHOLDERS
from v2l.adapters.time_text import Action, Stretch


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


_THE = "(?:<THE> ){0,5}"
_OWN_VIDEO = rf"(?:<OF>|<THE>) {_THE}<VIDEO>"
_FREE = r"(?:<EDGE>|(?= (?:<WH>|<AND>|<TO>|<BEFORE>|<BESIDE>|<SHOWN>|PLACE)))"
"""What may follow the mark of a video: "at the end of the table" and "at the start button" are no times."""

_UNIT = "<minute|minutes|minuten|minuto|minutos|segundo|segunde|sekundo|sekunde|second|seconde>"
_SHORT = (
    r"(?:what|who|which|where|describe|was|wer|welche\w*|wo|que|qui|quel\w*|qu|quien|cual|donde) "
    r"(?:(?!<LASTS> |last |lasts |dura )[a-z0-9,]+ )+"
)
"""A question without another time and without a word that makes a duration of an amount at its end."""

_WHOLE = rf"(?: {_OWN_VIDEO}|(?! (?:of|des|der|du|de|del|d)\b))"
"""What may follow a part of a video: "the first half of the sentence" is no time."""

UNCLEAR = r"(?<![a-z])(?!(?:<CUE>|<ROUND>) )[a-z]+ <CLOCK>"
"""A clock time after a word that does not make it a position."""

_Rules = tuple[tuple[str, Action], ...]

_SURE: _Rules = (
    (rf"(?:(?:<AT>|in|en) )?{_THE}(?:<LABEL>|{_UNIT}) <TIME>", _same),
    (r"(?:<CLOCK>|<STAMP>) <MARK>", _same),
    (rf"<CLOCK>(?: ,)? (?:<OF>|des|der) {_THE}<VIDEO>", _same),
    (r"<timestamp|timecode> <BE> <TIME>", _same),
    (r"(?:<CLOCK>|<STAMP>)(?: <UNIT>)? <in|into>(?:<EDGE>|(?= <WH>)| <THE> <VIDEO>)", _same),
    (rf"<OF> {_THE}<VIDEO>(?: ,)? (?:<AT> )?<CLOCK>", _same),
)
"""Clock times that are certainly positions."""

_OTHER_CLOCKS: _Rules = (
    # Times of day
    (r"<TIME>(?: <DAYTIME>| <am>(?:<EDGE>| <AND>| on| in| <WH>))", None),
    (r"<TODAY> (?:<AT> |um |en |a las )?<CLOCK>", None),
    (r"<it|il|es|time|now|heure|hora> <BE> <TIME>|<BE> <it> <CLOCK>|(?:<son>|a) <las> <CLOCK>", None),
    (r"<CLOCKFACE> (?:<SET>|<BE> (?:<SET>|at|on|auf)) <CLOCK>", None),
    (r"<CLOCKFACE> <GAP>(?:<SHOWS>|<SET>) (?:t )?(?:(?:il|elle|er|sie|es) )?<TIME>", None),
    (r"<SHOWS> <GAP><CLOCKFACE> (?:(?!<CUE>)[a-z]+ ){0,15}<CLOCK>", None),
    # Scores, ratios and verses
    (r"<SCORE> (?:(?:of|by|with|is|was|being|mit|von|de|par|por|<BE> at) )?<TIME>", None),
    (r"<TIME> (?:<TO> )?<WIN>", None),
    (r"<VERSE> <TIME>|(?<!the )(?<!at )(?<!time )<mark> <TIME>", None),
    # Events and schedules
    (r"<CLOCK> <EVENT>", None),
    (r"(?:<EVENT>|<SHOWING>) <GAP><BEGINS> <GAP><CLOCK>", None),
    (r"<EVENT> <BE> <CLOCK>", None),
    (r"<open|closed|offen|geoffnet|ouvert|abierto|abierta> (?:<UNTIL>|<FROM>) <CLOCK>", None),
    (
        (
            r"(?<!in the )(?<!during the )(?<!of the )(?<!im )(?<!in der )<EVENT> "
            r"(?:(?:<BE>|do|does|we|they|you|he|she|i|have|has|will|be|held|served) ){0,5}"
            r"(?:<AT>|<FROM>|um|en|a las|for|du|of) <CLOCK>"
        ),
        None,
    ),
    # What is asked, not where: "is the result 12:30?", "a 12:30 mile"
    (rf"^<YES_NO> <GAP>{UNCLEAR}", None),
    (r"(?<!\d )<a|an|ein|eine|un|une|una> <CLOCK> [a-z]", None),
    (r"<SCHEDULE>.*<CLOCK>", None),
    (r"<CLOCK>.*<SCHEDULE>", None),
    (r"<other> (?:<AND>|<TO>|or) <CLOCK>", None),
    # Durations
    (
        r"(?:<TOOK>|<OF> <time>) <GAP>(?:, )?<CLOCK>",
        None,
    ),
    (r"<takes|take|took|lasts|lasted|within> <TIME>", None),
    (r"<in|for> (?:(?:under|just|only) )?<CLOCK>", None),
    (r"<THE> <TIME> <LONG>|<TIME> (?:<UNITNAME> )?<long|lang|old|later|spater|plus tard|mas tarde>", None),
)
"""Clock times that are no positions."""

_SPANS: _Rules = (
    (rf"at (?:the|la) <LAST> <SPAN>(?! {_OWN_VIDEO})|<in letzter> <SPAN>", None),
    (r"<does|do|did|will|would|can|could|should|must|to> (?:[a-z0-9]+ ){0,15}(?<!the )(?<!in )<last> <SPAN>", None),
    # A span from another time or from an end of the video
    (r"<LAST> <SPAN> (?:<BEFORE>|vor) <TIME>", lambda times, _: (times[1][0] - times[0][0], times[1][0])),
    (
        r"(?:<FIRST>|next|nachsten|prochaines|proximos) <SPAN> (?:<AFTER>|<FROM>|<AFTERWARDS>) <TIME>",
        lambda times, _: (times[1][0], times[1][0] + times[0][0]),
    ),
    (r"\bin <THE> <SPAN> (?:<AFTER>|<AFTERWARDS>) <TIME>", lambda times, _: (times[1][0], times[1][0] + times[0][0])),
    (r"\bin <THE> <SPAN> (?:<BEFORE>|vor) <TIME>", lambda times, _: (times[1][0] - times[0][0], times[1][0])),
    (r"(?:<AT> )?<SPAN> <AFTER> <TIME>", lambda times, _: (times[1][0] + times[0][0],) * 2),
    (r"(?:<AT> )?<SPAN> (?:<BEFORE>|vor) <TIME>", lambda times, _: (times[1][0] - times[0][0],) * 2),
    (rf"(?:<AT> )?<SPAN> (?:<BEFORE>|vor|<FROM>) {_THE}<END>(?: {_OWN_VIDEO}|{_FREE})", _from_end),
    (r"(?:with )?<SPAN> <LEFT><EDGE>", _from_end),
    (rf"(?:<AT> )?<SPAN> (?:<AFTER>|<FROM>|into) {_THE}<START>(?: {_OWN_VIDEO}|{_FREE})", _same),
    (rf"(?:\bin )?{_THE}(?:<LAST>|<CLOSING>) <SPAN>{_WHOLE}", _last),
    (rf"(?:\bin )?{_THE}(?:<FIRST>|<OPENING>) <SPAN>{_WHOLE}", _first),
    # Ranges
    (rf"(?:<BETWEEN>|<FROM>|<AT>) {_THE}<SPAN> (?:<AND>|<TO>) {_THE}<SPAN>", _between),
    # Durations
    (r"<THE> <SPAN> (?:<LONG>)", None),
    (r"<SPAN> <LONG>", None),
    (rf"<SPAN> <of|de|in|into|im|en|au|al> (?!{_THE}(?:<VIDEO>|<WH>))(?=\w)", None),
    (
        (
            r"(?<!after )(?<!bout )(?<!cabo )(?<!despues )<LASTS> (?:<ROUND> )?<SPAN>"
            rf"(?! <MARK>| in<EDGE>| in(?:to)? {_THE}<VIDEO>)"
        ),
        None,
    ),
    # Positions
    (rf"(?:<AT> )?(?:<ROUND> )?{_THE}<SPAN> <MARK>", _same),
    (rf"(?:<AT> )?(?:<ROUND> )?<SPAN> <in|into|through|im|de|del|dans> {_THE}<VIDEO>", _same),
    (r"(?:<AT> )?(?:<ROUND> )?<SPAN> <into|in to|in|deep>(?:<EDGE>|(?= <WH>))", _same),
    (rf"(?:<AT>|<a>)(?: <ROUND>)? {_THE}<SPAN>", _same),
    (rf"<ROUND> {_THE}<SPAN>", _same),
    (
        rf"(?:<AFTER>|at bout de|au bout de|pasados|transcurridos|al cabo de) (?:<ROUND> )?{_THE}<SPAN>",
        _same,
    ),
    (r"(?:(?<=^)|(?<=, ))<SPAN>(?:<EDGE>|(?= <WH>))", _same),
    (rf"^{_SHORT}<SPAN>$", _same),
    (r"^<describe|summarize|summarise|explain|beschreibe|decris|resume|explica> <SPAN>$", _same),
)
"""Amounts of time: positions or durations."""

_MARKS: _Rules = (
    *(
        (rf"(?:\bin )?{_THE}(?:{order}) <PART{parts}>{_WHOLE}", _part(number / parts, (number + 1) / parts))
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
            r"(?:<AT> |nach |zu |aux |au |en |a )?<SHARE>(?: of the way)? "
            rf"(?:(?:in|into|through)(?: {_THE}<VIDEO>|{_FREE})|{_OWN_VIDEO})"
        ),
        _share,
    ),
    (r"<SHOWN> <GAP>(?:<AT> )<SHARE><EDGE>", _share),
    (
        (
            rf"(?:<AT> |nach |auf |en )?{_THE}<HALFWAY>(?: <MARK>)?(?: (?:through|in|into))?"
            rf"(?: (?:<OF> )?{_THE}<VIDEO>|{_FREE})"
        ),
        _moment(0.5),
    ),
    (rf"(?:(?:in|<AT>|en|zur) )?<MIDDLE> {_OWN_VIDEO}", _moment(0.5)),
    (rf"<SHOWN> (?:<GAP>)(?:in|au|en) <MIDDLE>{_FREE}", _moment(0.5)),
    (rf"<as|when|once|wenn|als> {_THE}<VIDEO> <start|starts|begin|begins|started|began|beginnt|begann>", _moment(0.0)),
    (rf"<as|when|once|wenn|als> {_THE}<VIDEO> <end|ends|stop|stops|ended|endet|aufhort>", _moment(1.0)),
    (rf"(?:<AT> )?{_THE}<VIDEO> <s> <start|beginning>", _moment(0.0)),
    (rf"(?:<AT> )?{_THE}<VIDEO> <s> <end|ending>", _moment(1.0)),
    (rf"(?:(?:<AT>|in|zu|zum|am|at) )?<START>(?: {_OWN_VIDEO}|{_FREE})", _moment(0.0)),
    (rf"(?:(?:<AT>|in|zu|zum|am|at) )?<END>(?: {_OWN_VIDEO}|{_FREE})", _moment(1.0)),
)
"""Positions in the video as a whole."""

_RANGES: _Rules = (
    (r"<BETWEEN> (?:<THE> ){0,5}<TIME> <AND> (?:<THE> ){0,5}<TIME>", _between),
    (r"(?:<FROM> )?<TIME> <TO> <TIME>", _between),
    (r"<PLACE> <PLACE>|<FROM> <TIME> <PLACE>", _between),
    (r"<UNTIL> <TIME>", _until),
    (r"(?:<SINCE>|<from|von|de>) <TIME> <ONWARD>", _since),
    (r"(?<!\w )<from> <TIME>|<SINCE> <TIME>", _since),
    (r"<during|wahrend|pendant|durante> (?:<THE> ){0,5}<PLACE>", _minute),
    (r"<SPAN>", None),
    (r"<SHARE>", None),
)
"""Stretches between two places."""

RULES = (
    (frozenset({"CLOCK", "STAMP", "PLACE"}), _SURE + _OTHER_CLOCKS),
    (frozenset({"SPAN"}), _SPANS),
    (frozenset({"PART2", "PART3", "PART4", "SHARE", "HALFWAY", "MIDDLE", "START", "END", "VIDEO"}), _MARKS),
    (frozenset(PLACEHOLDERS), _RANGES),
)
"""Rules in order, after the classes of which they need one."""

RULES_OF_COMPARISON = (*RULES[:-1], (RULES[-1][0], tuple(rule for rule in _RANGES if rule[1] is not _between)))

NEIGHBOURS = {
    "after": (
        r"(?<!look )(?<!looks )(?<!looking )(?!<NO_ORDER>)<AFTER> <GAP><TIME>",
        r"(?!<NO_ORDER>)<AFTERWARDS>",
        r"<HAPPENS> (?:right |directly |immediately |just |shortly )?<AFTER>",
    ),
    "before": (
        r"<BEFORE> <GAP><TIME>",
        r"<vor> (?:<TIME>|<THE> (?:[a-z]+ )?<THING> <GAP><TIME>)",
        r"<BEFOREHAND>",
        r"<HAPPENS> (?:right |directly |immediately |just |shortly )?<BEFORE>",
    ),
}
"""What asks for a neighbour of a time."""

NEIGHBOURS_OF_THINGS = {
    "after": (
        r"(?<!look )(?<!looks )(?<!looking )(?<!named )(?!<NO_ORDER>)<AFTER> \w",
        r"<follows|followed|folgt|folgte> \w",
        r"(?:<AFTERWARDS>) \w+$",
    ),
    "before": (r"<BEFORE> \w", r"<vor> <THE> (?:[a-z]+ )?<THING>", r"<BEFOREHAND> \w"),
}
"""What asks for a neighbour of a thing, in a question without a time."""

ANOTHER_MOMENT = ("<ELSEWHERE>", r"^<is|are|was|were|does|do|did|ist|war|est|es> .*(?:<FIRST>|<LAST>)")
"""What makes a question about a moment need another one as well."""

_ASKS = r"<where|how|what|wo|wie|comment|ou|como|donde> <GAP>"
FIRST = (
    r"<FIRST>|<OPENING> <THING>",
    rf"{_ASKS}<start|starts|begin|begins|beginnt|commence|empieza>(?: with)?$",
    r"<VIDEO> (?:<start|starts|begin|begins> <with>|<open|opens>$)",
)
LAST = (
    r"<LAST>|<CLOSING> <THING>",
    rf"{_ASKS}<end|ends|endet|finit|termine|termina>(?: with)?$",
    r"<VIDEO> <end|ends> <with>",
)
"""What asks for the first or the last thing of a video."""
