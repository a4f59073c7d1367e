"""The safetensors files of a model folder: list their tensors by the headers, check them, and open them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2l.errors import V2LError, is_out_of_memory
from v2l.io.files import open_regular, unreadable
from v2l.io.safetensors_file import NUMBER_TYPES
from v2l.io.text import printable
from v2l.io.untrusted import read_json, shown

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 10_000_000
"""Largest safetensors header; those of the published models have less than 0.1 MB."""
MAX_FILE_BYTES = 64 << 30
"""Largest file of weights; those of the published models have at most 5 GB."""
_SHARD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}\.safetensors")
_UNUSED = ("lm_head.weight", "rotary_emb.inv_freq", "embeddings.position_ids")
"""Name endings of tensors that a file may hold although they are not loaded: tied weights, and buffers that follow from
the sizes."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. dtype: the safetensors name of its number type; start, stop: its bytes in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> bytes:
        """Read the bytes of the tensor as stored. Raises V2LError if the file cannot be read or is shorter now."""
        try:
            with open_regular(self.file) as file:
                file.seek(self.start)
                data = file.read(self.stop - self.start)
        except OSError as error:
            raise unreadable(self.file, error) from error
        if len(data) != self.stop - self.start:
            raise _damaged(self.file, "it is shorter than its header states")
        return data


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors of model.safetensors, or else of the files in model.safetensors.index.json.

    Only headers are read, and no files of another format. Raises V2LError if there are no safetensors, or if one of
    them is missing, damaged or not a regular file of this folder.
    """
    if os.path.lexists(folder / SINGLE_FILE):  # transformers also prefers it
        return _list_file(folder / SINGLE_FILE)
    weight_map = read_json(folder / INDEX, optional=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise V2LError(
            f"{printable(folder)} has no {SINGLE_FILE}; v2l does not read pickled weights, save the model as "
            "safetensors"
        )
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard not in shards:
            shards[shard] = _list_file(_shard_path(folder, shard))
        if name not in shards[shard]:
            raise V2LError(
                f"{printable(folder / shard)} has no {printable(name)}, which {INDEX} lists; get another copy of both"
            )
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def check_tensors(
    stored: Mapping[str, StoredTensor], expected: Iterable[tuple[str, tuple[int, ...]]], folder: Path
) -> None:
    """Check the tensors in the files against the names and shapes of the configuration.

    `expected` is consumed up to the first missing tensor, so the work is bounded by the files and not by the sizes in
    the configuration. Raises V2LError if a tensor is missing, has another shape or number type, or is not expected.
    """
    known = set()
    for name, shape in expected:
        found = stored.get(name)
        if found is None:
            raise V2LError(
                f"{printable(folder)} has no {name}, which its config.json requires; name a folder with a complete "
                "SmolVLMForConditionalGeneration"
            )
        if found.shape != shape or found.dtype not in NUMBER_TYPES:
            raise V2LError(
                f"{printable(folder)} holds {name} as {found.shape} {printable(found.dtype)}, and its config.json "
                f"requires {shape} in {', '.join(NUMBER_TYPES)}; get another copy of the model"
            )
        known.add(name)
    for name in sorted(stored.keys() - known):
        if not name.endswith(_UNUSED):
            raise V2LError(
                f"{printable(folder)} holds {printable(name)}, which does not belong to the model in its config.json; "
                "get another copy of the model"
            )


@contextmanager
def open_tensors(stored: Mapping[str, StoredTensor]) -> Iterator[dict[str, Any]]:
    """Open the files for the block. Yields safetensors slices by name; `[:]` reads a slice as a torch tensor."""
    with ExitStack() as stack:
        files = {file: stack.enter_context(_open(file, "pt")) for file in {tensor.file for tensor in stored.values()}}
        yield {name: files[tensor.file].get_slice(name) for name, tensor in stored.items()}


def _shard_path(folder: Path, shard: object) -> Path:
    """Return the path of a file in the index. Raises V2LError unless it is a plain name and a file of this folder; in a
    snapshot of the Hugging Face cache, files are links into its blobs folder."""
    if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
        raise V2LError(
            f"{printable(folder / INDEX)} names {shown(shard)}; v2l reads only .safetensors in the same "
            "folder, save the model as safetensors"
        )
    own = Path(os.path.realpath(folder))
    allowed = [own, own.parents[1] / "blobs"] if own.parent.name == "snapshots" else [own]
    if Path(os.path.realpath(folder / shard)).parent not in allowed:
        raise V2LError(f"{printable(folder / shard)} is a link to another folder; put the file itself there")
    return folder / shard


def _list_file(path: Path) -> dict[str, StoredTensor]:
    try:
        with open_regular(path) as file:
            size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
            if size > MAX_FILE_BYTES or length > MAX_HEADER_BYTES:
                raise _damaged(path, f"{size:,} bytes with a header of {length:,}")
            header = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    with _open(path, "np"):  # checks the header
        pass
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        return {name: _listed(path, 8 + length, **entry) for name, entry in entries.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # another file since it was checked
        raise _damaged(path, printable(error)) from error


def _listed(path: Path, data: int, dtype: str, shape: list[int], data_offsets: list[int]) -> StoredTensor:
    """Return the entry of a header. data: where the bytes of the tensors start"""
    first, last = data_offsets
    return StoredTensor(path, dtype, tuple(shape), data + first, data + last)


def _open(path: Path, framework: str) -> Any:
    """Open a file. The library checks the header against the size of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError) as error:
        if is_out_of_memory(error):
            raise
        raise _damaged(path, printable(error)) from error


def _damaged(path: Path, what: str) -> V2LError:
    return V2LError(f"{printable(path)} is damaged: {what}; get another copy of the model")
