"""Adapters are applied inside the block and removed after it, with the same change on every path."""

import contextlib
import dataclasses
import threading

import pytest
import small
import torch

import v2l
from v2l.adapters.lora import attached, merging_is_faster
from v2l.models.language_model import causal
from v2l.models.processor import question_text

QUESTION = question_text("what is on the whiteboard?")


@pytest.fixture(scope="module")
def ids(vlm):
    return vlm.tokenize(QUESTION)


@pytest.mark.parametrize("merged", [False, True])
def test_the_model_is_bit_identical_before_and_after(vlm, adapters, ids, merged):
    before = vlm.logits(ids)
    weights = [layer.down_proj for layer in vlm.language_model.layers]
    copies = [weight.clone() for weight in weights]
    with v2l.applied(vlm, adapters[0], merged=merged):
        assert not torch.equal(vlm.logits(ids), before)
    assert torch.equal(vlm.logits(ids), before)
    with pytest.raises(ZeroDivisionError), v2l.applied(vlm, adapters[0], merged=merged):
        1 / 0  # noqa: B018
    assert torch.equal(vlm.logits(ids), before)
    for layer, weight, copy in zip(vlm.language_model.layers, weights, copies, strict=True):
        assert layer.down_proj is weight
        assert torch.equal(weight, copy)
    assert vlm.language_model.adapter is None


def test_factors_inside_of_others_leave_them_attached(vlm, adapters):
    model, (outer, inner) = vlm.language_model, ([(each.a, each.b)] for each in adapters[:2])
    with attached(model, outer):
        with attached(model, inner):
            assert model.adapter is inner
        assert model.adapter is outer
    assert model.adapter is None


def test_merged_is_the_side_path(vlm, adapters, ids):
    with v2l.applied(vlm, adapters[0]):
        side = vlm.logits(ids)
    with v2l.applied(vlm, adapters[0], merged=True):
        merged = vlm.logits(ids)
    assert (side - merged).abs().max() < 1e-5 * side.abs().max()


def test_the_change_is_x_a_b(vlm, adapters):
    model, layer = vlm.language_model, vlm.language_model.layers[1]
    random = torch.Generator().manual_seed(0)
    inner, x = (torch.randn(5, width, generator=random) for width in layer.down_proj.shape)
    plain = x + inner @ layer.down_proj
    a, b = adapters[0].a[1].float(), adapters[0].b[1].float()
    for strength in (1.0, 0.5, 0.0):
        expected = plain + strength * (inner @ a.T @ b)
        for merged in (False, True):
            with v2l.applied(vlm, adapters[0], strength=strength, merged=merged):
                found = layer.add_mlp(x, inner, model.adapter and model.adapter[1])
                assert torch.allclose(found, expected, atol=1e-5)


def test_each_row_of_a_batch_wears_its_own(vlm, adapters, ids):
    """Adapters of different ranks in one batch: a composed one and single ones."""
    worn = [adapters[0], v2l.compose(adapters), adapters[1]]
    with v2l.applied(vlm, worn):
        rows = vlm.logits(ids.expand(3, -1))
    for row, adapter in zip(rows, worn, strict=True):
        with v2l.applied(vlm, adapter):
            assert torch.allclose(row, vlm.logits(ids), atol=1e-5)


def test_bfloat16_adapters_and_models(model_folder, vlm, adapters, ids):
    wide = dataclasses.replace(adapters[0], a=adapters[0].a.float(), b=adapters[0].b.float())
    with v2l.applied(vlm, adapters[0]):
        exact = vlm.logits(ids)
    half = v2l.load_vlm(model_folder, dtype=torch.bfloat16)
    assert (merging_is_faster(vlm), merging_is_faster(half)) == (vlm.device.type == "cpu", False)
    for adapter in (adapters[0], wide):
        for merged in (False, True):
            with v2l.applied(half, adapter, merged=merged):
                logits = half.logits(ids)
            assert logits.dtype == torch.bfloat16
            assert (logits - exact).abs().max() < 0.05 * exact.abs().max()
    with pytest.raises(v2l.V2LError, match="are not an adapter"):
        dataclasses.replace(adapters[0], a=adapters[0].a.half())


def test_a_batch_has_one_row_for_each_adapter(vlm, adapters, ids):
    with v2l.applied(vlm, adapters[:2]):
        for rows in (1, 3):
            with pytest.raises(v2l.V2LError, match="one row for each"):
                vlm.logits(ids.expand(rows, -1))
    for worn, strength in (([], 1.0), (adapters[0], float("nan"))):
        with pytest.raises(v2l.V2LError, match="cannot be applied"), v2l.applied(vlm, worn, strength=strength):
            pass


def test_two_threads_do_not_mix(vlm, adapters, videos, hypernetwork):
    """The second thread gets an error; no video is read while an adapter is applied."""
    expected = adapters[0].sha256()
    stop = threading.Event()

    def wear():
        while not stop.is_set():
            with contextlib.suppress(v2l.V2LError), v2l.applied(vlm, adapters[1]):
                vlm.logits(torch.tensor([1, 2, 3]))

    thread = threading.Thread(target=wear)
    thread.start()
    made = []
    try:
        while len(made) < 3:
            with contextlib.suppress(v2l.V2LError):
                made.append(v2l.encode(videos[0], vlm, hypernetwork).sha256())
    finally:
        stop.set()
        thread.join()
    assert made == [expected] * 3


def test_factors_carry_gradients(vlm):
    layers, inputs, outputs = vlm.adapted_size
    a = torch.zeros(layers, 4, inputs, requires_grad=True)
    b = torch.ones(layers, 4, outputs, requires_grad=True)
    model, positions = vlm.language_model, torch.arange(3)
    with attached(model, list(zip(a, b, strict=True))):
        model.run(model.embed(positions), positions, causal()).square().sum().backward()
    assert a.grad.any(-1).any(-1).all()


def test_one_at_a_time(vlm, adapters, videos, hypernetwork):
    with v2l.applied(vlm, adapters[0]):
        with pytest.raises(v2l.V2LError, match="applying an adapter now"), v2l.applied(vlm, adapters[1]):
            pass
        with pytest.raises(v2l.V2LError, match="reading a video now"):
            v2l.encode(videos[0], vlm, hypernetwork)
        with pytest.raises(v2l.V2LError, match="answering in context now"):
            v2l.ask_in_context(videos[0], "what?", vlm)
    with pytest.raises(v2l.V2LError, match="cannot be merged"), v2l.applied(vlm, adapters, merged=True):
        pass


def test_an_adapter_for_another_model_is_refused(adapters, tmp_path, vlm):
    other = v2l.load_vlm(small.write_model(tmp_path / "other", seed=9))
    with pytest.raises(v2l.V2LError, match=r"made for small .*not for other"):
        v2l.ask(adapters[0], "what?", other)
    cut = dataclasses.replace(adapters[0], a=adapters[0].a[:2], b=adapters[0].b[:2])
    with pytest.raises(v2l.V2LError, match="its description is wrong"):
        v2l.ask(cut, "what?", vlm)
