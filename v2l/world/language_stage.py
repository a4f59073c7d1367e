"""Stage 2 of the frozen model: the language model learns to answer, and the vision tower, slowly, to see better.

All questions about a clip stand behind its video in one sequence, and none of them sees another: each is heard as if
it were the only one. Two things make it learn within the hour: clips begin with a single frame and grow longer, and
linear heads ask the middle of the language model, at the end of each frame, what stage 1 asked the tower. Some clips
are heard of without being seen, so that the form of an answer is known where an adapter alone will bring the facts.
`python -m v2l.world.language_stage START OUTPUT`: START is the checkpoint of stage 1, or the folder of a model that
shall learn more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import SmolVLMForConditionalGeneration

from v2l.loading import choose_device
from v2l.optimise import Steps, keep, mixed, prepared, record, restore, warm_cosine
from v2l.prompt import (
    GLOBAL_VIEW,
    INTERNALIZATION_PROMPT,
    PIXEL_MEAN,
    PIXEL_STD,
    PromptFrame,
    frame_images,
    question_text,
    tile_grid,
    video_text,
)
from v2l.sheet import PLACE, Sheet, Sheets, write_sheet
from v2l.world.draw import draw
from v2l.world.model import new_model, save_model
from v2l.world.questions import Question, ask_about, caption
from v2l.world.scene import SHAPES, Story, sample_story
from v2l.world.tokenizer import IMAGE, train_tokenizer
from v2l.world.vision_stage import GEOMETRY, LABELS, frame_labels

LOOKS = LABELS | {"second": 60, "minute": 60}
"""What the middle of the language model is asked at the end of a frame: what it shows, and when it stands."""
LONGEST_SECONDS = 3000.0
"""Clips begin up to that far into the video that they are cut out of."""


@dataclass(frozen=True)
class LanguageStage:
    """steps of batch clips; learning_rate: its peak, after a warm-up and before a cosine to zero; the vision tower
    learns at a `tower_share` of it.

    frames: of most clips, 1 to this many; many_frames: of one step in ten; tiled: share of steps whose frames are
        twice the image size, on at most a third as many frames
    growing: share of the steps in which clips grow from one frame to `frames`
    looking: weight of the heads that are asked about each frame
    shapes: at most this many in a scene
    questions: at most this many of a clip; easy: share of the questions about a colour or a shape that is kept
    unseen: share of clips without their video
    workers: processes that draw clips ahead, for a machine whose cores training leaves idle
    """

    steps: int = 3000
    batch: int = 16
    learning_rate: float = 1.5e-3
    tower_share: float = 0.5
    warmup: int = 150
    frames: int = 12
    many_frames: int = 36
    tiled: float = 0.06
    growing: float = 0.3
    looking: float = 1.0
    shapes: int = SHAPES
    questions: int = 12
    easy: float = 0.3
    unseen: float = 0.08
    save_every: int = 50
    workers: int = 0
    seed: int = 0


FURTHER = LanguageStage(steps=2000, learning_rate=1.2e-3, tower_share=0.3, warmup=100, growing=0.0, seed=3)
"""The settings for a model that has been through this stage before."""
EASY = ("colour", "shape", "colour at", "shape at", "count")
"""Kinds of question that are learned long before the others."""


@dataclass(frozen=True)
class SeenClip:
    """A story and what is seen of it: seconds, tiles and images, (F * images a frame, 3, S, S) uint8, of its frames.

    total: seconds of the whole video that it is cut out of
    """

    story: Story
    frames: tuple[PromptFrame, ...]
    images: np.ndarray
    total: float

    @property
    def times(self) -> list[float]:
        return [frame.seconds for frame in self.frames]

    def labels(self) -> dict[str, torch.Tensor]:
        """What stage 1 asks of a frame, and its time, (F,) by label."""
        seen = [
            {**frame_labels(self.story.at(time), time), "second": int(time) % 60, "minute": int(time) // 60 % 60}
            for time in self.times
        ]
        return {name: torch.tensor([frame[name] for frame in seen]) for name in LOOKS}


def sample_clip(
    random: np.random.Generator, count: int, tiled: bool = False, split: str = "train", shapes: int = SHAPES
) -> SeenClip:
    """A clip of which `count` frames are seen, a second or more apart, of any size; one in three is cut out of a longer
    video, of one in four only a part of what happens is seen, and one in three has several scenes."""
    spacing = 1.0 if random.random() < 0.5 else float(random.uniform(1, 6 if count > 12 else 20))
    start = float(random.uniform(0, LONGEST_SECONDS)) if random.random() < 1 / 3 else 0.0
    duration = max(2.0, count * spacing)
    parts = int(random.integers(2, 5)) if random.random() < 0.25 else 1
    scenes = int(random.integers(1, max(1, min(8, count // 2)) + 1)) if parts == 1 and random.random() < 0.5 else 1
    begin = start - duration * int(random.integers(parts)) if start > 4 * duration else start
    seed = int(random.integers(2**31))
    story = sample_story(split, seed, max(2.0, duration * parts), begin, count * parts, scenes, shapes)
    times = [start + spacing * index for index in range(count)]
    total = max(begin + duration * parts, times[-1] + 1)
    total += float(random.uniform(0, 600)) if random.random() < 1 / 3 else 0.0
    height, width = (int(side) for side in random.integers(64, 129, 2))
    edge = 2 * GEOMETRY.image_size if tiled else None
    images = [frame_images(draw(story.at(seconds), seconds, height, width), GEOMETRY, edge) for seconds in times]
    grid = tile_grid(width, height, GEOMETRY, edge)
    return SeenClip(story, tuple(PromptFrame(seconds, *grid) for seconds in times), np.concatenate(images), total)


def clip_questions(clip: SeenClip, random: np.random.Generator, most: int, easy: float = 1.0) -> list[Question]:
    """Questions about the clip in a random order, none twice, of the easy ones that share; one clip in four is also
    told to internalize."""
    asked = [question for _ in range(3) for question in ask_about(clip.story, clip.times, random)]
    asked = [question for question in asked if question.kind not in EASY or random.random() < easy]
    told = caption(clip.story, clip.times, random)
    if random.random() < 0.25:
        told = Question("caption", INTERNALIZATION_PROMPT, told.answer)
    one_each = list({question.prompt: question for question in asked}.values())
    chosen = [one_each[place] for place in random.permutation(len(one_each))[: most - 1]]
    return [told, *chosen]


def shown(clip: SeenClip | None) -> str:
    """What stands around a question about the clip, as v2l itself writes it; None: about one that is not seen."""
    if clip is None:
        return question_text(PLACE)
    return video_text(clip.frames, clip.total, PLACE, GEOMETRY, generation_prompt=True)


@dataclass(frozen=True)
class SheetOfClip:
    """A clip with its questions. images: (F * images a frame, 3, S, S) uint8 and labels: (F,) by name, of what is seen
    of it; None where nothing is."""

    sheet: Sheet
    images: torch.Tensor | None
    labels: dict[str, torch.Tensor] | None


class ClipBatches(Steps):
    """The clips of each step. All of them show as many frames, so that little is padding."""

    def __init__(self, stage: LanguageStage):
        self.stage = stage
        self.tokenizer = train_tokenizer()

    def __len__(self) -> int:
        return self.stage.steps

    def batch(self, step: int) -> list[SheetOfClip]:
        """The clips of that step; fewer where frames are many."""
        stage = self.stage
        random = np.random.default_rng([stage.seed, step])
        grown = min(1.0, step / max(1.0, stage.growing * stage.steps))
        most = 1 + round((stage.frames - 1) * grown)
        if grown == 1 and random.random() < 0.1:
            most = stage.many_frames
        tiled = grown == 1 and random.random() < stage.tiled
        count = int(random.integers(1, (max(1, most // 3) if tiled else most) + 1))
        clips = []
        for _ in range(max(1, stage.batch * 12 // max(12, count))):
            clip = sample_clip(random, count, tiled, shapes=stage.shapes)
            asked = [(each.prompt, each.answer) for each in clip_questions(clip, random, stage.questions, stage.easy)]
            if random.random() < stage.unseen:
                clips.append(SheetOfClip(write_sheet(shown(None), asked, self.tokenizer), None, None))
            else:
                sheet = write_sheet(shown(clip), asked, self.tokenizer)
                clips.append(SheetOfClip(sheet, torch.from_numpy(clip.images), clip.labels()))
        return clips


class Trainer:
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
        if start.is_dir():
            self._go_on_from(start)
        else:
            reader = torch.load(start, weights_only=True, map_location="cpu")["reader"]
            self._load_part(self.model.model.vision_model, reader, "tower.")
            self._load_part(self.model.model.connector, reader, "connector.")
        tower = list(self.model.model.vision_model.parameters())
        names = {id(parameter) for parameter in tower}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in names]
        rest += self.heads.parameters()
        groups = [{"params": rest}, {"params": tower, "lr": stage.learning_rate * stage.tower_share}]
        self.optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.schedule = warm_cosine(self.optimizer, stage.steps, stage.warmup)
        self.parts = {"model": self.model, "heads": self.heads, "optimizer": self.optimizer, "schedule": self.schedule}

    def train(self) -> Iterator[dict[str, float]]:
        """Trains, going on from the last checkpoint; yields and appends to metrics.jsonl a record at each, and leaves
        the model's folder in `output`/model."""
        stage = self.stage
        self.output.mkdir(parents=True, exist_ok=True)
        first = restore(self.parts, self.output / "language.pt")
        started, losses, clips = time.perf_counter(), [], 0
        for step, batch in enumerate(prepared(self.batches, first, stage.workers), first):
            with mixed(self.device):
                answers, looks = self.losses(batch)
                loss = answers + stage.looking * looks
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            losses.append((answers.item(), looks.item()))
            clips += len(batch)
            if (step + 1) % stage.save_every == 0 or step + 1 == stage.steps:
                keep(self.parts, step + 1, self.output / "language.pt")
                save_model(self.model, self.output / "model")
                rate = clips / (time.perf_counter() - started)
                answers, looks = np.mean(losses[-stage.save_every :], axis=0).round(4).tolist()
                values = {"step": step + 1, "answers": answers, "looks": looks, "clips_per_second": round(rate, 1)}
                record(self.output / "metrics.jsonl", values)
                yield values

    def losses(self, clips: Sequence[SheetOfClip]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of one batch: of the answers, the mean over their tokens; and of what the heads say of the
        frames, the mean over frames, a third of it each the word's, the time's and the shapes'."""
        sheets = Sheets.stack([clip.sheet for clip in clips], self.device)
        embedded = self.model.model.text_model.embed_tokens(sheets.ids)
        images = [clip.images for clip in clips if clip.images is not None]
        if images:
            pixels = (torch.cat(images).to(self.device).float() / 255 - PIXEL_MEAN) / PIXEL_STD
            patches = self.model.model.vision_model(pixel_values=pixels).last_hidden_state
            seen = self.model.model.connector(patches).to(embedded.dtype)
            embedded = embedded.masked_scatter((sheets.ids == self.image_id)[..., None], seen)
        read = self.model.model.text_model(
            inputs_embeds=embedded,
            attention_mask=sheets.visible(),
            position_ids=sheets.positions,
            use_cache=False,
            output_hidden_states=True,
        )
        counted, wanted, _ = sheets.answers()
        answers = F.cross_entropy(self.model.lm_head(read.last_hidden_state[:, :-1][counted]).float(), wanted)
        middle = read.hidden_states[len(self.model.model.text_model.layers) // 2]
        ends = (sheets.ids == self.view_id).roll(GEOMETRY.tokens_per_image + 1, dims=1)
        return answers, self._looks(middle[ends], [clip.labels for clip in clips if clip.labels is not None])

    def _looks(self, frames: torch.Tensor, labels: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """frames: (F, D), of all clips; labels: (F_c,) by name of each clip."""
        if not labels:
            return frames.new_zeros(())
        losses = {
            name: F.cross_entropy(head(frames).float(), torch.cat([clip[name] for clip in labels]).to(self.device))
            for name, head in self.heads.items()
        }
        # the word comes last and carries most questions, and times bind them: each weighs as much as all shapes
        word, time = losses.pop("word"), (losses.pop("second") + losses.pop("minute")) / 2
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
    import sys

    start, output = Path(sys.argv[1]), Path(sys.argv[2])
    for line in Trainer(FURTHER if start.is_dir() else LanguageStage(), start, output).train():
        print(line, flush=True)
