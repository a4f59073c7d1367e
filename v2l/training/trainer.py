"""Train a hypernetwork for a frozen model: the loop, its checkpoints and its metrics (paper section 4).

The frozen model reads a clip's windows, the hypernetwork turns their hidden states into LoRA factors, and the same
frozen model with these factors applied is asked about the clip without seeing it. Only the hypernetwork is trained.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from v2l.errors import V2LError
from v2l.io.files import make_folder, write_atomically
from v2l.io.manifest import Example, group_by_clip, manifest_hash
from v2l.io.records import to_json
from v2l.io.safetensors_file import canonical_json
from v2l.io.text import printable
from v2l.models.checkpoint import save_hypernetwork, with_provenance
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import FILE_NAME, HypernetworkConfig, TrainedWith
from v2l.models.smolvlm import FrozenVLM
from v2l.training.auxiliary import AuxiliaryLoss
from v2l.training.common import Processes, Stateful, append_metrics, prefetch, restore, save_state
from v2l.training.data import MicroBatches, SampleReader, TrainingSample, UnreadableClip, read_sample
from v2l.training.losses import TrainingObjective
from v2l.training.schedule import warm_cosine
from v2l.training.settings import Training

STATE, METRICS, SETTINGS = "state.pt", "metrics.jsonl", "training.json"
"""The files in the output folder beside the best hypernetwork."""
FREE = ("workers", "recompute")
"""The settings with which a run may be resumed that it was not started with."""
REPORT_INTERVAL = 10
"""Steps between reports of the loss."""
VALIDATION_QUESTIONS = 16
"""At most this many questions about a validation clip."""


@dataclass(frozen=True)
class Progress:
    """A report of a run, a line of metrics.jsonl.

    loss: mean since the last report; validation: cross-entropy, None without a validation at this step
    """

    step: int
    loss: float
    validation: float | None
    best: float | None
    clips_per_second: float
    learning_rate: float


def sizes_for(
    vlm: FrozenVLM, chosen: dict[str, int | float], trained: HypernetworkConfig | None = None
) -> HypernetworkConfig:
    """Return a configuration for the frozen model with the `chosen` sizes.

    The other sizes are those of a `trained` hypernetwork that fits the model, or else the published ones with a
    `lora_alpha` of 2 r^1.5. Raises V2LError for an unknown name or an invalid size.
    """
    names = {each.name for each in dataclasses.fields(HypernetworkConfig)}
    own = {"num_layers", "hidden_size", "intermediate_size"}
    for name, value in chosen.items():
        if name not in names - own:
            raise V2LError(
                f"{printable(name)} is not a hypernetwork size; choose from {', '.join(sorted(names - own))}"
            )
        whole = name != "lora_alpha"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value <= 0:
            raise V2LError(f"{name} is {value!r}; give a {'whole ' if whole else ''}number above 0")
    layers, inputs, outputs = vlm.adapted_size
    fresh = HypernetworkConfig(layers, outputs, inputs)
    changes: dict[str, Any] = dict(chosen)
    config = dataclasses.replace(trained or fresh, **changes)
    if config.num_heads % config.num_kv_heads:
        raise V2LError(f"{config.num_heads} heads cannot share {config.num_kv_heads} key-value heads evenly")
    if trained is None and "lora_alpha" not in chosen:
        config = dataclasses.replace(config, lora_alpha=2 * config.rank**1.5)
    return config


class Trainer:
    """A run in its folder, new or resumed from its last saved state.

    hypernetwork: fresh, or the weights to start from; on the frozen model's device
    examples: for training and for validation
    auxiliary: terms added to the loss; their modules are also trained

    Raises V2LError if the folder holds a run with other settings.
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
        auxiliary: AuxiliaryLoss | None = None,
    ):
        self.vlm, self.hypernetwork, self.training, self.folder, self.warn = vlm, hypernetwork, training, folder, warn
        self.processes = processes or Processes()
        if training.batch % self.processes.count:
            raise V2LError(f"a batch of {training.batch} cannot be shared by {self.processes.count} processes evenly")
        if vlm.tokenizer is None:
            raise V2LError(f"the model {printable(vlm.id)} has no tokenizer.json; training needs it")
        self.reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
        self.samples = MicroBatches(
            examples[0],
            self.reader,
            training.curriculum,
            training.seed,
            training.steps,
            training.batch,
            training.together,
            (self.processes.index, self.processes.count),
        )
        self.validation_clips = group_by_clip(examples[1])[: training.validation_clips]
        self.manifests = [manifest_hash(each) for each in examples]
        self.hypernetwork.train().requires_grad_(True)
        weights = training.kl_weight, training.hidden_weight, training.steer_weight
        self.objective = TrainingObjective(vlm, hypernetwork, *weights, auxiliary, training.recompute)
        self.parameters = [each for module in self.objective.modules.values() for each in module.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.learning_rate, weight_decay=training.weight_decay
        )
        warmup = max(1, round(training.warmup * training.steps))
        self.schedule = warm_cosine(self.optimizer, training.steps, warmup)
        self.best = Best()
        if not training.workers:  # workers do not share this process's cache
            self.samples.cached = self.objective.image_cache
        self.parts: dict[str, Stateful] = {
            **self.objective.modules,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "best": self.best,
        }
        self.step = self._start_or_resume()

    def _start_or_resume(self) -> int:
        chosen = {name: value for name, value in dataclasses.asdict(self.training).items() if name not in FREE}
        settings = {
            "v2l": 1,
            "model": self.vlm.fingerprint,
            "sizes": to_json(self.hypernetwork.config),
            "clips": [len(self.samples.clips), len(self.validation_clips)],
            "manifests": self.manifests,
            **chosen,
        }
        make_folder(self.folder)
        text = canonical_json(settings) + "\n"
        path = self.folder / SETTINGS
        different = _differences(path, json.loads(text)) if path.exists() else []
        if different:
            names = ", ".join(different)
            raise V2LError(f"{printable(self.folder)} holds a run with other settings ({names}); name another folder")
        if self.processes.first:
            write_atomically(path, text.encode())
        return restore(self.parts, self.folder / STATE)

    def run(self) -> Iterator[Progress]:
        """Train to the last step. Every ten steps and at every validation, yield a report, which the first process also
        appends to metrics.jsonl. The folder always holds the best hypernetwork so far."""
        training, first = self.training, self.step
        started, losses = time.perf_counter(), []
        batches = prefetch(self.samples, first * self.samples.per_step, training.workers)
        for step in range(first, training.steps):
            rate = float(self.schedule.get_last_lr()[0])
            losses.append(self._train_step(batches))
            self.step = step + 1
            last = self.step == training.steps
            validation = None
            if last or self.step % training.validate_every == 0:
                validation = self.validate()
                self._save_if_best(validation)
            if self.processes.first and (validation is not None or self.step % training.save_every == 0):
                save_state(self.parts, self.step, self.folder / STATE)
            if validation is not None or self.step % REPORT_INTERVAL == 0:
                speed = (self.step - first) * training.batch / (time.perf_counter() - started)
                best = None if self.best.loss == float("inf") else self.best.loss
                progress = Progress(self.step, sum(losses) / len(losses), validation, best, round(speed, 2), rate)
                losses.clear()
                if self.processes.first:
                    append_metrics(self.folder / METRICS, dataclasses.asdict(progress))
                yield progress

    def _train_step(self, batches: Iterator[list[TrainingSample | UnreadableClip]]) -> float:
        """Run one optimisation step and return its loss, a mean over the step's clips."""
        # Gradients of this process's micro-batches
        self.optimizer.zero_grad()
        loss_sum, clips = 0.0, 0
        for _ in range(self.samples.per_step):
            samples = self._readable(next(batches))
            if samples:
                loss = self.objective.loss(samples) / self.training.batch
                loss.backward()
                loss_sum, clips = loss_sum + loss.item(), clips + len(samples)

        # Sum over all processes, then update
        loss_sum, all_clips = self.processes.sum(loss_sum), self.processes.sum(clips)
        if not all_clips:
            raise V2LError("not one clip of a whole step could be read; see the warnings above")
        self.processes.sum_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return loss_sum * self.training.batch / all_clips

    def _readable(self, samples: Sequence[TrainingSample | UnreadableClip]) -> list[TrainingSample]:
        for sample in samples:
            if isinstance(sample, UnreadableClip):
                self.warn(f"a clip is skipped: {sample.reason}")
        return [sample for sample in samples if isinstance(sample, TrainingSample)]

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean cross-entropy over the validation clips, read as encoding reads them."""
        sampling = dataclasses.replace(self.training.curriculum, questions=VALIDATION_QUESTIONS)
        mine = self.validation_clips[self.processes.index :: self.processes.count]
        loss_sum, questions = 0.0, 0
        for start in range(0, len(mine), self.training.together):
            samples = []
            for clip in mine[start : start + self.training.together]:
                try:
                    samples.append(read_sample(clip, self.reader, sampling, None, self.samples.cached))
                except V2LError as error:
                    self.warn(f"a validation clip is skipped: {error}")
            if samples:
                losses = self.objective.losses(samples)
                loss_sum, questions = loss_sum + losses.sum().item(), questions + len(losses)
        loss_sum, all_questions = self.processes.sum(loss_sum), self.processes.sum(questions)
        if not all_questions:
            raise V2LError("none of the validation clips can be read")
        return loss_sum / all_questions

    def _save_if_best(self, validation: float) -> None:
        if validation >= self.best.loss:
            return
        self.best.loss = validation
        if self.processes.first:
            sampling = self.training.curriculum
            trained_with = TrainedWith(
                frames=sampling.frames,
                fps=sampling.fps,
                resolution=sampling.resolutions[0] if sampling.resolutions else None,
                prompt=sampling.prompt,
                window_frames=sampling.frames,
                windows=sampling.windows,
                segments=sampling.segments,
                marks_end=sampling.marks_end,
            )
            name = os.path.basename(os.path.abspath(self.folder))
            with_provenance(self.hypernetwork, name, self.vlm.id, self.vlm.fingerprint, trained_with)
            save_hypernetwork(self.hypernetwork, self.folder / FILE_NAME)


def _differences(path: Path, settings: dict[str, Any]) -> list[str]:
    """Return the names of the settings in which a run, recorded at `path`, differs from `settings`."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise V2LError(f"{printable(path)} cannot be read; name another folder") from error
    if not isinstance(run, dict) or not isinstance(run.get("curriculum"), dict):
        return [SETTINGS]
    # Added later: earlier runs do not state these
    run.setdefault("manifests", settings["manifests"])
    run["curriculum"].setdefault("newline", False)
    return [name for name in sorted(run.keys() | settings.keys()) if run.get(name) != settings.get(name)]


class Best:
    """The lowest validation loss so far, saved with the rest of the state."""

    def __init__(self) -> None:
        self.loss = float("inf")

    def state_dict(self) -> dict[str, float]:
        """The state, for a checkpoint."""
        return {"loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore the state from a checkpoint."""
        self.loss = state_dict["loss"]
