"""What all commands share: every error becomes one line and an exit code, whatever was printed before."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import typer

from v2l.errors import StdoutClosed, UsageError, V2LError, V2LWarning, reason

if TYPE_CHECKING:
    from v2l.cli.display import Display


@contextlib.contextmanager
def command(as_json: bool, quiet: bool, debug: bool) -> Iterator[Display]:
    """What all commands share: errors become one line and an exit code, warnings notes, SIGTERM a clean end."""
    from v2l.cli.display import Display

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
    from v2l.io.files import printable

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
