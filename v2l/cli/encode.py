"""`v2l encode`: videos become adapters, a file each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from v2l.cli.console import Display, announce_model, command
from v2l.cli.dry_run import preview_all
from v2l.cli.help import GroupedCommand
from v2l.cli.options import (
    READ,
    WRITE,
    Cache,
    Debug,
    Device,
    End,
    Fps,
    Frames,
    HypernetworkFile,
    Json,
    Model,
    NumberType,
    Quiet,
    Resolution,
    Start,
    cache_destination,
    check_above_zero,
    check_range,
    model_loader,
)
from v2l.cli.outcomes import print_outcome
from v2l.errors import StdoutClosed, UsageError
from v2l.io.text import printable

if TYPE_CHECKING:
    from v2l.inference.batch import EncodeOptions, Outcome
    from v2l.inference.model_loader import ModelLoader
    from v2l.inference.targets import Destination, Shard, Target
    from v2l.inference.timeline import TimelineEstimate

SEGMENTS = "Segments"


class EncodeCommand(GroupedCommand):
    """`v2l encode --help` with an example."""

    example = "v2l encode lecture.mp4 talks/ --recursive"


def encode(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VIDEO|FOLDER",
            help="Encode these videos, and the videos in these folders.",
            show_default=False,
            rich_help_panel=READ,
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option("--recursive", "-r", help="Search subfolders as well.", rich_help_panel=READ),
    ] = False,
    files_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help="Read more inputs from a list, one per line or separated by NUL; - is standard input.",
            rich_help_panel=READ,
        ),
    ] = None,
    frames: Frames = None,
    fps: Fps = None,
    start: Start = None,
    end: End = None,
    resolution: Resolution = None,
    keep_damaged: Annotated[
        bool,
        typer.Option(
            "--keep-damaged",
            help="Use damaged frames as a player shows them, and record that in the adapter.",
            rich_help_panel=READ,
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|auto",
            help="Encode share I of N of the inputs; auto reads both from a Slurm job array.",
            rich_help_panel=READ,
        ),
    ] = None,
    segments: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Cut each video into N segments in one file; 1 is a single encoding.",
            show_default="one for each 12 seconds of a long video, at most 64",
            rich_help_panel=SEGMENTS,
        ),
    ] = None,
    segment_seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Cut each video into segments of S seconds.", rich_help_panel=SEGMENTS),
    ] = None,
    split: Annotated[
        bool,
        typer.Option("--split", help="Write a file for each segment, NAME.000 and on.", rich_help_panel=SEGMENTS),
    ] = False,
    no_index: Annotated[
        bool,
        typer.Option(
            "--no-index",
            help="Leave out the descriptions of the segments, which v2l find searches.",
            rich_help_panel=SEGMENTS,
        ),
    ] = False,
    compose: Annotated[bool, typer.Option("--compose", hidden=True)] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            readable=False,
            metavar="FILE",
            help="Write the adapter of a single video to FILE.",
            show_default="beside the video",
            rich_help_panel=WRITE,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            metavar="FOLDER",
            help="Write all adapters into FOLDER, with the subfolders of the videos.",
            show_default="beside the videos",
            rich_help_panel=WRITE,
        ),
    ] = None,
    cache: Cache = False,
    check_hash: Annotated[
        bool,
        typer.Option(
            "--check-hash",
            help="Compare the contents of videos, not their sizes and times, to find adapters that are out of date.",
            rich_help_panel=WRITE,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Encode again in any case, and replace whatever is at the place of an adapter.",
            rich_help_panel=WRITE,
        ),
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first video that fails.", rich_help_panel=WRITE)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Encode nothing; print what would be encoded, why, and its cost.", rich_help_panel=WRITE
        ),
    ] = False,
    model: Model = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Encode videos into adapters.

    The adapter of lecture.mp4 is lecture.v2l.safetensors. A long video becomes a timeline: one file with an overview
    and segments, and each question is answered by the part that it is about. --frames and --fps are those of a
    segment; more frames than in training make a single encoding. An interrupted timeline is continued by the same
    command. Adapters that are up to date are not encoded again. An adapter is kept if other settings were chosen for it
    and none are given now, and if it was composed; one of another video, or another file, is an error. Where two videos
    differ in their suffix only, one adapter has the full name: lecture.avi.v2l.safetensors. The path of every adapter
    is printed.
    """
    with command(as_json, quiet, debug) as display:
        if segments and segment_seconds:
            raise UsageError("--segments and --segment-seconds exclude each other; give one of them")
        if compose:
            raise UsageError(
                "--compose is gone: --segments and --segment-seconds write one file; --split writes one a segment"
            )
        if output and output_dir:
            raise UsageError("-o and --output-dir exclude each other; give one of them")
        if cache and (output or output_dir or split):
            raise UsageError("--cache excludes -o, --output-dir and --split, which name files of your own")
        check_above_zero("--fps", fps)
        check_above_zero("--segment-seconds", segment_seconds)
        check_range(start, end)
        from v2l.adapters.timeline_description import Segmentation
        from v2l.inference.batch import EncodeOptions
        from v2l.inference.targets import Destination, read_shard
        from v2l.video.sampling import Reading

        options = EncodeOptions(
            Reading(frames, fps, start, end, resolution, keep_damaged),
            Segmentation(segments, segment_seconds, frames is not None),
            split,
            not no_index,
            check_hash,
            overwrite,
            replace_foreign=model is not None,
        )
        ok = encode_all(
            list_inputs(inputs or [], files_from),
            Destination(output, output_dir) if output or output_dir or split else _beside(cache),
            options,
            model_loader(model, hypernetwork, device, dtype, display),
            display,
            recursive=recursive,
            fail_fast=fail_fast,
            shard=read_shard(shard) if shard else None,
            dry_run=dry_run,
        )
        raise typer.Exit(0 if ok else 1)


