"""Search texts by the rare words that they share with a query, with the full-text search of SQLite."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

from v2l.errors import V2LError

MAX_TERMS = 64
"""Words of a query that are searched for."""


class TextIndex:
    """An index of texts in memory. Words are compared without case, accents and English endings."""

    def __init__(self, texts: Sequence[str]):
        # One connection, used by one thread at a time
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            self._database.execute("CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='porter unicode61')")
        except sqlite3.OperationalError as error:
            raise V2LError("this Python's sqlite3 has no full-text search (FTS5); use another build of Python") from error
        rows = ((number + 1, text) for number, text in enumerate(texts))
        self._database.executemany("INSERT INTO texts(rowid, text) VALUES (?, ?)", rows)

    def rank(self, query: str) -> list[tuple[int, float]]:
        """Return (number, score) of the texts that share a word with the query, best first.

        The score is Okapi BM25, above 0: a word counts the more, the fewer texts have it, and next to nothing if half
        of them have it. Equal texts have equal scores and keep their order.
        """
        words = dict.fromkeys(re.findall(r"\w+", query))
        if not words:
            return []
        terms = " OR ".join(f'"{word}"' for word in list(words)[:MAX_TERMS])
        found = self._database.execute("SELECT rowid, rank FROM texts WHERE texts MATCH ?", (terms,))
        return sorted(((row - 1, -score) for row, score in found), key=lambda each: (-each[1], each[0]))
