"""SmolVLM2's language model: a Llama decoder in plain PyTorch, with the same layers for every use.

Reading a video, answering with a KV cache, answering a batch whose rows have an adapter each, and training all run
these layers and differ in the attention that they pass to them. The tests compare the results with transformers'
`LlamaModel`.

Activations are matrices with one row per token; only attention knows which tokens form a sequence. A short prompt costs
as much time per operation as per number, so projections of the same input are one matrix, and products add to the
residual.

Axes: N tokens, B sequences, T tokens of each, D hidden size, H query heads, K key/value heads, E head width, I
intermediate size, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from v2l.errors import V2LError
from v2l.models.config import SmolVLMConfig, TextConfig
from v2l.models.device import leaks_future

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of one layer: its index, queries (N, H, E), keys and values (N, K, E) to (N, H * E)."""
Factors = Sequence[tuple[Tensor, Tensor]]
"""Per layer a and b of an adapter: (R, I) and (R, D) for every sequence, or (B, R, ...) with one pair for each."""


@dataclass(slots=True)
class DecoderLayer:
    """Pre-norm attention and a gated MLP, without biases.

    Matrices are right factors, (inputs, outputs). Those that read the same input are one: qkv_proj, (D, (H + 2 K) * E),
    queries first, and gate_up_proj, (D, 2 * I), gate first. input_norm, mlp_norm: (D,); o_proj: (H * E, D);
    down_proj: (I, D); eps: (1,) float32, added to mean squares
    """

    input_norm: Tensor
    qkv_proj: Tensor
    o_proj: Tensor
    mlp_norm: Tensor
    gate_up_proj: Tensor
    down_proj: Tensor
    config: TextConfig
    eps: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.eps = _epsilon(self.config, self.input_norm.device)

    def attention(self, x: Tensor, index: int, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """Return the output of the attention heads, (N, H * E), for x, (N, D); `add_attention` projects and adds it."""
        config = self.config
        queries, keys = config.num_attention_heads, config.num_key_value_heads
        heads = torch.mm(_norm(x, self.input_norm, self.eps), self.qkv_proj)
        heads = heads.view(len(x), queries + 2 * keys, config.head_dim)
        turned = rotate(heads[:, : queries + keys], rotary)
        return attend(index, turned[:, :queries], turned[:, queries:], heads[:, queries + keys :])

    def add_attention(self, x: Tensor, read: Tensor) -> Tensor:
        """Add o_proj of the heads' output, (N, H * E), to x, (N, D)."""
        return _add_product(x, read, self.o_proj)

    def activations(self, x: Tensor) -> Tensor:
        """Return the inputs of down_proj, (N, I), for x, (N, D)."""
        gate, up = torch.mm(_norm(x, self.mlp_norm, self.eps), self.gate_up_proj).chunk(2, dim=-1)
        return F.silu(gate) * up

    def add_mlp(self, x: Tensor, inner: Tensor, adapter: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Add down_proj of `activations`, and the adapter's change of it, to x."""
        out = _add_product(x, inner, self.down_proj)
        return out if adapter is None else _add_change(out, inner, *adapter)


def _epsilon(config: TextConfig, device: torch.device) -> Tensor:
    """Return what norms add to mean squares, (1,) float32."""
    return torch.full((1,), config.rms_norm_eps, device=device)


def _norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """Root mean square normalisation of (N, D), computed in float32, in the type of the weight. eps: (1,) float32"""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt()
    return (x * scale).to(weight.dtype) * weight


def _add_product(x: Tensor, inner: Tensor, matrix: Tensor) -> Tensor:
    if x.dtype != matrix.dtype or torch.is_autocast_enabled(x.device.type):  # the sum stays in float32
        return x + torch.mm(inner, matrix)
    return torch.addmm(x, inner, matrix)


def _add_change(out: Tensor, inner: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add (inner a^T) b, computed in the type of the factors as the published code does, to out, (N, D)."""
    if a.ndim == 2:
        ranks = torch.mm(inner.to(a.dtype), a.t())
        return torch.addmm(out, ranks, b) if out.dtype == b.dtype else (out + torch.mm(ranks, b)).to(out.dtype)
    rows = inner.to(a.dtype).view(len(a), -1, inner.shape[-1])  # (B, T, I)
    change = torch.bmm(torch.bmm(rows, a.transpose(1, 2)), b)
    return (out + change.view(out.shape)).to(out.dtype)


class LanguageModel:
    """A Llama decoder with its embeddings and head.

    embed_tokens: (vocabulary, D); norm: (D,); head: (vocabulary, D), the embeddings themselves if they are tied
    adapter: factors that every forward pass applies; see `v2l.adapters.lora.applied`
    """

    def __init__(
        self, config: TextConfig, embed_tokens: Tensor, layers: Sequence[DecoderLayer], norm: Tensor, head: Tensor
    ):
        self.config, self.embed_tokens, self.layers, self.norm, self.head = config, embed_tokens, layers, norm, head
        self.adapter: Factors | None = None
        self.eps = _epsilon(config, norm.device)
        # Both halves of a head turn at the same rates, in opposite directions
        half = torch.arange(0, config.head_dim, 2, device=norm.device).float() / config.head_dim
        self._rates = (config.rope_theta**-half).repeat(2)
        self._signs = torch.ones_like(self._rates)
        self._signs[: config.head_dim // 2] = -1

    @classmethod
    def empty(cls, sizes: SmolVLMConfig, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        """Allocate a model whose weights are not set."""
        config = sizes.text_config

        def new(*shape: int) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        width, inner = config.hidden_size, config.intermediate_size
        queries = config.num_attention_heads * config.head_dim
        projected = queries + 2 * config.num_key_value_heads * config.head_dim
        layers = [
            DecoderLayer(  # the files hold the matrices transposed
                input_norm=new(width),
                qkv_proj=new(projected, width).t(),
                o_proj=new(width, queries).t(),
                mlp_norm=new(width),
                gate_up_proj=new(2 * inner, width).t(),
                down_proj=new(width, inner).t(),
                config=config,
            )
            for _ in range(config.num_hidden_layers)
        ]
        embed_tokens = new(config.vocab_size, width)
        head = embed_tokens if sizes.tie_word_embeddings else new(config.vocab_size, width)
        return cls(config, embed_tokens, layers, new(width), head)

    def check_batch(self, batch: int) -> None:
        """Raise V2LError if every sequence has an adapter of its own and the batch has another number of sequences."""
        if self.adapter is not None and self.adapter[0][0].ndim == 3 and len(self.adapter[0][0]) != batch:
            raise V2LError(
                f"a batch of {batch} sequences was given to {len(self.adapter[0][0])} adapters; give one row for each"
            )

    def embed(self, ids: Tensor) -> Tensor:
        """Look up input embeddings: (...) int64 to (..., D)."""
        return F.embedding(ids, self.embed_tokens)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines for `rotate`, (N, 1, E) each, of positions (N,), int64."""
        angles = positions[:, None, None] * self._rates
        return angles.cos().to(self.norm.dtype), (angles.sin() * self._signs).to(self.norm.dtype)

    def run(self, x: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None = None) -> Tensor:
        """Run all layers and the final norm on input embeddings, (N, D), at positions, (N,).

        keep: the tokens whose hidden states are returned, (M,) int64; None for all
        """
        rotary, last = self.rotary(positions), len(self.layers) - 1
        for index in range(len(self.layers)):
            x = self.layer(index, x, rotary, attend, keep if index == last else None)
        return self.final_norm(x)

    def layer(
        self, index: int, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend, keep: Tensor | None = None
    ) -> Tensor:
        """Run one decoder layer on x, (N, D), from attention on only for the tokens to `keep`."""
        layer = self.layers[index]
        read = layer.attention(x, index, rotary, attend)
        if keep is not None:
            x, read = x[keep], read[keep]
        x = layer.add_attention(x, read)
        return layer.add_mlp(x, layer.activations(x), None if self.adapter is None else self.adapter[index])

    def final_norm(self, x: Tensor) -> Tensor:
        """Normalise the output of the last layer, (N, D)."""
        return _norm(x, self.norm, self.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary: normalised hidden states (..., D) to (..., vocabulary)."""
        return F.linear(hidden, self.head)

    def choose(self, hidden: Tensor) -> Tensor:
        """Return the most likely token of each normalised hidden state, (B, D), and whether it was finite before the
        norm, (2, B) int64. The norm turns infinite values into NaN, and values whose squares are infinite into zero."""
        squares = hidden.float().square().sum(-1)
        finite = squares / squares == 1  # 0 / 0 and inf / inf are NaN
        return torch.stack([self.logits(hidden).argmax(-1), finite.long()])


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to heads, (N, heads, E); the halves of a head turn against each other."""
    cos, sin = rotary
    if cos.dtype != x.dtype:  # autocast computes heads in half precision
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


# Attention ---------------------------------------------------------------------------------------------------------


def causal(batch: int = 1, mask: Tensor | None = None) -> Attend:
    """Attend to earlier tokens of the same sequence, without a cache.

    batch: number of sequences of equal length
    mask: (B, 1, T, T) bool, True where a token is visible; None for plain causal attention
    """

    def attend(_: int, *heads: Tensor) -> Tensor:
        queries, keys, values = (part.unflatten(0, (batch, -1)).transpose(1, 2) for part in heads)  # (B, heads, T, E)
        return _attend(queries, keys, values, mask, is_causal=mask is None)

    return attend


def causal_mask(there: Tensor) -> Tensor:
    """Return a causal mask that excludes padding, (B, 1, T, T) bool. there: (B, T), False for padding"""
    length = there.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=there.device).tril() & there[:, None, None]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Grouped-query attention of (B, heads, T, E) tensors; (B * T, H * E)."""
    if is_causal and leaks_future(queries.device.type, queries.dtype):
        mask, is_causal = queries.new_ones(queries.shape[2], keys.shape[2], dtype=torch.bool).tril(), False
    grouped = queries.shape[1] != keys.shape[1]
    read = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
    )
    return read.transpose(1, 2).flatten(2).flatten(0, 1)


class KVCache:
    """Keys and values of every layer, in buffers allocated once.

    keys, values: (L, B, K, capacity, E); the first `length` columns are in use
    """

    def __init__(self, model: LanguageModel, batch: int, capacity: int):
        config = model.config
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=model.norm.dtype, device=model.norm.device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def reserve(self, capacity: int) -> None:
        """Make room for that many columns; those in use are kept."""
        missing = capacity - self.keys.shape[3]
        if missing > 0:
            self.keys, self.values = (F.pad(part, (0, 0, 0, missing)) for part in (self.keys, self.values))

    def crop(self, length: int) -> None:
        """Forget all columns from `length` on."""
        self.length = length

    def attend(self, tokens: int, mask: Tensor | None = None) -> Attend:
        """Append `tokens` columns to every sequence and attend from them to all columns in use.

        mask: (B, length + tokens) bool, False for columns of padding; None if no sequence has any
        """
        start, end = self.length, self.length + tokens
        self.length = end
        visible = None
        if mask is not None or (start and tokens > 1):
            device = self.keys.device
            visible = torch.arange(end, device=device) <= torch.arange(start, end, device=device)[:, None]
            if mask is not None:
                visible = visible & mask[:, None, None]
        batch, kv_heads = self.keys.shape[1:3]
        # Views for every layer, made once: a token takes less time to compute than to slice
        known_keys, known_values = self.keys[:, :, :, :end].unbind(), self.values[:, :, :, :end].unbind()
        new_keys, new_values = (
            part[:, :, :, start:end].transpose(2, 3).unbind() for part in (self.keys, self.values)
        )  # (B, tokens, K, E) each

        def attend(index: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            new_keys[index].copy_(keys.view(new_keys[index].shape))
            new_values[index].copy_(values.view(new_values[index].shape))
            if tokens > 1:
                queries = queries.view(batch, tokens, *queries.shape[1:]).transpose(1, 2)
                return _attend(queries, known_keys[index], known_values[index], visible, is_causal=visible is None)
            # One query per sequence: the query heads of a key/value head are the rows of one matrix
            grouped = queries.view(batch, kv_heads, -1, queries.shape[-1])  # (B, K, H / K, E)
            read = F.scaled_dot_product_attention(grouped, known_keys[index], known_values[index], attn_mask=visible)
            return read.flatten(1)

        return attend


# Weights -----------------------------------------------------------------------------------------------------------


def published_weights(model: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the published name of every tensor and the part of the model's weights that it fills."""
    config = model.config
    keys, inner = config.num_key_value_heads * config.head_dim, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    yield "model.text_model.embed_tokens.weight", model.embed_tokens
    yield "model.text_model.norm.weight", model.norm
    if model.head is not model.embed_tokens:
        yield "lm_head.weight", model.head
    for index, layer in enumerate(model.layers):
        q, k, v = layer.qkv_proj.t().split([queries, keys, keys])
        gate, up = layer.gate_up_proj.t().split(inner)
        parts = {
            "input_layernorm": layer.input_norm,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.o_proj.t(),
            "post_attention_layernorm": layer.mlp_norm,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down_proj.t(),
        }
        for name, part in parts.items():
            yield f"model.text_model.layers.{index}.{name}.weight", part
