"""Sealed safetensors files that are read and written a tensor at a time, for files larger than memory.

The metadata is sealed by its own sha256. Each tensor is checked by whoever reads it, against a hash in the metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from v2l.errors import V2LError
from v2l.io.files import atomically, open_regular, unreadable
from v2l.io.safetensors_file import (
    ITEM_BYTES,
    METADATA_KEY,
    TensorBytes,
    canonical_json,
    damaged,
    parse_header,
    parse_metadata,
    read_header,
    read_header_text,
    without_format,
)
from v2l.io.text import printable


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that a header lists. dtype: safetensors name; start, stop: bytes from the start of the file"""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class PartsHeader:
    """The header of a file. entries: its tensors by name, in storage order; sha256: of the metadata"""

    metadata: dict[str, Any]
    entries: dict[str, TensorEntry]
    sha256: str


def read_parts_header(
    path: str | os.PathLike, kind: str, version: int, max_bytes: int, max_header_bytes: int
) -> PartsHeader:
    """Read the header only. Raises V2LError if it is damaged, of another format, does not match its own sha256, or
    does not describe exactly the bytes of the file."""
    length, size, header = read_header(path, kind, max_bytes, max_header_bytes)
    metadata, sha256 = _unseal(header, path, kind, version, check_form=True)
    return PartsHeader(metadata, _entries(header, 8 + length, size, path, kind), sha256)


def read_parts_metadata(
    path: str | os.PathLike, kind: str, version: int, max_bytes: int, max_header_bytes: int
) -> dict[str, Any]:
    """Read the metadata only, in a third of the time. Errors as for `read_parts_header`, but neither the form of the
    metadata is checked nor the tensors, except for the end of the last one."""
    text, size = read_header_text(path, kind, max_bytes, max_header_bytes)
    data_bytes = size - 8 - len(text)
    header = _leading_metadata(text, data_bytes)
    if header is None:  # another writer's order, or damaged
        header = parse_header(text, path, kind)
        try:
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (LookupError, TypeError, ValueError):
            end = None
        if end != data_bytes:
            raise damaged(path, kind, f"it has {size:,} bytes and its header describes others")
    return _unseal(header, path, kind, version, check_form=False)[0]


def _leading_metadata(text: bytes, data_bytes: int) -> dict[str, Any] | None:
    """Return the first entry of a header in the order of `write_parts`: the metadata first, and last the tensor whose
    end is that of the data. None for any other text. The entries of the tensors take most of a header's parsing."""
    before = b'{"__metadata__":'
    if not text.startswith(before) or not text.rstrip(b" ").endswith(b",%d]}}" % data_bytes):
        return None
    try:
        return {"__metadata__": json.JSONDecoder().raw_decode(text.decode(), len(before))[0]}
    except (ValueError, RecursionError):
        return None


def _unseal(
    header: Mapping[str, Any], path: str | os.PathLike, kind: str, version: int, check_form: bool
) -> tuple[dict[str, Any], str]:
    """Return the metadata without its format, version and sha256, which it has to match, and the sha256."""
    metadata = parse_metadata(header, path, kind, version, check_form)
    sha256 = metadata.pop("sha256", None)
    # Cut the hash out of the text instead of formatting thousands of segments again
    before, _, after = header["__metadata__"][METADATA_KEY].rpartition(f',"sha256":{json.dumps(sha256)}')
    if sha256 != hashlib.sha256((before + after).encode()).hexdigest():
        raise damaged(path, kind, "its metadata does not match its own sha256")
    return without_format(metadata), sha256


def _entries(
    header: Mapping[str, Any], data_start: int, size: int, path: str | os.PathLike, kind: str
) -> dict[str, TensorEntry]:
    """Return the tensors in storage order. Raises V2LError unless they cover the data exactly, one after another."""
    found: dict[str, TensorEntry] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, offsets = entry.get("shape"), entry.get("data_offsets")
        for numbers in (shape, offsets):
            whole = isinstance(numbers, list) and {*map(type, numbers)} == {int}
            if not whole or min(numbers) < 0 or max(numbers) > size:
                raise damaged(path, kind, f"{printable(name)} has an impossible shape or place")
        if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[entry["dtype"]]:
            raise damaged(path, kind, f"{printable(name)} has another size than its shape")
        found[name] = TensorEntry(entry["dtype"], tuple(shape), data_start + offsets[0], data_start + offsets[1])
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)))
    at = data_start
    for name, entry in ordered.items():
        if entry.start != at:
            raise damaged(path, kind, f"{printable(name)} does not follow the tensor before it")
        at = entry.stop
    if at != size:
        raise damaged(path, kind, f"it has {size:,} bytes and its header describes {at:,}")
    return ordered


def read_entries(path: str | os.PathLike, entries: Sequence[TensorEntry], kind: str) -> list[TensorBytes]:
    """Read some tensors of a file. Raises V2LError if the file was cut or cannot be read; checks no content."""
    found = []
    try:
        with open_regular(path) as file:
            for entry in entries:
                file.seek(entry.start)
                data = bytearray(entry.stop - entry.start)
                if file.readinto(data) != len(data):
                    raise damaged(path, kind, "it ends early; it changed after it was opened")
                found.append(TensorBytes(entry.dtype, entry.shape, data))
    except OSError as error:
        raise unreadable(path, error) from error
    return found


def write_parts(
    path: str | os.PathLike,
    entries: Mapping[str, tuple[str, tuple[int, ...]]],
    tensors: Iterable[TensorBytes],
    metadata: Mapping[str, Any],
    max_header_bytes: int,
    modified_ns: int | None = None,
) -> None:
    """Write a file atomically, a tensor at a time. The same content gives the same bytes.

    entries: number type and shape of every tensor by name, in storage order; tensors: their bytes, in that order
    modified_ns: as for `files.atomically`
    Raises V2LError if the header is too large or the file cannot be written.
    """
    sealed = {**metadata, "sha256": hashlib.sha256(canonical_json(metadata).encode()).hexdigest()}
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: canonical_json(sealed)}}
    at = 0
    for name, (dtype, shape) in entries.items():
        stop = at + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)  # align the data
    if len(text) > max_header_bytes:
        raise V2LError(
            f"the header of {printable(path)} would take {len(text):,} bytes, more than readers accept; use fewer "
            "segments"
        )
    with atomically(path, modified_ns) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, (dtype, shape)), tensor in zip(entries.items(), tensors, strict=True):
            assert (tensor.dtype, tensor.shape) == (dtype, shape), f"{name} is not as announced"
            file.write(tensor.data)
