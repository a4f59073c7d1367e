"""The exported GGUF in llama.cpp gives v2l's answers, with the language part of the embedded model as base.

Slow, because llama-cpp-python is compiled where it is installed (ten minutes on two cores):

    .venv/bin/pip install llama-cpp-python==0.3.36
    .venv/bin/python -m pytest -m slow tests/adapters/test_llama_cpp.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter, TokenType
from peers import transformers_model

import v2l
from v2l.adapters.export import export_gguf
from v2l.models.processor import question_text
from v2l.models.smolvlm import FrozenVLM
from v2l.tiny.demo import FORM, SECONDS
from v2l.tiny.world.clip import write_clip
from v2l.tiny.world.scene import SHAPES, sample_story

pytestmark = pytest.mark.slow

QUESTIONS = (
    "what is on the whiteboard?",
    "which word comes last?",
    "where is the cross at 00:05?",
    "Describe what is happening in this video.",
)
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of a decoder layer's weights in transformers and in llama.cpp."""


@pytest.fixture(scope="module")
def tiny() -> FrozenVLM:
    return v2l.load_vlm("tiny", device="cpu")


def write_base(vlm: FrozenVLM, path: Path) -> Path:
    """Write the language model as llama.cpp's converter does, in float32: rotary halves interleaved, the
    embeddings also the head. The tokens are there by name; texts are tokenized by v2l."""
    peer = transformers_model(vlm)
    text, config = peer.model.text_model, peer.model.text_model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"token {number}" for number in range(config.vocab_size)])
    writer.add_token_types([TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["t o"])
    writer.add_eos_token_id(config.eos_token_id)

    def add(name: str, weight: torch.Tensor) -> None:
        writer.add_tensor(name, weight.detach().float().contiguous().numpy())

    add("token_embd.weight", text.embed_tokens.weight)
    add("output_norm.weight", text.norm.weight)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for number, layer in enumerate(text.layers):
        for theirs, name in BLOCK.items():
            weight = layer.get_submodule(theirs).weight
            if name in heads:
                weight = weight.unflatten(0, (heads[name], 2, -1)).transpose(1, 2).flatten(0, 2)
            add(f"blk.{number}.{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_llama_cpp_gives_v2ls_greedy_answer(tiny, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed, see the top of this file")
    story = sample_story("test", 9100, SECONDS, shapes=SHAPES)
    write_clip(story, tmp_path / "clip.mp4", FORM)
    adapter = v2l.encode(tmp_path / "clip.mp4", tiny, v2l.load_hypernetwork("tiny", device="cpu"))
    export_gguf(adapter, tmp_path / "clip.gguf")
    base = write_base(tiny, tmp_path / "base.gguf")

    def answers(**lora: str) -> list[str]:
        engine = llama_cpp.Llama(str(base), n_ctx=512, logits_all=True, verbose=False, **lora)
        return [answer(engine, question) for question in QUESTIONS]

    def answer(engine: object, question: str) -> str:
        said = []
        engine.reset()
        for token in engine.generate(tiny.tokenize(question_text(question)).tolist(), temp=0.0, repeat_penalty=1.0):
            if token in tiny.end_of_answer_ids or len(said) == 24:
                break
            said.append(token)
        return tiny.detokenize(said).strip()

    worn = v2l.ask_each([adapter] * len(QUESTIONS), QUESTIONS, tiny, 24)
    bare = v2l.ask_each(None, QUESTIONS, tiny, 24)
    print(worn, bare)
    assert answers() == bare
    assert answers(lora_path=str(tmp_path / "clip.gguf")) == worn
    assert worn != bare
