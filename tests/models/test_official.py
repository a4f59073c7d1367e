"""Reproduce the numbers of the official Frames2LoRA code, computed in float32 on a CPU, to 1e-5.

tests/data/official-a holds a small frozen model, a checkpoint exactly as the official code saves it, inputs and what
it computed from them (transformers 4.51.3, peft 0.17.1).
"""

import pytest
import torch
from places import DATA
from safetensors.torch import load_file

import v2l
from v2l.adapters.adapter import Adapter
from v2l.adapters.description import BaseModel, Block, Description, HypernetworkInfo, Segment
from v2l.io.files import FileIdentity
from v2l.models.smolvlm import Window
from v2l.video.sampling import Reading

OFFICIAL = DATA / "official-a"


@pytest.fixture(scope="module")
def expected():
    return load_file(OFFICIAL / "expected.safetensors")


@pytest.fixture(scope="module")
def vlm():
    return v2l.load_vlm(OFFICIAL / "base")


@pytest.fixture(scope="module")
def hypernetwork():
    return v2l.load_hypernetwork(OFFICIAL / "hypernet.pt")


@pytest.fixture(scope="module")
def layer_inputs(vlm, expected):
    images = vlm.encode_images(expected["pixel_values"][0])
    return torch.cat(
        [torch.cat(list(pieces)) for pieces in vlm.read_layers([Window(4, expected["input_ids"][0], images)])]
    )


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Assert that all values are within 1e-5 of the largest expected value."""
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max()) < 1e-5


def stacked(factors, hypernetwork):
    """Return the factors in the form of the official code: (B, L, R, d), before `lora_alpha` is applied."""
    a, b = (torch.stack(part, dim=1) for part in zip(*factors, strict=True))
    return a, b / hypernetwork.config.lora_alpha


def as_adapter(a, b, vlm, hypernetwork, segments=1) -> Adapter:
    """Build an adapter from factors (L, R, d), with any consistent description."""
    rank = hypernetwork.config.rank
    segment = Segment(FileIdentity("a.mp4", 1, "0" * 64), 0.0, 1.0, (0.0,), 32, 32, (1,), 12, Reading(), "", "")
    description = Description(
        BaseModel(vlm.id, None, vlm.fingerprint),
        HypernetworkInfo(hypernetwork.provenance.id, hypernetwork.provenance.sha256, 1, 1),
        (segment,) * segments,
        (Block(rank, 1, 0.0),) * segments,
        rank,
        "0",
    )
    return Adapter(a, b, description)


@torch.no_grad()
def test_layer_inputs(layer_inputs, expected):
    assert close(layer_inputs[None], expected["ctx_features"])


@torch.no_grad()
def test_factors_and_the_learned_bias(hypernetwork, expected):
    a, b = stacked(hypernetwork.generate(expected["ctx_features"], expected["attention_mask"]), hypernetwork)
    assert close(a, expected["combined.down_proj.A"])
    assert close(b, expected["combined.down_proj.B"])
    rank = hypernetwork.config.rank
    assert close(a[:, :, :rank], expected["generated_only.down_proj.A"])
    assert close(b[:, :, :rank], expected["generated_only.down_proj.B"])


@pytest.mark.parametrize("merged", [False, True])
@torch.no_grad()
def test_logits_and_greedy_answer(vlm, hypernetwork, layer_inputs, expected, merged):
    a, b = zip(*hypernetwork.generate(layer_inputs[None]), strict=True)
    adapter = as_adapter(torch.cat(a), torch.cat(b), vlm, hypernetwork)
    base = vlm.logits(expected["prompt_ids"])
    assert close(base, expected["base_logits"])
    with v2l.applied(vlm, adapter, merged=merged):
        assert close(vlm.logits(expected["prompt_ids"]), expected["logits"])
        prompt = vlm.embed(expected["prompt_ids"][0])
        answer = [ids[0] for ids in vlm.greedy([prompt], max_new_tokens=12)]
    assert answer == expected["generated"][0, len(prompt) :].tolist()
    assert torch.equal(vlm.logits(expected["prompt_ids"]), base)


@torch.no_grad()
def test_two_segments(vlm, hypernetwork, expected):
    images = vlm.encode_images(expected["pixel_values"][0])
    halves = []
    for frames in ((0, 1), (2, 3)):
        shown = [token for frame in frames for token in (10 + frame % 8, 3, 4, *[5] * 4, 3)]
        ids = torch.tensor([1, 7, 8, *shown, 9, 30, 31, 32, 6])
        factors = hypernetwork.generate(vlm.read_layers([Window(2, ids, images[list(frames)])]))
        halves.append(as_adapter(*(torch.cat(part) for part in zip(*factors, strict=True)), vlm, hypernetwork))
    both = v2l.compose(halves)
    assert close(both.a[None], expected["combined_two.down_proj.A"])
    assert close(both.b[None] / hypernetwork.config.lora_alpha, expected["combined_two.down_proj.B"])
    with v2l.applied(vlm, both):
        assert close(vlm.logits(expected["prompt_ids"]), expected["logits_two_segments"])


def test_the_checkpoint_states_its_multiplier(hypernetwork):
    assert hypernetwork.config.lora_alpha == 16.0
    assert hypernetwork.provenance.base_model == "fixture/smolvlm-a"
