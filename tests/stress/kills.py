"""kill -9 at random moments of a folder encode: `python tests/stress/kills.py KILLS [SEED]`.

After every kill nothing half-written stands under an adapter's name; then the same command finishes, and the outputs
are those of an undisturbed run to the byte, with nothing left beside them.
"""

from __future__ import annotations

import collections
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import small
import torch

from v2l.adapters.adapter import Adapter
from v2l.cli import console
from v2l.cli.encode import encode_all
from v2l.inference import batch
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import Destination
from v2l.video import decoding
from v2l.video.sampling import Reading

VIDEOS = 6
ROUND = 12
"""Kills after which the command is let finish and everything begins anew: enough to meet every stage."""
LOOK = 0.002
"""Seconds between looks whether a process has ended."""


def encode(folder: Path, model: Path) -> bool:
    """What `v2l encode FOLDER --segments 2 --compose` does: three adapters a video."""
    options = batch.EncodeOptions(Reading(), segments=2, compose=True)
    choice = ModelLoader(str(model), "option", device="cpu")
    return encode_all([folder], Destination(), options, choice, console.Display(quiet=True))


def in_child(work: Callable[[], object], within: float = math.inf) -> int:
    """Runs it in a process of its own, killed if it has not ended within those seconds; how it ended."""
    child = os.fork()  # no thread has been started in this process
    if child == 0:
        code = 1
        try:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
            code = 0 if work() else 1
        finally:
            decoding.the_worker().close()
            os._exit(code)
    late = time.perf_counter() + within
    while time.perf_counter() < late:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(LOOK)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".mp4"}


def main(kills: int, seed: int) -> collections.Counter:
    """Counts of kills, of what was found after them, and of runs that were let finish or ended before their kill.
    Raises AssertionError."""
    torch.set_num_threads(1)  # a pool of threads would not live on in the children
    chance, counts = random.Random(seed), collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        model, folder = small.write_model(Path(place) / "model"), Path(place) / "talks"
        small.write_hypernetwork(model)
        folder.mkdir()
        for number in range(VIDEOS):
            small.write_video(folder / f"{number}.mp4", frames=24 + 8 * number, seed=number)
        undisturbed = Path(shutil.copytree(folder, Path(place) / "undisturbed"))
        start = time.perf_counter()
        assert in_child(lambda: encode(undisturbed, model)) == 0
        whole, expected = time.perf_counter() - start, outputs(undisturbed)
        assert len(expected) == 3 * VIDEOS
        while counts["kills"] < kills:
            anew, start = not outputs(folder), time.perf_counter()
            code = in_child(lambda: encode(folder, model), chance.uniform(0, whole))
            if code == -signal.SIGKILL:
                counts["kills"] += 1
                for name in outputs(folder):
                    if name.endswith(".v2l.safetensors"):
                        assert Adapter.load(folder / name).sha256()  # nothing half-written
                        counts["adapters found whole"] += 1
                    else:
                        counts["temporary files left"] += 1
                if counts["kills"] % ROUND and counts["kills"] < kills:
                    continue
                code = in_child(lambda: encode(folder, model))
                counts["finished runs, equal to the byte"] += 1
            else:
                counts["runs that ended before their kill, equal to the byte"] += 1
                if anew:
                    whole = min(whole, time.perf_counter() - start)  # the machine is not as busy any more
            assert code == 0
            assert outputs(folder) == expected
            for name in outputs(folder):
                (folder / name).unlink()
    return counts


if __name__ == "__main__":
    print(dict(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
