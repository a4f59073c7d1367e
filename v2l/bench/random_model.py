"""Build the real architectures at full size with random weights, to measure speed without a download.

Everything that affects time or memory is real: dimensions, layers, tokens per image, positions, and the sizes of the
published hypernetwork. The answers are meaningless, and everything made with such a model is marked as random.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from v2l.errors import V2LError
from v2l.io.safetensors_file import canonical_json
from v2l.io.text import printable
from v2l.models.checkpoint import with_provenance
from v2l.models.config import SmolVLMConfig, VisionGeometry, language_settings
from v2l.models.device import choose_device, default_dtype, memory_errors
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import INTERNALIZATION_PROMPT, TARGET, HypernetworkConfig, TrainedWith
from v2l.models.language_model import LanguageModel
from v2l.models.loading import model_bytes, published_weights
from v2l.models.presets import ModelFolder, find_model
from v2l.models.processor import IMAGE, QUESTIONS, PromptFrame, video_text
from v2l.models.smolvlm import FrozenVLM
from v2l.models.tokenizer import STAND_IN_PIECES, load_tokenizer
from v2l.models.vision_tower import VisionTower
from v2l.tiny.world.tokenizer import SPECIAL_TOKENS, byte_level_bpe


@dataclass(frozen=True)
class Architecture:
    """The sizes of a SmolVLM2, from its configuration files.

    text, vision: values that differ from transformers' defaults; scale_factor: patches per side that become one token
    resolution: longest edge of a frame, in pixels, that the hypernetwork was trained with
    hypernetwork: sizes that differ from the published ones
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    scale_factor: int
    resolution: int = 384
    hypernetwork: dict[str, Any] | None = None


_TEXT = {
    "model_type": "llama",
    "vocab_size": 49280,
    "max_position_embeddings": 8192,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 2,
}
ARCHITECTURES = {
    "smolvlm2-500m": Architecture(
        text=_TEXT
        | {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "rope_theta": 100000.0,
        },
        vision={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        scale_factor=4,
    ),
    "smolvlm2-2.2b": Architecture(
        text=_TEXT
        | {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "rope_theta": 130000.0,
        },
        vision={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        },
        scale_factor=3,
    ),
}
"""By preset. The numbers are from the hub's configuration files, as far as those were accessible."""


WEIGHT_STD = 0.02
"""Standard deviation of the weights, as transformers initialises them."""


@dataclass(frozen=True)
class RandomFolder(ModelFolder):
    """A model folder without weights, which are drawn in memory."""

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the configuration, which with the seed determines the weights."""
        described: Any = ["random weights", language_settings(self.config)]
        return hashlib.sha256(canonical_json(described).encode()).hexdigest()


def random_model(
    name: str,
    folder: Path,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    architecture: Architecture | None = None,
) -> tuple[FrozenVLM, Hypernetwork]:
    """Build an architecture and its hypernetwork with random weights, always the same ones.

    name: a preset in ARCHITECTURES; folder: receives its configuration and a stand-in tokenizer
    architecture: replaces that of the preset; device, dtype: as for `load_vlm`
    Raises V2LError if the name is unknown or the device is missing.
    """
    if architecture is None and name not in ARCHITECTURES:
        raise V2LError(f"unknown architecture {printable(name)}; choose from {', '.join(ARCHITECTURES)}")
    architecture = architecture or ARCHITECTURES[name]
    chosen = choose_device(device)
    opened = _write_folder(architecture, folder)
    dtype = dtype or default_dtype(chosen, opened.config.text_config)
    described = RandomFolder(folder, f"random weights of {name}", None, opened.config, opened.geometry)
    needed = model_bytes(opened.config, dtype)
    with memory_errors(f"a model of the sizes of {printable(name)}", chosen, dtype, needed):
        modules = _random_modules(opened.config, chosen, dtype)
    vlm = FrozenVLM(described, *modules, load_tokenizer(opened), chosen)
    return vlm, _hypernetwork(described, architecture, chosen)


@torch.no_grad()
def _random_modules(
    config: SmolVLMConfig, device: torch.device, dtype: torch.dtype
) -> tuple[LanguageModel, VisionTower]:
    model, tower = LanguageModel.empty(config, device, dtype), VisionTower.empty(config, device, dtype)
    generator = torch.Generator(device).manual_seed(0)
    for name, part in published_weights(model, tower):
        if part.ndim > 1:
            part.normal_(std=WEIGHT_STD, generator=generator)
        else:
            part.fill_(float(not name.endswith("bias")))
    return model, tower


def _hypernetwork(folder: ModelFolder, architecture: Architecture, device: torch.device) -> Hypernetwork:
    text = folder.config.text_config
    sizes = (text.num_hidden_layers, text.hidden_size, text.intermediate_size)
    torch.manual_seed(0)
    hypernetwork = Hypernetwork(HypernetworkConfig(*sizes, **(architecture.hypernetwork or {})))
    with torch.no_grad():
        hypernetwork.scaler_B[TARGET].fill_(1e-3)  # an untrained scaler is zero and gives zero factors
    return with_provenance(
        hypernetwork.to(device).eval().requires_grad_(False),
        id="random weights",
        base_model=folder.id,
        base_fingerprint=folder.fingerprint,
        trained_with=TrainedWith(resolution=architecture.resolution),
    )


def _write_folder(architecture: Architecture, folder: Path) -> ModelFolder:
    config = {
        "model_type": "smolvlm",
        "text_config": architecture.text,
        "vision_config": architecture.vision,
        "scale_factor": architecture.scale_factor,
        "image_token_id": SPECIAL_TOKENS.index(IMAGE),
        "tie_word_embeddings": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    size = architecture.vision["image_size"]
    processor = {
        "max_image_size": {"longest_edge": size},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": size}},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    geometry = VisionGeometry(size, (size // architecture.vision["patch_size"] // architecture.scale_factor) ** 2, size)
    _stand_in_tokenizer(geometry).save(str(folder / "tokenizer.json"))
    return find_model(folder)


def _stand_in_tokenizer(geometry: VisionGeometry) -> Any:
    """Build a tokenizer of whole words and single digits. The text before a frame is split so that a frame takes 74
    tokens at 500M, as with the published code: 923 for a prompt of twelve frames."""
    frames = [PromptFrame(float(second)) for second in range(12)]
    texts = [video_text(frames, 72.0, prompt, geometry) for prompt in (INTERNALIZATION_PROMPT, *QUESTIONS)]
    return byte_level_bpe(STAND_IN_PIECES, 1024, texts)
