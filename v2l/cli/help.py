"""The help of a command: its options in groups, an example, and the settings that `--set` takes.

typer shows groups only with rich, which takes twice as long to import as the rest of `v2l --help` together, and adds
the Python type to every name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from v2l.cli.options import OUTPUT, SETTINGS
from v2l.cli.settings import NamedSetting
from v2l.cli.usage import ExplainedCommand

OTHERS = "Options"
"""The group of options that name none."""


class GroupedCommand(ExplainedCommand):
    """A command that prints its options in groups."""

    example: ClassVar[str] = ""

    @classmethod
    def named_settings(cls) -> Sequence[NamedSetting]:
        """Return what `--set` takes; a method, so that the library is imported for the help of this command only."""
        return ()

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the description and the example."""
        super().format_help_text(ctx, formatter)
        if self.example:
            with formatter.section("Example"):
                formatter.write(f"{'':{formatter.current_indent}}{self.example}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for every group."""
        for title, rows in self.sections(ctx).items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def sections(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """Return the rows (name, help) of every group in the order of their first option, output and settings last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if not getattr(parameter, "hidden", False):
                groups.setdefault(_group(parameter), []).append((_name(parameter), _text(parameter)))
        for last in (OUTPUT, SETTINGS):
            if last in groups:
                groups[last] = groups.pop(last)
        if settings := self.named_settings():
            groups[SETTINGS] += [(f"  {each.name}", each.text()) for each in settings]
        return groups


def _group(parameter: Any) -> str:
    if parameter.name == "help":
        return OUTPUT
    return getattr(parameter, "rich_help_panel", None) or OTHERS


def _name(parameter: Any) -> str:
    """Return how a parameter is written, without its Python type."""
    metavar = parameter.metavar or parameter.name.upper()
    if parameter.param_type_name == "argument":
        return metavar + ("..." if parameter.nargs == -1 else "")
    names = sorted(parameter.opts, key=len)  # those of --help come out of a set, in any order
    name = ", ".join([*names, *parameter.secondary_opts])
    return name if parameter.is_flag else f"{name} {metavar}"


def _text(parameter: Any) -> str:
    return "  ".join([inspect.cleandoc(parameter.help or ""), *_remarks(parameter)])


def _remarks(parameter: Any) -> Iterator[str]:
    if isinstance(parameter.show_default, str):
        yield f"[default: {parameter.show_default}]"
    elif parameter.required:
        yield "[required]"
