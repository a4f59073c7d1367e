"""The `v2l` command: its commands, each in a file of its own, and its entry point.

No command imports a heavy library before it runs, so that `v2l --help` and completion are quick.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from v2l.cli.adapters import ExportCommand, InfoCommand, VerifyCommand, export, info, verify
from v2l.cli.ask import AskCommand, ask
from v2l.cli.bench import BenchCommand, bench
from v2l.cli.compose import ComposeCommand, compose
from v2l.cli.console import command
from v2l.cli.demo import DemoCommand, demo
from v2l.cli.encode import EncodeCommand, encode
from v2l.cli.eval import EvalCommand, evaluate
from v2l.cli.find import FindCommand, find
from v2l.cli.frames import FramesCommand, frames
from v2l.cli.manual import CompletionCommand, HelpCommand, completion, show_help
from v2l.cli.models import ImportCommand, PullCommand, import_checkpoint, pull
from v2l.cli.train import TrainCommand, train
from v2l.cli.usage import ExplainedGroup
from v2l.io.text import stated_columns

app = typer.Typer(
    name="v2l",
    cls=ExplainedGroup,
    help="Encode a video into a small adapter, from which a vision-language model answers without visual tokens.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time of `v2l --help`
)


@app.callback(invoke_without_command=True)
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


app.command("encode", cls=EncodeCommand)(encode)
app.command("ask", cls=AskCommand)(ask)
app.command("find", cls=FindCommand)(find)
app.command("frames", cls=FramesCommand)(frames)
app.command("demo", cls=DemoCommand)(demo)
app.command("compose", cls=ComposeCommand)(compose)
app.command("info", cls=InfoCommand)(info)
app.command("verify", cls=VerifyCommand)(verify)
app.command("export", cls=ExportCommand)(export)
app.command("pull", cls=PullCommand)(pull)
app.command("import", cls=ImportCommand)(import_checkpoint)
app.command("bench", cls=BenchCommand)(bench)
app.command("eval", cls=EvalCommand)(evaluate)
app.command("train", cls=TrainCommand)(train)
app.command("completion", cls=CompletionCommand)(completion)
app.command("help", cls=HelpCommand)(show_help)

LEAST_COLUMNS = 30
"""The narrowest help that can be formatted."""


def _program(words: Sequence[str]) -> typer.Typer:
    """Return the app with no other command than the first word names, if it names one: to build all of them takes a
    tenth of the time of `v2l info`. `help` finds all of them."""
    program = copy.copy(app)
    first = "" if words[:1] == ["help"] else words[0] if words else ""
    named = [registered for registered in app.registered_commands if registered.name == first]
    program.registered_commands = named or app.registered_commands
    return program


def main() -> None:
    """Run the command line; the console script."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # open as long as the process
    try:
        columns = stated_columns()
        _program(sys.argv[1:])(terminal_width=columns and max(columns, LEAST_COLUMNS))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # the help could not be written
        sys.exit(f"v2l: error: {error.strerror or error}")
