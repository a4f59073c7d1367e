"""The manifest: one example a line, as the published training and evaluation write them (paper section 4).

A row is a JSON object with `id`, `video_path`, and either `prompt` and `target_text` or their aliases `question` and
`answer`; `task_type` ("caption", or "qa" where the aliases are used), `clip_start_sec` and `clip_end_sec` (seconds),
`split`, `dataset` and `metadata` are optional. What else stands in a row is kept out of the way.
"""

from __future__ import annotations

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

MAX_LINE = 1_000_000
"""Characters of one row; a longer line is no manifest's."""


@dataclass(frozen=True)
class Example:
    """One row.

    video: where the video is, the manifest's folder taken into account
    task: "caption" or "qa", as the row's task type has it
    kind: what sort of question it is, by which scores are told apart: `metadata.kind`, else the task type
    start, end: seconds of the clip in its video, None for its beginning and its end
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
        """What the example is about; examples with the same clip share their adapter."""
        return self.video, self.start, self.end


def read_manifest(path: str | os.PathLike, root: str | os.PathLike | None = None) -> list[Example]:
    """All examples of a manifest, in its order.

    root: the folder that relative video paths start from, the manifest's own where None
    Raises V2LError, naming file and line, where it cannot be read, a row is not as above, or an id comes twice.
    """
    path = Path(path)
    folder = Path(root) if root is not None else path.parent
    examples: list[Example] = []
    seen: set[str] = set()
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    example = _example(line, folder)
                    if example.id in seen:
                        raise ValueError(f"the id {printable(example.id)} is there twice")
                except ValueError as error:
                    raise V2LError(f"{printable(path)}, line {number}: {printable(error)}; mend that row") from error
                seen.add(example.id)
                examples.append(example)
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise V2LError(f"{printable(path)} is not UTF-8 text; a manifest is JSON lines") from error
    if not examples:
        raise V2LError(f"{printable(path)} holds no examples; a manifest is JSON lines, one example each")
    return examples


def group_by_clip(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples of each clip, clips in the manifest's order."""
    clips: dict[tuple, list[Example]] = {}
    for example in examples:
        clips.setdefault(example.clip, []).append(example)
    return list(clips.values())


def _example(line: str, folder: Path) -> Example:
    if len(line) > MAX_LINE:
        raise ValueError("it is too long for a row")
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is not an object")
    task = _text(row, "task_type", default="qa" if "question" in row else "caption")
    start, end = _time(row, "clip_start_sec"), _time(row, "clip_end_sec")
    if start is not None and end is not None and start >= end:
        raise ValueError(f"its clip ends at {end:g} s, not after its start at {start:g} s")
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
    """The first of the named fields that is there, which must be text that says something."""
    for name in names:
        if row.get(name) is not None:
            if not isinstance(row[name], str) or not row[name].strip():
                raise ValueError(f"its {name} is not a text")
            return row[name]
    if default is None:
        raise ValueError(f"it has no {' or '.join(names)}")
    return default


def _time(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"its {name} is {value!r}, not a number of seconds from 0 up")
    return float(value)
