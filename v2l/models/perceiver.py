"""The Perceiver resampler: cross-attention from a fixed number of latents to any number of context tokens.

Axes: B batch, T context tokens, N latents, W latent width, H query heads, K key/value heads, E head width.

The published network (arXiv 2606.04351, section 3; the eager Idefics2-style resampler of its code) computes keys and
values of every context token in each block. Here the norm gain and the key and value projections of each block are
applied to the latents' side instead. The result is the same sum in another order: all blocks read one shared
(B, T, W) tensor, and no tensor of size T x keys is allocated.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

NORM_EPS = 1e-6


def draw_weights(shape: tuple[int, ...], std: float = 1.0) -> torch.Tensor:
    """Draw initial weights from a normal distribution. On the meta device they are only allocated: random numbers and
    arithmetic there would import sympy and torch._dynamo, which takes longer than to encode a short video."""
    weights = torch.empty(shape)
    return weights if weights.is_meta else weights.normal_() * std


class GatedMLP(nn.Module):
    """SwiGLU without biases: down(silu(gate x) * up x), (..., in_size) -> (..., out_size)."""

    def __init__(self, in_size: int, inner_size: int, out_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(in_size, inner_size, bias=False)
        self.up_proj = nn.Linear(in_size, inner_size, bias=False)
        self.down_proj = nn.Linear(inner_size, out_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, (..., W). The product is computed outside the fused kernel, as in Llama,
    so a half-precision input returns in the float32 of the gain, after rounding x / rms(x) to its own type."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * unit_rms(x)


def unit_rms(x: torch.Tensor) -> torch.Tensor:
    """Divide by the root mean square over the last axis, (..., W); for a context, the part of its norm that all blocks
    share.

    Returns the type of x: computed in float32 and rounded, as in the published code. Autocast would decide otherwise by
    the device: on CUDA it returns float32, on the CPU the type of x.
    """
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS).to(x.dtype)


class ResamplerAttention(nn.Module):
    """Grouped-query cross-attention from the latents to [context; latents], without positions or a causal mask; the
    softmax is in float32."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)

    def forward(
        self, latents: torch.Tensor, context: torch.Tensor, gain: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend from the latents to the context and to themselves. Return (B, N, W).

        latents: (B, N, W), normalised; context: (B, T, W), from `unit_rms`; gain: (W,), of the context norm
        mask: (B, T) bool, True for context tokens that count; None if all do
        """
        batch, count, width = latents.shape
        length = context.shape[1]
        weights = self.weights(latents, context, gain, mask).to(context.dtype)
        # Average the context tokens, then project the averages to values
        pooled = (weights[..., :length] @ context).view(batch, self.kv_heads, -1, width)
        values = torch.einsum("bkmw,kew->bkme", pooled, self._per_head(self.v_proj, gain))  # (B, K, H/K*N, E)
        # Add the values of the latents
        own_values = self._split(self.v_proj(latents), self.kv_heads)  # (B, K, N, E)
        values = values + weights[..., length:].reshape(batch, self.kv_heads, -1, count) @ own_values
        # Concatenate the heads
        values = values.reshape(batch, self.heads, count, self.head_dim)
        return self.o_proj(values.transpose(1, 2).flatten(2))

    def weights(
        self, latents: torch.Tensor, context: torch.Tensor, gain: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the attention weights of each head and latent over [context; latents], (B, H*N, T + N) float32."""
        # Queries, grouped by the key head that they share
        queries = self._split(self.q_proj(latents), self.heads)  # (B, H, N, E)
        queries = queries.reshape(len(latents), self.kv_heads, -1, self.head_dim)  # (B, K, H/K*N, E)
        # Keys of the latents; for the context the key projection is applied to the queries, (B, K, H/K*N, W), by an
        # einsum: a broadcast product would copy the projection for every row of the batch
        own_keys = self._split(self.k_proj(latents), self.kv_heads)  # (B, K, N, E)
        context_queries = torch.einsum("bkme,kew->bkmw", queries, self._per_head(self.k_proj, gain))
        # Scores, with masked context tokens at minus infinity
        scores = torch.cat(
            [
                context_queries.flatten(1, 2) @ context.transpose(1, 2),  # (B, H*N, T)
                (queries @ own_keys.transpose(-1, -2)).flatten(1, 2),  # (B, H*N, N)
            ],
            dim=-1,
        )
        scores = scores.float() * self.head_dim**-0.5
        if mask is not None:
            scores[..., : context.shape[1]].masked_fill_(~mask[:, None, :], float("-inf"))
        return scores.softmax(-1)

    def _split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)

    def _per_head(self, projection: nn.Linear, gain: torch.Tensor) -> torch.Tensor:
        """Return the projection with the context gain folded in, (K, E, W)."""
        return (projection.weight * gain).view(self.kv_heads, self.head_dim, -1)


class ResamplerLayer(nn.Module):
    """One block: cross-attention and SwiGLU, each with a norm before and after ("sandwich") and a residual."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int):
        super().__init__()
        self.input_latents_layernorm = RMSNorm(width)
        self.input_context_layernorm = RMSNorm(width)
        self.self_attn = ResamplerAttention(width, heads, kv_heads, head_dim)
        self.post_attention_layernorm = RMSNorm(width)
        self.pre_ff_layernorm = RMSNorm(width)
        self.mlp = GatedMLP(width, 4 * width, width)
        self.post_ff_layernorm = RMSNorm(width)

    def forward(self, latents: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """latents: (B, N, W); context: (B, T, W), from `unit_rms`; mask: (B, T) bool or None. Returns (B, N, W)."""
        # Cross-attention
        gain = self.input_context_layernorm.weight
        attended = self.self_attn(self.input_latents_layernorm(latents), context, gain, mask)
        latents = latents + self.post_attention_layernorm(attended)
        # Feed-forward
        return latents + self.post_ff_layernorm(self.mlp(self.pre_ff_layernorm(latents)))


class Resampler(nn.Module):
    """Learned latents that attend to a context in `num_blocks` blocks, each with its own weights."""

    def __init__(self, width: int, num_latents: int, num_blocks: int, heads: int, kv_heads: int, head_dim: int):
        super().__init__()
        self.latents_q = nn.Parameter(draw_weights((num_latents, width)))
        self.layers = nn.ModuleList(ResamplerLayer(width, heads, kv_heads, head_dim) for _ in range(num_blocks))
        self.layernorm = RMSNorm(width)

    def forward(self, context: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """context: (B, T, W), from `unit_rms`; mask: (B, T) bool, True for tokens that count; None if all do.
        Returns (B, num_latents, W)."""
        latents = self.latents_q.expand(len(context), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context, mask)
        return self.layernorm(latents)
