"""Measure the real architectures on a GPU, in under ten minutes: `python tests/stress/gpu.py --json FILE`.

Both architectures in bfloat16 with random weights: decoding with and without CUDA graphs, transformers' classes and the
limit of the memory's bandwidth; an encoding by part; group sizes of the hypernetwork; then the sweep of docs/speed.md
for as long as is left. `--device cpu --quick` runs everything once at sizes that mean nothing. Nothing here passes or
fails.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import torch

from v2l.adapters.lora import attached
from v2l.bench.peer import transformers_model
from v2l.bench.plan import Plan
from v2l.bench.random_model import ARCHITECTURES, Architecture, random_model
from v2l.bench.resources import PeakMemory, describe_machine, synchronise
from v2l.bench.results import Cell
from v2l.bench.runner import Bench, drawn_video
from v2l.inference.encode import generate_factors, group_bytes, layers_at_once
from v2l.inference.preprocess import cut_windows, encode_images, plan_frames
from v2l.inference.readings import fill_reading
from v2l.io.journal import Journal
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.processor import question_text
from v2l.models.smolvlm import FrozenVLM
from v2l.models.static_decoding import StaticDecoding, run_eagerly
from v2l.video.client import probe
from v2l.video.sampling import Reading

QUESTION = "what is on the whiteboard?"
RANK = 32
SMALL = Architecture(
    {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 1024,
    },
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
    scale_factor=2,
    resolution=32,
    hypernetwork={"rank": 4, "latent_size": 32, "num_blocks": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
)


Tokens = Generator[object]
"""An answer: every item is a token that has reached the host."""


class Clock:
    """Seconds of work on a device. repeats: of each measurement, after two untimed runs: a graph is captured in the
    second"""

    def __init__(self, device: torch.device, repeats: int):
        self.device, self.repeats = device, repeats

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds until the device has finished `work`."""
        synchronise(self.device)
        start = time.perf_counter()
        work()
        synchronise(self.device)
        return time.perf_counter() - start

    def median(self, work: Callable[[], object]) -> float:
        """Return the median seconds of `work`."""
        return statistics.median([self.seconds(work) for _ in range(self.repeats + 2)][2:])

    def answers(self, methods: dict[str, Callable[[], Tokens]], tokens: int) -> dict[str, float]:
        """Return the median milliseconds to the first token of each method and its tokens per second after it, over
        alternating answers of `tokens` tokens."""
        first: dict[str, list[float]] = {name: [] for name in methods}
        other: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(self.repeats + 2):
            for name, method in methods.items():
                with contextlib.closing(method()) as answer:
                    first[name].append(self.seconds(lambda answer=answer: next(answer)))
                    other[name].append(self.seconds(lambda answer=answer: [next(answer) for _ in range(tokens - 1)]))
        figures = {f"{name}, first token in ms": 1e3 * statistics.median(taken[2:]) for name, taken in first.items()}
        rates = {f"{name}, tokens/s": (tokens - 1) / statistics.median(taken[2:]) for name, taken in other.items()}
        return figures | rates


