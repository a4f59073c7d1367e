"""Load a frozen model from its folder: weights, tokenizer and device, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from safetensors import SafetensorError

from v2l.errors import V2LError
from v2l.io.tensors import all_finite
from v2l.io.text import printable
from v2l.models import language_model, vision_tower
from v2l.models.config import TextConfig
from v2l.models.language_model import LanguageModel
from v2l.models.presets import ModelFolder, find_model
from v2l.models.smolvlm import FrozenVLM
from v2l.models.tokenizer import load_tokenizer
from v2l.models.vision_tower import VisionTower
from v2l.models.weights import open_tensors

LARGE = 100_000_000
"""Weights in the decoder layers from which the CPU may run a model in bfloat16. That of the 500M (315 million) gains in
every phase on a processor that prefers bfloat16. The time of smaller models is that of operations, not of numbers."""

MAPPED_BYTES = 200_000_000
"""Weights that are read before their file is mapped anew: the pages of a mapped file count as memory until then."""


def load_vlm(
    model: str | ModelFolder = "tiny",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    vision: bool = True,
) -> FrozenVLM:
    """Load a frozen SmolVLM2. The network is never used.

    model: a preset (tiny, smolvlm2-500m, smolvlm2-2.2b), a folder in the Hugging Face layout, or one that was found
    device: default is the first available of CUDA, MPS and the CPU; a named device must be available
    dtype: torch.float32, bfloat16 or float16; None for `default_dtype`
    vision: False loads the language model alone, which is sufficient for answering from adapters

    Raises V2LError if the model is missing, incomplete, of another type or has values that are not finite.
    """
    folder = model if isinstance(model, ModelFolder) else find_model(model)
    device = choose_device(device)
    dtype = dtype or default_dtype(device, folder.config.text_config)
    tokenizer = load_tokenizer(folder)
    language = LanguageModel.empty(folder.config, device, dtype)
    vlm = FrozenVLM(folder, language, None, tokenizer, device)
    _fill(folder, language_model.published_weights(language))
    return add_vision(vlm) if vision else vlm


def add_vision(vlm: FrozenVLM) -> FrozenVLM:
    """Load the vision tower of a model that was loaded without it. Returns the same object; errors as `load_vlm`."""
    if vlm.vision is None:
        tower = VisionTower.empty(vlm.folder.config, vlm.device, vlm.dtype)
        _fill(vlm.folder, vision_tower.published_weights(tower))
        vlm.vision = tower
    return vlm


def _fill(folder: ModelFolder, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Read weights from the folder, one tensor at a time and memory-mapped, into the type and place of the modules.

    weights: the published name of every tensor, and the part of the modules that it fills

    Names and shapes of the stored tensors are compared with the configuration first. Raises V2LError if they cannot be
    read or are not finite in the type of the modules.
    """
    stored = folder.tensors
    parts = dict(weights)
    try:
        for group in _groups(parts):
            with open_tensors({name: stored[name] for name in group}) as slices:
                for name, part in group.items():
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


def _groups(parts: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Split tensors, in their order, into groups of at least `MAPPED_BYTES`; the last may be smaller."""
    group: dict[str, torch.Tensor] = {}
    for name, part in parts.items():
        group[name] = part
        if sum(each.nbytes for each in group.values()) >= MAPPED_BYTES:
            yield group
            group = {}
    yield group


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


def default_dtype(device: torch.device, config: TextConfig) -> torch.dtype:
    """Return the default number type of a model: bfloat16 on CUDA, and on a CPU that gains by it if the model is large;
    else float32."""
    if device.type == "cpu":
        half = config.num_hidden_layers * config.layer_products >= LARGE and prefers_bfloat16(cpu_capabilities())
    else:
        half = device.type == "cuda"
    return torch.bfloat16 if half else torch.float32


def cpu_capabilities() -> Mapping[str, object]:
    """Return the name and the instruction sets of the CPU, as torch detects them; empty before torch 2.11."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def prefers_bfloat16(capabilities: Mapping[str, object]) -> bool:
    """Return whether a CPU of these capabilities multiplies bfloat16 matrices faster than float32 ones.

    With AMX they are, and with AVX512-BF16 on AMD: twice as fast from one token to a whole prompt. Intel processors
    without AMX execute the instruction of AVX512-BF16 at a quarter of the rate of a float32 multiply-add, so that a
    video's prompt takes 1.7 times as long in bfloat16 (docs/speed.md).
    """
    is_amd = str(capabilities.get("cpu_name")).startswith("AMD")
    return bool(capabilities.get("amx_bf16") or (is_amd and capabilities.get("avx512_bf16")))
