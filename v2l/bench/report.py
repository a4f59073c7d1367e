"""What a bench found, as tables: token load, time to first token, and what it comes to over many questions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from v2l.bench.methods import METHODS
from v2l.bench.runner import Cell, Encoding
from v2l.io.text import amount, duration

Table = tuple[list[str], list[list[str]]]
HEADLINE, FLOOR, COLD = "adapter, attached", METHODS[-1].name, METHODS[0].name
UNKNOWN = "-"


@dataclass(frozen=True)
class BenchSetting:
    """The cells of one number of frames at one resolution, and the encoding that its adapters cost; None where the
    budget did not reach it."""

    cells: tuple[Cell, ...]
    encoding: Encoding | None

    @property
    def frames(self) -> int:
        """Shown in every way but the one with few."""
        return self.cells[0].frames

    @property
    def resolution(self) -> int:
        """Pixels of a frame's longest edge."""
        return self.cells[0].resolution

    def cell(self, way: str) -> Cell | None:
        """That way's, where it was measured or estimated."""
        return next((cell for cell in self.cells if cell.way == way and cell.first_token), None)

    def speedup(self, cell: Cell) -> float | None:
        """How many times sooner the attached adapter's first token comes."""
        adapter = self.cell(HEADLINE)
        return cell.median / adapter.median if adapter and cell.median else None

    def fewer_tokens(self, cell: Cell) -> float | None:
        """How many times fewer tokens the adapter's prompt has."""
        adapter = self.cell(HEADLINE)
        return cell.prompt_tokens / adapter.prompt_tokens if adapter and cell.prompt_tokens else None

    def break_even(self, cell: Cell) -> int | None:
        """The number of questions about one video from which encoding it and asking the adapter takes less time
        altogether than this way; None where that never happens, or is not known."""
        adapter = self.cell(HEADLINE)
        if adapter is None or cell.median is None or cell.prepare is None or cell is adapter:
            return None
        head_start = adapter.prepare - cell.prepare
        gained = cell.median - adapter.median
        if head_start + adapter.median <= cell.median:
            return 1
        return math.ceil(head_start / gained) if gained > 0 else None

    def record(self, cell: Cell) -> dict[str, Any]:
        """A cell as plain values, with what is derived from it."""
        derived = {"median": cell.median, "p95": cell.p95, "adapter_is_faster": self.speedup(cell)}
        derived |= {"adapter_has_fewer_tokens": self.fewer_tokens(cell), "adapter_pays_from": self.break_even(cell)}
        return dataclasses.asdict(cell) | derived


def compare(results: Sequence[Cell | Encoding]) -> list[BenchSetting]:
    """One for every number of frames and resolution, in their order."""
    places = list(dict.fromkeys((result.frames, result.resolution) for result in results))
    found = []
    for place in places:
        here = [result for result in results if (result.frames, result.resolution) == place]
        encodings = [result for result in here if isinstance(result, Encoding)]
        found.append(BenchSetting(tuple(r for r in here if isinstance(r, Cell)), encodings[0] if encodings else None))
    return found


# Tables ------------------------------------------------------------------------------------------------------------


def token_load(comparison: BenchSetting) -> Table:
    """What goes into the model for one question, and what is kept of the video for it."""
    header = ["token load", "visual tokens", "prompt tokens", "adapter has fewer", "kept of the video"]
    rows = []
    for cell in comparison.cells:
        kept = UNKNOWN if cell.kept_bytes is None else amount(cell.kept_bytes) if cell.kept_bytes else "nothing"
        fewer = _times(comparison.fewer_tokens(cell)) if cell.in_context else ""
        rows.append([cell.way, f"{cell.visual_tokens:,}", f"{cell.prompt_tokens:,}", fewer, kept])
    return header, rows


