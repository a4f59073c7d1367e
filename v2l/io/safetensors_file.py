"""Sealed safetensors files: all metadata in one canonical JSON string that includes a sha256 of metadata and tensors.

Adapters and hypernetworks are such files. Reading treats them as untrusted: sizes, header, metadata and checksum are
checked before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from v2l.errors import V2LError
from v2l.io.files import open_regular, unreadable, write_atomically
from v2l.io.text import printable
from v2l.io.untrusted import shown

METADATA_KEY = "v2l"
MAX_HEADER_BYTES = 1_000_000
"""Limit of the header, far above that of any file that v2l writes."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The supported dtypes by their safetensors names."""


def canonical_json(value: Mapping[str, Any]) -> str:
    """Serialise metadata in its canonical form: sorted keys, no spaces, ASCII, finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_sha256(metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute the sha256 of metadata and tensors (names, dtypes, shapes and bytes, sorted by name), 64 hex digits."""
    digest = hashlib.sha256(canonical_json(metadata).encode())
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        line = {"name": name, "dtype": names[tensor.dtype], "shape": list(tensor.shape)}
        digest.update(canonical_json(line).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any],
    modified_ns: int | None = None,
) -> None:
    """Write a sealed safetensors file. The same content gives the same bytes.

    All metadata is stored under the single key `v2l`, because safetensors writes several keys in random order.
    modified_ns: as for `files.atomically`
    Raises V2LError if the metadata is too large or the file cannot be written.
    """
    sealed = {**metadata, "sha256": content_sha256(metadata, tensors)}
    header = canonical_json(sealed)
    if len(header) > MAX_HEADER_BYTES // 2:
        raise V2LError(
            f"the metadata of {printable(path)} would take {len(header):,} bytes, more than readers accept; "
            "use fewer frames or segments"
        )
    data = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, {METADATA_KEY: header})
    write_atomically(path, data, modified_ns)


def read_tensors(
    path: str | os.PathLike, kind: str, version: int, max_bytes: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file written by `write_tensors`: the tensors, on the CPU, and the metadata.

    kind, version: required values of the metadata's `format` (`v2l-{kind}`) and `version`, which are then removed
    Raises V2LError if the file is too large, damaged, of another format, or does not match its own sha256.
    """
    read_metadata(path, kind, version, max_bytes)  # refuses a large file of another format without reading all of it
    data = _read_limited(path, kind, max_bytes, max_bytes)
    metadata = _metadata(_header(data, path, kind), path, kind, version)
    try:
        tensors = load(data)
    except MemoryError as error:
        raise _too_large(path, len(data)) from error
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise damaged(path, kind, printable(error)) from error
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise damaged(path, kind, f"{printable(name)} has values that are not finite")
    if metadata.get("sha256") != content_sha256({k: v for k, v in metadata.items() if k != "sha256"}, tensors):
        raise damaged(path, kind, "its content does not match its own sha256")
    return tensors, _without_format(metadata)


def read_metadata(path: str | os.PathLike, kind: str, version: int, max_bytes: int) -> dict[str, Any]:
    """Read only the metadata, without checking it against the tensors; parameters and errors as for `read_tensors`."""
    data = _read_limited(path, kind, max_bytes, 8 + MAX_HEADER_BYTES)
    return _without_format(_metadata(_header(data, path, kind), path, kind, version))


def all_finite(tensor: torch.Tensor) -> bool:
    """Return True if a tensor has neither infinities nor NaN; one pass, without a temporary of its size."""
    return not tensor.numel() or all(map(math.isfinite, tensor.aminmax()))


def _without_format(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name not in ("format", "version")}


def damaged(path: str | os.PathLike, kind: str, problem: str) -> V2LError:
    """Return the error for a file with invalid content."""
    return V2LError(f"{printable(path)} is not a sound v2l {kind}: {problem}; make it again or get another copy")


def _read_limited(path: str | os.PathLike, kind: str, max_bytes: int, first_bytes: int) -> bytes:
    """Read the first bytes of a regular file; raises V2LError if the file has more than `max_bytes`."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise damaged(path, kind, f"it has {size:,} bytes and a v2l {kind} at most {max_bytes:,}")
            return file.read(min(first_bytes, size))  # read() allocates the full size before it reads
    except MemoryError as error:
        raise _too_large(path, size) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _too_large(path: str | os.PathLike, size: int) -> V2LError:
    return V2LError(f"{printable(path)} has {size:,} bytes, more than fits in memory; free some, or raise its limit")


def _header(data: bytes, path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Parse the safetensors header; checks sizes and dtypes before the library allocates memory for them."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise damaged(path, kind, "no safetensors header of a plausible size")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise damaged(path, kind, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, kind, "its header is not a JSON object")
    for name, entry in header.items():
        if name != "__metadata__" and (not isinstance(entry, dict) or entry.get("dtype") not in list(DTYPES)):
            raise damaged(path, kind, f"{printable(name)} is not float32, bfloat16 or float16")
    return header


def _metadata(header: Mapping[str, Any], path: str | os.PathLike, kind: str, version: int) -> dict[str, Any]:
    entries = header.get("__metadata__")
    if not isinstance(entries, dict) or list(entries) != [METADATA_KEY] or not isinstance(entries[METADATA_KEY], str):
        raise damaged(path, kind, f"its metadata is not one string under the key {METADATA_KEY!r}")
    try:
        metadata = json.loads(entries[METADATA_KEY])
        canonical = isinstance(metadata, dict) and canonical_json(metadata) == entries[METADATA_KEY]
    except (ValueError, RecursionError) as error:
        raise damaged(path, kind, "its metadata is not JSON") from error
    if not canonical:
        raise damaged(path, kind, "its metadata is not in canonical form")
    stated = {"format": metadata.get("format"), "version": metadata.get("version")}
    if canonical_json(stated) != canonical_json({"format": f"v2l-{kind}", "version": version}):  # True == 1
        found = f"it states {shown(metadata.get('format'))} version {shown(metadata.get('version'))}"
        raise damaged(path, kind, f"{found}, this v2l reads v2l-{kind} version {version}")
    return metadata
