"""The reader of published checkpoints: it reads official files, and no file executes code or exhausts memory."""

import dataclasses
import io
import json
import os
import pathlib
import pickle
import random
import struct
import sys
import time
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator

import pytest
import torch
from places import DATA
from published import ENCODER, HYPERNET, TASK, stand_ins

import v2l
from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.models.published import PublishedCheckpoint, read_published

OFFICIAL = DATA / "official-a" / "hypernet.pt"
# --- files made by torch.save, with stand-ins for the classes that the official code pickles ---------------------


@pytest.fixture
def classes() -> Iterator[types.SimpleNamespace]:
    """The seven classes, importable under their official names during one test."""
    with stand_ins() as made:
        yield made


def state(classes: types.SimpleNamespace, prefix: str = "") -> OrderedDict:
    """Build a small state dict as the official code saves it, with two tensors that share a storage."""
    lora = classes.LoraConfig(
        peft_type=classes.PeftType.LORA,
        task_type=classes.TaskType.CAUSAL_LM,
        target_modules={"up_proj", "down_proj"},
        lora_alpha=16.0,
        rank_pattern={},
        runtime_config=classes.LoraRuntimeConfig(ephemeral_gpu_offload=False),
    )
    config = classes.HypernetConfig(
        latent_size=32,
        big=2**40,
        lora_config=lora,
        layer_indices=torch.arange(3),
        feature_sizes=({"down_proj": 96}, {"down_proj": 48}),
        aggregator_config=classes.AggregatorConfig(aggregator_type="perceiver", extra_modules=None, names=["a", "b"]),
    )
    weight = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7
    values = OrderedDict()
    values[prefix + "layer.weight"] = weight
    values[prefix + "layer.rows"] = weight[1:]
    values[prefix + "scale"] = torch.ones(1, 2, 3, 1)
    values["base_model_name_or_path"] = "somebody/model"
    values["hypernet_config"] = config
    values["ctx_encoder_args"] = classes.CtxEncoderArguments(ctx_encoder_type="per_layer_activations", layer_idx=None)
    values._metadata = OrderedDict({"": {"version": 1}})
    return values


# --- files made opcode by opcode ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Raw:
    """Opcodes that push one value."""

    code: bytes


def emit(value: object) -> bytes:
    """Return opcodes for a plain value, which may contain `Raw` ones."""
    match value:
        case Raw():
            return value.code
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x09" + value.to_bytes(9, "little")
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            encoded = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(encoded)) + encoded
        case tuple():
            return b"(" + b"".join(map(emit, value)) + b"t"
        case list():
            return b"](" + b"".join(map(emit, value)) + b"e"
        case dict():
            return b"}(" + b"".join(emit(key) + emit(item) for key, item in value.items()) + b"u"
    raise TypeError(value)


def name(module: str, attribute: str) -> Raw:
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(module: str, attribute: str, *arguments: object) -> Raw:
    return Raw(name(module, attribute).code + emit(arguments) + b"R")


def record(cls: tuple[str, str], fields: object) -> Raw:
    return Raw(name(*cls).code + b")\x81" + emit(fields) + b"b")


def storage(kind: str = "FloatStorage", key: object = "0", count: object = 6, label: object = "storage") -> Raw:
    return Raw(emit((label, name("torch", kind), key, "cpu", count)) + b"Q")


def tensor(shape=(2, 3), stride=(3, 1), offset=0, source=None, hooks=None) -> Raw:
    hooks = hooks or call("collections", "OrderedDict")
    source = source or storage()
    return call("torch._utils", "_rebuild_tensor_v2", source, offset, shape, stride, False, hooks)


FLOATS = struct.pack("<6f", *range(6))
LONGS = struct.pack("<2q", 0, 1)


def program(**changes: object) -> bytes:
    """Return the pickle of a small checkpoint. `changes` replace top-level values; the value ... removes one."""
    values = {
        "weight": tensor(),
        "base_model_name_or_path": "somebody/model",
        "hypernet_config": record(HYPERNET, {"r": 4}),
        "ctx_encoder_args": record(ENCODER, {"t": "x"}),
    } | changes
    return b"\x80\x02" + emit({key: value for key, value in values.items() if value is not ...}) + b"."


