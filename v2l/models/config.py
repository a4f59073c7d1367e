"""Read a SmolVLM2's `config.json`, check every number that v2l uses, and derive the shapes of the tensors.

The file is not trusted; values that v2l does not use are dropped. The sizes of a hypernetwork are in
`hypernetwork_file.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.io.untrusted import read_json, shown

MODEL_TYPES = ("smolvlm", "idefics3")
"""Types of models with these networks: SmolVLM2, and the first SmolVLM of 256M and 500M, an Idefics3 by its type."""
MAX_IMAGE_SIZE = 2048
"""Largest side in pixels of the vision tower's input; the published models have 384 and 512."""
MAX_FRAME_SIZE = 16384
"""Largest longest edge of a frame, in pixels."""

_WIDTH = (1, 2**18)
_LAYERS = (1, 1024)
_HEADS = (1, 4096)
_TEXT_NUMBERS = {
    "vocab_size": (1, 2**22),
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
    "head_dim": (2, 4096),
    "max_position_embeddings": (1, 2**20),
    "pad_token_id": (0, 2**22),
}
_VISION_NUMBERS = {
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_channels": (3, 3),
    "image_size": (1, MAX_IMAGE_SIZE),
    "patch_size": (1, MAX_IMAGE_SIZE),
}
_OWN_NUMBERS = {"scale_factor": (1, 16), "image_token_id": (0, 2**22)}
_EPSILON = (1e-12, 1e-2)
_MAX_ROPE_THETA = 1e12


@dataclass(frozen=True)
class TextConfig:
    """The sizes of the language model. The defaults are those of transformers' LlamaConfig."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0  # as many as attention heads
    head_dim: int = 0  # the hidden size divided among the heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_key_value_heads", self.num_key_value_heads or self.num_attention_heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // self.num_attention_heads)

    @property
    def layer_products(self) -> int:
        """Multiply-adds of a token in the matrices of one decoder layer, which is also their number of weights."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        return self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)


@dataclass(frozen=True)
class VisionConfig:
    """The sizes of the vision tower. The defaults are those of transformers' SmolVLMVisionConfig."""

    hidden_size: int = 1152
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class SmolVLMConfig:
    """The sizes of a SmolVLM2.

    scale_factor: the connector joins squares of this many patches a side into one image token
    tie_word_embeddings: whether the head of the language model is its embeddings
    """

    text_config: TextConfig
    vision_config: VisionConfig
    scale_factor: int = 2
    image_token_id: int = 128257
    tie_word_embeddings: bool = False


@dataclass(frozen=True)
class VisionGeometry:
    """The image sizes that a model folder states.

    image_size: side in pixels of the square input of the vision tower
    tokens_per_image: number of `<image>` tokens per input
    longest_edge: default size in pixels of the longer side of a video frame
    """

    image_size: int
    tokens_per_image: int
    longest_edge: int


def read_config(path: Path) -> tuple[SmolVLMConfig, str | None]:
    """Read the config.json of a model folder.

    Returns the configuration, with every default filled in, and the model's public name if one is stated.
    Raises V2LError if the file is missing, damaged, of another type of model, or has a value that v2l does not accept
    or whose values contradict each other.
    """
    stated = read_json(path)
    if stated.get("model_type") not in MODEL_TYPES:
        raise V2LError(
            f"{printable(path.parent)} holds a model of type {shown(stated.get('model_type'))}; v2l works with "
            f"SmolVLM2 and SmolVLM (model_type {' or '.join(MODEL_TYPES)})"
        )
    text, vision = (_Section(path, name, stated.get(name)) for name in ("text_config", "vision_config"))
    own = _Section(path, "", stated)
    name = own.text("_name_or_path")
    # Refuse by name what the modules do not implement
    text.only("model_type", "llama")
    text.only("hidden_act", "silu")
    vision.only("hidden_act", "gelu_pytorch_tanh")
    text.only("attention_bias", False)
    text.only("mlp_bias", False)
    config = SmolVLMConfig(
        TextConfig(**text.numbers(_TEXT_NUMBERS), **text.decimal("rms_norm_eps", *_EPSILON), **_rotary(text)),
        VisionConfig(**vision.numbers(_VISION_NUMBERS), **vision.decimal("layer_norm_eps", *_EPSILON)),
        **own.numbers(_OWN_NUMBERS),
        **own.switch("tie_word_embeddings"),
    )
    _check_consistency(config, path)
    return config, name or None


