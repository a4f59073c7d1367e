"""Stage 2 of the frozen model: the language model learns to answer, and the vision tower, slowly, to see better.

Every clip is asked many questions at once, each heard as if it were the only one (`side_by_side.py`). More is asked of
the model than answers, which teach slowly what must be looked up: at the end of each frame linear heads ask its middle
what the frame shows, when it stands and which word the frame before it showed. Where a question names a time, or a word
that another follows, the first head of one layer shall look from there at the frame that tells, and where what came
before a word is asked the third, which has keys and values of its own; other linear heads ask there what was found, and
the first head of the next layer shall look from the answer at that. Some clips are heard of without being seen, so that
the form of an answer is known where an adapter alone will bring the facts.
`python -m v2l.tiny.recipe.language_stage START OUTPUT`: START is the checkpoint of stage 1, or the folder of a model that
shall learn more.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import SmolVLMForConditionalGeneration

from v2l.errors import errors_in_one_line
from v2l.models.loading import choose_device
from v2l.models.processor import GLOBAL_VIEW, PIXEL_MEAN, PIXEL_STD
from v2l.tiny.recipe.asked_clips import ASKED, BEFORE, LOOKS, AskedClip, clip_questions, sample_clip, write_rows
from v2l.tiny.recipe.model import new_model, save_model
from v2l.tiny.recipe.vision_stage import GEOMETRY, LABELS
from v2l.tiny.world.scene import SHAPES
from v2l.tiny.world.tokenizer import IMAGE, train_tokenizer
from v2l.training.common import (
    Steps,
    append_metrics,
    load_state,
    mixed_precision,
    prefetch,
    restore,
    save_state,
    warm_cosine,
)
from v2l.training.packing import IGNORED, packed_forward

LOOKING, POINTING, REFERRING = 3, 3, 4
"""The layer whose inputs the heads read; the layer of which a head looks from a question at frames; and the next one,
whose first head looks from the answer at what the question found there."""


@dataclass(frozen=True)
class Size:
    """Clips of like length, read together. share: of the steps; frames: at most; tokens: of a clip, at most"""

    share: float
    clips: int
    frames: int
    tokens: int


@dataclass(frozen=True)
class LanguageStage:
    """steps of a batch of clips of one of the `sizes`; learning_rate: its peak, after a warm-up and before a cosine to
    zero; the vision tower and the connector learn at a `tower_share` of it, or are left as they are.

    tiled: share of the clips of the last size whose frames are two or three times the image size
    growing: share of the steps in which clips grow from one frame to those of their size
    looking, pointing: weights of the heads that are asked about each frame, and of the head that points
    shapes: at most this many in a scene
    easy: share of the questions about a colour or a shape that is kept
    unseen: share of clips without their video
    workers: processes that draw clips ahead, for a machine whose cores training leaves idle
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
"""The settings for a model that has been through this stage before."""


class ClipBatches(Steps):
    """The clips of each step, all of one size."""

    def __init__(self, stage: LanguageStage):
        self.stage = stage
        self.tokenizer = train_tokenizer()

    def __len__(self) -> int:
        return self.stage.steps

    def size(self, step: int) -> Size:
        """The size of that step's clips."""
        shares = np.array([size.share for size in self.stage.sizes])
        random = np.random.default_rng([self.stage.seed, step])
        return self.stage.sizes[random.choice(len(shares), p=shares / shares.sum())]

    def batch(self, step: int) -> list[AskedClip]:
        """The clips of that step."""
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
    """Of one batch: answers, looks, points and finds, scalars; right: by place in ASKED, how many questions were asked
    and how many of them answered right in every token, (A, 2)."""

    answers: torch.Tensor
    looks: torch.Tensor
    points: torch.Tensor
    finds: torch.Tensor
    right: torch.Tensor


