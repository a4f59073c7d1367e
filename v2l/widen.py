"""A trained hypernetwork with more ranks and latents that begins as what it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from v2l.errors import V2LError
from v2l.hypernetwork import TARGET, Hypernetwork

APART = 0.1
"""How far the copies of a latent begin from it, against its own spread: equal ones would stay equal."""


def widened(hypernetwork: Hypernetwork, sizes: Mapping[str, int | float]) -> Hypernetwork:
    """A copy whose `rank` and `num_latents` are multiples of what they were: every rank stands there several times with
    its share of the change, and the learned bias gets ranks that change nothing yet.

    Raises V2LError for other sizes, and for what is no multiple.
    """
    old = hypernetwork.config
    for name, value in sizes.items():
        if name not in ("rank", "num_latents") or value % getattr(old, name):
            raise V2LError(
                f"{name}={value} cannot be made of a trained hypernetwork; its rank ({old.rank}) and num_latents "
                f"({old.num_latents}) can be multiplied"
            )
    wide = Hypernetwork(dataclasses.replace(old, **sizes)).to(next(hypernetwork.parameters()).device)
    times = wide.config.rank // old.rank
    state = hypernetwork.state_dict()
    for side, repeats in (("encoder", wide.config.num_latents // old.num_latents), ("decoder", times)):
        name = f"aggregator.perceiver.{side}.latents_q"
        if repeats > 1:
            copies = state[name].repeat(repeats, 1)
            state[name] = copies + APART * copies.std() * torch.randn_like(copies)
    for factor in "AB":
        own = state[f"bias_{factor}.{TARGET}"]
        fresh = wide.state_dict()[f"bias_{factor}.{TARGET}"][:, old.rank :]  # of B, zeros
        state[f"bias_{factor}.{TARGET}"] = torch.cat([own, fresh], dim=1)
        state[f"scaler_{factor}.{TARGET}"] = state[f"scaler_{factor}.{TARGET}"].repeat(1, 1, times, 1)
    state[f"scaler_B.{TARGET}"] = state[f"scaler_B.{TARGET}"] / times
    wide.load_state_dict(state)
    wide.origin = hypernetwork.origin
    return wide
