"""`v2l compose`: several adapters become one."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from v2l.cli.console import Display, command, shown
from v2l.cli.help import GroupedCommand
from v2l.cli.options import READ, WRITE, Debug, Json, Overwrite, Quiet, check_no_video, check_replaceable
from v2l.errors import UsageError
from v2l.io.text import amount, clock, printable

if TYPE_CHECKING:
    from v2l.adapters.adapter import Adapter
    from v2l.adapters.description import Segment
    from v2l.adapters.timeline import Timeline

SHOWN_VIDEOS = 3
"""Videos that are named if there are several."""


class ComposeCommand(GroupedCommand):
    """`v2l compose --help` with an example."""

    example = "v2l compose part1.v2l.safetensors part2.v2l.safetensors -o whole.v2l.safetensors"


def compose(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            readable=False,
            metavar="ADAPTER",
            help="Compose these adapters, in the order of their segments.",
            rich_help_panel=READ,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", readable=False, metavar="FILE", help="Write the composed adapter.", rich_help_panel=WRITE
        ),
    ],
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Reduce the generated ranks by singular value decomposition: to N in total, or to N for each segment "
            "of a timeline.",
            show_default="all are kept",
            rich_help_panel=WRITE,
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compose several adapters into one.

    The ranks of the adapters are concatenated in the order given; the learned bias that they share is kept once.
    Timelines, and more segments than can be attached together, become one timeline, also of several videos.
    """
    with command(as_json, quiet, debug) as display:
        check_no_video(adapters, "its adapter is made with: v2l encode {}")
        compose_adapters(adapters, output, rank, overwrite, display)


def compose_adapters(paths: Sequence[Path], output: Path, rank: int | None, overwrite: bool, display: Display) -> None:
    """Write the composed adapter or timeline and warn about gaps and overlaps of its segments."""
    from v2l.adapters.description import MAX_RANK
    from v2l.adapters.timeline import Timeline, open_adapter
    from v2l.inference.naming import ADAPTER_SUFFIX
    from v2l.models.presets import is_tiny

    if not output.name.endswith(ADAPTER_SUFFIX):
        raise UsageError(f"-o {printable(output)} must end in {ADAPTER_SUFFIX}, by which `v2l ask` knows an adapter")
    inputs = [open_adapter(path) for path in paths]
    demonstration = is_tiny(inputs[0].description.base_model.fingerprint)
    if demonstration:
        display.announce_tiny()
    adapters = [each for each in inputs if not isinstance(each, Timeline)]
    bias = inputs[0].description.bias_rank
    total = sum(each.rank - bias for each in adapters) + bias
    if len(adapters) < len(inputs) or (rank is None and total > MAX_RANK):
        made, segments, error = _join(inputs, output, rank, overwrite)
    else:
        made, segments, error = _compose(adapters, output, rank, overwrite)
    names = {segment.source.sha256: printable(segment.source.name) for segment in segments}
    if len(names) > 1:
        shown_names = [*names.values()][:SHOWN_VIDEOS]
        more = ", ..." if len(names) > SHOWN_VIDEOS else ""
        display.note(f"the parts are of {len(names)} different videos: {', '.join(shown_names)}{more}")
    for note in timeline_notes(segments):
        display.note(f"warning: {note}")
    size = os.stat(output).st_size
    if rank is not None:
        display.note(f"reduced to rank {rank}, relative error {error:.2%}")
    record = {
        "command": "compose",
        "adapter": output,
        "segments": len(segments),
        "rank": made,
        "relative_error": error,
        "bytes": size,
        "demonstration": demonstration,
    }
    text = shown(output)
    if sys.stdout.isatty():
        text += f"  {amount(size)}, {len(segments)} segments, rank {made}"
    display.result(text, record)


Made = tuple[int, "Sequence[Segment]", float]
"""Rank, segments, and the relative error of the reduction."""


def _compose(adapters: Sequence[Adapter], output: Path, rank: int | None, overwrite: bool) -> Made:
    from v2l.adapters.adapter import Adapter
    from v2l.adapters.segments import compose

    whole = compose(adapters, rank)
    check_replaceable(output, overwrite, same=lambda: Adapter.load(output).sha256() == whole.sha256())
    whole.save(output)
    errors = [block.relative_error for block in whole.description.blocks if block.relative_error]
    return whole.rank, whole.description.segments, errors[-1] if rank is not None and errors else 0.0


def _join(inputs: Sequence[Adapter | Timeline], output: Path, rank: int | None, overwrite: bool) -> Made:
    from v2l.adapters.join import join
    from v2l.adapters.timeline_description import TimelineFile

    if os.path.lexists(output) and not overwrite:
        with tempfile.TemporaryDirectory() as folder:
            sha256 = join(Path(folder) / output.name, inputs, rank).file.sha256
        check_replaceable(output, overwrite, same=lambda: TimelineFile.read(output).sha256 == sha256)
    made = join(output, inputs, rank).description
    segments = [made.segment(part) for part in made.segments]
    return made.rank, segments, max(part.relative_error for part in made.segments)


def timeline_notes(segments: Sequence[Segment]) -> Iterator[str]:
    """Describe gaps, overlaps and steps back in time between consecutive segments of one video."""
    for one, other in itertools.pairwise(segments):
        if one.source.sha256 != other.source.sha256 or one.end == other.start:
            continue
        name, end, start = printable(other.source.name), clock(one.end), clock(other.start)
        if other.start > one.end:
            yield f"{name}: a gap from {end} to {start} between two segments"
        elif other.end > one.start:
            yield f"{name}: two segments overlap from {start} to {clock(min(one.end, other.end))}"
        else:
            yield f"{name}: the segment from {start} follows the one that ends at {end}"
