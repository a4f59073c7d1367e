"""Architecture of the embedded model, and its folder in the Hugging Face layout that `load_vlm` reads."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from v2l.models.config import TextConfig
from v2l.models.language_model import DecoderLayer, LanguageModel
from v2l.models.processor import END_OF_TURN, IMAGE, START
from v2l.tiny.world.tokenizer import PAD, SPECIAL_TOKENS, VOCABULARY, save_tokenizer, train_tokenizer

IMAGE_SIZE = 64
POSITIONS = 512
SIGNIFICANT_BITS = 5
"""Significant bits of each released weight. Git packs them to two thirds of the size; 1% of the answers change
(docs/history/tiny.md)."""


def few_bits(weights: torch.Tensor) -> torch.Tensor:
    """Round matrices to `SIGNIFICANT_BITS` and return them in float16; vectors are only converted to float16."""
    if weights.ndim < 2:
        return weights.half()
    mantissa, exponent = torch.frexp(weights.float())
    steps = 2**SIGNIFICANT_BITS
    return torch.ldexp((mantissa * steps).round() / steps, exponent).half()


def tiny_config() -> SmolVLMConfig:
    """Return the configuration: a SmolVLM with 2.6 million parameters, 64-pixel images of 4 tokens, 512 positions."""
    vision = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
    }
    text = {
        "model_type": "llama",
        "hidden_size": 160,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 40,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.05,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": SPECIAL_TOKENS.index(START),
        "eos_token_id": SPECIAL_TOKENS.index(END_OF_TURN),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "tie_word_embeddings": True,
    }
    whole: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "scale_factor": 4,
        "image_token_id": SPECIAL_TOKENS.index(IMAGE),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "tie_word_embeddings": True,
    }
    return SmolVLMConfig(**whole)


def new_model(seed: int = 0) -> SmolVLMForConditionalGeneration:
    """Return a randomly initialised model; the seed determines its weights."""
    torch.manual_seed(seed)
    return SmolVLMForConditionalGeneration(tiny_config())


def save_model(model: SmolVLMForConditionalGeneration, folder: Path) -> None:
    """Save weights, configuration, processor settings and tokenizer.

    Weights are saved in half precision, those of the language model rounded by `few_bits`. The model is not modified.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved = copy.deepcopy(model)
    with torch.no_grad():
        for weights in saved.model.text_model.parameters():
            weights.copy_(few_bits(weights))
    saved.half().save_pretrained(folder)
    processor = {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "max_image_size": {"longest_edge": IMAGE_SIZE},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 4 * IMAGE_SIZE},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": IMAGE_SIZE}},
    }
    ends = {
        "bos_token_id": SPECIAL_TOKENS.index(START),
        "eos_token_id": SPECIAL_TOKENS.index(END_OF_TURN),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
    save_tokenizer(train_tokenizer(), folder)


def language_model(model: SmolVLMForConditionalGeneration) -> LanguageModel:
    """Return v2l's language model on the weights of transformers' classes, through which gradients reach them."""
    text: Any = model.model.text_model
    stated = text.config
    config = TextConfig(
        **{name: getattr(stated, name) for name in (each.name for each in fields(TextConfig)) if name != "rope_theta"},
        rope_theta=stated.rope_parameters["rope_theta"],
    )
    layers = [
        DecoderLayer(
            layer.input_layernorm.weight,
            torch.cat([getattr(layer.self_attn, f"{name}_proj").weight for name in "qkv"]).t(),
            layer.self_attn.o_proj.weight.t(),
            layer.post_attention_layernorm.weight,
            torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]).t(),
            layer.mlp.down_proj.weight.t(),
            config,
        )
        for layer in text.layers
    ]
    return LanguageModel(config, text.embed_tokens.weight, layers, text.norm.weight, model.lm_head.weight)
