"""kill -9 at random moments of a folder encode: `python tests/stress/kills.py KILLS [SEED]`.

A kill comes a random moment after a random number of adapters was written, so that it hits every stage on any machine.
After every kill, all adapters are complete. Finally the same command completes; its outputs equal those of an
undisturbed run to the byte, and no other file is left.
"""

from __future__ import annotations

import collections
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
from v2l.adapters.timeline_description import Segmentation
from v2l.cli import console
from v2l.cli.encode import encode_all
from v2l.inference import batch
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import Destination
from v2l.video import client
from v2l.video.sampling import Reading

VIDEOS = 6
ROUND = 12
"""Kills after which the command is run to its end and all outputs are removed: enough to hit every stage."""
STEP = 3
"""Largest number of adapters that a run may add before its kill."""
POLL = 0.002
"""Seconds between two checks of a running process."""


def encode(folder: Path, model: Path) -> bool:
    """Do what `v2l encode FOLDER --segments 3 --split` does: three adapters per video."""
    options = batch.EncodeOptions(Reading(), Segmentation(segments=3), split=True)
    choice = ModelLoader(str(model), "option", device="cpu")
    return encode_all([folder], Destination(), options, choice, console.Display(quiet=True))


def in_child(work: Callable[[], object], is_due: Callable[[], bool] = lambda: False, delay: float = 0.0) -> int:
    """Run `work` in a child process and return its exit code.

    is_due: the child is killed `delay` seconds after this is true for the first time, unless it has ended
    """
    child = os.fork()  # no thread has been started in this process
    if child == 0:
        code = 1
        try:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
            code = 0 if work() else 1
        finally:
            client.shared_worker().close()
            os._exit(code)
    due_since = None
    while due_since is None or time.perf_counter() < due_since + delay:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if due_since is None and is_due():
            due_since = time.perf_counter()
        time.sleep(POLL)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def adapters_in(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".v2l.safetensors") and not name.startswith(".")]


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".mp4"}


def main(kills: int, seed: int) -> collections.Counter:
    """Return counts of kills, of files found after them, and of runs that ended. Raises AssertionError."""
    torch.set_num_threads(1)  # a thread pool does not survive a fork
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
        per_adapter, expected = (time.perf_counter() - start) / (3 * VIDEOS), outputs(undisturbed)
        assert len(expected) == 3 * VIDEOS
        while counts["kills"] < kills:
            target = len(adapters_in(folder)) + chance.randint(0, STEP)
            code = in_child(
                lambda: encode(folder, model),
                lambda target=target: len(adapters_in(folder)) >= target,
                chance.uniform(0, 2 * per_adapter),
            )
            if code == -signal.SIGKILL:
                counts["kills"] += 1
                for name in outputs(folder):
                    if name.endswith(".v2l.safetensors"):
                        assert Adapter.load(folder / name).sha256()  # complete
                        counts["adapters found whole"] += 1
                    else:
                        counts["temporary files left"] += 1
                if counts["kills"] % ROUND and counts["kills"] < kills:
                    continue
                code = in_child(lambda: encode(folder, model))
                counts["finished runs, equal to the byte"] += 1
            else:
                counts["runs that ended before their kill, equal to the byte"] += 1
            assert code == 0
            assert outputs(folder) == expected
            for name in outputs(folder):
                (folder / name).unlink()
    return counts


if __name__ == "__main__":
    print(dict(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
