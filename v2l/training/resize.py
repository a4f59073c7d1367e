"""Widen a trained hypernetwork: more ranks, latents and key/value heads, with almost unchanged output."""

from __future__ import annotations

import dataclasses

import torch

from v2l.errors import V2LError
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import TARGET, HypernetworkConfig

LATENT_NOISE = 0.5
"""Standard deviation of the noise added to copied latents, relative to theirs. Similar copies learn the same and stay
similar: at a fifth of this value those of the embedded model were still alike after tens of thousands of clips."""


def widened(hypernetwork: Hypernetwork, config: HypernetworkConfig) -> Hypernetwork:
    """Return a copy whose `rank`, `num_latents` and `num_kv_heads` are multiples of the original ones.

    New ranks, both generated and of the learned bias, have no effect yet. New latents are noisy copies, so that the
    original ones attend almost as before. Key/value heads are repeated, and each serves fewer query heads.

    config: valid sizes (`trainer.sizes_for`)
    Raises V2LError if another size differs or a size is not a multiple.
    """
    old = hypernetwork.config
    for name, value in dataclasses.asdict(config).items():
        own = getattr(old, name)
        if value != own and (name not in ("rank", "num_latents", "num_kv_heads") or value % own):
            raise V2LError(
                f"a trained hypernetwork cannot be resized to {name}={value}; its rank ({old.rank}), num_latents "
                f"({old.num_latents}) and num_kv_heads ({old.num_kv_heads}) can be multiplied"
            )
    wide = Hypernetwork(config).to(next(hypernetwork.parameters()).device)
    times = config.rank // old.rank
    state = hypernetwork.state_dict()

    # Latents of both resamplers: noisy copies
    for side, repeats in (("encoder", config.num_latents // old.num_latents), ("decoder", times)):
        name = f"aggregator.perceiver.{side}.latents_q"
        if repeats > 1:
            copies = state[name].repeat(repeats - 1, 1)
            copies += LATENT_NOISE * copies.std() * torch.randn_like(copies)
            state[name] = torch.cat([state[name], copies])

    # Key/value heads: repeated
    more = config.num_kv_heads // old.num_kv_heads
    for name in state:
        if name.endswith(("self_attn.k_proj.weight", "self_attn.v_proj.weight")):
            heads = state[name].unflatten(0, (old.num_kv_heads, -1))
            state[name] = heads.repeat_interleave(more, 0).flatten(0, 1)

    # Ranks: a fresh bias, and scales that are zero for B
    for factor in "AB":
        own = state[f"bias_{factor}.{TARGET}"]
        fresh = wide.state_dict()[f"bias_{factor}.{TARGET}"][:, old.rank :]  # zeros for B
        state[f"bias_{factor}.{TARGET}"] = torch.cat([own, fresh], dim=1)
        state[f"scaler_{factor}.{TARGET}"] = state[f"scaler_{factor}.{TARGET}"].repeat(1, 1, times, 1)
    state[f"scaler_B.{TARGET}"][:, :, old.rank :] = 0
    wide.load_state_dict(state)
    wide.provenance = hypernetwork.provenance
    return wide