class _Section:
    """One object of config.json. Each method returns the values stated under the given names, without null values, and
    raises V2LError, with the name, for a value that is not allowed."""

    def __init__(self, path: Path, name: str, values: object):
        self.path, self.prefix = path, name and f"{name}."
        if values is not None and not isinstance(values, dict):
            raise V2LError(f"{printable(path)} states {name} = {shown(values)}; it must be an object")
        self.values = {key: value for key, value in (values or {}).items() if value is not None}

    def refuse(self, name: str, wanted: str) -> V2LError:
        stated = f"{self.prefix}{name} = {shown(self.values[name])}"
        return V2LError(f"{printable(self.path)} states {stated}; v2l takes {wanted}, get another copy of the model")

    def numbers(self, limits: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        """Return whole numbers; `limits` maps their names to the lowest and highest value."""
        found = {name: self.values[name] for name in limits if name in self.values}
        for name, value in found.items():
            lowest, highest = limits[name]
            if type(value) is not int or not lowest <= value <= highest:
                raise self.refuse(name, f"a whole number from {lowest:,} to {highest:,}")
        return found

    def decimal(self, name: str, lowest: float, highest: float) -> dict[str, Any]:
        value = self.values.get(name)
        if value is None:
            return {}
        if type(value) not in (int, float) or not lowest <= value <= highest:
            raise self.refuse(name, f"a number from {lowest:g} to {highest:g}")
        return {name: value}

    def only(self, name: str, implemented: str | bool) -> None:
        value = self.values.get(name, implemented)
        if type(value) is not type(implemented) or value != implemented:
            raise self.refuse(name, str(implemented).lower())

    def switch(self, name: str) -> dict[str, bool]:
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return {name: value}

    def text(self, name: str) -> str:
        value = self.values.get(name, "")
        if not isinstance(value, str) or not value.isprintable() or len(value) > 1000:
            raise self.refuse(name, "a printable text of at most 1,000 characters")
        return value


def _rotary(text: _Section) -> dict[str, Any]:
    """Return the base of rotary positions: in `rope_parameters` since transformers 5, in `rope_theta` before."""
    stated = text.values.get("rope_parameters", text.values.get("rope_scaling", {}))
    rope = _Section(text.path, f"{text.prefix}rope_parameters", stated)
    rope.only("type", "default")
    rope.only("rope_type", "default")
    return rope.decimal("rope_theta", 1, _MAX_ROPE_THETA) or text.decimal("rope_theta", 1, _MAX_ROPE_THETA)


def _check_consistency(config: SmolVLMConfig, path: Path) -> None:
    text, vision = config.text_config, config.vision_config
    contradictions = {
        f"hidden_size {text.hidden_size} is not a multiple of the number of attention heads": text.hidden_size
        % text.num_attention_heads,
        "text heads do not divide into key and value heads": text.num_attention_heads % text.num_key_value_heads,
        "an odd head_dim has no rotary positions": text.head_dim % 2,
        "the vision tower's heads do not divide its hidden_size": vision.hidden_size % vision.num_attention_heads,
        "patch_size exceeds image_size": vision.patch_size > vision.image_size,
        "image_token_id is not in the vocabulary": config.image_token_id >= text.vocab_size,
        "pad_token_id is not in the vocabulary": (text.pad_token_id or 0) >= text.vocab_size,
    }
    for contradiction, holds in contradictions.items():
        if holds:
            raise V2LError(f"cannot use {printable(path)}: {contradiction}; get another copy of the model")


def language_settings(config: SmolVLMConfig) -> dict[str, Any]:
    """Return the settings that change the outputs of the language model, as fingerprints include them."""
    stated = dataclasses.asdict(config.text_config)
    rope = {"rope_type": "default", "rope_theta": stated.pop("rope_theta")}
    del stated["pad_token_id"]
    implemented = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    return {**stated, **implemented, "rope": rope, "tied": config.tie_word_embeddings}


def tensor_shapes(config: SmolVLMConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor of a SmolVLMForConditionalGeneration, layer by layer."""
    text, vision = config.text_config, config.vision_config
    yield "model.text_model.embed_tokens.weight", (text.vocab_size, text.hidden_size)
    yield "model.text_model.norm.weight", (text.hidden_size,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (text.vocab_size, text.hidden_size)
    patch = (vision.hidden_size, vision.num_channels, vision.patch_size, vision.patch_size)
    merged = vision.hidden_size * config.scale_factor**2
    yield "model.connector.modality_projection.proj.weight", (text.hidden_size, merged)
    yield "model.vision_model.embeddings.patch_embedding.weight", patch
    yield "model.vision_model.embeddings.patch_embedding.bias", (vision.hidden_size,)
    positions = (vision.image_size // vision.patch_size) ** 2
    yield "model.vision_model.embeddings.position_embedding.weight", (positions, vision.hidden_size)
    yield from _norm("model.vision_model.post_layernorm", vision.hidden_size)
    for index in range(text.num_hidden_layers):
        yield from _text_layer(f"model.text_model.layers.{index}.", text)
    for index in range(vision.num_hidden_layers):
        yield from _vision_layer(f"model.vision_model.encoder.layers.{index}.", vision)


def _text_layer(prefix: str, text: TextConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = text.hidden_size, text.intermediate_size
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    yield f"{prefix}input_layernorm.weight", (width,)
    yield f"{prefix}post_attention_layernorm.weight", (width,)
    for name, rows, columns in (
        ("q_proj", queries, width),
        ("k_proj", keys, width),
        ("v_proj", keys, width),
        ("o_proj", width, queries),
    ):
        yield from _linear(f"{prefix}self_attn.{name}", rows, columns, bias=False)
    for name, rows, columns in (("gate_proj", inner, width), ("up_proj", inner, width), ("down_proj", width, inner)):
        yield from _linear(f"{prefix}mlp.{name}", rows, columns, bias=False)


def _vision_layer(prefix: str, vision: VisionConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = vision.hidden_size, vision.intermediate_size
    yield from _norm(f"{prefix}layer_norm1", width)
    yield from _norm(f"{prefix}layer_norm2", width)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from _linear(f"{prefix}self_attn.{name}", width, width, bias=True)
    yield from _linear(f"{prefix}mlp.fc1", inner, width, bias=True)
    yield from _linear(f"{prefix}mlp.fc2", width, inner, bias=True)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)
