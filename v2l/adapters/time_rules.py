"""Rules that turn the placeholders of a question into places in the video (see `asked_time`).

A rule is a pattern and an action. Within patterns, <WORD> stands for a class of words or placeholders: see `time_words`
for the words, and `time_text` for the placeholders. The rules are applied in order, each to the result of those before.
An action returns the place in seconds from the matched times and from the duration of the video; without an action, the
matched times are no positions.
"""

from __future__ import annotations

from v2l.adapters.time_patterns import PLACEHOLDERS
from v2l.adapters.time_text import Action, Stretch


def _part(start: float, end: float) -> Action:
    return lambda times, duration: (start * duration, end * duration)


def _share(times: list[Stretch], duration: float) -> Stretch:
    return times[0][0] * duration, times[0][0] * duration


def _from_end(times: list[Stretch], duration: float) -> Stretch:
    return duration - times[0][0], duration - times[0][0]


def _same(times: list[Stretch], duration: float) -> Stretch:
    return times[0]


def _between(times: list[Stretch], duration: float) -> Stretch | None:
    (start, _), (end, last) = times
    return (start, last) if start <= end else None  # from 22:00 to 6:00


def _since(times: list[Stretch], duration: float) -> Stretch:
    return times[0][0], max(duration, times[0][0])


def _minute(times: list[Stretch], duration: float) -> Stretch:
    """Return the minute that begins at a whole one, or else the moment."""
    start, end = times[0]
    return (start, start + 60) if start == end and start % 60 == 0 else times[0]


_THE = "(?:<THE> ){0,5}"
_OWN_VIDEO = rf"(?:<OF>|<THE>) {_THE}<VIDEO>"
_SAME = "<the same|the one|identical|derselbe|dieselbe|dasselbe|le meme|la meme|est il|est elle|el mismo|la misma>"
_FREE = rf"(?:<EDGE>|(?= (?:<WH>|<AND>|<TO>|<BEFORE>|<BESIDE>|<SHOWN>|{_SAME}|<COMPARE>|PLACE)))"
"""What may follow the mark of a video: "at the end of the table" and "at the start button" are no times."""

_INTO = rf"(?: (?:<OF> )?{_THE}<VIDEO>|{_FREE})"
_NOT_IN = rf"(?! <MARK>| into| in(?:<EDGE>| {_THE}<VIDEO>| <WH>))"

_UNIT = "<minute|minutes|minuten|minuto|minutos|segundo|segunde|sekundo|sekunde|second|seconde>"
_WHOLE = rf"(?: {_OWN_VIDEO}|(?! (?:of|des|der|du|de|del|d)\b))"
"""What may follow a part of a video: "the first half of the sentence" is no time."""

UNCLEAR = r"(?<![a-z])(?!(?:<CUE>|<ROUND>) )[a-z]+ <CLOCK>"
"""A clock time after a word that does not make it a position."""

_ANY = "(?:<CLOCK>|<STAMP>)"
_OR = "<or|oder|ou|o>"
_DURING = "(?:<in|during|for|within|im|wahrend|dans|pendant|en|durante> )"
_BARE = r"(?<![a-z])(?!(?:<CUE>|<ROUND>|um) )[a-z]+ "
_WITH = "<with|vs|versus|than|from|mit|von|als|avec|con>|<AFTER>|<BEFORE>"
_MORE = rf"(?:on (?:<THE>|<OF>)|(?!<WH>|<AND>|{_WITH}|<TO> {_THE}(?:<TIME>|<VIDEO>|<START>|<END>))[a-z])"
"""Words around a clock time in the middle of a sentence: without a preposition, as in "what does 12:30 mean?"."""

