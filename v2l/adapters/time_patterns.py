"""Patterns over the words of a question, for the rules of `asked_time`.

Within a pattern, <NAME> stands for a class of words or of placeholders, and <one|or two> for any of the listed words.
The classes have two thousand words, and a question has a few of them. A pattern is therefore compiled with the words
of the question alone, and not at all if a word or a placeholder is missing without which it cannot match.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache

from v2l.adapters.number_words import FRACTIONS, HALF, ONE, ORDINALS, PARTS, QUARTERS, UNITS, number_words
from v2l.adapters.time_words import PHRASES, listed

PLACEHOLDERS = ("CLOCK", "STAMP", "SPAN", "SHARE", "PLACE")
_FIXED = {
    **{name: rf"{name}\d+" for name in PLACEHOLDERS},
    "TIME": r"(?:CLOCK|STAMP|PLACE)\d+",
    "NUMBER": r"(?<![\d.,:/])\d{1,5}(?:[.,]\d+)?(?: and a half| et demie?| y medi[oa])?",
    "GAP": r"(?:[a-z0-9]+ ){0,7}?",
    "EDGE": r"(?= ,|$)",
}
"""Classes that are not lists of words."""

_NEEDS = {"TIME": {"CLOCK", "STAMP", "PLACE"}, "GAP": None, "EDGE": None}
"""Names of which a question needs one to match a class; None if it needs none, and by default the class itself."""

_COMMON = {*PLACEHOLDERS, "NUMBER", "THE", "OF", "AT", "BE"}
"""Classes that tell little about a question."""

TRIGGERS = frozenset(
    """NUMBER NUMBER_WORD FRACTION QUARTERS15 QUARTERS45 UNITNAME ORDINAL FIRST LAST OPENING CLOSING AFTER AFTERWARDS
    BEFORE BEFOREHAND START END MIDDLE HALFWAY start starts begin begins started began beginnt begann commence empieza
    beginning end ends stop stops ended ending endet aufhort finit termine termina open opens vor""".split()
)
"""Words and classes without which a question asks about no time."""

_UNITS = {1: "SECONDS", 60: "MINUTES", 3600: "HOURS"}
_CLASS = r"(?<!P)<([A-Z_]+\d*|[a-z][a-z|= ]*)>"
_SYNTAX = rf"{_CLASS}|\(\?(?:[:!=]|<[!=]|P<\w+>)|\\.|\[[^]]*\]|\{{0,\d+\}}|[^<()|\\[?*{{]+(?![?*{{])|."
"""The parts of a template: classes, starts of groups, escapes, sets, quantifiers and plain text."""

_TOKEN = r"[a-z]+|[@&=-]"


@cache
def _phrases() -> dict[str, list[tuple[str, list[str]]]]:
    """Return every phrase and the names of its classes, by the longest token of the phrase."""
    tables: list[tuple[str, Iterable[str]]] = [(name, listed(table)) for name, table in PHRASES.items()]
    tables += [("ONE", listed(ONE)), ("HALF", listed(HALF))]
    tables += [("NUMBER_WORD", number_words()), ("FRACTION", FRACTIONS)]
    tables += [("ORDINAL", listed(table)) for table in ORDINALS.values()]
    tables += [(f"QUARTERS{minutes}", listed(table)) for minutes, table in QUARTERS.items()]
    tables += [(f"PART{round(1 / value)}", [part]) for part, value in PARTS.items()]
    for seconds, table in UNITS.items():
        tables += [(_UNITS[seconds], listed(table)), ("UNIT", listed(table))]
        tables += [("UNITNAME", [name for name in listed(table) if len(name) > 2])]
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name, phrases in tables:
        for phrase in phrases:
            names[phrase].append(name)
    by_token: defaultdict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for phrase, classes in names.items():
        by_token[_rarest(phrase)].append((phrase, classes))
    return dict(by_token)


def _rarest(phrase: str) -> str:
    """Return the longest word of a phrase, which few other phrases share."""
    return max(phrase.replace("=", " ").split(), key=len) if " " in phrase or "=" in phrase else phrase


class _Classes(dict[str, str]):
    """Patterns of the classes of a text, made when they are asked for."""

    def __init__(self, phrases: dict[str, list[str]]):
        super().__init__(_FIXED)
        self._phrases = phrases

    def __missing__(self, name: str) -> str:
        phrases = self._phrases.get(name, ()) if name.isupper() else name.split("|")
        self[name] = _alternation(tuple(phrases), name in ("SECONDS", "MINUTES", "HOURS", "UNIT"))
        return self[name]


class Words:
    """The words of a text and the classes that they belong to.

    names: the tokens of the text, the classes of its phrases, and NUMBER if it has a digit
    """

    def __init__(self, text: str):
        index = _phrases()
        tokens = set(re.findall(_TOKEN, text))
        phrases: dict[str, list[str]] = {}
        for token in tokens & index.keys():
            for phrase, classes in index[token]:
                if phrase in text:
                    for name in classes:
                        phrases.setdefault(name, []).append(phrase)
        self.names = tokens.union(phrases, [name for name in PLACEHOLDERS if name in text])
        if re.search(r"\d", text):
            self.names.add("NUMBER")
        self._classes = _Classes(phrases)

    def pattern(self, template: str) -> re.Pattern | None:
        """Return the pattern of these words; None if it cannot match a text of them."""
        form, needed, choices = _read(template)
        if not needed <= self.names:
            return None
        for choice in choices:
            if choice.isdisjoint(self.names):
                return None
        return _compiled(form % self._classes)


@lru_cache(maxsize=4096)
def _alternation(phrases: tuple[str, ...], is_unit: bool) -> str:
    """Return a pattern that matches any of the phrases as whole words, the longest first; a unit may follow a digit."""
    either = "|".join(map(re.escape, sorted(phrases, key=len, reverse=True))) or "(?!)"
    return rf"(?:{either})(?![a-z])" if is_unit else rf"(?<!\w)(?:{either})(?!\w)"


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern:
    return re.compile(pattern)


@cache
def _read(template: str) -> tuple[str, frozenset[str], list[frozenset[str]]]:
    """Return a template for the % operator, the names that a text needs to match, and sets of which it needs one."""
    needs = _needs(re.finditer(_SYNTAX, template))
    needed = frozenset(name for need in needs if len(need) == 1 for name in need)
    form = re.sub(_CLASS, r"%(\1)s", template.replace("%", "%%"))
    return form, needed, [need for need in needs if len(need) > 1]


def _needs(tokens: Iterator[re.Match]) -> list[frozenset[str]]:
    """Return the needs of a pattern, up to the end of its group."""
    branches: list[list[list[frozenset[str]]]] = [[]]
    for token in tokens:
        item: list[frozenset[str]] = []
        if token[0] == ")":
            break
        if token[0] == "|":
            branches.append([])
            continue
        if token[0] in ("?", "*") or token[0].startswith("{0"):
            branches[-1].pop()
        elif token[0][0] == "(":
            inner = _needs(tokens)
            item = [] if "!" in token[0] or "<=" in token[0] else inner
        elif token[0] == r"\d":
            item = [frozenset({"NUMBER"})]
        elif token[1]:
            item = _need(token[1])
        branches[-1].append(item)
    needs = [[need for item in branch for need in item] for branch in branches]
    if len(needs) == 1:
        return needs[0]
    if not all(needs):
        return []
    return [frozenset().union(*(min(branch, key=lambda need: (bool(need & _COMMON), len(need))) for branch in needs))]


def _need(name: str) -> list[frozenset[str]]:
    if not name.isupper():
        return [frozenset(map(_rarest, name.split("|")))]
    names = _NEEDS.get(name, {name})
    return [frozenset(names)] if names else []
