"""The adapter file: its content, byte for byte, and the files that are refused."""

import dataclasses
import json
import math
import os
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

import v2l
from v2l.adapters.adapter import Adapter
from v2l.adapters.description import BaseModel, Block, Description, HypernetworkInfo, Segment
from v2l.io.files import FileIdentity
from v2l.io.safetensors_file import canonical_json, content_sha256
from v2l.io.tensors import to_bytes
from v2l.video.sampling import Reading

SEGMENT = Segment(
    source=FileIdentity("lecture.mp4", 1234, "ab" * 32),
    start=0.0,
    end=2.0,
    timestamps=(0.0, 1.0),
    width=64,
    height=48,
    windows=(2,),
    window_frames=12,
    reading=Reading(frames=8, fps=1.0, start=None, end=None, resolution=32),
    prompt="Internalize this video for later captioning.",
    decoder="opencv 5.0.0",
)
DESCRIPTION = Description(
    base_model=BaseModel("test/model", None, "cd" * 32),
    hypernetwork=HypernetworkInfo("test", "ef" * 32, 1, 1),
    segments=(SEGMENT,),
    blocks=(Block(1, 1, 0.0),),
    bias_rank=1,
    v2l_version="0.1.0",
)


def tiny_adapter(dtype: torch.dtype = torch.float32) -> Adapter:
    """Two layers, rank 1 + 1, 3 in, 2 out."""
    a = torch.arange(12, dtype=torch.float32).view(2, 2, 3)
    b = torch.arange(8, dtype=torch.float32).view(2, 2, 2) / 8
    return Adapter(a.to(dtype), b.to(dtype), DESCRIPTION)


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "lecture.v2l.safetensors"
    tiny_adapter().save(path)
    return path


def rewritten(path: Path, change) -> Path:
    """Rewrite the file after `change(tensors, metadata)` with a valid sha256: only the change can be refused."""
    tensors = load_file(path)
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    metadata = json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]["v2l"])
    metadata.pop("sha256")
    change(tensors, metadata)
    sealed = {**metadata, "sha256": content_sha256(metadata, to_bytes(tensors))}
    path.write_bytes(save(tensors, {"v2l": canonical_json(sealed)}))
    return path


def refused(path: Path, message: str = "not a sound v2l adapter") -> str:
    with pytest.raises(v2l.V2LError, match=message) as caught:
        Adapter.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip(saved):
    for dtype in (torch.float32, torch.bfloat16):
        adapter = tiny_adapter(dtype)
        adapter.save(saved)
        again = Adapter.load(saved)
        assert torch.equal(again.a, adapter.a)
        assert torch.equal(again.b, adapter.b)
        assert again.a.dtype == again.b.dtype == dtype
        assert again.description == adapter.description
        assert again.sha256() == adapter.sha256()


