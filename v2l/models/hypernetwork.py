"""The Perceiver hypernetwork of arXiv 2606.04351, section 3: hidden states in, LoRA factors out.

Axes, here and everywhere in v2l: B batch, F frames, T context tokens, L decoder layers, D hidden size, R rank,
W latent width.

One network serves every decoder layer: it reads the input tokens of layer i and generates the two factors of layer i's
`mlp.down_proj`. Only the head, the scalers and the learned bias are specific to a layer. There are no positions: the
order of tokens is known only from the hidden states of the frozen model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from v2l.errors import V2LError
from v2l.models.device import run_checkpointed
from v2l.models.hypernetwork_file import TARGET, HypernetworkConfig, Provenance
from v2l.models.perceiver import GatedMLP, Resampler, draw_weights, unit_rms

TOKENS_AT_ONCE = 1024
"""Tokens that are projected together; the inner width of the projection is four times that of the model."""

RECOMPUTED_AT_ONCE = 32768
"""Tokens of all layers and videos that are read together if they are read again in the backward pass. The memory of a
pass is theirs, however many videos there are."""

LayerInput = torch.Tensor | Iterable[torch.Tensor]
"""The input of one decoder layer: (B, T, D), or pieces of it along T, in order."""


class Hypernetwork(nn.Module):
    """The published network under its published names: published checkpoints load strictly into its `state_dict`.

    provenance: None unless the weights come from a file
    """

    provenance: Provenance | None = None

    def __init__(self, config: HypernetworkConfig):
        super().__init__()
        self.config = config
        c = config
        self.aggregator = nn.ModuleDict({"perceiver": LayerReader(config)})
        self.layers = nn.ModuleList([ResidualBlock(c.latent_size)])
        self.head = LayerHead(c)
        shape_a = (c.num_layers, c.rank, c.intermediate_size)
        shape_b = (c.num_layers, c.rank, c.hidden_size)
        bias_std = 0.2 / (c.intermediate_size * c.rank) ** 0.5
        self.bias_A = nn.ParameterDict({TARGET: draw_weights(shape_a, bias_std)})
        self.bias_B = nn.ParameterDict({TARGET: torch.zeros(shape_b)})
        self.scaler_A = nn.ParameterDict({TARGET: torch.ones(1, c.num_layers, c.rank, 1)})
        # zero, so that an untrained hypernetwork does not change the frozen model
        self.scaler_B = nn.ParameterDict({TARGET: torch.zeros(1, c.num_layers, c.rank, 1)})

    def generate(
        self,
        hidden_states: torch.Tensor | Iterable[LayerInput],
        attention_mask: torch.Tensor | None = None,
        layers_at_once: int = 1,
        recompute: bool = False,
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Generate the LoRA factors of every layer: the generated ranks, then those of the learned bias.

        hidden_states: (B, L, T, D), the inputs of the L decoder layers, which are then processed together; or an
            iterable of L items in layer order, each (B, T, D) or an iterable of (B, T_k, D) pieces along T. A lazy
            iterable is consumed once, layer by layer, and only the projections of a group are kept in memory.
        layers_at_once: size of the groups of an iterable, whose projections are resampled together
        attention_mask: (B, T), non-zero for tokens that count; None if all do. Masked hidden states are never used,
            even if they are not finite.
        recompute: read a (B, L, T, D) tensor a few rows at a time, and again in the backward pass, for which only the
            hidden states and the latents of the ranks are kept

        Returns L pairs: A (B, 2R, d_in) and B (B, 2R, d_out), float32, with `lora_alpha` folded into B, so that
        a layer's output changes by (x A^T) B.
        Raises V2LError if the number of layers, the hidden size or the mask do not fit.
        """
        mask = None if attention_mask is None else attention_mask.bool()
        if isinstance(hidden_states, torch.Tensor):
            latents: Iterable[torch.Tensor] = self._read_together(hidden_states, mask, recompute)
        else:
            latents = self._read_in_groups(hidden_states, mask, layers_at_once)
        factors = [self._layer_factors(index, latent) for index, latent in enumerate(latents)]
        if len(factors) != self.config.num_layers:
            raise V2LError(
                f"hidden states of {len(factors)} layers were given to a hypernetwork for {self.config.num_layers}; "
                "use the frozen model that it was trained for"
            )
        return factors

    def _read_in_groups(
        self, layers: Iterable[LayerInput], mask: torch.Tensor | None, layers_at_once: int
    ) -> Iterator[torch.Tensor]:
        """Return the rank latents of each layer, (B, R, W). The layers of a group become rows of one batch."""
        contexts: list[torch.Tensor] = []
        for layer in layers:
            pieces = [layer] if isinstance(layer, torch.Tensor) else layer
            contexts.append(self._reader.project(pieces, mask))
            if len(contexts) == layers_at_once:
                yield from self._resample_group(contexts, mask)
                contexts.clear()
        if contexts:
            yield from self._resample_group(contexts, mask)

    def _resample_group(self, contexts: list[torch.Tensor], mask: torch.Tensor | None) -> Sequence[torch.Tensor]:
        count = len(contexts)
        context = torch.cat(contexts) if count > 1 else contexts[0]  # (n * B, T, W)
        return self._resample(context, None if mask is None else mask.repeat(count, 1)).chunk(count)

    def _read_together(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, recompute: bool
    ) -> Sequence[torch.Tensor]:
        """Return the rank latents of all layers, from (B, L, T, D): the layers become rows of one batch."""
        layers = hidden_states.shape[1]
        tokens = torch.Size((hidden_states.shape[0], hidden_states.shape[2]))
        if mask is not None and mask.shape != tokens:
            raise _mask_misfit(mask, tokens)
        rows = hidden_states.flatten(0, 1)
        at_once = max(1, RECOMPUTED_AT_ONCE // rows.shape[1]) if recompute else len(rows)
        parts = rows.split(at_once)
        masks = [None] * len(parts) if mask is None else mask.repeat_interleave(layers, 0).split(at_once)
        latents = [run_checkpointed(recompute, self._read, *each) for each in zip(parts, masks, strict=True)]
        return torch.cat(latents).unflatten(0, (-1, layers)).unbind(1)

    def _read(self, rows: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the rank latents, (B, R, W), of the tokens of B layers, (B, T, D). mask: (B, T) bool or None"""
        return self._resample(self._reader.project([rows], mask), mask)

    def _resample(self, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the rank latents, of unit length, (B, R, W), of projected tokens, (B, T, W)."""
        rank_latents = self._reader.resample(context, mask)
        return F.normalize(self.layers[0](rank_latents.float()), dim=-1)

    @property
    def _reader(self) -> LayerReader:
        return cast(LayerReader, self.aggregator["perceiver"])

    def _layer_factors(self, index: int, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if index >= self.config.num_layers:
            raise V2LError(f"more than the {self.config.num_layers} layers of this hypernetwork were given")
        # Map each rank's latent to its rows of A and B
        rows = latents @ self.head.weight[index]  # (B, R, d_in + d_out)
        generated_a, generated_b = rows.split([self.config.intermediate_size, self.config.hidden_size], dim=-1)
        # Scale the generated ranks and append those of the learned bias
        a = self._with_bias(generated_a * self.scaler_A[TARGET][:, index], self.bias_A[TARGET][index])
        b = self._with_bias(generated_b * self.scaler_B[TARGET][:, index], self.bias_B[TARGET][index])
        return a, b * self.config.lora_alpha

    @staticmethod
    def _with_bias(generated: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.cat([generated, bias.expand(len(generated), -1, -1)], dim=1)


class LayerReader(nn.Module):
    """Project the tokens of one layer, (B, T, D), and resample them into one latent per rank, (B, R, W).

    Computes products in the number type of the tokens on every device (float32 weights under autocast), as the
    published code does. The context keeps that type, and the type decides if autocast is on. Products in float32 would
    be nearer to exact ones (0.3% instead of 0.7%), but other than those that published hypernetworks were trained with.
    """

    def __init__(self, config: HypernetworkConfig):
        super().__init__()
        c = config
        heads = (c.num_heads, c.num_kv_heads, c.head_dim)
        self.modality_projection = GatedMLP(c.hidden_size, 4 * c.hidden_size, c.latent_size)
        self.encoder = Resampler(c.latent_size, c.num_latents, c.num_blocks, *heads)
        self.decoder = Resampler(c.latent_size, c.rank, 1, *heads)
        self.hidden_size = c.hidden_size

    def project(self, pieces: Iterable[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
        """Return the context, (B, T, W), of tokens in pieces, (B, T_k, D) along T. mask: (B, T) bool or None"""
        context = torch.cat(list(self._project(pieces, mask)), dim=1)
        if mask is not None and mask.shape != context.shape[:2]:
            raise _mask_misfit(mask, context.shape[:2])
        return context

    def resample(self, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the latents of the ranks, (B, R, W), of a context."""
        with _autocast(context):
            return self.decoder(unit_rms(self.encoder(context, mask)))

    def _project(self, pieces: Iterable[torch.Tensor], mask: torch.Tensor | None) -> Iterator[torch.Tensor]:
        start = 0
        for piece in pieces:
            if piece.ndim != 3 or piece.shape[-1] != self.hidden_size:
                raise V2LError(
                    f"hidden states of shape {tuple(piece.shape)} do not fit a hypernetwork for hidden size "
                    f"{self.hidden_size}; it takes (batch, tokens, {self.hidden_size})"
                )
            # Zero the padding, which may hold NaN: a mask in the attention alone would not remove it
            if mask is not None:
                counted = mask[:, start : start + piece.shape[1]]
                if counted.shape != piece.shape[:2]:
                    raise _mask_misfit(mask, piece.shape[:2])
                piece = piece.masked_fill(~counted[..., None], 0)
            start += piece.shape[1]
            # Project a few tokens at a time
            for part in piece.split(TOKENS_AT_ONCE, dim=1):
                with _autocast(part):
                    yield unit_rms(self.modality_projection(part))


class ResidualBlock(nn.Module):
    """y + norm(W2 silu(W1 norm(y))), shared by all layers and ranks. The identities keep the numbering of the published
    network, which has dropout layers of rate zero there."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Identity(),
            nn.Linear(width, 4 * width),
            nn.SiLU(),
            nn.Identity(),
            nn.Linear(4 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(x)


class LayerHead(nn.Module):
    """One matrix per decoder layer, (L, W, d_in + d_out), from the unit latent of a rank to its rows of A and B."""

    def __init__(self, config: HypernetworkConfig):
        super().__init__()
        c = config
        columns = c.intermediate_size + c.hidden_size
        std = 0.5 / (c.latent_size + columns * c.rank) ** 0.5
        self.weight = nn.Parameter(draw_weights((c.num_layers, c.latent_size, columns), std))


def _mask_misfit(mask: torch.Tensor, shape: torch.Size) -> V2LError:
    return V2LError(
        f"the attention mask is {tuple(mask.shape)}, the hidden states are {tuple(shape)} (batch, tokens); "
        "they must agree"
    )


def _autocast(features: torch.Tensor) -> torch.autocast:
    half = features.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(features.device.type, dtype=features.dtype if half else None, enabled=half)
