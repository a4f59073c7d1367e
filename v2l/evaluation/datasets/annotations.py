"""Read the annotation files in a benchmark's folder, and find its videos.

Annotations are untrusted: every value is checked when it is read, and errors name the file and the row.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from v2l.errors import V2LError
from v2l.io.files import open_regular, unreadable
from v2l.io.text import printable
from v2l.io.untrusted import json_error

MAX_BYTES = 512 << 20
"""Maximum size of an annotation file; the largest published one has a few megabytes."""
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".MP4")
"""Suffixes to try, in this order, if there is no file with the annotation's own name."""
IN_ONE_SENTENCE = "Answer only the question, in one sentence."


@dataclass(frozen=True)
class BenchmarkQuestion:
    """id: unique in its benchmark; kind: a style or subset, else the benchmark's name; target: the reference answer"""

    id: str
    kind: str
    prompt: str
    target: str


@dataclass(frozen=True)
class Unit:
    """The questions about one clip, which are sampled together.

    key: unique in its benchmark
    videos: possible names of the video in a folder of videos
    start, end: range of the clip in its video in seconds, None for its beginning and its end
    """

    key: str
    videos: tuple[str, ...]
    questions: tuple[BenchmarkQuestion, ...]
    start: float | None = None
    end: float | None = None


def ask(question: str) -> str:
    """Return the paper's prompt for a question that does not ask for a caption (appendix B.2)."""
    return f"{question}\n\n{IN_ONE_SENTENCE}"


class Row:
    """An object of an annotation file. Raises V2LError if a value is missing or invalid."""

    def __init__(self, values: Any, where: str):
        self.where = where
        if not isinstance(values, dict):
            raise self.wrong("is not an object")
        self._values = values

    def wrong(self, what: str) -> V2LError:
        """Return the error for this row."""
        return V2LError(f"{self.where} {what}; fetch the published file again")

    def text(self, name: str) -> str:
        """Return a text without surrounding white space; it may be empty."""
        value = self._values.get(name)
        if not isinstance(value, str):
            raise self.wrong(f"has no text {name}")
        return value.strip()

    def texts(self, name: str) -> list[str]:
        """Return a list of texts; a single text becomes a list."""
        value = self._values.get(name)
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(f"has no list of texts {name}")
        return [each.strip() for each in value if each.strip()]

    def id(self, name: str) -> str:
        """Return a non-empty name or integer as text."""
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise self.wrong(f"has no {name}")
        return str(value).strip()

    def video(self, name: str) -> str:
        """Return a relative file name that does not leave its folder."""
        value = self.id(name)
        parts = PurePosixPath(value).parts
        odd = any(char in "\\:\0" or "\ud800" <= char <= "\udfff" for char in value)
        if odd or not parts or value.startswith("/") or ".." in parts:
            raise self.wrong(f"names the video {printable(value)}, which is not a name inside a folder")
        return value

    def number(self, name: str) -> float:
        """Return a finite number of at least 0."""
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
            raise self.wrong(f"has no number {name} from 0 up")
        return float(value)

    def rows(self, name: str) -> list[Row]:
        """Return a list of objects."""
        value = self._values.get(name)
        if not isinstance(value, list):
            raise self.wrong(f"has no list {name}")
        return [Row(each, f"{self.where}, {name} {number},") for number, each in enumerate(value, start=1)]

    def __contains__(self, name: str) -> bool:
        return name in self._values


