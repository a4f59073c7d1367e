"""The resampler: any number of projected context tokens in, a fixed number of latents out.

Axes: B batch, T context tokens, N latents, W latent width, H query heads, K key/value heads, E head width.

The published network (arXiv 2606.04351, section 3; the eager Idefics2-style resampler of its code) forms keys and
values of every context token anew in each block. Here each block's norm gain and key and value projections are moved
to the latents' side instead, which is the same sum in another order: per block the T tokens are only read, as one
shared (B, T, W) tensor that all blocks use, and nothing of size T x keys is ever made.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

NORM_EPS = 1e-6


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
    """x / rms(x) * weight over the last axis, (..., W). The product is taken outside the fused kernel, as in Llama:
    a half-precision input comes out in the float32 of the gain."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * F.rms_norm(x, x.shape[-1:], eps=NORM_EPS)


def unit_context(context: torch.Tensor) -> torch.Tensor:
    """The context divided by its root mean square, (B, T, W) -> (B, T, W): the part of every block's context norm
    that does not depend on the block."""
    return F.rms_norm(context, context.shape[-1:], eps=NORM_EPS)


class ResamplerAttention(nn.Module):
    """Grouped-query cross-attention of latents to [context; latents], no positions, not causal, softmax in float32."""

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
        """latents: (B, N, W), normalised; context: (B, T, W), from `unit_context`; gain: (W,), of the context's norm;
        mask: (B, T) bool, True where the context token counts, or None where all do. Returns (B, N, W)."""
        batch, count, width = latents.shape
        length = context.shape[1]
        weights = self.weights(latents, context, gain, mask).to(context.dtype)
        own_values = self._split(self.v_proj(latents), self.kv_heads)  # (B, K, N, E)
        read = (weights[..., :length] @ context).view(batch, self.kv_heads, -1, width)
        values = read @ self._per_head(self.v_proj, gain).transpose(-1, -2)  # (B, K, H/K*N, E)
        values = values + weights[..., length:].reshape(batch, self.kv_heads, -1, count) @ own_values
        values = values.reshape(batch, self.heads, count, self.head_dim)
        return self.o_proj(values.transpose(1, 2).flatten(2))

    def weights(
        self, latents: torch.Tensor, context: torch.Tensor, gain: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """How much each latent of each head reads of the context and of the latents: (B, H*N, T + N) float32."""
        queries = self._split(self.q_proj(latents), self.heads)  # (B, H, N, E)
        queries = queries.reshape(len(latents), self.kv_heads, -1, self.head_dim)  # (B, K, H/K*N, E): shared keys
        own_keys = self._split(self.k_proj(latents), self.kv_heads)  # (B, K, N, E)
        readers = queries @ self._per_head(self.k_proj, gain)  # (B, K, H/K*N, W): queries as the context sees them
        scores = torch.cat(
            [
                readers.flatten(1, 2) @ context.transpose(1, 2),  # (B, H*N, T)
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
        """The projection with the context's gain folded in, (K, E, W)."""
        return (projection.weight * gain).view(self.kv_heads, self.head_dim, -1)


class ResamplerLayer(nn.Module):
    """One block: cross-attention and SwiGLU, each with a norm before and after ("sandwich"), added to the latents."""

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
        """latents: (B, N, W); context: (B, T, W), from `unit_context`; mask: (B, T) bool or None. (B, N, W)."""
        gain = self.input_context_layernorm.weight
        read = self.self_attn(self.input_latents_layernorm(latents), context, gain, mask)
        latents = latents + self.post_attention_layernorm(read)
        return latents + self.post_ff_layernorm(self.mlp(self.pre_ff_layernorm(latents)))


class Resampler(nn.Module):
    """Learned latents that read a context through `num_blocks` blocks with weights of their own."""

    def __init__(self, width: int, num_latents: int, num_blocks: int, heads: int, kv_heads: int, head_dim: int):
        super().__init__()
        self.latents_q = nn.Parameter(torch.randn(num_latents, width))
        self.layers = nn.ModuleList(ResamplerLayer(width, heads, kv_heads, head_dim) for _ in range(num_blocks))
        self.layernorm = RMSNorm(width)

    def forward(self, context: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """context: (B, T, W), from `unit_context`; mask: (B, T) bool, True where a token counts. Returns
        (B, num_latents, W)."""
        latents = self.latents_q.expand(len(context), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context, mask)
        return self.layernorm(latents)