def in_config(value: object) -> bytes:
    return program(hypernet_config=record(HYPERNET, {"field": value}))


def packed(data: bytes, entries: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a checkpoint file with a pickle. `entries` are added to the two storages, or replace them."""
    contents = {"x/data.pkl": data, "x/byteorder": b"little", "x/data/0": FLOATS, "x/data/1": LONGS} | (entries or {})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for entry, content in contents.items():
            archive.writestr(zipfile.ZipInfo(entry), content, compress_type=method)
    return file.getvalue()


def saved(value: object) -> bytes:
    """Return the file that `torch.save` writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "some checkpoint.pt"


def refusal(path: pathlib.Path, content: bytes | None = None) -> str:
    """Return the error for a file: one printable line with the file's name."""
    if content is not None:
        path.write_bytes(content)
    started = time.process_time()
    with pytest.raises(V2LError) as caught:
        read_published(path)
    message = str(caught.value)
    assert time.process_time() - started < 5  # of this process, however busy the machine is
    assert message.isprintable() and printable(path) in message and len(message) < 500 + len(str(path))
    return message


# --- reading -----------------------------------------------------------------------------------------------------


def test_official_checkpoint_equals_what_torch_loads(classes):
    ours = read_published(OFFICIAL)
    theirs = torch.load(OFFICIAL, map_location="cpu", weights_only=False)  # our own fixture: known to be harmless
    expected = {key: value for key, value in theirs.items() if isinstance(value, torch.Tensor)}
    assert len(expected) == 68 and list(ours.tensors) == list(expected)
    for key, value in expected.items():
        assert ours.tensors[key].dtype == torch.float32 and torch.equal(ours.tensors[key], value)
    assert ours.base_model == "fixture/smolvlm-a"
    assert ours.hypernet_config.keys() == vars(theirs["hypernet_config"]).keys()
    assert ours.context_encoder == vars(theirs["ctx_encoder_args"])


def test_official_configuration_is_plain(tmp_path):
    config = read_published(OFFICIAL).hypernet_config
    assert (config["latent_size"], config["layer_indices"]) == (32, [0, 1, 2])
    assert config["feature_sizes"] == [{"down_proj": 96}, {"down_proj": 48}]
    lora = config["lora_config"]
    assert (lora["peft_type"], lora["r"], lora["target_modules"]) == ("LORA", 4, ["down_proj"])
    assert lora["runtime_config"] == {"ephemeral_gpu_offload": False}
    assert config["aggregator_config"]["n_latent_queries"] == 8
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_torch_save(classes, file, protocol):
    values = state(classes)
    torch.save(values, file, pickle_protocol=protocol)
    checkpoint = read_published(file)
    assert list(checkpoint.tensors) == ["layer.weight", "layer.rows", "scale"]
    assert all(torch.equal(value, values[key]) for key, value in checkpoint.tensors.items())
    assert checkpoint.base_model == "somebody/model"
    assert checkpoint.context_encoder == {"ctx_encoder_type": "per_layer_activations", "layer_idx": None}
    assert checkpoint.hypernet_config["lora_config"] == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "target_modules": ["down_proj", "up_proj"],
        "lora_alpha": 16.0,
        "rank_pattern": {},
        "runtime_config": {"ephemeral_gpu_offload": False},
    }
    assert checkpoint.hypernet_config["big"] == 2**40
    assert checkpoint.hypernet_config["layer_indices"] == [0, 1, 2]


@pytest.mark.parametrize("protocol", [2, 4])
def test_members_of_enums_by_name_are_read(classes, file, monkeypatch, protocol):
    """As Python 3.11.0 to 3.11.3 pickles them: `getattr` of the class and the member's name."""
    for kind in (classes.PeftType, classes.TaskType):
        monkeypatch.setattr(kind, "__reduce_ex__", lambda self, protocol: (getattr, (type(self), self.name)))
    torch.save(state(classes), file, pickle_protocol=protocol)
    lora = read_published(file).hypernet_config["lora_config"]
    assert (lora["peft_type"], lora["task_type"]) == ("LORA", "CAUSAL_LM")
    kind = name(*TASK)
    for arguments in ((name("torch", "FloatStorage"), "dtype"), ("text", "upper"), (kind, "a", "b"), (kind,)):
        assert "getattr" in refusal(file, packed(in_config(call("builtins", "getattr", *arguments))))


