"""`v2l encode` as a stage of Ray Data: a class for `map_batches` that loads one model per worker.

This module does not import Ray. Ray's workers import it: run `pip install '.[ray]'` in a checkout on
every machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from v2l.errors import V2LError
from v2l.inference.batch import EncodeOptions, Outcome, Watch, encode_targets
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import Destination, Target, find_targets
from v2l.io.text import printable
from v2l.video.sampling import Reading


def rows(
    inputs: Sequence[str | os.PathLike],
    output_dir: str | os.PathLike | None = None,
    reading: Reading | None = None,
    recursive: bool = False,
) -> list[dict[str, str]]:
    """Return a row for every video in files and folders, with the path of its adapter: beside the video, or in
    `output_dir` as for `v2l encode --output-dir`. Paths are absolute, since workers run in other directories.

    reading: that of the `EncodeOptions`; its start and end become part of the names
    Raises V2LError if an input contains no video or a folder cannot be listed, and UsageError if two videos would be
    written to one adapter, both before anything runs.
    """
    destination = Destination(folder=Path(output_dir) if output_dir else None)
    found = find_targets([Path(given) for given in inputs], destination, reading or Reading(), recursive)
    for target in found:
        if target.error:
            raise V2LError(target.error)
    return [
        {"video": _text(os.path.abspath(each.video)), "adapter": _text(os.path.abspath(each.output))} for each in found
    ]


class Encode:
    """Encode batches with the column `video` and, if the adapters are not written beside the videos, `adapter`.
    Returns a row for every adapter: `video`, `adapter` (empty if there is none), `status` and `message`.

    status: as counted by `v2l encode`: "encoded", "current", "kept" or "failed"; message: why it failed,
    was encoded again or was kept. A failed video becomes a row and does not stop the job; running the job again
    encodes what is missing.
    """

    def __init__(
        self,
        model: str,
        options: EncodeOptions | None = None,
        hypernetwork: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ):
        """Load the model and hypernetwork, once per worker.

        model: a preset or a folder; its adapters replace those of other models
        hypernetwork: a file to use instead of the model's own; device, dtype: by name, None for the best available
        Raises V2LError if they cannot be loaded, since every video would fail.
        """
        self.options = replace(options or EncodeOptions(Reading()), replace_foreign=True)
        self._loader = ModelLoader(model, "option", hypernetwork, device, dtype)
        self._loader.load()

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encode the videos of a batch; the next one is decoded while one is in the model."""
        videos = list(batch["video"])
        outputs = list(batch["adapter"]) if "adapter" in batch else [None] * len(videos)
        targets = [
            target for pair in zip(videos, outputs, strict=True) for target in _targets(*pair, self.options.reading)
        ]
        table = [_row(outcome) for outcome in encode_targets(targets, self.options, self._loader, Watch())]
        return {name: np.array([row[name] for row in table], dtype=object) for name in _COLUMNS}


_COLUMNS = ("video", "adapter", "status", "message")


def _targets(video: Any, adapter: Any, reading: Reading) -> list[Target]:
    """Return the targets of a row, which may contain anything."""
    given = Path(str(video or ""))
    if not video:
        return [Target(given, given, "this row names no video")]
    try:
        return find_targets([given], Destination(Path(str(adapter)) if adapter else None), reading)
    except V2LError as error:
        return [Target(given, given, str(error))]


def _row(outcome: Outcome) -> dict[str, str]:
    adapter = "" if outcome.status == "failed" else _text(outcome.target.output)
    values = (_text(outcome.target.video), adapter, outcome.status, outcome.note)
    return dict(zip(_COLUMNS, values, strict=True))


def _text(path: str | os.PathLike) -> str:
    """Convert a path to a string for a text column. A name that is not UTF-8 is escaped, and then names no video."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return printable(name)
    return name
