"""Describe the machine, measure its memory, and estimate the memory and work of a prompt."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch

from v2l.models.smolvlm import FrozenVLM


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Return the name of the device and everything else that a time depends on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
        name = found[1] if found else platform.processor() or platform.machine()
    return {
        "device": device.type,
        "name": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class PeakMemory:
    """The peak memory since construction: of the allocator on CUDA, of the process (resident set) on Linux, and
    unknown elsewhere."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # reset the peak
            except OSError:
                self.device = torch.device("meta")

    def bytes(self) -> int | None:
        """Return the peak so far, None if it is unknown."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        found = re.search(r"VmHWM:\s+(\d+) kB", _read("/proc/self/status")) if self.device.type == "cpu" else None
        return int(found[1]) * 1024 if found else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def prefill_bytes(vlm: FrozenVLM, tokens: int) -> int:
    """Return the peak memory of prefilling `tokens` tokens, without the weights: the KV cache, one more copy of it for
    the layer in progress, and one layer's activations."""
    text = vlm.folder.config.text_config
    activations = tokens * (6 * text.hidden_size + 3 * text.intermediate_size) * vlm.dtype.itemsize
    return vlm.kv_bytes(tokens) * (text.num_hidden_layers + 1) // text.num_hidden_layers + activations


def prefill_work(vlm: FrozenVLM, tokens: int) -> float:
    """Return the multiply-adds of prefilling a prompt: linear layers, and attention, which is quadratic in `tokens`."""
    text = vlm.folder.config.text_config
    return text.num_hidden_layers * tokens * (text.layer_products + text.num_attention_heads * text.head_dim * tokens)


def vision_work(vlm: FrozenVLM, images: int) -> float:
    """Return the multiply-adds of encoding `images` images with the vision tower."""
    vision = vlm.folder.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    linear = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    return images * vision.num_hidden_layers * patches * (linear + 2 * vision.hidden_size * patches)
