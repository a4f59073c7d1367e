"""Stage 1 of the frozen model: the vision tower and the connector learn single frames through linear heads.

Learning to see through the language loss alone takes far longer: `python -m v2l.world.vision_stage OUTPUT` first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from v2l.prompt import PIXEL_MEAN, PIXEL_STD, VisionGeometry, frame_images
from v2l.world.draw import draw
from v2l.world.model import IMAGE_SIZE, new_model
from v2l.world.scene import COLOURS, KINDS, PLACES, WORDS, Scene, place_name, sample_scene

GEOMETRY = VisionGeometry(IMAGE_SIZE, 4, IMAGE_SIZE)
COLOUR_NAMES = tuple(COLOURS)
PLACE_NAMES = tuple(name for row in PLACES for name in row)
LABELS = {
    "word": len(WORDS),
    **{f"colour of {kind}": len(COLOURS) + 1 for kind in KINDS},
    **{f"place of {kind}": len(PLACE_NAMES) + 1 for kind in KINDS},
}
"""What a frame is asked for, and among how many answers; of a shape that is not there, the last."""


@dataclass(frozen=True)
class VisionStage:
    """steps of batch frames; learning_rate: at the start, cosine to zero; save_every: steps between checkpoints, at
    which `measured` frames are looked at."""

    steps: int = 2500
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    save_every: int = 250
    measured: int = 512
    seed: int = 0


def frame_batch(seed: int, step: int, count: int, split: str = "train") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Images (count, 3, S, S) in the model's range and labels (count,) by name; the same for the same seed and step."""
    random = np.random.default_rng([seed, step])
    pixels, labels = [], []
    for _ in range(count):
        scene = sample_scene(split, int(random.integers(2**31)), 8.0)
        seconds = float(random.uniform(0, 8))
        height, width = (int(side) for side in random.integers(64, 129, 2))
        pixels.append(frame_images(draw(scene, seconds, height, width), GEOMETRY)[0])
        labels.append(frame_labels(scene, seconds))
    images = (torch.from_numpy(np.stack(pixels)).float() / 255 - PIXEL_MEAN) / PIXEL_STD
    return images, {name: torch.tensor([label[name] for label in labels]) for name in LABELS}


def frame_labels(scene: Scene, seconds: float) -> dict[str, int]:
    """Every label's answer for one frame."""
    labels = {name: size - 1 for name, size in LABELS.items()}
    labels["word"] = WORDS.index(scene.board.word_at(seconds))
    for shape in scene.shapes:
        labels[f"colour of {shape.kind}"] = COLOUR_NAMES.index(shape.colour)
        labels[f"place of {shape.kind}"] = PLACE_NAMES.index(place_name(*scene.where(shape, seconds)))
    return labels


class FrameReader(nn.Module):
    """The model's vision tower and connector under one linear head for each label."""

    def __init__(self, seed: int):
        super().__init__()
        model = new_model(seed).model
        self.tower, self.connector = model.vision_model, model.connector
        width = model.text_model.config.hidden_size * GEOMETRY.tokens_per_image
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in LABELS.items()})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (B, answers) by label of images (B, 3, S, S)."""
        seen = self.connector(self.tower(pixel_values=images).last_hidden_state).flatten(1)
        return {name: head(seen) for name, head in self.heads.items()}


def train(stage: VisionStage, output: Path) -> Iterator[dict[str, float]]:
    """Trains, going on from the last checkpoint in `output`; yields and appends to metrics.jsonl a record at each."""
    output.mkdir(parents=True, exist_ok=True)
    reader = FrameReader(stage.seed)
    decay = {"lr": stage.learning_rate, "weight_decay": stage.weight_decay}
    optimizer = torch.optim.AdamW(reader.parameters(), **decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, stage.steps)
    parts = {"reader": reader, "optimizer": optimizer, "schedule": schedule}
    first = restore(parts, output / "vision.pt")
    started = time.perf_counter()
    for step in range(first, stage.steps):
        images, labels = frame_batch(stage.seed, step, stage.batch)
        logits = reader(images)
        loss = sum(F.cross_entropy(logits[name], labels[name]) for name in LABELS)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % stage.save_every == 0 or step + 1 == stage.steps:
            keep(parts, step + 1, output / "vision.pt")
            rate = (step + 1 - first) * stage.batch / (time.perf_counter() - started)
            record = {
                "step": step + 1,
                "loss": loss.item(),
                "frames_per_second": round(rate, 1),
                **measure(reader, stage.measured),
            }
            with open(output / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            yield record


@torch.no_grad()
def measure(reader: FrameReader, count: int) -> dict[str, float]:
    """Accuracy by label on frames of the validation split, of the shapes that are there."""
    images, labels = frame_batch(0, 0, count, split="validation")
    reader.eval()
    logits = {name: torch.cat(parts) for name, parts in _by_name(reader(part) for part in images.split(128)).items()}
    reader.train()
    right = {"word": [], "colour": [], "place": []}
    for name, size in LABELS.items():
        there = labels[name] != size - 1 if name != "word" else torch.ones(count, dtype=torch.bool)
        right[name.split()[0]].append((logits[name].argmax(-1) == labels[name])[there])
    return {name: round(torch.cat(parts).float().mean().item(), 4) for name, parts in right.items()}


def _by_name(parts: Iterator[dict[str, torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
    together: dict[str, list[torch.Tensor]] = {name: [] for name in LABELS}
    for part in parts:
        for name, logits in part.items():
            together[name].append(logits)
    return together


def keep(parts: dict, step: int, path: Path) -> None:
    """Writes a checkpoint, whole or not at all."""
    part = path.with_suffix(".part")
    torch.save({"step": step, **{name: each.state_dict() for name, each in parts.items()}}, part)
    part.replace(path)


def restore(parts: dict, path: Path) -> int:
    """Puts back the last checkpoint, if there is one; the step to go on with."""
    if not path.exists():
        return 0
    kept = torch.load(path, weights_only=True)
    for name, each in parts.items():
        each.load_state_dict(kept[name])
    return kept["step"]


if __name__ == "__main__":
    import sys

    for line in train(VisionStage(), Path(sys.argv[1])):
        print(line, flush=True)
