"""Commands about adapter files: `v2l info`, `v2l verify` and `v2l export`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2l.cli.console import Display, announce_model, command, shown
from v2l.cli.help import GroupedCommand
from v2l.cli.options import (
    READ,
    WRITE,
    AdapterModel,
    Debug,
    Device,
    ExportFormat,
    HypernetworkFile,
    Json,
    NumberType,
    Overwrite,
    Quiet,
    check_no_video,
    check_replaceable,
    model_loader,
    seconds,
)
from v2l.cli.proof import prove_model
from v2l.cli.sources import AnswerSource, load_sources
from v2l.errors import UsageError, V2LError
from v2l.io.files import make_folder
from v2l.io.text import amount, clock, printable
from v2l.models.presets import is_tiny

if TYPE_CHECKING:
    from v2l.adapters.adapter import Adapter
    from v2l.adapters.description import AdapterFile
    from v2l.adapters.timeline import Timeline
    from v2l.adapters.timeline_description import TimelineFile
    from v2l.adapters.verify import Effect, Verification
    from v2l.inference.model_loader import ModelLoader


class InfoCommand(GroupedCommand):
    """`v2l info --help` with an example."""

    example = "v2l info lecture.v2l.safetensors"


class VerifyCommand(GroupedCommand):
    """`v2l verify --help` with an example."""

    example = "v2l verify lecture.v2l.safetensors"


class ExportCommand(GroupedCommand):
    """`v2l export --help` with an example."""

    example = "v2l export lecture.v2l.safetensors --format gguf"


# info --------------------------------------------------------------------------------------------------------------


def info(
    files: Annotated[
        list[Path],
        typer.Argument(
            readable=False,
            metavar="FILE",
            help="Describe these adapters, hypernetworks and videos.",
            rich_help_panel=READ,
        ),
    ],
    timeline: Annotated[
        bool,
        typer.Option(
            "--timeline",
            help="List the segments of timelines and the answers of their index.",
            rich_help_panel=READ,
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Describe adapters, hypernetworks and videos.

    For an adapter: its model, ranks, segments with their times, size and hashes. For a video: its size and length, and
    whether its adapter is up to date.
    """
    with command(as_json, quiet, debug) as display:
        raise typer.Exit(0 if describe_all(files, timeline, display) else 1)


def describe_all(files: Sequence[Path], timeline: bool, display: Display) -> bool:
    """Print a description of every file; True if all could be read. timeline: list the segments of timelines"""
    from v2l.cli.describe import describe, segment_table

    ok = True
    for path in files:
        try:
            kind, rows, record = describe(path)
            if record["demonstration"]:
                display.announce_tiny()
        except V2LError as error:
            display.error(str(error))
            ok = False
            continue
        if display.as_json:
            display.result("", {"command": "info", **record})
        else:
            display.panel(f"{kind} {printable(path)}", [(kind, printable(path)), *rows])
            if timeline and kind == "timeline":
                display.table(*segment_table(path))
    return ok


# verify ------------------------------------------------------------------------------------------------------------


