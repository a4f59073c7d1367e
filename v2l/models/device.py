"""The device of a model: which one, the number types that are right and fast on it, and its memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from v2l.errors import ModelError, V2LError, is_out_of_memory
from v2l.io.text import amount, printable
from v2l.models.config import TextConfig

LARGE = 100_000_000
"""Weights in the decoder layers from which the CPU may run a model in bfloat16. That of the 500M (315 million) gains in
every phase on a processor that prefers bfloat16. The time of smaller models is that of operations, not of numbers."""


def run_checkpointed(recompute: bool, function: Callable, *inputs: torch.Tensor | None) -> Any:
    """Call a function. With `recompute`, keep only its inputs for the backward pass, which calls it again: activation
    checkpointing."""
    if not recompute:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing here is random


def choose_device(name: str | torch.device | None) -> torch.device:
    """Return the device of that name; for None, CUDA, MPS or the CPU, the first available. Raises V2LError if the named
    device is not available."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise V2LError(f"the device {printable(name)} is not there; use cpu, or leave it out to choose") from error
    return device


def default_dtype(device: torch.device, config: TextConfig) -> torch.dtype:
    """Return the default number type of a model: bfloat16 on a CUDA device with bfloat16 units, and on a CPU that gains
    by it if the model is large; else float32."""
    if device.type == "cpu":
        half = config.num_hidden_layers * config.layer_products >= LARGE and prefers_bfloat16(cpu_capabilities())
    else:
        half = device.type == "cuda" and has_bfloat16_units(torch.cuda.get_device_capability(device))
    return torch.bfloat16 if half else torch.float32


def has_bfloat16_units(capability: tuple[int, int]) -> bool:
    """Return whether a CUDA device of this compute capability multiplies bfloat16 matrices; older ones emulate it."""
    return capability >= (8, 0)


def leaks_future(device_type: str, dtype: torch.dtype) -> bool:
    """Return whether `is_causal` attention in this number type lets tokens attend to later ones: it does in half
    precision on MPS in several versions of torch. An explicit mask does not."""
    return device_type == "mps" and dtype in (torch.bfloat16, torch.float16)


def cpu_capabilities() -> Mapping[str, object]:
    """Return the name and the instruction sets of the CPU, as torch detects them; empty before torch 2.11."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def prefers_bfloat16(capabilities: Mapping[str, object]) -> bool:
    """Return whether a CPU of these capabilities multiplies bfloat16 matrices faster than float32 ones.

    With AMX they are, and with AVX512-BF16 on AMD: twice as fast from one token to a whole prompt. Intel processors
    without AMX execute the instruction of AVX512-BF16 at a quarter of the rate of a float32 multiply-add, so that a
    video's prompt takes 1.7 times as long in bfloat16 (docs/speed.md).
    """
    is_amd = str(capabilities.get("cpu_name")).startswith("AMD")
    return bool(capabilities.get("amx_bf16") or (is_amd and capabilities.get("avx512_bf16")))


# Memory ------------------------------------------------------------------------------------------------------------

FEWER_FRAMES = "fewer frames (--frames)"
"""The advice where the memory depends on the frames of a video."""
Module = TypeVar("Module", bound=nn.Module)
_ALLOCATION = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]i?B)", re.IGNORECASE)
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of the device, or of the machine and within `ulimit -v` for the CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    if device.type != "cpu" or not found:
        return None
    return min(int(found[1]) * 1024, _within_limit())


def _within_limit() -> int:
    """Return how far the address space of this process may grow on Linux."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = re.search(r"VmSize:\s+(\d+) kB", _read("/proc/self/status"))
    if limit == resource.RLIM_INFINITY or not used:
        return 2**63 - 1
    return max(0, limit - int(used[1]) * 1024)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def failed_allocation(error: BaseException) -> int | None:
    """Return the bytes that could not be allocated, as the error states them; None if it does not."""
    found = _ALLOCATION.search(str(error))
    return int(float(found[1]) * _UNITS[found[2][0].lower()]) if found else None


@contextlib.contextmanager
def memory_errors(
    work: str, device: torch.device, dtype: torch.dtype, needed: int | None = None, fix: str = ""
) -> Iterator[None]:
    """Raise ModelError for a failed allocation in the block, with the size that is needed, the size that is free, and
    what to change.

    work: what needs the memory, the subject of the message
    needed: its bytes; None for those of the failed allocation, in addition to what is in use
    fix: advice that comes before that about device and number type
    """
    free = free_bytes(device) if needed else None  # before the block takes some of it
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        more = failed_allocation(error)
        size = amount(needed) if needed else f"{amount(more)} more" if more else "more memory"
        free = free if needed else free_bytes(device)
        there = "than there is" if free is None else f"and {amount(free)} are free"
        fixes = [fix] if fix else []
        fixes += ["--dtype bfloat16 (half the size)"] if dtype == torch.float32 else []
        fixes += ["another --device" if device.type == "cpu" else "--device cpu"]
        raise ModelError(
            f"out of memory on {device}: {work} needs {size} {there}; use {', '.join(fixes)}, or close other programs"
        ) from error


def move(module: Module, device: torch.device, name: str) -> Module:
    """Move a module to a device. Raises ModelError, with its size, if it does not fit."""
    needed = sum(part.nbytes for part in module.state_dict().values())
    with memory_errors(name, device, torch.float32, needed):
        return module.to(device)
