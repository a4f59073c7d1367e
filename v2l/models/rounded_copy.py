"""Store a copy of a model folder with its weights rounded to half precision, tensor by tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from v2l.errors import V2LError
from v2l.io.files import atomically, identify, make_folder, open_regular, unreadable, write_atomically
from v2l.io.safetensors_file import ITEM_BYTES, NUMBER_TYPES
from v2l.io.tensors import all_finite
from v2l.io.text import printable
from v2l.models.lock_file import StoredCopy
from v2l.models.presets import ModelFolder, open_folder
from v2l.models.weights import INDEX, SINGLE_FILE, StoredTensor

_STORED_AS = {dtype: name for name, dtype in NUMBER_TYPES.items()}


def write_copy(model: ModelFolder, names: Iterable[str], target: Path, dtype: str) -> StoredCopy:
    """Write a copy of a model folder in which every float tensor has another number type.

    names: files of the model folder; those that are not weights are copied as they are
    target: the folder of the copy; dtype: "bfloat16" or "float16"

    The same model gives the same bytes. Takes the memory of one tensor in both types. Raises V2LError if a value
    exceeds the number type, or a file cannot be read or written.
    """
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in model.tensors.items():
        shards.setdefault(tensor.file.name, {})[name] = tensor
    make_folder(target)
    for file, tensors in shards.items():
        _write_rounded(tensors, target / file, _STORED_AS[dtype])
    others = [name for name in names if not name.endswith(".safetensors") and name != INDEX]
    for name in others:
        write_atomically(target / name, _read(model.path / name))
    if list(shards) != [SINGLE_FILE]:
        others.append(INDEX)
        write_atomically(target / INDEX, _index(shards, _STORED_AS[dtype]))
    rounded = open_folder(target, model.id, model.revision).stored_fingerprint
    files = {name: identify(target / name).sha256 for name in sorted([*shards, *others])}
    return StoredCopy(dtype, files, model.fingerprint, rounded)


def is_sound(copy: StoredCopy, folder: Path) -> bool:
    """Return whether a folder holds the files of a copy, unchanged. Reads them whole."""
    try:
        return all(identify(folder / name).sha256 == sha256 for name, sha256 in copy.files.items())
    except V2LError:
        return False


def _write_rounded(tensors: Mapping[str, StoredTensor], path: Path, dtype: str) -> None:
    """Write a safetensors file of the tensors, in the order of the file that they are in."""
    ordered = sorted(tensors, key=lambda name: (tensors[name].start, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in ordered:
        stop = start + _rounded_bytes(tensors[name], dtype)
        stored_as = dtype if tensors[name].dtype in NUMBER_TYPES else tensors[name].dtype
        header[name] = {"dtype": stored_as, "shape": tensors[name].shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the values start at a multiple of 8 bytes
    with atomically(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            file.write(_round(name, tensors[name], dtype))


def _rounded_bytes(tensor: StoredTensor, dtype: str) -> int:
    if tensor.dtype not in NUMBER_TYPES:
        return tensor.stop - tensor.start
    return math.prod(tensor.shape) * ITEM_BYTES[dtype]


def _round(name: str, tensor: StoredTensor, dtype: str) -> bytes | memoryview:
    """Return the bytes of a tensor in another number type; of integers, as they are."""
    data = tensor.read()
    if tensor.dtype not in NUMBER_TYPES or not data:
        return data
    numbers = torch.frombuffer(bytearray(data), dtype=getattr(torch, NUMBER_TYPES[tensor.dtype]))
    del data
    rounded = numbers.to(getattr(torch, NUMBER_TYPES[dtype]))
    if not all_finite(rounded):
        raise V2LError(
            f"{printable(name)} has values that are not finite as {NUMBER_TYPES[dtype]}; store the model in bfloat16 "
            "or as published"
        )
    return rounded.view(torch.uint8).numpy().data


def _index(shards: Mapping[str, Mapping[str, StoredTensor]], dtype: str) -> bytes:
    size = sum(_rounded_bytes(tensor, dtype) for tensors in shards.values() for tensor in tensors.values())
    places = {name: file for file, tensors in shards.items() for name in tensors}
    return json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=1, sort_keys=True).encode()


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise unreadable(path, error) from error
