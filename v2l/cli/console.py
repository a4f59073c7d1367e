"""Everything that v2l prints: results to standard output, all else to standard error, both safe for a terminal."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import typer

from v2l.errors import StdoutClosed, UsageError, V2LError, V2LWarning, reason
from v2l.io.text import escape, printable, stated_columns, whole

if TYPE_CHECKING:
    from v2l.inference.model_loader import ModelLoader

JSON_VERSION = 1
TINY = (
    "note: this is tiny, the demonstration model, which knows drawn clips only; for real videos: v2l pull "
    "smolvlm2-500m, then v2l encode VIDEO"
)


class Display:
    """The output of a command.

    as_json: print every result as a JSON object on a line; quiet: print no notes and no progress
    verbose: print details, even if quiet
    """

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: bool = False):
        self.as_json, self.quiet, self.verbose = as_json, quiet, verbose
        self._started = time.monotonic()
        self._bar: Any = None
        self._has_status = self._has_announced_tiny = False
        self._lock = threading.RLock()  # models are loaded in a thread, which sets the status
        # a file name need not be UTF-8 and passes through a pipe byte for byte
        _reconfigure(sys.stdin, "surrogateescape")
        for output in (sys.stdout, sys.stderr):
            _reconfigure(output, "surrogateescape" if output.encoding == "utf-8" else "backslashreplace")

    # Results ---------------------------------------------------------------------------------------------------

    def result(self, text: str, record: Mapping[str, Any], end: str = "\n") -> None:
        """Print a result: its text, or its record with --json."""
        if self.as_json:
            text = json.dumps(_finite({"v2l": JSON_VERSION, **record}), default=_jsonable, allow_nan=False)
        self.write(text + end)

    def write(self, text: str) -> None:
        """Write to standard output as is. Raises StdoutClosed if its reader has gone, V2LError if it is full."""
        with self._lock:
            self._clear_status()
        if self._bar is not None:
            self._bar.clear()
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            # discard what Python flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                raise StdoutClosed from error
            raise V2LError(
                f"cannot write standard output: {error.strerror}; free some space, then run this again"
            ) from error
        if self._bar is not None:
            self._bar.refresh()

    def panel(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Print named values: framed on a terminal, as lines in a pipe."""
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

    def table(self, header: list[str], rows: list[list[str]], justify: Literal["left", "right"] = "right") -> None:
        """Print a table: aligned on a terminal, as tab-separated lines in a pipe.

        justify: alignment of all columns but the first; beside text, names of up to a third of the width stay whole
        """
        if _plain():
            self.write("".join("\t".join(map(escape, row)) + "\n" for row in [header, *rows]))
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table, console = Table(box=SIMPLE_HEAD), Console()
        for place, name in enumerate(header):
            table.add_column(name, justify=justify if place else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(escape(cell)) for cell in row))
        names = max((len(row[0]) for row in rows), default=0)
        table.columns[0].no_wrap = justify == "left" and names <= console.width // 3
        console.print(table)

    # Notes -----------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Print a line unless --quiet is given."""
        if not self.quiet:
            self._say(text)

    def aside(self, text: str) -> None:
        """Print a remark on a result, dim on a terminal, unless --quiet is given."""
        dim = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        if not self.quiet:
            with contextlib.suppress(OSError):
                text = f"({escape(text)})"
                print(f"\x1b[2m{text}\x1b[0m" if dim else text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """Print a line with the seconds since the start, if --verbose is given."""
        if self.verbose:
            self._say(f"[{time.monotonic() - self._started:.2f} s] {text}")

    def warn(self, text: str) -> None:
        """Print a warning unless --quiet is given."""
        self.note(f"v2l: {text}")

    def announce_tiny(self) -> None:
        """Print once that the model is the demonstration model, even with --quiet."""
        if not self._has_announced_tiny:
            self._has_announced_tiny = True
            self._say(f"v2l: {TINY}")

    def error(self, text: str) -> None:
        """Print an error, one line."""
        self._say(f"v2l: error: {text}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        with self._lock, contextlib.suppress(OSError):  # a missing reader or a full disk does not end the work
            self._clear_status()
            print(escape(text), file=sys.stderr, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def confirm(self, question: str) -> bool:
        """Ask a question on the terminal and return whether it is answered with yes, or by Return alone. True, without
        asking, if standard input or standard error is no terminal."""
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return True
        with self._lock:
            self._clear_status()
        with contextlib.suppress(OSError):
            print(f"{escape(question)} [Y/n] ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()  # empty at its end
        return bool(answer) and answer.strip().lower() in ("", "y", "yes")

    def end_line(self) -> None:
        """Move to a new line on a terminal, where the text of a prompt and the echo of Ctrl-C may stand."""
        if sys.stdin.isatty() and sys.stderr.isatty():
            with contextlib.suppress(OSError):
                print(file=sys.stderr, flush=True)

    # Progress --------------------------------------------------------------------------------------------------

    @property
    def shows_progress(self) -> bool:
        """Whether someone watches: standard error is a terminal, and --quiet is not given."""
        return not self.quiet and sys.stderr.isatty()

    @property
    def has_progress(self) -> bool:
        """Whether a bar is shown."""
        return self._bar is not None

    def loading(self, model: str) -> None:
        """Show that a model is being loaded, on a terminal, until anything else is printed."""
        text = f"loading {printable(model)}"
        if not self.shows_progress or self._bar is not None:
            return
        if os.environ.get("TERM") == "dumb":
            self._say(text)
            return
        with self._lock, contextlib.suppress(OSError):
            self._clear_status()
            columns = stated_columns() or os.get_terminal_size(sys.stderr.fileno()).columns or 80
            print(text[: columns - 1], end="", file=sys.stderr, flush=True)
            self._has_status = True

    def _clear_status(self) -> None:
        if self._has_status:
            self._has_status = False
            with contextlib.suppress(OSError):
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def start_progress(self, total: int, unit: str) -> None:
        """Show a bar with rate and remaining time if standard error is a terminal that can show one."""
        if not self.shows_progress or os.environ.get("TERM") == "dumb":
            return
        self._clear_status()
        from tqdm import tqdm

        # without the count, which is a fraction while one of several videos is being encoded
        count = " {n_fmt}/{total_fmt}" if unit == "B" else ""
        columns = stated_columns()
        form = "{percentage:3.0f}%|{bar}|" + count + " {elapsed}<{remaining}, {rate_fmt}{postfix}"
        self._bar = tqdm(
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            bar_format=form,
            ncols=columns,
            dynamic_ncols=not columns,
            leave=False,
            mininterval=0.1,
        )

    def progress(self, done: float, total: int, doing: str = "") -> None:
        """Move the bar."""
        if self._bar is None:
            return
        self._bar.total = total
        self._bar.n = done
        self._bar.set_postfix_str(doing, refresh=False)
        self._bar.update(0)

    def end_progress(self) -> None:
        """Remove the bar and what `loading` showed."""
        self._clear_status()
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _reconfigure(stream: Any, errors: str) -> None:
    stream.reconfigure(errors=errors)  # typed as Any: a TextIO need not have it, what Python opens does


def _plain() -> bool:
    """Return True if standard output takes lines only: a pipe, or a terminal without cursor movement."""
    return not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"


def shown(path: str | os.PathLike) -> str:
    """Return a path as it is printed: byte for byte in a pipe, escaped on a terminal."""
    return printable(path) if sys.stdout.isatty() else os.fspath(path)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot express, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return whole(value)
    raise TypeError(f"{type(value)} is not JSON-serializable")


def announce_model(loader: ModelLoader, display: Display, chosen_by: str | None = None) -> None:
    """Say that the model is the demonstration model, if it is; with --verbose, how it was chosen. Raises V2LError if
    the model is missing. chosen_by: as for `model_record`"""
    display.detail(f"model {printable(loader.model)}, chosen by: {chosen_by or loader.chosen_by}")
    if loader.is_tiny:
        display.announce_tiny()


def model_record(loader: ModelLoader, chosen_by: str | None = None) -> dict[str, Any]:
    """Return the fields about the model of a record. chosen_by: how it was chosen, if not as the loader states"""
    return {
        "model": loader.folder.id,
        "model_chosen_by": chosen_by or loader.chosen_by,
        "demonstration": loader.is_tiny,
    }


@contextlib.contextmanager
def command(as_json: bool, quiet: bool, debug: bool) -> Iterator[Display]:
    """Run the body of a command: an error becomes one line and an exit code, a warning a note, SIGTERM a clean exit.

    debug: print details, and the traceback of an error
    """
    display = Display(as_json, quiet, verbose=debug)
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, the decoder's exit code is lost
    warnings.showwarning = _warn_through(display)
    if debug:
        _print_log(display)
    try:
        _check_working_folder()
        yield display
    except typer.Exit:  # a subclass of RuntimeError
        raise
    except StdoutClosed:
        raise typer.Exit(0) from None
    except (Exception, KeyboardInterrupt) as error:
        if _is_interrupt(error):
            _end_interrupted(display)
        _fail(display, error, debug)
    finally:
        display.end_progress()


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an error stems from an interrupt, which an import in C turns into an error of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _end_interrupted(display: Display) -> NoReturn:
    """Say so, on a line of its own, and exit."""
    display.end_progress()
    display.end_line()
    display.note("interrupted; what was finished is kept, and the same command continues")
    raise typer.Exit(130) from None


def _print_log(display: Display) -> None:
    """Print what v2l's modules log, after the versions of everything that is involved."""
    import logging
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from v2l import __version__

    class DetailHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            display.detail(record.getMessage())

    logger = logging.getLogger("v2l")
    logger.setLevel(logging.DEBUG)
    logger.handlers = [DetailHandler()]
    versions = {"v2l": __version__, "Python": platform.python_version(), platform.system(): platform.machine()}
    for name in ("torch", "av"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    display.detail(", ".join(map(" ".join, versions.items())))


def _check_working_folder() -> None:
    """Raise V2LError if the working directory was deleted. The libraries below torch would abort the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise V2LError("the working directory no longer exists; change to one that does") from error


def _fail(display: Display, error: Exception | KeyboardInterrupt, debug: bool) -> NoReturn:
    display.end_progress()
    if debug:
        import traceback

        traceback.print_exception(error)

    expected = isinstance(error, V2LError)
    display.error(str(error) if expected else f"{printable(reason(error))}; --debug shows where")
    raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)


def _warn_through(display: Display) -> Callable[..., None]:
    """Return a `warnings.showwarning` that prints V2LWarnings, and those of other libraries as details."""

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        if issubclass(category, V2LWarning):
            display.warn(f"warning: {message}")
        else:
            display.detail(f"{category.__name__}: {message}")

    return show