class LanguageTrainer:
    """The model as stage 1 left it (start is its checkpoint) or as an earlier release is (start is its folder), and
    everything that a checkpoint keeps."""

    def __init__(self, stage: LanguageStage, start: Path, output: Path):
        self.stage, self.output = stage, output
        self.device = choose_device(None)
        self.model = new_model(stage.seed).to(self.device)
        self.batches = ClipBatches(stage)
        self.image_id, self.view_id = (self.batches.tokenizer.token_to_id(token) for token in (IMAGE, GLOBAL_VIEW))
        width = self.model.config.text_config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in LOOKS.items()}).to(self.device)
        self.found, self.carried = (
            nn.ModuleDict({name: nn.Linear(width, size) for name, size in LABELS.items()}).to(self.device)
            for _ in range(2)
        )
        if start.is_dir():
            self._go_on_from(start)
        else:
            reader = load_state(start)["reader"]
            self._load_part(self.model.model.vision_model, reader, "tower.")
            self._load_part(self.model.model.connector, reader, "connector.")
        self.eyes = nn.ModuleList([self.model.model.vision_model, self.model.model.connector])
        self.eyes.requires_grad_(stage.tower_share > 0)
        names = {id(parameter) for parameter in self.eyes.parameters()}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in names]
        rest += [*self.heads.parameters(), *self.found.parameters(), *self.carried.parameters()]
        groups = [{"params": rest}]
        if stage.tower_share:
            groups.append({"params": list(self.eyes.parameters()), "lr": stage.learning_rate * stage.tower_share})
        self.optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.schedule = warm_cosine(self.optimizer, stage.steps, stage.warmup)
        self.parts = {
            "model": self.model,
            "heads": self.heads,
            "found": self.found,
            "carried": self.carried,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
        # one and a half times as fast where there is a compiler, and the first step of each size a minute slower
        compiled = stage.steps >= 500 and shutil.which("g++")
        self.read = torch.compile(packed_forward) if compiled else packed_forward

    def train(self) -> Iterator[dict[str, object]]:
        """Trains, going on from the last checkpoint; yields and appends to metrics.jsonl a record at each, and leaves
        the model's folder in `output`/model."""
        stage = self.stage
        self.output.mkdir(parents=True, exist_ok=True)
        first = restore(self.parts, self.output / "language.pt")
        started, losses, clips = time.perf_counter(), [], 0
        right = torch.zeros(len(ASKED), 2)
        for step, batch in enumerate(prefetch(self.batches, first, stage.workers), first):
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
                told = {name: round(share, 3) for name, share in zip(ASKED, shares, strict=True) if share == share}
                values = {"step": step + 1, **names, "clips_per_second": round(rate, 1), "right": told}
                append_metrics(self.output / "metrics.jsonl", values)
                losses.clear()
                right.zero_()
                yield values

    def losses(self, clips: Sequence[AskedClip], size: Size) -> Losses:
        """Cross-entropy of one batch: of the answers, the mean over their tokens; of what the heads say of the frames,
        the mean over frames; of where the pointing heads look, the mean over tokens that should look somewhere; and of
        what other heads say that these found."""
        text = self.model.model.text_model
        ids = pad_sequence([clip.ids for clip in clips], batch_first=True)
        ids = F.pad(ids, (0, size.tokens - ids.shape[1])).to(self.device)
        there = torch.arange(size.tokens) < torch.tensor([len(clip.ids) for clip in clips])[:, None]
        rows, labels, positions, question, points, finds, whole, back = (
            torch.stack([getattr(clip, name) for clip in clips]).to(self.device)
            for name in ("rows", "labels", "positions", "question", "points", "finds", "whole", "back")
        )
        refers = torch.stack([clip.refers for clip in clips]).to(self.device)
        embedded = text.embed_tokens(ids)
        images = [clip.images for clip in clips if clip.images is not None]
        if images:
            pixels = (torch.cat(images).to(self.device).float() / 255 - PIXEL_MEAN) / PIXEL_STD
            patches = self.model.model.vision_model(pixel_values=pixels).last_hidden_state
            seen = self.model.model.connector(patches).to(embedded.dtype)
            embedded = embedded.masked_scatter((ids == self.image_id)[..., None], seen)
        read = self.read(
            text,
            embedded,
            there.to(self.device),
            text.embed_tokens(rows),
            positions,
            question,
            None,
            (POINTING, REFERRING),
        )
        counted = labels[..., 1:] != IGNORED
        wanted = labels[..., 1:][counted]
        logits = self.model.lm_head(read.rows[:, :, :-1][counted]).float()
        answers = F.cross_entropy(logits, wanted)
        ends = (ids == self.view_id).roll(GEOMETRY.tokens_per_image + 1, dims=1)
        looks = self._looks(read.clip[LOOKING][ends], [clip.looks for clip in clips if clip.looks is not None])
        frame = (ends.cumsum(1) - 1).masked_fill(~ends, -1)  # (C, V): which frame's end a token is
        looks_of = [clip.looks for clip in clips]
        referring = refers != IGNORED
        referred = [each.gather(2, refers.clamp(min=0)) * referring for each in (points, finds, whole)]
        first_head, third_head = read.attention[0].unbind(1)
        return Losses(
            answers,
            looks,
            self._points(torch.where(back[..., None], third_head, first_head), points, frame)
            + self._refers(read.attention[1][:, 0], refers),
            self._finds(self.found, read.asked[REFERRING], points, finds, whole, looks_of)
            + self._finds(self.carried, read.asked[REFERRING + 1], *referred, looks_of),
            self._right(logits.argmax(-1) == wanted, question[..., 1:], counted, [clip.kinds for clip in clips]),
        )

    @staticmethod
    def _points(attention: torch.Tensor, points: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        """attention: (C, R, W, V + W); points: (C, R, W); frame: (C, V), the frame that ends with each token, or -1:
        there the model knows what it showed. The time that announces it is more easily found and tells nothing."""
        pointing = points != 0
        if not pointing.any():
            return attention.new_zeros(())
        wanted = (points[..., None] >> frame.clamp(min=0)[:, None, None]) & 1
        wanted = (wanted == 1) & (frame >= 0)[:, None, None]
        looked = (attention[..., : frame.shape[1]] * wanted).sum(-1)[pointing]
        return -(looked + 1e-5).log().mean()

    @staticmethod
    def _refers(attention: torch.Tensor, refers: torch.Tensor) -> torch.Tensor:
        """attention: (C, R, W, V + W); refers: (C, R, W), a place in the row."""
        referring = refers != IGNORED
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
        looks: Sequence[dict[str, torch.Tensor] | None],
    ) -> torch.Tensor:
        """asked: (C, R, W, D), what tokens are after they looked; points, finds, whole: (C, R, W) as in AskedClip."""
        pointing = points != 0
        if not pointing.any():
            return asked.new_zeros(())
        loss = F.cross_entropy(heads["word"](asked[pointing]).float(), finds[pointing])
        if whole.any():
            clip = whole.nonzero()[:, 0].tolist()
            frame = [(bits & -bits).bit_length() - 1 for bits in points[whole].tolist()]
            others = [name for name in LABELS if name != "word"]
            for name in others:
                labels = torch.stack([looks[c][name][f] for c, f in zip(clip, frame, strict=True)]).to(self.device)
                loss = loss + F.cross_entropy(heads[name](asked[whole]).float(), labels) / len(others)
        return loss

    @staticmethod
    def _right(
        right: torch.Tensor, question: torch.Tensor, counted: torch.Tensor, kinds: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """right: (N,) bool, of the tokens where counted, (C, R, W), of the questions with those numbers."""
        starts = np.cumsum([0, *(len(each) for each in kinds)])
        number = (question + torch.tensor(starts[:-1], device=question.device)[:, None, None])[counted]
        whole = torch.ones(int(starts[-1]), device=right.device)
        whole = whole.scatter_reduce(0, number, right.float(), "amin").cpu()
        kinds = torch.cat(list(kinds))
        asked = torch.bincount(kinds, minlength=len(ASKED)).float()
        return torch.stack([asked, torch.bincount(kinds, weights=whole, minlength=len(ASKED)).float()], dim=1)

    def _looks(self, frames: torch.Tensor, labels: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """frames: (F, D), of all clips; labels: (F_c,) by name of each clip."""
        if not labels:
            return frames.new_zeros(())
        losses = {
            name: F.cross_entropy(head(frames).float(), torch.cat([clip[name] for clip in labels]).to(self.device))
            for name, head in self.heads.items()
        }
        # the word carries most questions, and times bind them: each weighs as much as all shapes
        word, time = losses.pop("word") + losses.pop(BEFORE), (losses.pop("second") + losses.pop("minute")) / 2
        return (word + time + torch.stack(list(losses.values())).mean()) / 3

    def _go_on_from(self, folder: Path) -> None:
        """Takes over a saved model; of its tokens' rows those that this tokenizer knows too, by their text."""
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
        prog="python -m v2l.tiny.recipe.language_stage", description="Stage 2, or more of it."
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
