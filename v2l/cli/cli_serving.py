"""The commands between v2l and others, for cli.py: `pull` fetches, `verify` proves, `export` hands over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2l.cli.console import command
from v2l.cli.options import Arch as Preset
from v2l.cli.options import Debug, Device, ExportFormat, Json, Model, NumberType, Quiet

Adapters = Annotated[list[Path], typer.Argument(readable=False, metavar="ADAPTER", help="Adapters.")]


def verify(
    adapters: Adapters,
    model: Model = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prove that adapters are sound and move the model they name.

    Reads keys, shapes and values, hashes the model's weights, and compares what the model says without the adapter,
    with it, and with the learned bias that all adapters of a hypernetwork share. Ends with 1 where one fails.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.cli import commands, serving

        ok = serving.verify(adapters, commands.choice(model, None, device, dtype), display)
        raise typer.Exit(0 if ok else 1)


def export(
    adapter: Annotated[Path, typer.Argument(readable=False, metavar="ADAPTER", help="The adapter.")],
    form: Annotated[ExportFormat, typer.Option("--format", help="For transformers and vLLM, or for llama.cpp.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", readable=False, metavar="PATH", help="A folder for peft, a .gguf for gguf."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write an adapter as other engines read it.

    peft: a folder for transformers with peft, and for vLLM. gguf: an adapter file for llama.cpp. Says which command
    line serves it.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.cli import serving

        serving.export(adapter, form, output, overwrite, display)


def pull(
    preset: Annotated[Preset, typer.Argument(metavar="PRESET", help="smolvlm2-500m or smolvlm2-2.2b.")],
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="NAME", help="Of the model: a branch, tag or commit; else as recorded."),
    ] = None,
    default: Annotated[
        bool, typer.Option("--default", help="Let it stand in where no model is named; the first pulled does.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch a frozen model and its hypernetwork.

    The one command that reaches the network. Every file is proven by the hub's hash and recorded, so that it stays the
    same; then both are loaded and tested. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are obeyed.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.cli import serving

        serving.pull(preset, revision, default, display)
