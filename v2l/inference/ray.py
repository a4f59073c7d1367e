"""`v2l encode` as a stage of Ray Data: `map_batches` with a class whose copies hold a model each.

Nothing here imports Ray, which imports this module in its workers: `pip install 'v2l[ray]'` on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from v2l.errors import V2LError
from v2l.inference.batch import EncodeOptions, Outcome, encode_targets
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import Destination, Nothing, Target, find_targets
from v2l.io.text import printable
from v2l.video.sampling import Reading


def rows(
    inputs: Sequence[str | os.PathLike],
    output_dir: str | os.PathLike | None = None,
    reading: Reading | None = None,
    recursive: bool = False,
) -> list[dict[str, str]]:
    """A row for every video of files and folders, with its adapter's place: beside it, or in `output_dir` as
    `v2l encode --output-dir` has it. Paths are absolute, for workers that run elsewhere.

    reading: the `EncodeOptions`' own; its start and end go into the names
    Raises V2LError where an input holds no video or a folder in it cannot be listed, and UsageError where two videos
    would write one adapter, both before anything runs.
    """
    destination = Destination(folder=Path(output_dir) if output_dir else None)
    found = find_targets([Path(given) for given in inputs], destination, reading or Reading(), recursive)
    missing = [target.reason for target in found if isinstance(target, Nothing)]
    if missing:
        raise V2LError(missing[0])
    return [
        {"video": _text(os.path.abspath(each.video)), "adapter": _text(os.path.abspath(each.output))} for each in found
    ]


class Encode:
    """Takes batches with the column `video` and, where the adapters are not to stand beside the videos, `adapter`;
    returns a row for every adapter: `video`, `adapter` (empty where there is none), `status` and `message`.

    status: as `v2l encode` counts: "encoded", "composed", "current", "kept" or "failed"; message: why it failed, was
    encoded again or was kept. A video's failure is its row and ends nothing, so that a job that runs again does what
    is left.
    """

    def __init__(
        self,
        model: str,
        options: EncodeOptions | None = None,
        hypernetwork: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ):
        """Loads both, once for every copy.

        model: a preset or a folder, whose adapters replace those of other models; hypernetwork: a file, where the
            model's own is not meant; device, dtype: by name, else the best there
        Raises V2LError where they cannot be loaded: no video would fare better.
        """
        self.options = replace(options or EncodeOptions(Reading()), replace_foreign=True)
        self.choice = ModelLoader(model, "option", hypernetwork, device, dtype)
        self.choice.load()

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The videos of a batch, the next decoded while one is in the model."""
        videos = list(batch["video"])
        places = list(batch["adapter"]) if "adapter" in batch else [None] * len(videos)
        targets = [
            target for pair in zip(videos, places, strict=True) for target in _targets(*pair, self.options.reading)
        ]
        made = [_row(outcome) for outcome in encode_targets(targets, self.options, self.choice, lambda *_: None)]
        return {name: np.array([row[name] for row in made], dtype=object) for name in _COLUMNS}


_COLUMNS = ("video", "adapter", "status", "message")


def _targets(video: Any, adapter: Any, reading: Reading) -> list[Target | Nothing]:
    """Of a row, whatever stands in it."""
    given = Path(str(video or ""))
    if not video:
        return [Nothing(given, "this row names no video")]
    try:
        return find_targets([given], Destination(Path(str(adapter)) if adapter else None), reading)
    except V2LError as error:
        return [Nothing(given, str(error))]


def _row(outcome: Outcome) -> dict[str, str]:
    adapter = "" if outcome.status == "failed" else _text(outcome.target.output)
    values = (_text(outcome.target.video), adapter, outcome.status, outcome.note)
    return dict(zip(_COLUMNS, values, strict=True))


def _text(path: str | os.PathLike) -> str:
    """A name as a column of text can hold it: what is not UTF-8 comes escaped, and is found to be no video's name."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return printable(name)
    return name
