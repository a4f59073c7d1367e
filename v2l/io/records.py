"""Strict conversion of frozen dataclasses to JSON and back, for the metadata of v2l's files.

A record's fields are str, int, float, bool, another record, `X | None` or `tuple[X, ...]`. Reading accepts exactly
those fields with exactly those types, so that a file of another version or program is refused rather than partly
understood. A field marked `added_later` is written only if it differs from its default, so that files from before it
stay equal to the byte.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_origin, get_type_hints


class Dataclass(Protocol):
    """Any dataclass, for type checkers."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Record = TypeVar("Record", bound=Dataclass)
MAX_TEXT = 4096
"""Limit of characters of one string."""
MAX_INT = 2**63 - 1
"""Limit of an integer. Integers beyond 10^308 cannot be compared with a float."""


def added_later(default: Any) -> Any:
    """Declare a dataclass field that earlier files lack; they are read with `default`."""
    return dataclasses.field(default=default, metadata={"added_later": True})


def to_json(record: Dataclass) -> dict[str, Any]:
    """Convert a record to plain JSON values."""
    return {
        field.name: _write(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if "added_later" not in field.metadata or getattr(record, field.name) != field.default
    }


def _write(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_write(item) for item in value]
    return to_json(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def from_json(kind: type[Record], value: Any, where: str) -> Record:
    """Convert JSON values to a record of type `kind`.

    where: path of the value, for messages. Raises ValueError for anything unexpected.
    """
    hints, required = _fields(kind)
    if not isinstance(value, dict) or not required <= value.keys() <= hints.keys():
        raise ValueError(f"{where} must be an object with exactly {', '.join(sorted(hints))}")
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()})


@cache
def _fields(kind: type[Dataclass]) -> tuple[dict[str, Any], set[str]]:
    """Return the types of the fields of a record by name, and the names of those that every file has."""
    required = {field.name for field in dataclasses.fields(kind) if "added_later" not in field.metadata}
    return get_type_hints(kind), required


def _read(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) is UnionType:
        (inner,) = (option for option in get_args(hint) if option is not NoneType)
        return None if value is None else _read(inner, value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        return tuple(_read(get_args(hint)[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)
    if type(value) is not hint:  # exact: bool is not accepted as int, nor int as float
        raise ValueError(f"{where} must be of type {hint.__name__}")
    if hint is str and len(value) > MAX_TEXT:
        raise ValueError(f"{where} is longer than {MAX_TEXT} characters")
    if hint is int and not 0 <= value <= MAX_INT:
        raise ValueError(f"{where} must be a whole number from 0 to {MAX_INT}")
    if hint is float and not 0 <= value < math.inf:
        raise ValueError(f"{where} must be a finite number, at least 0")
    return value
