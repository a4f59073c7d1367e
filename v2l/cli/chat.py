"""The chat of `v2l ask`: questions typed at a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from v2l.cli.console import Display
from v2l.io.text import printable


class Named(Protocol):
    """Anything with a path to print."""

    @property
    def path(self) -> Path:
        """The path to print."""


Source = TypeVar("Source", bound=Named)


def chat(sources: Sequence[Source], answer: Callable[[Source, str], bool], display: Display) -> bool:
    """Answer questions until Ctrl-D; Ctrl-C stops an answer. True if all were answered.

    answer: prints the answer of a source to a question; False if it failed
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() line editing and history

    display.note("type a question per line; Ctrl-D ends the chat, Ctrl-C stops an answer")
    ok = True
    while sources:
        try:
            question = input("> ").strip()
        except EOFError:
            display.write("\n")
            break
        if not question:
            continue
        try:
            for source in sources:
                if len(sources) > 1:
                    display.write(f"{printable(source.path)}: ")
                ok = answer(source, question) and ok
        except KeyboardInterrupt:
            display.write("\n")
    return ok