def first_token(comparison: BenchSetting) -> Table:
    """When the first token comes, and how fast the others follow."""
    header = ["time to first token", "median", "p95", "repeats", "adapter is faster", "tokens/s", "peak memory", ""]
    rows = []
    for cell in comparison.cells:
        measured = cell.status == "measured"
        about = "about " if cell.status == "estimated" else ""
        speedup = comparison.speedup(cell) if cell.way != HEADLINE else None
        rows.append(
            [
                cell.way,
                UNKNOWN if cell.median is None else about + duration(cell.median),
                duration(cell.p95) if measured else UNKNOWN,
                str(len(cell.first_token)) if measured else UNKNOWN,
                "" if cell.way == HEADLINE else _times(speedup),
                UNKNOWN if cell.tokens_per_second is None else f"{cell.tokens_per_second:.1f}",
                UNKNOWN if cell.peak_memory is None else amount(cell.peak_memory),
                _remark(cell),
            ]
        )
    return header, rows


def amortization(comparison: BenchSetting, questions: int) -> Table:
    """Seconds a question, preparation included, by the number of questions about one video."""
    counts = question_counts(questions)
    header = ["time per question", "once a video", *(f"of {count}" for count in counts), "adapter pays from"]
    rows = []
    for cell in comparison.cells:
        if cell.status != "measured":
            rows.append([cell.way, *[UNKNOWN] * (len(counts) + 2)])
            continue
        pays = comparison.break_even(cell)
        told = "never" if pays is None else f"{pays:,} question{'s' if pays > 1 else ''}"
        means = [duration(per_question(cell, count)) for count in counts]
        once = duration(cell.prepare) if cell.kept_bytes else "nothing"
        rows.append([cell.way, once, *means, told if cell.in_context else ""])
    return header, rows


def sweep(comparisons: Sequence[BenchSetting]) -> list[Table]:
    """Frames by resolution: how much sooner the adapter's first token comes than in context, cold, and with how many
    times fewer tokens."""
    frames, resolutions = axes(comparisons)
    tables = []
    for title, value in (("faster than cold", BenchSetting.speedup), ("fewer tokens", BenchSetting.fewer_tokens)):
        found = grid(comparisons, value)
        rows = [[str(count), *map(_times, line)] for count, line in zip(frames, found, strict=True)]
        tables.append(([f"adapter, {title}", *(f"{resolution} px" for resolution in resolutions)], rows))
    return tables


def axes(comparisons: Sequence[BenchSetting]) -> tuple[list[int], list[int]]:
    """The numbers of frames and the resolutions of a sweep."""
    return (
        list(dict.fromkeys(comparison.frames for comparison in comparisons)),
        list(dict.fromkeys(comparison.resolution for comparison in comparisons)),
    )


def grid(comparisons: Sequence[BenchSetting], value: Any) -> list[list[float | None]]:
    """value(comparison, its cold cell) by frames and resolution; None where that was not measured."""
    frames, resolutions = axes(comparisons)
    by_place = {(each.frames, each.resolution): each for each in comparisons}

    def at(place: tuple[int, int]) -> float | None:
        cell = by_place[place].cell(COLD) if place in by_place else None
        return value(by_place[place], cell) if cell else None

    return [[at((count, resolution)) for resolution in resolutions] for count in frames]


def encoding_line(encoding: Encoding) -> str:
    """What an encoding costs, part by part."""
    return (
        f"encoding {encoding.frames:,} frames in {encoding.windows} window{'s' if encoding.windows > 1 else ''}: "
        f"decoding and vision {duration(encoding.see)}, prefill {duration(encoding.read)}, hypernetwork "
        f"{duration(encoding.generate)} (+{encoding.added:.0%})"
    )


def question_counts(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to that many."""
    rounds = [digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5)]
    return [*(count for count in rounds if count < most), most]


def per_question(cell: Cell, count: int) -> float:
    """Mean seconds to the first token over that many questions, preparation included."""
    return cell.prepare / count + cell.median


def _times(factor: float | None) -> str:
    if factor is None:
        return UNKNOWN
    return f"{factor:,.0f} x" if factor >= 100 else f"{factor:.3g} x"


def _remark(cell: Cell) -> str:
    beyond = "beyond the model's positions" if cell.beyond_positions else ""
    told = f"{cell.status}: {cell.why}" if cell.why else ""
    return "; ".join(part for part in (beyond, told) if part)
