"""Proof that vLLM answers from an adapter as v2l does: `python tests/stress/serve_vllm.py ADAPTER [MODEL]`, on a machine with
a GPU and vLLM (`pip install vllm`), after `v2l pull smolvlm2-500m` and `v2l encode`.

Exports the adapter as `v2l export --format peft` does, loads the base in vLLM with the smallest rank that it allows,
and asks both the same tokens, greedily, in bfloat16. Ends with 1 where an answer differs, or where no answer differs
from the base's own, which is what a wrong tensor name comes to there.

Never run so far: no machine with a GPU and vLLM was at hand. Written against vLLM's documented Python interface.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import torch

import v2l
from v2l.adapters.export import export_peft, smallest_vllm_rank
from v2l.models.presets import find_model
from v2l.models.processor import QUESTIONS, question_text

LONGEST = 32
"""Tokens of an answer: the longer, the likelier a tie in bfloat16 that two engines break differently."""


def v2l_answers(adapter: v2l.Adapter, model: str) -> tuple[list[list[int]], list[str], list[str], frozenset[int]]:
    """Prompts as token ids, v2l's answers with the adapter and without it, and the tokens that end an answer."""
    vlm = v2l.load_vlm(model, device="cuda", dtype=torch.bfloat16)
    prompts = [vlm.tokenize(question_text(question)).tolist() for question in QUESTIONS]
    worn = [v2l.ask(adapter, question, vlm, LONGEST) for question in QUESTIONS]
    bare = v2l.ask_each(None, QUESTIONS, vlm, LONGEST)
    ends = frozenset(vlm.end_of_answer_ids)
    del vlm
    torch.cuda.empty_cache()
    return prompts, worn, bare, ends


def vllm_answers(prompts: list[list[int]], ends: frozenset[int], model: Path, exported: Path, rank: int) -> list[str]:
    """What vLLM's own engine says with the exported adapter."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(
        model=str(model),
        dtype="bfloat16",
        enable_lora=True,
        max_loras=1,
        max_lora_rank=rank,
        max_model_len=1024,
        limit_mm_per_prompt={"image": 0},  # not one visual token
        gpu_memory_utilization=0.5,
        enforce_eager=True,
    )
    greedy = SamplingParams(temperature=0, max_tokens=LONGEST, stop_token_ids=sorted(ends))
    adapter = LoRARequest("clip", 1, str(exported))
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], greedy, lora_request=adapter)
    return [output.outputs[0].text.strip() for output in outputs]


def missing() -> str | None:
    """What this machine lacks for the proof, in words."""
    if not torch.cuda.is_available():
        return "this proof needs a GPU that torch can use, and there is none; run it on a machine that has one"
    if importlib.util.find_spec("vllm") is None:
        return "this proof needs vLLM, which is not here: pip install vllm"
    return None


def main(path: str, model: str = "smolvlm2-500m") -> int:
    """The exit code."""
    lacking = missing()
    if lacking:
        print(lacking, file=sys.stderr)
        return 1
    adapter, folder = v2l.Adapter.load(path), find_model(model)
    prompts, worn, bare, ends = v2l_answers(adapter, model)
    with tempfile.TemporaryDirectory() as place:
        exported = Path(place) / "clip.peft"
        export_peft(adapter, exported)
        served = vllm_answers(prompts, ends, folder.path, exported, smallest_vllm_rank(adapter.rank))
    for question, ours, theirs, base in zip(QUESTIONS, worn, served, bare, strict=True):
        print(f"{question}\n  v2l    {ours!r}\n  vLLM   {theirs!r}\n  no adapter {base!r}")
    equal = sum(ours == theirs for ours, theirs in zip(worn, served, strict=True))
    moved = sum(theirs != base for theirs, base in zip(served, bare, strict=True))
    print(f"{equal} of {len(QUESTIONS)} answers equal, {moved} moved by the adapter")
    return 0 if equal == len(QUESTIONS) and moved else 1


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
