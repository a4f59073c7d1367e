"""A JSONL file of results, from which an interrupted run resumes: a header line, then one record per line."""

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
    """A journal at `path`. Use it as a context manager to append to it.

    header: plain values that must equal those of an existing file; kind: what such a file is, and subject: what the
        header identifies, both as words for messages
    rows: the existing records; an incomplete last line is dropped
    Creating a Journal only reads the file. Raises V2LError if it is not a journal, or has another header.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], kind: str, subject: str):
        self.path, self.kind = path, kind
        self._header = json.dumps(header)
        text = self._text()
        self._complete, _, self._incomplete = text.rpartition("\n")
        if text and not self._complete and not self._header.startswith(text):
            raise self.foreign()
        try:
            found, *self.rows = [json.loads(line) for line in self._complete.splitlines()] or [json.loads(self._header)]
        except ValueError as error:
            raise self.foreign() from error
        expected = json.loads(self._header)
        if not isinstance(found, dict) or found.keys() != expected.keys():
            raise self.foreign()
        if found != expected:
            raise V2LError(f"{printable(path)} was made with another {subject}; name another file, or move it away")
        if not all(isinstance(row, dict) for row in self.rows):
            raise self.foreign()

    def __enter__(self) -> Journal:
        """Write the header if it is missing, and cut off an incomplete last line."""
        if not self._complete:
            write_atomically(self.path, (self._header + "\n").encode())
        elif self._incomplete:
            write_atomically(self.path, (self._complete + "\n").encode())
        self._complete, self._incomplete = self._complete or self._header, ""  # so that it can be entered again
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: every record is already written."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a record. Raises V2LError if it cannot be written; the earlier records stay intact."""
        append_line(self.path, json.dumps(row))

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8") if os.path.lexists(self.path) else ""
        except OSError as error:
            raise unreadable(self.path, error) from error
        except UnicodeDecodeError as error:
            raise self.foreign() from error

    def foreign(self) -> V2LError:
        """Return the error for a file that is not a journal of this kind."""
        return V2LError(f"{printable(self.path)} is not a resumable {self.kind}; name another file, or move it away")
