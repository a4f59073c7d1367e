"""Compare the answers of adapters in bfloat16 with those in float32: `python tests/stress/adapter_type.py MANIFEST...`.

Each clip is encoded once with tiny, on the CPU in float32, and asked all of its questions from both adapters; with
--segments, from the composed adapter, of which a question that names a time uses the segments that show it. Prints per
manifest the fraction of equal answers and both accuracies (exact match for questions, token F1 for captions).
docs/format.md states the results.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

import v2l
from v2l.adapters.adapter import Adapter
from v2l.evaluation.metrics import exact_match, token_f1
from v2l.inference.ask import ask_each
from v2l.inference.encode import encode_segments
from v2l.inference.model_loader import ModelLoader
from v2l.io.manifest import Example, group_by_clip, read_manifest
from v2l.video.sampling import Reading

TYPES = (torch.float32, torch.bfloat16)


def in_type(adapter: Adapter, dtype: torch.dtype) -> Adapter:
    """Return the adapter with its factors rounded to a number type."""
    return dataclasses.replace(adapter, a=adapter.a.to(dtype), b=adapter.b.to(dtype))


def score(example: Example, answer: str) -> float:
    """Score an answer as `v2l eval` does by default."""
    metric = token_f1 if example.task == "caption" else exact_match
    return metric(answer, example.target)


def compare(manifest: Path, segments: int, loader: ModelLoader) -> dict[str, float]:
    """Answer a manifest from adapters of both types."""
    vlm, hypernetwork = loader.load()
    kinds, equal, changed = set(), 0, []
    scores: dict[torch.dtype, list[float]] = {dtype: [] for dtype in TYPES}
    for asked in group_by_clip(read_manifest(manifest)):
        video, start, end = asked[0].clip
        made = encode_segments(video, vlm, hypernetwork, Reading(start=start, end=end), segments)
        prompts = [example.prompt for example in asked]
        answers = [ask_each([in_type(made, dtype)] * len(prompts), prompts, vlm, 40) for dtype in TYPES]
        for example, wide, half in zip(asked, *answers, strict=True):
            kinds.add(example.kind)
            equal += wide == half
            if wide != half:
                changed.append((example.id, example.kind, example.target, wide, half))
            for dtype, answer in zip(TYPES, (wide, half), strict=True):
                scores[dtype].append(score(example, answer))
    print(*(f"  {line}" for line in changed), sep="\n")
    wide, half = (sum(scores[dtype]) / len(scores[dtype]) for dtype in TYPES)
    return {
        "questions": len(scores[torch.float32]),
        "kinds": len(kinds),
        "equal answers": equal / len(scores[torch.float32]),
        "accuracy, float32": wide,
        "accuracy, bfloat16": half,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", nargs="+", type=Path, metavar="MANIFEST")
    parser.add_argument("--segments", type=int, default=1, help="compose each adapter from this many segments")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to this file")
    words = parser.parse_args()
    known = json.loads(words.json.read_text()) if words.json and words.json.exists() else {}
    loader = ModelLoader("tiny", "option", device="cpu", dtype="float32")
    for manifest in words.manifests:
        figures = compare(manifest, words.segments, loader)
        name = manifest.stem + (f", {words.segments} segments" if words.segments > 1 else "")
        print(name, *(f"  {what}: {value:.5g}" for what, value in figures.items()), sep="\n", flush=True)
        known |= {name: {what: float(f"{value:.5g}") for what, value in figures.items()}}
        if words.json:
            known["v2l"] = v2l.__version__
            words.json.write_text(json.dumps(known, indent=1) + "\n")
