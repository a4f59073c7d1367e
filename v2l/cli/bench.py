"""`v2l bench`: token load and time to first token, with an adapter and with the video in context."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2l.bench.plan import AMORTIZED_QUESTIONS, Plan
from v2l.cli.console import Display, announce_model, command, shown
from v2l.cli.help import GroupedCommand
from v2l.cli.options import (
    MODEL,
    READ,
    WRITE,
    Arch,
    Debug,
    Device,
    HypernetworkFile,
    Json,
    Model,
    NumberType,
    Plot,
    Quiet,
    Resolutions,
    check_above_zero,
    check_plot,
    model_loader,
    one_of,
    whole_numbers,
)
from v2l.errors import UsageError
from v2l.video.limits import LEAST_RESOLUTION

if TYPE_CHECKING:
    from v2l.bench.report import BenchSetting
    from v2l.bench.results import Cell, Encoding
    from v2l.bench.runner import Bench
    from v2l.inference.model_loader import ModelLoader
    from v2l.models.hypernetwork import Hypernetwork
    from v2l.models.smolvlm import FrozenVLM

MEASUREMENT = "Measurement"
TRUE_SIZE = "v2l bench --arch smolvlm2-500m --random-weights --frames 12"


class BenchCommand(GroupedCommand):
    """`v2l bench --help` with an example."""

    example = "v2l bench lecture.mp4 --model smolvlm2-500m --frames 12,64 -o bench.jsonl"
    runs_alone = True


def bench(
    video: Annotated[
        Path | None,
        typer.Argument(
            readable=False,
            metavar="VIDEO",
            help="Measure with this video. Without one, a clip with the largest number of frames is drawn.",
            rich_help_panel=READ,
        ),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Read N frames of the video. Several values are a sweep.",
            show_default=",".join(map(str, Plan.frames)),
            rich_help_panel=READ,
        ),
    ] = None,
    resolution: Resolutions = None,
    segments: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Compose the adapter from N segments.",
            show_default=str(Plan.segments),
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Spread the cost of preparation over up to N questions about the video.",
            show_default=str(AMORTIZED_QUESTIONS),
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Repeat each measurement N times.",
            show_default="30 if one takes less than a second, else 5",
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Generate N tokens, to time those after the first.",
            show_default=str(Plan.new_tokens),
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Start no measurement after this time.", rich_help_panel=MEASUREMENT),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            readable=False,
            metavar="FILE",
            help="Append measurements to FILE, and resume from it.",
            rich_help_panel=WRITE,
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv", readable=False, metavar="FILE", help="Write all measurements as one table.", rich_help_panel=WRITE
        ),
    ] = None,
    plot: Plot = None,
    arch: Annotated[
        Arch | None,
        typer.Option(
            metavar="NAME",
            help=f"Build {one_of(Arch)} in memory; needs --random-weights.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Use random weights: times and sizes are measured, answers mean nothing.",
            rich_help_panel=MODEL,
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
    """Measure the cost of an answer.

    Every method answers on the same weights and frames: in context without a cache (the usual baseline), with cached
    frames, features or key-value states, and with 12 frames only; from the adapter; and without a video, the lower
    bound. Prints the token load, the time to the first token, and the mean time over many questions about one video.
    """
    with command(as_json, quiet, debug) as display:
        check_above_zero("--budget", budget)
        if bool(arch) != random_weights:
            raise UsageError("--arch and --random-weights belong together: give both, or neither for real weights")
        if arch and (model or hypernetwork):
            raise UsageError("--arch builds its own model and hypernetwork; leave out --model and --hypernetwork")
        check_plot(plot)
        given: dict[str, Any] = {
            "frames": whole_numbers(frames, "--frames") or None,
            "resolutions": whole_numbers(resolution, "--resolution", LEAST_RESOLUTION) or None,
            "video": video,
            "repeats": repeats,
            "new_tokens": new_tokens,
            "segments": segments,
            "budget": budget,
        }
        loader = model_loader(model, hypernetwork, device, dtype, display)
        if not arch and (video or loader.chosen_by == "fallback"):
            announce_model(loader, display)
        run(
            Plan(**{name: value for name, value in given.items() if value is not None}),
            loader,
            arch,
            BenchOutputs(output, table, plot, questions or AMORTIZED_QUESTIONS),
            display,
        )


@dataclass(frozen=True)
class BenchOutputs:
    """The files of a bench and what its tables show.

    journal: the measurements, from which a run resumes; table: a CSV file of all of them; plot: an image
    questions: the largest number of questions about one video in the tables
    """

    journal: Path | None
    table: Path | None
    plot: Path | None
    questions: int


def run(plan: Plan, loader: ModelLoader, arch: str | None, outputs: BenchOutputs, display: Display) -> None:
    """Measure, print each result as it comes, then print the tables and write the files."""
    from v2l.bench.report import compare
    from v2l.bench.runner import Bench
    from v2l.io.journal import Journal

    with tempfile.TemporaryDirectory(prefix="v2l-bench-") as place, _load_models(loader, arch, Path(place)) as models:
        bench = Bench(*models, plan, Path(place))
        header = bench.header()
        journal = Journal(outputs.journal, header, "bench", "model, machine or setting") if outputs.journal else None
        if display.as_json:
            display.result("", {"command": "bench", **header})
        else:
            display.note(_describe_video(header, bench))
        results = list(_print_results(bench.run(journal), display))
    settings, title = compare(results), _title(header, arch)
    if not display.as_json:
        _print_tables(settings, outputs.questions, title, display)
    _write_files(settings, outputs, title, display)
    left_out = sum(cell.status == "left out" for setting in settings for cell in setting.cells)
    if left_out:
        resume = "the same command continues" if outputs.journal else "--output FILE keeps them, so that it can resume"
        display.warn(f"{left_out} measurements were left out because the budget is spent; {resume}")
    if arch is None and loader.model == "tiny":
        display.note(f"tiny is small; to measure a real size with random weights: {TRUE_SIZE}")


@contextmanager
def _load_models(loader: ModelLoader, arch: str | None, folder: Path) -> Iterator[tuple[FrozenVLM, Hypernetwork]]:
    from v2l.bench.random_model import random_model

    yield random_model(arch, folder / "model", loader.device, loader.number_type) if arch else loader.load()


def _print_results(results: Iterator[Cell | Encoding], display: Display) -> Iterator[Cell | Encoding]:
    """Print and yield the results; with --json, those of a setting are printed together, as they are compared."""
    from v2l.bench.report import encoding_line
    from v2l.bench.results import Encoding

    held: list[Cell | Encoding] = []
    for result in results:
        if held and (held[0].frames, held[0].resolution) != (result.frames, result.resolution):
            _print_records(held, display)
            held = []
        held.append(result)
        what = encoding_line(result) if isinstance(result, Encoding) else f"{result.way}: {result.status}"
        display.note(f"{result.frames:,} frames, {result.resolution} px: {what}")
        yield result
    _print_records(held, display)


def _print_records(results: Sequence[Cell | Encoding], display: Display) -> None:
    from v2l.bench.report import compare

    if not display.as_json or not results:
        return
    (setting,) = compare(results)
    for cell in setting.cells:
        display.result("", {"command": "bench", "kind": "way", **setting.record(cell)})
    if setting.encoding:
        encoding = {**vars(setting.encoding), "added": setting.encoding.added}
        display.result("", {"command": "bench", "kind": "encoding", **encoding})


def _title(header: Mapping[str, Any], arch: str | None) -> str:
    machine = header["machine"]
    name = f"{arch}, RANDOM WEIGHTS: only times and sizes mean anything" if arch else header["bench"]
    if header["segments"] > 1:
        name += f", adapters composed of {header['segments']} segments"
    return f"{name}; {header['dtype']} on {machine['name']}, {machine['threads']} threads, torch {machine['torch']}"


def _describe_video(header: Mapping[str, Any], bench: Bench) -> str:
    video = bench.probed
    drawn = "" if bench.plan.video else "drawn "
    return (
        f"{drawn}video: {video.frame_count:,} frames, {video.width} x {video.height}, {video.duration:,.0f} s; "
        f"sha256 {header['video'][:12]}"
    )


def _print_tables(settings: Sequence[BenchSetting], questions: int, title: str, display: Display) -> None:
    from v2l.bench.report import (
        UNCHARGED,
        amortization,
        encoding_line,
        first_token,
        sweep,
        token_load,
        unsteady_line,
    )

    for setting in settings:
        display.write(f"{setting.frames:,} frames, {setting.resolution} px; {title}\n")
        for table in (token_load(setting), first_token(setting), amortization(setting, questions)):
            display.table(*table)
            display.write("\n")
        if setting.encoding:
            display.write(encoding_line(setting.encoding) + "\n\n")
    display.write(f"{UNCHARGED}\n")
    if line := unsteady_line(settings):
        display.write(line + "\n")
    if len(settings) > 1:
        for table in sweep(settings):
            display.table(*table)
            display.write("\n")


def _write_files(settings: Sequence[BenchSetting], outputs: BenchOutputs, title: str, display: Display) -> None:
    from v2l.io.files import write_atomically

    if outputs.table:
        records = [each.record(cell) for each in settings for cell in each.cells]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]))
        writer.writeheader()
        for record in records:
            writer.writerow(record | {"first_token": " ".join(map(str, record["first_token"]))})
        write_atomically(outputs.table, text.getvalue().encode())
        display.note(f"wrote {shown(outputs.table)}")
    if outputs.plot:
        from v2l.cli.plots import plot_bench, write_pictures

        pictures = plot_bench(settings, outputs.questions, title, outputs.plot.suffix[1:])
        display.note(f"wrote {', '.join(map(shown, write_pictures(outputs.plot, pictures)))}")