_DEIXIS = "<this|that|there|here|it|he|she|we|me|us|guy|man|da|das|dies|la|ca|ici|talks|speaks|aqui|ahi|esto|eso>"
_AT = "(?:(?:<AT>|um|en|las|a las|a la) )"
_NOT_AT = "(?:(?!<AT> )[a-z0-9]+ ){0,7}?"
_ABOUT = rf"<say|says|said|talk|talks|talking|think|thinks|learn|know|hear|special|funny> <GAP>about {_THE}"
_OPEN = "<open|closed|offen|geoffnet|geschlossen|ouvert|ouverte|ferme|abierto|abierta|cerrado|cerrada>"
_WHERE = "(?:(?:<TO>|<FROM>|<BESIDE>|<THE>|nach|pour|chez) (?:[a-z]+ ){1,3}?)?"
_HELD = "(?:(?:<BE>|last|lasts|runs|do|does|we|they|you|he|she|i|have|has|will|be|held|served) ){0,5}"

_Rules = tuple[tuple[str, Action], ...]

_SURE: _Rules = (
    (rf"(?:(?:<AT>|in|en) )?{_THE}(?:<LABEL>(?: <BE>)?|{_UNIT}) <TIME>", _same),
    (rf"(?:(?<=^)|(?<=, )|<AT> {_THE})<time> <TIME>", _same),
    (rf"{_ANY} (?:<MARK>|<PICTURE>)", _same),
    (rf"<CLOCK>(?: ,)? (?:<OF>|des|der) {_THE}<VIDEO>", _same),
    (r"(?:<CLOCK>|<STAMP>)(?: <UNIT>)? <in|into>(?:<EDGE>|(?= <WH>)| <THE> <VIDEO>)", _same),
    (rf"<OF> {_THE}<VIDEO>(?: ,)? (?:<AT> )?<CLOCK>", _same),
)
"""Clock times that are certainly positions."""

