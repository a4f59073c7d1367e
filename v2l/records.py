"""Frozen dataclasses to JSON and back, strictly: the metadata of v2l's files.

A record's fields are str, int, float, another record, `X | None` or `tuple[X, ...]`. Reading accepts exactly those
fields with exactly those types, so that a file of a later or a foreign make is refused and never half understood.
"""

from __future__ import annotations

import dataclasses
import math
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
MAX_TEXT = 4096
"""Characters of one string; longer ones are refused."""


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain JSON values; tuples become lists."""
    return dataclasses.asdict(record)


def from_json(kind: type[Record], value: Any, where: str) -> Record:
    """The record of type `kind` that `value` describes. `where` names the place in the message of the ValueError
    that anything unexpected raises."""
    hints = get_type_hints(kind)
    if not isinstance(value, dict) or value.keys() != hints.keys():
        raise ValueError(f"{where} must be an object with exactly {', '.join(sorted(hints))}")
    return kind(**{name: _read(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


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
    if hint in (int, float) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where} must be a finite number from 0 up")
    return value
