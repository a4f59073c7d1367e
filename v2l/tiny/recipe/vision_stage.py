"""Stage 1 of the frozen model: train the vision tower and the connector on single frames through linear heads.

`python -m v2l.tiny.recipe.vision_stage OUTPUT`. Learning vision from the language loss alone takes far longer. Patch
heads predict the shape that covers a patch, which teaches kinds and colours within minutes. Frame heads predict the
content that the language model needs from the image tokens after the connector: first from their concatenation, then
from their mean, because attention sums the tokens and cannot use information that is only in their order.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from v2l.models.config import VisionGeometry
from v2l.models.device import choose_device
from v2l.models.processor import frame_images, normalise
from v2l.tiny.recipe.model import IMAGE_SIZE, new_model
from v2l.tiny.world.draw import draw
from v2l.tiny.world.scene import COLOURS, KINDS, PLACES, WORDS, Scene, place_name, sample_story
from v2l.training.common import (
    Stateful,
    Steps,
    append_metrics,
    load_state,
    mixed_precision,
    prefetch,
    restore,
    save_state,
)
from v2l.training.schedule import warm_cosine

GEOMETRY = VisionGeometry(IMAGE_SIZE, 4, IMAGE_SIZE)
COLOUR_NAMES = tuple(COLOURS)
PLACE_NAMES = tuple(name for row in PLACES for name in row)
LABELS = {
    "word": len(WORDS),
    **{f"colour of {kind}": len(COLOURS) + 1 for kind in KINDS},
    **{f"place of {kind}": len(PLACE_NAMES) + 1 for kind in KINDS},
}
"""Labels of a frame and their numbers of classes; the last class of a shape's label means that it is absent."""
PATCH_SIDE = 8
PATCH_LABELS = {"patch kind": len(KINDS) + 1, "patch colour": len(COLOURS) + 1}
"""Labels of a patch and their numbers of classes; the last class means that no shape covers its centre."""

BARE_PATCH = 0.05
"""Weight of a patch without a shape in the loss; a covered patch has weight 1."""


@dataclass(frozen=True)
class VisionStage:
    """Settings of one pass.

    steps, batch: number of optimizer steps and frames per step
    learning_rate: peak, after `warmup` linear steps and before a cosine decay to zero
    pooled: frame heads read the mean of a frame's tokens instead of their concatenation
    save_every: steps between checkpoints, each evaluated on `measured` frames
    workers: processes that draw frames in advance, for machines with idle cores
    """

    steps: int = 4000
    batch: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.01
    pooled: bool = False
    save_every: int = 500
    workers: int = 0
    measured: int = 512
    seed: int = 0


PASSES = {"flat": VisionStage(), "pooled": VisionStage(steps=1500, learning_rate=1e-3, pooled=True, seed=1)}
"""The two passes, in order; the second starts from the tower and the connector of the first."""


def frame_batch(seed: int, step: int, count: int, split: str = "train") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return normalised images (count, 3, S, S) and labels by name, (count,) or, for patches, (count, P).

    The seed and the step determine the batch.
    """
    random = np.random.default_rng([seed, step])
    pixels, labels = [], []
    for _ in range(count):
        scene = sample_story(split, int(random.integers(2**31)), 8.0).scenes[0]
        seconds = float(random.uniform(0, 8))
        height, width = (int(side) for side in random.integers(64, 129, 2))
        pixels.append(frame_images(draw(scene, seconds, height, width), GEOMETRY)[0])
        labels.append({**frame_labels(scene, seconds), **patch_labels(scene, seconds, width / height)})
    images = normalise(torch.from_numpy(np.stack(pixels)))
    return images, {name: torch.tensor(np.array([label[name] for label in labels])) for name in labels[0]}


def frame_labels(scene: Scene, seconds: float) -> dict[str, int]:
    """Return the classes of one frame by label name."""
    labels = {name: size - 1 for name, size in LABELS.items()}
    labels["word"] = WORDS.index(scene.board.word_at(seconds))
    for shape in scene.shapes:
        labels[f"colour of {shape.kind}"] = COLOUR_NAMES.index(shape.colour)
        labels[f"place of {shape.kind}"] = PLACE_NAMES.index(place_name(*scene.where(shape, seconds)))
    return labels


def patch_labels(scene: Scene, seconds: float, aspect: float) -> dict[str, np.ndarray]:
    """Return kind and colour of the shape over the centre of each patch, row by row, (P,) by label name.

    aspect: width / height of the frame before resizing to a square
    """
    middles = (np.arange(PATCH_SIDE) + 0.5) / PATCH_SIDE
    labels = {name: np.full((PATCH_SIDE, PATCH_SIDE), size - 1) for name, size in PATCH_LABELS.items()}
    for shape in scene.shapes:
        x, y = scene.where(shape, seconds)
        reach = 0.45 * shape.size  # slightly less than the radius, relative to the frame's shorter side
        across, down = reach * min(1.0, 1 / aspect), reach * min(1.0, aspect)
        covered = ((middles[None] - x) / across) ** 2 + ((middles[:, None] - y) / down) ** 2 < 1
        labels["patch kind"][covered] = KINDS.index(shape.kind)
        labels["patch colour"][covered] = COLOUR_NAMES.index(shape.colour)
    return {name: label.ravel() for name, label in labels.items()}


class FrameReader(nn.Module):
    """Vision tower and connector of the model with one linear head per label."""

    def __init__(self, seed: int, pooled: bool = False):
        super().__init__()
        model = new_model(seed).model
        self.tower, self.connector, self.pooled = model.vision_model, model.connector, pooled
        width = model.text_model.config.hidden_size * (1 if pooled else GEOMETRY.tokens_per_image)
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in LABELS.items()})
        patch = model.vision_model.config.hidden_size
        self.patch_heads = nn.ModuleDict({name: nn.Linear(patch, size) for name, size in PATCH_LABELS.items()})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits by label for images (B, 3, S, S): (B, classes), or (B, classes, P) for patches."""
        patches = self.tower(pixel_values=images).last_hidden_state
        tokens = self.connector(patches)  # (B, tokens, D)
        frame = F.rms_norm(tokens, tokens.shape[-1:]).mean(1) if self.pooled else tokens.flatten(1)
        logits = {name: head(frame).float() for name, head in self.heads.items()}
        return logits | {name: head(patches).float().transpose(1, 2) for name, head in self.patch_heads.items()}