_OTHER_CLOCKS: _Rules = (
    # Times of day
    (r"<TIME>(?: <DAYTIME>| on <SCHEDULE>| <am|est|cet>(?:<EDGE>| <AND>| on| in| or| <WH>))", None),
    (r"<it|il|es|time|now|heure|hora> <BE> <TIME>|<BE> <it> <CLOCK>|<las|a la> <CLOCK>|<time> (?:, )?<TIME>", None),
    (r"(?:<CLOCKFACE>|<set|stelle>) <GAP>(?:<SHOWS>|<SET>) (?:t )?(?:(?:il|elle|er|sie|es) )?<TIME>", None),
    (r"<SHOWS> <GAP><CLOCKFACE> (?:(?!<CUE>)[a-z]+ ){0,15}<CLOCK>|<CLOCKFACE> <BE> <at|on|auf> <CLOCK>", None),
    # Scores, ratios and verses
    (r"<SCORE> (?:, |(?:of|by|with|is|was|being|mit|von|de|par|por|<BE> at) )?<TIME>", None),
    (rf"(?:<SCORE>|<VERSE>) (?:[a-z0-9]+ ){{0,7}}?{_BARE}{_ANY}|<MEANS> (?:by )?{_ANY}", None),
    (r"<TIME> (?:<TO> )?<WIN>|<VERSE> <TIME>|(?<!the )(?<!at )(?<!time )<mark> <TIME>", None),
    # Events and schedules
    (r"<CLOCK> (?:<zum|zur|einen|eine|ein> |<BEGINS> [a-z]+ )?<EVENT>", None),
    (rf"um <CLOCK> (?:<auf|ab|los|ins bett><EDGE>|<zum|zur|im> <SHOWING>)|<BEGINS> {_THE}<SHOWING> {_AT}<CLOCK>", None),
    (r"(?:<EVENT>|<SHOWING>) <GAP><BEGINS> <GAP><CLOCK>", None),
    (rf"<EVENT> (?:<GAP><BE> {_AT}?|(?:(?:[a-z]+ ){{0,7}}?{_BARE})?)<CLOCK>", None),
    (r"<film|movie|programme|series|sendung|serie> (?:is )?<on|starts|lauft|kommt|passe> (?:<AT>|um) <CLOCK>", None),
    (rf"<WHEN> .*, (?:<BETWEEN> |<FROM> )?{_ANY} (?:<TO>|<AND>) {_ANY}<EDGE>", None),
    (r"^<which|what|welcher|welchen|quel|que> <EVENT> (?!.*(?:<SHOWN>|<behind|near|in|on|it>)).*<CLOCK>", None),
    (rf"{_OPEN} (?:<UNTIL>|<FROM>) <CLOCK>|(?:<UNTIL>|<FROM>) <CLOCK> {_OPEN}", None),
    (rf"<EVENT> {_WHERE}{_HELD}(?:{_AT}|(?:<FROM>|<BETWEEN>|for|du|of) )<CLOCK>", None),
    (rf"^<BE> (?:<THE> )?(?!<it|he|she|there|this|that> )[a-z]+ {_AT}<CLOCK>(?:<EDGE>| or)", None),
    (r"(?:<CLOCK>.*)?<SCHEDULE>(?:.*<CLOCK>)?", None),
    # What is asked, not where: "is the result 12:30?", "a 12:30 mile", "what does 12:30 mean?", "1:10 or 1:20?"
    (rf"^(?:(?!was (?!<THE>|<it|he|she|there>))<YES_NO>|<WHY>) (?:(?:[a-z0-9]+ ){{0,15}}?{_BARE})?{_ANY}", None),
    (rf"(?<!\d )<a|an|ein|eine|un|une|una|beim|zum|vom> {_ANY} (?!<WH>|<AND>)[a-z]", None),
    (rf"<THE> {_ANY} (?:<TO>|<AND>) {_ANY} (?!<WH>|<AND>|<PICTURE>)[a-z]", None),
    (rf"(?:{_BARE}|(?<=, )){_THE}<CLOCK> {_OR} {_THE}(?:{_ANY}|\d)", None),
    (rf"(?:{_BARE}|{_OR} ){_ANY} {_MORE}", None),
    (r"<SHOWS> <CLOCK>$|<BE> (?:de )?<CLOCK>|<has|contains|quoi|uber|sur|the|le|den> <CLOCK><EDGE>", None),
    (rf"^<WH> (?:[a-z]+ ){{0,2}}?(?!<SHOWN>|{_DEIXIS}){_BARE}<CLOCK><EDGE>", None),
    (rf"{_ABOUT}<CLOCK>", None),
    # Durations
    (rf"(?:<TOOK>|<OF> <time>) {_NOT_AT}(?:, )?{_ANY}", None),
    (r"<takes|take|took|lasts|lasted|within|besoin de> <TIME>", None),
    (rf"<in|for> (?:(?:under|just|only) )?{_ANY}|<under|unter> <TIME>", None),
    (rf"<other> (?:<AND>|<TO>|{_OR}|<than|als|instead of>) {_AT}?{_ANY}", None),
    (rf"(?:(?<=the )|^){_ANY} (?:<AND>|{_OR}) <other>", None),
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
    (rf"(?:\bin )?{_THE}(?:<LAST>|<CLOSING>) <SPAN>{_WHOLE}", lambda times, end: (end - times[0][0], end)),
    (rf"(?:\bin )?{_THE}(?:<FIRST>|<OPENING>) <SPAN>{_WHOLE}", lambda times, end: (0.0, min(times[0][0], end))),
    # Ranges
    (rf"(?:<BETWEEN>|<FROM>|<AT>) {_THE}<SPAN> (?:<AND>|<TO>) {_THE}(?:<SPAN>|<CLOCK>)", _between),
    # Subjects and durations
    (rf"(?:{_ABOUT}|(?<=[a-z] )<by> (?:<ROUND> )?)<SPAN>{_NOT_IN}", None),
    (r"<SPAN> <LONG>", None),
    (rf"<SPAN> <of|de|in|into|im|en|au|al> (?!{_THE}(?:<VIDEO>|<WH>))(?=\w)", None),
    (rf"(?<!after )(?<!bout )(?<!cabo )(?<!despues )<LASTS> (?:<ROUND> )?<SPAN>{_NOT_IN}", None),
    # Positions
    (rf"(?:<AT> )?(?:<ROUND> )?{_THE}<SPAN> <MARK>", _same),
    (rf"(?:<AT> |<AFTER> )?(?:<ROUND> )?<SPAN> <in|into|through|im|de|del|dans> {_THE}<VIDEO>", _same),
    (r"(?:<AT> )?(?:<ROUND> )?<SPAN> <into|in to|in|deep>(?:<EDGE>|(?= <WH>))", _same),
    (rf"(?:<AT>|<a>)(?: <ROUND>)? {_THE}<SPAN>", _same),
    (rf"<ROUND> {_THE}<SPAN>", _same),
    (rf"(?:<AFTER>|(?:at|au) bout de?|pasad[oa]s?|transcurridos|al cabo de) (?:<ROUND> )?{_THE}<SPAN>", _same),
    (r"(?:(?<=^)|(?<=, ))<SPAN>(?:<EDGE>|(?= <WH>))", _same),
)
"""Amounts of time: positions or durations."""

