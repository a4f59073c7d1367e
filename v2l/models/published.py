"""Read a published Frames2LoRA checkpoint, a PyTorch zip file with a pickle, as plain data.

`torch.load(weights_only=True)` with stand-ins for the classes would lose the limits on memory and time: a file of 1 kB
allocates 2 GB through `bytearray`, one of torch's own safe globals, and keys of nested tuples take exponential time.

A pickle is a program. Here neither torch nor an unpickler loads it: the few opcodes that such a file contains are
interpreted on inert values, so nothing that the file names is imported or called. Work and memory are bounded in
advance, by the file's real size and by the limits below.
"""

import contextlib
import io
import math
import os
import pickletools
import stat
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from v2l.errors import V2LError
from v2l.io.files import unreadable

# The larger published file has 0.91 GB, about 150 entries and a pickle of 40 kB with 7,000 opcodes.
_MAX_FILE_BYTES = 4 * 2**30
_MAX_ENTRIES = 4096
_MAX_READ_BYTES = 2**20  # of one read: the zip directory comes in one, a tensor in many
_MAX_PICKLE_BYTES = 2**20
_MAX_OPERATIONS = 100_000
_MAX_TEXT_LENGTH = 4096
_MAX_DIMENSIONS = 4
_MAX_CONFIG_VALUES = 10_000
_MAX_CONFIG_DEPTH = 16

_HYPERNET_CONFIG = "ctx_to_lora.modeling.hypernet.HypernetConfig"
_CONTEXT_ENCODER = "ctx_to_lora.configs.CtxEncoderArguments"
_LORA_CONFIGS = {"peft.tuners.lora.config.LoraConfig", "peft.tuners.lora.config.LoraRuntimeConfig"}
_RECORDS = {_HYPERNET_CONFIG, _CONTEXT_ENCODER, "ctx_to_lora.modeling.aggregator.AggregatorConfig"} | _LORA_CONFIGS
_STORAGES = {"torch.FloatStorage": torch.float32, "torch.LongStorage": torch.int64}
_STORAGES |= {"torch.BFloat16Storage": torch.bfloat16, "torch.HalfStorage": torch.float16}
_ENUMS = {"peft.utils.peft_types.PeftType", "peft.utils.peft_types.TaskType"}
_GETATTR = {"builtins.getattr", "__builtin__.getattr"}  # Python 3.11.0 to 3.11.3 pickle members of enums by it
_CALLABLE = {"collections.OrderedDict", "builtins.set", "__builtin__.set"} | _ENUMS | _GETATTR
_ALLOWED = _RECORDS | _STORAGES.keys() | _CALLABLE | {"torch._utils._rebuild_tensor_v2"}

_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_TO_MARK = {"TUPLE", "APPENDS", "ADDITEMS", "SETITEMS"}  # opcodes that pop all values above the last mark
_OPERANDS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 2, "APPENDS": 1, "ADDITEMS": 1, "SETITEM": 3}
_OPERANDS |= {"SETITEMS": 1, "BINPUT": 1, "LONG_BINPUT": 1, "MEMOIZE": 1, "STACK_GLOBAL": 2, "REDUCE": 2}
_OPERANDS |= {"NEWOBJ": 2, "BUILD": 2, "BINPERSID": 1}  # number of values that an opcode pops (below that mark, if any)
_MALFORMED = (
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
    Warning,  # pickletools can warn about a text, and Python may turn warnings into errors
)


@dataclass(frozen=True)
class PublishedCheckpoint:
    """The content of a published checkpoint.

    tensors: the hypernetwork's tensors by name, float32, in half precision (or int64), all finite, without a leading
        `_orig_mod.`
    base_model: name of the frozen model
    hypernet_config, context_encoder: field name to plain value; records become dicts, enum members their value, sets
        sorted lists, tuples lists, and int64 tensors (nested) lists of ints
    """

    tensors: dict[str, torch.Tensor]
    base_model: str
    hypernet_config: dict
    context_encoder: dict


