"""`v2l help` and `v2l completion`: what is known about the command line, printed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from v2l.cli.console import command
from v2l.cli.help import GroupedCommand

TOPIC = "What to print"
FOLDER = Path(__file__).with_name("completions")
"""The completion files, written by `completions/generate.py`."""


class Shell(StrEnum):
    """Shells that have a completion file."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"

    @property
    def file(self) -> Path:
        """The completion file, under the name that the shell expects."""
        return FOLDER / ("_v2l" if self is Shell.zsh else f"v2l.{self}")


class HelpCommand(GroupedCommand):
    """`v2l help --help` with an example."""

    example = "v2l help encode"
    runs_alone = True


def show_help(
    context: typer.Context,
    topic: Annotated[
        str | None,
        typer.Argument(
            metavar="COMMAND", help="Print the help of this command.", show_default=False, rich_help_panel=TOPIC
        ),
    ] = None,
) -> None:
    """Print the help of v2l, or of a command.

    It is the text of v2l COMMAND --help; man v2l has all of it on one page.
    """
    root = context.parent
    assert root is not None and isinstance(root.command, typer.core.TyperGroup), "v2l help is a command of a group"
    shown = root
    if topic is not None:
        name, found, _ = root.command.resolve_command(root, [topic])
        assert found is not None, "an unknown command is a usage error"
        shown = typer.Context(found, parent=root, info_name=name)
    with command(as_json=False, quiet=False, debug=False) as display:
        display.write(shown.get_help() + "\n")


class CompletionCommand(GroupedCommand):
    """`v2l completion --help` with an example."""

    example = "v2l completion fish > ~/.config/fish/completions/v2l.fish"


def completion(
    shell: Annotated[
        Shell,
        typer.Argument(
            metavar="bash|zsh|fish",
            help="Print the completion of this shell.",
            show_default=False,
            rich_help_panel=TOPIC,
        ),
    ],
) -> None:
    """Print the file by which a shell completes the command line of v2l.

    In ~/.bashrc: eval "$(v2l completion bash)". In ~/.zshrc, after compinit: eval "$(v2l completion zsh)". For fish,
    and for a faster start of the others, keep the file where the shell looks for it. Completion itself starts no
    Python.
    """
    with command(as_json=False, quiet=False, debug=False) as display:
        display.write(shell.file.read_text(encoding="utf-8"))
