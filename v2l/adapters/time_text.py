"""A question whose times are replaced by placeholders, for the rules of `asked_time`.

CLOCK: 12:30, which may also be a time of day. STAMP: a time that cannot, such as 0:37. SPAN: 37 seconds, a position or
a duration. SHARE: a part of the video, such as 50%. PLACE: a position in the video, such as second 37. A placeholder
ends in the index of its value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import partial

from v2l.adapters.number_words import FRACTIONS, ORDINALS, QUARTERS, UNIT_SECONDS, number_words
from v2l.adapters.time_patterns import TRIGGERS, Words
from v2l.adapters.time_words import listed

Stretch = tuple[float, float]
"""Start and end in seconds; equal for a moment."""

Action = Callable[[list[Stretch], float], Stretch | None] | None
"""Returns a stretch of the video, from the values in a match and from the duration of the video; None if it is none."""


class TimeText:
    """A question that is being rewritten, and the values of its placeholders."""

    def __init__(self, text: str, values: Iterable[Stretch] = ()):
        self.text = text
        self.words = Words(text)
        self.values = list(values)

    def add(self, kind: str, start: float, end: float | None = None) -> str:
        """Return a new placeholder, between spaces."""
        self.values.append((start, start if end is None else end))
        return f" {kind}{len(self.values) - 1} "

    def stretches(self, text: str | None = None) -> list[Stretch]:
        """Return the values of the placeholders in `text`, by default in the whole question."""
        names = re.findall(r"[A-Z]{4,5}(\d+)", self.text if text is None else text)
        return [self.values[int(name)] for name in names]

    def has(self, *patterns: str) -> bool:
        """Return whether the question matches any of the patterns."""
        for pattern in patterns:
            compiled = self.words.pattern(pattern)
            if compiled and compiled.search(self.text):
                return True
        return False

    def find(self, pattern: str, part: str) -> list[tuple[str, str]]:
        """Return the groups of every match in a part of the question."""
        compiled = self.words.pattern(pattern)
        return compiled.findall(part) if compiled else []

    def replace(self, pattern: str, replacement: str | Callable[[re.Match], str]) -> bool:
        """Replace every match, as `re.sub` does, and return whether there is one."""
        compiled = self.words.pattern(pattern)
        if not compiled or not compiled.search(self.text):
            return False
        self.text = compiled.sub(replacement, self.text)
        self.words = Words(self.text)
        return True

    def rewrite(self, rules: tuple[tuple[str, Action], ...], duration: float) -> None:
        """Replace every match of every rule: by the place that its action returns, or its times by plain words if it
        has none."""

        def place(action: Action, found: re.Match) -> str:
            stretch = action and action(self.stretches(found[0]), duration)
            if stretch is None:
                return re.sub(r"[A-Z]{4,5}\d+", "other", found[0])
            return self.add("PLACE", max(min(stretch), 0.0), max(stretch))

        for pattern, action in rules:
            if self.replace(pattern, partial(place, action)):
                self.text = re.sub(r" +", " ", self.text).strip(" ,")


def read_times(question: str) -> TimeText | None:
    """Return a question in lower case, with placeholders for its times and commas for its punctuation; None if it has
    no word that a rule needs."""
    text = TimeText(_normalise(question))
    if text.words.names.isdisjoint(TRIGGERS):
        return None
    for pattern, form in _FORMS:
        text.replace(pattern, form if isinstance(form, str) else partial(form, text))
    if "-" in text.text:
        text.text = re.sub(r" -(?! *[A-Z\d])", " , ", text.text)  # a dash that is no range
    words = re.sub(r"[^\w@&=%-]+", lambda found: " , " if found[0].strip() else " ", text.text)
    return TimeText(re.sub(r"(?: ?, ?)+", " , ", words).strip(" ,"), text.values)


def _normalise(question: str) -> str:
    """Case-fold a question, drop accents, quotations and hyphens, and replace the French "à" by "at"."""
    text = question.casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", question).casefold()
        text = re.sub(r"\bà(?=\W)", "at", text).translate(_CHARACTERS)
        text = "".join(char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))
    text = text.replace("~", " around ")
    if "'" in text:
        text = re.sub(r"(\d)'\s?(\d\d)\b(?:''|\")?", r"\1 min \2 s ", text)  # 12'30"
    if "'" in text or '"' in text or "«" in text:
        text = re.sub(r'"[^"]*"|«[^«»]*»|(?<!\w)\'\d[\d:.]*\'', " quoted ", text).replace("'", " ")
    if "." in text:
        text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text)
    if "-" in text:
        text = re.sub(_COMPOUND, " other ", text)
        text = re.sub(r"(?<=[a-z])-(?=\w)|(?<=\d)-(?=[a-z])", " ", text).replace("-", " - ")
    return re.sub(r"\s+", " ", text)


_COMPOUND = r"(?<![\w.,])[\w.,]{1,30}-(?:(?:sekunden|minuten|stunden)[- ]|(?:second|minute|hour)-)(?!mark|point)[a-z]+"
"""An amount of time that describes a noun, as in "the 20-Sekunden-Regel"."""

_CHARACTERS = str.maketrans(
    dict.fromkeys("\u2019\u2032", "'")  # apostrophe and prime
    | dict.fromkeys("\u201c\u201d\u201e", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
    | {"\u2248": " around "}
)


CLOCK = r"(?<![\d:.])(?:(\d{1,2}):([0-5]?\d)|(\d{1,3})):([0-5]\d)(\.\d+)?(?!:?\d)"
"""A time such as 12:30, 1:12:30 or 0:37.5, in five groups, see `clock_seconds`."""


def clock_seconds(found: re.Match) -> float:
    """Return the time of a match whose first groups are those of `CLOCK`."""
    hours, minutes, more, seconds, fraction = found.groups()[:5]
    return 3600.0 * int(hours or 0) + 60 * int(minutes or more) + int(seconds) + float(fraction or 0)


def _clock(text: TimeText, found: re.Match) -> str:
    hours, _, more, _, fraction = found.groups()
    is_stamp = hours or fraction or not 1 <= int(more) <= 24 or len(more) > 2
    return text.add("STAMP" if is_stamp else "CLOCK", clock_seconds(found))


def _hours(text: TimeText, found: re.Match) -> str:
    return text.add("CLOCK", 3600.0 * int(found[1]) + 60 * int(found[2]))


def _ordinal(text: TimeText, found: re.Match) -> str:
    number = int(found[1]) if found[1] else next(n for n, table in ORDINALS.items() if found[2] in listed(table))
    unit = UNIT_SECONDS[found[3]]
    return text.add("PLACE", (number - 1) * unit if unit > 1 else number, number * unit)


def _label(text: TimeText, found: re.Match) -> str:
    """Replace one or two pairs of unit and number, such as "minute 12 second 30"."""
    pairs = text.find(r"(<UNITNAME>) (<NUMBER>)", found[0])
    return text.add("PLACE", sum(UNIT_SECONDS[unit] * _number(number) for unit, number in pairs))


def _label_and_amount(text: TimeText, found: re.Match) -> str:
    minutes, seconds = map(float, re.findall(r"\d+", found[0]))
    return text.add("PLACE", 60 * minutes + seconds)


def _seconds(text: TimeText, found: re.Match) -> str:
    return text.add("PLACE", _number(found[1]))


def _amount(text: TimeText, found: re.Match) -> str:
    """Replace up to three pairs of number and unit, such as "12m30s" and "a minute and a half"."""
    pairs = text.find(r"(<NUMBER>) ?(<UNIT>)", found["pairs"])
    unit = UNIT_SECONDS[pairs[-1][1]]
    total = sum(UNIT_SECONDS[each] * _number(number) for number, each in pairs)
    rest = int(found["rest"]) * unit / 60 if found["rest"] else int(found["part"] or 0) * unit / 100
    is_stamp = re.fullmatch(r"\d+[hm]\d+[ms]?(?:\d+s)?", found[0])  # 12m30s
    return text.add("STAMP" if is_stamp else "SPAN", total + rest)


def _single(text: TimeText, found: re.Match) -> str:
    """Replace the unit of "the last minute", and of "the last few minutes" as three of them."""
    several = found[2] or re.search("[sn]$", found[3])
    return found[1] + text.add("SPAN", UNIT_SECONDS[found[3]] * (3.0 if several else 1.0))


def _number(text: str) -> float:
    return float(text.split()[0].replace(",", ".")) + (0.5 if " " in text else 0)


_TH = r"(?:st|nd|rd|th|\.|eme|ere|er|e|o|a)"
"""Endings of ordinal numbers."""

_INSIDE = "(?:<in|on|into|inside|outside|behind|near|of|during|from|dans|sur|devant|pendant|en> <THE>|<im|vom>)"

_PARTS_OF_UNITS = {
    25: "(?:a |un )?(?:quarter|quart|cuarto)",
    50: "(?:a )?half|demie?|medi[oa]",
    75: "three quarters|trois quarts|tres cuartos",
}
"""Parts of the unit before them, by their hundredths."""

_FORMS: tuple[tuple[str, str | Callable[[TimeText, re.Match], str]], ...] = (
    (CLOCK, _clock),
    (r"(?<![\w.:])(\d{1,2}) ?h ?([0-5]\d)(?! ?(?:m|min|mn|minutes?)\b|\w)", _hours),
    *((f"<QUARTERS{minutes}>", f"{minutes} minutes") for minutes in QUARTERS),
    *(
        (rf"(?<![a-z])(<UNIT>) (?:and|et|y) (?:{part})\b(?! of)", rf"\1 plus{hundredths}")
        for hundredths, part in _PARTS_OF_UNITS.items()
    ),
    (r"<FRACTION>", lambda text, found: text.add("SHARE", FRACTIONS[found[0]])),
    (r"<NUMBER_WORD>", lambda _, found: f"{number_words()[found[0]]:g}"),
    (r"(?<!and a )<HALF>(?= <UNITNAME>)", "0.5"),
    (r"(?<=the )(?=<hour|minute> <MARK>)", "1 "),
    (r"<ONE>(?= <UNITNAME>| (?:<AND>|<TO>|or) \d)", "1"),
    (r"(?<!\d )<UNITNAME>(?= plus\d)", r"1 \g<0>"),
    (r"(?<!\d )<hour and|stunde und|heure et|hora y> (?=<NUMBER> ?<MINUTES>)", r"1 \g<0>"),
    (r"<at|vers|a las|sobre las> (?=\d\d? ?<HOURS>)\d\d? ?(?:heures|horas)\b", "at other"),  # a time of day
    (
        (
            r"(?!1 |0\.5 )<NUMBER> <second|minute|hour> "
            r"(?!<MARK>|marks|<WH>|<AND>|<TO>|<OF>|<AFTER>|<BEFORE>|<LEFT>|into|or)(?=[a-z])"
        ),
        "other ",
    ),
    (rf"({_INSIDE} |<color|colour|farbe|couleur> [a-z]+ <THE> )(?!<VIDEO>)(?:<EVENT>|<SHOWING>)(?! board)", r"\1place"),
    # Put the order first and repeat a unit that two numbers share
    (r"(<NUMBER>) (<LAST>|<FIRST>) (<UNITNAME>)", r"\2 \1 \3"),
    (r"(<NUMBER>) (<TO>|<AND>|<or>) (?=<NUMBER> ?(<UNIT>))", r"\1 \3 \2 "),
    (r"(<UNITNAME>) (<NUMBER>) (<TO>|<AND>) (?:el |al )?(?=<NUMBER>(?! ?<UNIT>))", r"\1 \2 \3 \1 "),
    (rf"(\d{{1,3}}{_TH}) (<AND>|<TO>) (?=(?:<THE> )?\d{{1,3}}{_TH} (<UNITNAME>))", r"\1 \3 \2 "),
    (rf"(?<!every )(?:\b(\d{{1,3}}){_TH}|(<ORDINAL>)) (<UNITNAME>)", _ordinal),
    (r"(?<!\d )<MINUTES> \d+(?: <AND>| con)? <NUMBER> ?<SECONDS>", _label_and_amount),
    (r"(?<![a-z])<MINUTES> \d+,?(?: <AND>)? <SECONDS> \d+\b(?! ?<UNIT>)", _label),
    (r"(?<!\d )(?<!the )(?<!\ba )(?<!every )(?<!per )<UNITNAME> <NUMBER>(?! ?<UNIT>)(?![\w%])", _label),
    (r"(?:<t> ?= ?|<timestamp|timecode|time stamp> )(\d+(?:\.\d+)?)(?: ?<UNIT>)?(?![\w%])", _seconds),
    (
        (
            r"(?P<pairs><NUMBER> ?<HOURS>(?:(?:,| <AND>)? ?<NUMBER> ?<MINUTES>)?(?:(?:,| <AND>)? ?<NUMBER> ?<SECONDS>)?"
            r"|<NUMBER> ?<MINUTES>(?:(?:,| <AND>)? ?<NUMBER> ?<SECONDS>)?|<NUMBER> ?<SECONDS>)"
            r"(?P<rest>(?<=\w)\d\d\b| \d\d(?=$| ?[,?.!:;)]| in\b| into\b| <WH>))?"
            r"(?: plus(?P<part>\d\d))?"
        ),
        _amount,
    ),
    (r"(<FIRST>) (<AND>) (<THE> )?(<LAST>) (<UNITNAME>)", r"\1 \5 \2 \3\4 \5"),
    (
        r"(<LAST> |<FIRST> |<CLOSING> |(?!opening hours)<OPENING> )(few |couple of |paar |quelques )?(<UNITNAME>)",
        _single,
    ),
    (
        r"\b(\d{1,3}) ?(?:%|per ?cent|prozent|pour cent|por ciento)",
        lambda text, found: text.add("SHARE", int(found[1]) / 100),
    ),
)
"""Forms of written times, in the order in which they are replaced."""