def read_published(path: str | os.PathLike[str]) -> PublishedCheckpoint:
    """Read a published Frames2LoRA checkpoint (the zip format of `torch.save`) without executing anything in it.

    Tensors keep their shape and type and are on the CPU; those that share storage in the file share memory. Raises
    V2LError if the file is missing, unreadable, damaged, or contains anything that no published checkpoint does.
    """
    name = os.fsdecode(path)
    shown = name if name.isprintable() else ascii(name)
    try:
        status = os.stat(name)
        _need(stat.S_ISREG(status.st_mode), f"{shown} is not a regular file: give a checkpoint (.pt)")
        file = _BoundedReader(io.FileIO(name))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    with file:
        try:
            return _checkpoint(_Archive(file, status.st_size))
        except V2LError as error:
            advice = "this is not an intact published Frames2LoRA checkpoint: do not load it, get one from its authors"
            raise V2LError(f"{shown}: {error}; nothing in it was executed; {advice}") from error


def _checkpoint(archive: "_Archive") -> PublishedCheckpoint:
    """Interpret the pickle, check the values that it describes, and only then read tensors."""
    root = _Interpreter(archive.sizes).run(archive.read("data.pkl", _MAX_PICKLE_BYTES))
    if not isinstance(root, dict):
        raise V2LError("it does not hold a state dict")
    values = {key.removeprefix("_orig_mod."): value for key, value in root.items()}
    _need(len(values) == len(root), "it holds a name both with and without the prefix '_orig_mod.'")
    tensors = {key: value for key, value in values.items() if isinstance(value, _Tensor)}
    _need(bool(tensors), "it has no tensors")
    kinds = {
        "hypernet_config": _HYPERNET_CONFIG,
        "ctx_encoder_args": _CONTEXT_ENCODER,
        "base_model_name_or_path": "str",
    }
    for key, kind in kinds.items():
        value = values.get(key)
        found = value.name if isinstance(value, _Record) else type(value).__name__
        _need(found == kind, f"its {key} is missing or not a {kind}")
    unknown = sorted(values.keys() - tensors.keys() - kinds.keys())
    _need(not unknown, f"it holds, besides tensors, {_quote(unknown)}")
    reader = _Reader(archive)
    return PublishedCheckpoint(
        base_model=values["base_model_name_or_path"],
        hypernet_config=reader.plain(values["hypernet_config"]),
        context_encoder=reader.plain(values["ctx_encoder_args"]),
        tensors={key: reader.tensor(value, key) for key, value in tensors.items()},
    )


def _need(condition: bool, problem: str) -> None:
    """Raise V2LError with the problem unless the condition holds."""
    if not condition:
        raise V2LError(problem)


def _quote(text: object) -> str:
    """Return text from a file for printing on one line: truncated, with non-ASCII and control characters escaped."""
    return ascii(str(text)[:120])


@contextlib.contextmanager
def _damage(what: str) -> Iterator[None]:
    """Convert the errors that malformed content causes into a V2LError."""
    try:
        yield
    except _MALFORMED as error:
        raise V2LError(f"{what} is damaged ({type(error).__name__}: {_quote(error)})") from error


