"""What v2l raises and warns with on purpose."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class V2LError(Exception):
    """What is wrong, with which file or value, and what to do about it: one sentence, printed as one line."""


class ModelError(V2LError):
    """The model or its hypernetwork cannot be had, so nothing that is left to do can be done."""


class StdoutClosed(Exception):
    """Nobody reads standard output any more: not an error of anyone's."""


class V2LWarning(UserWarning):
    """Something that works but may surprise: one sentence, printed as one line."""


class UsageError(V2LError):
    """The command cannot mean what it says: exit code 2, nothing was begun."""


def reason(error: Exception) -> str:
    """The class and the first line of an error that v2l did not foresee; for want of memory, words instead of nothing.
    Text of others: escape it before it is printed."""
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or raise the limit (ulimit -v)"
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """For modules that are run by hand: a V2LError ends the process with its line and code 1, without a traceback."""
    try:
        yield
    except V2LError as error:
        sys.exit(f"error: {error}")
