"""Shared by every training loop: data loading, mixed precision, state, processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from v2l.errors import missing_extra
from v2l.io.files import append_line, atomically
from v2l.models.device import cpu_capabilities, has_bfloat16_units


class Stateful(Protocol):
    """A part of a training's state: a module, an optimizer, a schedule."""

    def state_dict(self) -> Any:
        """The state, as `torch.save` stores it."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restore the state."""


class Steps(Dataset):
    """A data set of batches, each made from its step's number alone, in this process or in a worker.

    Subclasses implement `batch(step)`, which must return the same batch for the same step in any process.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, step: int) -> Any:
        return self.batch(step)

    def batch(self, step: int) -> Any:
        """Everything that training needs for this step."""
        raise NotImplementedError


def prefetch(batches: Steps, first: int, workers: int) -> Iterator[Any]:
    """Iterate over the batches from step `first` on, in order, prepared by `workers` spawned processes (0: here)."""
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


def mixed_precision(device: torch.device) -> AbstractContextManager:
    """A context in which matrix products are computed in bfloat16 while weights stay float32.

    It does nothing on a device without bfloat16 matrix units, where bfloat16 is no faster.
    """
    if device.type == "cuda":
        gains = has_bfloat16_units(torch.cuda.get_device_capability(device))
    else:
        gains = device.type == "cpu" and bool(cpu_capabilities().get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16) if gains else nullcontext()


# State -------------------------------------------------------------------------------------------------------------


def save_state(parts: Mapping[str, Stateful], step: int, path: Path) -> None:
    """Write the state of the named parts and the step's number to a file, atomically."""
    with atomically(path) as file:
        torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, file)


def load_state(path: Path) -> dict[str, Any]:
    """Read a file of `save_state`. No code in it is executed."""
    return torch.load(path, weights_only=True, map_location="cpu")


def restore(parts: Mapping[str, Stateful], path: Path) -> int:
    """Restore the parts from a file of `save_state` and return its step; 0 if there is no file."""
    if not path.exists():
        return 0
    state = load_state(path)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


def append_metrics(path: Path, values: Mapping[str, object]) -> None:
    """Append a line to a JSONL file of metrics."""
    append_line(path, json.dumps(dict(values)))


# Processes ---------------------------------------------------------------------------------------------------------


class Processes:
    """The processes that train together, as `accelerate launch` starts them, and the rank of this one.

    Gradients are summed over all processes, so that their number affects only the speed.
    """

    def __init__(self) -> None:
        self.accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import Accelerator
            except ImportError as error:
                raise missing_extra("training in several processes", "accelerate", "train") from error
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
        """The device assigned to this process; None if it may choose one."""
        return self.accelerator.device if self.accelerator else None

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """A block that the first process executes before the others."""
        with self.accelerator.main_process_first() if self.accelerator else nullcontext():
            yield

    def sum(self, value: float) -> float:
        """Sum a number over all processes."""
        if self.accelerator is None:
            return value
        number = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(number, "sum").item()

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes. A missing gradient counts as zero."""
        if self.accelerator is None:
            return
        parameters = list(parameters)
        flat = torch.cat([torch.zeros_like(p).ravel() if p.grad is None else p.grad.ravel() for p in parameters])
        summed = self.accelerator.reduce(flat, "sum").split([p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, summed, strict=True):
            parameter.grad = gradient.view_as(parameter)
