"""A trained hypernetwork with more ranks, latents and key/value heads that begins as what it was."""

from __future__ import annotations

import dataclasses

import torch

from v2l.errors import V2LError
from v2l.models.hypernetwork import TARGET, Hypernetwork, HypernetworkConfig

APART = 0.5
"""How far the copies of a latent begin from it, against its own spread. Near ones learn the same and stay near: at a
fifth of this those of the embedded model were still twins after tens of thousands of clips."""


def widened(hypernetwork: Hypernetwork, config: HypernetworkConfig) -> Hypernetwork:
    """A copy whose `rank`, `num_latents` and `num_kv_heads` are multiples of what they were. New ranks, generated and
    of the learned bias, change nothing yet; new latents begin near the old ones, so that these read almost what they
    did; key/value heads begin as copies, of which each serves fewer query heads.

    config: sizes that make a network (`train.sizes_for`)
    Raises V2LError where other sizes differ, and for what is no multiple.
    """
    old = hypernetwork.config
    for name, value in dataclasses.asdict(config).items():
        own = getattr(old, name)
        if value != own and (name not in ("rank", "num_latents", "num_kv_heads") or value % own):
            raise V2LError(
                f"{name}={value} cannot be made of a trained hypernetwork; its rank ({old.rank}), num_latents "
                f"({old.num_latents}) and num_kv_heads ({old.num_kv_heads}) can be multiplied"
            )
    wide = Hypernetwork(config).to(next(hypernetwork.parameters()).device)
    times = config.rank // old.rank
    state = hypernetwork.state_dict()
    for side, repeats in (("encoder", config.num_latents // old.num_latents), ("decoder", times)):
        name = f"aggregator.perceiver.{side}.latents_q"
        if repeats > 1:
            copies = state[name].repeat(repeats - 1, 1)
            copies += APART * copies.std() * torch.randn_like(copies)
            state[name] = torch.cat([state[name], copies])
    more = config.num_kv_heads // old.num_kv_heads
    for name in state:
        if name.endswith(("self_attn.k_proj.weight", "self_attn.v_proj.weight")):
            heads = state[name].unflatten(0, (old.num_kv_heads, -1))
            state[name] = heads.repeat_interleave(more, 0).flatten(0, 1)
    for factor in "AB":
        own = state[f"bias_{factor}.{TARGET}"]
        fresh = wide.state_dict()[f"bias_{factor}.{TARGET}"][:, old.rank :]  # of B, zeros
        state[f"bias_{factor}.{TARGET}"] = torch.cat([own, fresh], dim=1)
        state[f"scaler_{factor}.{TARGET}"] = state[f"scaler_{factor}.{TARGET}"].repeat(1, 1, times, 1)
    state[f"scaler_B.{TARGET}"][:, :, old.rank :] = 0
    wide.load_state_dict(state)
    wide.provenance = hypernetwork.provenance
    return wide