class Folder:
    """The folder of a benchmark. digests: sha256 of every annotation file read so far, by its name in the folder"""

    def __init__(self, root: Path):
        self.root = root
        self.digests: dict[str, str] = {}
        if not root.is_dir():
            raise V2LError(f"{printable(root)} is not a folder; --root names the one that the benchmark was fetched to")

    def objects(self, *names: str) -> Iterator[tuple[str, Row]]:
        """Yield the entries, by key, of a JSON file with an object of objects. `names` are tried in order."""
        name, values = self._object(*names)
        for key, value in values.items():
            yield key, Row(value, f"{self._shown(name)}, {printable(key)},")

    def entries(self, *names: str) -> Iterator[Row]:
        """Yield the entries of a JSON file with a list of objects."""
        name, values = self._json(*names)
        if not isinstance(values, list):
            raise V2LError(f"{self._shown(name)} is not a list of objects; fetch the published file again")
        for number, value in enumerate(values, start=1):
            yield Row(value, f"{self._shown(name)}, entry {number},")

    def lines(self, *names: str) -> Iterator[Row]:
        """Yield the rows of a file with one JSON object per line."""
        name, text = self._text(*names)
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                where = f"{self._shown(name)}, line {number},"
                yield Row(_parsed(line, where), where)

    def table(self, *names: str) -> Iterator[Row]:
        """Yield the rows of a CSV file with column names in its first line."""
        name, text = self._text(*names)
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for values in reader:
                yield Row(values, f"{self._shown(name)}, line {reader.line_num},")
        except csv.Error as error:
            raise V2LError(f"{self._shown(name)} is not CSV: {printable(error)}; fetch it again") from error

    def mapping(self, *names: str) -> Mapping[str, Any]:
        """Return a JSON object; empty if the file is missing."""
        return self._object(*names)[1] if self.find(*names) else {}

    def find(self, *names: str) -> str | None:
        """Return the first name that exists, None if none does."""
        return next((name for name in names if os.path.isfile(self.root / name)), None)

    def video(self, names: tuple[str, ...], folders: tuple[str, ...]) -> Path | None:
        """Return the path of the first name found in the folders, None if there is none."""
        for folder in folders:
            for name in names:
                known = name.lower().endswith(VIDEO_SUFFIXES)
                plain = name[: name.rindex(".")] if known else name
                for candidate in (name, *(plain + suffix for suffix in VIDEO_SUFFIXES)):
                    path = self.root / folder / candidate
                    if os.path.isfile(path):
                        return path
        return None

    def _shown(self, name: str) -> str:
        return printable(self.root / name)

    def _object(self, *names: str) -> tuple[str, dict[str, Any]]:
        name, values = self._json(*names)
        if not isinstance(values, dict):
            raise V2LError(f"{self._shown(name)} is not one JSON object; fetch the published file again")
        return name, values

    def _json(self, *names: str) -> tuple[str, Any]:
        name, text = self._text(*names)
        return name, _parsed(text, self._shown(name))

    def _text(self, *names: str) -> tuple[str, str]:
        name = self.find(*names)
        if name is None:
            raise self._missing(names)
        try:
            with open_regular(self.root / name) as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read(min(size, MAX_BYTES) + 1)  # read() allocates this size
        except OSError as error:
            raise unreadable(self.root / name, error) from error
        if len(data) > MAX_BYTES:
            raise V2LError(f"{self._shown(name)} is longer than any published annotation; fetch it again")
        self.digests[name] = hashlib.sha256(data).hexdigest()
        try:
            return name, data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise V2LError(f"{self._shown(name)} is not UTF-8 text; fetch the published file again") from error

    def _missing(self, names: tuple[str, ...]) -> V2LError:
        for name in names:
            packed = Path(name).with_suffix(".parquet")
            if os.path.isfile(self.root / packed):
                return V2LError(
                    f'{self._shown(name)} exists as parquet only; in that folder run: python -c "import pandas; '
                    f"pandas.read_parquet('{packed}').to_json('{name}', orient='records', lines=True)\""
                )
        return V2LError(
            f"{printable(self.root)} holds no {' nor '.join(names)}; --root names the folder that the benchmark was "
            "fetched to, docs/benchmarks.md lists the sources"
        )


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise V2LError(f"{where} is not JSON: {json_error(error)}; fetch the published file again") from error