def _beside(cache: bool) -> Destination:
    """Return the destination beside the videos, or the cache if that is asked for."""
    from v2l.inference.targets import Destination

    destination = cache_destination(cache)
    return destination if destination.prefers_cache else Destination()


def list_inputs(inputs: Sequence[str], files_from: str | None) -> list[Path]:
    """Return the inputs and the names in a list. Raises UsageError if there are none at all, or one is empty."""
    from v2l.inference.targets import read_names

    if "" in inputs:
        raise UsageError("one of the inputs is empty, perhaps an unset variable; name a video or a folder")
    found = [Path(name) for name in inputs]
    if files_from == "-":
        found += read_names(sys.stdin.buffer)
    elif files_from:
        try:
            with open(files_from, "rb") as file:
                found += read_names(file)
        except OSError as error:
            raise UsageError(f"cannot read the list {printable(files_from)}: {error.strerror}") from error
    elif not found:
        raise UsageError("name a video or a folder of videos to encode")
    return found


def encode_all(
    inputs: Sequence[Path],
    destination: Destination,
    options: EncodeOptions,
    loader: ModelLoader,
    display: Display,
    recursive: bool = False,
    fail_fast: bool = False,
    shard: Shard | None = None,
    dry_run: bool = False,
) -> bool:
    """Encode all inputs, or a shard of them, and print the path of each adapter; True if none failed.

    dry_run: print what would be done instead
    """
    from v2l.inference.targets import find_targets, split_sidecars

    videos, passed_over = split_sidecars(inputs)
    targets = find_targets(videos, destination, options.reading, recursive)
    targets = shard.of(targets) if shard else targets
    if dry_run:
        return preview_all(targets, options, loader, display)
    counts = dict.fromkeys(("encoded", "current", "kept", "failed"), 0)
    has_reader = True
    for outcome in _outcomes(targets, options, loader, display):
        counts[outcome.status] += 1
        try:
            print_outcome(outcome, options, loader, display, has_reader)
        except StdoutClosed:
            has_reader = False  # the files are the result, so encoding continues
        if outcome.status == "failed" and fail_fast:
            break
    display.end_progress()
    counts["passed over"] = len(passed_over)
    display.note(", ".join(f"{number} {status}" for status, number in counts.items() if number) or "nothing to encode")
    return not counts["failed"]


def _outcomes(
    targets: Sequence[Target], options: EncodeOptions, loader: ModelLoader, display: Display
) -> Iterator[Outcome]:
    """Yield the inputs without a video at once, then check the model and encode the videos."""
    from v2l.inference.batch import Outcome

    yield from (Outcome(target, "failed", target.error) for target in targets if target.error)
    videos = [target for target in targets if not target.error]
    if not videos:
        return
    announce_model(loader, display)
    loader.check()
    if len(videos) > 1 and display.shows_progress:
        display.note(_plan(videos, options))
    yield from encode_with_progress(videos, options, loader, display)


def _plan(videos: Sequence[Target], options: EncodeOptions) -> str:
    """Describe what there is to do: `"3 videos to encode, 40 to compare with their adapters"`."""
    compared = 0 if options.overwrite else sum(os.path.lexists(target.output) for target in videos)
    encoded = len(videos) - compared
    parts = [f"{encoded} video{'s' * (encoded > 1)} to encode"] if encoded else []
    return ", ".join([*parts, *([f"{compared} to compare with their adapters"] if compared else [])])


def encode_with_progress(
    videos: Sequence[Target], options: EncodeOptions, loader: ModelLoader, display: Display
) -> Iterator[Outcome]:
    """Yield the outcome of every video and move a bar: over the videos that are encoded, or the steps of a single one.

    The bar appears with the first video that is encoded, so that its rate is that of encoding.
    """
    from v2l.inference.batch import Watch, encode_targets

    several = len(videos) > 1
    places = {target.video: place for place, target in enumerate(videos)}
    encoded: set[Path] = set()

    def step(target: Target, done: float, total: int) -> None:
        name, place = printable(target.video.name), places[target.video]
        if not encoded:
            display.start_progress(len(videos) if several else total, "video" if several else "step")
        encoded.add(target.video)
        if several:
            before = len(encoded) - 1
            left = len(videos) - place
            display.progress(before + done / total, before + left, f"{place + 1}/{len(videos)} {name}")
        else:
            display.progress(done, total, name)

    def planned(target: Target, estimate: TimelineEstimate) -> None:
        display.note(f"{printable(target.video)}: {estimate}")

    def waiting(target: Target) -> None:
        display.note(f"{printable(target.video)}: another process encodes it; waiting for it")

    yield from encode_targets(videos, options, loader, Watch(step, planned, waiting))
