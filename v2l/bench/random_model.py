"""The real architectures at their true size with random weights, so that speed can be measured without a download.

Everything that costs time or memory is true: dimensions, layers, tokens per image, positions, the published
hypernetwork's sizes. What such a model says means nothing, and everything made with one says so.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from v2l.errors import V2LError
from v2l.io.safetensors_file import canonical_json
from v2l.io.text import printable
from v2l.models.checkpoint import with_provenance
from v2l.models.hypernetwork import TARGET, Hypernetwork, HypernetworkConfig, TrainedWith
from v2l.models.loading import choose_device, default_dtype, parts_of
from v2l.models.presets import ModelFolder, find_model
from v2l.models.processor import IMAGE, INTERNALIZATION_PROMPT, QUESTIONS, PromptFrame, VisionGeometry, video_text
from v2l.models.smolvlm import FrozenVLM
from v2l.models.tokenizer import STAND_IN_PIECES, load_tokenizer
from v2l.tiny.world.tokenizer import SPECIAL_TOKENS, byte_level_bpe


@dataclass(frozen=True)
class Architecture:
    """A SmolVLM2's sizes, as its configuration files state them.

    text, vision: what differs from transformers' defaults; scale_factor: patches a side that become one token
    resolution: pixels of a frame's longest edge that its hypernetwork was trained with
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
"""By preset. The numbers are those of the hub's configuration files, where those could be seen."""


@dataclass(frozen=True)
class RandomFolder(ModelFolder):
    """A model folder without weights: they are drawn in memory."""

    def fingerprint(self) -> str:
        """Of the configuration: the weights follow from it and the seed."""
        text = {name: value for name, value in self.config.text_config.to_dict().items() if "dtype" not in name}
        return hashlib.sha256(canonical_json(["random weights", text]).encode()).hexdigest()


def random_model(
    name: str,
    folder: Path,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    architecture: Architecture | None = None,
) -> tuple[FrozenVLM, Hypernetwork]:
    """The architecture of that name and its hypernetwork, with random weights, the same ones always.

    folder: where its configuration and a stand-in tokenizer are written; architecture: another than the preset's
    device, dtype: as for `load_vlm`
    Raises V2LError for an unknown name or a device that is not there.
    """
    if architecture is None and name not in ARCHITECTURES:
        raise V2LError(f"there is no architecture {printable(name)}; choose from {', '.join(ARCHITECTURES)}")
    architecture = architecture or ARCHITECTURES[name]
    device = choose_device(device)
    dtype = dtype or default_dtype(device)
    opened = _write_folder(architecture, folder)
    described = RandomFolder(folder, f"random weights of {name}", None, opened.config, opened.geometry)
    modules = _random_modules(opened.config, device, dtype)
    return FrozenVLM(described, modules, load_tokenizer(opened), device), _hypernetwork(described, architecture, device)


def _random_modules(config: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMForConditionalGeneration

    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = SmolVLMForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return parts_of(model.eval().requires_grad_(False))


def _hypernetwork(folder: ModelFolder, architecture: Architecture, device: torch.device) -> Hypernetwork:
    text = folder.config.text_config
    sizes = (text.num_hidden_layers, text.hidden_size, text.intermediate_size)
    torch.manual_seed(0)
    hypernetwork = Hypernetwork(HypernetworkConfig(*sizes, **(architecture.hypernetwork or {})))
    with torch.no_grad():
        hypernetwork.scaler_B[TARGET].fill_(1e-3)  # an untrained one is zero, and would write zeros
    trained_with = TrainedWith(resolution=architecture.resolution)
    provenance = {"base_model": folder.id, "base_fingerprint": folder.fingerprint(), "trained_with": trained_with}
    return with_provenance(hypernetwork.to(device).eval().requires_grad_(False), id="random weights", **provenance)


def _write_folder(architecture: Architecture, folder: Path) -> ModelFolder:
    from transformers import SmolVLMConfig

    config = SmolVLMConfig(
        text_config=architecture.text,
        vision_config=architecture.vision,
        scale_factor=architecture.scale_factor,
        image_token_id=SPECIAL_TOKENS.index(IMAGE),
        pad_token_id=architecture.text["pad_token_id"],
        tie_word_embeddings=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
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
    """Whole words and single digits. What announces a frame is cut so that a frame costs 74 tokens at 500M, as was
    counted with the published code: 923 for a prompt of twelve."""
    frames = [PromptFrame(float(second)) for second in range(12)]
    texts = [video_text(frames, 72.0, prompt, geometry) for prompt in (INTERNALIZATION_PROMPT, *QUESTIONS)]
    return byte_level_bpe(STAND_IN_PIECES, 1024, texts)
