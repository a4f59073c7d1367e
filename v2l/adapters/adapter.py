"""The adapter in memory: its factors as torch tensors. `description.py` reads and checks its file."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from v2l.adapters.description import (
    DTYPES,
    MAX_FILE_BYTES,
    PEFT_NAME,
    VERSION,
    AdapterFile,
    Description,
    check_description,
)
from v2l.errors import V2LError
from v2l.io.records import from_json, to_json
from v2l.io.safetensors_file import MAX_HEADER_BYTES, content_sha256
from v2l.io.tensors import dtype_name, to_bytes, to_tensors, write_tensors
from v2l.io.text import printable


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter for `mlp.down_proj` of every decoder layer: a layer's output changes by (x a^T) b.

    a: (L, R, d_in), b: (L, R, d_out), float32 or bfloat16, `lora_alpha` folded into b
    checked_ns: time in nanoseconds at which the video was last known to be the described one; None if unknown. It is
        the modification time of the file, not part of its content; staleness.py compares it with the video's times
    """

    a: torch.Tensor
    b: torch.Tensor
    description: Description
    checked_ns: int | None = None

    def __post_init__(self) -> None:
        known = self.a.dtype == self.b.dtype and dtype_name(self.a.dtype) in DTYPES
        if not known or self.a.shape[:2] != self.b.shape[:2]:
            raise V2LError(
                f"factors of shapes {tuple(self.a.shape)} and {tuple(self.b.shape)} in {self.a.dtype} and "
                f"{self.b.dtype} are not an adapter; both must be (layers, ranks, width), in float32 or bfloat16"
            )

    @property
    def rank(self) -> int:
        """Total rank R, the learned bias included."""
        return self.a.shape[1]

    def bias_alone(self) -> Adapter:
        """Return a copy with the generated ranks set to zero: the part that all adapters of the hypernetwork share."""
        b = self.b.clone()
        b[:, : self.rank - self.description.bias_rank] = 0
        return replace(self, b=b)

    def sha256(self) -> str:
        """Return the sha256 of metadata and tensors, which the file also states."""
        return content_sha256(self._metadata(), to_bytes(self.named_tensors()))

    def save(self, path: str | os.PathLike) -> None:
        """Write the adapter file, atomically. The same adapter gives the same bytes. Raises V2LError if it cannot be
        written, or if `load` would refuse it."""
        try:
            check_description(from_json(Description, to_json(self.description), "metadata"))
            if not (torch.isfinite(self.a).all() and torch.isfinite(self.b).all()):
                raise ValueError("its factors are not all finite")
            if self.a.nbytes + self.b.nbytes + MAX_HEADER_BYTES > MAX_FILE_BYTES:
                raise ValueError(f"it would have more than {MAX_FILE_BYTES:,} bytes")
        except ValueError as error:
            raise V2LError(
                f"the adapter {printable(path)} was not written, v2l could not read it again: {printable(error)}"
            ) from error
        write_tensors(path, self.named_tensors(), self._metadata(), self.checked_ns)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Adapter:
        """Read an adapter file onto the CPU. Raises V2LError if it is missing, damaged, of another version, or does not
        conform to version 1."""
        return cls.from_file(AdapterFile.read(path))

    @classmethod
    def from_file(cls, file: AdapterFile) -> Adapter:
        """Return the adapter of a file that was read; it does not share the file's memory."""
        tensors = to_tensors(file.tensors)
        a = [tensors[PEFT_NAME.format(layer=layer, factor="A")] for layer in range(file.layers)]
        b = [tensors[PEFT_NAME.format(layer=layer, factor="B")].T for layer in range(file.layers)]
        return cls(torch.stack(a), torch.stack(b), file.description, file.checked_ns)

    def _metadata(self) -> dict:
        return {
            "format": "v2l-adapter",
            "version": VERSION,
            "dtype": dtype_name(self.a.dtype),
            **to_json(self.description),
        }

    def named_tensors(self) -> dict[str, torch.Tensor]:
        """Return A, (R, d_in), and B, (d_out, R), of every layer under their PEFT names, contiguous."""
        named = {}
        for layer in range(len(self.a)):
            named[PEFT_NAME.format(layer=layer, factor="A")] = self.a[layer].contiguous()
            named[PEFT_NAME.format(layer=layer, factor="B")] = self.b[layer].T.contiguous()
        return named
