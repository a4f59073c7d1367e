"""Wrong command lines in plain words: the commands and their group, which explain what the parser refuses.

The parser belongs to typer, whose values are checked by pydantic since 0.29. Its errors have the names and numbers of
these libraries; older versions of typer use words of their own, which stay.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
import typer.core

from v2l.cli.console import Display
from v2l.io.text import printable

_UsageError: Any = typer.BadParameter.__base__
"""The base class of the parser's errors, which typer does not name."""
_HINTS = {"--force": "--overwrite", "-f": "--overwrite"}
"""Options that other programs have, and what they are called here."""
_SAID = {
    "float_parsing": "{input!r} is not a number",
    "int_parsing": "{input!r} is not a whole number",
    "greater_than_equal": "{input} is too small; give {ge} or more",
}
"""Messages by the kind of the library's error."""


class ExplainedCommand(typer.core.TyperCommand):
    """A command that says what is missing or wrong on its command line."""

    runs_alone: ClassVar[bool] = False
    """Whether the command does something without any argument."""

    @classmethod
    def hint(cls, parameter: str, value: str) -> str:
        """Return what is wrong with the value of a parameter; empty for no more than the parser says."""
        return ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line. Exits with 2 if it is wrong."""
        if not (args or self.runs_alone or ctx.resilient_parsing):
            argument = next(each for each in self.get_params(ctx) if each.param_type_name == "argument")
            name = argument.metavar or argument.name.upper()
            Display().error(f"{name} is missing; {ctx.command_path} --help says more")
            raise typer.Exit(2)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = self._explained(error)
            raise
        except _UsageError as error:
            other = _HINTS.get(getattr(error, "option_name", ""))
            if other and any(other in each.opts for each in self.get_params(ctx)):
                error.possibilities = [other]
            raise

    def _explained(self, error: typer.BadParameter) -> str:
        """Return the message of an error about a value in v2l's words."""
        problems = getattr(error.__cause__, "errors", None)
        if problems is None:
            return error.message
        problem: Mapping[str, Any] = problems()[0]
        if hint := self.hint(getattr(error.param, "name", ""), str(problem["input"])):
            return hint
        if template := _SAID.get(problem["type"]):
            return template.format(input=problem["input"], **problem.get("ctx", {}))
        return error.message.removeprefix("Value error, ")


class ExplainedGroup(typer.core.TyperGroup):
    """The program `v2l`, which knows that a file is no command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first word names; of a file, say which command takes it."""
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            if known := _command_for(args[0], ctx.command_path):
                error.message = f"{error.message.removesuffix('.')}; a command comes first: {known}"
            raise


def _command_for(word: str, program: str) -> str:
    """Return the command line for a file; empty if the word looks like none."""
    from v2l.inference.naming import ADAPTER_SUFFIX, is_video

    if word.endswith(ADAPTER_SUFFIX):
        return f"{program} ask {printable(word)}"
    return f"{program} encode {printable(word)}" if is_video(word) or os.path.exists(word) else ""
