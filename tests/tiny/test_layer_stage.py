"""The layer stage: targets against the frozen model's own passes, losses, resumption, and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from v2l.io.manifest import group_by_clip
from v2l.models.checkpoint import load_hypernetwork
from v2l.models.hypernetwork import Hypernetwork
from v2l.tiny.recipe import layer_stage
from v2l.tiny.recipe.layer_stage import SIZES, LayerBatch, LayerObjective, LayerStage, LayerTrainer
from v2l.tiny.recipe.layer_targets import TargetFiles, clip_targets
from v2l.training.data import NO_END, SampleReader, SamplingConfig, read_sample
from v2l.training.packing import PackedRows, packed_forward
from v2l.training.trainer import STATE, sizes_for

SAMPLING = SamplingConfig(frames=8, windows=1, segments=1, denser=1.0, questions=3)
STAGE = LayerStage(steps=4, latents=8, batch=2, tokens=12, others=6, save_every=2)


@pytest.fixture(scope="module")
def samples(world_examples, vlm):
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    clips = group_by_clip(world_examples)[:2]
    return [read_sample(clip, reader, SAMPLING, np.random.default_rng(0)) for clip in clips]


@pytest.fixture(scope="module")
def targets(samples, vlm):
    return clip_targets(vlm, SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions), samples)


def hypernetwork(vlm, latents=STAGE.latents):
    torch.manual_seed(0)
    return Hypernetwork(sizes_for(vlm, {**SIZES, "num_latents": latents, "rank": 2 * latents}))


@torch.no_grad()
def test_the_change_makes_each_layer_return_what_it_returns_in_context(vlm, samples, targets):
    """An adapter that adds the change of the first layer brings the model without the video to the next inputs of the
    model in context, whatever the attention of the first layer read."""
    model = vlm.language_model
    for sample, target in zip(samples, targets, strict=True):
        rows = PackedRows.stack([sample.sequence], vlm.device)
        context = PackedRows.stack([sample.in_context], vlm.device)
        opening = vlm.embed(context.opening[0], vlm.encode_images(sample.parts[0].images))[None]
        embedded = model.embed(rows.ids)  # as without a video, where a space precedes the first word
        positions = rows.positions + context.opening.shape[1] - rows.opening.shape[1]
        shown = packed_forward(model, opening, context.there, embedded, positions, rows.question)
        without = packed_forward(model, model.embed(rows.opening), rows.there, embedded, rows.positions, rows.question)
        changed = rows.in_order(without.asked[1]) + target.change[0].float()
        assert torch.allclose(changed, rows.in_order(shown.asked[1]), atol=2e-2)
        assert (target.change[0].float().square().mean(-1) / target.scale[0]).mean() > 0.05
        assert torch.equal(target.ends, sample.parts[0].ends)


def test_attention_is_that_to_the_ends_of_frames(vlm, samples, targets):
    frames = samples[0].parts[0].frames
    layers, tokens, heads, ends = targets[0].attention.shape
    assert (layers, heads, ends) == (vlm.num_layers, vlm.language_model.config.num_attention_heads, frames)
    assert tokens == targets[0].inner.shape[1] and (targets[0].attention.float().sum(-1) <= 1.001).all()


def test_an_adapter_with_the_wanted_change_has_no_loss(vlm, targets):
    """Rank n of a head reads and writes exactly what the head reads at the end of frame n."""
    objective = LayerObjective(vlm, hypernetwork(vlm), STAGE, targets)
    batch = LayerBatch.draw(targets, STAGE, torch.Generator().manual_seed(0))
    heads, width = vlm.language_model.config.num_key_value_heads, vlm.language_model.config.head_dim
    attention = torch.zeros_like(batch.attention.unflatten(3, (heads, -1)))
    attention[..., 0, :] = batch.attention.unflatten(3, (heads, -1))[..., 0, :]  # one query head, one direction a frame
    batch = replace(batch, attention=attention.flatten(3, 4))
    values = torch.randn(vlm.num_layers, *batch.used.shape, heads, width) * batch.used[..., None, None]
    rows = torch.einsum("lcnke,lked->lcknd", values, objective.projections[:, :, 0]).flatten(2, 3)
    active = attention[..., 0, :].flatten(3, 4)
    weights = 1 / (batch.scale * objective.sizes)
    terms, wrong = (objective._at_ends(batch, each, rows, values, weights) for each in (active, active.roll(1, -1)))
    assert terms["reads"].abs() < 1e-3 * wrong["reads"] and terms["writes"].abs() < 1e-3
    assert wrong["fires"] > terms["fires"]


def test_the_finders_find_what_a_linear_map_keeps(vlm, targets):
    objective = LayerObjective(vlm, hypernetwork(vlm), STAGE, targets)
    batch = LayerBatch.draw(targets, STAGE, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([objective.finders], lr=1e-3)
    kept = []
    for _ in range(12):
        optimizer.zero_grad()
        kept.append(objective.losses(batch)["keeps"])
        kept[-1].backward()
        optimizer.step()
    untrained = STAGE.keep_weight * (vlm.num_layers - 1)
    assert kept[0].item() == pytest.approx(untrained, rel=1e-4) and kept[-1] < 0.9 * kept[0]


def test_the_hypernetwork_sees_every_end_and_as_many_other_tokens_as_asked(targets):
    batch = LayerBatch.draw(targets, STAGE, torch.Generator().manual_seed(0))
    for number, target in enumerate(targets):
        ends = batch.ends[number][batch.there[number]]
        assert ends[ends != NO_END].tolist() == target.seconds.tolist()
        assert len(ends) <= len(target.seconds) + STAGE.others
        assert batch.used[number].nonzero().flatten().tolist() == sorted(
            second % 8 for second in target.seconds.tolist()
        )


def test_a_run_resumes_exactly_and_lowers_its_loss(vlm, world_examples, tmp_path):
    files = TargetFiles(vlm, world_examples, SAMPLING, tmp_path / "targets")
    assert list(files.write()) == [(1, 1)] == list(files.write())
    clips = files.read()
    stage = replace(STAGE, steps=8, learning_rate=3e-3)
    whole = LayerTrainer(vlm, clips, stage, SAMPLING, tmp_path / "whole")
    progress = list(whole.train())
    assert progress[-1]["change"] < progress[0]["change"]
    for _ in range(2):
        run = LayerTrainer(vlm, clips, stage, SAMPLING, tmp_path / "again").train()
        next(run), next(run)
    again = LayerTrainer(vlm, clips, stage, SAMPLING, tmp_path / "again")
    assert again.step == 8
    for name, weight in whole.hypernetwork.state_dict().items():
        assert torch.equal(weight, again.hypernetwork.state_dict()[name])
    assert torch.load(tmp_path / "again" / STATE, weights_only=True)["step"] == 8


def test_the_command_asks_the_frozen_model_itself(world_examples, tmp_path, monkeypatch, capsys):
    """The answers of the manifest are not used: they may be anything."""
    rows = [
        {"id": each.id, "video_path": str(each.video), "prompt": each.prompt, "target_text": "?"}
        for clip in group_by_clip(world_examples)[:2]
        for each in clip[:3]
    ]
    manifest = tmp_path / "own.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("sys.argv", ["layer_stage", str(manifest), "tiny", str(tmp_path / "run"), "--steps", "1"])
    layer_stage.main()
    said = [json.loads(line)["text"] for line in manifest.with_suffix(".teacher.jsonl").read_text().splitlines()[1:]]
    assert len(said) == len(rows) and "?" not in said
    assert "targets: 1 of 1 files" in capsys.readouterr().out
    made = load_hypernetwork(tmp_path / "run" / "hypernetwork.safetensors")
    assert (made.config.num_latents, made.config.rank) == (16, 32) and made.provenance.trained_with.frames == 16
