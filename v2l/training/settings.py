"""The settings of a training run, importable without torch.

A field that states its `meaning` as metadata is a setting of `v2l train --set NAME=VALUE`, whose help lists it; the
others have an option of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, meaning: str, **bounds: float) -> Any:
    """Return a field with its meaning. bounds: the `least` and the `most` that it may be; without `least`, a whole
    number is at least 1 and any other number above 0."""
    return field(default=default, metadata={"meaning": meaning, **bounds})


def _prompt() -> str:
    from v2l.models.hypernetwork_file import INTERNALIZATION_PROMPT  # which `v2l --help` does not need

    return INTERNALIZATION_PROMPT


@dataclass(frozen=True)
class SamplingConfig:
    """How clips are sampled in training.

    frames, fps: of a clip, or of each segment, at most this many frames at this rate, as encoding will take them
    resolutions: pixels of a frame's longest edge: the first is that of encoding and of a share `at_first` of the
        clips, the other clips take any of them; empty for the frozen model's own
    prompt: the text after the video
    """

    frames: int = 12
    fps: float = 1.0
    resolutions: tuple[int, ...] = ()
    denser: float = setting(
        1.5, "Sample frames up to this many times as densely, from a random offset; 1 samples the same ones.", least=1
    )
    windows: int = setting(8, "Read a clip in at most this many joint windows; 1 for a single window.")
    segments: int = setting(8, "Compose at most this many adapters of segments of a clip; 1 for no composition.")
    questions: int = setting(4, "Use at most this many questions of a clip at a time.")
    prompt: str = field(default_factory=_prompt)
    newline: bool = setting(False, "Count the line break after the end of an answer in the loss, as published.")
    marks_end: bool = setting(False, "Announce the last frame of a video as its last.")
    longest: int | None = setting(
        None,
        "Use at most this many frames of a clip, and fall back to the first resolution if tiling would yield more "
        "images than that.",
    )
    at_first: float = setting(
        0.5, "The share of clips that are read at the first of several resolutions.", least=0, most=1
    )


@dataclass(frozen=True)
class Training:
    """The settings of a run; the defaults are the published ones where those are known (method section 5.2).

    batch: clips in a step, over all processes and micro-batches
    learning_rate: its peak
    """

    curriculum: SamplingConfig = field(default_factory=SamplingConfig)
    steps: int = 9000
    batch: int = 384
    together: int = setting(8, "Clips in memory at a time; gradients are accumulated over the batch.")
    learning_rate: float = 1e-4
    weight_decay: float = setting(0.01, "The weight decay of AdamW.", least=0)
    warmup: float = setting(0.03, "The share of the steps over which the learning rate rises.", least=0, most=1)
    clip_norm: float = setting(1.0, "The norm that gradients are clipped to.")
    kl_weight: float = setting(
        0.0, "The weight of the divergence from the frozen model with the video in context.", least=0
    )
    hidden_weight: float = setting(
        0.0, "The weight of the distance from the hidden states of the frozen model in context.", least=0
    )
    steer_weight: float = setting(
        0.0, "The weight of attention guidance, which draws each latent to the ends of frames.", least=0
    )
    recompute: bool = setting(
        True, "Compute the hypernetwork's activations again in the backward pass instead of keeping them."
    )
    validate_every: int = setting(1000, "Steps between validations.")
    validation_clips: int = setting(128, "The maximum number of clips in a validation.")
    save_every: int = setting(100, "Steps between saved states.")
    workers: int = setting(0, "Processes that read clips ahead.", least=0)
    seed: int = 42


SIZES = {
    "rank": "The rank of the generated factors.",
    "lora_alpha": "The multiplier of their product.",
    "latent_size": "The width of the latents.",
    "num_latents": "The number of latents per layer of the frozen model.",
    "num_blocks": "The number of perceiver blocks.",
    "num_heads": "The number of attention heads.",
    "num_kv_heads": "The number of key-value heads.",
    "head_dim": "The width of an attention head.",
}
"""The sizes of a hypernetwork that `v2l train --set` takes, by the fields of `HypernetworkConfig`."""
