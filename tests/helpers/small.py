"""Small models with random weights and small videos, for tests without downloads."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from v2l.models.checkpoint import save_hypernetwork, with_provenance
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import TARGET, HypernetworkConfig, TrainedWith
from v2l.models.presets import find_model
from v2l.video.sampling import Video

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
]
IMAGE_TOKEN_ID = SPECIAL_TOKENS.index("<image>")


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer with the special tokens of SmolVLM, which splits numbers into digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    text = [
        "User: You are provided the following series of twelve frames from a 0:00:30 [H:MM:SS] video.",
        "Frame from 00:12: Assistant: Internalize this video for later captioning. what is on the whiteboard?",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def small_config(**text_changes) -> SmolVLMConfig:
    text = {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "vocab_size": 448,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "pad_token_id": 2,
        "initializer_range": 0.08,
        **text_changes,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "initializer_range": 0.08,
    }
    return SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=IMAGE_TOKEN_ID,
        pad_token_id=2,
        tie_word_embeddings=False,
    )


def write_model(
    folder: Path, seed: int = 0, config: SmolVLMConfig | None = None, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a SmolVLM folder in the Hugging Face layout, by default with 4 tokens per 32-pixel image."""
    config = config or small_config()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = SmolVLMForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    model.save_pretrained(folder)
    size = config.vision_config.image_size
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "max_image_size": {"longest_edge": size},
                "size": {"longest_edge": 4 * size},
                "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": size}},
            }
        )
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": SPECIAL_TOKENS.index("<end_of_utterance>"), "pad_token_id": 2})
    )
    write_tokenizer(folder)
    return folder


def small_hypernetwork(base: Path, seed: int = 0, trained_with: TrainedWith | None = None, **sizes) -> Hypernetwork:
    """Return a random hypernetwork for the model in `base`, with scalers that make its adapters effective."""
    folder = find_model(base)
    text = folder.config.text_config
    config = HypernetworkConfig(
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        **{
            "rank": 4,
            "lora_alpha": 16.0,
            "latent_size": 32,
            "num_blocks": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            **sizes,
        },
    )
    torch.manual_seed(seed)
    hypernetwork = Hypernetwork(config)
    with torch.no_grad():
        hypernetwork.scaler_B[TARGET].normal_(std=0.5)
        hypernetwork.bias_B[TARGET].normal_(std=0.02)
    return with_provenance(
        hypernetwork.eval(),
        id=f"test-{seed}",
        base_model=folder.id,
        base_fingerprint=folder.fingerprint,
        trained_with=trained_with or TrainedWith(frames=8, window_frames=4),
    )


def write_hypernetwork(base: Path, seed: int = 0, **options) -> Path:
    path = base / "hypernetwork.safetensors"
    save_hypernetwork(small_hypernetwork(base, seed, **options), path)
    return path


def write_video(
    path: Path, frames: int = 32, fps: float = 8.0, width: int = 64, height: int = 48, seed: int = 0
) -> Path:
    """Write a video of a square that moves over noise; frames differ between seeds and over time."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    assert writer.isOpened()
    random = np.random.default_rng(seed)
    ground = random.integers(0, 160, (height, width, 3), dtype=np.uint8)
    colour = tuple(int(value) for value in random.integers(100, 256, 3))
    for index in range(frames):
        frame = ground.copy()
        left = (index * 3 + seed * 7) % (width - 12)
        cv2.rectangle(frame, (left, 10), (left + 12, 30), colour, -1)
        writer.write(frame)
    writer.release()
    return path


def video_of(seconds: Sequence[float], fps: float, constant: bool = True, width: int = 64, height: int = 48) -> Video:
    """Return the probe result of a progressive file with frames at these times, without a file."""
    times = np.round(np.asarray(seconds, float), 6)
    return Video(
        path="/v.mp4",
        stream=0,
        frame_count=len(times),
        fps=fps,
        duration=float(times[0]) + len(times) / fps,
        width=width,
        height=height,
        constant_rate=constant,
        interlaced=False,
        notes=(),
        seconds=times,
        index=None,
    )


if __name__ == "__main__":
    # `python tests/helpers/small.py FOLDER` writes a random model and a clip, to try the commands on
    place = Path(sys.argv[1])
    write_hypernetwork(write_model(place / "model"))
    write_video(place / "lecture.mp4", frames=160, width=320, height=180)
