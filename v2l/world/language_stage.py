"""Stage 2 of the frozen model: with the vision tower frozen, the connector and the language model learn to answer.

All questions about a clip stand in one sequence, turn after turn, behind the video; some clips are heard of without
being seen, so that the form of an answer is known where an adapter alone will bring the facts.
`python -m v2l.world.language_stage VISION_CHECKPOINT OUTPUT` after stage 1.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from v2l.prompt import (
    END_OF_TURN,
    INTERNALIZATION_PROMPT,
    PIXEL_MEAN,
    PIXEL_STD,
    PromptFrame,
    frame_images,
    question_text,
    video_text,
)
from v2l.world.draw import draw
from v2l.world.model import new_model, save_model
from v2l.world.questions import Question, ask_about, caption
from v2l.world.scene import Scene, sample_scene
from v2l.world.tokenizer import IMAGE, train_tokenizer
from v2l.world.vision_stage import GEOMETRY, keep, restore

MOST_FRAMES = 12
IGNORED = -100


@dataclass(frozen=True)
class LanguageStage:
    """steps of batch clips; learning_rate: its peak, after a warm-up and before a cosine to zero.

    questions: at most this many of a clip; unseen: share of clips without their video
    """

    steps: int = 2500
    batch: int = 16
    learning_rate: float = 1e-3
    warmup: int = 100
    questions: int = 8
    unseen: float = 0.1
    save_every: int = 250
    seed: int = 0


@dataclass(frozen=True)
class SeenClip:
    """A scene, the seconds of the frames seen of it, and their images, (F, 3, S, S) uint8."""

    scene: Scene
    times: tuple[float, ...]
    images: np.ndarray


def sample_clip(random: np.random.Generator, split: str = "train") -> SeenClip:
    """A clip of 2 to 12 seconds, a frame a second, of any size; one in three is cut out of a longer video."""
    duration = float(random.uniform(2, MOST_FRAMES))
    start = float(random.integers(600)) if random.random() < 1 / 3 else 0.0
    count = int(duration)  # so that no two frames are announced with the same second
    scene = sample_scene(split, int(random.integers(2**31)), duration, start, views=count)
    times = tuple(start + duration * index / count for index in range(count))
    height, width = (int(side) for side in random.integers(64, 129, 2))
    images = [frame_images(draw(scene, seconds, height, width), GEOMETRY)[0] for seconds in times]
    return SeenClip(scene, times, np.stack(images))


def clip_turns(clip: SeenClip, random: np.random.Generator, most: int) -> list[Question]:
    """Questions about the clip in a random order; one in four begins with the internalization prompt."""
    asked = ask_about(clip.scene, clip.times, random)
    turns = [asked[place] for place in random.permutation(len(asked))[:most]]
    told = caption(clip.scene, clip.times, random)
    if random.random() < 0.5:
        turns[-1] = told
    if random.random() < 0.25:
        turns[0] = Question("caption", INTERNALIZATION_PROMPT, told.answer)
    return turns


def video_prompt(clip: SeenClip, prompt: str) -> str:
    """The clip and a question about it, as v2l itself writes them."""
    frames = [PromptFrame(seconds) for seconds in clip.times]
    return video_text(frames, clip.scene.start + clip.scene.duration, prompt, GEOMETRY, generation_prompt=True)


def sequence(first: str, turns: list[Question], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation; the loss counts answers and what ends them, nothing else.

    first: the text up to the first answer
    """
    ids: list[int] = []
    labels: list[int] = []
    for number, turn in enumerate(turns):
        prompt = first if number == 0 else question_text(turn.prompt).removeprefix("<|im_start|>")
        for text, counts in ((prompt, False), (f" {turn.answer}{END_OF_TURN}\n", True)):
            part = tokenizer.encode(text, add_special_tokens=False).ids
            ids += part
            labels += part if counts else [IGNORED] * len(part)
    return ids, labels


