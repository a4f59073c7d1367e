"""v2l's own language model against transformers' LlamaModel with the same weights: every use gives the same numbers."""

import dataclasses

import pytest
import small
import torch
from peers import side_path, transformers_model

import v2l
from v2l.adapters.lora import attached
from v2l.bench.peer import generate
from v2l.models import language_model
from v2l.models.config import SmolVLMConfig, TextConfig, VisionConfig
from v2l.models.device import leaks_future
from v2l.models.language_model import KVCache, causal, causal_mask
from v2l.models.vision_tower import VisionTower

HALF = (torch.float16, torch.bfloat16)
VARIANTS = {
    "grouped heads": {},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 20},
    "tied": {"tie_word_embeddings": True},
}


@pytest.fixture(scope="module", params=VARIANTS, ids=list(VARIANTS))
def pair(request, tmp_path_factory):
    """v2l's model and transformers' on the same weights."""
    changes = VARIANTS[request.param]
    config = small.small_config(**changes)
    config.tie_word_embeddings = changes.get("tie_word_embeddings", False)
    vlm = v2l.load_vlm(small.write_model(tmp_path_factory.mktemp("model") / "m", config=config), device="cpu")
    return vlm, transformers_model(vlm)


@pytest.fixture
def ids():
    return torch.randint(5, 400, (3, 17), generator=torch.Generator().manual_seed(0))


def factors(vlm, batch=None):
    layers, inputs, outputs = vlm.adapted_size
    random = torch.Generator().manual_seed(1)
    rows = () if batch is None else (batch,)
    return [
        (torch.randn(*rows, 4, inputs, generator=random) * 0.1, torch.randn(*rows, 4, outputs, generator=random))
        for _ in range(layers)
    ]


