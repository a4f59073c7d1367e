"""Draws the hypernetwork's attention to the ends of frames, where a frozen model has written what it saw and when.

One resampler reads every layer's hidden states, and where a layer's tokens look unlike those that it has learned to
read it may rest on tokens that say nothing; latents may all come to read the same, and ranks the same latent. Steered,
each latent reads frames of its own instead, and each rank a latent of its own.
"""

from __future__ import annotations

import torch

from v2l.models.perceiver import Resampler, ResamplerAttention
from v2l.training.data import NO_END

FAINT = 1e-5
"""Added to a weight before its logarithm is taken."""


class Steering:
    """Keeps what the attentions of a hypernetwork's two resamplers were called with, so that `distance` can tell where
    they looked.

    layers: L, of the frozen model; the resamplers read (U * L, T, W), all layers of a row side by side
    """

    def __init__(self, encoder: Resampler, decoder: Resampler, layers: int):
        self.layers = layers
        self.of_encoder: list[tuple] = []
        self.of_decoder: list[tuple] = []
        for resampler, calls in ((encoder, self.of_encoder), (decoder, self.of_decoder)):
            for block in resampler.layers:
                block.self_attn.register_forward_pre_hook(
                    lambda module, inputs, kept=calls: kept.append((module, inputs))
                )

    def distance(self, ends: torch.Tensor) -> torch.Tensor:
        """How far the attentions of the one pass since the last call were from where they shall look: summed over U
        rows, the mean over blocks, layers, heads and latents of the negative logarithm of a weight.

        Latent n of N shall look at the ends of frames at the seconds n, n + N, n + 2N, ...; where there is none it is
        free. Rank n shall look at the latent n, or n - N where there are more ranks. The first decoder layer's inputs,
        in which no token knows of another, are left out.

        ends: (U, T), `Part.ends` of what each row reads
        """
        missed = []
        for calls, of_encoder in ((self.of_encoder, True), (self.of_decoder, False)):
            for attention, inputs in calls:
                weights = self._weights(attention, inputs)  # (U, L-1, H, N, T)
                count, length = weights.shape[-2:]
                number = torch.arange(count, device=ends.device)[:, None]
                if of_encoder:
                    own = (ends[:, None] != NO_END) & (ends[:, None] % count == number)  # (U, N, T)
                else:
                    own = (number % length == torch.arange(length, device=ends.device)).expand(len(ends), -1, -1)
                looked = (weights * own[:, None, None]).sum(-1)
                wanted = own.any(-1)  # (U, N)
                of_latent = -(looked + FAINT).log().mean((1, 2))
                missed.append((of_latent * wanted).sum(-1) / wanted.sum(-1))
            calls.clear()
        return torch.stack(missed).mean(0).sum()

    def _weights(self, attention: ResamplerAttention, inputs: tuple) -> torch.Tensor:
        """Of each layer but the first how much each latent reads of the context, (U, L-1, H, N, T)."""
        latents, context, gain, mask = inputs
        weights = attention.weights(latents.float(), context.float(), gain, mask)[..., : context.shape[1]]
        return weights.view(-1, self.layers, attention.heads, latents.shape[1], context.shape[1])[:, 1:]
