"""Commands about adapter files: `v2l compose`, `v2l info`, `v2l verify` and `v2l export`."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2l.cli.console import Display, announce_fallback, command, shown
from v2l.cli.help import GroupedCommand
from v2l.cli.options import (
    READ,
    WRITE,
    AdapterModel,
    Debug,
    Device,
    ExportFormat,
    Json,
    NumberType,
    Overwrite,
    Quiet,
    check_replaceable,
    model_loader,
)
from v2l.cli.sources import AnswerSource, load_sources
from v2l.errors import UsageError, V2LError
from v2l.io.text import amount, clock, printable

if TYPE_CHECKING:
    from v2l.adapters.adapter import Adapter
    from v2l.adapters.verify import Effect, Verification
    from v2l.inference.model_loader import ModelLoader


class ComposeCommand(GroupedCommand):
    """`v2l compose --help` with an example."""

    example = "v2l compose part1.v2l.safetensors part2.v2l.safetensors -o whole.v2l.safetensors"


class InfoCommand(GroupedCommand):
    """`v2l info --help` with an example."""

    example = "v2l info lecture.v2l.safetensors"


class VerifyCommand(GroupedCommand):
    """`v2l verify --help` with an example."""

    example = "v2l verify lecture.v2l.safetensors"


class ExportCommand(GroupedCommand):
    """`v2l export --help` with an example."""

    example = "v2l export lecture.v2l.safetensors --format gguf"


# compose -----------------------------------------------------------------------------------------------------------


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
            help="Reduce the generated ranks to N in total, by singular value decomposition.",
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
    """
    with command(as_json, quiet, debug) as display:
        compose_adapters(adapters, output, rank, overwrite, display)


def compose_adapters(paths: Sequence[Path], output: Path, rank: int | None, overwrite: bool, display: Display) -> None:
    """Write the composed adapter and warn about gaps and overlaps of its segments."""
    from v2l.adapters.adapter import Adapter
    from v2l.adapters.segments import compose
    from v2l.inference.targets import ADAPTER_SUFFIX

    if not output.name.endswith(ADAPTER_SUFFIX):
        raise UsageError(f"-o {printable(output)} must end in {ADAPTER_SUFFIX}, by which `v2l ask` knows an adapter")
    whole = compose([Adapter.load(path) for path in paths], rank)
    for note in timeline_notes(whole):
        display.note(f"warning: {note}")
    check_replaceable(output, overwrite, same=lambda: Adapter.load(output).sha256() == whole.sha256())
    whole.save(output)
    segments, size = len(whole.description.segments), os.stat(output).st_size
    errors = [block.relative_error for block in whole.description.blocks if block.relative_error]
    error = errors[-1] if rank is not None and errors else 0.0
    if rank is not None:
        display.note(f"reduced to rank {rank}, relative error {error:.2%}")
    record = {
        "command": "compose",
        "adapter": output,
        "segments": segments,
        "rank": whole.rank,
        "relative_error": error,
        "bytes": size,
    }
    text = shown(output)
    if sys.stdout.isatty():
        text += f"  {amount(size)}, {segments} segments, rank {whole.rank}"
    display.result(text, record)


def timeline_notes(adapter: Adapter) -> Iterator[str]:
    """Describe gaps, overlaps and steps back in time between consecutive segments of one video."""
    for one, other in itertools.pairwise(adapter.description.segments):
        if one.source.sha256 != other.source.sha256 or one.end == other.start:
            continue
        name, end, start = printable(other.source.name), clock(one.end), clock(other.start)
        if other.start > one.end:
            yield f"{name}: a gap from {end} to {start} between two segments"
        elif other.end > one.start:
            yield f"{name}: two segments overlap from {start} to {clock(min(one.end, other.end))}"
        else:
            yield f"{name}: the segment from {start} follows the one that ends at {end}"


# info --------------------------------------------------------------------------------------------------------------


