"""Properties of the hypernetwork for any size and input; the published numbers are in test_official.py."""

import pytest
import torch
from kept import counting_kept
from torch.nn import functional as F

from v2l.errors import V2LError
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import TARGET, HypernetworkConfig
from v2l.models.perceiver import ResamplerAttention, unit_rms

SIZES = HypernetworkConfig(
    num_layers=3,
    hidden_size=24,
    intermediate_size=40,
    rank=4,
    lora_alpha=16.0,
    latent_size=32,
    num_blocks=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
)


@pytest.fixture
def hypernetwork():
    torch.manual_seed(0)
    network = Hypernetwork(SIZES).eval().requires_grad_(False)
    network.scaler_B[TARGET].fill_(1.0)
    return network


def hidden(batch: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, tokens, 24, generator=torch.Generator().manual_seed(seed))


def close(actual, expected, tolerance=1e-5):
    for (a, b), (expected_a, expected_b) in zip(actual, expected, strict=True):
        assert (a - expected_a).abs().max() < tolerance * expected_a.abs().max()
        assert (b - expected_b).abs().max() < tolerance * expected_b.abs().max()


def test_shapes_and_order(hypernetwork):
    factors = hypernetwork.generate(hidden(2, 9))
    assert [tuple(a.shape) for a, _ in factors] == [(2, 8, 40)] * 3
    assert [tuple(b.shape) for _, b in factors] == [(2, 8, 24)] * 3
    for layer, (a, b) in enumerate(factors):
        assert torch.equal(a[0, 4:], hypernetwork.bias_A[TARGET][layer])
        assert torch.equal(b[1, 4:], hypernetwork.bias_B[TARGET][layer] * 16)


def test_an_untrained_hypernetwork_changes_nothing():
    for _, b in Hypernetwork(SIZES).generate(hidden(1, 5)):
        assert not b.any()


@pytest.mark.parametrize("filling", [0.0, 1e6, float("nan"), float("inf")])
def test_padding_cannot_leak(hypernetwork, filling):
    short, long = hidden(1, 5, seed=1), hidden(1, 9, seed=2)
    batch = torch.full((2, 3, 9, 24), filling)
    batch[0, :, :5], batch[1] = short[0], long[0]
    mask = torch.tensor([[1] * 5 + [0] * 4, [1] * 9])
    together = hypernetwork.generate(batch, mask)
    close([(a[:1], b[:1]) for a, b in together], hypernetwork.generate(short))
    close([(a[1:], b[1:]) for a, b in together], hypernetwork.generate(long))


def test_a_row_of_padding_alone_is_finite(hypernetwork):
    for a, b in hypernetwork.generate(torch.full((1, 3, 4, 24), float("nan")), torch.zeros(1, 4)):
        assert torch.isfinite(a).all()
        assert torch.isfinite(b).all()


def test_a_zero_vector_makes_no_nan(hypernetwork):
    block = hypernetwork.layers[0].mlp
    for name in ("weight", "bias"):  # the block adds nothing and its input is zero: the vector to normalise is zero
        getattr(block[6], name).zero_()
    hypernetwork.aggregator["perceiver"].decoder.layernorm.weight.zero_()
    for a, b in hypernetwork.generate(torch.zeros(1, 3, 4, 24)):
        assert torch.isfinite(a).all()
        assert not b[:, :4].any()


def test_pieces_of_a_layer_are_read_as_one(hypernetwork):
    states = hidden(1, 12)
    whole = hypernetwork.generate(states)
    close(hypernetwork.generate([iter(layer.split([5, 1, 6], dim=1)) for layer in states.unbind(1)]), whole)
    close(hypernetwork.generate(iter(states.unbind(1))), whole)


@pytest.mark.parametrize("together", [2, 3, 5])
def test_layers_in_groups_give_the_same_factors(hypernetwork, together):
    """Groups that leave a rest, that are all layers, and that are more than there are; rows with padding too."""
    states, mask = hidden(2, 12), torch.arange(12) < torch.tensor([[12], [7]])
    for counted in (None, mask):
        expected = hypernetwork.generate(iter(states.unbind(1)), counted)
        close(hypernetwork.generate(iter(states.unbind(1)), counted, layers_at_once=together), expected)
        close(hypernetwork.generate(states, counted), expected)


def test_each_layer_is_read_and_dropped_before_the_next(hypernetwork):
    """A lazy iterable is not stacked: the previous layer can be freed when the next one is requested."""
    events = []

    def layers():
        for index in range(3):
            events.append(("layer", index))
            yield pieces(index)

    def pieces(index):
        for part in range(2):
            events.append(("piece", index, part))
            yield torch.randn(1, 4, 24)

    hypernetwork.generate(layers())
    assert events == [e for i in range(3) for e in (("layer", i), ("piece", i, 0), ("piece", i, 1))]


