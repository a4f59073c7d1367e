"""Load a frozen model from its folder: weights, tokenizer and device, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors import SafetensorError

from v2l.errors import V2LError
from v2l.io.tensors import all_finite
from v2l.io.text import printable
from v2l.models import language_model, vision_tower
from v2l.models.language_model import LanguageModel
from v2l.models.presets import ModelFolder, find_model
from v2l.models.smolvlm import FrozenVLM
from v2l.models.tokenizer import load_tokenizer
from v2l.models.vision_tower import VisionTower
from v2l.models.weights import open_tensors


def load_vlm(
    model: str | ModelFolder = "tiny",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    vision: bool = True,
) -> FrozenVLM:
    """Load a frozen SmolVLM2. The network is never used.

    model: a preset (tiny, smolvlm2-500m, smolvlm2-2.2b), a folder in the Hugging Face layout, or one that was found
    device: default is the first available of CUDA, MPS and the CPU; a named device must be available
    dtype: torch.float32, bfloat16 or float16; default bfloat16 on CUDA, float32 elsewhere
    vision: False loads the language model alone, which is sufficient for answering from adapters

    Raises V2LError if the model is missing, incomplete, of another type or has values that are not finite.
    """
    folder = model if isinstance(model, ModelFolder) else find_model(model)
    device = choose_device(device)
    dtype = dtype or default_dtype(device)
    tokenizer = load_tokenizer(folder)
    language = LanguageModel.empty(folder.config, device, dtype)
    tower = VisionTower.empty(folder.config, device, dtype) if vision else None
    _fill(folder, language, tower)
    return FrozenVLM(folder, language, tower, tokenizer, device)


def _fill(folder: ModelFolder, model: LanguageModel, tower: VisionTower | None) -> None:
    """Read the weights from the folder, one tensor at a time and memory-mapped, into the type and place of the modules.

    Names and shapes of the stored tensors are compared with the configuration first. Raises V2LError if they cannot be
    read or are not finite in the type of the modules.
    """
    stored = folder.tensors
    parts = dict(published_weights(model, tower))
    try:
        with open_tensors({name: stored[name] for name in parts}) as slices:
            for name, part in parts.items():
                part.copy_(slices[name][:])
                if not all_finite(part):
                    raise V2LError(
                        f"the model in {printable(folder.path)} has values in {name} that are not finite as "
                        f"{part.dtype}; use bfloat16 or float32, or get another copy of it"
                    )
    except (OSError, ValueError, RuntimeError, KeyError, MemoryError, SafetensorError) as error:
        raise V2LError(
            f"cannot load the model in {printable(folder.path)}: {printable(error)}; get another copy of it"
        ) from error


def published_weights(model: LanguageModel, tower: VisionTower | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the published name of every tensor and the part of the modules' weights that it fills."""
    yield from language_model.published_weights(model)
    if tower is not None:
        yield from vision_tower.published_weights(tower)


def choose_device(name: str | torch.device | None) -> torch.device:
    """Return the device of that name; for None, CUDA, MPS or the CPU, the first available. Raises V2LError if the named
    device is not available."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise V2LError(f"the device {printable(name)} is not there; use cpu, or leave it out to choose") from error
    return device


def default_dtype(device: torch.device) -> torch.dtype:
    """Return the default number type of a device."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
