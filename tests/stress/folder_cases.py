"""The hostile and broken model folders of tests/stress/model_folders.py, as changes of a sound folder."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save, save_file

from v2l.io.safetensors_file import content_sha256
from v2l.io.tensors import to_bytes

LOADS, WARNS = "loads", "loads, with a warning"
KNOWN_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The chat template of the published models."""
ENDLESS_TEMPLATE = (
    "{% set held = namespace(text='x') %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% set held.text = held.text ~ held.text %}{% endfor %}"
    "{% endfor %}"
)

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """change: modifies a sound folder; outcome: LOADS, WARNS, or a regular expression for the error"""

    change: Change
    outcome: str


CASES: dict[str, Case] = {}


def case(name: str, outcome: str, change: Change) -> None:
    """Add a case."""
    assert name not in CASES, name
    CASES[name] = Case(change, outcome)


# What can stand in the place of a file ------------------------------------------------------------------------------


def fifo(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def subfolder(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def content(name: str, data: bytes | str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


def sparse(name: str, size: int = 5 << 30) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(b"{")
        os.truncate(folder / name, size)

    return change


def removed(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def in_turn(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def stated(file: str, *keys: str | int, value: Any) -> Change:
    """Replace or add a value of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / file
        whole = json.loads(path.read_text()) if path.exists() else {}
        part = whole
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        path.write_text(json.dumps(whole))

    return change


def raw(file: str, key: str, text: str) -> Change:
    """Replace a value of a JSON file by text that Python would not write."""

    def change(folder: Path) -> None:
        path = folder / file
        written, count = re.subn(rf'("{key}": )[^,\n}}]+', lambda found: found[1] + text, path.read_text(), count=1)
        assert count == 1
        path.write_text(written)

    return change


def tensors(change_all: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Change the weights."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        changed = change_all(weights) or weights
        save_file(
            {name: tensor.clone() for name, tensor in changed.items()}, folder / "model.safetensors", {"format": "pt"}
        )

    return change


def of_bytes(name: str, change_data: Callable[[bytes], bytes]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(change_data((folder / name).read_bytes()))

    return change


class Evil:
    """Creates a file in the working folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("EXECUTED", "w")


EVIL_CODE = "open('EXECUTED', 'w')\n"


def pickled(name: str) -> Change:
    return content(name, pickle.dumps(Evil()))


def sharded(index: Callable[[dict[str, str]], Any] = lambda shards: {"metadata": {}, "weight_map": shards}) -> Change:
    """Store the weights in two files, with an index that `index` makes from name -> file."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        names = sorted(weights)
        shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
        for shard, part in shards.items():
            save_file({name: weights[name] for name in part}, folder / shard, {"format": "pt"})
        (folder / "model.safetensors").unlink()
        told = index({name: shard for shard, part in shards.items() for name in part})
        (folder / "model.safetensors.index.json").write_text(json.dumps(told))

    return change


def one_shard(name: Any) -> Change:
    """Return an index with another file for the norm."""
    return sharded(lambda shards: {"weight_map": shards | {NORM: name}})


def snapshot(folder: Path) -> None:
    """Replace the folder by a snapshot of the Hugging Face cache: links to blobs."""
    sharded()(folder)
    cache = folder.with_name(f"{folder.name}-cache") / "models--someone--model"
    place, blobs = cache / "snapshots" / ("a" * 40), cache / "blobs"
    place.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (place / path.name).symlink_to(f"../../blobs/{number}")
    folder.rmdir()
    folder.symlink_to(place)


def relinked(folder: Path) -> None:
    """Name one of two shards by a link to it."""
    sharded()(folder)
    (folder / "l.safetensors").symlink_to("one.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("one.safetensors", "l.safetensors"))


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _headed(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


def _spoilt(name: str, value: float) -> Change:
    return tensors(lambda weights: weights[name].view(-1)[-1:].fill_(value) and None)


def vocabulary(folder: Path) -> dict[str, int]:
    return json.loads((folder / TOKENIZER).read_text())["model"]["vocab"]


NORM = "model.text_model.norm.weight"
FC1 = "model.vision_model.encoder.layers.0.mlp.fc1.weight"
GATE = "model.text_model.layers.1.mlp.gate_proj.weight"
DEEP = "[" * 100_000
CONFIG, TOKENIZER, HYPERNETWORK = "config.json", "tokenizer.json", "hypernetwork.safetensors"

# JSON files, each in the same ways ----------------------------------------------------------------------------------

for _file in (
    *(CONFIG, TOKENIZER, "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "chat_template.json"),
):
    _first = removed("preprocessor_config.json") if _file == "processor_config.json" else in_turn()
    case(f"{_file} is a pipe", "is a device, pipe or socket", in_turn(_first, fifo(_file)))
    case(f"{_file} is /dev/zero", "is a device, pipe or socket", in_turn(_first, link(_file, "/dev/zero")))
    case(f"{_file} has 5 GiB", "has 5,368,709,120 bytes, v2l reads at most", in_turn(_first, sparse(_file)))
    case(f"{_file} is deep", "is not JSON: .*recursion", in_turn(_first, content(_file, f'{{"a": {DEEP}')))
    case(f"{_file} is a list", "is not a JSON object", in_turn(_first, content(_file, "[]")))
case("config.json is a folder", "cannot read .*Is a directory", subfolder(CONFIG))
case("config.json is a dangling link", "config.json is missing", link(CONFIG, "nowhere"))
case("config.json is a loop", "cannot read .*symbolic links", link(CONFIG, CONFIG))
case("config.json is missing", "config.json is missing", removed(CONFIG))
case("config.json is empty", "cannot read", content(CONFIG, ""))
case("config.json is UTF-16", "cannot read", content(CONFIG, '{"model_type": "smolvlm"}'.encode("utf-16")))
case("config.json is binary", "cannot read", content(CONFIG, bytes(range(256))))
case("config.json is the kernel's", "cannot read|is a device|has .* bytes", link(CONFIG, "/proc/kmsg"))
case("generation_config.json is a folder", "cannot read", subfolder("generation_config.json"))

# config.json ---------------------------------------------------------------------------------------------------------

_NUMBERS: dict[str, tuple[Any, ...]] = {
    "num_hidden_layers": (10**9, 10**309, 0, -1, 2.5, True, "3", [3], {"a": 3}),
    "hidden_size": (2**40, 0),
    "intermediate_size": (2**62,),
    "vocab_size": (2**31, 0),
    "num_attention_heads": (0, 10**6),
    "num_key_value_heads": (0, -2),
    "head_dim": (0, 10**9),
    "max_position_embeddings": (10**18, 0),
    "pad_token_id": (-1,),
}
for _name, _values in _NUMBERS.items():
    for _value in _values:
        case(
            f"text {_name} = {str(_value)[:20]}",
            rf"text_config.{_name} = .*v2l takes a whole number from",
            stated(CONFIG, "text_config", _name, value=_value),
        )
for _name, _value in {
    "image_size": 0,
    "patch_size": 0,
    "num_channels": 4,
    "num_hidden_layers": 10**12,
    "hidden_size": -1,
    "num_attention_heads": 0,
    "intermediate_size": 1e300,
}.items():
    case(
        f"vision {_name} = {_value}",
        rf"vision_config.{_name} = .*v2l takes a whole number from",
        stated(CONFIG, "vision_config", _name, value=_value),
    )
case(
    "vision image_size is a list", "image_size = a list", stated(CONFIG, "vision_config", "image_size", value=[32, 32])
)
case("vision image_size = 1000000", "image_size = 1000000", stated(CONFIG, "vision_config", "image_size", value=10**6))
for _value in (0, -3, 10**6, 1.5, None):
    _words = "scale_factor = .*whole number" if _value is not None else LOADS
    case(f"scale_factor = {_value}", _words, stated(CONFIG, "scale_factor", value=_value))
case("scale_factor = 3", "do not divide", stated(CONFIG, "scale_factor", value=3))
case("scale_factor = 4", "holds model.connector", stated(CONFIG, "scale_factor", value=4))
case("more layers than stored", r"has no .*layers\.3\.", stated(CONFIG, "text_config", "num_hidden_layers", value=1000))
case("fewer layers than stored", "does not belong to", stated(CONFIG, "text_config", "num_hidden_layers", value=2))
case("a terabyte's inner width", "holds .* as", stated(CONFIG, "text_config", "intermediate_size", value=2**18))
case("a terabyte's vocabulary", "holds .*embed_tokens", stated(CONFIG, "text_config", "vocab_size", value=2**22))
case("vision widths of gigabytes", "holds .* as", stated(CONFIG, "vision_config", "intermediate_size", value=2**18))
case("heads that do not divide", "not a multiple", stated(CONFIG, "text_config", "num_attention_heads", value=5))
case("key heads that do not divide", "do not divide", stated(CONFIG, "text_config", "num_key_value_heads", value=3))
case("an odd head_dim", "even rotary dimension|odd head_dim", stated(CONFIG, "text_config", "head_dim", value=13))
case("another head_dim", "holds .*q_proj", stated(CONFIG, "text_config", "head_dim", value=14))
case(
    "vision heads that do not divide", "do not divide", stated(CONFIG, "vision_config", "num_attention_heads", value=5)
)
case("patches larger than the image", "exceeds image_size", stated(CONFIG, "vision_config", "patch_size", value=64))
case("other patches", "holds .*patch_embedding", stated(CONFIG, "vision_config", "patch_size", value=16))
case("image token out of range", "image_token_id is not in", stated(CONFIG, "image_token_id", value=449))
case("image token negative", "image_token_id = -1", stated(CONFIG, "image_token_id", value=-1))
case("image token of another name", "disagree", stated(CONFIG, "image_token_id", value=7))
case("padding token out of range", "pad_token_id is not in", stated(CONFIG, "text_config", "pad_token_id", value=449))
for _value in (0, -1e-5, 1.0, "1e-5", True, 10**400):
    case(
        f"rms_norm_eps = {str(_value)[:10]!r}",
        "text_config.rms_norm_eps = .*v2l takes a number from 1e-12 to 0.01",
        stated(CONFIG, "text_config", "rms_norm_eps", value=_value),
    )
case("rms_norm_eps is NaN", "NaN is not a JSON number", raw(CONFIG, "rms_norm_eps", "NaN"))
case("rms_norm_eps is -Infinity", "-Infinity is not a JSON number", raw(CONFIG, "rms_norm_eps", "-Infinity"))
case("rms_norm_eps is 1e400", "rms_norm_eps = inf", raw(CONFIG, "rms_norm_eps", "1e400"))
case("rms_norm_eps of 5000 digits", "cannot read .*digits", raw(CONFIG, "rms_norm_eps", "9" * 5000))
case("layer_norm_eps is NaN", "NaN is not a JSON number", raw(CONFIG, "layer_norm_eps", "NaN"))
case("layer_norm_eps = -1", "layer_norm_eps = -1", stated(CONFIG, "vision_config", "layer_norm_eps", value=-1))
for _value in (0, -5.0, "100", [1.0]):
    case(
        f"rope_theta = {_value!r}",
        "rope_theta = .*v2l takes a number from 1",
        stated(CONFIG, "text_config", "rope_parameters", value={"rope_type": "default", "rope_theta": _value}),
    )
case("rope_theta is NaN", "NaN is not a JSON number", raw(CONFIG, "rope_theta", "NaN"))
case("rope_theta is 1e999", "rope_theta = inf", raw(CONFIG, "rope_theta", "1e999"))
case(
    "rotary positions of another kind",
    "rope_type = yarn; v2l takes default",
    stated(CONFIG, "text_config", "rope_parameters", value={"rope_type": "yarn", "factor": 1e300, "rope_theta": 1e4}),
)
case("rope_parameters is a list", "must be an object", stated(CONFIG, "text_config", "rope_parameters", value=[1]))
case(
    "hidden_act is code", "hidden_act = ", stated(CONFIG, "text_config", "hidden_act", value="__import__('os').abort()")
)
case("hidden_act is an object", "hidden_act = an object", stated(CONFIG, "vision_config", "hidden_act", value={}))
case("text_config is a list", "text_config = a list", stated(CONFIG, "text_config", value=[]))
case("text_config is missing", "holds .*embed_tokens", stated(CONFIG, "text_config", value=None))
case("another text model", "model_type = mamba", stated(CONFIG, "text_config", "model_type", value="mamba"))
case("another model", "holds a model of type x", stated(CONFIG, "model_type", value="x\x1b[2J"))
case("another model's depth", "of type a list", stated(CONFIG, "model_type", value=[[[]]]))
case("tied by a word", "tie_word_embeddings = yes", stated(CONFIG, "tie_word_embeddings", value="yes"))
case("biases", "attention_bias = True; v2l takes false", stated(CONFIG, "text_config", "attention_bias", value=True))
case("a name with escapes", "_name_or_path", stated(CONFIG, "_name_or_path", value="\x1b]0;x\x07"))
case("a name of a megabyte", "_name_or_path", stated(CONFIG, "_name_or_path", value="x" * 10**6))

# What transformers would act on, and nobody does --------------------------------------------------------------------

case(
    "code of its own",
    LOADS,
    in_turn(
        stated(CONFIG, "auto_map", value={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}),
        *(content(name, EVIL_CODE) for name in ("evil.py", "modeling_smolvlm.py", "configuration_smolvlm.py")),
        lambda folder: (folder / "custom_generate").mkdir(),
        content("custom_generate/generate.py", EVIL_CODE),
    ),
)
case(
    "an adapter for peft",
    LOADS,
    in_turn(
        content("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "x", "task_type": null}'),
        pickled("adapter_model.bin"),
    ),
)
case("weights of another name", LOADS, in_turn(stated(CONFIG, "transformers_weights", value="e.bin"), pickled("e.bin")))
case(
    "quantised weights",
    LOADS,
    stated(CONFIG, "quantization_config", value={"quant_method": "torchao", "quant_type": 1}),
)
case("attention from the hub", LOADS, stated(CONFIG, "_attn_implementation", value="someone/kernel"))
case("a number type that is code", LOADS, stated(CONFIG, "dtype", value="__import__('os').abort()"))
case("fused modules", LOADS, stated(CONFIG, "fusion_config", value={"patch_embeddings": True}))
case("a template in processor_config.json", LOADS, stated("processor_config.json", "chat_template", value="{{ x }}"))

# The other JSON files -----------------------------------------------------------------------------------------------

for _value in (10**30, -1, 448, True, 3.0, "3", [3, None], {"a": 1}):
    case(
        f"eos_token_id = {str(_value)[:20]!a}",
        "generation_config.json states eos_token_id = .*ids from 0 to 447",
        stated("generation_config.json", "eos_token_id", value=_value),
    )
case("eos_token_id is null", LOADS, stated("generation_config.json", "eos_token_id", value=None))
for _value in (10**9, -1, 0, "x", True, [[]]):
    case(
        f"max_image_size = {_value!r}",
        "max_image_size = .*number of pixels",
        stated("preprocessor_config.json", "max_image_size", value={"longest_edge": _value}),
    )
case(
    "images larger than the tower's",
    "for a vision tower",
    stated("preprocessor_config.json", "max_image_size", value=64),
)
case("images of no patch", "do not divide", stated("preprocessor_config.json", "max_image_size", value=4))
case(
    "frames of a million pixels",
    "video_size = 1000000",
    stated("preprocessor_config.json", "video_sampling", value={"video_size": 10**6}),
)
case("video_sampling is a list", LOADS, stated("preprocessor_config.json", "video_sampling", value=[]))

# Weights: which files -----------------------------------------------------------------------------------------------

_NO_PICKLES = "has no model.safetensors; v2l does not read pickled weights"
case("a pickle alone", _NO_PICKLES, in_turn(removed("model.safetensors"), pickled("pytorch_model.bin")))
case(
    "an index of pickles",
    _NO_PICKLES,
    in_turn(
        removed("model.safetensors"),
        pickled("pytorch_model-00001-of-00001.bin"),
        content("pytorch_model.bin.index.json", json.dumps({"weight_map": {NORM: "pytorch_model-00001-of-00001.bin"}})),
    ),
)
case("pickles beside safetensors", LOADS, in_turn(pickled("pytorch_model.bin"), pickled("model.bin")))
case("a pickle called safetensors", "is damaged", pickled("model.safetensors"))
_ONLY = "reads only .safetensors in the same folder"
case("a shard that is a pickle", _ONLY, in_turn(one_shard("evil.bin"), pickled("evil.bin")))
case(
    "a shard that is a pickle by its content",
    "is damaged",
    in_turn(one_shard("e.safetensors"), pickled("e.safetensors")),
)
for _value in (
    *("../model.safetensors", "/etc/model.safetensors", "sub/one.safetensors", "..\\one.safetensors", "", ".."),
    *("one.safetensors\n", "\x00.safetensors", 5, None, ["one.safetensors"], "x" * 5000 + ".safetensors"),
):
    case(f"a shard called {str(_value)[:25]!r}", _ONLY, one_shard(_value))
case("a shard that is missing", "cannot read .*No such file", one_shard("three.safetensors"))
case("a shard that is a pipe", "is a device, pipe", in_turn(one_shard("p.safetensors"), fifo("p.safetensors")))
case("a shard that is a folder", "cannot read", in_turn(one_shard("f.safetensors"), subfolder("f.safetensors")))
case(
    "a shard that links outside",
    "is a link to another folder",
    in_turn(one_shard("l.safetensors"), link("l.safetensors", "/etc/hostname")),
)
case(
    "a shard that is /dev/zero",
    "is a link to another folder",
    in_turn(one_shard("l.safetensors"), link("l.safetensors", "/dev/zero")),
)
case("a shard that links inside", LOADS, relinked)
case("a snapshot of the cache", LOADS, snapshot)
case("shards", LOADS, sharded())
case("an index of nothing", _NO_PICKLES, sharded(lambda shards: {"weight_map": {}}))
case("an index that is a list", _NO_PICKLES, sharded(lambda shards: {"weight_map": list(shards)}))
case("an index without a tensor", "has no model.text_model.norm", sharded(lambda s: {"weight_map": _without(s, NORM)}))
case("an index with a tensor too many", "has no x", sharded(lambda s: {"weight_map": s | {"x": "one.safetensors"}}))
case("an index of megabytes", "v2l reads at most", sharded(lambda s: {"weight_map": s, "x": "x" * (5 << 20)}))
case(
    "an index that is deep",
    "is not JSON: .*recursion",
    in_turn(sharded(), content("model.safetensors.index.json", f'{{"weight_map": {DEEP}')),
)
case("an index that is a pipe", "is a device, pipe", in_turn(sharded(), fifo("model.safetensors.index.json")))
case("weights that are a pipe", "is a device, pipe", fifo("model.safetensors"))
case("weights that are /dev/zero", "is a device, pipe", link("model.safetensors", "/dev/zero"))
case("weights that are a folder", "cannot read", subfolder("model.safetensors"))
case("weights that are a dangling link", "cannot read", link("model.safetensors", "nowhere"))
case("weights that are missing", _NO_PICKLES, removed("model.safetensors"))

# Weights: what the files hold ---------------------------------------------------------------------------------------


_WEIGHTS = "model.safetensors"
case("no bytes of weights", "is damaged", content(_WEIGHTS, b""))
case(
    "a header of exabytes",
    "is damaged: 8 bytes with a header of 4,611,686",
    content(_WEIGHTS, (2**62).to_bytes(8, "little")),
)
case(
    "a header of 11 MB",
    "is damaged: .* bytes with a header of 11,",
    content(_WEIGHTS, _headed(b"{" + b" " * 11_000_000 + b"}")),
)
case("a header that is no JSON", "is damaged", content(_WEIGHTS, _headed(b"[[[[")))
case("a header that is deep", "is damaged", content(_WEIGHTS, _headed(DEEP.encode())))
case(
    "a tensor of exabytes",
    "is damaged",
    content(_WEIGHTS, _headed({NORM: {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"1234")),
)
case(
    "tensors that overlap",
    "is damaged",
    content(
        _WEIGHTS,
        _headed({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in (NORM, GATE)}, b"1234"),
    ),
)
case(
    "a hundred thousand tensors",
    "has no .*embed_tokens",
    content(
        _WEIGHTS,
        _headed(
            {f"t{n}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(10**5)}, b"x" * 10**5
        ),
    ),
)
case("weights of 65 GiB", "is damaged: 69,", lambda folder: os.truncate(folder / _WEIGHTS, 65 << 30))
case("weights cut short", "is damaged", of_bytes(_WEIGHTS, lambda data: data[:-100]))
case("weights with a tail", "is damaged", of_bytes(_WEIGHTS, lambda data: data + b"tail"))
case("a tensor is missing", "has no .*gate_proj.*complete SmolVLM", tensors(lambda weights: _without(weights, GATE)))
case("a tensor is missing from the tower", "has no .*fc1", tensors(lambda w: _without(w, FC1)))
case(
    "a tensor too many",
    "holds model.text_model.layers.0.x",
    tensors(lambda w: w | {"model.text_model.layers.0.x": w[NORM]}),
)
case("a tensor with a strange name", r"holds \\x1b\[2J", tensors(lambda w: w | {"\x1b[2J": w[NORM]}))
case("tensors that are not used", LOADS, tensors(lambda w: w | {"model.text_model.rotary_emb.inv_freq": w[NORM]}))
case("a misshaped tensor", "holds .*gate_proj.* as", tensors(lambda w: w | {GATE: w[GATE][:, :5].contiguous()}))
case("a scalar", "holds .*norm.weight as", tensors(lambda w: w | {NORM: torch.tensor(1.0)}))
case("an empty tensor", "holds .*norm.weight as", tensors(lambda w: w | {NORM: torch.zeros(0)}))
for _dtype in (torch.int8, torch.float64, torch.bool, torch.complex64, torch.float8_e4m3fn):
    case(f"weights in {_dtype}", "holds .*requires", tensors(lambda w, d=_dtype: w | {GATE: w[GATE].to(d)}))
case("weights in bfloat16", LOADS, tensors(lambda w: {name: tensor.bfloat16() for name, tensor in w.items()}))
case("weights in mixed types", LOADS, tensors(lambda w: w | {GATE: w[GATE].half()}))
for _name, _value in {
    GATE: math.nan,
    NORM: math.inf,
    "lm_head.weight": -math.inf,
    "model.text_model.embed_tokens.weight": math.nan,
    FC1: math.inf,
    "model.connector.modality_projection.proj.weight": math.nan,
}.items():
    case(f"{_name} has {_value}", "has values in .* that are not finite", _spoilt(_name, _value))

# Templates ----------------------------------------------------------------------------------------------------------

_JINJA = "chat_template.jinja"
case("a template that never ends", WARNS, content(_JINJA, ENDLESS_TEMPLATE))
case(
    "a template that never ends, in JSON", WARNS, stated("chat_template.json", "chat_template", value=ENDLESS_TEMPLATE)
)
case(
    "a template that never ends, of the tokenizer",
    WARNS,
    stated("tokenizer_config.json", "chat_template", value=ENDLESS_TEMPLATE),
)
case(
    "a template that opens files",
    WARNS,
    content(_JINJA, "{{ cycler.__init__.__globals__.os.system('touch EXECUTED') }}"),
)
case("a template that is binary", WARNS, content(_JINJA, bytes(range(256))))
case("a template with half a character", WARNS, content("chat_template.json", '{"chat_template": "\\ud800"}'))
case("the published template", LOADS, content(_JINJA, KNOWN_TEMPLATE))
case("the published template, in JSON", LOADS, stated("chat_template.json", "chat_template", value=KNOWN_TEMPLATE))
case("the published template and a space", WARNS, content(_JINJA, KNOWN_TEMPLATE + " "))
case(
    "templates in a list",
    LOADS,
    stated("tokenizer_config.json", "chat_template", value=[{"name": "a", "template": "b"}]),
)
case("a template that is a pipe", "is a device, pipe", fifo(_JINJA))
case("a template that is /dev/zero", "is a device, pipe", link(_JINJA, "/dev/zero"))
case("a template of 5 GiB", "v2l reads at most", sparse(_JINJA))
case("a template that is a folder", "cannot read", subfolder(_JINJA))

# Tokenizers ---------------------------------------------------------------------------------------------------------


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def cut_by(*parts: Any) -> Change:
    return stated(TOKENIZER, "pre_tokenizer", value={"type": "Sequence", "pretokenizers": [*parts]})


def more_tokens(*tokens: Any) -> Change:
    def change(folder: Path) -> None:
        whole = json.loads((folder / TOKENIZER).read_text())
        whole["added_tokens"] += tokens
        (folder / TOKENIZER).write_text(json.dumps(whole))

    return change


def added(text: str, id: int = 440) -> dict[str, Any]:
    return {"id": id, "content": text, "special": True} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )


_UNKNOWN = "an unknown pre_tokenizer"
case("an expression that never ends", _UNKNOWN, cut_by(split("(a+)+$"), BYTE_LEVEL))
case("an expression that never ends, everywhere", _UNKNOWN, cut_by(split(r"((\s|\S)+)+\d\d\d$")))
case("an expression that panics", _UNKNOWN, cut_by(split(r"(?:(?:a?){9999}){9999}")))
case("an expression that is none", _UNKNOWN, cut_by(split("((((")))
case("a pre_tokenizer of a strange type", _UNKNOWN, cut_by({"type": "\x1b[2J"}))
case("pre_tokenizers in one another", _UNKNOWN, cut_by({"type": "Sequence", "pretokenizers": [split("(a+)+$")]}))
case("no pre_tokenizer", _UNKNOWN, stated(TOKENIZER, "pre_tokenizer", value=None))
case("ten thousand pre_tokenizers", "too many", cut_by(*[{"type": "ByteLevel"}] * 10_000))
case(
    "a normalizer that grows",
    "has a normalizer",
    stated(TOKENIZER, "normalizer", value={"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": "x" * 10**6}),
)
case("a decoder of another kind", "a decoder that", stated(TOKENIZER, "decoder", value={"type": "Replace"}))
case(
    "a post-processor that panics",
    LOADS,
    stated(
        TOKENIZER,
        "post_processor",
        value={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "nowhere", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        },
    ),
)
case("truncation to a token", LOADS, stated(TOKENIZER, "truncation", value={"max_length": 1, "stride": 0}))
case("padding to a gigabyte", LOADS, stated(TOKENIZER, "padding", value={"strategy": {"Fixed": 2**30}}))
for _name, _value in {
    "continuing_subword_prefix": "#" * 50,
    "end_of_word_suffix": "</w>",
    "dropout": 1.0,
    "byte_fallback": True,
    "fuse_unk": True,
}.items():
    case(f"BPE with {_name}", f"the setting {_name}", stated(TOKENIZER, "model", _name, value=_value))
case(
    "an unknown token that is unknown",
    "not in its vocabulary",
    stated(TOKENIZER, "model", "unk_token", value="nowhere"),
)
case("another kind of tokenizer", "not BPE", stated(TOKENIZER, "model", "type", value="Unigram"))
case("no vocabulary", "cannot read|does not have", stated(TOKENIZER, "model", "vocab", value={}))
case("a vocabulary of words", "cannot read", stated(TOKENIZER, "model", "vocab", "!", value="zero"))
case("merges of nothing", "cannot read", stated(TOKENIZER, "model", "merges", 0, value=["nowhere", "never"]))
case("merges of three", "cannot read", stated(TOKENIZER, "model", "merges", 0, value=["a", "b", "c"]))
case(
    "an id of billions",
    "the id 4,294,967,295 and the model 448",
    stated(TOKENIZER, "model", "vocab", "zz", value=2**32 - 1),
)
case("an id too large for the library", "cannot read", stated(TOKENIZER, "model", "vocab", "zz", value=2**40))
case("a negative id", "cannot read", stated(TOKENIZER, "model", "vocab", "zz", value=-1))
case(
    "half a million words",
    "the id 500,447 and the model 448",
    lambda folder: stated(
        TOKENIZER, "model", "vocab", value={f"x{n}": 448 + n for n in range(500_000)} | vocabulary(folder)
    )(folder),
)
case("a token of a megabyte", "not of 1 to 64 characters", more_tokens(added("x" * 10**6)))
case("a token of nothing", "not of 1 to 64 characters", more_tokens(added("")))
case("a token that is no object", "not of 1 to 64 characters", more_tokens(5))
case("five thousand added tokens", "more than 2,048", more_tokens(*(added(f"<{n}>", n) for n in range(5000))))
case(
    "two thousand long added tokens",
    "the id 2,.* and the model 448",
    more_tokens(*(added(chr(0x4E00 + n) * 60 + str(n), n) for n in range(2000))),
)
case("a token with half a character", "cannot read", content(TOKENIZER, '{"added_tokens": "\\ud800'))
case("a tokenizer of 17 MB", "v2l reads at most", stated(TOKENIZER, "x", value="x" * (17 << 20)))
case("a tokenizer of 15 MB", LOADS, stated(TOKENIZER, "x", value=[[]] * 3_900_000))
case(
    "a tokenizer that knows no frames",
    "does not have|not knowing|disagree",
    of_bytes(TOKENIZER, lambda d: d.replace(b"<image>", b"<imago>")),
)
case("a tokenizer that is a folder", "cannot read", subfolder(TOKENIZER))
case("no tokenizer", LOADS, removed(TOKENIZER))


# Hypernetworks ------------------------------------------------------------------------------------------------------


def metadata(*keys: str, value: Any) -> Change:
    """Change a value in the metadata of the hypernetwork, with a valid sha256."""

    def change(folder: Path) -> None:
        data = (folder / HYPERNETWORK).read_bytes()
        length = int.from_bytes(data[:8], "little")
        whole = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["v2l"])
        del whole["sha256"]
        part = whole
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        weights = load(data)
        with contextlib.suppress(ValueError):
            whole = {**whole, "sha256": content_sha256(whole, to_bytes(weights))}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        (folder / HYPERNETWORK).write_bytes(save(weights, {"v2l": text}))

    return change


_UNSOUND = "is not a sound v2l hypernetwork"
for _name, _values in {
    "fps": (1e308, 0.0, 1e-320, math.nan, math.inf, -1.0, 1),
    "frames": (10**18, 0, 10**309, -1, 1.5),
    "window_frames": (0, 10**12),
    "windows": (0, 10**15),
    "segments": (0, 10**15),
    "resolution": (0, 10**9),
    "prompt": ("\ud800", "x" * 10**5, 5),
}.items():
    for _value in _values:
        case(f"trained with {_name} = {str(_value)[:20]!a}", _UNSOUND, metadata("trained_with", _name, value=_value))
for _name, _value in {
    "lora_alpha": math.nan,
    "rank": 10**6,
    "num_heads": 0,
    "num_kv_heads": 3,
    "num_blocks": 10**6,
    "num_layers": 2**18,
    "hidden_size": 10**18,
    "latent_size": 2**17,
    "head_dim": -1,
}.items():
    case(f"a hypernetwork with {_name} = {_value}", _UNSOUND, metadata("config", _name, value=_value))
case("a hypernetwork with lora_alpha = 1e308", _UNSOUND, metadata("config", "lora_alpha", value=1e308))
case("a hypernetwork with 10^309 layers", _UNSOUND, metadata("config", "num_layers", value=10**309))
case("a hypernetwork of a strange fingerprint", _UNSOUND, metadata("base_fingerprint", value="\x1b[2J"))
case("a hypernetwork of another version", _UNSOUND, metadata("version", value=10**400))
case("a hypernetwork of a deep version", _UNSOUND, metadata("version", value=json.loads("[" * 500 + "]" * 500)))
case("a hypernetwork that is a pipe", "is a device, pipe", fifo(HYPERNETWORK))
case("a hypernetwork that is /dev/zero", "is a device, pipe", link(HYPERNETWORK, "/dev/zero"))
case("a hypernetwork of 5 GiB", _UNSOUND, sparse(HYPERNETWORK))
case("a hypernetwork of 4 GiB", _UNSOUND, sparse(HYPERNETWORK, 4 << 30))
case(
    "a hypernetwork of 3 GiB with a header",
    _UNSOUND,
    in_turn(content(HYPERNETWORK, b""), lambda folder: os.truncate(folder / HYPERNETWORK, 3 << 30)),
)
case("a hypernetwork that is a folder", "cannot read", subfolder(HYPERNETWORK))
case("a hypernetwork that is a pickle", _UNSOUND, pickled(HYPERNETWORK))

FAST = (
    "code of its own",
    "an adapter for peft",
    "a shard that is a pickle",
    "a shard called '../model.safetensors'",
    "config.json is a pipe",
    "config.json is /dev/zero",
    "generation_config.json has 5 GiB",
    "tokenizer_config.json is deep",
    "a template that never ends",
    "an expression that never ends",
    "BPE with continuing_subword_prefix",
    "an id of billions",
    "a terabyte's inner width",
    "more layers than stored",
    "vision patch_size = 0",
    "rms_norm_eps is NaN",
    "rope_theta is 1e999",
    "eos_token_id = '10000000000000000000'",
    "a tensor too many",
    f"{GATE} has nan",
    "a snapshot of the cache",
    "trained with fps = '1e+308'",
)
"""Cases that the suite tries at every run."""
ON_COMMANDS = ("a shard that is a pickle", "config.json is a pipe", "more layers than stored")
"""Cases that every command gets."""
