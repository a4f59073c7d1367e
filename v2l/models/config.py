"""Read a SmolVLM2's `config.json`, check every number that v2l uses, and derive the shapes of the tensors.

The file is not trusted. Values that v2l does not use are dropped, so that no library acts on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.io.untrusted import read_json, shown

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
_ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu")


def read_config(path: Path) -> tuple[Any, str | None]:
    """Read the config.json of a model folder.

    Returns the transformers SmolVLMConfig, with every default filled in, and the model's public name if one is stated.
    Raises V2LError if the file is missing, damaged, of another type of model, or has a value that v2l does not accept.
    """
    stated = read_json(path)
    if stated.get("model_type") != "smolvlm":
        raise V2LError(
            f"{printable(path.parent)} holds a model of type {shown(stated.get('model_type'))}; v2l works with "
            "SmolVLM2 (model_type smolvlm)"
        )
    text, vision = (_Section(path, name, stated.get(name)) for name in ("text_config", "vision_config"))
    own = _Section(path, "", stated)
    name = own.text("_name_or_path")
    text.one_of("model_type", ("llama",))
    tied = own.switches("tie_word_embeddings")
    kept = {
        "text_config": {
            "model_type": "llama",
            **text.numbers(_TEXT_NUMBERS),
            **text.decimal("rms_norm_eps", *_EPSILON),
            **text.one_of("hidden_act", _ACTIVATIONS),
            **text.switches("attention_bias", "mlp_bias"),
            **_rotary(text),
            **tied,
        },
        "vision_config": {
            **vision.numbers(_VISION_NUMBERS),
            **vision.decimal("layer_norm_eps", *_EPSILON),
            **vision.one_of("hidden_act", _ACTIVATIONS),
        },
        **own.numbers(_OWN_NUMBERS),
        **tied,
    }
    return _build(path, kept), name or None


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

    def numbers(self, limits: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """Return whole numbers; `limits` maps their names to the lowest and highest value."""
        found = {name: self.values[name] for name in limits if name in self.values}
        for name, value in found.items():
            lowest, highest = limits[name]
            if type(value) is not int or not lowest <= value <= highest:
                raise self.refuse(name, f"a whole number from {lowest:,} to {highest:,}")
        return found

    def decimal(self, name: str, lowest: float, highest: float) -> dict[str, float]:
        value = self.values.get(name)
        if value is None:
            return {}
        if type(value) not in (int, float) or not lowest <= value <= highest:
            raise self.refuse(name, f"a number from {lowest:g} to {highest:g}")
        return {name: value}

    def one_of(self, name: str, allowed: tuple[str, ...]) -> dict[str, str]:
        value = self.values.get(name, allowed[0])
        if value not in allowed:
            raise self.refuse(name, f"one of {', '.join(allowed)}")
        return {name: value} if name in self.values else {}

    def switches(self, *names: str) -> dict[str, bool]:
        found = {name: self.values[name] for name in names if name in self.values}
        for name, value in found.items():
            if not isinstance(value, bool):
                raise self.refuse(name, "true or false")
        return found

    def text(self, name: str) -> str:
        value = self.values.get(name, "")
        if not isinstance(value, str) or not value.isprintable() or len(value) > 1000:
            raise self.refuse(name, "a printable text of at most 1,000 characters")
        return value


def _rotary(text: _Section) -> dict[str, Any]:
    """Return the settings of rotary positions: `rope_parameters` since transformers 5, `rope_theta` and `rope_scaling`
    before."""
    stated = text.values.get("rope_parameters", text.values.get("rope_scaling", {}))
    rope = _Section(text.path, f"{text.prefix}rope_parameters", stated)
    rope.one_of("type", ("default",))
    rope.one_of("rope_type", ("default",))
    theta = rope.decimal("rope_theta", 1, _MAX_ROPE_THETA) or text.decimal("rope_theta", 1, _MAX_ROPE_THETA)
    return {"rope_parameters": {"rope_type": "default", **theta}} if theta else {}


def _build(path: Path, kept: dict[str, Any]) -> Any:
    """Build the configuration of these values. Raises V2LError if they contradict each other."""
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig

    try:
        with quiet_transformers():
            config = SmolVLMConfig(**kept)
    except Exception as error:  # its validation raises classes of several libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise V2LError(f"cannot read {printable(path)}: {shown(reason)}; get another copy") from error
    text: Any = config.text_config  # typed as optional and as a dict, too
    vision: Any = config.vision_config
    contradictions = {
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
    return config


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and reports of transformers for the block. v2l checks what they report, and stderr
    belongs to the user."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def tensor_shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
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


def _text_layer(prefix: str, text: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
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
        yield from _linear(f"{prefix}self_attn.{name}", rows, columns, text.attention_bias)
    for name, rows, columns in (("gate_proj", inner, width), ("up_proj", inner, width), ("down_proj", width, inner)):
        yield from _linear(f"{prefix}mlp.{name}", rows, columns, text.mlp_bias)


def _vision_layer(prefix: str, vision: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
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
