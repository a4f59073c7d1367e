"""`v2l train`: a hypernetwork is trained for a frozen model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2l.cli.console import Display, announce_model, command, shown
from v2l.cli.help import GroupedCommand
from v2l.cli.options import (
    READ,
    WRITE,
    Debug,
    Device,
    HypernetworkFile,
    Json,
    Manifest,
    Model,
    NumberType,
    Quiet,
    Root,
    Settings,
    check_above_zero,
    model_loader,
    whole_numbers,
)
from v2l.cli.settings import NamedSetting, number, read_settings, settings_of, whole_number
from v2l.io.text import printable
from v2l.training.settings import SIZES, SamplingConfig, Training
from v2l.video.limits import LEAST_RESOLUTION

if TYPE_CHECKING:
    from v2l.inference.model_loader import ModelLoader
    from v2l.io.manifest import Example
    from v2l.models.hypernetwork import Hypernetwork
    from v2l.models.smolvlm import FrozenVLM

TRAINING = "Training"


class TrainCommand(GroupedCommand):
    """`v2l train --help` with an example and the settings that `--set` takes."""

    example = "v2l train questions.jsonl --model smolvlm2-500m -o run --set together=4"

    @classmethod
    def named_settings(cls) -> Sequence[NamedSetting]:
        """Return the settings of a run, of how clips are sampled, and the sizes of a hypernetwork."""
        default = "as published, or that of --hypernetwork"
        sizes = [
            NamedSetting(name, meaning, default, *(number() if name == "lora_alpha" else whole_number()))
            for name, meaning in SIZES.items()
        ]
        sampling = settings_of(SamplingConfig, marks_end="no, or as --hypernetwork was trained", longest="no limit")
        return [*settings_of(Training), *sampling, *sizes]


def train(
    manifest: Manifest,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            readable=False,
            metavar="FOLDER",
            help="Keep the run in FOLDER, and resume the run that it holds.",
            rich_help_panel=WRITE,
        ),
    ],
    validation: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            metavar="MANIFEST",
            help="Choose the best hypernetwork by its loss on MANIFEST.",
            show_default="every 100th clip",
            rich_help_panel=READ,
        ),
    ] = None,
    root: Root = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Read at most N frames of a clip or a segment.",
            show_default=str(SamplingConfig.frames),
            rich_help_panel=READ,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Read RATE frames per second of video, as far as --frames allows.",
            show_default=f"{SamplingConfig.fps:g}",
            rich_help_panel=READ,
        ),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS,...",
            help="Scale the longest edge of a frame to PIXELS. Of several values, the first is used for half of the "
            "clips and all for the others.",
            show_default="that of the model",
            rich_help_panel=READ,
        ),
    ] = None,
    teacher: Annotated[
        bool,
        typer.Option(
            "--teacher",
            help="Learn the answers of the frozen model in context, not those of the manifest.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Take N optimisation steps.",
            show_default=str(Training.steps),
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Use N clips in a step, over all processes.",
            show_default=str(Training.batch),
            rich_help_panel=TRAINING,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Set the peak of the learning rate.",
            show_default=f"{Training.learning_rate:g}",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Seed the weights, the order of clips and their sampling.",
            show_default=str(Training.seed),
            rich_help_panel=TRAINING,
        ),
    ] = None,
    settings: Settings = None,
    model: Model = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a hypernetwork for a frozen model.

    The folder receives the best hypernetwork by validation loss (hypernetwork.safetensors), the metrics
    (metrics.jsonl), the settings and a state from which the same command resumes. Training starts from random weights,
    or from those of --hypernetwork. Clips are read whole, in joint windows, and as segments whose adapters are
    composed. The default steps, batch and optimiser are those of the published recipe; its sampling is --set
    segments=1 --set windows=1 --set denser=1 --set questions=1. On several GPUs: accelerate launch -m v2l train ...
    """
    with command(as_json, quiet, debug) as display:
        for name, value in (("--learning-rate", learning_rate), ("--fps", fps)):
            check_above_zero(name, value)
        values = read_settings(settings, TrainCommand.named_settings())
        named = {
            "steps": steps,
            "batch": batch,
            "learning_rate": learning_rate,
            "seed": seed,
            "frames": frames,
            "fps": fps,
            "resolutions": whole_numbers(resolution, "--resolution", LEAST_RESOLUTION) or None,
        }
        values |= {name: value for name, value in named.items() if value is not None}
        run(
            TrainingFiles(manifest, validation, root, teacher, output),
            Training(SamplingConfig(**_fields_of(SamplingConfig, values)), **_fields_of(Training, values)),
            {name: value for name, value in values.items() if name in SIZES},
            values.get("marks_end"),
            model_loader(model, hypernetwork, device, dtype, display),
            display,
        )