_MARKS: _Rules = (
    *(
        (
            rf"(?:{_DURING}{_THE}(?:{order}) <PART{parts}>{_WHOLE}|(?<![a-z] ){_THE}(?:{order}) <PART{parts}>{_INTO})",
            _part(number / parts, (number + 1) / parts),
        )
        for parts in (2, 3, 4)
        for number, order in (
            (0, "<FIRST>"),
            (parts - 1, "<LAST>"),
            (1, "second|zweiten?|seconde|deuxieme|segund[ao]"),
            (2, "third|dritten?|troisieme|tercera?"),
        )
        if number < parts
    ),
    (rf"(?:<AT> |nach |zu |aux |au |en |a )?<SHARE>(?: of the way)? (?:<in|into|through>{_INTO}|{_OWN_VIDEO})", _share),
    (rf"(?:<SHOWN>|^<WH>(?: s)? (?:<BE> )?(?:<BESIDE>|<OF>) {_THE}[a-z]+) <GAP><AT> <SHARE><EDGE>", _share),
    (rf"<AT> {_THE}<SHARE> <MARK>|^<AT> <SHARE>(?:<EDGE>|(?= <WH>))", _share),
    (r"^(?:<in|at|au|en> )?<MIDDLE>(?:<EDGE>|(?= <WH>))", _part(0.5, 0.5)),
    (rf"(?:<AT> |nach |auf |en )?{_THE}<HALFWAY>(?: <MARK>)?(?: <in|into|through>)?{_INTO}", _part(0.5, 0.5)),
    (rf"(?:(?:in|<AT>|en|zur) )?<MIDDLE> {_OWN_VIDEO}", _part(0.5, 0.5)),
    (rf"<SHOWN> (?:<GAP>)(?:in|au|en) <MIDDLE>{_FREE}", _part(0.5, 0.5)),
    (rf"<as|when|once|wenn|als> {_THE}<VIDEO> <start|starts|begin|begins|started|began|beginnt|begann>", _part(0, 0)),
    (rf"<as|when|once|wenn|als> {_THE}<VIDEO> <end|ends|stop|stops|ended|endet|aufhort>", _part(1, 1)),
    (rf"(?:<AT> )?{_THE}<VIDEO> <s> <start|beginning>", _part(0, 0)),
    (rf"(?:<AT> )?{_THE}<VIDEO> <s> <end|ending>", _part(1, 1)),
    (rf"(?:(?:<AT>|in|zu|zum|am|at) )?<START>(?: {_OWN_VIDEO}|{_FREE})", _part(0, 0)),
    (rf"(?:(?:<AT>|in|zu|zum|am|at) )?<END>(?: {_OWN_VIDEO}|{_FREE})", _part(1, 1)),
)
"""Positions in the video as a whole."""

_RANGES: _Rules = (
    (r"<BETWEEN> (?:<THE> ){0,5}<TIME> <AND> (?:<THE> ){0,5}<TIME>", _between),
    (r"(?:<FROM> )?<TIME> <TO> <TIME>", _between),
    (r"<PLACE> <PLACE>|<FROM> <TIME> <PLACE>", _between),
    (r"<UNTIL> <TIME>", lambda times, _: (0.0, times[0][1])),
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

READS_A_CLOCK = r"<what> time (?:<BE> <it>|<GAP>(?:<CLOCKFACE>|<SHOWS>))"
"""What asks which time a clock shows, at a moment of the video."""

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
