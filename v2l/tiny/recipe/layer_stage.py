"""The first stage of a hypernetwork without labels: each layer's factors learn what the video changes in that layer.

The targets are the frozen model's own (`layer_targets`): in every layer, at every token of a question or an answer, the
difference that the video makes. The adapter's (x A^T) B is regressed on it, x being the input of `down_proj` without
the video. No layer depends on another, and no gradient passes through the frozen model.

A regression alone binds facts to the words of questions slowly. Most of what a question finds, the frozen model reads
at the ends of single frames, and its attention tells where. So each frame has a rank for every key/value head, drawn
to it by `AttentionGuidance`, and three losses compare the rank with what the heads read at this frame's end:

- fires: where they read it, this rank is active, and others are not
- writes: the row of B has the direction of what they read
- reads: activation and row of B together equal what they read

The hypernetwork sees the ends of frames and some of the other tokens, which makes a step several times as fast.

`python -m v2l.tiny.recipe.layer_stage MANIFEST MODEL RUN` trains on the answers of a manifest; give it those of the
frozen model (`v2l train --teacher`). Then `v2l train --hypernetwork RUN/hypernetwork.safetensors` trains on answers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from v2l.errors import errors_in_one_line
from v2l.io.files import make_folder
from v2l.io.manifest import read_manifest
from v2l.models.checkpoint import save_hypernetwork, with_provenance
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import FILE_NAME, TrainedWith
from v2l.models.loading import load_vlm
from v2l.models.smolvlm import FrozenVLM
from v2l.tiny.recipe.layer_targets import ClipTargets, TargetFiles
from v2l.training.common import append_metrics, restore, save_state
from v2l.training.data import NO_END, SamplingConfig
from v2l.training.losses import AttentionGuidance
from v2l.training.schedule import warm_cosine
from v2l.training.trainer import METRICS, STATE, sizes_for

EPSILON, TINY = 1e-3, 1e-8
"""Added to a share before the logarithm, and to a divisor that may be zero."""
CLIPS_OF_SIZES = 64
"""Clips from which the size of the change in each layer is measured."""
SIZES: dict[str, int | float] = {
    "lora_alpha": 45,
    "latent_size": 128,
    "num_blocks": 4,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 32,
}
"""The other sizes of the hypernetwork."""


@dataclass(frozen=True)
class LayerStage:
    """The settings of the stage.

    latents: of the hypernetwork; each clip has at most as many frames, and twice as many ranks for two key/value heads
    batch, tokens: clips in a step, and tokens of the questions and answers of each
    others: tokens that the hypernetwork sees of a clip, beside the ends of frames
    fire_weight, write_weight, read_weight: of the losses at the ends of frames; steer_weight: of attention guidance
    """

    steps: int = 4000
    latents: int = 16
    batch: int = 16
    tokens: int = 128
    others: int = 24
    learning_rate: float = 2e-3
    warmup: float = 0.03
    fire_weight: float = 1.0
    write_weight: float = 4.0
    read_weight: float = 1.0
    steer_weight: float = 0.5
    save_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class LayerBatch:
    """C clips in float32: the fields of `ClipTargets` with the clips as second axis, where there are layers.

    there: (C, T) bool, False for padding; ends: (C, T)
    attention, values: (L, C, M, H, N) and (L, C, K, E, N), by the latent of each frame instead of its number
    used: (C, N), 1 for the latents of frames, else 0
    """

    hidden: torch.Tensor
    there: torch.Tensor
    ends: torch.Tensor
    inner: torch.Tensor
    change: torch.Tensor
    scale: torch.Tensor
    attention: torch.Tensor
    values: torch.Tensor
    used: torch.Tensor

    @classmethod
    def draw(cls, clips: Sequence[ClipTargets], stage: LayerStage, random: torch.Generator) -> LayerBatch:
        """Draw tokens of the clips and stack them."""
        hidden, ends, columns, used = [], [], [], []
        for clip in clips:
            # Ends of frames and some other tokens of the prompt
            kept = clip.ends != NO_END
            kept[torch.randperm(len(kept), generator=random)[: stage.others]] = True
            hidden.append(clip.hidden[:, kept].float().transpose(0, 1))
            ends.append(clip.ends[kept])
            # Tokens of questions and answers
            token = torch.randint(clip.inner.shape[1], (stage.tokens,), generator=random)
            place = clip.seconds % stage.latents
            attention = _placed(clip.attention[:, token], place, stage.latents)
            values = _placed(clip.values.permute(0, 2, 3, 1), place, stage.latents)
            asked = (each[:, token].float() for each in (clip.inner, clip.change, clip.scale))
            columns.append((*asked, attention, values))
            used.append(torch.zeros(stage.latents).index_fill(0, place, 1))
        padded = pad_sequence(ends, batch_first=True, padding_value=NO_END)
        there = torch.arange(padded.shape[1]) < torch.tensor([len(each) for each in ends])[:, None]
        states = pad_sequence(hidden, batch_first=True).transpose(1, 2)
        inner, change, scale, attention, values = (torch.stack(each, dim=1) for each in zip(*columns, strict=True))
        return cls(states, there, padded, inner, change, scale, attention, values, torch.stack(used))


def _placed(values: torch.Tensor, place: torch.Tensor, count: int) -> torch.Tensor:
    """Put the last axis at these places of a longer one: (..., F) to (..., count)."""
    return values.new_zeros((*values.shape[:-1], count), dtype=torch.float32).index_copy(-1, place, values.float())


class LayerObjective:
    """The loss of a batch. Rank k N + n reads the latent n, and thereby a frame, for the key/value head k.

    sizes: the mean of change^2 / scale in every layer, (L, 1, 1); the losses are relative to it
    """

    def __init__(self, vlm: FrozenVLM, hypernetwork: Hypernetwork, stage: LayerStage, clips: Sequence[ClipTargets]):
        model = vlm.language_model
        self.hypernetwork, self.stage, self.heads = hypernetwork, stage, model.config.num_key_value_heads
        self.guidance = AttentionGuidance(hypernetwork, vlm.num_layers)
        projections = [
            layer.o_proj.float().unflatten(0, (self.heads, -1, model.config.head_dim)) for layer in model.layers
        ]
        self.projections = torch.stack(projections)  # (L, K, H / K, E, D)
        relative = [(clip.change.float().square().mean(-1) / clip.scale).mean(1) for clip in clips]
        self.sizes = torch.stack(relative).mean(0)[:, None, None]

    def losses(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        """The weighted terms, whose sum is minimised, each averaged over tokens and clips and summed over layers."""
        stage = self.stage
        factors = self.hypernetwork.generate(batch.hidden, batch.there)
        a, b = (torch.stack(each) for each in zip(*factors, strict=True))
        active = batch.inner @ a.transpose(-1, -2)  # (L, C, M, 2 R)
        weights = 1 / (batch.scale * self.sizes)  # (L, C, M)
        missed = ((active @ b - batch.change).square().mean(-1) * weights).mean((1, 2)).sum()
        guided = self.guidance.loss(batch.ends) / len(batch.ends)
        return {"change": missed, **self._at_ends(batch, active, b, weights), "steer": stage.steer_weight * guided}

    def _at_ends(
        self, batch: LayerBatch, active: torch.Tensor, b: torch.Tensor, weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The three terms of single ranks, weighted by how much of the change each layer reads at ends of frames.

        active: (L, C, M, 2 R), the activation of every rank; b: (L, C, 2 R, D); weights: (L, C, M)
        """
        stage, width = self.stage, b.shape[-1]
        ranks = self.heads * stage.latents
        active = active[..., :ranks].unflatten(-1, (self.heads, -1))  # (L, C, M, K, N)
        rows = b[:, :, :ranks].unflatten(2, (self.heads, -1))  # (L, C, K, N, D)
        norms = rows.square().sum(-1)[:, :, None] / width  # (L, C, 1, K, N)

        # What the heads read of a frame: its product with the row of B, and its mean square, (L, C, M, K, N)
        attention = batch.attention.unflatten(3, (self.heads, -1))
        content = torch.einsum("lcken,lkged->lckgnd", batch.values, self.projections)
        product = torch.einsum("lcmkgn,lckgnd,lcknd->lcmkn", attention, content, rows) / width
        energy = torch.einsum("lcmkgn,lckgnd,lckhnd,lcmkhn->lcmkn", attention, content, content, attention) / width

        # Sum over ranks and average over tokens, relative to all that is read in a layer: (L,)
        def total(values: torch.Tensor) -> torch.Tensor:
            return (values.sum((3, 4)) * weights).mean((1, 2))

        read = total(energy)
        share = active.square() / (active.square().sum((3, 4), keepdim=True) + TINY)
        fires = -total(energy * (share + EPSILON).log()).sum()
        writes = (read - total(product.square() / (norms + TINY))).sum()
        used = batch.used[:, None, None]  # (C, 1, 1, N)
        reads = total((active.square() * norms - 2 * active * product) * used) + read
        return {
            "fires": stage.fire_weight * fires,
            "writes": stage.write_weight * writes,
            "reads": stage.read_weight * reads.sum(),
        }


