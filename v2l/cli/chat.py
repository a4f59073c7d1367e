"""The chat of `v2l ask`: questions typed at a terminal, and the history of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from v2l.cli.console import Display
from v2l.errors import V2LError
from v2l.io.text import printable

HISTORY = "V2L_HISTORY"
"""The environment variable that names the file of the history; `off`, 0 or nothing keeps none."""
MOST_LINES = 1000

COMMANDS = """\
/adapters         list what is asked
/each [QUESTION]  ask every segment; without a question, the last one again
/help             print this list
exit, quit        end the chat, as Ctrl-D does
Ctrl-C            stop an answer, or clear the line; twice ends the chat
"""


class Named(Protocol):
    """Anything with a path to print."""

    @property
    def path(self) -> Path:
        """The path to print."""


Source = TypeVar("Source", bound=Named)


def chat(
    sources: Sequence[Source],
    answer: Callable[[Source, str], object],
    answer_each: Callable[[str], object],
    describe: Callable[[Source], str],
    display: Display,
) -> None:
    """Answer questions until the chat is ended. A question that fails does not fail the chat: its error was read.

    answer: prints the answer of a source to a question, or its error
    answer_each: prints the answers of all segments of all sources
    describe: returns a line about a source
    """

    if not sources:
        return
    display.note("type a question per line; /help lists the commands, Ctrl-D ends the chat, Ctrl-C stops an answer")
    last = ""
    for line in _typed_lines(display):
        command, _, rest = line.partition(" ")
        try:
            if command == "/help":
                display.write(COMMANDS)
            elif command == "/adapters":
                display.write("".join(f"{describe(source)}\n" for source in sources))
            elif command == "/each":
                last = rest.strip() or last
                _each(last, answer_each, display)
            elif command[:1] == "/" and command[1:].isalpha() and not rest:
                display.error(f"no command {printable(command)}; /help lists the commands")
            else:
                last = line
                for source in sources:
                    if len(sources) > 1:
                        display.write(f"{printable(source.path)}: ")
                    answer(source, line)
        except KeyboardInterrupt:
            display.end_progress()
            display.write("\n")


def _each(question: str, answer_each: Callable[[str], object], display: Display) -> None:
    """Ask every segment, and print what fails."""
    if not question:
        display.error("no question yet; write it after /each")
        return
    try:
        answer_each(question)
    except V2LError as error:
        display.error(str(error))


def _typed_lines(display: Display) -> Iterator[str]:
    """Yield the lines that are typed, without empty ones, until Ctrl-D, `exit`, `quit` or a second Ctrl-C."""
    remember = _open_history()
    interrupted = False
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            display.write("\n")
            return
        except KeyboardInterrupt:
            display.write("\n")
            if interrupted:
                return
            interrupted = True
            display.note("Ctrl-C again ends the chat")
            continue
        interrupted = False
        remember()
        if line in ("exit", "quit", "/exit", "/quit"):
            return
        if line:
            yield line


# History -----------------------------------------------------------------------------------------------------------


def history_file() -> Path | None:
    """Return the file that V2L_HISTORY names, else `v2l/history` in the user's state folder; None to keep none."""
    named = os.environ.get(HISTORY)
    if named is not None:
        return None if named.lower() in ("", "0", "off") else Path(named)
    state = os.environ.get("XDG_STATE_HOME", "")
    home = os.path.expanduser("~")
    if not os.path.isabs(home):  # unknown
        return None
    return Path(state if os.path.isabs(state) else f"{home}/.local/state", "v2l", "history")


def _open_history() -> Callable[[], None]:
    """Give `input` line editing and the lines of earlier chats. Return what appends the line that was typed last.

    A history that cannot be read or written is no reason to end a chat, and is left alone.
    """
    try:
        import readline
    except ImportError:  # Windows
        return lambda: None
    file = history_file()
    if file is None:
        return lambda: None
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(MOST_LINES)  # of the file
    known = readline.get_current_history_length()

    def append() -> None:
        nonlocal known
        new, known = readline.get_current_history_length() - known, readline.get_current_history_length()
        with contextlib.suppress(OSError):
            if new > 0:  # an empty line and a repeated one are not added
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))  # questions are private
                readline.append_history_file(new, file)

    return append
