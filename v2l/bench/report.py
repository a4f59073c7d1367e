"""Tables of a bench: token load, time to first token, and the time per question over many questions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from v2l.bench.methods import METHODS
from v2l.bench.results import Cell, Encoding
from v2l.io.text import amount, duration

Table = tuple[list[str], list[list[str]]]
HEADLINE, FLOOR, COLD = "adapter, attached", METHODS[-1].name, METHODS[0].name
UNKNOWN, NOT_MEASURED = "-", "not measured"
UNSTEADY, MARK = 2.0, " *"
"""The spread of repeats from which a median is marked, and its mark."""


UNCHARGED = "no time includes loading a model or its first answer, neither v2l's nor transformers'"
"""The remark under the tables."""


@dataclass(frozen=True)
class BenchSetting:
    """The cells of one number of frames at one resolution, and the encoding of its adapter, None if the budget ended
    before it."""

    cells: tuple[Cell, ...]
    encoding: Encoding | None

    @property
    def frames(self) -> int:
        """Number of frames of every method except the one with few."""
        return self.cells[0].frames

    @property
    def resolution(self) -> int:
        """Longest edge of a frame in pixels."""
        return self.cells[0].resolution

    def cell(self, method: str) -> Cell | None:
        """Return the cell of a method, None if it was neither measured nor estimated."""
        return next((cell for cell in self.cells if cell.way == method and cell.first_token), None)

    def speedup(self, cell: Cell) -> float | None:
        """How many times faster the first token of the attached adapter is."""
        adapter = self.cell(HEADLINE)
        return cell.median / adapter.median if adapter and adapter.median and cell.median else None

    def fewer_tokens(self, cell: Cell) -> float | None:
        """How many times fewer tokens the adapter's prompt has."""
        adapter = self.cell(HEADLINE)
        return cell.prompt_tokens / adapter.prompt_tokens if adapter and cell.prompt_tokens else None

    def compares(self, cell: Cell) -> bool:
        """Return whether the times of this method and of the adapter were measured."""
        adapter = self.cell(HEADLINE)
        return adapter is not None and adapter.status == cell.status == "measured"

    def break_even(self, cell: Cell) -> int | None:
        """Number of questions about one video from which encoding it and asking the adapter takes less total time than
        this method; None if that never happens, or if one of them was not measured (`compares`)."""
        adapter = self.cell(HEADLINE)
        if adapter is None or cell is adapter or not self.compares(cell):
            return None
        more_preparation, less_per_question = _prepare(adapter) - _prepare(cell), _median(cell) - _median(adapter)
        if more_preparation <= less_per_question:
            return 1
        return math.ceil(more_preparation / less_per_question) if less_per_question > 0 else None

    def record(self, cell: Cell) -> dict[str, Any]:
        """Return a cell as plain values, with the values derived from it."""
        derived = {"median": cell.median, "p95": cell.p95, "adapter_is_faster": self.speedup(cell)}
        derived |= {
            "spread": cell.spread,
            "adapter_has_fewer_tokens": self.fewer_tokens(cell),
            "adapter_pays_from": self.break_even(cell),
        }
        return dataclasses.asdict(cell) | derived


def compare(results: Sequence[Cell | Encoding]) -> list[BenchSetting]:
    """Group results by number of frames and resolution, in their order."""
    groups: dict[tuple[int, int], list[Cell | Encoding]] = {}
    for result in results:
        groups.setdefault((result.frames, result.resolution), []).append(result)
    settings = []
    for group in groups.values():
        cells = tuple(result for result in group if isinstance(result, Cell))
        encoding = next((result for result in group if isinstance(result, Encoding)), None)
        settings.append(BenchSetting(cells, encoding))
    return settings


# Tables ------------------------------------------------------------------------------------------------------------


def token_load(setting: BenchSetting) -> Table:
    """Table of the tokens of one question and the size of what is kept of the video."""
    header = ["token load", "visual tokens", "prompt tokens", "adapter has fewer", "kept of the video"]
    rows = []
    for cell in setting.cells:
        kept = UNKNOWN if cell.kept_bytes is None else amount(cell.kept_bytes) if cell.kept_bytes else "nothing"
        fewer = times(setting.fewer_tokens(cell)) if cell.in_context else ""
        rows.append([cell.way, f"{cell.visual_tokens:,}", f"{cell.prompt_tokens:,}", fewer, kept])
    return header, rows


def first_token(setting: BenchSetting) -> Table:
    """Table of the time to the first token and the speed after it."""
    header = ["time to first token", "median", "p95", "repeats", "adapter is faster", "tokens/s", "peak memory", ""]
    rows = []
    for cell in setting.cells:
        measured = cell.status == "measured"
        about = "about " if cell.status == "estimated" else ""
        speedup = setting.speedup(cell) if cell.way != HEADLINE else None
        rows.append(
            [
                cell.way,
                UNKNOWN if cell.median is None else about + duration(cell.median) + (MARK if unsteady(cell) else ""),
                UNKNOWN if cell.p95 is None or not measured else duration(cell.p95),
                str(len(cell.first_token)) if measured else UNKNOWN,
                "" if cell.way == HEADLINE else times(speedup),
                UNKNOWN if cell.tokens_per_second is None else f"{cell.tokens_per_second:.1f}",
                UNKNOWN if cell.peak_memory is None else amount(cell.peak_memory),
                _remark(cell),
            ]
        )
    return header, rows


