"""The exceptions and the warning that v2l raises. Exit codes: `cli/console.py`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class V2LError(Exception):
    """An error with a message for the user: the problem, the file or value, and the fix, in one printable line."""


class ModelError(V2LError):
    """The model or its hypernetwork is not available, so none of the remaining work can be done."""


class StdoutClosed(Exception):
    """The reader of standard output has closed it. Ends the command quietly."""


class V2LWarning(UserWarning):
    """A result that is valid but may surprise the user, in one printable line."""


class UsageError(V2LError):
    """The command line is contradictory or incomplete. Nothing was started; exit code 2."""


def reason(error: Exception) -> str:
    """Describe an unexpected error by its class and the first line of its message.

    The text may contain foreign characters: escape it before printing. Running out of memory is described with a fix.
    """
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or raise the limit (ulimit -v)"
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Exit with code 1 and a one-line message on a V2LError. For modules that are run with `python -m`."""
    try:
        yield
    except V2LError as error:
        sys.exit(f"error: {error}")
