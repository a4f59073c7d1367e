"""Sealed safetensors files: all metadata in one canonical JSON string that includes a sha256 of metadata and tensors.

Adapters and hypernetworks are such files. Reading treats them as untrusted: sizes, header, metadata, values and
checksum are checked before anything is used. Tensors are bytes here, so that a file is read and checked without torch;
`tensors.py` converts them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from v2l.errors import V2LError
from v2l.io.files import open_regular, unreadable
from v2l.io.text import printable
from v2l.io.untrusted import shown

METADATA_KEY = "v2l"
MAX_HEADER_BYTES = 1_000_000
"""Limit of the header, far above that of any file that v2l writes."""

NUMBER_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The supported number types: safetensors name to the name in torch and in metadata."""
_DTYPES = [*NUMBER_TYPES]  # a list: what a file states may not be hashable
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_INFINITY = {"F32": ("i4", 0x7F800000), "BF16": ("i2", 0x7F80), "F16": ("i2", 0x7C00)}
"""Integer type of the same size, and the bits of infinity; NaNs have the same exponent and more bits."""


@dataclass(frozen=True)
class TensorBytes:
    """A tensor as it is stored. dtype: safetensors name of its number type; data: its values, row by row"""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview

    def is_finite(self) -> bool:
        """Return whether there are neither infinities nor NaN. Compares bit patterns, without a temporary copy."""
        import numpy as np

        signed, infinity = _INFINITY[self.dtype]
        bits = np.frombuffer(self.data, f"<{signed}")
        negative = infinity | 1 << (8 * bits.itemsize - 1)
        return not bits.size or bool(bits.max() < infinity and bits.view(f"<u{bits.itemsize}").max() < negative)


def canonical_json(value: Mapping[str, Any]) -> str:
    """Serialise metadata in its canonical form: sorted keys, no spaces, ASCII, finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_sha256(metadata: Mapping[str, Any], tensors: Mapping[str, TensorBytes]) -> str:
    """Compute the sha256 of metadata and tensors (names, dtypes, shapes and bytes, sorted by name), 64 hex digits."""
    digest = hashlib.sha256(canonical_json(metadata).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        line = {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
        digest.update(canonical_json(line).encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def read_sealed(
    path: str | os.PathLike, kind: str, version: int, max_bytes: int
) -> tuple[dict[str, TensorBytes], dict[str, Any]]:
    """Read a file written by `write_tensors`: the tensors and the metadata.

    kind, version: required values of the metadata's `format` (`v2l-{kind}`) and `version`, which are then removed
    Raises V2LError if the file is too large, damaged, of another format, has values that are not finite, or does not
    match its own sha256.
    """
    from safetensors import SafetensorError, deserialize

    read_metadata(path, kind, version, max_bytes)  # refuses a large file of another format without reading all of it
    data = _read_limited(path, kind, max_bytes)
    metadata = parse_metadata(_header(data, path, kind), path, kind, version)
    try:
        parts = deserialize(data)
    except MemoryError as error:
        raise _too_large(path, len(data)) from error
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise damaged(path, kind, printable(error)) from error
    tensors = {name: TensorBytes(part["dtype"], tuple(part["shape"]), part["data"]) for name, part in parts}
    for name, tensor in tensors.items():
        if not tensor.is_finite():
            raise damaged(path, kind, f"{printable(name)} has values that are not finite")
    if metadata.get("sha256") != content_sha256({k: v for k, v in metadata.items() if k != "sha256"}, tensors):
        raise damaged(path, kind, "its content does not match its own sha256")
    return tensors, without_format(metadata)


def read_metadata(path: str | os.PathLike, kind: str, version: int, max_bytes: int) -> dict[str, Any]:
    """Read only the metadata, without checking it against the tensors; parameters and errors as for `read_sealed`."""
    header = read_header(path, kind, max_bytes, MAX_HEADER_BYTES)[2]
    return without_format(parse_metadata(header, path, kind, version))


def without_format(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without its format and version."""
    return {name: value for name, value in metadata.items() if name not in ("format", "version")}


def damaged(path: str | os.PathLike, kind: str, problem: str) -> V2LError:
    """Return the error for a file with invalid content."""
    return V2LError(f"{printable(path)} is not a sound v2l {kind}: {problem}; make it again or get another copy")


