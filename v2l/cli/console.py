"""Everything v2l prints: results on standard output, all else on standard error, both safe for any terminal."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from v2l.errors import StdoutClosed, UsageError, V2LError, V2LWarning, reason
from v2l.io.text import escape, printable

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
            self.write("".join(f"{name:<{width}}  {escape(value)}\n" for name, value in rows))
            return
        from rich.console import Console
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(Text(name, style="bold"), Text(escape(value), overflow="fold"))
        Console().print(Panel(table, title=Text(title), title_align="left", expand=False))

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        """A table with numbers to the right on a terminal, tab-separated lines in a pipe."""
        if _plain():
            self.write("".join("\t".join(map(escape, row)) + "\n" for row in [header, *rows]))
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD)
        for place, name in enumerate(header):
            table.add_column(name, justify="right" if place else "left", overflow="fold")  # nothing is left out
        for row in rows:
            table.add_row(*(Text(escape(cell)) for cell in row))
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
            print(escape(text), file=sys.stderr, flush=True)
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


if TYPE_CHECKING:
    from v2l.cli.console import Display


@contextlib.contextmanager
def command(as_json: bool, quiet: bool, debug: bool) -> Iterator[Display]:
    """What all commands share: errors become one line and an exit code, warnings notes, SIGTERM a clean end."""
    from v2l.cli.console import Display

    display = Display(as_json, quiet)
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would hide how the decoder ended
    warnings.showwarning = _warn_through(display)
    try:
        _check_working_folder()
        yield display
    except typer.Exit:  # a RuntimeError to Python
        raise
    except V2LError as error:
        _fail(display, error, debug, code=2 if isinstance(error, UsageError) else 1)
    except StdoutClosed:
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        display.end_progress()
        display.note("interrupted; what was finished is kept")
        raise typer.Exit(130) from None
    except Exception as error:
        _fail(display, error, debug, code=1)
    finally:
        display.end_progress()


def _check_working_folder() -> None:
    """Raises V2LError if the current working directory was deleted. The libraries below torch end the process there."""
    try:
        os.getcwd()
    except OSError as error:
        raise V2LError("the folder that this was started in is not there any more; cd to one that is") from error


def _fail(display: Display, error: Exception, debug: bool, code: int) -> None:
    display.end_progress()
    if debug:
        import traceback

        traceback.print_exception(error)

    expected = isinstance(error, V2LError)
    display.error(str(error) if expected else f"{printable(reason(error))}; --debug shows where")
    raise typer.Exit(code) from None


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)


def _warn_through(display: Display) -> Callable[..., None]:
    """V2LWarnings become notes; what the libraries below have to say to programmers is left out."""

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        if issubclass(category, V2LWarning):
            display.warn(f"warning: {message}")

    return show
