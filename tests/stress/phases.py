"""Time each phase of the 500M architecture, random weights, in float32 and bfloat16 on the CPU, with alternating runs.

    python tests/stress/phases.py [--json FILE]

Prints seconds of both types and float32 / bfloat16; more than 1 means that bfloat16 is faster.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from speed import CPU, alternate

from v2l.bench.random_model import random_model
from v2l.bench.resources import describe_machine
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def step(vlm: FrozenVLM, tokens: int) -> Callable[[], object]:
    """Return a function that computes one token after a prompt of `tokens`."""
    model = vlm.language_model
    cache = vlm.prefill(torch.randn(tokens, model.config.hidden_size).to(vlm.dtype))
    cache.reserve(tokens + 1)
    ids, position = torch.tensor([5]), torch.tensor([tokens])

    def run() -> torch.Tensor:
        cache.crop(tokens)
        return model.logits(model.run(model.embed(ids), position, cache.attend(1)))

    return run


def phases(vlm: FrozenVLM, hypernetwork: Hypernetwork) -> dict[str, tuple[Callable[[], object], int]]:
    """Return a function for each phase, and its number of runs."""
    width, tower = vlm.language_model.config.hidden_size, vlm.vision
    side = vlm.geometry.image_size
    pixels = torch.randn(4, 3, side, side).to(vlm.dtype)
    patches = torch.randn(4, vlm.geometry.tokens_per_image, tower.connector.in_features).to(vlm.dtype)
    prompts = {tokens: torch.randn(tokens, width).to(vlm.dtype) for tokens in (923, 21)}
    states = torch.randn(1, 923, width).to(vlm.dtype)
    return {
        "vision tower, 4 images": (lambda: tower(pixels), 3),
        "connector, 4 images": (lambda: tower.connector(patches), 9),
        "prefill, 923 tokens": (lambda: vlm.prefill(prompts[923]), 3),
        "prefill, 21 tokens": (lambda: vlm.prefill(prompts[21]), 15),
        "one token after 40": (step(vlm, 40), 15),
        "one token after 940": (step(vlm, 940), 15),
        "hypernetwork, one layer of 923 tokens": (lambda: hypernetwork._read(states, None), 7),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    found: dict[str, object] = {"machine": describe_machine(CPU)}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        made = {
            name: phases(*random_model("smolvlm2-500m", Path(folder), "cpu", dtype)) for name, dtype in TYPES.items()
        }
        for phase, (_, runs) in made["float32"].items():
            seconds = alternate({name: made[name][phase][0] for name in TYPES}, runs)
            figures = seconds | {"float32 / bfloat16": seconds["float32"] / seconds["bfloat16"]}
            found[phase] = {name: float(f"{value:.4g}") for name, value in figures.items()}
            print(phase, found[phase], flush=True)
    if words.json:
        words.json.write_text(json.dumps(found, indent=1) + "\n")
