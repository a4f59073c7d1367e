"""The rehearsal of the first day with the published weights: everything that a user does, from the hub to an export.

A local hub holds the 500M at its true size and configuration with its hypernetwork, a small model in the layout of the
2.2B, sharded and as a single file, and the hypernetworks of both presets in one repository, pickled by three versions
of peft. All weights are random. Each step is the installed command in its own process; `pytest -s` prints the table.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import small
import torch
from hub import Hub, Repo, map_file
from published import write_published
from safetensors.torch import load_file, save_file
from terminal import V2L, surroundings
from true_size import fill_vocabulary, write_true_size

from v2l.bench.random_model import ARCHITECTURES, Architecture
from v2l.models.device import default_dtype
from v2l.models.hypernetwork_file import INTERNALIZATION_PROMPT, HypernetworkConfig
from v2l.models.loading import model_bytes
from v2l.models.presets import PRESETS, find_model
from v2l.models.processor import PromptFrame, video_text
from v2l.models.tokenizer import load_tokenizer

STAND_IN = Architecture(
    text=ARCHITECTURES["smolvlm2-2.2b"].text
    | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    | {"num_key_value_heads": 2, "head_dim": 32},
    vision=ARCHITECTURES["smolvlm2-2.2b"].vision
    | {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    scale_factor=ARCHITECTURES["smolvlm2-2.2b"].scale_factor,
)
"""The 2.2B with images, patches, tokens and vocabulary as published, and small layers."""
IMPORTS = """
import re, sys
import typer.testing, v2l.cli.app, v2l.cli.proof, v2l.adapters.export
import v2l.inference.batch, v2l.inference.proof, v2l.models.pull, v2l.tiny.demo
from v2l.models.presets import find_model
from v2l.models.tokenizer import load_tokenizer
tokenizer = load_tokenizer(find_model(sys.argv[1]))
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
SECONDS = 12
HEADER = ("model", "step", "CPU s", "s", "peak MiB", "allowed MiB", "GB read", "of them from disk")
SHARE = 1.25
"""Memory in relation to the weights. Its excess is for the file that is mapped while weights are read, and for the
activations of one micro-batch."""
LEAST = 256 << 20
"""Bytes for these and for the code that a run touches, where a quarter of the weights is less."""


@dataclass(frozen=True)
class Published:
    """A model folder as published and the checkpoint beside it."""

    folder: Path
    checkpoint: Path

    def allowed(self, hypernetwork: bool = True) -> int:
        """Return the bytes that a step may take beside its imports: of one that encodes, or of one that answers from an
        adapter, for which the language model is sufficient.

        The states of a video are the hidden states of its tokens at every layer, as the published code stacks them, and
        its pixels.
        """
        model = find_model(self.folder)
        text, side = model.config.text_config, model.geometry.image_size
        dtype = default_dtype(torch.device("cpu"), text)
        frames = [PromptFrame(float(second)) for second in range(SECONDS)]
        prompt = video_text(frames, SECONDS, INTERNALIZATION_PROMPT, model.geometry)
        tokens = len(load_tokenizer(model).encode(prompt, add_special_tokens=False).ids)
        states = tokens * text.hidden_size * (text.num_hidden_layers + 1) * dtype.itemsize + SECONDS * 3 * side**2 * 4
        weights = model_bytes(model.config, dtype, vision=hypernetwork)
        weights += hypernetwork * self.checkpoint.stat().st_size
        return weights + max(round((SHARE - 1) * weights), LEAST) + states


@dataclass(frozen=True)
class Step:
    """One run of the command. CPU seconds and bytes include its child processes, memory does not.

    peak: largest resident memory, in bytes
    called, fetched: bytes read by system calls, and from the disk, whichever way they are read, with a cold cache
    """

    name: str
    code: int
    out: str
    err: str
    cpu: float
    wall: float
    peak: int
    called: int
    fetched: int

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Rehearsal:
    """The steps of one preset so far, each with the bytes of memory that it may take."""

    preset: str
    published: Published
    hub: Hub
    home: Path
    steps: list[tuple[Step, int]] = field(default_factory=list)

    def pull(self) -> None:
        """Pull the preset; a large one without its proof, which `verify` makes next."""
        large = self.preset == "smolvlm2-500m"
        allowed = self.published.allowed()
        done = self.run("pull", ["pull", self.preset, "--json", *(["--no-proof"] if large else [])], allowed)
        repos, proofs = done.records[:2], done.records[2:]
        assert [record["repo"] for record in repos] == [
            PRESETS[self.preset].model,
            PRESETS[self.preset].hypernetworks[0],
        ]
        assert len(proofs) == (0 if large else 2)

    def use(self, clip: Path, folder: Path) -> None:
        """Verify, encode, ask and export. folder: receives what is written"""
        folder.mkdir(parents=True)
        adapter, model = folder / "clip.v2l.safetensors", ["--model", self.preset]
        encoding, answering = self.published.allowed(), self.published.allowed(hypernetwork=False)
        # random weights prove nothing, but the likelihoods are there
        proof = self.run("verify --video", ["verify", "--video", clip, *model, "--json"], encoding, codes=(0, 1))
        names = ("own", "other", "bias", "in_context")
        assert all(math.isfinite(record[name]) for record in proof.records for name in names) and proof.records
        self.run("encode", ["encode", clip, "-o", adapter, *model], encoding)
        again = self.run("encode again", ["encode", clip, "-o", adapter, *model, "--json"], LEAST)
        assert again.records[0]["status"] == "current"
        (checked,) = self.run("verify", ["verify", adapter, "--json"], answering).records
        assert checked["sound"] and checked["model"] == PRESETS[self.preset].model
        asked = self.run("ask", ["ask", adapter, "what moves?", "--max-new-tokens", "16", "--json"], answering)
        assert asked.records[0]["answer"]
        for form, output in (("peft", folder / "clip.peft"), ("gguf", folder / "clip.gguf")):
            self.run(f"export {form}", ["export", adapter, "--format", form, "-o", output], LEAST)
            assert output.exists()

    def run(self, name: str, words: Sequence[object], allowed: int, codes: Sequence[int] = (0,)) -> Step:
        """Run a step with a cold cache and print its row. allowed: bytes beside the imports"""
        where = {"HF_ENDPOINT": self.hub.address, "HF_HOME": str(self.home)}
        online = {"HF_HUB_OFFLINE": "0"} if words[0] == "pull" else {}
        forget(self.home)
        step = measured(name, list(map(str, words)), surroundings(**where, **online))
        self.steps.append((step, allowed + imports(self.published.folder)))
        print(*row(self.preset, *self.steps[-1]), sep=" | ", flush=True)
        assert step.code in codes, step.err
        return step


