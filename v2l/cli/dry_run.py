"""`v2l encode --dry-run`: what would be encoded, why, and at what cost."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from v2l.cli.console import Display, announce_model, model_record, shown
from v2l.io.text import amount, printable, span

if TYPE_CHECKING:
    from v2l.inference.batch import EncodeOptions
    from v2l.inference.model_loader import ModelLoader
    from v2l.inference.preview import Preview
    from v2l.inference.targets import Target

HEADER = ["adapter", "state", "frames", "seconds", "bytes", "reason"]


def preview_all(targets: Sequence[Target], options: EncodeOptions, loader: ModelLoader, display: Display) -> bool:
    """Print a row for each adapter, with --json a record, and a summary; True if none would fail."""
    from v2l.inference.preview import preview_targets

    failed = [target for target in targets if target.error]
    for target in failed:
        display.error(target.error)
    videos = [target for target in targets if not target.error]
    if videos:
        announce_model(loader, display)
        loader.check()
    found = []
    display.start_progress(len(videos), "video")
    for preview in preview_targets(videos, options, loader):
        found.append(preview)
        display.progress(
            len({each.target.video for each in found}) - 1, len(videos), printable(preview.target.video.name)
        )
        if preview.status == "failed":
            display.error(preview.note)
        if display.as_json:
            display.result("", _record(preview, loader))
    display.end_progress()
    rows = [_row(preview) for preview in found if preview.status != "failed"]
    if rows and not display.as_json:
        display.table(HEADER, rows, justify="left")
    display.note(_summary(found, len(failed)))
    return not failed and all(preview.status != "failed" for preview in found)


def _row(preview: Preview) -> list[str]:
    cost = ["", "", ""]
    if preview.frames:
        cost = [str(preview.frames), f"{preview.seconds:.3g}", str(preview.bytes)]
        if sys.stdout.isatty():
            cost = [str(preview.frames), span(preview.seconds), amount(preview.bytes)]
    return [shown(preview.target.output), preview.status, *cost, preview.note]


def _record(preview: Preview, loader: ModelLoader) -> dict[str, object]:
    record = dataclasses.asdict(preview)
    target = preview.target
    del record["target"]
    named = {"command": "encode", "dry_run": True, "video": target.video, "adapter": target.output}
    return {**named, **record, **model_record(loader)}


def _summary(found: Sequence[Preview], failed: int) -> str:
    """`"3 to encode in about 2 min, 15 MB, 40 current, 1 kept, 1 failed"`."""
    encoded = [preview for preview in found if preview.status in ("missing", "stale")]
    parts = []
    if encoded:
        seconds, size = sum(each.seconds for each in encoded), sum(each.bytes for each in encoded)
        parts.append(f"{len(encoded)} to encode in about {span(seconds)}, {amount(size)}")
    for status in ("current", "kept", "failed"):
        number = sum(each.status == status for each in found) + (failed if status == "failed" else 0)
        parts += [f"{number} {status}"] if number else []
    return ", ".join(parts) or "nothing to encode"
