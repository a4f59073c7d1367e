"""What a prompt needs before it is tried: bytes and arithmetic of the frozen model, by its dimensions."""

from __future__ import annotations

from v2l.models.smolvlm import FrozenVLM


def kv_bytes(vlm: FrozenVLM, tokens: int) -> int:
    """Of the KV cache of that many tokens."""
    text = vlm.folder.config.text_config
    each = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return tokens * each * vlm.dtype.itemsize


def prefill_bytes(vlm: FrozenVLM, tokens: int) -> int:
    """What reading a prompt of that many tokens holds at its peak beside the weights: the KV cache, twice in the layer
    that is being added to it, and one layer's activations."""
    text = vlm.folder.config.text_config
    activations = tokens * (6 * text.hidden_size + 3 * text.intermediate_size) * vlm.dtype.itemsize
    return kv_bytes(vlm, tokens) * (text.num_hidden_layers + 1) // text.num_hidden_layers + activations


def prefill_work(vlm: FrozenVLM, tokens: int) -> float:
    """Multiply-adds of reading a prompt: the linear layers', and attention's, which grows with the square."""
    text = vlm.folder.config.text_config
    own = text.num_attention_heads * text.head_dim
    shared = text.num_key_value_heads * text.head_dim
    linear = text.hidden_size * (2 * own + 2 * shared + 3 * text.intermediate_size)
    return text.num_hidden_layers * tokens * (linear + own * tokens)


def vision_work(vlm: FrozenVLM, images: int) -> float:
    """Multiply-adds of seeing that many images."""
    vision = vlm.folder.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    linear = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    return images * vision.num_hidden_layers * patches * (linear + 2 * vision.hidden_size * patches)
