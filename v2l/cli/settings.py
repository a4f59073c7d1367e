"""The settings behind `--set NAME=VALUE`: what few users change, with its meaning and default from the library.

The names are in `named_settings` of cli/eval.py and cli/train.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from v2l.errors import UsageError
from v2l.io.text import printable


@dataclass(frozen=True)
class NamedSetting:
    """One name that `--set NAME=VALUE` accepts.

    default: how the help describes it
    parse: turns text into the value; raises ValueError or UsageError
    expected: the values that `parse` accepts, for messages
    """

    name: str
    meaning: str
    default: str
    parse: Callable[[str], Any]
    expected: str

    def text(self) -> str:
        """Return the line of the help."""
        return f"{self.meaning}  [default: {self.default}]"


def whole_number(least: float = 1, most: float = math.inf) -> tuple[Callable[[str], int], str]:
    """Return the parser of a whole number from `least` to `most`, and the words for it."""
    return lambda text: _bounded(int(text), least, most), f"a whole number{_bounds(least, most)}"


def number(least: float | None = None, most: float = math.inf) -> tuple[Callable[[str], float], str]:
    """Return the parser of a finite number from `least` to `most`, above 0 if `least` is None, and the words for it."""

    def parse(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or (least is None and value <= 0):
            raise ValueError
        return _bounded(value, 0 if least is None else least, most)

    return parse, "a number above 0" if least is None else f"a number{_bounds(least, most)}"


def yes_or_no() -> tuple[Callable[[str], bool], str]:
    """Return the parser of yes and no, and the words for it."""
    return lambda text: ("no", "yes").index(text) == 1, "yes or no"


def settings_of(config: type, **defaults: str) -> Iterator[NamedSetting]:
    """Return the fields of a dataclass that state their `meaning` as metadata.

    defaults: words for defaults that the field does not state itself
    """
    for field in dataclasses.fields(config):
        if "meaning" not in field.metadata:
            continue
        parser: tuple[Callable[[str], Any], str]
        bounds = {name: field.metadata[name] for name in ("least", "most") if name in field.metadata}
        if isinstance(field.default, bool):
            parser, default = yes_or_no(), "yes" if field.default else "no"
        elif isinstance(field.default, float):
            parser, default = number(**bounds), f"{field.default:g}"
        else:
            parser, default = whole_number(**bounds), str(field.default)
        yield NamedSetting(field.name, field.metadata["meaning"], defaults.get(field.name, default), *parser)


def read_settings(assignments: Sequence[str] | None, known: Sequence[NamedSetting]) -> dict[str, Any]:
    """Parse NAME=VALUE assignments. Raises UsageError, which lists the names, for an unknown name or a bad value."""
    by_name = {each.name: each for each in known}
    values: dict[str, Any] = {}
    for assignment in assignments or ():
        name, equals, text = (part.strip() for part in assignment.partition("="))
        given, names = f"--set {printable(assignment)}", f"the settings are {', '.join(by_name)}"
        if not equals:
            raise UsageError(f"{given}: write NAME=VALUE; {names}")
        if name not in by_name:
            raise UsageError(f"{given}: unknown setting {printable(name)}; {names}")
        try:
            values[name] = by_name[name].parse(text)
        except (ValueError, UsageError) as error:
            raise UsageError(f"{given}: {name} takes {by_name[name].expected}; {names}") from error
    return values


def _bounded(value: Any, least: float, most: float) -> Any:
    if not least <= value <= most:
        raise ValueError
    return value


def _bounds(least: float, most: float) -> str:
    return f" of at least {least:g}" if most == math.inf else f" from {least:g} to {most:g}"