def _read_limited(path: str | os.PathLike, kind: str, max_bytes: int) -> bytes:
    """Read a regular file; raises V2LError if it has more than `max_bytes`."""
    try:
        with open_regular(path) as file:
            size = _limited_size(file, path, kind, max_bytes)
            return file.read(size)  # read() allocates the full size before it reads
    except MemoryError as error:
        raise _too_large(path, size) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _limited_size(file: BinaryIO, path: str | os.PathLike, kind: str, max_bytes: int) -> int:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise damaged(path, kind, f"it has {size:,} bytes and a v2l {kind} at most {max_bytes:,}")
    return size


def _too_large(path: str | os.PathLike, size: int) -> V2LError:
    return V2LError(f"{printable(path)} has {size:,} bytes, more than fits in memory; free some, or raise its limit")


def _header(data: bytes, path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Find and parse the header; checks sizes and dtypes before the library allocates memory for them."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise damaged(path, kind, "no safetensors header of a plausible size")
    return parse_header(data[8 : 8 + length], path, kind)


def parse_header(text: bytes, path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Parse the JSON text of a safetensors header. Raises V2LError if it is not JSON or has an unknown number type."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, kind, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, kind, "its header is not a JSON object")
    for name, entry in header.items():
        if name != "__metadata__" and (not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES):
            raise damaged(path, kind, f"{printable(name)} is not float32, bfloat16 or float16")
    return header


def parse_metadata(
    header: Mapping[str, Any], path: str | os.PathLike, kind: str, version: int, check_form: bool = True
) -> dict[str, Any]:
    """Return the metadata of a header. Raises V2LError if it is not one JSON object of this format and version, in its
    canonical form unless `check_form` is False, which saves a third of the time."""
    entries = header.get("__metadata__")
    if not isinstance(entries, dict) or list(entries) != [METADATA_KEY] or not isinstance(entries[METADATA_KEY], str):
        raise damaged(path, kind, f"its metadata is not one string under the key {METADATA_KEY!r}")
    try:
        metadata = json.loads(entries[METADATA_KEY])
        canonical = isinstance(metadata, dict) and (not check_form or canonical_json(metadata) == entries[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise damaged(path, kind, "its metadata is not JSON") from error
    if not canonical:
        raise damaged(path, kind, "its metadata is not in canonical form")
    stated = {"format": metadata.get("format"), "version": metadata.get("version")}
    if canonical_json(stated) != canonical_json({"format": f"v2l-{kind}", "version": version}):  # True == 1
        found = f"it states {shown(metadata.get('format'))} version {shown(metadata.get('version'))}"
        raise damaged(path, kind, f"{found}, this v2l reads v2l-{kind} version {version}")
    return metadata


def stated_version(path: str | os.PathLike, kind: str, max_header_bytes: int) -> int | None:
    """Return the version that a file of a kind states; None if it states none or cannot be read."""
    try:
        header = read_header(path, kind, sys.maxsize, max_header_bytes)[2]
        metadata = json.loads(header["__metadata__"][METADATA_KEY])
        return metadata["version"] if metadata["format"] == f"v2l-{kind}" else None
    except (V2LError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_header(
    path: str | os.PathLike, kind: str, max_bytes: int, max_header_bytes: int
) -> tuple[int, int, dict[str, Any]]:
    """Return the length of the header, the size of the file, and the header. Raises V2LError if one of them is too
    large or the header is damaged."""
    text, size = read_header_text(path, kind, max_bytes, max_header_bytes)
    return len(text), size, parse_header(text, path, kind)


def read_header_text(path: str | os.PathLike, kind: str, max_bytes: int, max_header_bytes: int) -> tuple[bytes, int]:
    """Return the JSON text of the header and the size of the file. Raises V2LError if one of them is too large."""
    try:
        with open_regular(path) as file:
            size = _limited_size(file, path, kind, max_bytes)
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= min(max_header_bytes, size - 8):
                raise damaged(path, kind, "no safetensors header of a plausible size")
            return file.read(length), size
    except OSError as error:
        raise unreadable(path, error) from error