def bandwidth(device: torch.device) -> float:
    """Return the bytes per second that the device reads, from a sum over 1 GiB (64 MiB on the CPU)."""
    memory = torch.ones((1 << 30 if device.type == "cuda" else 1 << 26) // 4, device=device)
    return memory.nbytes / Clock(device, 5).median(memory.sum)


# Decoding ----------------------------------------------------------------------------------------------------------


def decoding(vlm: FrozenVLM, clock: Clock, tokens: int) -> dict[str, float]:
    """Answer a question on the side path of an adapter, with and without graphs, without an adapter, and with
    transformers' classes: a bare loop over its forward pass, and `generate`. `limit` is the time to read the weights
    and the factors once."""
    model, peer, ids = vlm.language_model, transformers_model(vlm), vlm.tokenize(question_text(QUESTION))
    graphs = vlm.static_decoding or StaticDecoding(model, run_eagerly)
    layers, inputs, outputs = vlm.adapted_size
    factors = [
        (torch.randn(RANK, inputs, device=vlm.device), torch.randn(RANK, outputs, device=vlm.device) * 1e-4)
        for _ in range(layers)
    ]

    def own(static: StaticDecoding | None, adapted: bool) -> Tokens:
        before, vlm.static_decoding = vlm.static_decoding, static
        try:
            with attached(model, factors) if adapted else contextlib.nullcontext():
                yield from vlm.greedy([model.embed(ids)], tokens, for_speed=True)
        finally:
            vlm.static_decoding = before

    @torch.no_grad()
    def bare() -> Tokens:
        out = peer.model.text_model(input_ids=ids[None], use_cache=True)
        while True:
            token = peer.lm_head(out.last_hidden_state[:, -1]).argmax(-1)
            yield int(token)
            out = peer.model.text_model(input_ids=token[:, None], past_key_values=out.past_key_values, use_cache=True)

    methods: dict[str, Callable[[], Tokens]] = {
        "adapter, graphs": lambda: own(graphs, True),
        "adapter, no graphs": lambda: own(None, True),
        "no adapter, graphs": lambda: own(graphs, False),
        "no adapter, no graphs": lambda: own(None, False),
        "transformers, forward": bare,
    }
    found = clock.answers(methods, tokens)
    first = {"max_new_tokens": 1, "do_sample": False}
    generate = 1e3 * clock.median(lambda: peer.generate(input_ids=ids[None], **first))
    parts = [part for layer in model.layers for part in (layer.qkv_proj, layer.o_proj, layer.gate_up_proj)]
    parts += [layer.down_proj for layer in model.layers] + [model.head, *(part for pair in factors for part in pair)]
    read = bandwidth(vlm.device)
    limit = 1e3 * sum(part.nbytes for part in parts) / read
    compared = found["adapter, graphs, first token in ms"]
    return found | {
        "transformers, generate, first token in ms": generate,
        "bandwidth in GB/s": read / 1e9,
        "limit in ms": limit,
        "first token / limit": compared / limit,
        "next token / limit": 1e3 / found["adapter, graphs, tokens/s"] / limit,
        "first token / transformers' forward": compared / found["transformers, forward, first token in ms"],
        "first token / transformers' generate": compared / generate,
        "tokens/s with graphs / without": found["adapter, graphs, tokens/s"] / found["adapter, no graphs, tokens/s"],
        "tokens that graphs choose otherwise": _different(own(graphs, True), own(None, True), tokens),
    }


def _different(answer: Tokens, other: Tokens, tokens: int) -> float:
    """Count the places from the first difference of two answers on: beyond it they may differ for ever."""
    pairs = list(zip(list(answer), list(other), strict=True))
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), tokens)
    return float(tokens - same)


# Encoding ----------------------------------------------------------------------------------------------------------


def encoding(vlm: FrozenVLM, network: Hypernetwork, clock: Clock, video: Path, frames: int) -> dict[str, float]:
    """Time each part of an encoding in ms: decoding, vision tower, language model, and hypernetwork at several group
    sizes, with the peak memory of the whole. `largest difference` compares the factors with a layer at a time."""
    assert network.provenance is not None
    trained_with = network.provenance.trained_with
    reading = fill_reading(Reading(frames=frames), trained_with, vlm.geometry)
    probed = probe(video)
    plan = plan_frames(probed, vlm, reading)
    found = {"decoding in ms": 1e3 * clock.median(lambda: list(plan_frames(probed, vlm, reading).images))}
    images = torch.cat(list(plan.images)).to(vlm.device)
    found["vision in ms"] = 1e3 * clock.median(lambda: vlm.encode_images(images))
    windows = cut_windows(encode_images(plan_frames(probed, vlm, reading), vlm), vlm, trained_with)
    tokens = sum(len(window.input_ids) for window in windows)

    def read() -> None:
        for layer in vlm.read_layers(windows):
            for _ in layer:
                pass

    found["tokens"] = float(tokens)
    found["language model in ms"] = read_ms = 1e3 * clock.median(read)
    chosen = layers_at_once(network.config, tokens, group_bytes(vlm.device), vlm.dtype)
    found["layers at once"] = float(chosen)
    with torch.no_grad():
        alone = network.generate(vlm.read_layers(windows))
        for size in sorted({1, 4, 8, chosen, vlm.num_layers}):

            def generate(size: int = size) -> list[tuple[torch.Tensor, torch.Tensor]]:
                return network.generate(vlm.read_layers(windows), layers_at_once=size)

            found[f"hypernetwork, {size} at once, in ms"] = 1e3 * clock.median(generate) - read_ms
            differences = [
                float((part - single).abs().max() / single.abs().max())
                for pair, pair_alone in zip(generate(), alone, strict=True)
                for part, single in zip(pair, pair_alone, strict=True)
            ]
            found[f"hypernetwork, {size} at once, largest difference"] = max(differences)
    peak = PeakMemory(vlm.device)
    found["whole after vision in ms"] = 1e3 * clock.median(lambda: generate_factors(windows, vlm, network))
    return found | {"peak memory in MB": (peak.bytes() or 0) / 1e6}


