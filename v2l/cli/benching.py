"""What `v2l bench` does once its options are understood."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2l.bench.random_model import random_model
from v2l.bench.report import BenchSetting, amortization, compare, encoding_line, first_token, sweep, token_load
from v2l.bench.results import Cell, Encoding
from v2l.bench.runner import Bench, Plan
from v2l.cli.console import Display, shown
from v2l.inference.model_loader import ModelLoader
from v2l.io.files import write_atomically
from v2l.io.journal import Journal
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM

TRUE_SIZE = "v2l bench --arch smolvlm2-500m --random-weights --frames 12"


@dataclass(frozen=True)
class Outputs:
    """Files beside the tables. journal: finished measurements, gone on from; table: all of them as CSV; plot: an image

    questions: the most about one video that the tables amortize over
    """

    journal: Path | None
    table: Path | None
    plot: Path | None
    questions: int


def bench(plan: Plan, choice: ModelLoader, arch: str | None, outputs: Outputs, display: Display) -> None:
    """Measures, tells of each result as it comes, then prints the tables and writes the files."""
    if outputs.plot:
        from v2l.cli.plots import check_extra

        check_extra()
    with tempfile.TemporaryDirectory(prefix="v2l-bench-") as place, _models(choice, arch, Path(place)) as models:
        run = Bench(*models, plan, Path(place))
        header = run.header()
        journal = Journal(outputs.journal, header, "bench", "model, machine or setting") if outputs.journal else None
        display.result("", {"command": "bench", **header}) if display.as_json else display.note(_about(header, run))
        results = list(_told(run.run(journal), display))
    comparisons = compare(results)
    if not display.as_json:
        _tables(comparisons, outputs.questions, _title(header, arch), display)
    _write_files(comparisons, outputs, _title(header, arch))
    for path in (outputs.table, outputs.plot):
        if path:
            display.note(f"wrote {shown(path)}")
    left_out = sum(cell.status == "left out" for comparison in comparisons for cell in comparison.cells)
    if left_out:
        more = "the same command goes on" if outputs.journal else "--output FILE keeps what is done, to go on from"
        display.warn(f"{left_out} measurements were left out for want of time; {more}")
    if arch is None and choice.model == "tiny":
        display.note(f"tiny is small; the real sizes, with random weights: {TRUE_SIZE}")


@contextmanager
def _models(choice: ModelLoader, arch: str | None, folder: Path) -> Iterator[tuple[FrozenVLM, Hypernetwork]]:
    if arch is None:
        yield choice.load()
        return
    yield random_model(arch, folder / "model", choice.device, choice.number_type)


def _told(results: Iterator[Cell | Encoding], display: Display) -> Iterator[Cell | Encoding]:
    """Passes results on; with --json, cells wait for their comparison's others, which they are compared with."""
    held: list[Cell | Encoding] = []
    for result in results:
        if held and (held[0].frames, held[0].resolution) != (result.frames, result.resolution):
            _records(held, display)
            held = []
        held.append(result)
        what = encoding_line(result) if isinstance(result, Encoding) else f"{result.way}: {result.status}"
        display.note(f"{result.frames:,} frames, {result.resolution} px: {what}")
        yield result
    _records(held, display)


def _records(results: Sequence[Cell | Encoding], display: Display) -> None:
    if not display.as_json or not results:
        return
    (comparison,) = compare(results)
    for cell in comparison.cells:
        display.result("", {"command": "bench", "kind": "way", **comparison.record(cell)})
    if comparison.encoding:
        encoding = {**vars(comparison.encoding), "added": comparison.encoding.added}
        display.result("", {"command": "bench", "kind": "encoding", **encoding})


def _title(header: dict[str, Any], arch: str | None) -> str:
    machine = header["machine"]
    name = f"{arch}, RANDOM WEIGHTS: only times and sizes mean anything" if arch else header["bench"]
    if header["segments"] > 1:
        name += f", adapters composed of {header['segments']} segments"
    return f"{name}; {header['dtype']} on {machine['name']}, {machine['threads']} threads, torch {machine['torch']}"


def _about(header: dict[str, Any], run: Bench) -> str:
    video = run.probed
    drawn = "" if run.plan.video else "drawn "
    return (
        f"{drawn}video: {video.frame_count:,} frames, {video.width} x {video.height}, {video.duration:,.0f} s; "
        f"sha256 {header['video'][:12]}"
    )


def _tables(comparisons: Sequence[BenchSetting], questions: int, title: str, display: Display) -> None:
    for comparison in comparisons:
        display.write(f"{comparison.frames:,} frames, {comparison.resolution} px; {title}\n")
        for table in (token_load(comparison), first_token(comparison), amortization(comparison, questions)):
            display.table(*table)
            display.write("\n")
        if comparison.encoding:
            display.write(encoding_line(comparison.encoding) + "\n\n")
    if len(comparisons) > 1:
        for table in sweep(comparisons):
            display.table(*table)
            display.write("\n")


def _write_files(comparisons: Sequence[BenchSetting], outputs: Outputs, title: str) -> None:
    if outputs.table:
        records = [each.record(cell) for each in comparisons for cell in each.cells]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]))
        writer.writeheader()
        for record in records:
            writer.writerow(record | {"first_token": " ".join(map(str, record["first_token"]))})
        write_atomically(outputs.table, text.getvalue().encode())
    if outputs.plot:
        from v2l.cli.plots import plot_bench

        write_atomically(outputs.plot, plot_bench(comparisons, outputs.questions, title, outputs.plot.suffix[1:]))