class Trainer:
    """The model with its vision tower as stage 1 left it, and everything that a checkpoint keeps."""

    def __init__(self, stage: LanguageStage, vision: Path, output: Path):
        self.stage, self.output = stage, output
        self.model = new_model(stage.seed)
        self.tokenizer = train_tokenizer()
        self.image_id = self.tokenizer.token_to_id(IMAGE)
        reader = torch.load(vision, weights_only=True)["reader"]
        self._load_part(self.model.model.vision_model, reader, "tower.")
        self._load_part(self.model.model.connector, reader, "connector.")
        self.model.model.vision_model.requires_grad_(False)
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=stage.learning_rate, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}

    def train(self) -> Iterator[dict[str, float]]:
        """Trains, going on from the last checkpoint; yields and appends to metrics.jsonl a record at each, and leaves
        the model's folder in `output`/model."""
        stage = self.stage
        self.output.mkdir(parents=True, exist_ok=True)
        first = restore(self.parts, self.output / "language.pt")
        started, losses = time.perf_counter(), []
        for step in range(first, stage.steps):
            loss = self.loss(step)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item())
            if (step + 1) % stage.save_every == 0 or step + 1 == stage.steps:
                keep(self.parts, step + 1, self.output / "language.pt")
                save_model(self.model, self.output / "model")
                rate = (step + 1 - first) * stage.batch / (time.perf_counter() - started)
                mean = sum(losses[-stage.save_every :]) / len(losses[-stage.save_every :])
                record = {"step": step + 1, "loss": round(mean, 4), "clips_per_second": round(rate, 1)}
                with open(self.output / "metrics.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                yield record

    def loss(self, step: int) -> torch.Tensor:
        """Cross-entropy of the answers of one batch, the mean over their tokens."""
        random = np.random.default_rng([self.stage.seed, step])
        clips = [sample_clip(random) for _ in range(self.stage.batch)]
        seen = self._see(clips)
        embedded, labels = [], []
        for clip, images in zip(clips, seen, strict=True):
            turns = clip_turns(clip, random, self.stage.questions)
            unseen = random.random() < self.stage.unseen
            first = question_text(turns[0].prompt) if unseen else video_prompt(clip, turns[0].prompt)
            ids, wanted = sequence(first, turns, self.tokenizer)
            embedded.append(self._embed(torch.tensor(ids), None if unseen else images))
            labels.append(torch.tensor(wanted))
        inputs = nn.utils.rnn.pad_sequence(embedded, batch_first=True)
        targets = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        # padding stands on the right, where a causal model does not look
        hidden = self.model.model.text_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        counted = targets[:, 1:] != IGNORED
        return F.cross_entropy(self.model.lm_head(hidden[:, :-1][counted]), targets[:, 1:][counted])

    def _see(self, clips: list[SeenClip]) -> list[torch.Tensor]:
        """Each clip's image embeddings, (F * tokens, D)."""
        images = torch.from_numpy(np.concatenate([clip.images for clip in clips])).float()
        with torch.no_grad():
            pixels = (images / 255 - PIXEL_MEAN) / PIXEL_STD
            patches = self.model.model.vision_model(pixel_values=pixels).last_hidden_state
        seen = self.model.model.connector(patches)
        return [part.flatten(0, 1) for part in seen.split([len(clip.images) for clip in clips])]

    def _embed(self, ids: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        embedded = self.model.model.text_model.embed_tokens(ids)
        if images is None:
            return embedded
        return embedded.masked_scatter((ids == self.image_id)[:, None], images)

    def _rate(self, step: int) -> float:
        done = (step - self.stage.warmup) / max(1, self.stage.steps - self.stage.warmup)
        return (step + 1) / self.stage.warmup if done < 0 else 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    @staticmethod
    def _load_part(module: nn.Module, state: dict[str, torch.Tensor], prefix: str) -> None:
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


if __name__ == "__main__":
    import sys

    for line in Trainer(LanguageStage(), Path(sys.argv[1]), Path(sys.argv[2])).train():
        print(line, flush=True)
