"""Load a frozen model from its folder: weights, tokenizer and device, checked before anything is computed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping

import torch
from safetensors import SafetensorError

from v2l.errors import V2LError, is_out_of_memory
from v2l.io.tensors import all_finite
from v2l.io.text import printable
from v2l.models import language_model, vision_tower
from v2l.models.config import SmolVLMConfig, tensor_shapes
from v2l.models.device import choose_device, default_dtype, memory_errors
from v2l.models.language_model import LanguageModel
from v2l.models.presets import ModelFolder, find_model
from v2l.models.smolvlm import FrozenVLM
from v2l.models.tokenizer import load_tokenizer
from v2l.models.vision_tower import VisionTower
from v2l.models.weights import open_tensors

logger = logging.getLogger(__name__)

VISION_PREFIXES = ("model.vision_model.", "model.connector.")
"""Starts of the names of the vision tower's tensors and the connector's."""
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

    Raises V2LError if the model is missing, incomplete, of another type or has values that are not finite, and
    ModelError if it does not fit the memory.
    """
    folder = model if isinstance(model, ModelFolder) else find_model(model)
    device = choose_device(device)
    dtype = dtype or default_dtype(device, folder.config.text_config)
    tokenizer = load_tokenizer(folder)
    needed, started = model_bytes(folder.config, dtype, vision), time.perf_counter()
    with memory_errors(f"the model in {printable(folder.path)}", device, dtype, needed):
        language = LanguageModel.empty(folder.config, device, dtype)
        _fill(folder, language_model.published_weights(language))
    seconds = time.perf_counter() - started
    logger.debug("loaded %s from %s in %.2f s: %s, %s", folder.id, folder.path, seconds, device, dtype)
    vlm = FrozenVLM(folder, language, None, tokenizer, device)
    return add_vision(vlm) if vision else vlm


def add_vision(vlm: FrozenVLM) -> FrozenVLM:
    """Load the vision tower of a model that was loaded without it. Returns the same object; errors as `load_vlm`."""
    if vlm.vision is None:
        folder, config = vlm.folder, vlm.folder.config
        needed = model_bytes(config, vlm.dtype) - model_bytes(config, vlm.dtype, vision=False)
        started = time.perf_counter()
        with memory_errors(f"the vision tower of {printable(folder.path)}", vlm.device, vlm.dtype, needed):
            tower = VisionTower.empty(config, vlm.device, vlm.dtype)
            _fill(folder, vision_tower.published_weights(tower))
        vlm.vision = tower
        logger.debug("loaded the vision tower in %.2f s", time.perf_counter() - started)
    return vlm


def model_bytes(config: SmolVLMConfig, dtype: torch.dtype, vision: bool = True) -> int:
    """Return the bytes of a model's weights in a number type, with or without the vision tower."""
    shapes = {name: shape for name, shape in tensor_shapes(config) if vision or not name.startswith(VISION_PREFIXES)}
    return sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize


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
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
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