def test_the_bytes_of_version_1(saved):
    """PEFT's tensor names and order, B transposed, one metadata key."""
    data = saved.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    assert list(header.pop("__metadata__")) == ["v2l"]
    name = "base_model.model.model.text_model.layers.{}.mlp.down_proj.lora_{}.weight"
    assert header == {
        name.format(0, "A"): {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        name.format(0, "B"): {"dtype": "F32", "shape": [2, 2], "data_offsets": [24, 40]},
        name.format(1, "A"): {"dtype": "F32", "shape": [2, 3], "data_offsets": [40, 64]},
        name.format(1, "B"): {"dtype": "F32", "shape": [2, 2], "data_offsets": [64, 80]},
    }
    values = [0, 1, 2, 3, 4, 5, 0, 0.25, 0.125, 0.375, 6, 7, 8, 9, 10, 11, 0.5, 0.75, 0.625, 0.875]
    assert data[8 + length :] == struct.pack("<20f", *values)


def test_the_metadata_of_version_1(saved):
    length = struct.unpack("<Q", saved.read_bytes()[:8])[0]
    metadata = json.loads(json.loads(saved.read_bytes()[8 : 8 + length])["__metadata__"]["v2l"])
    assert metadata == {
        "format": "v2l-adapter",
        "version": 1,
        "dtype": "float32",
        "base_model": {"id": "test/model", "revision": None, "fingerprint": "cd" * 32},
        "hypernetwork": {"id": "test", "sha256": "ef" * 32, "trained_windows": 1, "trained_segments": 1},
        "segments": [
            {
                "source": {"name": "lecture.mp4", "size": 1234, "sha256": "ab" * 32},
                "start": 0.0,
                "end": 2.0,
                "timestamps": [0.0, 1.0],
                "width": 64,
                "height": 48,
                "windows": [2],
                "window_frames": 12,
                "reading": {"frames": 8, "fps": 1.0, "start": None, "end": None, "resolution": 32},
                "prompt": "Internalize this video for later captioning.",
                "decoder": "opencv 5.0.0",
            }
        ],
        "blocks": [{"rank": 1, "segments": 1, "relative_error": 0.0}],
        "bias_rank": 1,
        "v2l_version": "0.1.0",
        "sha256": tiny_adapter().sha256(),
    }


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    Adapter.load(saved).save(tmp_path / "again.v2l.safetensors")
    assert (tmp_path / "again.v2l.safetensors").read_bytes() == saved.read_bytes()


def test_saving_over_a_loaded_file_keeps_what_was_loaded(saved):
    adapter = Adapter.load(saved)
    before = adapter.a.clone()
    tiny_adapter(torch.bfloat16).save(saved)
    assert torch.equal(adapter.a, before)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(v2l.V2LError, match="cannot write"):
        tiny_adapter().save(tmp_path / "no" / "where.v2l.safetensors")


def test_every_truncation_is_refused(saved):
    data = saved.read_bytes()
    for length in range(0, len(data), 7):
        saved.write_bytes(data[:length])
        refused(saved)


def test_every_flipped_bit_is_refused(saved):
    data = saved.read_bytes()
    flip = random.Random(0)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << flip.randrange(8)
        saved.write_bytes(changed)
        refused(saved)


def _layer(tensors, layer, factor):
    return f"base_model.model.model.text_model.layers.{layer}.mlp.down_proj.lora_{factor}.weight"


def _set(*path):
    *way, name, value = path

    def change(_tensors, metadata):
        place = metadata
        for step in way:
            place = place[step]
        place[name] = value

    return change


def _tensor(layer, factor, make):
    def change(tensors, _metadata):
        name = _layer(tensors, layer, factor)
        tensors[name] = make(tensors[name])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format", "other"), "states .*other"),
        (_set("version", 3), "this v2l reads v2l-adapter version 1"),
        (_set("version", True), "states .*True"),
        (_set("surprise", 1), "exactly"),
        (_set("segments", 0, "surprise", 1), "exactly"),
        (_set("bias_rank", "1"), "type int"),
        (_set("bias_rank", -1), "whole number from 0"),
        (_set("bias_rank", 10**309), "whole number from 0"),
        (_set("segments", 0, "source", "size", 2**63), "whole number from 0"),
        (_set("segments", 0, "windows", [10**309]), "whole number from 0"),
        (_set("segments", 0, "reading", "frames", 10**309), "whole number from 0"),
        (_set("segments", 0, "end", 10**309), "type float"),
        (_set("bias_rank", 2), "rank 3"),
        (_set("blocks", []), "agree"),
        (_set("blocks", 0, "rank", 0), "empty block"),
        (_set("blocks", [{"rank": 1, "segments": 2, "relative_error": 0.0}]), "agree"),
        (_set("segments", 0, "windows", [1]), "windows"),
        (_set("segments", 0, "windows", [2, 0]), "windows"),
        (_set("segments", 0, "prompt", "x" * 5000), "longer than"),
        (_set("segments", 0, "start", -1.0), "finite number"),
        (_set("segments", 0, "reading", "fps", 1), "type float"),
        (_set("dtype", "bfloat16"), "bfloat16"),
        (_tensor(0, "A", lambda t: t[:1]), "rank 2"),
        (_tensor(0, "A", lambda t: t[:, :2].contiguous()), "rank 2"),
        (_tensor(0, "B", lambda t: t.flatten()), "rank 2"),
        (_tensor(1, "B", lambda t: t * float("inf")), "not finite"),
        (_tensor(1, "B", lambda t: t * float("nan")), "not finite"),
        (_tensor(1, "B", lambda t: t.bfloat16()), "not all float32"),
        (_tensor(1, "B", lambda t: t.half()), "not all float32"),
        (lambda tensors, _: tensors.pop(_layer(tensors, 1, "B")), "one pair"),
        (lambda tensors, _: tensors.update(more=torch.zeros(1)), "one pair"),
    ],
)
def test_what_version_1_does_not_say_is_refused(saved, change, message):
    refused(rewritten(saved, change), message)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_infinities_and_nan_are_found_in_the_bytes(dtype):
    def is_finite(numbers):
        return to_bytes({"x": numbers})["x"].is_finite()

    limits = torch.finfo(dtype)
    numbers = torch.tensor([0.0, -0.0, 1.0, limits.tiny, limits.min, limits.max], dtype=dtype)
    assert is_finite(numbers) and is_finite(numbers[:0])
    for number in (math.inf, -math.inf, math.nan, math.copysign(math.nan, -1)):
        assert not is_finite(torch.cat([numbers, torch.tensor([number], dtype=dtype)]))