class LayerTrainer:
    """A run of the stage in its folder, new or resumed."""

    def __init__(
        self, vlm: FrozenVLM, clips: Sequence[ClipTargets], stage: LayerStage, sampling: SamplingConfig, run: Path
    ):
        torch.manual_seed(stage.seed)
        self.vlm, self.stage, self.sampling, self.run = vlm, stage, sampling, run
        self.clips = [clip for clip in clips if len(set((clip.seconds % stage.latents).tolist())) == len(clip.seconds)]
        heads = vlm.language_model.config.num_key_value_heads
        sizes = {**SIZES, "num_latents": stage.latents, "rank": heads * stage.latents}
        self.hypernetwork = Hypernetwork(sizes_for(vlm, sizes))
        self.objective = LayerObjective(vlm, self.hypernetwork, stage, self.clips[:CLIPS_OF_SIZES])
        self.optimizer = torch.optim.AdamW(self.hypernetwork.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98))
        self.schedule = warm_cosine(self.optimizer, stage.steps, max(1, round(stage.warmup * stage.steps)))
        names = "hypernetwork", "optimizer", "schedule"
        self.parts = {name: getattr(self, name) for name in names}
        make_folder(run)
        self.step = restore(self.parts, run / STATE)

    def train(self) -> Iterator[dict[str, float]]:
        """Train to the last step. Yields the mean of every term at each saved state."""
        stage, first, started = self.stage, self.step, time.perf_counter()
        sums: dict[str, float] = {}
        for step in range(first, stage.steps):
            random = torch.Generator().manual_seed(stage.seed + 1000 * step)
            chosen = torch.randperm(len(self.clips), generator=random)[: stage.batch].tolist()
            losses = self.objective.losses(LayerBatch.draw([self.clips[i] for i in chosen], stage, random))
            self.optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(self.hypernetwork.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            self.step = step + 1
            if self.step % stage.save_every == 0 or self.step == stage.steps:
                save_state(self.parts, self.step, self.run / STATE)
                self._save()
                speed = (self.step - first) * stage.batch / (time.perf_counter() - started)
                since = (self.step - 1) % stage.save_every + 1
                means = {name: round(value / since, 4) for name, value in sums.items()}
                sums.clear()
                yield {"step": self.step, **means, "clips_per_second": round(speed, 2)}

    def _save(self) -> None:
        frames, fps, prompt = self.sampling.frames, self.sampling.fps, self.sampling.prompt
        trained_with = TrainedWith(frames=frames, fps=fps, prompt=prompt, window_frames=frames)
        with_provenance(self.hypernetwork, self.run.name, self.vlm.id, self.vlm.fingerprint, trained_with)
        save_hypernetwork(self.hypernetwork, self.run / FILE_NAME)


def main() -> None:
    """Run the stage as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m v2l.tiny.recipe.layer_stage", description="Train a hypernetwork on what a video changes."
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("model")
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=LayerStage.steps)
    parser.add_argument("--questions", type=int, default=16, metavar="N", help="Use N questions of a clip.")
    parser.add_argument("--seed", type=int, default=LayerStage.seed)
    given = parser.parse_args()
    stage = LayerStage(steps=given.steps, seed=given.seed)
    vlm = load_vlm(given.model, dtype=torch.float32)
    sampling = SamplingConfig(frames=stage.latents, windows=1, segments=1, denser=1.0, questions=given.questions)
    files = TargetFiles(vlm, read_manifest(given.manifest), sampling, given.run / "targets")
    for done, count in files.write():
        print(f"targets: {done} of {count} files", flush=True)
    for progress in LayerTrainer(vlm, files.read(), stage, sampling, given.run).train():
        append_metrics(given.run / METRICS, progress)
        print(progress, flush=True)


if __name__ == "__main__":
    with errors_in_one_line():
        main()