def _fields_of(config: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if name in names}


@dataclass(frozen=True)
class TrainingFiles:
    """The files of a run.

    root: the folder that the paths of videos start from
    teacher: replace the answers of the manifests by those of the frozen model
    output: the folder of the run
    """

    manifest: Path
    validation: Path | None
    root: Path | None
    teacher: bool
    output: Path


def run(
    files: TrainingFiles,
    training: Training,
    sizes: dict[str, int | float],
    marks_end: bool | None,
    loader: ModelLoader,
    display: Display,
) -> None:
    """Train with a bar, print every validation, and print the path of the best hypernetwork.

    marks_end: `SamplingConfig.marks_end`; None for that of the weights to start from
    """
    from v2l.models.hypernetwork_file import FILE_NAME
    from v2l.training.common import Processes
    from v2l.training.trainer import Trainer

    examples, validation = _read_examples(files)
    processes = Processes()
    loader.device = loader.device or (str(processes.device) if processes.device else None)
    if not processes.first:
        display = Display(display.as_json, quiet=True)
    elif processes.count > 1:
        display.note(f"{processes.count} processes share each step")
    announce_model(loader, display)
    vlm = loader.vlm
    if files.teacher:
        with processes.first_alone():  # the other processes find its answers in the cache
            examples = _teach(examples, files, training, vlm, display)
            validation = _teach(validation, files, training, vlm, display)
    hypernetwork = _initial_hypernetwork(loader, vlm, sizes, training.seed, display)
    if marks_end is None:
        marks_end = hypernetwork.provenance is not None and hypernetwork.provenance.trained_with.marks_end
    curriculum = dataclasses.replace(training.curriculum, marks_end=marks_end)
    training = dataclasses.replace(training, curriculum=curriculum)
    warned: set[str] = set()

    def warn(text: str) -> None:
        if text not in warned:
            warned.add(text)
            display.warn(text)

    trainer = Trainer(vlm, hypernetwork, (examples, validation), training, files.output, warn, processes)
    if trainer.step:
        display.note(f"resuming after step {trainer.step} of {training.steps}")
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
        best = files.output / FILE_NAME
        display.result(shown(best), {"command": "train", "hypernetwork": best, "validation": trainer.best.loss})


def _read_examples(files: TrainingFiles) -> tuple[list[Example], list[Example]]:
    """Return the examples to train with and those to validate with."""
    from v2l.io.manifest import read_manifest
    from v2l.training.data import validation_split

    examples = read_manifest(files.manifest, files.root)
    if files.validation is None:
        return validation_split(examples)
    return examples, read_manifest(files.validation, files.root)


def _teach(
    examples: list[Example], files: TrainingFiles, training: Training, vlm: FrozenVLM, display: Display
) -> list[Example]:
    """Return the examples with the answers of the frozen model, which are cached beside the manifest."""
    from v2l.training.teacher import with_teacher_answers
    from v2l.video.sampling import Reading

    curriculum = training.curriculum
    resolution = curriculum.resolutions[0] if curriculum.resolutions else vlm.geometry.longest_edge
    reading = Reading(curriculum.frames, curriculum.fps, None, None, resolution)
    display.start_progress(len(examples), "answer")
    cache = files.manifest.with_suffix(".teacher.jsonl")
    answered = with_teacher_answers(
        examples, vlm, reading, cache, lambda done, of: display.progress(done, of), display.warn
    )
    display.end_progress()
    return answered


def _initial_hypernetwork(
    loader: ModelLoader, vlm: FrozenVLM, sizes: dict[str, int | float], seed: int, display: Display
) -> Hypernetwork:
    """Return random weights, or those of --hypernetwork, which may belong to another model of the same sizes."""
    import torch

    from v2l.models.checkpoint import check_belongs, fits, load_hypernetwork
    from v2l.models.hypernetwork import Hypernetwork
    from v2l.training.resize import widened
    from v2l.training.trainer import sizes_for

    if loader.hypernetwork_source is None:
        torch.manual_seed(seed)
        return Hypernetwork(sizes_for(vlm, sizes)).to(vlm.device)
    hypernetwork = load_hypernetwork(loader.hypernetwork_source, device=vlm.device)
    if not fits(hypernetwork, vlm):
        check_belongs(hypernetwork, vlm)  # its error says what does not fit
    provenance = hypernetwork.provenance
    if provenance and provenance.base_fingerprint not in (None, vlm.fingerprint):
        display.note(f"{printable(provenance.id)} was trained for another model of these sizes; training adapts it")
    torch.manual_seed(seed)
    return widened(hypernetwork, sizes_for(vlm, sizes, hypernetwork.config)) if sizes else hypernetwork