def test_foreign_number_types_are_refused(saved):
    tensors = {name: tensor.double() for name, tensor in load_file(saved).items()}
    saved.write_bytes(save(tensors, {"v2l": "{}"}))
    refused(saved, "not float32, bfloat16 or float16")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 900_000) + b"[" * 900_000,
        struct.pack("<Q", 2_000_000) + b" " * 2_000_000,
        struct.pack("<Q", 99_999_999),
        b"PK\x03\x04" + b"\0" * 100,
    ],
    ids=range(9),
)
def test_headers_that_are_none(tmp_path, header):
    path = tmp_path / "x.v2l.safetensors"
    path.write_bytes(header)
    refused(path, "not a sound v2l adapter")


def test_a_second_spelling_of_the_metadata_is_refused(saved):
    tensors = load_file(saved)
    metadata = tiny_adapter()._metadata()
    sealed = {**metadata, "sha256": content_sha256(metadata, to_bytes(tensors))}
    for spelling in (json.dumps(sealed), canonical_json(sealed).replace('"version":1', '"version":1,"version":1')):
        saved.write_bytes(save(tensors, {"v2l": spelling}))
        refused(saved, "canonical")
    saved.write_bytes(save(tensors, {"v2l": canonical_json(sealed), "more": "x"}))
    refused(saved, "one string under the key")


def test_what_is_no_file(tmp_path):
    refused(tmp_path / "missing.v2l.safetensors", "cannot read")
    refused(tmp_path, "cannot read")
    os.mkfifo(tmp_path / "fifo.v2l.safetensors")
    refused(tmp_path / "fifo.v2l.safetensors", "device, pipe or socket")


def test_hostile_text_stays_on_one_line_and_inert(saved):
    def rename(_tensors, metadata):
        metadata["format"] = "\x1b[31mred\nnext"

    message = refused(rewritten(saved, rename), "states")
    assert message.isprintable()


def test_composed_descriptions_round_trip(saved):
    both = dataclasses.replace(DESCRIPTION, segments=(SEGMENT, SEGMENT), blocks=(Block(3, 2, 0.25),))
    Adapter(torch.ones(2, 4, 3), torch.ones(2, 4, 2), both).save(saved)
    assert Adapter.load(saved).description == both


@pytest.mark.parametrize("factor", ["a", "b"])
def test_factors_that_are_not_finite_are_not_written(tmp_path, factor):
    adapter, path = tiny_adapter(), tmp_path / "x.v2l.safetensors"
    broken = dataclasses.replace(adapter, **{factor: getattr(adapter, factor) * float("inf")})
    with pytest.raises(v2l.V2LError, match="not all finite"):
        broken.save(path)
    assert not path.exists()


def test_the_largest_rank_is_512(tmp_path):
    path = tmp_path / "x.v2l.safetensors"
    for rank in (511, 512):
        description = dataclasses.replace(DESCRIPTION, blocks=(Block(rank, 1, 0.0),))
        adapter = Adapter(torch.ones(1, rank + 1, 1), torch.ones(1, rank + 1, 1), description)
        if rank == 511:
            adapter.save(path)
            assert Adapter.load(path).rank == 512
        else:
            with pytest.raises(v2l.V2LError, match="rank 513"):
                adapter.save(path)
