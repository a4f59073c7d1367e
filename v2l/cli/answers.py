"""How `v2l ask` answers: its options, as its parts pass them on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v2l.video.sampling import Reading


class AnswerFormat(StrEnum):
    """Formats of the answers of all segments."""

    tsv = "tsv"
    srt = "srt"
    vtt = "vtt"


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer.

    reading: how to read videos, both those encoded first and those in context
    max_new_tokens, strength: None for the library's default
    whole: use all segments of an adapter, whatever time a question names
    raw: print control characters without escaping
    each: ask every segment; format: of its answers, None for lines
    """

    reading: Reading
    max_new_tokens: int | None = None
    strength: float | None = None
    whole: bool = False
    raw: bool = False
    each: bool = False
    format: AnswerFormat | None = None

    @property
    def length(self) -> dict[str, Any]:
        """The keyword argument of the length of answers, if given."""
        return {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}

    @property
    def generation(self) -> dict[str, Any]:
        """The keyword arguments of answers from adapters."""
        strength = {} if self.strength is None else {"strength": self.strength}
        return {**self.length, **strength, "whole": self.whole}
