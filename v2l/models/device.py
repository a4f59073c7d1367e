"""The device of a model, and the number types that are right and fast on it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.models.config import TextConfig

LARGE = 100_000_000
"""Weights in the decoder layers from which the CPU may run a model in bfloat16. That of the 500M (315 million) gains in
every phase on a processor that prefers bfloat16. The time of smaller models is that of operations, not of numbers."""


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
