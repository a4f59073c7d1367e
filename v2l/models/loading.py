"""Load a frozen model from its folder: weights, tokenizer and device, checked before anything is computed."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError

from v2l.errors import V2LError
from v2l.io.safetensors_file import all_finite
from v2l.io.text import printable
from v2l.models.config import quiet_transformers
from v2l.models.presets import ModelFolder, find_model
from v2l.models.smolvlm import FrozenVLM
from v2l.models.tokenizer import load_tokenizer
from v2l.models.weights import open_tensors


def load_vlm(
    model: str = "tiny",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    vision: bool = True,
) -> FrozenVLM:
    """Load a frozen SmolVLM2. The network is never used.

    model: a preset (tiny, smolvlm2-500m, smolvlm2-2.2b) or a folder in the Hugging Face layout
    device: default is the first available of CUDA, MPS and the CPU; a named device must be available
    dtype: torch.float32, bfloat16 or float16; default bfloat16 on CUDA, float32 elsewhere
    vision: False loads the language model alone, which is sufficient for answering from adapters

    Raises V2LError if the model is missing, incomplete, of another type or has values that are not finite.
    """
    folder = find_model(model)
    device = choose_device(device)
    dtype = dtype or default_dtype(device)
    tokenizer = load_tokenizer(folder)
    modules = _load_modules(folder, dtype, vision)
    for module in (modules["text"], modules["head"], *(modules["vision"] or ())):
        module.to(device).eval().requires_grad_(False)
        for name, weights in module.named_parameters():
            if not all_finite(weights):
                raise V2LError(
                    f"the model in {printable(folder.path)} has values in {name} that are not finite as {dtype}; use "
                    "bfloat16 or float32, or get another copy of it"
                )
    return FrozenVLM(folder, modules, tokenizer, device)


def _load_modules(folder: ModelFolder, dtype: torch.dtype, vision: bool) -> dict[str, Any]:
    """Load the modules that `FrozenVLM` uses onto the CPU. Names and shapes of the tensors are checked against the
    configuration before memory is allocated for them. transformers receives tensors and never the folder, where it
    would look for pickled weights, adapters and code."""
    stored = folder.tensors()
    if not vision:
        stored = {name: tensor for name, tensor in stored.items() if name.startswith(("model.text_model.", "lm_head."))}
    options = {"dtype": dtype, "attn_implementation": "sdpa", "local_files_only": True}
    try:
        with quiet_transformers(), open_tensors(stored) as slices:
            return _whole(folder.config, slices, options) if vision else _language(folder.config, slices, options)
    except (OSError, ValueError, RuntimeError, KeyError, MemoryError, SafetensorError) as error:
        raise V2LError(
            f"cannot load the model in {printable(folder.path)}: {printable(error)}; get another copy of it"
        ) from error


def _whole(config: Any, slices: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMForConditionalGeneration

    return parts_of(SmolVLMForConditionalGeneration.from_pretrained(None, config=config, state_dict=slices, **options))


def _language(config: Any, slices: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    named = {name.replace("model.text_model.", "model."): tensor for name, tensor in slices.items()}
    model = LlamaForCausalLM.from_pretrained(None, config=config.text_config, state_dict=named, **options)
    return {"text": model.model, "head": model.lm_head, "vision": None}


def parts_of(model: Any) -> dict[str, Any]:
    """Return the modules of a SmolVLMForConditionalGeneration that `FrozenVLM` uses."""
    vision = (model.model.vision_model, model.model.connector)
    return {"text": model.model.text_model, "head": model.lm_head, "vision": vision}


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
