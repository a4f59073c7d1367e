"""Export: PEFT folders, GGUF files and `v2l export`."""

import json

import peft
import pytest
import torch
from gguf import GGUFReader
from terminal import run
from transformers import SmolVLMForConditionalGeneration

import v2l
from v2l.adapters.export import VLLM_RANKS, export_gguf, export_peft, serving_command, smallest_vllm_rank
from v2l.models.processor import question_text

QUESTION = "what is on the whiteboard?"


# peft --------------------------------------------------------------------------------------------------------------


def test_peft_serves_the_exported_folder(vlm, strong, model_folder, tmp_path):
    export_peft(strong, tmp_path / "clip.peft")
    base = SmolVLMForConditionalGeneration.from_pretrained(model_folder).eval()
    served = peft.PeftModel.from_pretrained(base, tmp_path / "clip.peft")
    ids = vlm.tokenize(question_text(QUESTION))
    with torch.no_grad(), v2l.applied(vlm, strong):
        assert torch.allclose(served(input_ids=ids[None]).logits[0], vlm.logits(ids), atol=1e-4, rtol=1e-4)
    said = served.generate(
        input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), max_new_tokens=12, do_sample=False
    )
    answer = vlm.detokenize([token for token in said[0, len(ids) :].tolist() if token not in vlm.end_of_answer_ids])
    assert answer.strip() == v2l.ask(strong, QUESTION, vlm, 12) != v2l.ask_each(None, [QUESTION], vlm, 12)[0]
    config = json.loads((tmp_path / "clip.peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (8, 8, ["down_proj"])


def test_a_folder_that_is_something_else_is_left_alone(strong, tmp_path):
    export_peft(strong, tmp_path / "a")
    with pytest.raises(v2l.V2LError, match="--overwrite replaces it"):
        export_peft(strong, tmp_path / "a")
    export_peft(strong, tmp_path / "a", overwrite=True)
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(v2l.V2LError, match="is not an exported adapter"):
        export_peft(strong, tmp_path / "a", overwrite=True)
    with pytest.raises(v2l.V2LError, match="cannot write"):
        export_peft(strong, tmp_path / "nowhere" / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


# gguf --------------------------------------------------------------------------------------------------------------


def test_the_gguf_reads_back_as_llama_cpp_expects(strong, tmp_path):
    export_gguf(strong, tmp_path / "clip.gguf")
    reader = GGUFReader(tmp_path / "clip.gguf")
    stated = {name: reader.fields[name].contents() for name in reader.fields if not name.startswith("GGUF.")}
    assert stated == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "clip 0.mp4",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert tensors.keys() == {f"blk.{n}.ffn_down.weight.lora_{f}" for n in range(3) for f in "ab"}
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    for layer in range(3):
        a, b = (torch.tensor(tensors[f"blk.{layer}.ffn_down.weight.lora_{f}"]) for f in "ab")
        scale = stated["adapter.lora.alpha"] / len(a)  # llama.cpp's: alpha over the rank of lora_b
        assert torch.allclose(x @ a.T @ b.T * scale, x @ strong.a[layer].float().T @ strong.b[layer].float())


# The command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (16, 16), (17, 32), (48, 64), (321, 512), (512, 512)])
def test_the_smallest_rank_that_vllm_allows(rank, allowed):
    assert smallest_vllm_rank(rank) == allowed and allowed in VLLM_RANKS


def test_export_says_how_to_serve_it(saved, strong, tmp_path):
    done = run("export", saved, "--format", "peft", cwd=tmp_path)
    folder = saved.with_name("clip.peft")
    assert (done.code, done.lines) == (0, [str(folder)])
    assert "(not run with vLLM yet): vllm serve" in done.err
    assert "--enable-lora --max-lora-rank 8 --lora-modules clip=" in done.err
    done = run("export", saved, "--format", "gguf", "-o", "my clip.gguf", "--json", cwd=tmp_path)
    assert done.records[0]["serve"] == "llama-server -m BASE.gguf --lora 'my clip.gguf'"
    assert done.records[0]["bytes"] == (tmp_path / "my clip.gguf").stat().st_size
    assert serving_command(strong, folder, "peft") in run("export", saved, "--format", "peft", "--overwrite").err


def test_export_refuses_what_it_would_spoil(saved, tmp_path):
    (tmp_path / "clip.gguf").write_text("mine")
    done = run("export", saved, "--format", "gguf")
    assert done.code == 1 and "already exists; --overwrite replaces it" in done.err
    assert (tmp_path / "clip.gguf").read_text() == "mine"
    done = run("export", saved, "--format", "gguf", "-o", tmp_path / "clip.bin")
    assert done.code == 2 and "must end in .gguf" in done.err
    assert run("export", saved, "--format", "onnx").code == 2