def test_half_precision_hidden_states(hypernetwork):
    exact = hypernetwork.generate(hidden(1, 30))
    wide = [torch.stack(factors) for factors in zip(*exact, strict=True)]
    for dtype in (torch.bfloat16, torch.float16):
        half = hypernetwork.generate(hidden(1, 30).to(dtype))
        assert all(a.dtype == b.dtype == torch.float32 for a, b in half)
        close(half, exact, tolerance=0.05)
        for found, expected in zip(map(torch.stack, zip(*half, strict=True)), wide, strict=True):
            assert (found - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_in_the_type_of_the_hidden_states_whatever_autocast_returns(hypernetwork, monkeypatch, dtype):
    """As on CUDA, where autocast returns float32 from `rms_norm`: the context must not turn autocast off."""
    expected, rms_norm, types = hypernetwork.generate(hidden(1, 30).to(dtype)), F.rms_norm, set()

    def as_on_cuda(x, *sizes, **options):
        return rms_norm(x.float() if torch.is_autocast_enabled(x.device.type) else x, *sizes, **options)

    monkeypatch.setattr(F, "rms_norm", as_on_cuda)
    for module in hypernetwork.aggregator.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, given, output: types.add(output.dtype))
    found = hypernetwork.generate(hidden(1, 30).to(dtype))
    assert types == {dtype}
    close(found, expected, tolerance=1e-3)


def test_absorbed_attention_is_plain_attention():
    """Compare with keys and values computed explicitly: context first, latents last, one softmax over both."""
    torch.manual_seed(3)
    attention = ResamplerAttention(width=24, heads=4, kv_heads=2, head_dim=8)
    latents, context, gain = torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.rand(24)
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    both = torch.cat([unit_rms(context) * gain, latents], dim=1)

    def split(x, heads):
        return x.unflatten(-1, (heads, 8)).transpose(1, 2)

    queries = split(attention.q_proj(latents), 4)
    keys = split(attention.k_proj(both), 2).repeat_interleave(2, dim=1)
    values = split(attention.v_proj(both), 2).repeat_interleave(2, dim=1)
    seen = torch.cat([mask, torch.ones(2, 5, dtype=torch.bool)], dim=1)[:, None, None]
    expected = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen).transpose(1, 2).flatten(2)
    actual, expected = attention(latents, unit_rms(context), gain, mask), attention.o_proj(expected)
    assert torch.allclose(actual, expected, atol=1e-6)
    weights = list(attention.parameters())
    pairs = zip(*(torch.autograd.grad(each.square().sum(), weights) for each in (actual, expected)), strict=True)
    assert all(found.any() and torch.allclose(found, wanted, atol=1e-5) for found, wanted in pairs)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = Hypernetwork(SIZES)
    torch.nn.init.ones_(network.scaler_B[TARGET])
    sum((a.square().sum() + (b - 1).square().sum()) for a, b in network.generate(hidden(1, 6))).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_changes_neither_factors_nor_gradients(monkeypatch, dtype):
    """Two rows at a time, with padding, against all rows at once; and only the hidden states and latents are kept."""
    monkeypatch.setattr("v2l.models.hypernetwork.RECOMPUTED_AT_ONCE", 18)
    torch.manual_seed(0)
    network = Hypernetwork(SIZES)
    torch.nn.init.ones_(network.scaler_B[TARGET])
    states, mask = hidden(2, 9).to(dtype), torch.arange(9) < torch.tensor([[9], [5]])
    results, kept = [], []
    for recompute in (False, True):
        with counting_kept(network.parameters()) as parts:
            factors = network.generate(states, mask, recompute=recompute)
        kept.append(sum(parts.values()))
        loss = sum(a.square().sum() + (b - 1).square().sum() for a, b in factors)
        results.append((factors, torch.autograd.grad(loss, list(network.parameters()))))
    (plain, gradients), (again, regained) = results
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    close(again, plain, tolerance)
    for found, wanted in zip(regained, gradients, strict=True):
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert kept[1] < kept[0] / 5


@pytest.mark.parametrize(
    ("states", "mask", "message"),
    [
        (torch.zeros(1, 2, 4, 24), None, "hidden states of 2 layers"),
        (torch.zeros(1, 4, 4, 24), None, "more than the 3 layers"),
        (torch.zeros(1, 3, 4, 23), None, "hidden size 24"),
        (torch.zeros(1, 3, 4, 24), torch.ones(1, 3), r"the attention mask is \(1, 3\)"),
        (torch.zeros(1, 3, 4, 24), torch.ones(1, 5), r"the attention mask is \(1, 5\)"),
        (torch.zeros(2, 3, 4, 24), torch.ones(1, 4), r"the attention mask is \(1, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(hypernetwork, states, mask, message):
    with pytest.raises(V2LError, match=message):
        hypernetwork.generate(states, mask)


def test_published_sizes():
    """Compare parameter counts and the 140 names with the published 500M and 2.2B hypernetworks."""
    with torch.device("meta"):
        small = Hypernetwork(HypernetworkConfig(num_layers=32, hidden_size=960, intermediate_size=2560))
        large = Hypernetwork(HypernetworkConfig(num_layers=24, hidden_size=2048, intermediate_size=8192))
    assert sum(p.numel() for p in small.parameters()) == 128_626_176
    assert sum(p.numel() for p in large.parameters()) == 227_323_136
    assert len(small.state_dict()) == 140
    assert small.state_dict()["head.weight"].shape == (32, 512, 3520)
