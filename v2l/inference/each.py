"""Ask every segment of a video the same question: a timeline of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from v2l.adapters.adapter import Adapter
from v2l.adapters.segments import keep_segments
from v2l.adapters.timeline import Timeline
from v2l.inference.ask import ROWS_AT_ONCE, answer_each, join_equal
from v2l.inference.limits import MAX_NEW_TOKENS
from v2l.models.smolvlm import FrozenVLM


@dataclass(frozen=True)
class SegmentAnswer:
    """The answer of consecutive segments that agree. start, end: seconds of the video"""

    start: float
    end: float
    text: str


def ask_segments(
    source: Adapter | Timeline,
    question: str,
    load_model: Callable[[], FrozenVLM],
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[SegmentAnswer]:
    """Answer a question from every segment alone, in order; equal answers of neighbours are joined.

    A question of the file's index is answered from the index, and `load_model` is not called.
    progress: called with the answered segments and their number
    Raises V2LError as `stream` does.
    """
    if (found := indexed_answers(source, question)) is None:
        count = _count(source)
        found = []
        for start in range(0, count, ROWS_AT_ONCE):
            adapters = [_segment(source, number) for number in range(start, min(start + ROWS_AT_ONCE, count))]
            rows = answer_each(adapters, [question] * len(adapters), load_model(), max_new_tokens, strength, whole=True)
            found += [answer.text for answer in rows]
            progress(len(found), count)
    spans = [(segment.start, segment.end) for segment in source.description.segments]
    joined = join_equal([(*span, text) for span, text in zip(spans, found, strict=True)])
    return [SegmentAnswer(*each) for each in joined]


def indexed_answers(source: Adapter | Timeline, question: str) -> list[str] | None:
    """Return the answers that the index of a file holds for a question; None if it holds none."""
    if isinstance(source, Adapter) or question not in source.description.questions:
        return None
    place = source.description.questions.index(question)
    return [part.answers[place] for part in source.description.segments]


def _count(source: Adapter | Timeline) -> int:
    return len(source.description.segments)


def _segment(source: Adapter | Timeline, number: int) -> Adapter:
    return keep_segments(source, [number]) if isinstance(source, Adapter) else source.select([number])


def to_srt(answers: Sequence[SegmentAnswer]) -> str:
    """Format answers as SubRip subtitles."""
    blocks = (
        f"{number}\n{_stamp(each.start, ',')} --> {_stamp(each.end, ',')}\n{_lines(each.text)}\n"
        for number, each in enumerate(answers, start=1)
    )
    return "\n".join(blocks)


def to_vtt(answers: Sequence[SegmentAnswer]) -> str:
    """Format answers as WebVTT subtitles."""
    blocks = (
        f"{_stamp(each.start, '.')} --> {_stamp(each.end, '.')}\n{_escape_vtt(_lines(each.text))}\n" for each in answers
    )
    return "\n".join(["WEBVTT\n", *blocks])


def _stamp(seconds: float, point: str) -> str:
    """Format a time as HH:MM:SS.mmm with this decimal point."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _lines(text: str) -> str:
    """Remove empty lines and arrows, which would end or start a cue."""
    return "\n".join(line for line in text.splitlines() if line.strip()).replace("-->", "->") or "-"


def _escape_vtt(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
