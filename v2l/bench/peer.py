"""transformers' own SmolVLM on the weights of v2l's modules: the peer of the bench and the reference of the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

import torch

from v2l.models.loading import published_weights
from v2l.models.smolvlm import FrozenVLM


def transformers_model(vlm: FrozenVLM) -> Any:
    """Return a SmolVLMForConditionalGeneration that shares the weights of a model loaded with its vision tower."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMForConditionalGeneration

    sizes = vlm.folder.config
    text = dataclasses.asdict(sizes.text_config)
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
    described: dict[str, Any] = {
        "text_config": {"model_type": "llama", **text, "rope_parameters": rope},
        "vision_config": dataclasses.asdict(sizes.vision_config),
        "scale_factor": sizes.scale_factor,
        "image_token_id": sizes.image_token_id,
        "tie_word_embeddings": sizes.tie_word_embeddings,
    }
    config: Any = SmolVLMConfig(**described)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model: Any = SmolVLMForConditionalGeneration(config)
    weights = dict(published_weights(vlm.language_model, vlm.vision))
    model.load_state_dict({"lm_head.weight": vlm.language_model.head, **weights}, strict=True, assign=True)
    model.model.text_model.rotary_emb = LlamaRotaryEmbedding(config.text_config).to(vlm.device)  # was on meta
    model.generation_config.eos_token_id = sorted(vlm.end_of_answer_ids)
    return model.eval().requires_grad_(False)


def generate(model: Any, ids: torch.Tensor, pixels: torch.Tensor | None, new_tokens: int) -> Generator[list[int]]:
    """Yield the tokens of `model.generate`, greedy and exactly `new_tokens` of them: the first alone, then the others,
    which a second call generates from the KV cache of the first.

    ids: (T,); pixels: (N, 3, S, S) in -1 to 1, of the images in the prompt
    """
    images = {} if pixels is None else {"pixel_values": pixels[None]}
    first = model.generate(
        input_ids=ids[None], **images, max_new_tokens=1, do_sample=False, return_dict_in_generate=True
    )
    yield [int(first.sequences[0, -1])]
    if new_tokens > 1:
        length = {"min_new_tokens": new_tokens - 1, "max_new_tokens": new_tokens - 1}
        cache = first.past_key_values
        whole = model.generate(input_ids=first.sequences, past_key_values=cache, do_sample=False, **length)
        yield from ([int(token)] for token in whole[0, len(ids) + 1 :])