@cache
def imports(folder: Path) -> int:
    """Return the memory that Python, the modules of the commands and the tokenizer of a model take."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(folder)], capture_output=True, text=True, check=True, env=surroundings()
    )
    return int(done.stdout) * 1024


def row(preset: str, step: Step, allowed: int) -> list[str]:
    memory = [f"{size / 2**20:,.0f}" for size in (step.peak, allowed)]
    return [
        *(preset, step.name, f"{step.cpu:.1f}", f"{step.wall:.1f}", *memory),
        *(f"{size / 1e9:.2f}" for size in (step.called, step.fetched)),
    ]


def forget(folder: Path) -> None:
    """Drop the files of a folder from the cache of the system, so that reads of them are counted."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(name: str, words: list[str], env: dict[str, str]) -> Step:
    """Run the installed command and measure it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start, peak = time.monotonic(), 0
        process = subprocess.Popen([V2L, *words], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        place = Path("/proc") / str(process.pid)
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            peak = max(peak, highest((place / "status").read_text()))
            time.sleep(0.02)
        wall = time.monotonic() - start
        io = dict(re.findall(r"(\w+): (\d+)", (place / "io").read_text()))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
    cpu = usage.ru_utime + usage.ru_stime
    return Step(name, process.returncode, *texts, cpu, wall, peak, int(io["rchar"]), int(io["read_bytes"]))


def highest(status: str) -> int:
    """Return the largest resident memory so far, in bytes, from the status of a process; 0 if it has ended."""
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


# The hub -----------------------------------------------------------------------------------------------------------


def publish(place: Path, preset: str, sizes: Architecture, peft: str, **hypernetwork: int) -> Published:
    """Write a model and its checkpoint. hypernetwork: sizes that differ from the published ones"""
    folder = write_true_size(place / preset, sizes, torch.float32)
    fill_vocabulary(folder)
    text = sizes.text
    config = HypernetworkConfig(
        text["num_hidden_layers"], text["hidden_size"], text["intermediate_size"], **hypernetwork
    )
    checkpoint = place / PRESETS[preset].file
    write_published(checkpoint, config, PRESETS[preset].model, peft)
    return Published(folder, checkpoint)


def hub_of(*published: Published) -> Hub:
    """Return the hub of two presets; one repository holds the hypernetworks of both."""
    repos = {PRESETS[name].model: Repo.mapped(each.folder) for name, each in zip(PRESETS, published, strict=True)}
    checkpoints = {each.checkpoint.name: map_file(each.checkpoint) for each in published}
    return Hub({**repos, PRESETS["smolvlm2-500m"].hypernetworks[0]: Repo(checkpoints, "b" * 40, licence="mit")})


def shard(folder: Path) -> None:
    """Split the weights of a folder into two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({each: tensors[each] for each in part}, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed afterwards, since it takes 6 GB."""
    yield tmp_path
    shutil.rmtree(tmp_path)


# The rehearsal -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_day(place: Path) -> None:
    """Pull both presets, verify, encode, ask and export. Beside its imports, no step takes more memory than 1.25 times
    the weights that it loads, in their loaded type, and the states of one video; a small model 256 MiB and these."""
    small_sizes = {"latent_size": 32, "num_blocks": 2}
    large = publish(place, "smolvlm2-500m", ARCHITECTURES["smolvlm2-500m"], "0.11.1")
    sharded = publish(place, "smolvlm2-2.2b", STAND_IN, "0.14.0", **small_sizes)
    single = publish(place / "single", "smolvlm2-2.2b", STAND_IN, "0.21.2", **small_sizes)
    shard(sharded.folder)
    clip = small.write_video(place / "clip.mp4", frames=SECONDS * 8, width=320, height=180)
    print(*HEADER, sep=" | ")
    with hub_of(large, sharded).running() as hub:
        rehearsals = [
            Rehearsal(name, published, hub, place / "home")
            for name, published in (("smolvlm2-500m", large), ("smolvlm2-2.2b", sharded))
        ]
        for rehearsal in rehearsals:
            rehearsal.pull()
        for rehearsal in rehearsals:
            rehearsal.use(clip, place / "used" / rehearsal.preset)
    with hub_of(large, single).running() as hub:
        rehearsals.append(Rehearsal("smolvlm2-2.2b", single, hub, place / "another home"))
        rehearsals[-1].pull()
        rehearsals[-1].use(clip, place / "used" / "single")
    too_large = [
        f"{each.preset} {step.name}: {step.peak:,} > {allowed:,}"
        for each in rehearsals
        for step, allowed in each.steps
        if step.peak > allowed
    ]
    assert not too_large
