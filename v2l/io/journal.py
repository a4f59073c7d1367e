"""A JSONL file of results that an interrupted run goes on from: what it is about in its first line, then one a line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.files import append_line, unreadable, write_atomically
from v2l.io.text import printable


class Journal:
    """header: plain values that decide whether earlier results still count; what: such a file in words, of: what the
    header tells, both for messages

    rows: the records that are there; a last line that was cut short is dropped
    Making one only looks at the file. Raises V2LError where it is no such file, or one with another header.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], what: str, of: str):
        self.path, self.what = path, what
        self._header = json.dumps(header)
        text = self._text()
        self._whole, _, self._rest = text.rpartition("\n")
        if text and not self._whole and not self._header.startswith(text):
            raise self.foreign()
        try:
            found, *self.rows = [json.loads(line) for line in self._whole.splitlines()] or [json.loads(self._header)]
        except ValueError as error:
            raise self.foreign() from error
        expected = json.loads(self._header)
        if not isinstance(found, dict) or found.keys() != expected.keys():
            raise self.foreign()
        if found != expected:
            raise V2LError(f"{printable(path)} was made with another {of}; name another file, or move it away")
        if not all(isinstance(row, dict) for row in self.rows):
            raise self.foreign()

    def __enter__(self) -> Journal:
        """Leaves it at the end of its last whole line, the header written."""
        if not self._whole:
            write_atomically(self.path, (self._header + "\n").encode())
        elif self._rest:
            write_atomically(self.path, (self._whole + "\n").encode())
        self._whole, self._rest = self._whole or self._header, ""  # it may be entered again
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to write."""

    def add(self, row: Mapping[str, Any]) -> None:
        """One record, there before the next is begun. Raises V2LError where it cannot be written; the file keeps those
        before it."""
        append_line(self.path, json.dumps(row))

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8") if os.path.lexists(self.path) else ""
        except OSError as error:
            raise unreadable(self.path, error) from error
        except UnicodeDecodeError as error:
            raise self.foreign() from error

    def foreign(self) -> V2LError:
        """The error for a file whose records are not what they should be."""
        return V2LError(f"{printable(self.path)} is no {self.what} to go on from; name another file, or move it away")
