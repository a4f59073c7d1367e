"""SmolVLM2's vision tower, SigLIP, and the connector that turns its patches into image tokens, in plain PyTorch.

The tests compare the results with transformers' `SmolVLMVisionTransformer` and `SmolVLMConnector`.

Axes: N images, P patches of an image, D width of the tower, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from v2l.models.config import SmolVLMConfig, VisionConfig


class VisionLayer(nn.Module):
    """Pre-norm attention and MLP, with biases; the three projections of attention are one, queries first."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer on patches, (N, P, D)."""
        heads = self.qkv_proj(self.layer_norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(*heads.unbind(0))  # (N, H, P, D / H)
        x = x + self.out_proj(read.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.layer_norm2(x)), approximate="tanh"))


class VisionTower(nn.Module):
    """Images to the embeddings that take the places of their image tokens in a prompt."""

    def __init__(self, config: SmolVLMConfig):
        super().__init__()
        vision = config.vision_config
        self.scale_factor, self.patch_size = config.scale_factor, vision.patch_size
        self.patches_a_side = vision.image_size // vision.patch_size
        self.patch_embedding = nn.Conv2d(vision.num_channels, vision.hidden_size, self.patch_size, self.patch_size)
        places = torch.empty(self.patches_a_side**2, vision.hidden_size)
        self.position_embedding = nn.Embedding.from_pretrained(places, freeze=False)
        self.layers = nn.ModuleList([VisionLayer(vision) for _ in range(vision.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.connector = nn.Linear(
            vision.hidden_size * config.scale_factor**2, config.text_config.hidden_size, bias=False
        )

    @classmethod
    def empty(cls, config: SmolVLMConfig, device: torch.device, dtype: torch.dtype) -> VisionTower:
        """Allocate a tower whose weights are not set.

        Most operations on the meta device (`to_empty`, random numbers) would import torch._dynamo, which takes longer
        than to encode a short video.
        """
        with torch.device("meta"):
            tower = cls(config)
        for module in tower.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                allocated = torch.empty(weight.shape, dtype=dtype, device=device)
                module.register_parameter(name, nn.Parameter(allocated, requires_grad=False))
        return tower.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed images, (N, 3, S, S) in -1 to 1; (N, tokens, width of the language model)."""
        x = self.patch_embedding(pixels)  # (N, D, S / patch, S / patch)
        x = x.flatten(2).transpose(1, 2) + self.position_embedding(self._positions(x.shape[-1], x.device))
        for layer in self.layers:
            x = layer(x)
        return self.connector(self._shuffle(self.post_layernorm(x)))

    def _positions(self, side: int, device: torch.device) -> Tensor:
        """Positions of side x side patches; those of a smaller image are spread over the tower's own grid."""
        # In integers: bfloat16 cannot hold the fractions, and moved 288 of 27 x 27 patches in transformers 5.17 to 5.20
        bucket = torch.arange(side, device=device) * self.patches_a_side // side
        return (bucket[:, None] * self.patches_a_side + bucket).flatten()

    def _shuffle(self, x: Tensor) -> Tensor:
        """Join squares of scale_factor x scale_factor patches: (N, P, D) to (N, P / scale^2, D * scale^2)."""
        side, scale = int(x.shape[1] ** 0.5), self.scale_factor
        squares = x.unflatten(1, (side // scale, scale, side // scale, scale)).permute(0, 1, 3, 2, 4, 5)
        return squares.flatten(3).flatten(1, 2)


def published_weights(tower: VisionTower) -> Iterator[tuple[str, Tensor]]:
    """Yield the published name of every tensor and the part of the tower's weights that it fills."""
    yield "model.connector.modality_projection.proj.weight", tower.connector.weight
    prefix = "model.vision_model."
    yield f"{prefix}embeddings.position_embedding.weight", tower.position_embedding.weight
    modules: dict[str, nn.Conv2d | nn.LayerNorm | nn.Linear] = {
        "embeddings.patch_embedding": tower.patch_embedding,
        "post_layernorm": tower.post_layernorm,
    }
    for index, layer in enumerate(tower.layers):
        assert isinstance(layer, VisionLayer)  # nn.ModuleList does not state it
        own = f"encoder.layers.{index}."
        names = ("q_proj", "k_proj", "v_proj")
        for kind in ("weight", "bias"):
            for name, part in zip(names, getattr(layer.qkv_proj, kind).chunk(3), strict=True):
                yield f"{prefix}{own}self_attn.{name}.{kind}", part
        modules |= {f"{own}self_attn.out_proj": layer.out_proj, f"{own}mlp.fc1": layer.fc1, f"{own}mlp.fc2": layer.fc2}
        modules |= {f"{own}layer_norm1": layer.layer_norm1, f"{own}layer_norm2": layer.layer_norm2}
    for name, module in modules.items():
        yield f"{prefix}{name}.weight", module.weight
        if module.bias is not None:
            yield f"{prefix}{name}.bias", module.bias
