"""Search texts by the rare words that they share with a query, with the full-text search of SQLite."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable

from v2l.errors import V2LError

MAX_TERMS = 64
"""Words of a query that are searched for."""
STOP_WORDS = frozenset(
    # English
    "a about after all an and any are as at be been before but by can did do does following for from get gets had has "
    "have he her his how i in into is it its just me more next of off on or our out over say says she show shown shows "
    "so some tell than that the their them then there these they this those through to up us was we were what when "
    "where which while who whom whose why will with you your "
    # German
    "aber alle als am an auch auf aus bei da das dass dem den der des die dort durch ein eine einem einen einer er es "
    "für hat haben ich im ist kann man mit nach nicht noch nun oder sich sie sind und uns vom von vor wann war waren "
    "warum was welche welcher welches wer wie wird wo zeig zu zum zur "
    # French
    "au aux avec ce ces cette comment dans de des du elle elles en est et être il ils je la le les leur leurs lui mais "
    "ne on ont ou où par pas pour pourquoi quand que quel quelle quelles quels qui quoi sa se ses son sont sur un une "
    # Spanish
    "al con cómo cuál cuáles cuándo del donde dónde el ella ellas ellos en era es esa ese eso esta este estos está "
    "están hay la las lo los más muy no nos o para pero por qué quién se ser si sin sobre su sus también un una uno "
    "unos y ya"
    "".split()
)
"""Function words of the languages that questions about times are understood in. They match nothing."""


class TextIndex:
    """An index of texts in memory. Words are compared without case, accents and English endings."""

    def __init__(self, texts: Iterable[str]):
        # One connection, used by one thread at a time
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            self._database.execute(
                "CREATE VIRTUAL TABLE texts USING fts5(text, content='', tokenize='porter unicode61')"
            )
        except sqlite3.OperationalError as error:
            raise V2LError(
                "this Python's sqlite3 has no full-text search (FTS5); use another build of Python"
            ) from error
        rows = ((number + 1, text) for number, text in enumerate(texts))
        self._database.executemany("INSERT INTO texts(rowid, text) VALUES (?, ?)", rows)

    def rank(self, query: str, limit: int = -1) -> list[tuple[int, float]]:
        """Return (number, score) of the texts that share a word with the query, best first; at most `limit`, or all.

        The score is Okapi BM25, above 0: a word counts the more, the fewer texts have it, and next to nothing if half
        of them have it. Equal texts have equal scores and keep their order.
        """
        words = search_words(query)
        if not words:
            return []
        select = "SELECT rowid, rank FROM texts WHERE texts MATCH ? ORDER BY rank, rowid LIMIT ?"
        return [(row - 1, -score) for row, score in self._database.execute(select, (_any_of(words), limit))]

    def matched_words(self, query: str) -> dict[int, set[str]]:
        """Return the words of the query that each text has, by the text's number; texts without one are left out."""
        matched: dict[int, set[str]] = {}
        for word in search_words(query):
            for (row,) in self._database.execute("SELECT rowid FROM texts WHERE texts MATCH ?", (_any_of([word]),)):
                matched.setdefault(row - 1, set()).add(word)
        return matched


def search_words(query: str) -> list[str]:
    """Return the different words of a query that are searched for, in lower case; without function words."""
    words = dict.fromkeys(re.findall(r"\w+", query.casefold()))
    return [word for word in words if word not in STOP_WORDS][:MAX_TERMS]


def _any_of(words: Iterable[str]) -> str:
    """Return the query of SQLite for texts with any of the words."""
    return " OR ".join(f'"{word}"' for word in words)