class FrameBatches(Steps):
    """Frames and labels by training step."""

    def __init__(self, stage: VisionStage):
        self.stage = stage

    def __len__(self) -> int:
        return self.stage.steps

    def batch(self, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return `frame_batch` for that step."""
        return frame_batch(self.stage.seed, step, self.stage.batch)


def train(stage: VisionStage, output: Path, start: Path | None = None) -> Iterator[dict[str, float]]:
    """Train, resuming from the last checkpoint in `output`. Yield a record per checkpoint, also saved in metrics.jsonl.

    start: checkpoint that initialises the tower, the connector and the patch heads
    """
    # Build the model and its optimizer, or restore them.
    output.mkdir(parents=True, exist_ok=True)
    device = choose_device(None)
    reader = FrameReader(stage.seed, stage.pooled).to(device)
    if start is not None:
        known = load_state(start)["reader"]
        kept = {name: tensor for name, tensor in known.items() if not name.startswith("heads.")}
        reader.load_state_dict(kept, strict=False)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay)
    schedule = warm_cosine(optimizer, stage.steps, stage.warmup)
    parts: dict[str, Stateful] = {"reader": reader, "optimizer": optimizer, "schedule": schedule}
    first = restore(parts, output / "vision.pt")
    batches = cast(
        Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]], prefetch(FrameBatches(stage), first, stage.workers)
    )
    started = time.perf_counter()
    losses: list[float] = []
    for step, (images, labels) in enumerate(batches, first):
        with mixed_precision(device):
            logits = reader(images.to(device))
        terms = [_loss(name, logits[name], labels[name].to(device)) for name in logits]
        loss = sum(terms[1:], terms[0])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % stage.save_every == 0 or step + 1 == stage.steps:
            save_state(parts, step + 1, output / "vision.pt")
            rate = (step + 1 - first) * stage.batch / (time.perf_counter() - started)
            values = {
                "step": step + 1,
                "loss": round(sum(losses[-stage.save_every :]) / len(losses[-stage.save_every :]), 4),
                "frames_per_second": round(rate, 1),
                **measure(reader, stage.measured),
            }
            append_metrics(output / "metrics.jsonl", values)
            yield values


def _loss(name: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy, with a low weight for the many patches that no shape covers."""
    weight = torch.ones(logits.shape[1], device=logits.device)
    if name in PATCH_LABELS:
        weight[-1] = BARE_PATCH
    return F.cross_entropy(logits, labels, weight)


@torch.no_grad()
def measure(reader: FrameReader, count: int) -> dict[str, float]:
    """Return the accuracy by label on validation frames, for shapes that are present and patches that are covered."""
    images, labels = frame_batch(0, 0, count, split="validation")
    device = next(reader.parameters()).device
    parts = [reader(part.to(device)) for part in images.split(128)]
    logits = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    correct: dict[str, list[torch.Tensor]] = {"word": [], "colour": [], "place": [], "patch": []}
    for name, size in (LABELS | PATCH_LABELS).items():
        present = labels[name] < (size if name == "word" else size - 1)
        correct[name.split()[0]].append(logits[name].argmax(1).eq(labels[name])[present])
    return {name: round(torch.cat(parts).float().mean().item(), 4) for name, parts in correct.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m v2l.tiny.recipe.vision_stage", description="Train stage 1, in two passes."
    )
    parser.add_argument("output", type=Path)
    standard = [stage.steps for stage in PASSES.values()]
    parser.add_argument("--steps", type=int, nargs=len(PASSES), metavar=("FLAT", "POOLED"), default=standard)
    given, before = parser.parse_args(), None
    for (name, stage), steps in zip(PASSES.items(), given.steps, strict=True):
        for line in train(replace(stage, steps=steps), given.output / name, before):
            print(name, line, flush=True)
        before = given.output / name / "vision.pt"
