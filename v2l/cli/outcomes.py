"""The outcomes of `v2l encode` as lines, records and notes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from v2l.cli.console import Display, model_record, shown
from v2l.io.text import amount, counted, printable

if TYPE_CHECKING:
    from v2l.adapters.adapter import Adapter
    from v2l.adapters.timeline import Timeline
    from v2l.inference.batch import EncodeOptions, Outcome
    from v2l.inference.model_loader import ModelLoader


def note_reason(outcome: Outcome, display: Display) -> None:
    """Print why an adapter was kept or encoded again, or a remark about a current one."""
    if outcome.note:
        made = {"kept": "kept: ", "current": ""}.get(outcome.status, "encoded again: ")
        display.note(f"{printable(outcome.target.output)}: {made}{outcome.note}")


def _fewer_frames(adapter: Adapter | Timeline, options: EncodeOptions) -> Iterator[str]:
    """Explain why a single encoding has fewer frames than --frames."""
    segment, *more = adapter.description.segments
    if not more and len(segment.timestamps) < (options.reading.frames or 0):
        fps = options.reading.fps or 1.0
        yield f"{counted(len(segment.timestamps), 'frame')}, {fps:g} a second; --fps takes more"


def _record(outcome: Outcome, loader: ModelLoader) -> dict[str, Any]:
    """Return what every outcome states with --json."""
    record: dict[str, Any] = {
        "command": "encode",
        "video": outcome.target.video,
        "adapter": outcome.target.output,
        "status": outcome.status,
        **model_record(loader),
    }
    if outcome.note:
        record["error" if outcome.status == "failed" else "note"] = outcome.note
    return record


def print_outcome(
    outcome: Outcome, options: EncodeOptions, loader: ModelLoader, display: Display, has_reader: bool
) -> None:
    """Print the path of an adapter, with --json its record, and on a terminal its size; or the error of a video.

    has_reader: False prints notes and errors only
    """
    from v2l.adapters.timeline_description import TimelineDescription

    video, output = outcome.target.video, outcome.target.output
    if outcome.status == "failed":
        display.error(outcome.note if printable(video) in outcome.note else f"{printable(video)}: {outcome.note}")
        if display.as_json and has_reader:
            display.result("", {**_record(outcome, loader), "adapter": None})
        return
    note_reason(outcome, display)
    record = _record(outcome, loader)
    text = shown(output)
    if outcome.adapter is not None:
        size, made = os.stat(output).st_size, outcome.adapter.description
        parts = made.parts.values() if isinstance(made, TimelineDescription) else made.segments
        frames, segments = sum(len(part.timestamps) for part in parts), len(made.segments)
        record |= {"bytes": size, "frames": frames, "rank": made.rank, "seconds": round(outcome.seconds, 3)}
        record |= {"segments": segments} if segments > 1 else {}
        if sys.stdout.isatty():
            text += f"  {amount(size)}, " + (f"{segments} segments, " if segments > 1 else "")
            text += counted(frames, "frame")
            text += f", {outcome.seconds:.1f} s" if outcome.seconds else ""
        for note in [*_fewer_frames(outcome.adapter, options), *outcome.adapter.description.not_validated]:
            display.note(f"{printable(output)}: {note}")
    if has_reader:
        display.result(text, record)
