"""The manifest: one example per line, in the format of the published training and evaluation (paper section 4).

A row is a JSON object with `id`, `video_path`, and either `prompt` and `target_text` or their aliases `question` and
`answer`. Optional are `task_type` (default "caption", or "qa" with the aliases), `clip_start_sec` and `clip_end_sec`
(seconds), `split`, `dataset` and `metadata`. Other fields are ignored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.files import unreadable
from v2l.io.text import printable
from v2l.io.untrusted import json_error

MAX_LINE = 1_000_000
"""Limit of characters per row."""


@dataclass(frozen=True)
class Example:
    """A row of a manifest.

    video: path of the video; relative ones are resolved against the manifest's folder
    task: "caption" or "qa", from the row's task type
    kind: category by which scores are reported: `metadata.kind`, else the task type
    start, end: bounds of the clip in seconds of its video, None for the start and the end of the video
    """

    id: str
    video: Path
    task: str
    kind: str
    prompt: str
    target: str
    start: float | None
    end: float | None

    @property
    def clip(self) -> tuple[Path, float | None, float | None]:
        """The video and the bounds. Examples with the same clip share an adapter."""
        return self.video, self.start, self.end


def read_manifest(path: str | os.PathLike, root: str | os.PathLike | None = None) -> list[Example]:
    """Read all examples of a manifest, in its order.

    root: folder that relative video paths are resolved against, default: the manifest's folder
    Raises V2LError, with file and line, if it cannot be read, a row is invalid, or an id is repeated.
    """
    path = Path(path)
    folder = Path(root) if root is not None else path.parent
    examples: list[Example] = []
    ids: set[str] = set()
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    example = _example(line, folder)
                    if example.id in ids:
                        raise ValueError(f"the id {printable(example.id)} is repeated")
                except ValueError as error:
                    raise V2LError(f"{printable(path)}, line {number}: {printable(error)}; fix that row") from error
                ids.add(example.id)
                examples.append(example)
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise V2LError(f"{printable(path)} is not UTF-8 text; a manifest is a JSON Lines file") from error
    if not examples:
        raise V2LError(f"{printable(path)} has no examples; a manifest is a JSON Lines file with one example per line")
    return examples


def group_by_clip(examples: Sequence[Example]) -> list[list[Example]]:
    """Group examples by clip, clips in the order of their first example."""
    clips: dict[tuple, list[Example]] = {}
    for example in examples:
        clips.setdefault(example.clip, []).append(example)
    return list(clips.values())


def manifest_hash(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of the examples in their order. Videos count by their path below the folder that all of them
    share, so that the hash stays if that folder moves."""
    paths = [Path(os.path.abspath(example.video)).parts for example in examples]
    shared = 0
    while len({path[: shared + 1] for path in paths}) == 1 and all(len(path) > shared + 1 for path in paths):
        shared += 1
    digest = hashlib.sha256()
    for example, path in zip(examples, paths, strict=True):
        row = {**dataclasses.asdict(example), "video": "/".join(path[shared:])}
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _example(line: str, folder: Path) -> Example:
    if len(line) > MAX_LINE:
        raise ValueError("it is too long")
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {json_error(error)}") from error
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is not an object")
    task = _text(row, "task_type", default="qa" if "question" in row else "caption")
    start, end = _time(row, "clip_start_sec"), _time(row, "clip_end_sec")
    if start is not None and end is not None and start >= end:
        raise ValueError(f"its clip ends at {end:g} s, which is not after its start at {start:g} s")
    return Example(
        id=_text(row, "id"),
        video=folder / _text(row, "video_path"),
        task=task,
        kind=_text(metadata, "kind", default=task),
        prompt=_text(row, "prompt", "question"),
        target=_text(row, "target_text", "answer"),
        start=start,
        end=end,
    )


def _text(row: Mapping[str, Any], *names: str, default: str | None = None) -> str:
    """Return the first of the named fields that is present; raises ValueError if it is not a non-blank string."""
    for name in names:
        if row.get(name) is not None:
            if not isinstance(row[name], str) or not row[name].strip():
                raise ValueError(f"its {name} is not a non-blank string")
            return row[name]
    if default is None:
        raise ValueError(f"it has no {' or '.join(names)}")
    return default


def _time(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"its {name} is {value!r}, not a non-negative number of seconds")
    return float(value)
