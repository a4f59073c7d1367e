"""Damaged and hostile files for the readers of untrusted files: `python tests/stress/fuzz.py INPUTS [SEED]`.

Every input is read, or refused with a one-line printable error, within seconds and a few gigabytes, and without further
imports. Mutations follow the formats: bits and blocks of the whole file; values of the header; metadata and tensors,
with a corrected sha256 so that the checks behind it are reached; and the pickle inside its zip.
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
import random
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import small
import torch
from places import DATA
from safetensors.torch import load, save

from v2l.adapters.adapter import Adapter
from v2l.adapters.timeline import PartSource, Timeline, write_timeline
from v2l.cli.describe import describe
from v2l.errors import V2LError
from v2l.io.safetensors_file import canonical_json, content_sha256
from v2l.io.tensors import to_bytes
from v2l.models.checkpoint import load_hypernetwork, save_hypernetwork
from v2l.models.published import read_published

STRANGE = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320),
    *("", "x", "a" * 5000, "\x1b[2J", "[red]", "\ud800", "../../etc", "F64", "BF16", "\N{RIGHT-TO-LEFT OVERRIDE}"),
    *([], {}, [[]], [0, 0], [2**40, 2**40], {"v2l": "{}"}),
)
SLOW = 5.0
"""Limit of CPU seconds for reading a small damaged file, independent of the load of the machine."""
MEMORY = 6 * 2**30


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flip bits, and cut, double, insert or overwrite blocks."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(len(changed)) if changed else 0
        if chance.random() < 0.6:  # headers and indexes are at the ends
            place = chance.choice((place % 600, max(0, len(changed) - 1 - place % 600)))
        length = chance.choice((1, 2, 8, 64, 1000))
        kind = chance.randrange(5)
        if kind == 0 and changed:
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            changed[place:place] = changed[place : place + length]
        elif kind == 3:
            changed[place : place + length] = chance.randbytes(length)
        else:
            del changed[place:]
    return bytes(changed)


def of_json(value: object, chance: random.Random) -> object:
    """Replace, remove or double one value at any depth of a JSON value."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        choice = chance.random()
        if choice < 0.1:
            return {key: kept for key, kept in value.items() if key != name}
        if choice < 0.2:
            return value | {chance.choice(["", "v2l", "x\n", name + "x"]): value[name]}
        return value | {name: of_json(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        choice = chance.random()
        if choice < 0.1:
            return value[:place] + value[place + 1 :]
        if choice < 0.2:
            return value * chance.choice((2, 500))
        return [*value[:place], of_json(value[place], chance), *value[place + 1 :]]
    return chance.choice(STRANGE)


def of_header(data: bytes, chance: random.Random) -> bytes:
    """Change the header of a safetensors file: sizes, shapes, offsets, names."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(of_json(json.loads(data[8 : 8 + length]), chance)).encode("utf-8", "surrogatepass")
    stated = chance.choice((len(header),) * 9 + (2**62,))
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def of_metadata(data: bytes, chance: random.Random) -> bytes:
    """Change the metadata or a tensor of a safetensors file, and seal it with the correct sha256."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["v2l"])
    tensors = load(data)
    if chance.random() < 0.3:
        name = chance.choice(list(tensors))
        shape = [chance.choice((0, 1, 2, 3)) for _ in range(chance.randrange(4))]
        tensors[name] = chance.choice(
            (torch.zeros(shape), torch.full((2, 2), float("nan")), tensors[name].half(), tensors[name][..., :1])
        )
    else:
        metadata = of_json(metadata, chance)
    if isinstance(metadata, dict):
        metadata = {name: value for name, value in metadata.items() if name != "sha256"}
        try:
            metadata["sha256"] = content_sha256(metadata, to_bytes(tensors))
            text = canonical_json(metadata)
        except (ValueError, KeyError):
            text = json.dumps(metadata, default=str)
    else:
        text = json.dumps(metadata)
    return save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, {"v2l": text})


def of_timeline(data: bytes, chance: random.Random) -> bytes:
    """Change the metadata of a timeline, and seal it with the correct sha256; the hashes of its parts stay."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = of_json(json.loads(header["__metadata__"]["v2l"]), chance)
    text = json.dumps(metadata, default=str)
    if isinstance(metadata, dict):
        metadata.pop("sha256", None)
        try:
            sha256 = hashlib.sha256(canonical_json(metadata).encode()).hexdigest()
            text = canonical_json({**metadata, "sha256": sha256})
        except (ValueError, TypeError):
            pass
    header["__metadata__"]["v2l"] = text
    changed = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(changed).to_bytes(8, "little") + changed + data[8 + length :]


def of_pickle(data: bytes, chance: random.Random) -> bytes:
    """Damage the pickle, or another entry of the zip, of a checkpoint."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("data.pkl")]
    name = chance.choice(pickles * 8 + list(entries))
    entries[name] = of_bytes(entries[name], chance)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", chance.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return file.getvalue()


def subjects(folder: Path) -> dict[str, tuple[list[bytes], list[Callable], Callable[[Path], object]]]:
    """Return, by kind of file, intact files, mutations and the reader."""
    adapters = [path.read_bytes() for path in sorted((DATA / "golden").glob("*.safetensors"))]
    model = small.write_model(folder / "model")
    sizes = {"rank": 2, "latent_size": 4, "num_blocks": 1, "num_latents": 2, "num_heads": 2, "num_kv_heads": 1}
    save_hypernetwork(small.small_hypernetwork(model, head_dim=2, **sizes), folder / "h.safetensors")
    hypernetworks = [(folder / "h.safetensors").read_bytes()]
    write_timeline(folder / "t.v2l.safetensors", [PartSource(_golden)] * 3, PartSource(_golden))
    timelines = [(folder / "t.v2l.safetensors").read_bytes()]
    published = [(DATA / "official-a" / "hypernet.pt").read_bytes()]
    sealed = [of_bytes, of_header, of_metadata, of_metadata]
    return {
        "adapter.v2l.safetensors": (adapters, sealed, Adapter.load),
        "hypernetwork.safetensors": (hypernetworks, sealed, load_hypernetwork),
        "timeline.v2l.safetensors": (timelines, [of_bytes, of_header, of_timeline, of_timeline], read_timeline),
        "published.pt": (published, [of_pickle, of_bytes], read_published),
    }


def _golden() -> Adapter:
    """Return an adapter of one segment."""
    found = (Adapter.load(path) for path in sorted((DATA / "golden").glob("*.safetensors")))
    return next(adapter for adapter in found if len(adapter.description.segments) == 1)


def read_timeline(path: Path) -> None:
    """Open a timeline, read every part, and list it as `v2l info` does."""
    timeline = Timeline.load(path)
    timeline.check()
    describe(path)


def read(path: Path, reader: Callable[[Path], object]) -> str:
    """Return "read" or "refused". Raises AssertionError for any other outcome, or if it took too long."""
    start, known = time.process_time(), set(sys.modules)
    try:
        reader(path)
        outcome = "read"
    except V2LError as error:
        assert str(error).isprintable() and len(str(error)) < 1500, error
        outcome = "refused"
    assert time.process_time() - start < SLOW, f"{time.process_time() - start:.1f} s"
    assert not {name for name in set(sys.modules) - known if not name.startswith(("torch", "numpy", "encodings"))}
    return outcome


def main(inputs: int, seed: int) -> dict[str, int | float]:
    """Return counts by kind and outcome, the longest read in seconds and the peak memory in MB."""
    counts: collections.Counter = collections.Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as place:
        kinds = subjects(Path(place))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for number in range(inputs):
            chance = random.Random(f"{seed} {number}")
            # checkpoints are slow to pack
            kind = chance.choices(list(kinds), (4, 4, 4, 1))[0]
            sound, mutations, reader = kinds[kind]
            mutation = chance.choice(mutations)
            path = Path(place) / kind
            path.write_bytes(mutation(chance.choice(sound), chance))
            start = time.perf_counter()
            try:
                counts[f"{kind} {read(path, reader)}"] += 1
            except BaseException:
                print(f"input {number} of seed {seed}: {kind} after {mutation.__name__}", file=sys.stderr)
                raise
            slowest = max(slowest, time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"inputs": inputs, **dict(sorted(counts.items())), "slowest s": round(slowest, 3), "peak MB": round(peak)}


if __name__ == "__main__":
    print(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