class _BoundedReader(io.BufferedReader):
    """A file with a limit on each read, because `zipfile` reads a directory of any size at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(_MAX_READ_BYTES + 1 if size is None or size < 0 else min(size, _MAX_READ_BYTES + 1))
        if len(content) > _MAX_READ_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        return content


class _Archive:
    """The zip file of a checkpoint, checked before anything is read.

    sizes: bytes of each entry, by its name without the folder
    """

    def __init__(self, file: _BoundedReader, file_bytes: int):
        _need(file_bytes <= _MAX_FILE_BYTES, f"it has {file_bytes} bytes, more than {_MAX_FILE_BYTES}")
        with _damage("it is not a PyTorch zip file, or"):
            self._zip = zipfile.ZipFile(file)
        entries = self._zip.infolist()
        for entry in entries:
            safe = entry.filename == entry.orig_filename and not {"", ".", ".."} & set(entry.filename.split("/"))
            _need(safe and "\\" not in entry.filename, f"its entry {_quote(entry.orig_filename)} has an unsafe name")
            stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
            _need(stored, f"its entry {_quote(entry.filename)} is compressed")
        self._entries = {entry.filename.partition("/")[2]: entry for entry in entries}
        self.sizes = {name: entry.file_size for name, entry in self._entries.items()}
        _need(len(entries) <= _MAX_ENTRIES, f"it has {len(entries)} entries, more than {_MAX_ENTRIES}")
        _need(sum(self.sizes.values()) <= file_bytes, "its entries overlap or exceed it")
        one_folder = len({entry.filename.partition("/")[0] for entry in entries}) == 1
        distinct = len(self.sizes) == len(entries)
        _need(one_folder and distinct and "data.pkl" in self.sizes, "it is not one folder of entries with a data.pkl")
        little = "byteorder" not in self.sizes or self.read("byteorder", 16) == b"little"
        _need(little, "its byte order is not little-endian")

    def read(self, name: str, limit: int) -> bytearray:
        """Return the bytes of an entry, at most `limit`, with its checksum verified."""
        size = self.sizes[name]
        _need(size <= limit, f"its entry {_quote(name)} has {size} bytes, more than {limit}")
        content = bytearray(size)
        with _damage(f"its entry {_quote(name)}"), self._zip.open(self._entries[name]) as source:
            for start in range(0, size, _MAX_READ_BYTES):
                piece = source.read(min(_MAX_READ_BYTES, size - start))
                content[start : start + len(piece)] = piece
        return content


@dataclass(frozen=True)
class _Global:
    """A global that the pickle names. It must be one of those in published checkpoints, and it is never resolved."""

    name: str

    def __post_init__(self) -> None:
        _need(self.name in _ALLOWED, f"it names the global {_quote(self.name)}, which no published checkpoint holds")


@dataclass(eq=False)
class _Record:
    """An instance of an allowed class, without behaviour: the full name of the class, and its fields once set."""

    name: str
    fields: dict[str, object] | None = None


@dataclass(frozen=True)
class _Storage:
    """`count` numbers of one type, in the zip entry `data/<key>`."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor that has not been read: contiguous, not empty, `offset` numbers into its storage and within it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        valid = len(self.shape) == len(self.stride) <= _MAX_DIMENSIONS and 0 not in self.shape
        valid = valid and all(type(number) is int and number >= 0 for number in numbers)
        steps = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))] if valid else []
        valid = valid and all(self.shape[i] == 1 or self.stride[i] == step for i, step in enumerate(steps))
        valid = valid and self.offset + math.prod(self.shape) <= self.storage.count
        _need(valid, f"a tensor in its storage {_quote(self.storage.key)} is not contiguous, or exceeds it")


class _Interpreter:
    """An interpreter for the pickles of published checkpoints on inert values. It refuses all others.

    sizes: bytes of each zip entry
    """

    def __init__(self, sizes: dict[str, int]):
        self._sizes = sizes
        self._stack: list = []
        self._memo: dict[int, object] = {}

    def run(self, pickle: bytearray) -> object:
        """Return the value that the pickle describes."""
        with _damage("its data.pkl"):
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
                _need(count < _MAX_OPERATIONS, f"its data.pkl has over {_MAX_OPERATIONS} operations")
                if opcode.name not in {"PROTO", "FRAME", "STOP"}:
                    self._stack.append(self._step(opcode.name, argument))
        _need(len(self._stack) == 1, "its data.pkl does not describe one value")
        return self._stack[0]

    def _take(self, opcode: str) -> list:
        """Pop the operands of an opcode from the stack; the topmost comes last."""
        taken = []
        if opcode in _TO_MARK:
            while (value := self._stack.pop()) is not _MARK:
                taken.append(value)
        taken += [self._stack.pop() for _ in range(_OPERANDS.get(opcode, 0))]
        _need(_MARK not in taken, f"its data.pkl has the opcode {opcode} too near a mark")
        return taken[::-1]

    def _step(self, opcode: str, argument: Any) -> object:
        """Return the value that one opcode pushes. `argument` follows it in the pickle."""
        match opcode, self._take(opcode):
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE" | "MARK", _:
                return _CONSTANTS[opcode]
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_SET", _:
                return _EMPTY[opcode]()
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE", _:
                return _literal(argument)
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3", items:
                return tuple(items)
            case "APPEND" | "APPENDS", [list(target), *items]:
                target.extend(items)
                return target
            case "ADDITEMS", [set(target), *items]:
                target.update(_texts(items))
                return target
            case "SETITEM" | "SETITEMS", [dict(target), *items]:
                target.update(zip(_texts(items[::2]), items[1::2], strict=True))
                return target
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE", [value]:
                self._memo[len(self._memo) if opcode == "MEMOIZE" else argument] = value
                return value
            case "BINGET" | "LONG_BINGET", _:
                return self._memo[argument]
            case "GLOBAL", _:
                return _Global(argument.replace(" ", ".", 1))
            case "STACK_GLOBAL", [str(module), str(name)]:
                return _Global(f"{module}.{name}")
            case "REDUCE" | "NEWOBJ", [_Global(name=function), tuple(arguments)]:
                return _called(function, arguments)
            case "BUILD", [_Record(fields=None) as target, dict(state)]:
                target.fields = state
                return target
            case "BUILD", [OrderedDict() as target, dict()]:  # versions of torch modules, which are not needed
                return target
            case "BINPERSID", [("storage", _Global(name=kind), str(key), str(), int(count))] if kind in _STORAGES:
                storage = _Storage(_STORAGES[kind], key, count)
                exact = count > 0 and self._sizes.get(f"data/{key}") == count * storage.dtype.itemsize
                _need(exact, f"its storage {_quote(key)} does not have the {count} numbers that its data.pkl promises")
                return storage
        raise V2LError(f"its data.pkl has the opcode {opcode} as no published checkpoint does")