# The sweep ---------------------------------------------------------------------------------------------------------


def sweep(
    vlm: FrozenVLM, network: Hypernetwork, folder: Path, plan: Plan, output: Path | None
) -> dict[str, float | str]:
    """Run the bench until its budget is spent: for each measured cell the milliseconds to the first token."""
    bench = Bench(vlm, network, plan, folder)
    journal = Journal(output, bench.header(), "bench", "model, machine or setting") if output else None
    found: dict[str, float | str] = {}
    for cell in bench.run(journal):
        if isinstance(cell, Cell):
            name = f"{cell.frames} frames, {cell.resolution} px, {cell.way}"
            found[name] = 1e3 * statistics.median(cell.first_token) if cell.status == "measured" else cell.status
    return found


# The command -------------------------------------------------------------------------------------------------------


def measure(device: str, quick: bool, seconds: float, folder: Path, output: Path | None) -> Iterator[tuple[str, dict]]:
    """Yield the figures of one section after the other. Sections that would begin after `seconds` are left out."""
    start = time.perf_counter()
    names = ["small"] if quick else list(ARCHITECTURES)
    frames, tokens, repeats = ((4,), 4, 1) if quick else ((12, 64), 64, 10)
    models: dict[str, tuple[FrozenVLM, Hypernetwork]] = {}
    for name in names:
        architecture = SMALL if quick else None
        vlm, network = models[name] = random_model(name, folder / name, device, torch.bfloat16, architecture)
        clock = Clock(vlm.device, repeats)
        yield f"{name}, decoding", decoding(vlm, clock, tokens)
        for count in frames:
            if time.perf_counter() - start > seconds:
                break
            video = drawn_video(count, 128 if quick else 512, folder)
            yield f"{name}, encoding, {count} frames", encoding(vlm, network, Clock(vlm.device, 3), video, count)
    left = seconds - (time.perf_counter() - start)
    if left > 0:
        sizes = {"frames": (4,), "resolutions": (32,)} if quick else {"frames": (12, 64, 256, 1024)}
        if not quick:
            sizes["resolutions"] = (384, 512, 1024)
        plan = Plan(**sizes, repeats=1 if quick else 3, new_tokens=2 if quick else 32, budget=left)
        yield f"{names[0]}, sweep", sweep(*models[names[0]], folder, plan, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="run everything once at sizes that mean nothing")
    parser.add_argument("--seconds", type=float, default=420, help="start nothing new after so many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here after each section")
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="append the sweep's measurements here, and go on")
    words = parser.parse_args()
    known: dict[str, object] = {"machine": describe_machine(torch.device(words.device))}
    with tempfile.TemporaryDirectory() as folder:
        for name, figures in measure(words.device, words.quick, words.seconds, Path(folder), words.sweep):
            rounded = {
                what: value if isinstance(value, str) else float(f"{value:.4g}") for what, value in figures.items()
            }
            print(name, *(f"  {what}: {value}" for what, value in rounded.items()), sep="\n", flush=True)
            known[name] = rounded
            if words.json:
                words.json.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
