"""Frozen dataclasses to JSON and back, strictly: the metadata of v2l's files.

A record's fields are str, int, float, bool, another record, `X | None` or `tuple[X, ...]`. Reading accepts exactly
those fields with exactly those types, so that a file of a later or a foreign make is refused and never half understood.
A field that is `later` than its record's first files is written only where it says more than they do: they stay as they
are, to the byte.
"""

from __future__ import annotations

import dataclasses
import math
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
MAX_TEXT = 4096
"""Characters of one string; longer ones are refused."""
MAX_INT = 2**63 - 1
"""The largest whole number; beyond 10^308 one cannot even be compared with a float."""


def later(default: Any) -> Any:
    """A dataclass field that files from before it do not have; `default` is what they mean."""
    return dataclasses.field(default=default, metadata={"later": True})


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain JSON values."""
    return {
        field.name: _write(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if "later" not in field.metadata or getattr(record, field.name) != field.default
    }


def _write(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_write(item) for item in value]
    return to_json(value) if dataclasses.is_dataclass(value) else value


def from_json(kind: type[Record], value: Any, where: str) -> Record:
    """The record of type `kind` that `value` describes. `where` names the place in the message of the ValueError
    that anything unexpected raises."""
    hints = get_type_hints(kind)
    needed = {field.name for field in dataclasses.fields(kind) if "later" not in field.metadata}
    if not isinstance(value, dict) or not needed <= value.keys() <= hints.keys():
        raise ValueError(f"{where} must be an object with exactly {', '.join(sorted(hints))}")
    return kind(**{name: _read(hints[name], held, f"{where}.{name}") for name, held in value.items()})


def _read(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) is UnionType:
        (inner,) = (option for option in get_args(hint) if option is not NoneType)
        return None if value is None else _read(inner, value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        return tuple(_read(get_args(hint)[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)
    if type(value) is not hint:  # exact: True is no int, 1 is no float
        raise ValueError(f"{where} must be of type {hint.__name__}")
    if hint is str and len(value) > MAX_TEXT:
        raise ValueError(f"{where} is longer than {MAX_TEXT} characters")
    if hint is int and not 0 <= value <= MAX_INT:
        raise ValueError(f"{where} must be a whole number from 0 to {MAX_INT}")
    if hint is float and not 0 <= value < math.inf:
        raise ValueError(f"{where} must be a finite number from 0 up")
    return value