def verify(
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(readable=False, metavar="ADAPTER", help="Check these adapters.", rich_help_panel=READ),
    ] = None,
    video: Annotated[
        list[Path] | None,
        typer.Option(
            readable=False,
            metavar="VIDEO",
            help="Prove the model and its hypernetwork on this video. May be given several times; with one, the other "
            "video is a drawn clip.",
            rich_help_panel=READ,
        ),
    ] = None,
    model: AdapterModel = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check that adapters, or a model and its hypernetwork, are sound and have an effect.

    Checks keys, shapes and values, hashes the weights of the model that the adapter names, and compares the predictions
    of the model without the adapter, with it, and with the learned bias that all adapters of a hypernetwork share.
    With --video, the model captions the video with its frames in the prompt. The caption must be likelier under the
    adapter of the video than under that of another video, and than under the learned bias alone. The exit code is 1 if
    an adapter or a video fails.
    """
    with command(as_json, quiet, debug) as display:
        if not (adapters or video):
            raise UsageError("name an adapter to check, or a video to prove a model on: --video VIDEO")
        check_no_video(adapters or [], "a model is proven on it with: v2l verify --video {}")
        loader = model_loader(model, hypernetwork, device, dtype, display)
        raise typer.Exit(0 if verify_all(adapters or [], video or [], loader, display) else 1)


def verify_all(paths: Sequence[Path], videos: Sequence[Path], loader: ModelLoader, display: Display) -> bool:
    """Check every adapter, prove the model on the videos, and print the results; True if all are sound."""
    sources = list(load_sources(paths, loader))
    sound = [_verify(source, display) for source in sources]
    if videos:
        named = [source for source in sources if source.file]
        if named and loader.chosen_by not in ("option", "environment"):
            named[0].loader.hypernetwork_source = loader.hypernetwork_source
            loader = named[0].loader
        announce_model(loader, display)
        sound.append(prove_model(videos, loader, display))
    return all(sound)


def _verify(source: AnswerSource, display: Display) -> bool:
    from v2l.adapters.verify import verify

    path, verification = source.path, None
    trouble = str(source.error) if source.error else None
    adapter = source.adapter
    if adapter:
        try:
            announce_model(source.loader, display, source.chosen_by)
            verification = verify(_measured(adapter), source.loader.language_model)
            trouble = verification.trouble
        except V2LError as error:
            trouble = str(error)
    if trouble is not None:
        display.error(trouble if printable(path) in trouble else f"{printable(path)}: {trouble}")
    record = {"command": "verify", "adapter": path, "sound": trouble is None, "error": trouble}
    if source.file and verification:
        _print_verification(source.file, verification, record, display)
    elif display.as_json:
        display.result("", record)
    return trouble is None


def _measured(adapter: Adapter | Timeline) -> Adapter:
    """Return the adapter whose effect is measured: of a timeline, whose parts are all checked, the overview."""
    from v2l.adapters.timeline import Timeline

    if not isinstance(adapter, Timeline):
        return adapter
    adapter.check()
    return adapter.overview() if adapter.description.overview else adapter.select([0])


def _print_verification(
    file: AdapterFile | TimelineFile, verification: Verification, record: dict[str, Any], display: Display
) -> None:
    made, path = file.description, printable(record["adapter"])
    base, segments = made.base_model, len(made.segments)
    weights = verification.weights_sha256[:12]
    rows = [
        ("adapter", path),
        ("", record["error"] or "sound"),
        ("model", f"{printable(base.id)} ({base.fingerprint[:12]}), weights sha256 {weights}"),
        ("effect", _describe_effect(verification.on_model)),
        ("over its bias", _describe_effect(verification.over_bias)),
        ("rank", f"{made.rank}, {file.layers} layers, all values finite"),
        *([("segments", f"{segments}, all sound")] if segments > 1 else []),
        ("sha256", file.sha256),
    ]
    if display.as_json:
        more = {"sha256": file.sha256, "model": base.id, "demonstration": is_tiny(base.fingerprint)}
        display.result("", record | dataclasses.asdict(verification) | more)
    else:
        display.panel(f"verify {path}", rows)


def _describe_effect(effect: Effect) -> str:
    if not effect.is_finite:
        return "not finite"
    return (
        f"{effect.divergence:.3g} nats on average, {effect.largest:.3g} at most in a logit, {effect.tokens:.0%} of the "
        "most likely tokens change"
    )


# export ------------------------------------------------------------------------------------------------------------


def export(
    adapters: Annotated[
        list[Path],
        typer.Argument(readable=False, metavar="ADAPTER", help="Export these adapters.", rich_help_panel=READ),
    ],
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Export for transformers and vLLM (peft), or for llama.cpp (gguf).",
            rich_help_panel=WRITE,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            readable=False,
            metavar="PATH",
            help="Write a folder for peft, or a .gguf file for gguf. For several adapters, write them into the folder "
            "PATH.",
            show_default="beside the adapter",
            rich_help_panel=WRITE,
        ),
    ] = None,
    at: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="Export the segment of a timeline that shows TIME.",
            show_default="the overview",
            rich_help_panel=READ,
        ),
    ] = None,
    segment: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Export segment N of a timeline, counted from 0.", rich_help_panel=READ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert an adapter to the format of another engine.

    peft is a folder for transformers with peft, and for vLLM. gguf is an adapter file for llama.cpp. The command line
    that serves the adapter is printed; vLLM's has not been run.
    """
    with command(as_json, quiet, debug) as display:
        if at is not None and segment is not None:
            raise UsageError("--at and --segment exclude each other; give one of them")
        check_no_video(adapters, "its adapter is made with: v2l encode {}")
        if len(adapters) > 1 and output:
            make_folder(output)
        for path in adapters:
            part, name = choose_part(path, at, segment)
            suffix = "gguf" if form == ExportFormat.gguf else "peft"
            place = output if output and len(adapters) == 1 else (output or path.parent) / f"{name}.{suffix}"
            export_adapter(part, form, place, overwrite, display)


def choose_part(path: Path, at: float | None, segment: int | None) -> tuple[Adapter, str]:
    """Read the adapter to export, the overview of a timeline or a segment, and the name of its file without a suffix.

    Raises V2LError if there is no such segment.
    """
    from v2l.adapters.routing import segments_between
    from v2l.adapters.timeline import Timeline, open_adapter
    from v2l.inference.naming import ADAPTER_SUFFIX, part_name

    opened, name = open_adapter(path), path.name.removesuffix(ADAPTER_SUFFIX)
    if not isinstance(opened, Timeline):
        if at is not None or segment is not None:
            raise V2LError(f"{printable(path)} is not a timeline; export it without --at and --segment")
        return opened, name
    parts = opened.description.segments
    if at is not None:
        shown_at = segments_between(parts, at, at)
        if not shown_at:
            raise V2LError(f"no segment of {printable(path)} shows {clock(at)}; it ends at {clock(parts[-1].end)}")
        segment = shown_at[0]
    if segment is None:
        return opened.overview(), name
    if segment >= len(parts):
        raise V2LError(f"{printable(path)} has segments 0 to {len(parts) - 1}; there is no segment {segment}")
    return opened.select([segment]), part_name(path.name, segment, len(parts)).removesuffix(ADAPTER_SUFFIX)


def export_adapter(adapter: Adapter, form: str, output: Path, overwrite: bool, display: Display) -> None:
    """Write the export and print how to serve it."""
    from v2l.adapters.export import export_gguf, export_peft, serving_command

    if form == ExportFormat.gguf:
        if output.suffix != ".gguf":
            raise UsageError(f"-o {printable(output)} must end in .gguf, by which the tools of llama.cpp know it")
        check_replaceable(output, overwrite)
        export_gguf(adapter, output)
        size = os.stat(output).st_size
    else:
        export_peft(adapter, output, overwrite)
        size = sum(file.stat().st_size for file in output.iterdir())
    line = serving_command(adapter, output, form)
    demonstration = is_tiny(adapter.description.base_model.fingerprint)
    if demonstration:
        display.announce_tiny()
    record = {"command": "export", "format": form, "output": output, "bytes": size, "serve": line}
    display.result(shown(output), record | {"demonstration": demonstration})
    untested = "" if form == ExportFormat.gguf else " (not run with vLLM yet)"
    display.note(f"{amount(size)}, rank {adapter.rank}; to serve it{untested}: {line}")
