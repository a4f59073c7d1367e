"""Torch tensors to and from the bytes of sealed safetensors files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save

from v2l.errors import V2LError
from v2l.io.files import write_atomically
from v2l.io.safetensors_file import (
    MAX_HEADER_BYTES,
    METADATA_KEY,
    NUMBER_TYPES,
    TensorBytes,
    canonical_json,
    content_sha256,
)
from v2l.io.text import printable

_STORED_AS = {getattr(torch, torch_name): name for name, torch_name in NUMBER_TYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a number type in metadata: `"float32"` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def to_bytes(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorBytes]:
    """Return the tensors as they are stored. The bytes share the memory of contiguous tensors on the CPU."""
    stored = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().flatten()
        data = flat.view(torch.uint8).numpy().data
        stored[name] = TensorBytes(_STORED_AS[tensor.dtype], tuple(tensor.shape), data)
    return stored


def to_tensors(stored: Mapping[str, TensorBytes]) -> dict[str, torch.Tensor]:
    """Return stored tensors as torch tensors on the CPU, which share their memory."""
    tensors = {}
    for name, part in stored.items():
        dtype = getattr(torch, NUMBER_TYPES[part.dtype])
        flat = torch.frombuffer(part.data, dtype=dtype) if part.data else torch.empty(0, dtype=dtype)
        tensors[name] = flat.view(part.shape)
    return tensors


def all_finite(tensor: torch.Tensor) -> bool:
    """Return True if a tensor has neither infinities nor NaN; one pass, without a temporary of its size."""
    return not tensor.numel() or all(map(math.isfinite, tensor.aminmax()))


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
    sealed = {**metadata, "sha256": content_sha256(metadata, to_bytes(tensors))}
    header = canonical_json(sealed)
    if len(header) > MAX_HEADER_BYTES // 2:
        raise V2LError(
            f"the metadata of {printable(path)} would take {len(header):,} bytes, more than readers accept; "
            "use fewer frames or segments"
        )
    data = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, {METADATA_KEY: header})
    write_atomically(path, data, modified_ns)
