"""What every training here shares: the learning rate's course, mixed precision, and checkpoints that are whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from v2l.errors import V2LError
from v2l.io.files import append_line, atomically


class Steps(Dataset):
    """Makes the batch of a step from the step's number alone, in this process or in a worker.

    Subclasses say how in `batch(step)`; the same step must give the same batch in any process.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, step: int) -> object:
        return self.batch(step)

    def batch(self, step: int) -> object:
        """Everything that training needs of that step."""
        raise NotImplementedError


def prepared(batches: Steps, first: int, workers: int) -> Iterator[object]:
    """The batches from step `first` on, in order, made ahead by that many spawned processes (0: here)."""
    context = "spawn" if workers else None
    order = range(first, len(batches))
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=order,
            num_workers=workers,
            multiprocessing_context=context,
            worker_init_fn=_one_thread,
        )
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def warm_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate: linear from zero over `warmup` steps, then along a cosine to zero at `steps`."""

    def share(step: int) -> float:
        done = (step - warmup) / max(1, steps - warmup)
        return (step + 1) / warmup if done < 0 else 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def mixed(device: torch.device) -> AbstractContextManager:
    """Inside, matrix products are made in bfloat16 while weights stay float32, on a GPU and on a CPU that has units for
    them; others gain nothing by it."""
    gains = device.type == "cuda" or (device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False))
    return torch.autocast(device.type, torch.bfloat16) if gains else nullcontext()


def keep(parts: Mapping[str, object], step: int, path: Path) -> None:
    """Writes a checkpoint, whole or not at all.

    parts: name to whatever has `state_dict` and `load_state_dict`
    """
    with atomically(path) as file:
        torch.save({"step": step, **{name: each.state_dict() for name, each in parts.items()}}, file)


def kept_in(path: Path) -> dict:
    """What `keep` wrote there, by name; nothing in it is executed."""
    return torch.load(path, weights_only=True, map_location="cpu")


def restore(parts: Mapping[str, object], path: Path) -> int:
    """Puts back the last checkpoint, if there is one; the step to go on with."""
    if not path.exists():
        return 0
    kept = kept_in(path)
    for name, each in parts.items():
        each.load_state_dict(kept[name])
    return kept["step"]


def record(path: Path, values: Mapping[str, object]) -> None:
    """Appends a line to a metrics file."""
    append_line(path, json.dumps(dict(values)))


class Processes:
    """Which of the processes that train together this is. Several are what `accelerate launch` starts; the gradients
    of all are added up, so that their number changes nothing but the time."""

    def __init__(self) -> None:
        self.accelerator = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import Accelerator
            except ImportError as error:
                raise V2LError("training in several processes needs accelerate; pip install 'v2l[train]'") from error
            self.accelerator = Accelerator(cpu=not torch.cuda.is_available())

    @property
    def index(self) -> int:
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def count(self) -> int:
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def device(self) -> torch.device | None:
        """The device of this process; None where it may choose."""
        return self.accelerator.device if self.accelerator else None

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """A block that the first process goes through before the others."""
        with self.accelerator.main_process_first() if self.accelerator else nullcontext():
            yield

    def sum(self, value: float) -> float:
        """The sum of one number over all processes."""
        if self.accelerator is None:
            return value
        number = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(number, "sum").item()

    def add_up(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its sum over all processes; one that a process lacks counts as zero there."""
        if self.accelerator is None:
            return
        parameters = list(parameters)
        flat = torch.cat([torch.zeros_like(p).ravel() if p.grad is None else p.grad.ravel() for p in parameters])
        summed = self.accelerator.reduce(flat, "sum").split([p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, summed, strict=True):
            parameter.grad = gradient.view_as(parameter)