def info(
    files: Annotated[
        list[Path],
        typer.Argument(
            readable=False, metavar="FILE", help="Describe these adapters and hypernetworks.", rich_help_panel=READ
        ),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Describe adapters and hypernetworks.

    For an adapter: its model, ranks, segments with their times, size and hashes.
    """
    with command(as_json, quiet, debug) as display:
        raise typer.Exit(0 if describe_all(files, display) else 1)


def describe_all(files: Sequence[Path], display: Display) -> bool:
    """Print a description of every file; True if all could be read."""
    from v2l.cli.describe import describe

    ok = True
    for path in files:
        try:
            kind, rows, record = describe(path)
        except V2LError as error:
            display.error(str(error))
            ok = False
            continue
        if display.as_json:
            display.result("", {"command": "info", **record})
        else:
            display.panel(f"{kind} {printable(path)}", [(kind, printable(path)), *rows])
    return ok


# verify ------------------------------------------------------------------------------------------------------------


def verify(
    adapters: Annotated[
        list[Path],
        typer.Argument(readable=False, metavar="ADAPTER", help="Check these adapters.", rich_help_panel=READ),
    ],
    model: AdapterModel = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check that adapters are sound and have an effect.

    Checks keys, shapes and values, hashes the weights of the model that the adapter names, and compares the predictions
    of the model without the adapter, with it, and with the learned bias that all adapters of a hypernetwork share. The
    exit code is 1 if an adapter fails.
    """
    with command(as_json, quiet, debug) as display:
        ok = verify_all(adapters, model_loader(model, None, device, dtype, display), display)
        raise typer.Exit(0 if ok else 1)


def verify_all(paths: Sequence[Path], loader: ModelLoader, display: Display) -> bool:
    """Check every adapter and print the results; True if all are sound."""
    sound = [_verify(source, display) for source in load_sources(paths, loader)]
    return all(sound)


def _verify(source: AnswerSource, display: Display) -> bool:
    from v2l.adapters.verify import verify

    path, verification = source.path, None
    trouble = str(source.error) if source.error else None
    adapter = source.adapter
    if adapter:
        try:
            announce_fallback(source.loader, display)
            verification = verify(adapter, source.loader.language_model)
            trouble = verification.trouble
        except V2LError as error:
            trouble = str(error)
    if trouble is not None:
        display.error(trouble if printable(path) in trouble else f"{printable(path)}: {trouble}")
    record = {"command": "verify", "adapter": path, "sound": trouble is None, "error": trouble}
    if adapter and verification:
        _print_verification(adapter, verification, record, display)
    elif display.as_json:
        display.result("", record)
    return trouble is None


def _print_verification(adapter: Adapter, verification: Verification, record: dict[str, Any], display: Display) -> None:
    base, path = adapter.description.base_model, printable(record["adapter"])
    weights = verification.weights_sha256[:12]
    rows = [
        ("adapter", path),
        ("", record["error"] or "sound"),
        ("model", f"{printable(base.id)} ({base.fingerprint[:12]}), weights sha256 {weights}"),
        ("effect", _describe_effect(verification.on_model)),
        ("over its bias", _describe_effect(verification.over_bias)),
        ("rank", f"{adapter.rank}, {len(adapter.a)} layers, all values finite"),
        ("sha256", adapter.sha256()),
    ]
    if display.as_json:
        more = {"sha256": adapter.sha256(), "model": base.id}
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
    adapter: Annotated[
        Path, typer.Argument(readable=False, metavar="ADAPTER", help="Export this adapter.", rich_help_panel=READ)
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
            help="Write a folder for peft, or a .gguf file for gguf.",
            show_default="beside the adapter",
            rich_help_panel=WRITE,
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert an adapter to the format of another engine.

    peft is a folder for transformers with peft, and for vLLM. gguf is an adapter file for llama.cpp. The command line
    that serves the adapter is printed.
    """
    with command(as_json, quiet, debug) as display:
        export_adapter(adapter, form, output, overwrite, display)


def export_adapter(path: Path, form: str, output: Path | None, overwrite: bool, display: Display) -> None:
    """Write the export, beside the adapter if `output` is None, and print how to serve it."""
    from v2l.adapters.adapter import Adapter
    from v2l.adapters.export import export_gguf, export_peft, serving_command
    from v2l.inference.targets import ADAPTER_SUFFIX

    adapter = Adapter.load(path)
    name = path.name.removesuffix(ADAPTER_SUFFIX)
    if form == ExportFormat.gguf:
        output = output or path.with_name(f"{name}.gguf")
        if output.suffix != ".gguf":
            raise UsageError(f"-o {printable(output)} must end in .gguf, by which the tools of llama.cpp know it")
        check_replaceable(output, overwrite)
        export_gguf(adapter, output)
        size = os.stat(output).st_size
    else:
        output = output or path.with_name(f"{name}.peft")
        export_peft(adapter, output, overwrite)
        size = sum(file.stat().st_size for file in output.iterdir())
    line = serving_command(adapter, output, form)
    display.result(shown(output), {"command": "export", "format": form, "output": output, "bytes": size, "serve": line})
    display.note(f"{amount(size)}, rank {adapter.rank}; to serve it: {line}")
