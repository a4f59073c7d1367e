"""Copies of models in half precision: the same model as far as adapters are concerned, in half the bytes."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import v2l
from v2l.errors import V2LError
from v2l.models.presets import find_model
from v2l.models.rounded_copy import is_sound, write_copy


@pytest.fixture(scope="module")
def sharded(model_folder, tmp_path_factory):
    """The small model in two files and an index, with a buffer of integers that is not loaded."""
    folder = tmp_path_factory.mktemp("sharded")
    for name in ("config.json", "preprocessor_config.json", "generation_config.json", "tokenizer.json"):
        (folder / name).write_bytes((model_folder / name).read_bytes())
    tensors = load_file(model_folder / "model.safetensors")
    tensors["model.vision_model.embeddings.position_ids"] = torch.arange(7)
    halves = sorted(tensors)[::2], sorted(tensors)[1::2]
    places = {}
    for number, names in enumerate(halves):
        save_file({name: tensors[name] for name in names}, folder / f"model-{number}.safetensors")
        places |= dict.fromkeys(names, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_a_copy_is_the_model_rounded(model_folder, sharded, adapters, tmp_path, kind, dtype):
    model = find_model(model_folder if kind == "single" else sharded)
    names = [path.name for path in model.path.iterdir()]
    copy = write_copy(model, names, tmp_path / "copy", dtype)
    assert (
        {path.name for path in (tmp_path / "copy").iterdir()}
        == copy.files.keys()
        == {*names} - {"hypernetwork.safetensors"}
    )
    stored = find_model(tmp_path / "copy")
    for name, tensor in model.tensors.items():
        tensors = load_file(tensor.file)[name], load_file(stored.tensors[name].file)[name]
        expected = tensors[0] if tensors[0].dtype == torch.int64 else tensors[0].to(getattr(torch, dtype))
        assert expected.dtype == tensors[1].dtype and torch.equal(expected, tensors[1])
    loaded = [v2l.load_vlm(each, "cpu", getattr(torch, dtype)) for each in (model, stored)]
    ids = torch.arange(20)
    assert torch.equal(loaded[0].logits(ids), loaded[1].logits(ids))

    # identity: of the published model where `pull` recorded the copy, of its own elsewhere
    assert copy.fingerprint == model.fingerprint != stored.fingerprint == copy.rounded
    recorded = dataclasses.replace(stored, copy=copy)
    assert recorded.fingerprint == model.fingerprint
    assert isinstance(v2l.ask(adapters[0], "what?", v2l.load_vlm(recorded, "cpu"), max_new_tokens=2), str)
    with pytest.raises(V2LError, match="made for"):
        v2l.ask(adapters[0], "what?", loaded[1], max_new_tokens=2)
    assert is_sound(copy, stored.path)
    file = stored.tensors["model.text_model.norm.weight"]
    with open(file.file, "r+b") as changed:
        changed.seek(file.start)
        changed.write(b"!")
    assert not is_sound(copy, stored.path)
    with pytest.raises(V2LError, match="has changed since v2l pull stored it"):
        _ = dataclasses.replace(find_model(stored.path), copy=copy).fingerprint


def test_a_copy_holds_finite_values(model_folder, tmp_path):
    tensors = load_file(model_folder / "model.safetensors")
    tensors["model.text_model.norm.weight"][3] = 1e5
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    model = find_model(tmp_path)
    with pytest.raises(V2LError, match="has values that are not finite as float16"):
        write_copy(model, ["config.json"], tmp_path / "float16", "float16")
    assert write_copy(model, ["config.json"], tmp_path / "bfloat16", "bfloat16").dtype == "bfloat16"
