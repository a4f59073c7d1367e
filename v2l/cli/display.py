"""Everything v2l prints: results on standard output, all else on standard error, both safe for any terminal."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from v2l.errors import StdoutClosed, V2LError
from v2l.io.files import printable

JSON_VERSION = 1


class Display:
    """Where a command's words go.

    as_json: results as one object a line; quiet: no notes and no progress
    """

    def __init__(self, as_json: bool = False, quiet: bool = False):
        self.as_json, self.quiet = as_json, quiet
        self._bar: Any = None
        # names of files need not be UTF-8, and a pipe gets them byte for byte
        sys.stdin.reconfigure(errors="surrogateescape")
        for output in (sys.stdout, sys.stderr):
            output.reconfigure(errors="surrogateescape" if output.encoding == "utf-8" else "backslashreplace")

    # Results ---------------------------------------------------------------------------------------------------

    def result(self, text: str, record: Mapping[str, Any], end: str = "\n") -> None:
        """A result: `text` for people and pipes, or the record with --json."""
        if self.as_json:
            text = json.dumps(_finite({"v2l": JSON_VERSION, **record}), default=_jsonable, allow_nan=False)
        self.write(text + end)

    def write(self, text: str) -> None:
        """Raw text on standard output. Raises StdoutClosed where nobody reads it, V2LError where it takes no more."""
        if self._bar is not None:
            self._bar.clear()
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            # what Python itself would still flush at the end goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                raise StdoutClosed from error
            raise V2LError(
                f"cannot write standard output: {error.strerror}; free some space, then run this again"
            ) from error
        if self._bar is not None:
            self._bar.refresh()

    def panel(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Named values: a framed table on a terminal, plain lines in a pipe."""
        rows = list(rows)
        if _plain():
            width = max(len(name) for name, _ in rows)
            self.write("".join(f"{name:<{width}}  {_one_line(value)}\n" for name, value in rows))
            return
        from rich.console import Console
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(Text(name, style="bold"), Text(_one_line(value), overflow="fold"))
        Console().print(Panel(table, title=Text(title), title_align="left", expand=False))

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        """A table with numbers to the right on a terminal, tab-separated lines in a pipe."""
        if _plain():
            self.write("".join("\t".join(map(_one_line, row)) + "\n" for row in [header, *rows]))
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD)
        for place, name in enumerate(header):
            table.add_column(name, justify="right" if place else "left", overflow="fold")  # nothing is left out
        for row in rows:
            table.add_row(*(Text(_one_line(cell)) for cell in row))
        Console().print(table)

    # Notes -----------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something worth knowing, unless --quiet."""
        if not self.quiet:
            self._say(text)

    def warn(self, text: str) -> None:
        """Something that must be known, also with --quiet."""
        self._say(f"v2l: {text}")

    def error(self, text: str) -> None:
        """What went wrong: one line."""
        self._say(f"v2l: error: {text}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        with contextlib.suppress(OSError):  # no reader or a full disk: nobody listens, and the work goes on
            print(_one_line(text), file=sys.stderr, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    # Progress --------------------------------------------------------------------------------------------------

    def start_progress(self, total: int, unit: str) -> None:
        """A bar with rate and time left on standard error, where that is a terminal that can show one."""
        if self.quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return
        from tqdm import tqdm

        # without the plain count: it is a fraction while a video of several is under way
        form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}"
        self._bar = tqdm(total=total, unit=unit, bar_format=form, dynamic_ncols=True, leave=False, mininterval=0.1)

    def progress(self, done: float, total: int, doing: str = "") -> None:
        """Moves the bar."""
        if self._bar is None:
            return
        self._bar.total = total
        self._bar.n = done
        self._bar.set_postfix_str(doing, refresh=False)
        self._bar.update(0)

    def end_progress(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _plain() -> bool:
    """Whether standard output takes lines only: a pipe, or a terminal that says it is dumb."""
    return not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"


def shown(path: str | os.PathLike) -> str:
    """A path as standard output gets it: byte for byte in a pipe, printable on a terminal."""
    return printable(path) if sys.stdout.isatty() else os.fspath(path)


def inert(text: str) -> str:
    """Text that someone else wrote, without what could control a terminal: control and format characters escaped, but
    for line ends, tabs and the joiners that scripts and emoji need."""
    return "".join(char if _is_inert(char) else ascii(char)[1:-1] for char in text)


def _is_inert(char: str) -> bool:
    # str.isprintable denies other spaces than the common one, which French and Japanese text is full of
    return char.isprintable() or char in "\n\t\u200c\u200d" or unicodedata.category(char) == "Zs"


def _one_line(text: str) -> str:
    """The same, line ends and tabs escaped too: for what must stay one line, whoever wrote it."""
    return inert(text).replace("\n", "\\n").replace("\t", "\\t")


def tab_separated(*fields: str) -> str:
    """Fields on one line; backslashes, tabs and line ends inside them escaped."""
    escaped = (
        field.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r") for field in fields
    )
    return "\t".join(escaped)


def amount(number: int) -> str:
    """Bytes as people read them."""
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


def _finite(value: Any) -> Any:
    """The same with None in the place of NaN and infinities, for which JSON has no words."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return os.fspath(value)
    raise TypeError(f"{type(value)} is no JSON")
