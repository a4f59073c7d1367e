"""Release a trained frozen model and its hypernetwork as the embedded model, in half precision.

`python -m v2l.tiny.recipe.release MODEL HYPERNETWORK [FOLDER]` after `v2l train --model MODEL`. With `tiny` as MODEL
the embedded frozen model stays, and adapters made for it stay valid. By default FOLDER is the package's own.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from v2l.errors import V2LError, errors_in_one_line
from v2l.io.tensors import write_tensors
from v2l.models.checkpoint import load_hypernetwork
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import FILE_NAME, file_metadata
from v2l.models.presets import EMBEDDED, find_model
from v2l.tiny.recipe.model import few_bits


def release(model: Path | str, hypernetwork: Path, folder: Path = EMBEDDED) -> None:
    """Write both into `folder`, replacing its content unless the model is already there.

    Raises V2LError if one of them cannot be loaded or the hypernetwork was trained for another model.
    """
    trained, base = load_hypernetwork(hypernetwork, device="cpu"), find_model(model)
    assert trained.provenance is not None  # always set by load_hypernetwork
    if trained.provenance.base_fingerprint != base.fingerprint:
        raise V2LError(f"{trained.provenance.id} was not trained for the model in {model}; pass the one it was")
    if base.path.resolve() != folder.resolve():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base.path, folder, ignore=shutil.ignore_patterns(FILE_NAME))
    save_half(trained, folder / FILE_NAME)


def save_half(hypernetwork: Hypernetwork, path: str | os.PathLike) -> None:
    """Save the weights rounded by `few_bits`, in float16.

    The result is a different hypernetwork with its own sha256. Loading converts it to float32 as usual.
    """
    if hypernetwork.provenance is None:
        raise V2LError("this hypernetwork has no provenance; set one with with_provenance() before saving it")
    halves = {name: few_bits(tensor) for name, tensor in hypernetwork.state_dict().items()}
    write_tensors(path, halves, file_metadata(hypernetwork.config, hypernetwork.provenance))


if __name__ == "__main__":
    with errors_in_one_line():
        release(sys.argv[1], *map(Path, sys.argv[2:]))
