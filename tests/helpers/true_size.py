"""Model folders at the true sizes of SmolVLM2, with random weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import small
import torch
from transformers import SmolVLMConfig

from v2l.bench.random_model import ARCHITECTURES, Architecture
from v2l.models.hypernetwork_file import TrainedWith

SMOLVLM2_256M = dataclasses.replace(
    ARCHITECTURES["smolvlm2-500m"],
    text=ARCHITECTURES["smolvlm2-500m"].text
    | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
)
"""SmolVLM2-256M, for which no hypernetwork is published: the decoder of SmolLM2-135M, all else as at 500M."""


def write_true_size(
    folder: Path, sizes: Architecture = ARCHITECTURES["smolvlm2-500m"], dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Write a model folder of these sizes, by default the 500M. dtype: number type of the file"""
    config = SmolVLMConfig(
        text_config=sizes.text,
        vision_config=sizes.vision,
        scale_factor=sizes.scale_factor,
        image_token_id=small.IMAGE_TOKEN_ID,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    return small.write_model(folder, config=config, dtype=dtype)


def write_published_hypernetwork(folder: Path) -> None:
    """Write a random hypernetwork of the published sizes, in the model folder."""
    sizes = {"rank": 16, "lora_alpha": 128.0, "latent_size": 512, "num_blocks": 9}
    heads = {"num_heads": 16, "num_kv_heads": 4, "head_dim": 128}
    small.write_hypernetwork(folder, trained_with=TrainedWith(resolution=384), **sizes, **heads)


def fill_vocabulary(folder: Path) -> None:
    """Give the tokenizer a name for each of the published models' 49,280 tokens: random answers are not empty then."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    taken = {*vocabulary.values(), *(added["id"] for added in tokenizer["added_tokens"])}
    vocabulary |= {f"<{id}>": id for id in range(ARCHITECTURES["smolvlm2-500m"].text["vocab_size"]) if id not in taken}
    path.write_text(json.dumps(tokenizer))
