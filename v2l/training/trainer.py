"""Training a hypernetwork for a frozen model: the loop, its checkpoints and its figures (paper section 4).

The frozen model reads a clip's windows, the hypernetwork turns what it reads into factors, and the same frozen model,
wearing them, is asked about the clip without seeing it. Only the hypernetwork learns.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from v2l.errors import V2LError
from v2l.io.files import make_folder, write_atomically
from v2l.io.manifest import Example, group_by_clip
from v2l.io.records import to_json
from v2l.io.safetensors_file import canonical_json
from v2l.io.text import printable
from v2l.models.checkpoint import FILE_NAME, save_hypernetwork, with_provenance
from v2l.models.hypernetwork import Hypernetwork, HypernetworkConfig, TrainedWith
from v2l.models.smolvlm import FrozenVLM
from v2l.training.common import Processes, keep, prepared, record, restore, warm_cosine
from v2l.training.data import MicroBatches, SampleReader, TrainingSample, UnreadableClip, read_sample
from v2l.training.losses import TrainingObjective
from v2l.training.settings import Training

STATE, METRICS, SETTINGS = "state.pt", "metrics.jsonl", "training.json"
"""What stands in the output folder beside the best hypernetwork."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands. loss: mean since the last report; validation: cross-entropy, None where it was not taken."""

    step: int
    loss: float
    validation: float | None
    best: float | None
    clips_per_second: float
    learning_rate: float


def sizes_for(
    vlm: FrozenVLM, chosen: dict[str, int | float], trained: HypernetworkConfig | None = None
) -> HypernetworkConfig:
    """A configuration for the frozen model: `chosen` sizes, where nothing is chosen those of a `trained` hypernetwork
    that fits it, or the published ones and `lora_alpha` 2 r^1.5. Raises V2LError for a name or a size that makes no
    network."""
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
    fresh = HypernetworkConfig(vlm.num_layers, module.out_features, module.in_features)
    config = dataclasses.replace(trained or fresh, **chosen)
    if config.num_heads % config.num_kv_heads:
        raise V2LError(f"{config.num_heads} heads cannot share {config.num_kv_heads} key-value heads evenly")
    if trained is None and "lora_alpha" not in chosen:
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
        self.reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
        learn, validate = examples
        self.samples = MicroBatches(
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
        self.objective = self.new_objective()
        self.parameters = [each for learner in self.objective.learners.values() for each in learner.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.learning_rate, weight_decay=training.weight_decay
        )
        warmup = max(1, round(training.warmup * training.steps))
        self.schedule = warm_cosine(self.optimizer, training.steps, warmup)
        self.best = Best()
        if not training.workers:  # others do not know what it has seen
            self.samples.seen = self.objective.seen
        self.parts = {
            **self.objective.learners,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "best": self.best,
        }
        self.step = self._begin_or_go_on()

    def new_objective(self) -> TrainingObjective:
        """What turns samples into a loss; subclasses may count more."""
        training = self.training
        return TrainingObjective(
            self.vlm, self.hypernetwork, training.kl_weight, training.hidden_weight, training.steer_weight
        )

    def _begin_or_go_on(self) -> int:
        settings = {
            "v2l": 1,
            "model": self.vlm.fingerprint,
            "sizes": to_json(self.hypernetwork.config),
            "clips": [len(self.samples.clips), len(self.validation_clips)],
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
        batches = prepared(self.samples, first * self.samples.per_step, training.workers)
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

    def _learn(self, batches: Iterator[list[TrainingSample | UnreadableClip]]) -> float:
        """One optimisation step; returns its loss, a mean over the step's clips."""
        self.optimizer.zero_grad()
        total, read = 0.0, 0
        for _ in range(self.samples.per_step):
            samples = self._readable(next(batches))
            if samples:
                loss = self.objective.loss(samples) / self.training.batch
                loss.backward()
                total, read = total + loss.item(), read + len(samples)
        total, read = self.processes.sum(total), self.processes.sum(read)
        if not read:
            raise V2LError("not one clip of a whole step could be read; see the warnings above")
        self.processes.add_up(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return total * self.training.batch / read

    def _readable(self, samples: Sequence[TrainingSample | UnreadableClip]) -> list[TrainingSample]:
        for sample in samples:
            if isinstance(sample, UnreadableClip):
                self.warn(f"a clip is passed over: {sample.reason}")
        return [sample for sample in samples if isinstance(sample, TrainingSample)]

    @torch.no_grad()
    def validate(self) -> float:
        """Mean cross-entropy over the validation clips, as encoding reads them."""
        curriculum = dataclasses.replace(self.training.curriculum, questions=16)
        mine = self.validation_clips[self.processes.index :: self.processes.count]
        total, read = 0.0, 0
        for start in range(0, len(mine), self.training.together):
            samples = []
            for clip in mine[start : start + self.training.together]:
                try:
                    samples.append(read_sample(clip, self.reader, curriculum, None, self.samples.seen))
                except V2LError as error:
                    self.warn(f"a validation clip is passed over: {error}")
            if samples:
                losses = self.objective.losses(samples)
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
                resolution=curriculum.resolutions[0] if curriculum.resolutions else None,
                prompt=curriculum.prompt,
                window_frames=curriculum.frames,
                windows=curriculum.windows,
                segments=curriculum.segments,
                marks_end=curriculum.marks_end,
            )
            name = os.path.basename(os.path.abspath(self.folder))
            with_provenance(self.hypernetwork, name, self.vlm.id, self.vlm.fingerprint, trained_with)
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