def test_a_configuration_of_the_installed_peft_is_read(file):
    """With every value that the class sets of itself, and the task type that its own examples state."""
    from peft import LoraConfig, TaskType

    config = LoraConfig(r=4, target_modules=["down_proj"], task_type=TaskType.CAUSAL_LM)
    with zipfile.ZipFile(io.BytesIO(saved({"lora": config}))) as archive:
        pickled = archive.read(next(each for each in archive.namelist() if each.endswith("data.pkl")))
    body = Raw(pickled[2:-1])  # without the protocol and the end
    file.write_bytes(packed(in_config(body)))
    lora = read_published(file).hypernet_config["field"]["lora"]
    assert (lora["task_type"], lora["peft_type"], lora["target_modules"]) == ("CAUSAL_LM", "LORA", ["down_proj"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_its_type(classes, file, dtype):
    values = state(classes)
    values["scale"] = torch.randn(3, 4).to(dtype)
    torch.save(values, file)
    found = read_published(file).tensors["scale"]
    assert found.dtype == dtype and torch.equal(found, values["scale"])
    values["scale"][1, 2] = float("inf")
    torch.save(values, file)
    assert "not finite" in refusal(file)


def test_an_official_checkpoint_in_half_precision_is_a_hypernetwork(classes, file):
    official = torch.load(OFFICIAL, map_location="cpu", weights_only=False)
    halves = {key: value.bfloat16() for key, value in official.items() if isinstance(value, torch.Tensor)}
    torch.save(official | halves, file)
    found = v2l.load_hypernetwork(file, device="cpu").state_dict()
    assert found.keys() == halves.keys()
    assert all(value.dtype == torch.float32 and torch.equal(value, halves[key].float()) for key, value in found.items())


def test_shared_storage_is_read_once_and_shared(classes, file):
    torch.save(state(classes), file)
    tensors = read_published(file).tensors
    weight, rows = tensors["layer.weight"], tensors["layer.rows"]
    assert weight.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr()
    assert torch.equal(weight[1:], rows)


def test_prefix_of_compiled_models_is_stripped(classes, file):
    torch.save(state(classes, prefix="_orig_mod."), file)
    assert list(read_published(file).tensors) == ["layer.weight", "layer.rows", "scale"]
    values = state(classes) | {"_orig_mod.scale": torch.ones(1)}
    torch.save(OrderedDict(values), file)
    assert "_orig_mod." in refusal(file)


def test_hand_made_checkpoint_reads(file):
    layers = tensor((2,), (1,), source=storage("LongStorage", "1", 2))
    file.write_bytes(packed(in_config([layers, (1.5, None), {"k": True}])))
    checkpoint = read_published(str(file))
    assert checkpoint.hypernet_config == {"field": [[0, 1], [1.5, None], {"k": True}]}
    assert torch.equal(checkpoint.tensors["weight"], torch.arange(6.0).reshape(2, 3))


def test_reading_imports_nothing(file):
    file.write_bytes(OFFICIAL.read_bytes())
    read_published(file)
    before = set(sys.modules)
    read_published(file)
    refusal(file, packed(program(x=name("antigravity", "fly"))))
    refusal(file, packed(program(x=name("this", "s"))))
    assert set(sys.modules) == before


# --- hostile pickles ---------------------------------------------------------------------------------------------


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


def place(values: OrderedDict, where: str, evil: object) -> None:
    """Put an object at one place of a state dict."""
    config = values["hypernet_config"]
    places = {
        "top": lambda: values.__setitem__("more", evil),
        "base model": lambda: values.__setitem__("base_model_name_or_path", evil),
        "whole config": lambda: values.__setitem__("hypernet_config", evil),
        "config field": lambda: setattr(config, "latent_size", evil),
        "lora field": lambda: setattr(config.lora_config, "r", evil),
        "set member": lambda: config.lora_config.target_modules.add(evil),
        "nested": lambda: setattr(config, "feature_sizes", ({"a": [{"b": (evil,)}]},)),
        "runtime config": lambda: setattr(config.lora_config.runtime_config, "x", evil),
        "aggregator": lambda: setattr(config.aggregator_config, "x", evil),
        "encoder": lambda: setattr(values["ctx_encoder_args"], "layer_idx", evil),
        "key": lambda: values.__setitem__(evil, 1),
        "metadata": lambda: values._metadata.__setitem__("", evil),
        "attribute": lambda: setattr(values, "extra", evil),
        "tensor attribute": lambda: setattr(values["scale"], "extra", evil),
    }
    places[where]()


PLACES = ["top", "base model", "whole config", "config field", "lora field", "set member", "nested", "runtime config"]
PLACES += ["aggregator", "encoder", "key", "metadata", "attribute", "tensor attribute"]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("where", PLACES)
def test_code_in_every_field_is_refused_by_name(classes, file, tmp_path, where, protocol):
    canary = tmp_path / "canary"
    attacks = [
        (Evil(os.system, f"touch '{canary}'"), f"{os.system.__module__}.system"),
        (Evil(eval, f"open({str(canary)!r}, 'w')"), "eval"),
        (Evil(exec, f"open({str(canary)!r}, 'w')"), "exec"),
        (Evil(getattr, "text", "upper"), "getattr"),
    ]
    for evil, expected in attacks:
        values = state(classes)
        place(values, where, evil)
        torch.save(values, file, pickle_protocol=protocol)
        message = refusal(file)
        # torch pickles a tensor with attributes by yet another function, which is met first
        expected = "_rebuild_from_type_v2" if where == "tensor attribute" else expected
        assert expected in message and "nothing in it was executed" in message
    assert not canary.exists()


def hostile(canary: pathlib.Path) -> dict[str, bytes]:
    """Return pickles that would run a shell command, each by different opcodes."""
    command = f"touch '{canary}'"
    system = call("os", "system", command)
    return {
        "bare": b"\x80\x02" + system.code + b".",
        "before the dict": b"\x80\x02" + system.code + b"0" + program()[2:],
        "after the dict": program()[:-1] + system.code + b"0.",
        "stack global": in_config(Raw(emit("os") + emit("system") + b"\x93" + emit((command,)) + b"R")),
        "dotted stack global": in_config(Raw(emit("torch") + emit("FloatStorage.__class__") + b"\x93")),
        "inst": in_config(Raw(b"(" + emit(command) + b"ios\nsystem\n")),
        "obj": in_config(Raw(b"(" + name("os", "system").code + emit(command) + b"o")),
        "newobj": in_config(Raw(name("os", "system").code + emit((command,)) + b"\x81")),
        "newobj ex": in_config(Raw(name("os", "system").code + emit((command,)) + b"}\x92")),
        "ext1": in_config(Raw(b"\x82\x01" + emit((command,)) + b"R")),
        "ext2": in_config(Raw(b"\x83\x01\x00")),
        "ext4": in_config(Raw(b"\x84\x01\x00\x00\x00")),
        "copyreg": in_config(call("copyreg", "_reconstructor", name("os", "system"), name("builtins", "object"), None)),
        "copy_reg": in_config(call("copy_reg", "add_extension", "os", "system", 1)),
        "setstate": in_config(record(HYPERNET, {"__setstate__": name("os", "system")})),
        "build on a global": in_config(Raw(name(*HYPERNET).code + emit({"__new__": system}) + b"b")),
        "build on a dict": in_config(Raw(b"}" + emit({"a": 1}) + b"b")),
        "slots": in_config(Raw(name(*HYPERNET).code + b")\x81" + emit((None, {"a": 1})) + b"b")),
        "arguments": in_config(Raw(name(*HYPERNET).code + emit((command,)) + b"\x81")),
        "called config": in_config(call(*HYPERNET, command)),
        "called storage": in_config(call("torch", "FloatStorage", 10**9)),
        "called tensor": in_config(Raw(tensor().code + emit((command,)) + b"R")),
        "called text": in_config(Raw(emit("os.system") + emit((command,)) + b"R")),
        "set of items": in_config(call("builtins", "set", system)),
        "set of a tuple": in_config(call("builtins", "set", ("a",))),
        "ordered items": in_config(call("collections", "OrderedDict", [("a", 1)])),
        "peft type": in_config(call("peft.utils.peft_types", "PeftType", system)),
        "tensor argument": program(weight=tensor(offset=system)),
        "tensor hooks": program(weight=tensor(hooks=system)),
        "tensor with hooks": program(
            weight=tensor(hooks=Raw(call("collections", "OrderedDict").code + emit("a") + emit(1) + b"s"))
        ),
        "tensor storage": program(weight=tensor(source=system)),
        "persistent id": program(weight=tensor(source=Raw(system.code + b"Q"))),
        "within a persistent id": program(weight=tensor(source=storage(key=system))),
        "text persistent id": program(weight=tensor(source=Raw(b"Pstorage\n"))),
        "foreign persistent id": program(weight=tensor(source=storage(label="module"))),
        "bare global": in_config(name("torch", "FloatStorage")),
        "bare storage": in_config(storage()),
        "bare mark": in_config(Raw(b"(")),
        "float tensor in a config": in_config(tensor()),
        "control characters": program(x=Raw(b"c\x1b[31mos\r\x07\nsys\x00tem\n")),
        "long global": program(x=name("m" * 100_000, "f")),
        "wide global": program(x=Raw(emit("os\u202e") + emit("\nsystem") + b"\x93")),
        "subname": program(x=name("collections OrderedDict", "x")),
    }


@pytest.mark.parametrize("attack", hostile(pathlib.Path("canary")))
def test_hostile_opcodes_are_refused(file, tmp_path, attack):
    canary = tmp_path / "canary"
    content = hostile(canary)[attack]
    refusal(file, packed(content))
    assert not canary.exists()


@pytest.mark.parametrize("function", [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")])
def test_the_refusal_names_the_global(file, function):
    message = refusal(file, packed(in_config(call(*function, "true"))))
    assert f"'{'.'.join(function)}'" in message and "nothing in it was executed" in message
    assert "authors" in message


def test_every_opcode_alone_is_refused(file):
    for opcode in range(256):
        refusal(file, packed(b"\x80\x02" + bytes([opcode]) + b"\x00" * 16 + b"\n\n."))
        refusal(file, packed(b"\x80\x02" + b"NN(" + bytes([opcode]) + b"."))


# --- bombs -------------------------------------------------------------------------------------------------------


def shared(levels: int, pair: bytes) -> Raw:
    """Return a value nested `levels` deep in which each level holds the next twice: 2 ** levels leaves."""
    return Raw(emit("leaf") + b"".join(b"q\x01" + pair for _ in range(levels)))


PAIR_TUPLE = b"h\x01\x86"
PAIR_LIST = b"0](h\x01h\x01e"
LONG_LIST = Raw(b"]q\x02(" + b"".join(emit(f"{i}") for i in range(5000)) + b"e")
BOMBS = {
    "memo index": in_config(Raw(b"Nr\xff\xff\xff\x7f" + b"j\xff\xff\xff\x7f0")),
    "memo indexes": in_config(Raw(b"N" + b"".join(b"r" + struct.pack("<I", 2**31 + i) for i in range(150_000)))),
    "unset memo": in_config(Raw(b"h\x07")),
    "deep tuples": in_config(Raw(b"N" + b"\x85" * 150_000)),
    "deep lists": in_config(Raw(b"]" * 90_000 + b"a" * 89_999)),
    "deep records": in_config(Raw(name(*HYPERNET).code + b")\x81N" + b"\x85" * 1000 + b"b")),
    "deep top": b"\x80\x02" + b"]" * 90_000 + b"a" * 89_999 + b".",
    "marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
    "sets": b"\x80\x02" + b"\x8f" * 1_000_000 + b".",
    "exponential tuple": in_config(shared(60, PAIR_TUPLE)),
    "exponential key": in_config(Raw(b"}" + shared(60, PAIR_TUPLE).code + b"Ns")),
    "exponential member": in_config(Raw(b"\x8f(" + shared(60, PAIR_TUPLE).code + b"\x90")),
    "wide aliases": in_config(Raw(LONG_LIST.code + b"q\x03" + b"](" + b"h\x02" * 5000 + b"e\x86")),
    "many sets": in_config(Raw(b"](" + LONG_LIST.code + (name("builtins", "set").code + b"h\x02\x85R") * 6000 + b"e")),
    "own item": in_config(Raw(b"]q\x05h\x05a")),
    "own value": in_config(Raw(b"}q\x05" + emit("k") + b"h\x05s")),
    "own field": in_config(Raw(name(*HYPERNET).code + b")\x81q\x05}" + emit("k") + b"h\x05sb")),
    "number key": in_config({1: 2}),
    "large pickle": in_config("a" * 2_000_000),
    "long text": in_config("a" * 5000),
    "control text": in_config("a\x1b[2Jb"),
    "surrogate text": in_config("\ud800"),
    "large number": in_config(2**64),
    "not a number": in_config(float("nan")),
    "infinite": in_config(float("inf")),
    "long8 text": in_config(Raw(b"\x8d" + struct.pack("<Q", 2**62))),
    "long binary": in_config(Raw(b"\x8e" + struct.pack("<Q", 2**40))),
    "long4": in_config(Raw(b"\x8b" + struct.pack("<i", 2**31 - 1))),
    "decimal": in_config(Raw(b"I" + b"9" * 100_000 + b"\n")),
    "odd items": in_config(Raw(b"}(" + emit("k") + b"u")),
    "append to a tuple": in_config(Raw(b")Na")),
    "set an item of a list": in_config(Raw(b"]" + emit("k") + b"Ns")),
    "second state": in_config(Raw(record(HYPERNET, {"a": 1}).code + emit({"a": 2}) + b"b")),
    "two values": program()[:-1] + b"N.",
    "no stop": program()[:-1],
    "empty": b"",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_in_bounded_time_and_memory(file, bomb):
    content = packed(BOMBS[bomb])
    tracemalloc.start()
    try:
        refusal(file, content)
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


# --- tensors that lie --------------------------------------------------------------------------------------------

LIES = {
    "count too large": tensor(source=storage(count=7)),
    "count too small": tensor(source=storage(count=5)),
    "huge count": tensor(source=storage(count=2**62)),
    "negative count": tensor(source=storage(count=-6)),
    "no count": tensor(source=storage(count=0)),
    "text count": tensor(source=storage(count="6")),
    "missing storage": tensor(source=storage(key="9")),
    "storage by path": tensor(source=storage(key="../data/0")),
    "number key": tensor(source=storage(key=0)),
    "wrong type": tensor(source=storage("LongStorage")),
    "foreign type": tensor(source=storage("HalfStorage")),
    "untyped": tensor(source=storage("UntypedStorage", count=24)),
    "beyond the storage": tensor(offset=1),
    "negative offset": tensor(offset=-1),
    "huge offset": tensor(offset=2**62),
    "float offset": tensor(offset=0.0),
    "bool offset": tensor(offset=False),
    "negative size": tensor((-2, -3)),
    "huge shape": tensor((2**31, 2**31), (2**31, 1)),
    "empty": tensor((0, 3)),
    "overlapping strides": tensor((6, 6), (0, 1)),
    "transposed": tensor((3, 2), (1, 3)),
    "negative stride": tensor((6,), (-1,)),
    "stride missing": tensor((2, 3), (3,)),
    "five dimensions": tensor((1, 1, 1, 2, 3), (6, 6, 6, 3, 1)),
    "float size": tensor((2.0, 3)),
    "nested size": tensor(((2,), 3)),
    "list size": tensor([2, 3]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_tensors_are_refused(file, lie):
    refusal(file, packed(program(weight=LIES[lie])))


def test_strides_of_single_rows_do_not_matter(file):
    file.write_bytes(packed(program(weight=tensor((1, 2, 3, 1), (77, 3, 1, 5)))))
    assert read_published(file).tensors["weight"].shape == (1, 2, 3, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(file, value):
    for position in range(6):
        numbers = [0.0] * 6
        numbers[position] = value
        content = packed(program(), {"x/data/0": struct.pack("<6f", *numbers)})
        assert "'weight'" in refusal(file, content)


def test_one_storage_named_often_takes_its_memory_once(file):
    many = {f"w{i}": Raw(b"h\x01") for i in range(2000)}
    content = program(weight=Raw(tensor((2**20,), (1,), source=storage(count=2**20)).code + b"q\x01"), **many)
    file.write_bytes(packed(content, {"x/data/0": bytes(2**22)}))
    tracemalloc.start()
    try:
        tensors = read_published(file).tensors
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert len({value.data_ptr() for value in tensors.values()}) == 1 and len(tensors) == 2001


@pytest.mark.parametrize("missing", ["weight", "base_model_name_or_path", "hypernet_config", "ctx_encoder_args"])
def test_missing_parts_are_named(file, missing):
    assert missing.replace("weight", "tensors") in refusal(file, packed(program(**{missing: ...})))


def test_wrong_parts_are_refused(file):
    assert "base_model" in refusal(file, packed(program(base_model_name_or_path=3)))
    assert "hypernet_config" in refusal(file, packed(program(hypernet_config={"r": 4})))
    assert "ctx_encoder_args" in refusal(file, packed(program(ctx_encoder_args=record(HYPERNET, {"r": 4}))))
    assert "optimizer" in refusal(file, packed(program(optimizer=3)))
    assert "state dict" in refusal(file, packed(b"\x80\x02].")) and "state dict" in refusal(file, packed(b"\x80\x02N."))
    refusal(file, packed(program(hypernet_config=Raw(name(*HYPERNET).code + b")\x81"))))


# --- archives ----------------------------------------------------------------------------------------------------


def test_deflated_files_are_refused(file):
    bomb = packed(program(), {"x/data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000 and "compressed" in refusal(file, bomb)


@pytest.mark.parametrize(
    "entry",
    ["../x", "x/../y", "/x/y", "x/./y", "x//y", "x\\y", "C:\\x", "x/\\..\\y", "y/data.pkl", "loose", "x/dir/"],
)
def test_strange_entries_are_refused(file, entry):
    refusal(file, packed(program(), {entry: b"a"}))


def test_entry_name_with_a_nul_is_refused(file):
    content = packed(program(), {"x/a_b": b"a"}).replace(b"x/a_b", b"x/a\0b")
    assert "unsafe name" in refusal(file, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_entries_are_refused(file):
    output = io.BytesIO(packed(program()))
    with zipfile.ZipFile(output, "a") as archive:
        archive.writestr("x/data.pkl", program())
    assert "one folder" in refusal(file, output.getvalue())


def test_byte_order_must_be_little(file):
    assert "little-endian" in refusal(file, packed(program(), {"x/byteorder": b"big"}))
    assert "byteorder" in refusal(file, packed(program(), {"x/byteorder": b"little" * 9}))


def test_overlapping_entries_are_refused(file):
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr("x/data.pkl", program())
        archive.writestr("x/data/0", bytes(100_000))
        for number in range(1, 100):
            copy = zipfile.ZipInfo(f"x/data/{number}")
            for field in ("file_size", "compress_size", "CRC", "header_offset"):
                setattr(copy, field, getattr(archive.getinfo("x/data/0"), field))
            archive.filelist.append(copy)
    assert "overlap" in refusal(file, output.getvalue())


@pytest.mark.parametrize(("entries", "length"), [(5000, 1), (9000, 200)])
def test_too_many_entries_are_refused(file, entries, length):
    refusal(file, packed(program(), {f"x/{number:0{length}}": b"" for number in range(entries)}))


def test_foreign_files_are_refused(file, classes, tmp_path):
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    assert "zip" in refusal(file)
    torch.save({"a": torch.ones(2)}, file)
    assert "missing" in refusal(file)
    refusal(file, packed(b"\x80\x02" + call("__torch__", "Net").code + b".", {"x/constants.pkl": b"\x80\x02)."}))
    for content in (
        b"",
        b"PK",
        b"PK\x05\x06" + bytes(18),
        b"\x80\x02N.",
        pickle.dumps({}),
        random.Random(0).randbytes(5000),
    ):
        refusal(file, content)


def test_paths_that_are_no_files_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for unusable in ("folder", "loop", "pipe", "missing", "folder/missing", "a" * 300):
        assert "executed" not in refusal(tmp_path / unusable)
    for odd in ("a\0b", "a\nb", "\x1b[2J"):
        with pytest.raises(V2LError) as caught:
            read_published(odd)
        assert str(caught.value).isprintable()


def test_unreadable_file_is_refused(file):
    file.write_bytes(packed(program()))
    file.chmod(0)
    if os.access(file, os.R_OK):  # root may read any file
        assert read_published(file).base_model == "somebody/model"
    else:
        assert "permission" in refusal(file).lower()


# --- damage ------------------------------------------------------------------------------------------------------


def outcome(path: pathlib.Path, content: bytes) -> PublishedCheckpoint | None:
    """Read a damaged file. Returns None if it is refused; any other exception fails the test."""
    path.write_bytes(content)
    try:
        return read_published(path)
    except V2LError as error:
        assert str(error).isprintable()
        return None


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Apply one to three mutations: flip, replace, insert or remove a byte, or repeat a part."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(len(changed))
        match generator.randrange(5):
            case 0:
                changed[at] ^= 1 << generator.randrange(8)
            case 1:
                changed[at] = generator.choice(b"\x00\xff\x7f(.)}]RQbuseatqjhXKMJ\x80\x81\x85\x8a\x93\x94")
            case 2:
                changed.insert(at, generator.randrange(256))
            case 3:
                del changed[at]
            case 4:
                changed[at:at] = changed[at : at + generator.randrange(40)]
    return bytes(changed)


def small(classes: types.SimpleNamespace, protocol: int) -> tuple[bytes, dict[str, bytes]]:
    """Return a small file of torch.save, and its entries."""
    output = io.BytesIO()
    torch.save(state(classes), output, pickle_protocol=protocol)
    with zipfile.ZipFile(output) as archive:
        return output.getvalue(), {f"x/{entry.partition('/')[2]}": archive.read(entry) for entry in archive.namelist()}


def test_truncated_files_are_refused(classes, file):
    content, _ = small(classes, 2)
    official = OFFICIAL.read_bytes()
    for length in range(0, len(content), 13):
        assert outcome(file, content[:length]) is None
    for length in range(0, len(official), len(official) // 60):
        assert outcome(file, official[:length]) is None


@pytest.mark.parametrize("protocol", [2, 4])
def test_mutated_files_are_refused_or_whole(classes, file, protocol):
    content, _ = small(classes, protocol)
    generator = random.Random(protocol)
    shapes = {"layer.weight": (3, 4), "layer.rows": (2, 4), "scale": (1, 2, 3, 1)}
    for _ in range(1000):
        checkpoint = outcome(file, mutated(content, generator))
        assert checkpoint is None or {key: tuple(value.shape) for key, value in checkpoint.tensors.items()} == shapes


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [2, 4])
def test_mutated_pickles_are_refused_or_plain(classes, file, protocol):
    """The checksums of these files are valid, so the mutations reach the interpreter."""
    _, entries = small(classes, protocol)
    generator = random.Random(protocol)
    before = set(sys.modules)
    for _ in range(1200):
        checkpoint = outcome(file, packed(mutated(entries["x/data.pkl"], generator), entries_without_pickle(entries)))
        if checkpoint is not None:
            json.dumps([checkpoint.hypernet_config, checkpoint.context_encoder], allow_nan=False).encode("utf-8")
            assert all(bool(torch.isfinite(value).all()) for value in checkpoint.tensors.values())
    new = set(sys.modules) - before
    assert all(module.startswith("encodings.") for module in new)  # Python's own, to read odd texts with


def entries_without_pickle(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {entry: content for entry, content in entries.items() if entry != "x/data.pkl"}


def test_bit_flips_in_the_official_file(file):
    official = OFFICIAL.read_bytes()
    shapes = {key: value.shape for key, value in read_published(OFFICIAL).tensors.items()}
    generator = random.Random(0)
    for _ in range(30):
        changed = bytearray(official)
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
        checkpoint = outcome(file, bytes(changed))
        assert checkpoint is None or {key: value.shape for key, value in checkpoint.tensors.items()} == shapes


def test_a_flipped_bit_in_a_tensor_is_noticed(file):
    content = packed(program())
    at = content.index(FLOATS) + 5
    assert "damaged" in refusal(file, content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
