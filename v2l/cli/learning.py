"""What `v2l train` does once its options are understood."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from v2l.cli.commands import announce_fallback
from v2l.cli.console import Display, shown
from v2l.errors import UsageError
from v2l.inference.model_loader import ModelLoader
from v2l.io.manifest import Example, read_manifest
from v2l.io.text import printable
from v2l.models.checkpoint import FILE_NAME, check_belongs, fits, load_hypernetwork
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM
from v2l.training.common import Processes
from v2l.training.data import validation_split
from v2l.training.resize import widened
from v2l.training.teacher import with_teacher_answers
from v2l.training.trainer import Trainer, Training, sizes_for
from v2l.video.sampling import Reading


@dataclass(frozen=True)
class Material:
    """What is learned from: manifests, the folder that their videos are in, and whose answers are the targets."""

    manifest: Path
    validation: Path | None
    root: Path | None
    teacher: bool


def read_sizes(text: str | None) -> dict[str, int | float]:
    """`rank=8,latent_size=128` as numbers by name. Raises UsageError."""
    chosen: dict[str, int | float] = {}
    for part in (text or "").split(",") if text else ():
        name, _, value = part.partition("=")
        try:
            chosen[name.strip()] = float(value) if name.strip() == "lora_alpha" else int(value)
        except ValueError as error:
            raise UsageError(f"--sizes {printable(text)}: write NAME=NUMBER,NAME=NUMBER") from error
    return chosen


def train(
    material: Material,
    training: Training,
    sizes: dict[str, int | float],
    mark_end: bool | None,
    choice: ModelLoader,
    folder: Path,
    display: Display,
) -> None:
    """Trains in `folder`, with a bar and a result for every validation, and prints where the best one stands.

    mark_end: `SamplingConfig.marks_end`, None for what the weights to begin with were trained with
    """
    learn, validate = _examples(material)
    processes = Processes()
    choice.device = choice.device or (str(processes.device) if processes.device else None)
    if not processes.first:
        display = Display(display.as_json, quiet=True)
    elif processes.count > 1:
        display.note(f"{processes.count} processes share each step")
    announce_fallback(choice, display)
    vlm = choice.vlm
    if material.teacher:
        with processes.first_alone():  # the others find its answers in the cache
            learn = _taught(learn, material, training, vlm, display)
            validate = _taught(validate, material, training, vlm, display)
    hypernetwork = _hypernetwork(choice, vlm, sizes, training.seed, display)
    if mark_end is None:
        mark_end = hypernetwork.provenance is not None and hypernetwork.provenance.trained_with.marks_end
    curriculum = dataclasses.replace(training.curriculum, marks_end=mark_end)
    training = dataclasses.replace(training, curriculum=curriculum)
    warned: set[str] = set()

    def warn(text: str) -> None:
        if text not in warned:
            warned.add(text)
            display.warn(text)

    trainer = Trainer(vlm, hypernetwork, (learn, validate), training, folder, warn, processes)
    if trainer.step:
        display.note(f"going on after step {trainer.step} of {training.steps}")
    display.start_progress(training.steps, "step")
    display.progress(trainer.step, training.steps)
    for progress in trainer.run():
        display.progress(progress.step, training.steps, f"loss {progress.loss:.3f}")
        if progress.validation is not None and processes.first:
            text = f"step {progress.step}  loss {progress.loss:.4f}  validation {progress.validation:.4f}"
            text += f"  {progress.clips_per_second:g} clips/s"
            values = dataclasses.asdict(progress)
            display.result(text, {"command": "train", **values}) if display.as_json else display.note(text)
    display.end_progress()
    if processes.first:
        best = folder / FILE_NAME
        display.result(shown(best), {"command": "train", "hypernetwork": best, "validation": trainer.best.loss})


def _examples(material: Material) -> tuple[list[Example], list[Example]]:
    examples = read_manifest(material.manifest, material.root)
    if material.validation is None:
        return validation_split(examples)
    return examples, read_manifest(material.validation, material.root)


def _taught(
    examples: list[Example], material: Material, training: Training, vlm: FrozenVLM, display: Display
) -> list[Example]:
    """The examples with the frozen model's answers, kept beside the manifest."""
    curriculum = training.curriculum
    resolution = curriculum.resolutions[0] if curriculum.resolutions else vlm.geometry.longest_edge
    reading = Reading(curriculum.frames, curriculum.fps, None, None, resolution)
    display.start_progress(len(examples), "answer")
    cache = material.manifest.with_suffix(".teacher.jsonl")
    answered = with_teacher_answers(
        examples, vlm, reading, cache, lambda done, of: display.progress(done, of), display.warn
    )
    display.end_progress()
    return answered


def _hypernetwork(
    choice: ModelLoader, vlm: FrozenVLM, sizes: dict[str, int | float], seed: int, display: Display
) -> Hypernetwork:
    """The weights to begin with: those of a file, also one for another model of the same sizes, or fresh ones."""
    if choice.hypernetwork_source is None:
        torch.manual_seed(seed)
        return Hypernetwork(sizes_for(vlm, sizes)).to(vlm.device)
    hypernetwork = load_hypernetwork(choice.hypernetwork_source, device=vlm.device)
    if not fits(hypernetwork, vlm):
        check_belongs(hypernetwork, vlm)  # which says what does not fit
    if hypernetwork.provenance.base_fingerprint not in (None, vlm.fingerprint):
        display.note(
            f"{printable(hypernetwork.provenance.id)} was trained for another model of these sizes; it goes on here"
        )
    torch.manual_seed(seed)
    return widened(hypernetwork, sizes_for(vlm, sizes, hypernetwork.config)) if sizes else hypernetwork