def unsteady(cell: Cell) -> bool:
    """Whether the repeats differ so much that the median says little."""
    return cell.spread is not None and cell.spread > UNSTEADY


def unsteady_line(settings: Sequence[BenchSetting]) -> str | None:
    """Explain the marked medians; None without any."""
    spreads = [cell.spread for each in settings for cell in each.cells if cell.spread is not None and unsteady(cell)]
    if not spreads:
        return None
    return (
        f"{MARK.strip()} repeats differ by more than {UNSTEADY:g} x (up to {times(max(spreads))}): the machine was "
        "busy, measure again when it is idle"
    )


def amortization(setting: BenchSetting, questions: int) -> Table:
    """Table of the time per question, including preparation, by the number of questions about one video."""
    counts = question_counts(questions)
    header = ["time per question", "once per video", *map(_questions, counts), "adapter pays off from"]
    rows = []
    for cell in setting.cells:
        pays_off = _pays_off(setting, cell) if cell.in_context else ""
        if cell.status != "measured":
            rows.append([cell.way, NOT_MEASURED, *[UNKNOWN] * len(counts), pays_off])
            continue
        means = [duration(per_question(cell, count)) for count in counts]
        once = duration(_prepare(cell)) if _prepare(cell) else "nothing"
        rows.append([cell.way, once, *means, pays_off])
    return header, rows


def _pays_off(setting: BenchSetting, cell: Cell) -> str:
    if not setting.compares(cell):
        return NOT_MEASURED
    pays = setting.break_even(cell)
    return "never" if pays is None else _questions(pays)


def sweep(settings: Sequence[BenchSetting]) -> list[Table]:
    """Tables of frames by resolution: the adapter's speedup over the cold method in context, and its reduction of
    prompt tokens."""
    frames, resolutions = sweep_axes(settings)
    tables = []
    for title, value in (("faster than cold", BenchSetting.speedup), ("fewer tokens", BenchSetting.fewer_tokens)):
        found = grid(settings, value)
        rows = [[str(count), *map(times, line)] for count, line in zip(frames, found, strict=True)]
        tables.append(([f"adapter, {title}", *(f"{resolution} px" for resolution in resolutions)], rows))
    return tables


def sweep_axes(settings: Sequence[BenchSetting]) -> tuple[list[int], list[int]]:
    """Return the numbers of frames and the resolutions of a sweep."""
    return (
        list(dict.fromkeys(setting.frames for setting in settings)),
        list(dict.fromkeys(setting.resolution for setting in settings)),
    )


def grid(settings: Sequence[BenchSetting], value: Any) -> list[list[float | None]]:
    """Return value(setting, its cold cell) by frames and resolution, None if the cell was not measured."""
    frames, resolutions = sweep_axes(settings)
    by_place = {(each.frames, each.resolution): each for each in settings}

    def at(place: tuple[int, int]) -> float | None:
        cell = by_place[place].cell(COLD) if place in by_place else None
        return value(by_place[place], cell) if cell else None

    return [[at((count, resolution)) for resolution in resolutions] for count in frames]


def encoding_line(encoding: Encoding) -> str:
    """Describe the time of an encoding, part by part."""
    return (
        f"encoding {encoding.frames:,} frames in {encoding.windows} window{'s' if encoding.windows > 1 else ''}: "
        f"decoding and vision {duration(encoding.see)}, prefill {duration(encoding.read)}, hypernetwork "
        f"{duration(encoding.generate)} (+{encoding.added:.0%})"
    )


def question_counts(most: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50, ... and `most` as the last."""
    rounds = [digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5)]
    return [*(count for count in rounds if count < most), most]


def per_question(cell: Cell, count: int) -> float:
    """Return the mean seconds to the first token over `count` questions, including preparation, of a measured cell."""
    return _prepare(cell) / count + _median(cell)


def _questions(count: int) -> str:
    return f"{count:,} question{'s' if count > 1 else ''}"


def _prepare(cell: Cell) -> float:
    assert cell.prepare is not None, "a measured cell was prepared"
    return cell.prepare


def _median(cell: Cell) -> float:
    assert cell.median is not None, "a measured cell has repeats"
    return cell.median


def times(factor: float | None) -> str:
    """Format a factor; UNKNOWN for None."""
    if factor is None:
        return UNKNOWN
    return f"{factor:,.0f} x" if factor >= 100 else f"{factor:.3g} x"


def _remark(cell: Cell) -> str:
    beyond = "beyond the model's positions" if cell.beyond_positions else ""
    status = f"{cell.status}: {cell.why}" if cell.why else ""
    return "; ".join(part for part in (beyond, status) if part)