@torch.no_grad()
@pytest.mark.parametrize("adapted", ["no adapter", "one adapter", "one adapter per row"])
def test_logits_are_those_of_transformers(pair, ids, adapted):
    vlm, peer = pair
    pairs = factors(vlm, 3 if adapted == "one adapter per row" else None)
    if adapted == "no adapter":
        assert torch.allclose(vlm.logits(ids), peer(input_ids=ids).logits, atol=1e-5)
        return
    with attached(vlm.language_model, pairs):
        found = vlm.logits(ids)
    with side_path(peer, pairs):
        expected = peer(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(found, vlm.logits(ids), atol=1e-2)


@torch.no_grad()
def test_padding_changes_nothing(pair, ids):
    vlm, peer = pair
    there = torch.arange(17) < torch.tensor([17, 9, 4])[:, None]
    found = vlm.logits(ids, there)
    for row, length in enumerate((17, 9, 4)):
        assert torch.allclose(found[row, :length], peer(input_ids=ids[row : row + 1, :length]).logits[0], atol=1e-5)
    assert torch.equal(causal_mask(there)[1, 0, 8], torch.arange(17) < 9)


@torch.no_grad()
def test_no_token_sees_later_ones_where_causal_attention_leaks(pair, ids, monkeypatch):
    """As in half precision on MPS, where `is_causal` has no effect in several versions of torch."""
    vlm, _ = pair
    attention = language_model.F.scaled_dot_product_attention
    expected, answer = vlm.logits(ids), list(vlm.greedy([vlm.embed(ids[0])], 3, for_speed=True))

    def leaking(*heads, is_causal=False, **options):
        return attention(*heads, **options)

    monkeypatch.setattr(language_model.F, "scaled_dot_product_attention", leaking)
    assert not torch.allclose(vlm.logits(ids), expected, atol=1e-2)
    monkeypatch.setattr(language_model, "leaks_future", lambda device_type, dtype: leaks_future("mps", torch.float16))
    assert torch.allclose(vlm.logits(ids), expected, atol=1e-5)
    assert list(vlm.greedy([vlm.embed(ids[0])], 3, for_speed=True)) == answer
    kinds = [(device, dtype) for device in ("cpu", "cuda", "mps") for dtype in (torch.float32, *HALF)]
    assert [kind for kind in kinds if leaks_future(*kind)] == [("mps", dtype) for dtype in HALF]


@torch.no_grad()
@pytest.mark.parametrize("steps", [[17], [1] * 17, [9, 1, 1, 6], [4, 13]])
def test_a_cache_filled_in_any_steps_gives_the_same_states(pair, ids, steps):
    vlm, _ = pair
    model, positions = vlm.language_model, torch.arange(17)
    whole = model.run(model.embed(ids.flatten()), positions.repeat(3), causal(3)).view(3, 17, -1)
    cache, found = KVCache(model, 3, capacity=5), []
    for part in torch.arange(17).split(steps):
        cache.reserve(int(part[-1]) + 1)
        x = model.embed(ids[:, part].flatten())
        found.append(model.run(x, positions[part].repeat(3), cache.attend(len(part))).view(3, len(part), -1))
    assert torch.allclose(torch.cat(found, dim=1), whole, atol=1e-5)
    cache.crop(12)
    again = model.run(model.embed(ids[:, 12:].flatten()), positions[12:].repeat(3), cache.attend(5))
    assert torch.allclose(again.view(3, 5, -1), whole[:, 12:], atol=1e-5)


@torch.no_grad()
def test_kept_tokens_are_those_of_the_whole_pass(pair, ids):
    vlm, _ = pair
    model, positions = vlm.language_model, torch.arange(17).repeat(3)
    whole = model.run(model.embed(ids.flatten()), positions, causal(3))
    keep = torch.tensor([16, 33, 50])
    assert torch.allclose(model.run(model.embed(ids.flatten()), positions, causal(3), keep), whole[keep], atol=1e-5)


@torch.no_grad()
def test_greedy_answers_are_those_of_transformers(pair, ids):
    vlm, peer = pair
    rows = [ids[0], ids[1][:9], ids[2][:4]]
    together = list(zip(*vlm.greedy([vlm.embed(row) for row in rows], 12, for_speed=True), strict=True))
    for row, answer in zip(rows, together, strict=True):
        expected = peer.generate(input_ids=row[None], min_new_tokens=12, max_new_tokens=12, do_sample=False)
        assert list(answer) == expected[0, len(row) :].tolist()


@torch.no_grad()
def test_a_choice_says_whether_the_state_was_finite_before_the_norm(pair):
    model = pair[0].language_model
    states = torch.ones(5, model.config.hidden_size)
    states[1:] *= torch.tensor([0.0, torch.inf, torch.nan, 1e30])[:, None]  # the last has an infinite square
    chosen, finite = model.choose(states)
    assert finite.tolist() == [1, 0, 0, 0, 0]
    assert chosen[0] == model.logits(states[0]).argmax()


@torch.no_grad()
def test_image_features_are_those_of_transformers(pair):
    vlm, peer = pair
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    expected = peer.model.connector(peer.model.vision_model(pixel_values=images).last_hidden_state)
    assert torch.allclose(vlm.encode_images(images), expected, atol=1e-5)


@torch.no_grad()
def test_images_smaller_than_the_towers_own_are_spread_over_its_positions(tmp_path):
    config = small.small_config()
    config.vision_config.image_size = 48
    vlm = v2l.load_vlm(small.write_model(tmp_path / "m", config=config), device="cpu")
    peer = transformers_model(vlm)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    expected = peer.model.connector(peer.model.vision_model(pixel_values=images).last_hidden_state)
    assert torch.allclose(vlm.encode_images(images), expected, atol=1e-5)


@torch.no_grad()
def test_patches_keep_their_positions_in_half_precision():
    """The 2.2B has 27 x 27 patches, whose places bfloat16 rounds across the borders of positions."""
    vision = VisionConfig(8, 8, num_hidden_layers=1, num_attention_heads=1, image_size=384, patch_size=14)
    config = SmolVLMConfig(TextConfig(8, 8, 8, 1, 1), vision, scale_factor=3)
    tower = VisionTower.empty(config, torch.device("cpu"), torch.bfloat16)
    for weight in tower.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    places: list[torch.Tensor] = []
    tower.position_embedding.register_forward_pre_hook(lambda _, given: places.append(given[0]))
    assert tower(torch.zeros(1, 3, 384, 384, dtype=torch.bfloat16)).shape == (1, 81, 8)
    tower(torch.zeros(1, 3, 168, 168, dtype=torch.bfloat16))  # 12 x 12 patches
    assert torch.equal(places[0], torch.arange(27 * 27))
    rows = [0, 2, 4, 6, 9, 11, 13, 15, 18, 20, 22, 24]
    assert places[1].tolist() == [27 * row + column for row in rows for column in rows]


def test_the_peer_shares_the_weights(pair):
    vlm, peer = pair
    layer, own = peer.model.text_model.layers[1], vlm.language_model.layers[1]
    assert layer.mlp.down_proj.weight.data_ptr() == own.down_proj.data_ptr()
    assert layer.self_attn.q_proj.weight.data_ptr() == own.qkv_proj.data_ptr()
    assert peer.lm_head.weight.data_ptr() == vlm.language_model.head.data_ptr()


def test_a_batch_needs_an_adapter_for_each_row(pair, ids):
    vlm, _ = pair
    with attached(vlm.language_model, factors(vlm, 2)), pytest.raises(v2l.V2LError, match="one row for each"):
        vlm.logits(ids)


def test_half_precision_normalises_in_float32(tmp_path):
    """A state of 300 has a square that float16 cannot hold."""
    folder = small.write_model(tmp_path / "m")
    wide = v2l.load_vlm(folder, dtype=torch.float32).language_model
    half = v2l.load_vlm(folder, dtype=torch.float16).language_model
    x = torch.full((1, wide.config.hidden_size), 300.0)
    assert torch.allclose(half.final_norm(x.half()).float(), wide.final_norm(x), rtol=2e-3)
    assert dataclasses.asdict(half.config) == dataclasses.asdict(wide.config)


def test_the_peer_generates_what_one_call_of_generate_does(pair, ids):
    _, peer = pair
    whole = peer.generate(input_ids=ids[:1], min_new_tokens=7, max_new_tokens=7, do_sample=False)[0, 17:].tolist()
    assert [token for (token,) in generate(peer, ids[0], None, 7)] == whole
    assert [token for (token,) in generate(peer, ids[0], None, 1)] == whole[:1]
