"""Composition as algebra: the change of a layer under the composed adapter, not only its shapes."""

import dataclasses

import pytest
import small
import torch

import v2l
from v2l.adapters.segments import reduce_rank


def change(adapter: v2l.Adapter, ranks: slice = slice(None)) -> torch.Tensor:
    """b^T a of every layer, (L, d_out, d_in), in float64."""
    return adapter.b[:, ranks].double().transpose(1, 2) @ adapter.a[:, ranks].double()


def test_the_changes_add_up_and_the_bias_counts_once(adapters):
    both = v2l.compose(adapters[:2])
    generated = [change(adapter, slice(0, 4)) for adapter in adapters]
    bias = change(adapters[0], slice(4, 8))
    assert both.rank == 12
    assert torch.allclose(change(both), generated[0] + generated[1] + bias, atol=1e-12)
    assert both.description.not_validated == ["2 segments composed, trained on 1: not validated"]
    three = v2l.compose([both, adapters[2]])
    assert torch.equal(three.a, v2l.compose(adapters).a)
    assert torch.equal(three.b, v2l.compose(adapters).b)
    assert torch.allclose(change(three), sum(generated) + bias, atol=1e-12)


def test_the_order_given_is_kept_and_recorded(adapters):
    turned = v2l.compose([adapters[2], adapters[0]])
    assert [segment.source.name for segment in turned.description.segments] == ["clip 2.mp4", "clip 0.mp4"]
    assert torch.equal(turned.a[:, :4], adapters[2].a[:, :4])
    assert torch.equal(turned.a[:, 4:8], adapters[0].a[:, :4])
    assert torch.equal(turned.b[:, 8:], adapters[0].b[:, 4:])


@pytest.mark.parametrize(("checks", "whole"), [((7, 3, 5), 3), ((3, 7, 5), 3), ((3, None, 5), None)])
def test_a_composition_was_checked_when_its_oldest_part_was(adapters, checks, whole):
    parts = [dataclasses.replace(each, checked_ns=time) for each, time in zip(adapters, checks, strict=True)]
    assert v2l.compose(parts).checked_ns == whole


def test_adapters_of_both_number_types_compose(adapters):
    near = adapters[1].a.float() * (1 + 2**-10)  # rounds to the same values
    wide = dataclasses.replace(adapters[1], a=near, b=adapters[1].b.float())
    both = v2l.compose([adapters[0], wide])
    assert both.a.dtype == both.b.dtype == torch.float32
    assert torch.equal(both.a, torch.cat([adapters[0].a[:, :4].float(), near], dim=1))
    assert v2l.compose(adapters[:2]).a.dtype == torch.bfloat16
    for first, second in ((wide, adapters[1]), (adapters[1], wide)):
        forged = dataclasses.replace(second, a=second.a * (1 + 2**-6))
        with pytest.raises(v2l.V2LError, match="learned bias"):
            v2l.compose([first, forged])


def test_a_composed_adapter_is_a_file_like_any(adapters, tmp_path):
    path = tmp_path / "both.v2l.safetensors"
    both = v2l.compose(adapters[:2])
    both.save(path)
    again = v2l.Adapter.load(path)
    assert torch.equal(again.a, both.a)
    assert again.description == both.description


def test_reduction_is_the_best_and_states_its_error(adapters):
    whole = v2l.compose(adapters)
    for rank in (1, 4, 7, 11):
        reduced = v2l.compose(adapters, rank=rank)
        assert reduced.rank == rank + 4
        assert torch.equal(reduced.a[:, rank:], whole.a[:, 12:].float())
        assert torch.equal(reduced.b[:, rank:], whole.b[:, 12:].float())
        generated = change(whole, slice(0, 12))
        left = (generated - change(reduced, slice(0, rank))).norm() / generated.norm()
        singular = torch.linalg.svdvals(generated)
        best = singular[:, rank:].norm() / singular.norm()
        (block,) = reduced.description.blocks
        assert (block.rank, block.segments) == (rank, 3)
        assert block.relative_error == pytest.approx(float(best), abs=1e-6)
        assert float(left) == pytest.approx(float(best), abs=1e-5)


def test_reduced_adapters_compose_again(adapters):
    reduced = v2l.compose(adapters[:2], rank=3)
    again = v2l.compose([reduced, adapters[2]])
    assert again.rank == 3 + 4 + 4
    expected = change(reduced, slice(0, 3)) + change(adapters[2])
    assert torch.allclose(change(again), expected, atol=1e-12)
    assert [block.segments for block in again.description.blocks] == [2, 1]


def test_a_reduction_of_nothing_leaves_no_error():
    a, b, error = reduce_rank(torch.zeros(2, 4, 6), torch.zeros(2, 4, 5), 2)
    assert error == 0.0
    assert not a.any()
    assert not b.any()


@pytest.mark.parametrize("rank", [0, -1, 8, 9])
def test_a_reduction_that_reduces_nothing_is_refused(adapters, rank):
    with pytest.raises(v2l.V2LError, match="choose from 1 to 7"):
        v2l.compose(adapters[:2], rank=rank)


def test_ranks_no_engine_serves_are_refused_with_the_way_out(adapters):
    assert v2l.compose([adapters[0]] * 127).rank == 512
    with pytest.raises(v2l.V2LError, match=r"rank 516.*--rank"):
        v2l.compose([adapters[0]] * 128)
    assert v2l.compose([adapters[0]] * 128, rank=8).rank == 12


def test_what_does_not_belong_together_is_refused(adapters, videos, vlm, model_folder, tmp_path):
    other_maker = v2l.encode(videos[0], vlm, small.small_hypernetwork(model_folder, seed=1))
    with pytest.raises(v2l.V2LError, match=r"different hypernetworks.*test-0.*test-1"):
        v2l.compose([adapters[0], other_maker])
    folder = small.write_model(tmp_path / "other", seed=5)
    other_model = v2l.encode(videos[0], v2l.load_vlm(folder), small.small_hypernetwork(folder))
    with pytest.raises(v2l.V2LError, match=r"different models.*small.*other"):
        v2l.compose([adapters[0], other_model])
    forged = dataclasses.replace(adapters[1], a=adapters[1].a + 1)
    with pytest.raises(v2l.V2LError, match="learned bias"):
        v2l.compose([adapters[0], forged])
    with pytest.raises(v2l.V2LError, match="nothing to compose"):
        v2l.compose([])
