"""Measure the speed that docs/speed.md reports: `python tests/stress/speed.py [NAME...] [--json FILE]`.

Without a name all sections run. Every figure is a ratio of two methods with alternating runs, so a slow phase of the
machine affects both. Nothing here passes or fails. `v2l bench` measures token load and time to first token.

The section number-types compares with another release: `git worktree add ../before 50e9628`, then
`python tests/stress/speed.py number-types --against ../before`.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import v2l
from v2l.bench.peer import transformers_model
from v2l.bench.random_model import random_model
from v2l.bench.resources import PeakMemory, describe_machine
from v2l.bench.runner import drawn_video
from v2l.inference.ask import answer_each, question_embeddings
from v2l.inference.batch import EncodeOptions, Watch, encode_targets
from v2l.inference.encode import encode_reading
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import Target
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import HypernetworkConfig
from v2l.models.perceiver import Resampler, ResamplerLayer
from v2l.models.processor import question_text
from v2l.tiny.world.clip import ClipFormat, write_clip
from v2l.tiny.world.scene import sample_story
from v2l.video.sampling import Reading

CPU = torch.device("cpu")


def alternate(
    methods: dict[str, Callable[[], object]], runs: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median seconds of each method over alternating runs, without the first run of each."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(runs + 1):
        for name, method in methods.items():
            start = clock()
            method()
            times[name].append(clock() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


# Start -------------------------------------------------------------------------------------------------------------


def start(folder: Path) -> dict[str, float]:
    """Measure processor seconds, user and system, of whole processes with tiny, relative to `import torch`."""
    command = str(Path(sys.executable).with_name("v2l"))
    video, adapter = drawn_video(12, 128, folder), folder / "clip.v2l.safetensors"
    encode_reading(video, *ModelLoader("tiny", "option", device="cpu").load(), Reading()).save(adapter)
    encode = [command, "encode", str(video), "-o", str(folder / "encoded.v2l.safetensors"), "--model", "tiny"]
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import typer, rich.table": [sys.executable, "-c", "import typer, rich.table"],
        "v2l --help": [command, "--help"],
        "v2l ask": [command, "ask", str(adapter), "what is on the whiteboard?"],
        "v2l encode": [*encode, "--overwrite"],
        "v2l encode, nothing to do": encode,
        "v2l info": [command, "info", str(adapter)],
    }
    found = _alternate_processor_seconds(commands, runs=7)
    ratios = {f"{name} / import torch": found[name] / found["import torch"] for name in commands if "v2l " in name}
    return found | ratios | {"help / its imports": found["v2l --help"] / found["import typer, rich.table"]}


def _alternate_processor_seconds(commands: dict[str, list[str]], runs: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {}
    for _ in range(runs):
        for name, command in commands.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.setdefault(name, []).append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


# Many at once ------------------------------------------------------------------------------------------------------


def many_answers(folder: Path) -> dict[str, float]:
    """Ask tiny one question about each of 32 adapters, in a batch and one by one."""
    loader = ModelLoader("tiny", "option", device="cpu")
    vlm, hypernetwork = loader.load()
    adapters = [encode_reading(clip, vlm, hypernetwork, Reading()) for clip in _clips(folder, 32, ClipFormat())]
    question = "what is on the whiteboard?"
    found = alternate(
        {
            "one after the other": lambda: [v2l.ask(adapter, question, vlm, 40) for adapter in adapters],
            "together": lambda: answer_each(adapters, [question] * len(adapters), vlm, 40),
        },
        runs=7,
    )
    return found | {"times as fast": found["one after the other"] / found["together"]}


def many_videos(folder: Path) -> dict[str, float]:
    """Encode 32 short clips with tiny, small and at 1280 x 720, in a batch and one by one, to the same bytes."""
    loader, found = ModelLoader("tiny", "option", device="cpu"), {}
    for name, form in (("128 x 96", ClipFormat()), ("1280 x 720", ClipFormat(1280, 720, 12.0))):
        place = folder / name.replace(" ", "")
        place.mkdir()
        targets = [Target(clip, clip.with_suffix(".batch")) for clip in _clips(place, 32, form)]

        def alone(targets: list[Target] = targets) -> None:
            for target in targets:
                encode_reading(target.video, *loader.load(), Reading()).save(target.video.with_suffix(".alone"))

        def batch(targets: list[Target] = targets) -> None:
            list(encode_targets(targets, EncodeOptions(Reading(), overwrite=True), loader, Watch()))

        timed = alternate({"one after the other": alone, "batch": batch}, runs=5)
        for target in targets:
            assert target.output.read_bytes() == target.video.with_suffix(".alone").read_bytes()
        found |= {f"{way}, {name}": seconds for way, seconds in timed.items()}
        found[f"times as fast, {name}"] = timed["one after the other"] / timed["batch"]
    return found


def _clips(folder: Path, count: int, form: ClipFormat) -> list[Path]:
    """Write clips that repeat eight different ones."""
    clips = []
    for number in range(count):
        clips.append(folder / f"{number:02d}.mp4")
        if number < 8:
            write_clip(sample_story("test", number, 8.0), clips[-1], form)
        else:
            clips[-1].write_bytes(clips[number % 8].read_bytes())
    return clips


# An attached adapter -----------------------------------------------------------------------------------------------


def attached_adapter(folder: Path) -> dict[str, float]:
    """Time the first token and each later one without an adapter, on the side path and merged, and the merge itself."""
    found = {}
    tiny = v2l.load_vlm("tiny", device="cpu")
    large, _ = random_model("smolvlm2-500m", folder / "500m", "cpu", torch.float32)
    for name, vlm, runs in (("tiny", tiny, 40), ("500m, random weights", large, 8)):
        times: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(runs):
            for method in ("none", "side path", "merged"):
                times.setdefault(method, []).append(_time_attached(vlm, method))
        for method, taken in times.items():
            attach, first, other = (statistics.median(column) for column in zip(*taken, strict=True))
            found |= {
                f"{name}, {method}, attach": attach,
                f"{name}, {method}, first": first,
                f"{name}, {method}, next": other,
            }
        for method in ("side path", "merged"):
            for token in ("first", "next"):
                ratio = found[f"{name}, {method}, {token}"] / found[f"{name}, none, {token}"]
                found[f"{name}, {method} / none, {token}"] = ratio
    return found


def _time_attached(vlm: v2l.models.smolvlm.FrozenVLM, method: str, new_tokens: int = 9) -> tuple[float, float, float]:
    from v2l.adapters.lora import _merged, attached

    rank = 32
    layers, inputs, outputs = vlm.adapted_size
    torch.manual_seed(0)
    factors = [(torch.randn(rank, inputs), torch.randn(rank, outputs) * 1e-4) for _ in range(layers)]
    attach = {"none": contextlib.nullcontext, "side path": attached, "merged": _merged}[method]
    start = time.perf_counter()
    with attach(*([] if method == "none" else [vlm.language_model, factors])):
        attaching = time.perf_counter() - start
        prompt = question_embeddings("what is on the whiteboard?", vlm)
        next(vlm.greedy([prompt], 1))
        start = time.perf_counter()
        tokens = vlm.greedy([prompt], new_tokens, for_speed=True)
        next(tokens)
        first = time.perf_counter()
        list(tokens)
        return attaching, first - start, (time.perf_counter() - first) / (new_tokens - 1)


def peer() -> dict[str, float]:
    """Compare tiny with transformers' classes on the same weights: the first token of a text prompt and each later one.

    bare: one forward pass of the class and argmax, and a loop over it; generate: its `generate(max_new_tokens=1)`
    """
    vlm, tokens = v2l.load_vlm("tiny", device="cpu"), 50
    model = transformers_model(vlm)
    ids = vlm.tokenize(question_text("what is on the whiteboard?"))[None]
    taken: dict[str, list[float]] = {}

    @torch.no_grad()
    def bare() -> Iterator[int]:
        out = model.model.text_model(input_ids=ids, use_cache=True)
        while True:
            token = model.lm_head(out.last_hidden_state[:, -1]).argmax(-1)
            yield int(token)
            out = model.model.text_model(input_ids=token[:, None], past_key_values=out.past_key_values, use_cache=True)

    def own(method: str) -> None:
        _, first, other = _time_attached(vlm, method, tokens)
        taken.setdefault(f"{method}, first", []).append(first)
        taken.setdefault(f"{method}, next", []).append(other)

    for _ in range(60):
        for method in ("none", "side path", "merged"):
            own(method)
        steps, start = bare(), time.perf_counter()
        next(steps)
        first = time.perf_counter()
        for _ in range(tokens - 1):
            next(steps)
        taken.setdefault("bare, first", []).append(first - start)
        taken.setdefault("bare, next", []).append((time.perf_counter() - first) / (tokens - 1))
        start = time.perf_counter()
        model.generate(input_ids=ids, max_new_tokens=1, do_sample=False)
        taken.setdefault("generate, first", []).append(time.perf_counter() - start)
    found = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return found | {
        "attached / bare, first": found["merged, first"] / found["bare, first"],
        "attached / generate, first": found["merged, first"] / found["generate, first"],
        "bare / attached, next": found["bare, next"] / found["merged, next"],
        "attached / none, first": found["merged, first"] / found["none, first"],
    }


# The hypernetwork --------------------------------------------------------------------------------------------------


def hypernetwork(folder: Path) -> dict[str, float]:
    """Compare v2l's order of computation with the published one, which projects all layers at once and computes keys
    and values of every token in each block. Published sizes for the 500M, 931 tokens of 12 frames, float32."""
    network, states = _reading()
    with torch.no_grad():
        ways = {name: lambda way=way: way(network, states) for name, way in READINGS.items()}
        made = [way() for way in ways.values()]
        for (a, b), (c, d) in zip(*made, strict=True):
            assert torch.allclose(a, c, atol=1e-5) and torch.allclose(b, d, atol=1e-5)
        del made
        found = alternate(ways, runs=3)
    for name in READINGS:  # in separate processes, because a process keeps freed memory
        run = [sys.executable, "-c", f"import speed; print(speed.extra_memory({name!r}))"]
        done = subprocess.run(run, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
        found[f"{name}, extra memory in MB"] = float(done.stdout) / 1e6
    return found | {"times as fast": found["published"] / found["v2l"]}


def _reading() -> tuple[Hypernetwork, torch.Tensor]:
    torch.manual_seed(0)
    network = Hypernetwork(HypernetworkConfig(num_layers=32, hidden_size=960, intermediate_size=2560)).eval()
    return network, torch.randn(1, 32, 931, 960)


def extra_memory(name: str) -> int:
    """Return the peak bytes of one pass without the network and the hidden states."""
    network, states = _reading()
    with torch.no_grad():
        peak = PeakMemory(CPU)
        before = peak.bytes()
        made = READINGS[name](network, states)
    assert made
    return peak.bytes() - before


def _published(network: Hypernetwork, states: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    reader = network.aggregator["perceiver"]
    context = reader.modality_projection(states.flatten(0, 1))  # (L, T, W)
    latents = network.layers[0](_resample(reader.decoder, _resample(reader.encoder, context)))
    latents = torch.nn.functional.normalize(latents, dim=-1)
    return [network._layer_factors(index, latents[index : index + 1]) for index in range(len(latents))]


def _resample(resampler: Resampler, context: torch.Tensor) -> torch.Tensor:
    latents = resampler.latents_q.expand(len(context), -1, -1)
    for block in resampler.layers:
        latents = latents + block.post_attention_layernorm(_attend(block, latents, context))
        latents = latents + block.post_ff_layernorm(block.mlp(block.pre_ff_layernorm(latents)))
    return resampler.layernorm(latents)


def _attend(block: ResamplerLayer, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    own, read = block.input_latents_layernorm(latents), block.input_context_layernorm(context)
    attention, both = block.self_attn, torch.cat([read, own], dim=1)
    queries, keys, values = (
        projection(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection, x in ((attention.q_proj, own), (attention.k_proj, both), (attention.v_proj, both))
    )
    group = attention.heads // attention.kv_heads
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    weights = (queries @ keys.transpose(-1, -2) * attention.head_dim**-0.5).softmax(-1)
    return attention.o_proj((weights @ values).transpose(1, 2).flatten(2))


READINGS = {"published": _published, "v2l": lambda network, states: network.generate(iter(states.unbind(1)))}


# Number types ------------------------------------------------------------------------------------------------------

ENCODE_500M = Path(__file__).with_name("encode_500m.py")


def number_types(folder: Path, before: Path | None, runs: int = 3) -> dict[str, float]:
    """Encode twelve frames with the 500M architecture, random weights: this checkout in float32 and in bfloat16, and
    that in `before` in float32. Each is a process of its own; they take turns."""
    video, here = drawn_video(12, 384, folder), Path(__file__).parents[2]
    checkouts = {"float32": (here, "float32"), "bfloat16": (here, "bfloat16")}
    if before is not None:
        checkouts = {"before, float32": (before.resolve(), "float32"), **checkouts}
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, (checkout, dtype) in checkouts.items():
            run = [sys.executable, str(ENCODE_500M), dtype, str(video)]
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
            processes[name] = stack.enter_context(subprocess.Popen(run, env=environment, cwd=checkout, **pipes))
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
        for _ in range(runs):
            for name, process in processes.items():
                process.stdin.write("encode\n")
                taken[name].append(json.loads(process.stdout.readline()))
        for process in processes.values():
            process.stdin.close()
    found = {
        f"{name}, {what}": statistics.median(each[what] for each in measured)
        for name, measured in taken.items()
        for what in measured[0]
    }
    first, *others = checkouts
    for name in others:
        for what in taken[first][0]:
            found[f"{first} / {name}, {what}"] = found[f"{first}, {what}"] / found[f"{name}, {what}"]
    return found


# Length ------------------------------------------------------------------------------------------------------------

ENCODE = """
import sys, time, torch, v2l
from v2l.bench.resources import PeakMemory
video, frames = sys.argv[1], int(sys.argv[2])
vlm, hypernetwork = v2l.load_vlm("tiny", device="cpu"), v2l.load_hypernetwork("tiny", device="cpu")
v2l.encode(video, vlm, hypernetwork, frames=12)
peak, times = PeakMemory(torch.device("cpu")), []
for _ in range(3):
    start = time.perf_counter()
    v2l.encode(video, vlm, hypernetwork, frames=frames)
    times.append(time.perf_counter() - start)
