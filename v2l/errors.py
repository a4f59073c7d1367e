"""The exceptions and the warning that v2l raises. Exit codes: `cli/console.py`."""

import errno
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


_OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an unexpected error is a failed allocation, of Python, the system, or torch on any device; torch
    has no class for those of the CPU and of MPS."""
    if isinstance(error, V2LError):
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def reason(error: BaseException) -> str:
    """Describe an unexpected error by its class and the first line of its message.

    The text may contain foreign characters: escape it before printing. Running out of memory is described with a fix.
    """
    if is_out_of_memory(error):
        return "out of memory; close other programs, raise the limit (ulimit -v), or use another --device or --dtype"
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"


def missing_extra(what: str, package: str, extra: str) -> V2LError:
    """Return the error for a package of an extra that is not installed."""
    return V2LError(f"{what} needs {package}, which is not installed: pip install 'v2l[{extra}]'")


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Exit with code 1 and a one-line message on a V2LError. For modules that are run with `python -m`."""
    try:
        yield
    except V2LError as error:
        sys.exit(f"error: {error}")
