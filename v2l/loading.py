"""A model folder to a frozen model in memory: weights, tokenizer and device, checked before anything is computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError

from v2l.errors import V2LError, V2LWarning
from v2l.files import printable
from v2l.models import ModelFolder, find_model
from v2l.prompt import END_OF_TURN, GLOBAL_VIEW, IMAGE, IMAGE_EDGE, START, question_text
from v2l.vlm import FrozenVLM


def load_vlm(
    model: str = "tiny",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    vision: bool = True,
) -> FrozenVLM:
    """Loads a frozen SmolVLM2.

    model: a preset (tiny, smolvlm2-500m, smolvlm2-2.2b) or a folder in the Hugging Face layout
    device: default CUDA, then MPS, then the CPU, whichever is there; a device that is named must exist
    dtype: torch.float32, bfloat16 or float16; default bfloat16 on CUDA, float32 elsewhere
    vision: False loads the language model alone, which is all that answering from adapters needs

    Raises V2LError where the model is not there, incomplete or of another kind. Never reaches the network.
    """
    folder = find_model(model)
    device = choose_device(device)
    dtype = dtype or default_dtype(device)
    options = {"dtype": dtype, "attn_implementation": "sdpa", "local_files_only": True, "output_loading_info": True}
    with _quiet_transformers():
        try:
            modules, info = _load_whole(folder, options) if vision else _load_language_model(folder, options)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise V2LError(
                f"cannot load the model in {printable(folder.path)}: {printable(error)}; get another copy of it"
            ) from error
    lacking = sorted(info["missing_keys"]) + [str(key) for key in info["mismatched_keys"]]
    if lacking:
        raise V2LError(
            f"the model in {printable(folder.path)} has no fitting {printable(lacking[0])} "
            f"({len(lacking)} such tensors); get another copy of it"
        )
    for module in (modules["text"], modules["head"], *(modules["vision"] or ())):
        module.to(device).eval().requires_grad_(False)
    return FrozenVLM(folder, modules, load_tokenizer(folder), device)


def _load_whole(folder: ModelFolder, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMForConditionalGeneration

    model, info = SmolVLMForConditionalGeneration.from_pretrained(folder.path, **options)
    return parts_of(model), info


def parts_of(model: Any) -> dict[str, Any]:
    """What `FrozenVLM` uses of a SmolVLMForConditionalGeneration."""
    vision = (model.model.vision_model, model.model.connector)
    return {"text": model.model.text_model, "head": model.lm_head, "vision": vision}


def _load_language_model(folder: ModelFolder, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    config = folder.config.text_config
    config.tie_word_embeddings = folder.config.tie_word_embeddings
    renamed = {r"^model\.text_model\.": "model."}
    model, info = LlamaForCausalLM.from_pretrained(folder.path, config=config, key_mapping=renamed, **options)
    return {"text": model.model, "head": model.lm_head, "vision": None}, info


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' own bar and report: which tensors are used is checked here, and stderr is the user's."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def choose_device(name: str | torch.device | None) -> torch.device:
    """The device of that name, or the best there is where it is None. Raises V2LError where it is not there."""
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
    """The number type for that device where none is named."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_tokenizer(folder: ModelFolder) -> Any | None:
    """The folder's `tokenizers.Tokenizer`, None where it has none. Raises V2LError where it is not SmolVLM2's."""
    from tokenizers import Tokenizer

    path = folder.path / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise V2LError(f"cannot read {printable(path)}: {printable(error)}; get another copy of it") from error
    for token in (START, END_OF_TURN, IMAGE, IMAGE_EDGE, GLOBAL_VIEW):
        if len(tokenizer.encode(token, add_special_tokens=False).ids) != 1:
            raise V2LError(f"{printable(path)} does not know {token} as one token; it is not SmolVLM2's tokenizer")
    if tokenizer.token_to_id(IMAGE) != folder.config.image_token_id:
        raise V2LError(f"{printable(path)} and config.json disagree about the id of {IMAGE}; get another copy of both")
    _compare_template(folder)
    return tokenizer


def _compare_template(folder: ModelFolder) -> None:
    """One warning where the folder's own chat template would write another prompt than v2l does."""
    template = folder.chat_template()
    if template is None:
        return
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{"role": "user", "content": [{"type": "text", "text": "question"}]}]
    try:
        rendered = render_jinja_template([chat], chat_template=template, add_generation_prompt=True)[0][0]
    except Exception:  # a template that cannot be rendered differs, whatever the reason
        rendered = None
    if rendered != question_text("question"):
        warnings.warn(
            f"the chat template in {printable(folder.path)} is not SmolVLM2's; v2l writes its prompts as SmolVLM2's",
            V2LWarning,
            stacklevel=2,
        )