def _literal(value: float | str) -> float | str:
    """Return a number or text if it is allowed: finite and of 64 bits, or short and printable."""
    valid = value.isprintable() and len(value) <= _MAX_TEXT_LENGTH if isinstance(value, str) else abs(value) < 2**63
    _need(valid, f"its data.pkl holds {_quote(value)}, which is too large, not finite or not printable")
    return value


def _texts(values: list) -> list[str]:
    """Return keys of a dict or members of a set if all are texts: hashing nested tuples can take exponential time."""
    _need(all(isinstance(value, str) for value in values), "its data.pkl has a key or set member that is not text")
    return values


def _called(function: str, arguments: tuple) -> object:
    """Return the inert value of a call or a new instance, in the few forms that published checkpoints contain."""
    match function, arguments:
        case "collections.OrderedDict", ():
            return OrderedDict()
        case "builtins.set" | "__builtin__.set", (list(members),):
            value = set(_texts(members))
            members.clear()  # one long list must not become many sets
            return value
        case _, (str(value),) if function in _ENUMS:
            return value
        case _, (_Global(name=kind), str(value)) if function in _GETATTR and kind in _ENUMS:
            return value
        case "torch._utils._rebuild_tensor_v2", (_Storage(), _, tuple(), tuple(), bool(), OrderedDict() as hooks):
            _need(not hooks, "a tensor in its data.pkl has hooks")
            return _Tensor(*arguments[:4])
        case _, () if function in _RECORDS:
            return _Record(function)
    raise V2LError(f"its data.pkl calls {function} as no published checkpoint does")


class _Reader:
    """Reads the tensors and configurations that a pickle describes. Each storage is read once, on first use."""

    def __init__(self, archive: _Archive):
        self._archive = archive
        self._storages: dict[_Storage, torch.Tensor] = {}
        self._values = 0

    def tensor(self, tensor: _Tensor, name: str) -> torch.Tensor:
        """Return the tensor as a view of its storage. Raises V2LError, with `name`, if the storage is not finite."""
        storage = tensor.storage
        if storage not in self._storages:
            content = self._archive.read(f"data/{storage.key}", _MAX_FILE_BYTES)
            numbers = torch.frombuffer(content, dtype=storage.dtype)
            finite = all(map(math.isfinite, numbers.aminmax()))  # once per storage: it may back any number of tensors
            _need(finite, f"its tensor {_quote(name)} has values that are not finite")
            self._storages[storage] = numbers
        end = tensor.offset + math.prod(tensor.shape)
        return self._storages[storage][tensor.offset : end].view(tensor.shape)

    def plain(self, value: object, depth: int = 0) -> Any:
        """Convert a value of a configuration to plain Python, within limits: a pickle can repeat or nest values without
        end."""
        self._values += math.prod(value.shape) if isinstance(value, _Tensor) else 1
        bounded = self._values <= _MAX_CONFIG_VALUES and depth <= _MAX_CONFIG_DEPTH
        _need(bounded, "its configuration is too large or too deeply nested")
        match value:
            case None | bool() | int() | float() | str():
                return value
            case _Record(fields=dict() as items) | (dict() as items):
                return {key: self.plain(item, depth + 1) for key, item in items.items()}
            case list() | tuple():
                return [self.plain(item, depth + 1) for item in value]
            case set():
                return self.plain(sorted(value), depth + 1)
            case _Tensor() if value.storage.dtype == torch.int64:
                return self.tensor(value, "of a configuration").tolist()
        raise V2LError("its configuration holds something other than plain values and whole numbers")
