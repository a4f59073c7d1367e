"""Commands that bring models to this machine: `v2l pull` and `v2l import`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from v2l.cli.console import Display, command, shown
from v2l.cli.help import GroupedCommand
from v2l.cli.options import READ, WRITE, Arch, Debug, Dtype, Json, Overwrite, Quiet, check_replaceable, one_of
from v2l.cli.proof import prove_pulled
from v2l.errors import UsageError
from v2l.io.text import amount, printable

if TYPE_CHECKING:
    from v2l.models.pull import PullOptions


ASKED_ABOVE = 10**9
"""Bytes of a download from which a terminal is asked before it."""


class PullCommand(GroupedCommand):
    """`v2l pull --help` with an example."""

    example = "v2l pull smolvlm2-500m"

    @classmethod
    def hint(cls, parameter: str, value: str) -> str:
        """Return what can be pulled instead of a name that is no preset."""
        from v2l.models.presets import no_preset

        return no_preset(value) if parameter == "preset" else ""


class ImportCommand(GroupedCommand):
    """`v2l import --help` with an example."""

    example = "v2l import hypernetwork.pt -o hypernetwork.safetensors"


def pull(
    preset: Annotated[
        Arch, typer.Argument(metavar="PRESET", help=f"Fetch this preset: {one_of(Arch)}.", rich_help_panel=READ)
    ],
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Fetch this branch, tag or commit of the model.",
            show_default="the revision that was recorded before, else the newest",
            rich_help_panel=READ,
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            help="Store the model in bfloat16 or float16, half the size, instead of float32 as published.",
            show_default="as stored before, else as published",
            rich_help_panel=WRITE,
        ),
    ] = None,
    default: Annotated[
        bool,
        typer.Option(
            "--default",
            help="Use the preset if no model is named. The first preset that is pulled becomes the default by itself.",
            rich_help_panel=WRITE,
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="Download without asking on a terminal.", rich_help_panel=WRITE),
    ] = False,
    no_proof: Annotated[
        bool,
        typer.Option("--no-proof", help="Leave out the proof, which takes minutes on a CPU.", rich_help_panel=READ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch a frozen model and its hypernetwork.

    smolvlm2-500m downloads 2.03 + 0.51 GB and smolvlm2-2.2b 8.99 + 0.91 GB; the published weights are float32. The
    exact size is told before, and above 1 GB a terminal is asked. The hypernetwork is kept once more, as v2l's own
    file. A model stored with --dtype is the same model as far as adapters are concerned: those made with the one are
    accepted by the other.

    No other command uses the network, except eval with --judge. Every file is checked against the hash that the hub
    states, and recorded, so that later runs use the same file. Then both are loaded and tested. HF_HOME, HF_TOKEN,
    HF_ENDPOINT and HF_HUB_OFFLINE are respected.

    The download is then proven as by verify --video, on two drawn clips. The preset is recorded before: Ctrl-C
    only ends the proof, and a proof that fails is a warning, not an error, and removes nothing.
    """
    with command(as_json, quiet, debug) as display:
        from v2l.models.pull import PullOptions

        fetched = pull_preset(preset, PullOptions(revision, default, dtype), yes, display)
        if fetched and not no_proof:
            prove_pulled(preset, display)


def pull_preset(name: str, options: PullOptions, yes: bool, display: Display) -> bool:
    """Fetch a preset and print its licences and whether it is the default; True if anything was downloaded.

    yes: do not ask before the download
    """
    from v2l.models.lock_file import lock_path, read_lock
    from v2l.models.pull import PullWatch, pull

    fetched = False

    def confirm(size: int) -> bool:
        nonlocal fetched
        fetched = True
        return yes or size <= ASKED_ABOVE or display.confirm(f"download {amount(size)}?")

    def progress(done: int, total: int, file: str) -> None:
        if not display.has_progress:
            display.start_progress(total, "B")
        display.progress(done, total, file)
        if done >= total:
            display.end_progress()

    for pulled in pull(name, options, PullWatch(display.note, confirm, progress)):
        text = f"{pulled.repo}  {pulled.commit[:12]}, {amount(pulled.size)}, licence {printable(pulled.licence)}"
        display.result(text, {"command": "pull", **dataclasses.asdict(pulled)})
    default = read_lock().default
    state = "it is the default now" if default == name else f"the default stays {default}; --default changes it"
    display.note(f"{name} is complete and loads; {state}; recorded in {printable(lock_path())}")
    return fetched


def import_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            readable=False, metavar="CHECKPOINT.pt", help="Convert this published hypernetwork.", rich_help_panel=READ
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            readable=False,
            metavar="FILE",
            help="Write the hypernetwork as .safetensors.",
            rich_help_panel=WRITE,
        ),
    ],
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert a published checkpoint to a hypernetwork file.

    The checkpoint is a pickle. It is read as data, and nothing in it is executed.
    """
    with command(as_json, quiet, debug) as display:
        import_published(checkpoint, output, overwrite, display)


def import_published(checkpoint: Path, output: Path, overwrite: bool, display: Display) -> None:
    """Write a published checkpoint as a hypernetwork file."""
    from v2l.inference.naming import ADAPTER_SUFFIX
    from v2l.models.checkpoint import import_checkpoint

    if output.suffix != ".safetensors" or output.name.endswith(ADAPTER_SUFFIX):
        raise UsageError(
            f"-o {printable(output)} must end in .safetensors but not in {ADAPTER_SUFFIX}, which is for adapters"
        )
    check_replaceable(output, overwrite)
    hypernetwork = import_checkpoint(checkpoint, output)
    provenance = hypernetwork.provenance
    assert provenance is not None, "an imported hypernetwork is read from a file"
    display.note(f"a hypernetwork for {printable(provenance.base_model)}, rank {hypernetwork.config.rank}")
    record = {
        "command": "import",
        "hypernetwork": output,
        "base_model": provenance.base_model,
        "sha256": provenance.sha256,
    }
    display.result(shown(output), record)
