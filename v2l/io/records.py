"""Strict conversion of frozen dataclasses to JSON and back, for the metadata of v2l's files.

A record's fields are str, int, float, bool, another record, `X | None` or `tuple[X, ...]`. Reading accepts exactly
those fields with exactly those types, so that a file of another version or program is refused rather than partly
understood. A field marked `added_later` is written only if it differs from its default, so that files from before it
stay equal to the byte.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
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


def from_json(kind: type[Record], value: Any, where: str, subset: bool = False) -> Record:
    """Convert JSON values to a record of type `kind`.

    where: path of the value, for messages
    subset: allow fields that the records do not have, and leave them unread

    Raises ValueError for anything unexpected.
    """
    try:
        return _reader(kind, subset)(value)
    except _Unexpected as error:
        raise ValueError(f"{where}{error.place} {error.says}") from None


class _Unexpected(ValueError):
    """A value that does not fit. place: path of the value in the record; says: how it does not fit"""

    def __init__(self, says: str):
        super().__init__(says)
        self.place, self.says = "", says


@functools.cache
def _reader(hint: Any, subset: bool) -> Callable[[Any], Any]:
    """Return the function that converts a JSON value to this type. Made once per type, because files have thousands of
    values; paths of values are put together only for a message."""
    if get_origin(hint) is UnionType:
        (inner,) = (option for option in get_args(hint) if option is not NoneType)
        read = _reader(inner, subset)
        return lambda value: None if value is None else read(value)
    if get_origin(hint) is tuple:
        return _tuple_reader(_reader(get_args(hint)[0], subset))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _record_reader(hint, subset)
    return functools.partial(_read_plain, hint)


def _tuple_reader(read: Callable[[Any], Any]) -> Callable[[Any], tuple]:
    def read_all(value: Any) -> tuple:
        if not isinstance(value, list):
            raise _Unexpected("must be a list")
        items = []
        for item in value:
            try:
                items.append(read(item))
            except _Unexpected as error:
                error.place = f"[{len(items)}]{error.place}"
                raise
        return tuple(items)

    return read_all


def _record_reader(kind: type, subset: bool) -> Callable[[Any], Any]:
    readers = {name: _reader(hint, subset) for name, hint in get_type_hints(kind).items()}
    required = {field.name for field in dataclasses.fields(kind) if "added_later" not in field.metadata}

    def read_fields(value: Any) -> Any:
        if (
            not isinstance(value, dict)
            or not required <= value.keys()
            or not (subset or value.keys() <= readers.keys())
        ):
            raise _Unexpected(f"must be an object with {'' if subset else 'exactly '}{', '.join(sorted(readers))}")
        fields, name = {}, ""
        try:
            for name, read in readers.items():
                if name in value:
                    fields[name] = read(value[name])
        except _Unexpected as error:
            error.place = f".{name}{error.place}"
            raise
        return kind(**fields)

    return read_fields


def _read_plain(kind: Any, value: Any) -> Any:
    if type(value) is not kind:  # exact: bool is not accepted as int, nor int as float
        raise _Unexpected(f"must be of type {kind.__name__}")
    if kind is str and len(value) > MAX_TEXT:
        raise _Unexpected(f"is longer than {MAX_TEXT} characters")
    if kind is int and not 0 <= value <= MAX_INT:
        raise _Unexpected(f"must be a whole number from 0 to {MAX_INT}")
    if kind is float and not 0 <= value < math.inf:
        raise _Unexpected("must be a finite number, at least 0")
    return value
