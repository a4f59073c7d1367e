"""Export adapters for other engines: a PEFT folder, or a GGUF file for llama.cpp, and the command that serves each.

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
from v2l.errors import V2LError, missing_extra
from v2l.io.files import unwritable, write_atomically, write_folder
from v2l.io.text import printable
from v2l.models.presets import EMBEDDED, RELEASE

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""


def export_peft(adapter: Adapter, folder: Path, overwrite: bool = False) -> None:
    """Write an adapter as a PEFT folder, atomically.

    overwrite: replace an exported folder; other folders are never replaced

    Raises V2LError if the folder exists and may not be replaced, or cannot be written.
    """
    if os.path.lexists(folder) and not (overwrite and _is_export(folder)):
        raise V2LError(
            f"{printable(folder)} already exists"
            + (
                "; --overwrite replaces it"
                if _is_export(folder)
                else " and is not an exported adapter; name another folder"
            )
        )
    config = json.dumps(peft_config(adapter), indent=2) + "\n"
    weights = save(adapter.named_tensors(), metadata={"format": "pt"})
    write_folder(folder, {"adapter_model.safetensors": weights, "adapter_config.json": config.encode()})


def _is_export(folder: Path) -> bool:
    """Return whether the folder contains exactly the files that `export_peft` writes."""
    names = {"adapter_config.json", "adapter_model.safetensors"}
    return folder.is_dir() and not folder.is_symlink() and {path.name for path in folder.iterdir()} == names


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """Return the content of adapter_config.json. The multiplier is folded into the factors, so alpha equals the rank,
    which gives a scale of 1 in every engine."""
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
    """Write an adapter as a GGUF file in float32, atomically. Raises V2LError if the `gguf` package is not installed or
    the file cannot be written."""
    try:
        from gguf import GGUFReader, GGUFWriter
    except ImportError as error:
        raise missing_extra("GGUF", "gguf", "export") from error
    tensors = {}
    for layer, (a, b) in enumerate(zip(adapter.a.float(), adapter.b.float(), strict=True)):
        tensors[f"blk.{layer}.ffn_down.weight.lora_a"] = a.contiguous().numpy()  # (R, d_in)
        tensors[f"blk.{layer}.ffn_down.weight.lora_b"] = b.T.contiguous().numpy()  # (d_out, R)
    try:
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "adapter.gguf"
            writer = GGUFWriter(written, "llama")
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
            data = written.read_bytes()
            try:  # read it back: numpy does not report a disk that becomes full at the end
                complete = all(np.array_equal(each.data, tensors[each.name]) for each in GGUFReader(written).tensors)
            except (ValueError, IndexError):
                complete = False
            if not complete:
                raise OSError(f"only a part of it could be written into {printable(folder)}")
    except OSError as error:
        raise unwritable(path, error) from error
    write_atomically(path, data)


def smallest_vllm_rank(rank: int) -> int:
    """Return the smallest --max-lora-rank of vLLM for an adapter of that rank; it sets the size of vLLM's buffers."""
    return next(allowed for allowed in VLLM_RANKS if allowed >= rank)


def serving_command(adapter: Adapter, output: Path, form: str) -> str:
    """Return the command line that serves an exported adapter.

    output: the exported file or folder; form: gguf or peft
    """
    base = adapter.description.base_model.id
    name, base = shlex.quote(output.stem), shlex.quote(str(EMBEDDED) if base == RELEASE else base)
    place = shlex.quote(str(output))
    if form == "gguf":
        return f"llama-server -m BASE.gguf --lora {place}"
    rank = smallest_vllm_rank(adapter.rank)
    return f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={place}"
