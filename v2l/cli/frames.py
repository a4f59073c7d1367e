"""`v2l frames`: the pictures that an adapter was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from v2l.cli.console import Display, command, shown
from v2l.cli.help import GroupedCommand
from v2l.cli.options import READ, WRITE, Debug, Json, Overwrite, Quiet, check_replaceable, seconds
from v2l.errors import UsageError
from v2l.io.text import printable

if TYPE_CHECKING:
    from v2l.adapters.description import Segment


class FramesCommand(GroupedCommand):
    """`v2l frames --help` with an example."""

    example = "v2l frames lecture.v2l.safetensors --at 12:30 -o pictures"


def frames(
    adapter: Annotated[
        Path,
        typer.Argument(
            readable=False, metavar="ADAPTER", help="Show the frames of this adapter.", rich_help_panel=READ
        ),
    ],
    at: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="Take the segment that shows TIME, in seconds or as H:MM:SS.",
            rich_help_panel=READ,
        ),
    ] = None,
    segment: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Take segment N, counted from 0.", rich_help_panel=READ),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            metavar="FILE",
            help="Read the frames from FILE.",
            show_default="the encoded video, beside the adapter",
            rich_help_panel=READ,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "-o",
            readable=False,
            metavar="DIR",
            help="Write each frame to DIR, as a PNG named by its time.",
            rich_help_panel=WRITE,
        ),
    ] = None,
    strip: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            metavar="FILE.png",
            help="Write one picture with all frames small and their times below.",
            rich_help_panel=WRITE,
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the pictures that an adapter was made from.

    They are the frames that were read while encoding, decoded again in the size of the video. By default they are those
    of the overview of a long video, or all frames of a short one. The video must not have changed since it was encoded.
    The path of each picture is printed.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.adapters.timeline_description import is_adapter_file
        from v2l.inference.naming import ADAPTER_SUFFIX

        if at is not None and segment is not None:
            raise UsageError("give --at or --segment, not both")
        if output_dir is None and strip is None:
            raise UsageError("say where to write: -o DIR for the frames, --strip FILE.png for one picture, or both")
        if not (adapter.name.endswith(ADAPTER_SUFFIX) or is_adapter_file(adapter)):
            raise UsageError(f"{printable(adapter)} is no adapter (*{ADAPTER_SUFFIX}); --video names the video")
        if strip is not None and strip.suffix.lower() != ".png":
            raise UsageError(f"--strip {printable(strip)} must end in .png")
        write_frames(adapter, at, segment, video, PictureOutput(output_dir, strip, overwrite), display)


@dataclass(frozen=True)
class PictureOutput:
    """Where to write pictures. folder: each frame; strip: all frames as one picture; None to leave either out"""

    folder: Path | None
    strip: Path | None
    overwrite: bool


def write_frames(
    adapter: Path, at: float | None, number: int | None, video: Path | None, output: PictureOutput, display: Display
) -> None:
    """Write the frames of the chosen segments and print the paths. Raises V2LError before anything is written if the
    video is not the recorded one or a file would be replaced."""
    from v2l.inference.recorded_frames import (
        Strip,
        find_video,
        frame_names,
        read_recorded,
        recorded_segments,
        write_png,
    )
    from v2l.io.files import make_folder

    # Find the videos, the names of the pictures and what would be replaced
    groups: dict[Path, list[Segment]] = {}
    for segment in recorded_segments(adapter, at, number):
        groups.setdefault(find_video(segment.source, adapter.parent, video), []).append(segment)
    names = {path: frame_names(segments) for path, segments in groups.items()}
    if output.strip:
        check_replaceable(output.strip, output.overwrite)
    if output.folder:
        for name in (name for each in names.values() for name in each.values()):
            check_replaceable(output.folder / name, output.overwrite)
        make_folder(output.folder)

    # Decode and write frame by frame
    strip, count = Strip(), 0
    display.start_progress(sum(map(len, names.values())), "frame")
    for path, segments in groups.items():
        for frame in read_recorded(segments, path):
            seconds, count = frame.seconds, count + 1
            if output.strip:
                strip.add(frame.pixels, seconds)
            if output.folder:
                file = output.folder / names[path][seconds]
                write_png(frame.pixels, file)
                display.result(
                    shown(file),
                    {"command": "frames", "adapter": adapter, "video": path, "seconds": seconds, "file": file},
                )
            display.progress(count, sum(map(len, names.values())))
    display.end_progress()
    if output.strip:
        write_png(strip.draw(), output.strip)
        display.result(
            shown(output.strip), {"command": "frames", "adapter": adapter, "frames": count, "file": output.strip}
        )