print(min(times), peak.bytes())
"""


def length(folder: Path) -> dict[str, float]:
    """Encode 64 to 1,024 real frames with tiny, each in its own process: seconds, peak memory, and the exponent of the
    power law fitted to the seconds."""
    found: dict[str, float] = {}
    counts = (64, 128, 256, 512, 1024)
    for count in counts:
        run = [sys.executable, "-c", ENCODE, str(drawn_video(count, 128, folder)), str(count)]
        seconds, peak = map(float, subprocess.run(run, check=True, capture_output=True, text=True).stdout.split())
        found |= {f"{count} frames": seconds, f"{count} frames, peak memory in MB": peak / 1e6}
    logs = [(math.log(count), math.log(found[f"{count} frames"])) for count in counts]
    x, y = (statistics.mean(column) for column in zip(*logs, strict=True))
    exponent = sum((a - x) * (b - y) for a, b in logs) / sum((a - x) ** 2 for a, _ in logs)
    memory = found["1024 frames, peak memory in MB"] / found["64 frames, peak memory in MB"]
    return found | {"exponent": exponent, "peak memory, 1024 / 64": memory}


SECTIONS = {  # the keys of docs/results/speed/cpu.json
    "start": start,
    "many-answers": many_answers,
    "many-videos": many_videos,
    "wearing": attached_adapter,
    "peer": lambda folder: peer(),
    "hypernetwork": hypernetwork,
    "number-types": lambda folder: number_types(folder, words.against, words.runs),
    "length": length,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, keep those of other names")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, for number-types")
    parser.add_argument("--runs", type=int, default=3, help="turns of number-types")
    words = parser.parse_args()
    known = json.loads(words.json.read_text()) if words.json and words.json.exists() else {}
    for name in words.names or SECTIONS:
        with tempfile.TemporaryDirectory() as place:
            figures = SECTIONS[name](Path(place))
        print(name, *(f"  {what}: {value:.4g}" for what, value in figures.items()), sep="\n", flush=True)
        known |= {name: {what: float(f"{value:.4g}") for what, value in figures.items()}}
        known["machine"] = describe_machine(CPU)
        if words.json:
            words.json.write_text(json.dumps(known, indent=1) + "\n")
