"""A short training run of a small hypernetwork, for the tests of the trainer, the losses and the recipe."""

import torch

from v2l.models.hypernetwork import Hypernetwork
from v2l.training.data import SamplingConfig
from v2l.training.trainer import Training, sizes_for

SIZES = {
    "rank": 4,
    "latent_size": 32,
    "num_latents": 4,
    "num_blocks": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
}
CURRICULUM = SamplingConfig(frames=4, windows=3, segments=3, questions=3)
TRAINING = Training(
    CURRICULUM, steps=4, batch=3, together=3, learning_rate=3e-3, validate_every=2, save_every=2, validation_clips=2
)


def fresh(vlm, seed=0):
    torch.manual_seed(seed)
    return Hypernetwork(sizes_for(vlm, SIZES))


def lively(vlm):
    """A hypernetwork whose initial factors are not zero."""
    hypernetwork = fresh(vlm)
    with torch.no_grad():
        hypernetwork.scaler_B["down_proj"].normal_(std=0.5)
        hypernetwork.bias_B["down_proj"].normal_(std=0.02)
    return hypernetwork
