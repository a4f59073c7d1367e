"""Stage 2 of the frozen model: train the language model to answer, and the vision tower at a lower learning rate.

`python -m v2l.tiny.recipe.language_stage START OUTPUT`. START is the checkpoint of stage 1 or the folder of a model to
train further. Questions about a clip are packed and masked so that each attends to the clip and to itself only.

Answers alone teach retrieval slowly, so auxiliary losses supervise the middle of the model. Linear heads predict from a
frame's last token its content, its time and the word of the frame before. Attention losses direct a question's time or
word to the frame with the answer (first attention head; third head, with its own keys and values, for the word
before) and the answer's token to that question token (first head of the next layer). Further linear heads predict the
retrieved content there. A share of the clips is not shown, so that the model learns the form of an answer for the case
in which only an adapter provides the facts.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import SmolVLMForConditionalGeneration

from v2l.errors import errors_in_one_line
from v2l.models.device import choose_device
from v2l.models.processor import GLOBAL_VIEW, normalise
from v2l.tiny.recipe.asked_clips import ASKED, BEFORE, FRAME_LABELS, AskedClip, clip_questions, sample_clip, write_rows
from v2l.tiny.recipe.model import language_model, new_model, save_model
from v2l.tiny.recipe.vision_stage import GEOMETRY, LABELS
from v2l.tiny.world.scene import SHAPES
from v2l.tiny.world.tokenizer import IMAGE, SPECIAL_TOKENS, train_tokenizer
from v2l.training.common import (
    Steps,
    append_metrics,
    load_state,
    mixed_precision,
    prefetch,
    restore,
    save_state,
)
from v2l.training.packing import IGNORED, packed_forward
from v2l.training.schedule import warm_cosine

LOOKING, POINTING, REFERRING = 3, 3, 4
"""Layer whose inputs the frame heads read, layer of the attention from questions to frames, and layer of the attention
from answers to questions."""


@dataclass(frozen=True)
class Size:
    """A batch size. share: of the steps; clips: per batch; frames, tokens: maximum per clip"""

    share: float
    clips: int
    frames: int
    tokens: int


@dataclass(frozen=True)
class LanguageStage:
    """Settings of the stage.

    steps: number of optimizer steps, each on clips of one of the `sizes`
    learning_rate: peak, after `warmup` linear steps and before a cosine decay to zero
    tower_share: learning rate of the vision tower and the connector relative to the peak; 0 freezes them
    tiled: share of the clips of the last size with frames of two or three times the image size
    growing: share of the steps during which clips grow from one frame to the maximum of their size
    looking, pointing: weights of the frame heads, and of the attention and retrieval losses
    shapes: maximum number of shapes per scene
    easy: share of the questions about a colour or a shape to keep
    unseen: share of clips whose video is not shown
    workers: processes that draw clips in advance, for machines with idle cores
    """

    steps: int = 3000
    sizes: tuple[Size, ...] = (Size(0.62, 16, 8, 136), Size(0.23, 10, 16, 232), Size(0.15, 6, 33, 448))
    learning_rate: float = 1.5e-3
    tower_share: float = 0.5
    warmup: int = 150
    tiled: float = 0.6
    growing: float = 0.3
    looking: float = 1.0
    pointing: float = 0.5
    shapes: int = SHAPES
    easy: float = 0.3
    unseen: float = 0.08
    save_every: int = 50
    workers: int = 0
    seed: int = 0


FURTHER = LanguageStage(steps=3600, learning_rate=1.2e-3, tower_share=0.0, warmup=100, growing=0.0, seed=4)
"""Default settings for a model that has completed this stage before."""


class ClipBatches(Steps):
    """Clips by training step, all of the same size."""

    def __init__(self, stage: LanguageStage):
        self.stage = stage
        self.tokenizer = train_tokenizer()

    def __len__(self) -> int:
        return self.stage.steps

    def size(self, step: int) -> Size:
        """Return the size of the clips of that step."""
        shares = np.array([size.share for size in self.stage.sizes])
        random = np.random.default_rng([self.stage.seed, step])
        return self.stage.sizes[random.choice(len(shares), p=shares / shares.sum())]

    def batch(self, step: int) -> list[AskedClip]:
        """Return the clips of that step."""
        stage, size = self.stage, self.size(step)
        random = np.random.default_rng([stage.seed, step, 1])
        grown = min(1.0, (step + 1) / max(1.0, stage.growing * stage.steps))
        clips = []
        for _ in range(size.clips):
            most = max(1, round(size.frames * grown))
            tiled = 1
            if size is stage.sizes[-1] and grown == 1 and random.random() < stage.tiled:
                tiled = int(random.integers(2, 4))
                most = max(1, size.frames // (4 if tiled == 2 else 7))
            count = most if random.random() < 0.4 else int(random.integers(1, most + 1))
            clip = sample_clip(random, count, tiled, shapes=stage.shapes)
            questions = clip_questions(clip, random, stage.easy)
            clips.append(write_rows(clip, random.random() >= stage.unseen, questions, self.tokenizer))
        return clips


@dataclass(frozen=True)
class Losses:
    """Losses of one batch.

    answers, looks, points, finds: cross-entropy of answers and of frame heads, attention loss, retrieval loss, scalars
    right: (A, 2), per kind in ASKED the number of questions, and of those with every token predicted correctly
    """

    answers: torch.Tensor
    looks: torch.Tensor
    points: torch.Tensor
    finds: torch.Tensor
    right: torch.Tensor


class LanguageTrainer:
    """Model, auxiliary heads and optimizer of the stage.

    start: checkpoint of stage 1, or folder of a model to train further
    """

    def __init__(self, stage: LanguageStage, start: Path, output: Path):
        self.stage, self.output = stage, output
        self.device = choose_device(None)
        # Build the model and the auxiliary heads.
        self.model = new_model(stage.seed)
        nn.Module.to(self.model, self.device)
        self.batches = ClipBatches(stage)
        self.image_id, self.view_id = (SPECIAL_TOKENS.index(token) for token in (IMAGE, GLOBAL_VIEW))
        width = self.model.model.text_model.config.hidden_size
        self.heads, self.found, self.carried = (
            nn.ModuleDict({name: nn.Linear(width, size) for name, size in labels.items()}).to(self.device)
            for labels in (FRAME_LABELS, LABELS, LABELS)
        )
        # Load the starting point.
        if start.is_dir():
            self._load_model(start)
        else:
            reader = load_state(start)["reader"]
            self._load_part(self.model.model.vision_model, reader, "tower.")
            self._load_part(self.model.model.connector, reader, "connector.")
        # Train the vision tower and the connector at their own learning rate.
        self.vision = nn.ModuleList([self.model.model.vision_model, self.model.model.connector])
        self.vision.requires_grad_(stage.tower_share > 0)
        own = {id(parameter) for parameter in self.vision.parameters()}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in own]
        rest += [*self.heads.parameters(), *self.found.parameters(), *self.carried.parameters()]
        groups: list[dict[str, Any]] = [{"params": rest}]
        if stage.tower_share:
            groups.append({"params": list(self.vision.parameters()), "lr": stage.learning_rate * stage.tower_share})
        self.optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.schedule = warm_cosine(self.optimizer, stage.steps, stage.warmup)
        names = "model", "heads", "found", "carried", "optimizer", "schedule"
        self.parts = {name: getattr(self, name) for name in names}
        # Compiling makes steps 1.5 x as fast, and the first step of each size a minute slower.
        compiled = stage.steps >= 500 and shutil.which("g++")
        self.read = torch.compile(packed_forward) if compiled else packed_forward

    def train(self) -> Iterator[dict[str, object]]:
        """Train, resuming from the last checkpoint, and save the model in `output`/model.

        Yields one record per checkpoint, also saved in metrics.jsonl.
        """
        stage = self.stage
        self.output.mkdir(parents=True, exist_ok=True)
        first = restore(self.parts, self.output / "language.pt")
        started, clips = time.perf_counter(), 0
        losses: list[list[float]] = []
        right = torch.zeros(len(ASKED), 2)
        batches = cast(Iterator[list[AskedClip]], prefetch(self.batches, first, stage.workers))
        for step, batch in enumerate(batches, first):
            with mixed_precision(self.device):
                found = self.losses(batch, self.batches.size(step))
                loss = found.answers + stage.looking * found.looks + stage.pointing * (found.points + found.finds)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            losses.append([each.item() for each in (found.answers, found.looks, found.points, found.finds)])
            right += found.right
            clips += len(batch)
            if (step + 1) % stage.save_every == 0 or step + 1 == stage.steps:
                save_state(self.parts, step + 1, self.output / "language.pt")
                save_model(self.model, self.output / "model")
                rate = clips / (time.perf_counter() - started)
                means = np.mean(losses, axis=0).round(4).tolist()
                names = dict(zip(("answers", "looks", "points", "finds"), means, strict=True))
                shares = (right[:, 1] / right[:, 0]).tolist()
                known = {name: round(share, 3) for name, share in zip(ASKED, shares, strict=True) if share == share}
                values = {"step": step + 1, **names, "clips_per_second": round(rate, 1), "right": known}
                append_metrics(self.output / "metrics.jsonl", values)
                losses.clear()
                right.zero_()
                yield values

    def losses(self, clips: Sequence[AskedClip], size: Size) -> Losses:
        """Return the losses of one batch, as means over answer tokens, frames, and tokens with a target."""
        # Stack the clips.
        text = language_model(self.model)
        ids = pad_sequence([clip.ids for clip in clips], batch_first=True)
        ids = F.pad(ids, (0, size.tokens - ids.shape[1])).to(self.device)
        valid = torch.arange(size.tokens).lt(torch.tensor([len(clip.ids) for clip in clips])[:, None])
        rows, labels, positions, question, points, finds, whole, back = (
            torch.stack([getattr(clip, name) for clip in clips]).to(self.device)
            for name in ("rows", "labels", "positions", "question", "points", "finds", "whole", "back")
        )
        refers = torch.stack([clip.refers for clip in clips]).to(self.device)
        # Embed the prompt and insert the image tokens.
        embedded = text.embed(ids)
        images = [clip.images for clip in clips if clip.images is not None]
        if images:
            pixels = normalise(torch.cat(images).to(self.device))
            patches = self.model.model.vision_model(pixel_values=pixels).last_hidden_state
            image_tokens = self.model.model.connector(patches).to(embedded.dtype)
            embedded = embedded.masked_scatter(ids.eq(self.image_id)[..., None], image_tokens)
        # Run the language model on clips and questions.
        queries, layers = text.embed(rows), (POINTING, REFERRING)
        read = self.read(text, embedded, valid.to(self.device), queries, positions, question, None, layers)
        # Compute the cross-entropy of the answers.
        counted = labels[..., 1:].ne(IGNORED)
        targets = labels[..., 1:][counted]
        logits = text.logits(read.rows[:, :, :-1][counted]).float()
        answers = F.cross_entropy(logits, targets)
        # Read the frame heads at the last token of each frame.
        ends = ids.eq(self.view_id).roll(GEOMETRY.tokens_per_image + 1, dims=1)
        frame_labels = [clip.frame_labels for clip in clips]
        looks = self._looks(read.clip[LOOKING][ends], [each for each in frame_labels if each is not None])
        frame = (ends.cumsum(1) - 1).masked_fill(~ends, -1)  # (C, V): the frame that ends at a token, or -1
        # Look up the targets of the question tokens that answers refer to.
        referring = refers.ne(IGNORED)
        referred = (each.gather(2, refers.clamp(min=0)) * referring for each in (points, finds, whole))
        points_of, finds_of, whole_of = referred
        first_head, third_head = read.attention[0][:, :, 0].unbind(1)
        return Losses(
            answers,
            looks,
            self._points(torch.where(back[..., None], third_head, first_head), points, frame)
            + self._refers(read.attention[1][:, 0, 0], refers),
            self._finds(self.found, read.asked[REFERRING], points, finds, whole, frame_labels)
            + self._finds(self.carried, read.asked[REFERRING + 1], points_of, finds_of, whole_of, frame_labels),
            self._right(logits.argmax(-1).eq(targets), question[..., 1:], counted, [clip.kinds for clip in clips]),
        )

    @staticmethod
    def _points(attention: torch.Tensor, points: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        """Return the negative log of the attention to the last tokens of the target frames.

        The target is the last token because it carries the frame's content. The announced time is easier to find but
        carries none.

        attention: (C, R, W, V + W); points: (C, R, W); frame: (C, V), the frame that ends at each token, or -1
        """
        pointing = points.ne(0)
        if not pointing.any():
            return attention.new_zeros(())
        targets = (points[..., None] >> frame.clamp(min=0)[:, None, None]) & 1
        targets = targets.eq(1) & frame.ge(0)[:, None, None]
        share = (attention[..., : frame.shape[1]] * targets).sum(-1)[pointing]
        return -(share + 1e-5).log().mean()

    @staticmethod
    def _refers(attention: torch.Tensor, refers: torch.Tensor) -> torch.Tensor:
        """Return the negative log of the attention from answers to the question tokens they refer to.

        attention: (C, R, W, V + W); refers: (C, R, W), column in the row
        """
        referring = refers.ne(IGNORED)
        if not referring.any():
            return attention.new_zeros(())
        own = attention[referring][:, -refers.shape[-1] :]
        return -(own.gather(1, refers[referring][:, None]) + 1e-5).log().mean()

    def _finds(
        self,
        heads: nn.ModuleDict,
        asked: torch.Tensor,
        points: torch.Tensor,
        finds: torch.Tensor,
        whole: torch.Tensor,
        frame_labels: Sequence[dict[str, torch.Tensor] | None],
    ) -> torch.Tensor:
        """Return the cross-entropy of the retrieved word and, for times, of the other content of the frame.

        asked: (C, R, W, D), hidden states after the attention; points, finds, whole: (C, R, W) as in AskedClip
        """
        pointing = points.ne(0)
        if not pointing.any():
            return asked.new_zeros(())
        loss = F.cross_entropy(heads["word"](asked[pointing]).float(), finds[pointing])
        if whole.any():
            clips = [frame_labels[clip] or {} for clip in whole.nonzero()[:, 0].tolist()]
            frame = [(bits & -bits).bit_length() - 1 for bits in points[whole].tolist()]  # the first target frame
            others = [name for name in LABELS if name != "word"]
            for name in others:
                labels = torch.stack([clip[name][f] for clip, f in zip(clips, frame, strict=True)]).to(self.device)
                loss = loss + F.cross_entropy(heads[name](asked[whole]).float(), labels) / len(others)
        return loss

    @staticmethod
    def _right(
        right: torch.Tensor, question: torch.Tensor, counted: torch.Tensor, kinds: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Count questions and correctly answered questions by kind, (A, 2).

        right: (N,) bool, for the tokens where `counted` (C, R, W) is true; question: (C, R, W), number in its clip
        kinds: (Q,) per clip
        """
        starts = np.cumsum([0, *(len(each) for each in kinds)])
        number = (question + torch.tensor(starts[:-1], device=question.device)[:, None, None])[counted]
        whole = torch.ones(int(starts[-1]), device=right.device)
        whole = whole.scatter_reduce(0, number, right.float(), "amin").cpu()
        kind = torch.cat(list(kinds))
        asked = torch.bincount(kind, minlength=len(ASKED)).float()
        return torch.stack([asked, torch.bincount(kind, weights=whole, minlength=len(ASKED)).float()], dim=1)

    def _looks(self, frames: torch.Tensor, labels: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Return the loss of the frame heads. frames: (F, D), of all clips; labels: (F_c,) by name, per clip."""
        if not labels:
            return frames.new_zeros(())
        losses = {
            name: F.cross_entropy(head(frames).float(), torch.cat([clip[name] for clip in labels]).to(self.device))
            for name, head in self.heads.items()
        }
        # Words and times decide most questions: each has the weight of all shapes together.
        word, time = losses.pop("word") + losses.pop(BEFORE), (losses.pop("second") + losses.pop("minute")) / 2
        return (word + time + torch.stack(list(losses.values())).mean()) / 3

    def _load_model(self, folder: Path) -> None:
        """Load a saved model, with the embeddings of those tokens that both tokenizers have, matched by text."""
        state = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
        known = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ours = self.batches.tokenizer.get_vocab()
        pairs = [
            (place, known.token_to_id(token)) for token, place in ours.items() if known.token_to_id(token) is not None
        ]
        rows = self.model.get_input_embeddings().weight.detach().clone()
        rows[[place for place, _ in pairs]] = state["model.text_model.embed_tokens.weight"][[old for _, old in pairs]]
        for name in ("model.text_model.embed_tokens.weight", "lm_head.weight"):
            state[name] = rows
        self.model.load_state_dict(state)

    @staticmethod
    def _load_part(module: nn.Module, state: dict[str, torch.Tensor], prefix: str) -> None:
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m v2l.tiny.recipe.language_stage", description="Train stage 2, or continue it."
    )
    parser.add_argument("start", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    stage = FURTHER if given.start.is_dir() else LanguageStage()
    changes = {name: getattr(given, name) for name in ("steps", "seed") if getattr(given, name) is not None}
    with errors_in_one_line():
        for line in LanguageTrainer(replace(stage, **changes), given.start, given.output).train():
            print(line, flush=True)
