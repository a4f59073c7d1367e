"""An adapter as other engines read it: a PEFT folder, or an adapter GGUF for llama.cpp; and how each is served.

Formats: PEFT's adapter_config.json and adapter_model.safetensors, whose tensor names are those of the served class
SmolVLMForConditionalGeneration; GGUF as llama.cpp's adapter loader expects it (general.type adapter, tensors
`blk.N.ffn_down.weight.lora_a` and `.lora_b`).
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from v2l.adapters.adapter import Adapter
from v2l.errors import UsageError, V2LError
from v2l.io.files import unwritable, write_atomically, write_folder
from v2l.io.text import printable
from v2l.models.presets import EMBEDDED, RELEASE

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""


def export_peft(adapter: Adapter, folder: Path, overwrite: bool = False) -> None:
    """Writes the folder, whole or not at all. Raises V2LError where something else is there or it cannot be
    written."""
    if os.path.lexists(folder) and not (overwrite and _is_export(folder)):
        raise V2LError(
            f"{printable(folder)} is there already"
            + (
                "; --overwrite replaces it"
                if _is_export(folder)
                else " and is no exported adapter; name another folder"
            )
        )
    config = json.dumps(peft_config(adapter), indent=2) + "\n"
    weights = save(adapter.named_tensors(), metadata={"format": "pt"})
    write_folder(folder, {"adapter_model.safetensors": weights, "adapter_config.json": config.encode()})


def _is_export(folder: Path) -> bool:
    """Whether all that is there is what `export_peft` writes."""
    names = {"adapter_config.json", "adapter_model.safetensors"}
    return folder.is_dir() and not folder.is_symlink() and {path.name for path in folder.iterdir()} == names


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """adapter_config.json. The multiplier stands in the factors, so alpha equals the rank and every engine's scale
    is 1."""
    base = adapter.description.base_model
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.id,
        "revision": base.revision,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "target_modules": ["down_proj"],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def export_gguf(adapter: Adapter, path: Path) -> None:
    """Writes the file, whole or not at all, in float32. Raises UsageError where the `gguf` package is not installed,
    V2LError where the file cannot be written."""
    try:
        from gguf import GGUFReader, GGUFWriter
    except ImportError as error:
        raise UsageError("GGUF is written by the gguf package, which is not here: pip install 'v2l[export]'") from error
    tensors = {}
    for layer, (a, b) in enumerate(zip(adapter.a.float(), adapter.b.float(), strict=True)):
        tensors[f"blk.{layer}.ffn_down.weight.lora_a"] = a.contiguous().numpy()  # (R, d_in)
        tensors[f"blk.{layer}.ffn_down.weight.lora_b"] = b.T.contiguous().numpy()  # (d_out, R)
    try:
        with tempfile.TemporaryDirectory() as place:
            made = Path(place) / "adapter.gguf"
            writer = GGUFWriter(made, "llama")
            writer.add_string("general.type", "adapter")
            writer.add_string("general.name", printable(adapter.description.segments[0].source.name))
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", float(adapter.rank))
            for name, tensor in tensors.items():
                writer.add_tensor(name, tensor)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            data = made.read_bytes()
            try:  # numpy passes over a disk that is full at the end
                whole = all(np.array_equal(each.data, tensors[each.name]) for each in GGUFReader(made).tensors)
            except (ValueError, IndexError):
                whole = False
            if not whole:
                raise OSError(f"only a part of it fitted into {printable(place)}")
    except OSError as error:
        raise unwritable(path, error) from error
    write_atomically(path, data)


def smallest_vllm_rank(rank: int) -> int:
    """The smallest --max-lora-rank that vLLM allows for an adapter of that rank: buffers are as large as it says."""
    return next(allowed for allowed in VLLM_RANKS if allowed >= rank)


def serving_command(adapter: Adapter, output: Path, form: str) -> str:
    """The command line that serves what was exported."""
    base = adapter.description.base_model.id
    name, base = shlex.quote(output.stem), shlex.quote(str(EMBEDDED) if base == RELEASE else base)
    place = shlex.quote(str(output))
    if form == "gguf":
        return f"llama-server -m BASE.gguf --lora {place}"
    rank = smallest_vllm_rank(adapter.rank)
    return f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={place}"
