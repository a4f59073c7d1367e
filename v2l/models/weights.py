"""The safetensors files of a model folder: which tensors they hold, known from their headers, and the tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.files import open_regular, unreadable
from v2l.io.text import printable
from v2l.io.untrusted import read_json, shown

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 10_000_000
"""Of a safetensors header; the published models' have less than 0.1 MB."""
MAX_FILE_BYTES = 64 << 30
"""Of one file of weights; the published models' have 5 GB at most."""
NUMBER_TYPES = ("F32", "BF16", "F16")
"""The number types that weights may have, by their safetensors names."""
_SHARD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}\.safetensors")
_UNUSED = ("lm_head.weight", "rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of the names of tensors that a file may hold without need: tied to another one, or made from the sizes."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. dtype: its safetensors name"""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of model.safetensors, or else of the files that model.safetensors.index.json names.

    Reads headers only, and no file of another format. Raises V2LError if there are no safetensors, or if one of them
    is missing, damaged or no regular file of this folder.
    """
    if os.path.lexists(folder / SINGLE_FILE):  # it comes first in transformers, too
        return _list_file(folder / SINGLE_FILE)
    weight_map = read_json(folder / INDEX, optional=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise V2LError(
            f"{printable(folder)} has no {SINGLE_FILE}; v2l reads no pickled weights, save the model as safetensors"
        )
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard not in shards:
            shards[shard] = _list_file(_shard_path(folder, shard))
        if name not in shards[shard]:
            raise V2LError(
                f"{printable(folder / shard)} has no {printable(name)}, against {INDEX}; get another copy of both"
            )
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def check_tensors(
    stored: Mapping[str, StoredTensor], expected: Iterable[tuple[str, tuple[int, ...]]], folder: Path
) -> None:
    """Compares the files' tensors with the names and shapes that the configuration asks for.

    `expected` is read no further than the first tensor that the files lack, so that a configuration cannot ask for
    more than they hold. Raises V2LError for a tensor that is missing, of another shape or number type, or left over.
    """
    known = set()
    for name, shape in expected:
        found = stored.get(name)
        if found is None:
            raise V2LError(
                f"{printable(folder)} has no {name}, which its config.json asks for; name a folder that holds a whole "
                "SmolVLMForConditionalGeneration"
            )
        if found.shape != shape or found.dtype not in NUMBER_TYPES:
            raise V2LError(
                f"{printable(folder)} holds {name} as {found.shape} {printable(found.dtype)}, and its config.json asks "
                f"for {shape} in {', '.join(NUMBER_TYPES)}; get another copy of the model"
            )
        known.add(name)
    for name in sorted(stored.keys() - known):
        if not name.endswith(_UNUSED):
            raise V2LError(
                f"{printable(folder)} holds {printable(name)}, which its config.json does not ask for; get another "
                "copy of the model"
            )


@contextmanager
def open_tensors(stored: Mapping[str, StoredTensor]) -> Iterator[dict[str, Any]]:
    """Opens the files for the block. Yields, by name, safetensors slices: `[:]` reads the tensor for torch."""
    with ExitStack() as stack:
        files = {file: stack.enter_context(_open(file, "pt")) for file in {tensor.file for tensor in stored.values()}}
        yield {name: files[tensor.file].get_slice(name) for name, tensor in stored.items()}


def _shard_path(folder: Path, shard: object) -> Path:
    """The place of a file that the index names: a name, not a path, and of this folder. In a snapshot of the Hugging
    Face cache the files are links into the folder of its blobs."""
    if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
        raise V2LError(
            f"{printable(folder / INDEX)} names {shown(shard)}; v2l reads nothing but .safetensors in the same "
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
    except OSError as error:
        raise unreadable(path, error) from error
    if size > MAX_FILE_BYTES or length > MAX_HEADER_BYTES:
        raise _damaged(path, f"{size:,} bytes with a header of {length:,}")
    with _open(path, "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: StoredTensor(path, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _open(path: Path, framework: str) -> Any:
    """The opened file. safetensors checks its header against its size."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError, MemoryError) as error:
        raise _damaged(path, printable(error)) from error


def _damaged(path: Path, what: str) -> V2LError:
    return V2LError(f"{printable(path)} is damaged: {what}; get another copy of the model")
