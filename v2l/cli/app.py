"""The `v2l` command: its commands, each in a file of its own, and its entry point.

No command imports a heavy library before it runs, so that `v2l --help` and completion are quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer

from v2l.cli.console import command
from v2l.cli.usage import ExplainedGroup
from v2l.io.text import stated_columns

COMMANDS = {
    "encode": ("encode", "EncodeCommand", "encode"),
    "ask": ("ask", "AskCommand", "ask"),
    "find": ("find", "FindCommand", "find"),
    "frames": ("frames", "FramesCommand", "frames"),
    "demo": ("demo", "DemoCommand", "demo"),
    "compose": ("compose", "ComposeCommand", "compose"),
    "info": ("adapters", "InfoCommand", "info"),
    "verify": ("adapters", "VerifyCommand", "verify"),
    "export": ("adapters", "ExportCommand", "export"),
    "pull": ("models", "PullCommand", "pull"),
    "import": ("models", "ImportCommand", "import_checkpoint"),
    "bench": ("bench", "BenchCommand", "bench"),
    "eval": ("eval", "EvalCommand", "evaluate"),
    "train": ("train", "TrainCommand", "train"),
    "completion": ("manual", "CompletionCommand", "completion"),
    "help": ("manual", "HelpCommand", "show_help"),
}
"""The commands, in the order of the help: the module of each in this folder, its class and its function."""
LEAST_COLUMNS = 30
"""The narrowest help that can be formatted."""


def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the versions of v2l and of the libraries that it uses.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the versions as JSON.")] = False,
) -> None:
    """Handle the options of `v2l` itself."""
    if version:
        with command(as_json, quiet=False, debug=False) as display:
            from v2l.cli.describe import versions

            found = versions()
            text = "\n".join(f"{name} {number}" for name, number in found.items())
            display.result(text, {"command": "version", "versions": found})
        raise typer.Exit
    if as_json and context.invoked_subcommand is not None:
        print("v2l: error: --json follows the command: v2l COMMAND --json", file=sys.stderr)
        raise typer.Exit(2)
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def program(names: Iterable[str]) -> typer.Typer:
    """Return the program with these commands, in their order. Imports the modules of these alone."""
    built = typer.Typer(
        name="v2l",
        cls=ExplainedGroup,
        help="Encode a video into a small adapter, from which a vision-language model answers without visual tokens.",
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich would double the time of `v2l --help`
    )
    built.callback(invoke_without_command=True)(root)
    for name in names:
        module, kind, function = COMMANDS[name]
        found = import_module(f"v2l.cli.{module}")
        built.command(name, cls=getattr(found, kind))(getattr(found, function))
    return built


@cache
def __getattr__(name: str) -> Any:
    """Return `app`, the program with all commands, built when it is asked for."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return program(COMMANDS)


def _named(words: Sequence[str]) -> Iterable[str]:
    """Return the command that the first word names, or all of them: to build all takes a third of the time of `v2l
    info`. `help` finds all of them."""
    return words[:1] if words and words[0] in COMMANDS and words[0] != "help" else COMMANDS


def main() -> None:
    """Run the command line; the console script."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # open as long as the process
    try:
        columns = stated_columns()
        program(_named(sys.argv[1:]))(terminal_width=columns and max(columns, LEAST_COLUMNS))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # the help could not be written
        sys.exit(f"v2l: error: {error.strerror or error}")
