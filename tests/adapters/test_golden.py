"""The adapter format, version 1, byte for byte: every file that was ever committed here stays readable.

`python tests/adapters/test_golden.py` writes the files anew. A difference in git means that the format has changed, and
then the version must change, too.
"""

import json
from pathlib import Path

import pytest
import torch
from places import DATA

from v2l.adapters.adapter import Adapter
from v2l.adapters.description import BaseModel, Block, Description, HypernetworkInfo, Segment
from v2l.io.files import FileIdentity
from v2l.video.sampling import Reading

GOLDEN = DATA / "golden"


def segment(number: int, **changes: object) -> Segment:
    values = {
        "source": FileIdentity("lecture \N{SNOWMAN}.mp4", 1234567, "ab" * 32),
        "start": 30.0 * number,
        "end": 30.0 * number + 30,
        "timestamps": (30.0 * number + 0.5, 30.0 * number + 14.25, 30.0 * number + 29.033333),
        "width": 1920,
        "height": 1080,
        "windows": (2, 1),
        "window_frames": 2,
        "reading": Reading(3, 1.0, 30.0 * number, 30.0 * number + 30, 384),
        "prompt": "Internalize this video for later captioning.",
        "decoder": "opencv 5.0.0",
    }
    return Segment(**values | changes)


def description(segments: tuple[Segment, ...], blocks: tuple[Block, ...], bias_rank: int) -> Description:
    base = BaseModel("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "0123456789abcdef" * 2 + "01234567", "cd" * 32)
    return Description(base, HypernetworkInfo("frames2lora", "ef" * 32, 1, 1), segments, blocks, bias_rank, "0.1.0")


def factors(rank: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers whose values are all exact in bfloat16."""
    a = torch.arange(2 * rank * 6).view(2, rank, 6) / 8 - 3
    b = torch.arange(2 * rank * 4).view(2, rank, 4) / -16 + 1
    return a.to(dtype), b.to(dtype)


def adapters() -> dict[str, Adapter]:
    single = description((segment(0),), (Block(2, 1, 0.0),), 2)
    whole = segment(0, reading=Reading(3, 1.0, None, None, 384), windows=(3,))
    reduced = description((segment(0), segment(1), segment(2)), (Block(3, 2, 0.0625), Block(2, 1, 0.0)), 1)
    return {
        "v1-single": Adapter(*factors(4, torch.float32), single),
        "v1-whole-bfloat16": Adapter(*factors(3, torch.bfloat16), description((whole,), (Block(2, 1, 0.0),), 1)),
        "v1-composed": Adapter(*factors(6, torch.float32), reduced),
    }


@pytest.mark.parametrize("name", sorted(adapters()))
def test_the_bytes_are_pinned(name, tmp_path):
    adapters()[name].save(tmp_path / "now")
    assert (tmp_path / "now").read_bytes() == golden(name).read_bytes()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda path: path.name)
def test_every_golden_file_is_readable(path, tmp_path):
    found = Adapter.load(path)
    known = adapters()[path.name.removesuffix(".v2l.safetensors")]
    assert found.description == known.description
    assert torch.equal(found.a, known.a) and torch.equal(found.b, known.b)
    found.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_layout_is_what_the_documents_say():
    """Read the file without v2l and safetensors."""
    data = golden("v1-whole-bfloat16").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert list(header["__metadata__"]) == ["v2l"]
    text = header.pop("__metadata__")["v2l"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    stated = json.loads(text)
    assert (stated["format"], stated["version"], stated["dtype"]) == ("v2l-adapter", 1, "bfloat16")
    name = "base_model.model.model.text_model.layers.{}.mlp.down_proj.lora_{}.weight"
    assert {key: (value["dtype"], value["shape"]) for key, value in header.items()} == {
        name.format(layer, factor): ("BF16", shape)
        for layer in (0, 1)
        for factor, shape in (("A", [3, 6]), ("B", [4, 3]))
    }
    start, end = header[name.format(1, "A")]["data_offsets"]
    first = data[8 + length + start : 8 + length + end][:4]
    # -3 + 18 / 8 and -3 + 19 / 8, the upper halves of their float32
    assert first == b"\x40\xbf\x20\xbf"


def golden(name: str) -> Path:
    return GOLDEN / f"{name}.v2l.safetensors"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, adapter in adapters().items():
        adapter.save(golden(name))
