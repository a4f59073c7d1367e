"""Puts a trained frozen model and its hypernetwork where the package keeps the embedded model, in half precision.

`python -m v2l.tiny.recipe.release MODEL HYPERNETWORK [FOLDER]` after `v2l train --model MODEL`; with `tiny` for MODEL, the
frozen model that is there stays, and its adapters stay valid. With FOLDER they are put there instead.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from v2l.errors import V2LError, errors_in_one_line
from v2l.io.safetensors_file import (
    write_tensors,
)
from v2l.models.checkpoint import FILE_NAME, file_metadata, load_hypernetwork
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.presets import EMBEDDED, find_model
from v2l.tiny.recipe.model import few_bits


def release(model: Path | str, hypernetwork: Path, folder: Path = EMBEDDED) -> None:
    """Writes `folder` anew, but for a model that is there already. Raises V2LError where the two do not belong together
    or are no model."""
    trained, base = load_hypernetwork(hypernetwork, device="cpu"), find_model(model)
    if trained.provenance.base_fingerprint != base.fingerprint():
        raise V2LError(f"{trained.provenance.id} was not trained for the model in {model}; name the one it was")
    if base.path.resolve() != folder.resolve():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base.path, folder, ignore=shutil.ignore_patterns(FILE_NAME))
    save_half(trained, folder / FILE_NAME)


def save_half(hypernetwork: Hypernetwork, path: str | os.PathLike) -> None:
    """Writes its weights rounded by `few_bits`, in half the bytes: another hypernetwork, with a sha256 of its own. Read
    back it computes in float32 like any other."""
    halves = {name: few_bits(tensor) for name, tensor in hypernetwork.state_dict().items()}
    write_tensors(path, halves, file_metadata(hypernetwork.config, hypernetwork.provenance))


if __name__ == "__main__":
    with errors_in_one_line():
        release(sys.argv[1], *map(Path, sys.argv[2:]))
