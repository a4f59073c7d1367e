"""`v2l ask --each`: every segment answers, as lines, a table, or subtitles."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from v2l.cli.answers import AnswerFormat, AnswerOptions
from v2l.cli.console import Display, announce_model, model_record
from v2l.cli.sources import AnswerSource, error_line
from v2l.errors import UsageError, V2LError
from v2l.io.text import clock, inert, printable, tab_separated

if TYPE_CHECKING:
    from v2l.inference.each import SegmentAnswer
    from v2l.models.smolvlm import FrozenVLM


def check_each(
    each: bool, form: AnswerFormat | None, whole: bool, in_context: Sequence[object], display: Display
) -> None:
    """Raise UsageError for options that exclude each other."""
    if form and not each:
        raise UsageError(f"--format {form} needs --each, which asks every segment")
    if each and (whole or in_context):
        raise UsageError("--each asks every segment alone; give it without --whole and --in-context")
    if form and display.as_json:
        raise UsageError("--format and --json exclude each other; give one of them")


def answer_each_segment(
    sources: Sequence[AnswerSource], questions: Sequence[str], options: AnswerOptions, display: Display
) -> bool:
    """Print the answers of all segments of every source; True if all could be answered.

    Raises UsageError if there is no question, or if there are several for one file of subtitles.
    """
    if not questions:
        raise UsageError("--each needs a question: after the adapter, with -q, or on standard input")
    if options.format in (AnswerFormat.srt, AnswerFormat.vtt) and len(sources) * len(questions) != 1:
        raise UsageError(f"--format {options.format} takes one adapter and one question")
    several = len(sources) * len(questions) > 1
    answered = [_answer(source, text, several, options, display) for source in sources for text in questions]
    return all(answered)


def _answer(source: AnswerSource, question: str, several: bool, options: AnswerOptions, display: Display) -> bool:
    from v2l.inference.each import ask_segments

    def load() -> FrozenVLM:
        announce_model(source.loader, display, source.chosen_by)
        return source.loader.language_model

    def progress(done: int, total: int) -> None:
        if done < total:
            display.progress(done, total, printable(source.path.name))

    if source.error:
        display.error(error_line(source.path, source.error))
        return False
    adapter = source.adapter
    assert adapter is not None, "--each is not given with videos in context"
    settings = {name: value for name, value in options.generation.items() if name != "whole"}
    try:
        display.start_progress(1, "segment")
        answers = ask_segments(adapter, question, load, progress=progress, **settings)
    except V2LError as error:
        display.end_progress()
        display.error(f"{printable(source.path)}: {error}")
        return False
    display.end_progress()
    _print(source, question, answers, several, options, display)
    return True


def _print(
    source: AnswerSource,
    question: str,
    answers: Sequence[SegmentAnswer],
    several: bool,
    options: AnswerOptions,
    display: Display,
) -> None:
    from v2l.inference.each import to_srt, to_vtt

    escaped = (lambda text: text) if options.raw else inert
    if options.format in (AnswerFormat.srt, AnswerFormat.vtt):
        subtitles = to_srt(answers) if options.format == AnswerFormat.srt else to_vtt(answers)
        display.write(escaped(subtitles))
        return
    on_terminal = sys.stdout.isatty() and options.format is None
    asked = [os.fspath(source.path), question] if several else []
    for each in answers:
        times = [f"{clock(each.start)}-{clock(each.end)}"] if on_terminal else [f"{each.start:g}", f"{each.end:g}"]
        record = {
            "command": "ask",
            "adapter": source.path,
            "question": question,
            "start": each.start,
            "end": each.end,
            "answer": each.text,
            **model_record(source.loader, source.chosen_by),
        }
        display.result(escaped(tab_separated(*asked, *times, each.text)), record)
