"""One of several machines' share of the videos: every video belongs to one shard, whatever else is there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from v2l.errors import UsageError
from v2l.inference.targets import Nothing, Target
from v2l.io.files import printable

TASK, COUNT = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"
FIRST, STEP = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"


@dataclass(frozen=True)
class Shard:
    """Number `index`, 1 to `count`, of that many."""

    index: int
    count: int

    def of(self, targets: Sequence[Target | Nothing]) -> list[Target | Nothing]:
        """Those that belong to it, by the name of each as it was given: the same command on every machine parts them
        alike, and one more or less video moves no other."""
        return [target for target in targets if self._number(target) == self.index]

    def _number(self, target: Target | Nothing) -> int:
        name = os.fsencode(target.video if isinstance(target, Target) else target.given)
        return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % self.count + 1


def read_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """`2/8`, or `auto` for what a Slurm job array says. Raises UsageError."""
    if text == "auto":
        try:
            task, count = int(environment[TASK]), int(environment[COUNT])
            first, step = int(environment.get(FIRST, "0")), int(environment.get(STEP, "1"))
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"--shard auto reads {TASK} and {COUNT}, which a Slurm job array sets; outside one say --shard 1/4"
            ) from error
        index = (task - first) // max(step, 1) + 1
        if not 1 <= index <= count:
            raise UsageError(f"{TASK}={task} lies outside the {count} tasks from {FIRST}={first} on; say --shard I/N")
        return Shard(index, count)
    index, slash, count = text.partition("/")
    if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise UsageError(f"--shard {printable(text)}: write INDEX/COUNT, the first of four as 1/4, or auto")
    if not 1 <= int(index) <= int(count):
        raise UsageError(f"--shard {printable(text)}: there are shards 1 to {int(count)}")
    return Shard(int(index), int(count))
