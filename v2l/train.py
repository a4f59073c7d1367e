"""Training a hypernetwork for a frozen model: the loop, its checkpoints and its figures (paper section 4).

The frozen model reads a clip's windows, the hypernetwork turns what it reads into factors, and the same frozen model,
wearing them, is asked about the clip without seeing it. Only the hypernetwork learns.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from v2l.checkpoint import FILE_NAME, save_hypernetwork, with_origin
from v2l.errors import V2LError
from v2l.files import make_folder, printable, write_atomically
from v2l.hypernetwork import Hypernetwork, HypernetworkConfig, TrainedWith
from v2l.lessons import Curriculum, Lesson, Lessons, Reader, Unreadable, read_lesson
from v2l.lora import Factors, attached
from v2l.manifest import Example, group_by_clip
from v2l.optimise import Processes, keep, prepared, record, restore, warm_cosine
from v2l.records import to_json
from v2l.sealed import canonical_json
from v2l.sheet import Sheet, Sheets, mean_by_question
from v2l.vlm import FrozenVLM, Window

STATE, METRICS, SETTINGS = "state.pt", "metrics.jsonl", "training.json"
"""What stands in the output folder beside the best hypernetwork."""
LONGER = 1.25
"""The longest of the rows that the hypernetwork reads together, against the shortest."""


@dataclass(frozen=True)
class Training:
    """The settings of a run; the defaults are the published ones where those are known (method section 5.2).

    batch: clips in a step, over all processes and micro-batches; together: clips in a micro-batch
    warmup: share of the steps over which the learning rate rises; clip_norm: what the gradient is clipped to
    kl_weight: of the divergence from the same model with the video in context, beside the cross-entropy
    validate_every, validation_clips: steps between looks at at most that many clips
    save_every: steps between states to go on from; workers: processes that read clips ahead
    """

    curriculum: Curriculum = field(default_factory=Curriculum)
    steps: int = 9000
    batch: int = 384
    together: int = 8
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.03
    clip_norm: float = 1.0
    kl_weight: float = 0.0
    validate_every: int = 1000
    validation_clips: int = 128
    save_every: int = 100
    workers: int = 0
    seed: int = 42


@dataclass(frozen=True)
class Progress:
    """Where a run stands. loss: mean since the last report; validation: cross-entropy, None where it was not taken."""

    step: int
    loss: float
    validation: float | None
    best: float | None
    clips_per_second: float
    learning_rate: float


def sizes_for(vlm: FrozenVLM, chosen: dict[str, int | float]) -> HypernetworkConfig:
    """A configuration for the frozen model: `chosen` sizes, the published ones where nothing is chosen, and
    `lora_alpha` 2 r^1.5 unless it is. Raises V2LError for a name or a size that makes no network."""
    module = vlm.down_projections[0]
    names = {each.name for each in dataclasses.fields(HypernetworkConfig)}
    own = {"num_layers", "hidden_size", "intermediate_size"}
    for name, value in chosen.items():
        if name not in names - own:
            raise V2LError(
                f"{printable(name)} is no size of a hypernetwork; choose from {', '.join(sorted(names - own))}"
            )
        whole = name != "lora_alpha"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value <= 0:
            raise V2LError(f"{name} is {value!r}; give a {'whole ' if whole else ''}number above 0")
    config = HypernetworkConfig(vlm.num_layers, module.out_features, module.in_features, **chosen)
    if config.num_heads % config.num_kv_heads:
        raise V2LError(f"{config.num_heads} heads cannot share {config.num_kv_heads} key-value heads evenly")
    if "lora_alpha" not in chosen:
        config = dataclasses.replace(config, lora_alpha=2 * config.rank**1.5)
    return config


class Trainer:
    """A run in its folder: begun there, or gone on with exactly where its last state was written.

    hypernetwork: fresh, or the weights to start from; on the frozen model's device
    Raises V2LError where the folder holds a run with other settings.
    """

    def __init__(
        self,
        vlm: FrozenVLM,
        hypernetwork: Hypernetwork,
        examples: tuple[Sequence[Example], Sequence[Example]],
        training: Training,
        folder: Path,
        warn: Callable[[str], None] = lambda text: None,
        processes: Processes | None = None,
    ):
        self.vlm, self.hypernetwork, self.training, self.folder, self.warn = vlm, hypernetwork, training, folder, warn
        self.processes = processes or Processes()
        if training.batch % self.processes.count:
            raise V2LError(f"a batch of {training.batch} cannot be shared by {self.processes.count} processes evenly")
        self.reader = Reader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
        learn, validate = examples
        self.lessons = Lessons(
            learn,
            self.reader,
            training.curriculum,
            training.seed,
            training.steps,
            training.batch,
            training.together,
            (self.processes.index, self.processes.count),
        )
        self.validation_clips = group_by_clip(validate)[: training.validation_clips]
        self.hypernetwork.train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            hypernetwork.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        warmup = max(1, round(training.warmup * training.steps))
        self.schedule = warm_cosine(self.optimizer, training.steps, warmup)
        self.best = Best()
        self.parts = {
            "hypernetwork": hypernetwork,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "best": self.best,
        }
        self.step = self._begin_or_go_on()

    def _begin_or_go_on(self) -> int:
        settings = {
            "v2l": 1,
            "model": self.vlm.fingerprint,
            "sizes": to_json(self.hypernetwork.config),
            "clips": [len(self.lessons.clips), len(self.validation_clips)],
            **{name: value for name, value in dataclasses.asdict(self.training).items() if name != "workers"},
        }
        make_folder(self.folder)
        text = canonical_json(settings) + "\n"
        path = self.folder / SETTINGS
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise V2LError(f"{printable(self.folder)} holds a run with other settings; name another folder")
        if self.processes.first:
            write_atomically(path, text.encode())
        return restore(self.parts, self.folder / STATE)

    def run(self) -> Iterator[Progress]:
        """Trains to the end; yields, and the first process appends to metrics.jsonl, every ten steps and at every
        validation. The best hypernetwork so far stands in the folder."""
        training, first = self.training, self.step
        started, losses = time.perf_counter(), []
        batches = prepared(self.lessons, first * self.lessons.per_step, training.workers)
        for step in range(first, training.steps):
            rate = self.schedule.get_last_lr()[0]
            losses.append(self._learn(batches))
            self.step = step + 1
            last = self.step == training.steps
            look = last or self.step % training.validate_every == 0
            validation = self.validate() if look else None
            if look:
                self._keep_if_best(validation)
            if self.processes.first and (last or look or self.step % training.save_every == 0):
                keep(self.parts, self.step, self.folder / STATE)
            if look or self.step % 10 == 0:
                speed = (self.step - first) * training.batch / (time.perf_counter() - started)
                best = None if self.best.loss == float("inf") else self.best.loss
                progress = Progress(self.step, sum(losses) / len(losses), validation, best, round(speed, 2), rate)
                losses.clear()
                if self.processes.first:
                    record(self.folder / METRICS, dataclasses.asdict(progress))
                yield progress

    def _learn(self, batches: Iterator[list[Lesson | Unreadable]]) -> float:
        """One optimisation step; returns its loss, a mean over the step's clips."""
        self.optimizer.zero_grad()
        total, read = 0.0, 0
        for _ in range(self.lessons.per_step):
            lessons = self._readable(next(batches))
            if lessons:
                loss = self.loss(lessons) / self.training.batch
                loss.backward()
                total, read = total + loss.item(), read + len(lessons)
        total, read = self.processes.sum(total), self.processes.sum(read)
        if not read:
            raise V2LError("not one clip of a whole step could be read; see the warnings above")
        self.processes.add_up(self.hypernetwork.parameters())
        torch.nn.utils.clip_grad_norm_(self.hypernetwork.parameters(), self.training.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return total * self.training.batch / read

    def _readable(self, lessons: Sequence[Lesson | Unreadable]) -> list[Lesson]:
        for lesson in lessons:
            if isinstance(lesson, Unreadable):
                self.warn(f"a clip is passed over: {lesson.reason}")
        return [lesson for lesson in lessons if isinstance(lesson, Lesson)]

    def loss(self, lessons: Sequence[Lesson]) -> torch.Tensor:
        """The sum over the lessons of each one's loss: of a clip the mean over its questions, of a question the mean
        over its answer's tokens of the cross-entropy, and of the divergence from the teacher where it has a weight."""
        images = self._see(lessons)
        factors = self.factors(lessons, images)
        logits, wanted, question = self._answer_tokens([lesson.sheet for lesson in lessons], factors)
        losses = F.cross_entropy(logits, wanted, reduction="none")
        if self.training.kl_weight:
            losses = losses + self.training.kl_weight * self._divergence(lessons, images, logits, question)
        clip = torch.arange(len(lessons), device=losses.device)
        clip = clip.repeat_interleave(torch.tensor([int(lesson.sheet.group.max()) for lesson in lessons]).to(clip))
        return mean_by_question(mean_by_question(losses, question), clip).sum()

    def factors(self, lessons: Sequence[Lesson], images: Sequence[torch.Tensor]) -> Factors:
        """Per layer a (C, R, d_in) and b (C, R, d_out) of C lessons, shorter ranks filled with zeros. A composed
        lesson's generated ranks stand one after the other and the learned bias stands once (paper section 3.4).

        images: (N, tokens, D) embeddings, of each part of each lesson
        """
        parts = [part for lesson in lessons for part in lesson.parts]
        windows = [
            Window(part.frames, part.ids.to(self.vlm.device), seen) for part, seen in zip(parts, images, strict=True)
        ]
        hidden = self._read(windows)
        # what one row of the hypernetwork reads: a part that is composed, or all parts of a lesson that are not
        sizes = [size for lesson in lessons for size in _rows(lesson)]
        rows = [[torch.cat(group) for group in _take(layer, sizes)] for layer in hidden]
        generated = self._generate(rows)
        adapters = [len(_rows(lesson)) for lesson in lessons]
        return [(_composed(a, adapters), _composed(b, adapters)) for a, b in generated]

    def _read(self, windows: Sequence[Window]) -> list[list[torch.Tensor]]:
        """The inputs of every decoder layer, (T, D) for each window."""
        order = sorted(range(len(windows)), key=lambda place: len(windows[place].input_ids))  # little padding
        lengths = [len(windows[place].input_ids) for place in order]
        back, layers = _inverse(order), []
        for pieces in self.vlm.read_layers([windows[place] for place in order]):
            tokens = torch.cat(list(pieces), dim=1)[0].split(lengths)
            layers.append([tokens[place] for place in back])
        return layers

    def _generate(self, layers: Sequence[Sequence[torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Factors of U rows, (U, 2r, d), of the (T, D) tokens of each in every layer; rows of like length together."""
        lengths = [len(tokens) for tokens in layers[0]]
        order = sorted(range(len(lengths)), key=lambda place: lengths[place])
        groups: list[list[int]] = []
        for place in order:
            if groups and lengths[place] <= LONGER * lengths[groups[-1][0]]:
                groups[-1].append(place)
            else:
                groups.append([place])
        made = []
        for group in groups:
            ones = [torch.ones(lengths[place], dtype=torch.bool, device=self.vlm.device) for place in group]
            padded = [pad_sequence([tokens[place] for place in group], batch_first=True) for tokens in layers]
            held = pad_sequence(ones, batch_first=True)
            made.append(self.hypernetwork.generate(torch.stack(padded, dim=1), held))
        back = torch.tensor(_inverse(order), device=self.vlm.device)
        return [
            tuple(torch.cat([factors[layer][side] for factors in made])[back] for side in (0, 1))
            for layer in range(len(layers))
        ]

    def _see(self, lessons: Sequence[Lesson]) -> tuple[torch.Tensor, ...]:
        images = [part.images for lesson in lessons for part in lesson.parts]
        return self.vlm.see(torch.cat(images)).split([len(part) for part in images])

    def _answer_tokens(
        self, sheets: Sequence[Sheet], factors: Factors
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (N, vocabulary), wanted tokens (N,) and the number of each one's question (N,)."""
        stacked = Sheets.stack(sheets, self.vlm.device)
        counted, wanted, question = stacked.answers()
        with attached(self.vlm.down_projections, factors):
            hidden = self.vlm.read_sheets(self.vlm.text_model.embed_tokens(stacked.ids), stacked)
        return self.vlm.lm_head(hidden[:, :-1][counted]).float(), wanted, question

    @torch.no_grad()
    def _teacher(self, lesson: Lesson, images: Sequence[torch.Tensor]) -> torch.Tensor:
        sheet = Sheets.stack([lesson.in_context], self.vlm.device)
        embedded = self.vlm.embed(sheet.ids[0], torch.cat(list(images)))[None]
        counted, _, _ = sheet.answers()
        return self.vlm.lm_head(self.vlm.read_sheets(embedded, sheet)[:, :-1][counted]).float()

    def _divergence(
        self, lessons: Sequence[Lesson], images: Sequence[torch.Tensor], logits: torch.Tensor, question: torch.Tensor
    ) -> torch.Tensor:
        """KL(teacher || student) of every counted token, (N,); zero where a clip does not fit the teacher's context."""
        counts = [int((lesson.sheet.labels[1:] >= 0).sum()) for lesson in lessons]
        divergences = []
        groups = _take(images, [len(lesson.parts) for lesson in lessons])
        for lesson, seen, student in zip(lessons, groups, logits.split(counts), strict=True):
            if lesson.in_context is None:
                divergences.append(student.new_zeros(len(student)))
                continue
            teacher = self._teacher(lesson, seen).log_softmax(-1)
            divergences.append(F.kl_div(student.log_softmax(-1), teacher, log_target=True, reduction="none").sum(-1))
        return torch.cat(divergences)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean cross-entropy over the validation clips, as encoding reads them."""
        curriculum = dataclasses.replace(self.training.curriculum, questions=16)
        mine = self.validation_clips[self.processes.index :: self.processes.count]
        total, read = 0.0, 0
        for start in range(0, len(mine), self.training.together):
            lessons = []
            for clip in mine[start : start + self.training.together]:
                try:
                    lessons.append(read_lesson(clip, self.reader, curriculum, None))
                except V2LError as error:
                    self.warn(f"a validation clip is passed over: {error}")
            if lessons:
                images = self._see(lessons)
                factors = self.factors(lessons, images)
                logits, wanted, question = self._answer_tokens([lesson.sheet for lesson in lessons], factors)
                losses = mean_by_question(F.cross_entropy(logits, wanted, reduction="none"), question)
                total, read = total + losses.sum().item(), read + len(losses)
        total, read = self.processes.sum(total), self.processes.sum(read)
        if not read:
            raise V2LError("none of the validation clips can be read")
        return total / read

    def _keep_if_best(self, validation: float) -> None:
        if validation >= self.best.loss:
            return
        self.best.loss = validation
        if self.processes.first:
            curriculum = self.training.curriculum
            trained_with = TrainedWith(
                frames=curriculum.frames,
                fps=curriculum.fps,
                resolution=curriculum.resolution,
                prompt=curriculum.prompt,
                window_frames=curriculum.frames,
                windows=curriculum.windows,
                segments=curriculum.segments,
            )
            name = os.path.basename(os.path.abspath(self.folder))
            with_origin(self.hypernetwork, name, self.vlm.id, self.vlm.fingerprint, trained_with)
            save_hypernetwork(self.hypernetwork, self.folder / FILE_NAME)


class Best:
    """The lowest validation loss so far, kept with the rest of the state."""

    def __init__(self) -> None:
        self.loss = float("inf")

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"loss": self.loss}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """From a checkpoint."""
        self.loss = state["loss"]


def _rows(lesson: Lesson) -> list[int]:
    """How many parts each of the lesson's adapters is made from."""
    return [1] * len(lesson.parts) if lesson.composed else [len(lesson.parts)]


def _inverse(order: Sequence[int]) -> list[int]:
    """Where each item went: what puts items in `order` back in their own."""
    return sorted(range(len(order)), key=order.__getitem__)


def _take(items: Sequence, sizes: Sequence[int]) -> list[Sequence]:
    """The items in groups of those sizes."""
    groups, start = [], 0
    for size in sizes:
        groups.append(items[start : start + size])
        start += size
    return groups


def _composed(factors: torch.Tensor, adapters: Sequence[int]) -> torch.Tensor:
    """(U, 2r, d) factors of U adapters to (C, R, d): each clip's own adapters composed, R the largest rank."""
    rank = factors.shape[1] // 2
    clips = [torch.cat([group[:, :rank].flatten(0, 1), group[0, rank:]]) for group in factors.split(list(adapters))]
    return pad_sequence(clips, batch_first=True)
