"""Containers that share a folder and a host name: `python tests/stress/shared_folder.py WRITES [CONTAINERS [SEED]]`.

Every process has its own process id namespace, if `unshare` is permitted. In each container, one process after the
other sweeps the folder and writes a file and a folder into it, twice each; a random third of the processes is killed.
Every other write must succeed and be complete. At the end, one more write leaves no temporary file.
"""

from __future__ import annotations

import collections
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from v2l.io.files import write_atomically

WRITE = """
import sys
from pathlib import Path
from v2l.io.files import atomically, write_folder
place, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
for size in (1, 2):
    with atomically(place / f"{name}.bin") as file:
        for _ in range(20):
            file.write(b"x" * size * 50_000)
            file.flush()
    write_folder(place / f"{name}.peft", {part: b"y" * size * 100_000 for part in ("a", "b", "c")})
"""
WHOLE = {".bin": 2_000_000, ".peft": 3 * 200_000}


def namespace() -> list[str]:
    """Return the prefix of a command that runs it in a new process id namespace; empty if not permitted."""
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []


def write_often(place: Path, container: int, writes: int, chance: random.Random) -> collections.Counter:
    """Run the writers of one container, and count the outcomes."""
    counts: collections.Counter = collections.Counter()
    for number in range(writes):
        name = f"{container}-{number}"
        command = [*namespace(), sys.executable, "-c", WRITE, str(place), name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.readline()
        if chance.random() < 1 / 3:
            time.sleep(chance.uniform(0, 0.05))
            process.kill()
        _, stderr = process.communicate()
        if process.returncode == -signal.SIGKILL:
            counts["killed"] += 1
            counts["temporary files left"] += len(list(place.glob(f".{name}.*.part")))
            continue
        assert process.returncode == 0, stderr
        for suffix, size in WHOLE.items():
            path = place / f"{name}{suffix}"
            found = [path] if path.is_file() else list(path.iterdir())
            assert sum(each.stat().st_size for each in found) == size, path
        counts["written completely"] += 1
    return counts


def main(writes: int, containers: int, seed: int) -> collections.Counter:
    """Return counts of killed and completed writers, and of temporary files. Raises AssertionError."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(containers) as pool:
        place = Path(folder)
        futures = [
            pool.submit(write_often, place, number, writes, random.Random(seed * 1000 + number))
            for number in range(containers)
        ]
        counts = sum((each.result() for each in futures), collections.Counter())
        write_atomically(place / "last.bin", b"last")
        assert not list(place.glob(".*.part"))
    return counts


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    print("namespaces:", bool(namespace()), dict(main(numbers[0], *(numbers[1:] + [4, 0][len(numbers) - 1 :]))))
