"""The first stage of a hypernetwork without labels: each layer's factors learn what the video changes in that layer.

The targets are the frozen model's own (`layer_targets`): in every layer, at every token of a question or an answer, the
difference that the video makes. The adapter's (x A^T) B is regressed on it, x being the input of `down_proj` without
the video. No layer depends on another, and no gradient passes through the frozen model.

A regression alone binds facts to the words of questions slowly. Most of what a question finds, the frozen model reads
at the ends of single frames, and its attention tells where. So each frame has a rank for every key/value head, drawn
to it by `AttentionGuidance`, and four losses compare its ranks with what the heads read at the frame's end:

- keeps: linear heads find the whitened keys and values of the frame's end in its projected token, its latent and its
  ranks; without this term, the hypernetwork keeps a few directions that explain most of the change and loses the rest
- fires: where a head reads the frame, its rank is active, and others are not
- writes: the row of B has the direction of what the head reads
- reads: activation and row of B together equal what the head reads

The hypernetwork sees the ends of frames and some of the other tokens, which makes a step several times as fast.

`python -m v2l.tiny.recipe.layer_stage MANIFEST MODEL RUN` trains on the questions of a manifest. Their answers are the
frozen model's own, as `v2l train MANIFEST --teacher --frames 16` reads them from the same file; it continues from
RUN/hypernetwork.safetensors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from v2l.errors import errors_in_one_line
from v2l.io.files import make_folder
from v2l.io.manifest import read_manifest
from v2l.models.checkpoint import save_hypernetwork, with_provenance
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import FILE_NAME, TrainedWith
from v2l.models.loading import load_vlm
from v2l.models.smolvlm import FrozenVLM
from v2l.tiny.recipe.layer_targets import ClipTargets, TargetFiles, keys_and_values
from v2l.training.common import append_metrics, restore, save_state
from v2l.training.data import NO_END, SamplingConfig
from v2l.training.losses import AttentionGuidance, resampler
from v2l.training.schedule import warm_cosine
from v2l.training.teacher import with_teacher_answers
from v2l.training.trainer import METRICS, STATE, sizes_for
from v2l.video.sampling import Reading

EPSILON, TINY = 1e-3, 1e-8
"""Added to a share before the logarithm, and to a divisor that may be zero."""
NOISE = 0.01
"""The variance that counts as noise, relative to the largest of a head's keys or values."""
FINDER_SCALE = 10.0
"""Scales the linear heads' weights, and thereby their learning rate relative to the hypernetwork's."""
CLIPS_OF_SIZES = 256
"""Clips from which the sizes of changes, keys and values are measured."""
SIZES: dict[str, int | float] = {
    "lora_alpha": 45.0,
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
    keep_weight, fire_weight, write_weight, read_weight: of the losses at the ends of frames
    steer_weight: of attention guidance
    """

    steps: int = 2000
    latents: int = 16
    batch: int = 16
    tokens: int = 128
    others: int = 24
    learning_rate: float = 2e-3
    warmup: float = 0.03
    keep_weight: float = 3.0
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
    attention: (L, C, M, H, N), by the latent of each frame instead of its number
    used: (C, N), 1 for the latents of frames, else 0
    """

    hidden: torch.Tensor
    there: torch.Tensor
    ends: torch.Tensor
    inner: torch.Tensor
    change: torch.Tensor
    scale: torch.Tensor
    attention: torch.Tensor
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
            asked = (each[:, token].float() for each in (clip.inner, clip.change, clip.scale))
            columns.append((*asked, attention))
            used.append(torch.zeros(stage.latents).index_fill(0, place, 1))
        padded = pad_sequence(ends, batch_first=True, padding_value=NO_END)
        there = torch.arange(padded.shape[1]) < torch.tensor([len(each) for each in ends])[:, None]
        states = pad_sequence(hidden, batch_first=True).transpose(1, 2)
        inner, change, scale, attention = (torch.stack(each, dim=1) for each in zip(*columns, strict=True))
        return cls(states, there, padded, inner, change, scale, attention, torch.stack(used))


def _placed(values: torch.Tensor, place: torch.Tensor, count: int) -> torch.Tensor:
    """Put the last axis at these places of a longer one: (..., F) to (..., count)."""
    return values.new_zeros((*values.shape[:-1], count), dtype=torch.float32).index_copy(-1, place, values.float())


class LayerObjective:
    """The loss of a batch. Rank k N + n reads the latent n, and thereby a frame, for the key/value head k.

    sizes: the mean of change^2 / scale in every layer, (L, 1, 1); the losses are relative to it
    finders: the linear heads of the `keeps` term, weights and bias, (3, L, W + 1, 2 K E), for tokens, latents and ranks
    """

    def __init__(self, vlm: FrozenVLM, hypernetwork: Hypernetwork, stage: LayerStage, clips: Sequence[ClipTargets]):
        self.model, self.hypernetwork, self.stage = vlm.language_model, hypernetwork, stage
        config = self.model.config
        self.heads = config.num_key_value_heads
        self.guidance = AttentionGuidance(hypernetwork, vlm.num_layers)
        projections = [
            layer.o_proj.float().unflatten(0, (self.heads, -1, config.head_dim)) for layer in self.model.layers
        ]
        self.projections = torch.stack(projections)  # (L, K, H / K, E, D)
        relative = [(clip.change.float().square().mean(-1) / clip.scale).mean(1) for clip in clips]
        self.sizes = torch.stack(relative).mean(0)[:, None, None]
        hidden = torch.cat([clip.hidden[:, clip.ends != NO_END].float() for clip in clips], dim=1)
        self.mean, self.whitening = _whitening(keys_and_values(self.model, hidden))
        columns = 2 * self.heads * config.head_dim
        self.finders = nn.Parameter(torch.zeros(3, vlm.num_layers, hypernetwork.config.latent_size + 1, columns))
        self.captured: dict[str, torch.Tensor] = {}
        encoder = resampler(hypernetwork, "encoder")
        encoder.register_forward_pre_hook(lambda _, inputs: self.captured.update(tokens=inputs[0]))
        encoder.register_forward_hook(lambda _, inputs, latents: self.captured.update(latents=latents))
        hypernetwork.layers[0].register_forward_hook(lambda _, inputs, ranks: self.captured.update(ranks=ranks))

    def losses(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        """The weighted terms, whose sum is minimised, each averaged over tokens and clips and summed over layers."""
        stage = self.stage
        factors = self.hypernetwork.generate(batch.hidden, batch.there)
        a, b = (torch.stack(each) for each in zip(*factors, strict=True))
        active = batch.inner @ a.transpose(-1, -2)  # (L, C, M, 2 R)
        weights = 1 / (batch.scale * self.sizes)  # (L, C, M)
        missed = ((active @ b - batch.change).square().mean(-1) * weights).mean((1, 2)).sum()
        guided = self.guidance.loss(batch.ends) / len(batch.ends)

        # The Q frames of all clips
        clip, token = (batch.ends != NO_END).nonzero(as_tuple=True)
        place = batch.ends[clip, token] % stage.latents
        frames = keys_and_values(self.model, batch.hidden[clip, :, token].transpose(0, 1))  # (L, Q, 2 K, E)
        values = frames.new_zeros((len(frames), *batch.used.shape, self.heads, frames.shape[-1]))
        values[:, clip, place] = frames[:, :, self.heads :]  # (L, C, N, K, E)
        return {
            "change": missed,
            "keeps": stage.keep_weight * self._keeps(frames, clip, token, place),
            **self._at_ends(batch, active, b, values, weights),
            "steer": stage.steer_weight * guided,
        }

    def _keeps(
        self, frames: torch.Tensor, clip: torch.Tensor, token: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        """The share of the whitened keys and values that the finders miss, averaged over what they read and summed over
        the layers in which tokens have attended to others.

        frames: (L, Q, 2 K, E); clip, token, place: (Q,), the clip of each frame, the token that ends it, its latent
        """
        layers = len(frames)
        wanted = torch.einsum("lqhe,lhef->lqhf", frames - self.mean, self.whitening).flatten(2)
        tokens, latents, ranks = (
            self.captured[name].unflatten(0, (-1, layers))[clip] for name in ("tokens", "latents", "ranks")
        )
        frame = torch.arange(len(clip))
        ranks = ranks.unflatten(2, (self.heads, -1)).mean(2)  # those of all key/value heads
        missed = frames.new_zeros(layers)
        for finder, states in zip(
            self.finders, (tokens[frame, :, token], latents[frame, :, place], ranks[frame, :, place]), strict=True
        ):
            states = F.rms_norm(states, states.shape[-1:]).transpose(0, 1)  # (L, Q, W)
            found = torch.baddbmm(FINDER_SCALE * finder[:, -1:], states, FINDER_SCALE * finder[:, :-1])
            missed = missed + (found - wanted).square().mean((1, 2)) / wanted.square().mean((1, 2))
        return missed[1:].sum() / len(self.finders)

    def _at_ends(
        self, batch: LayerBatch, active: torch.Tensor, b: torch.Tensor, values: torch.Tensor, weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The three terms of single ranks, weighted by how much of the change each layer reads at ends of frames.

        active: (L, C, M, 2 R), the activation of every rank; b: (L, C, 2 R, D)
        values: (L, C, N, K, E), at the ends of the frames; weights: (L, C, M), of the tokens
        """
        stage, width = self.stage, b.shape[-1]
        ranks = self.heads * stage.latents
        active = active[..., :ranks].unflatten(-1, (self.heads, -1))  # (L, C, M, K, N)
        rows = b[:, :, :ranks].unflatten(2, (self.heads, -1))  # (L, C, K, N, D)
        norms = rows.square().sum(-1)[:, :, None] / width  # (L, C, 1, K, N)

        # What the heads read of a frame: its product with the row of B, and its mean square, (L, C, M, K, N)
        attention = batch.attention.unflatten(3, (self.heads, -1))
        content = torch.einsum("lcnke,lkged->lckgnd", values, self.projections)
        product = torch.einsum("lcmkgn,lckgnd,lcknd->lcmkn", attention, content, rows) / width
        energy = torch.einsum("lcmkgn,lckgnd,lckhnd,lcmkhn->lcmkn", attention, content, content, attention) / width

        # Sum over ranks and average over tokens, relative to all that is read in a layer: (L,)
        def total(terms: torch.Tensor) -> torch.Tensor:
            return (terms.sum((3, 4)) * weights).mean((1, 2))

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


def _whitening(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of the keys and values of Q frames, (L, 1, 2 K, E), and a map to uncorrelated numbers of unit
    variance, (L, 2 K, E, E). Directions of little variance, which are noise, stay smaller. frames: (L, Q, 2 K, E)"""
    mean = frames.mean(1, keepdim=True)
    spread = torch.einsum("lqhe,lqhf->lhef", frames - mean, frames - mean) / frames.shape[1]
    variance, directions = torch.linalg.eigh(spread)
    variance = variance.clamp(min=0) + NOISE * variance[..., -1:] + TINY
    return mean, directions / variance.sqrt()[..., None, :]


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
        self.finders = nn.ParameterList([self.objective.finders])
        trained = [*self.hypernetwork.parameters(), *self.finders]
        self.optimizer = torch.optim.AdamW(trained, lr=stage.learning_rate, betas=(0.9, 0.98))
        self.schedule = warm_cosine(self.optimizer, stage.steps, max(1, round(stage.warmup * stage.steps)))
        names = "hypernetwork", "finders", "optimizer", "schedule"
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
    reading = Reading(sampling.frames, sampling.fps, None, None, vlm.geometry.longest_edge)
    answers = given.manifest.with_suffix(".teacher.jsonl")
    examples = with_teacher_answers(read_manifest(given.manifest), vlm, reading, answers)
    files = TargetFiles(vlm, examples, sampling, given.run / "targets")
    for done, count in files.write():
        print(f"targets: {done} of {count} files", flush=True)
    for progress in LayerTrainer(vlm, files.read(), stage, sampling, given.run).train():
        append_metrics(given.run / METRICS, progress)
        print(progress, flush=True)


if __name__ == "__main__":
    with errors_in_one_line():
        main()
