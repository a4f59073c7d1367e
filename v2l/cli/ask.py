"""`v2l ask`: questions to adapters and videos, answered one model at a time, whatever the order of the adapters."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2l.cli.answers import AnswerFormat, AnswerOptions
from v2l.cli.ask_each import answer_each_segment, check_each
from v2l.cli.chat import chat
from v2l.cli.console import Display, announce_model, command, model_record
from v2l.cli.help import GroupedCommand
from v2l.cli.options import (
    READ,
    AdapterModel,
    Debug,
    Device,
    End,
    Fps,
    Frames,
    HypernetworkFile,
    Json,
    NumberType,
    Quiet,
    Resolution,
    Start,
    cache_destination,
    check_above_zero,
    check_range,
    model_loader,
    one_of,
)
from v2l.cli.sources import (
    AnswerSource,
    AskRequest,
    batches,
    choose_in_folders,
    encode_source,
    error_line,
    load_sources,
    sort_words,
)
from v2l.errors import UsageError, V2LError
from v2l.inference.limits import MAX_NEW_TOKENS
from v2l.io.text import clock, duration, escape, inert, printable, tab_separated

if TYPE_CHECKING:
    from v2l.inference.ask import Answer, Evidence, Stream
    from v2l.inference.model_loader import ModelLoader
    from v2l.video.sampling import Reading

ANSWER = "Answer"
MAX_STRENGTH = 4
"""The greatest strength without a warning."""


class AskCommand(GroupedCommand):
    """`v2l ask --help` with an example."""

    example = 'v2l ask lecture.v2l.safetensors "what is written on the board?"'


def ask(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ADAPTER|QUESTION",
            help="Adapters, videos or folders of adapters, and questions about them. Without a question, and with -, "
            "questions are read from standard input, one per line.",
            rich_help_panel=READ,
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option("--recursive", "-r", help="Ask the adapters in subfolders as well.", rich_help_panel=READ),
    ] = False,
    question: Annotated[
        list[str] | None,
        typer.Option(
            "--question",
            "-q",
            metavar="TEXT",
            help="Ask TEXT, even if it looks like a file. May be given several times.",
            rich_help_panel=READ,
        ),
    ] = None,
    in_context: Annotated[
        list[Path] | None,
        typer.Option(
            readable=False,
            metavar="VIDEO",
            help="Ask this video with its frames in the prompt, for comparison. May be given several times.",
            rich_help_panel=READ,
        ),
    ] = None,
    frames: Frames = None,
    fps: Fps = None,
    start: Start = None,
    end: End = None,
    resolution: Resolution = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Generate at most N tokens.",
            show_default=str(MAX_NEW_TOKENS),
            rich_help_panel=ANSWER,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Scale the change that the adapter makes by X; 1 leaves it as encoded.",
            rich_help_panel=ANSWER,
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="Answer from all segments, even if a question names a time.", rich_help_panel=ANSWER
        ),
    ] = False,
    each: Annotated[
        bool,
        typer.Option("--each", help="Ask every segment, and join equal neighbours.", rich_help_panel=ANSWER),
    ] = False,
    form: Annotated[
        AnswerFormat | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"With --each: print times in seconds, or subtitles: {one_of(AnswerFormat)}.",
            rich_help_panel=ANSWER,
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Print control characters in answers without escaping.", rich_help_panel=ANSWER),
    ] = False,
    model: AdapterModel = None,
    hypernetwork: HypernetworkFile = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Answer questions about encoded videos.

    The prompt holds text only, without a visual token. A single answer is printed with its line breaks; several
    answers are printed as tab-separated lines of adapter, question and answer. Control characters are escaped. A
    question about a time ("at 12:30", "in the first minute") is answered by the segments that show it, "first" and
    "last" by the first and the last segment, rare words by the segment whose description has them, anything else by
    the overview; on a terminal a line says which part answered. Without a question, a chat starts on a terminal, in
    which each question is answered independently; /help there lists its commands. --frames, --fps, --start, --end and
    --resolution apply to videos: those named, which are encoded first if needed, and those in context.
    """
    with command(as_json, quiet, debug) as display:
        check_above_zero("--fps", fps)
        check_range(start, end)
        if strength is not None and not math.isfinite(strength):
            raise UsageError(f"--strength is {strength}; give a finite number; 1 leaves the adapter as encoded")
        if strength is not None and not 0 <= strength <= MAX_STRENGTH:
            display.note(f"warning: --strength {strength:g} is outside 0 to {MAX_STRENGTH}, where answers make sense")
        from v2l.video.sampling import Reading

        check_each(each, form, whole, in_context or [], display)
        reading = Reading(frames, fps, start, end, resolution)
        options = AnswerOptions(reading, max_new_tokens, strength, whole, raw, each, form)
        loader = model_loader(model, hypernetwork, device, dtype, display)
        ok = ask_all(sort_words(words or [], recursive), question or [], in_context or [], options, loader, display)
        raise typer.Exit(0 if ok else 1)


def ask_all(
    request: AskRequest,
    questions: Sequence[str],
    in_context: Sequence[Path],
    options: AnswerOptions,
    loader: ModelLoader,
    display: Display,
) -> bool:
    """Answer everything that was asked, or start a chat if nothing was; True if all was answered.

    questions: those given with -q
    """
    from v2l.inference.naming import ADAPTER_SUFFIX

    asked = [*request.questions, *questions]
    for error in request.errors:
        display.error(error)
    if request.is_joined:
        display.note(f'asked as one question: "{printable(asked[0])}"; quote each to ask several')
    if not (request.adapters or request.videos or in_context):
        if request.errors:
            return False
        raise UsageError(f"name an adapter (*{ADAPTER_SUFFIX}), a video or a folder of adapters to ask")
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not display.as_json
    read_stdin = request.read_stdin or not (asked or sys.stdin.isatty())
    if read_stdin:
        asked += [line.strip() for line in sys.stdin if line.strip()]
    if not (asked or request.read_stdin or interactive):
        raise UsageError("ask a question: after the adapter, with -q, or on standard input")
    encoded = [encode_source(video, cache_destination(), options.reading, loader, display) for video in request.videos]
    adapters = [*request.adapters, *(made for made in encoded if made and made not in request.adapters)]
    named = choose_in_folders(list(load_sources(adapters, loader)), request.from_folders, display)
    sources = [*named, *(AnswerSource(video, loader) for video in in_context)]
    if options.each:
        return answer_each_segment(sources, asked, options, display) and None not in encoded and not request.errors
    ready = [source for source in sources if _is_ready(source, display)]
    ok = None not in encoded and len(ready) == len(sources) and not request.errors
    if not (asked or read_stdin):
        _chat(ready, options, display)
        return ok
    if len(sources) * len(asked) == 1:
        failed = sum(not _answer(source, asked[0], options, display) for source in ready)
    else:
        failed = sum(not _answer_batch(batch, options, display) for batch in batches(ready, asked))
    return ok and not failed


def _chat(sources: Sequence[AnswerSource], options: AnswerOptions, display: Display) -> None:
    def answer_each(question: str) -> bool:
        if any(source.file is None for source in sources):
            raise UsageError("a video in context has no segments; /each asks adapters")
        return answer_each_segment(sources, [question], options, display)

    chat(
        sources,
        lambda source, question: _answer(source, question, options, display),
        answer_each,
        lambda source: escape(source.summary()),
        display,
    )


def _is_ready(source: AnswerSource, display: Display) -> bool:
    """Return True if the source and its model could be loaded; print the error once, not for every question."""
    try:
        if source.error:
            raise source.error
        announce_model(source.loader, display, source.chosen_by)
        if source.file is None:
            _ = source.loader.vlm
            return True
        model = source.loader.language_model
        from v2l.adapters.lora import check_made_for  # imports torch, which the line about loading precedes

        check_made_for(source.file.description.base_model, model)
    except V2LError as error:
        display.error(error_line(source.path, error))
        return False
    return True


def _answer(source: AnswerSource, question: str, options: AnswerOptions, display: Display) -> bool:
    """Print a single answer, piece by piece on a terminal."""
    try:
        answer = _stream(source, question, options)
        live = sys.stdout.isatty() and not display.as_json
        text = ""
        for piece in answer:
            text += piece
            if live:
                display.write(_escaped(piece, options))
    except V2LError as error:
        display.error(f"{printable(source.path)}: {error}")
        return False
    if live:
        display.write("\n")
        if answer.evidence:
            display.aside(describe_evidence(answer.evidence))
    else:
        display.result(_escaped(text, options), _record(source, question, text, answer, answer.visual_tokens))
    _detail(answer, display)
    return True


def _answer_batch(batch: Sequence[tuple[AnswerSource, str]], options: AnswerOptions, display: Display) -> bool:
    """Print the answers of a batch as tab-separated lines."""
    answers: Sequence[tuple[str, Answer | Stream, int]]
    try:
        if batch[0][0].file is None:
            ((source, question),) = batch
            stream = _stream(source, question, options)
            answers = [("".join(stream), stream, stream.visual_tokens)]
        else:
            from v2l.inference.ask import answer_each

            adapters = [adapter for source, _ in batch if (adapter := source.adapter)]
            model = batch[0][0].loader.language_model
            found = answer_each(adapters, [question for _, question in batch], model, **options.generation)
            answers = [(answer.text, answer, 0) for answer in found]
    except V2LError as error:
        if len(batch) > 1:  # one of them failed; the others are answered one by one
            return sum(not _answer_batch([each], options, display) for each in batch) == 0
        display.error(f"{printable(batch[0][0].path)}: {error}")
        return False
    for (source, question), (text, answer, visual_tokens) in zip(batch, answers, strict=True):
        asked = tab_separated(os.fspath(source.path), question)
        line = (inert(asked) if sys.stdout.isatty() else asked) + "\t" + _escaped(tab_separated(text), options)
        display.result(line, _record(source, question, text, answer, visual_tokens))
        _detail(answer, display)
    return True


def _detail(answer: Answer | Stream, display: Display) -> None:
    first, rate = answer.time_to_first_token, answer.tokens_per_second
    text = f"{answer.prompt_tokens} prompt tokens, {answer.tokens} new ones"
    text += "" if first is None else f", the first after {duration(first)}"
    display.detail(text + ("" if rate is None else f", then {rate:.3g} a second"))


def _stream(source: AnswerSource, question: str, options: AnswerOptions) -> Stream:
    from v2l.inference.ask import stream, stream_in_context

    adapter = source.adapter
    if adapter is None:
        reading = _encoding_reading(options.reading, source.loader)
        return stream_in_context(source.path, question, source.loader.vlm, reading, **options.length)
    return stream(adapter, question, source.loader.language_model, **options.generation)


def _encoding_reading(reading: Reading, loader: ModelLoader) -> Reading:
    """Return the reading that encoding would use, so that a comparison is about the same frames; unchanged if the model
    has no hypernetwork."""
    from v2l.inference.readings import fill_reading

    try:
        return fill_reading(reading, loader.provenance.trained_with, loader.folder.geometry)
    except V2LError:
        return reading


SHOWN_FRAMES = 4
"""Frames whose times are printed after an answer."""


def describe_evidence(evidence: Evidence) -> str:
    """Describe where an answer comes from: `"0:32-0:48, frames at 0:33 0:34 0:36 0:37 and 8 more"`."""
    segments = evidence.segments
    stretches = ", ".join(f"{clock(segment.start)}-{clock(segment.end)}" for segment in segments)
    times = [seconds for segment in segments for seconds in segment.timestamps]
    more = f" and {len(times) - SHOWN_FRAMES} more" if len(times) > SHOWN_FRAMES else ""
    return f"{stretches}, frames at {' '.join(map(clock, times[:SHOWN_FRAMES]))}{more}"


def _escaped(text: str, options: AnswerOptions) -> str:
    """Escape control characters that the model generated, in pipes as well, unless --raw is given."""
    return text if options.raw else inert(text)


def _record(
    source: AnswerSource, question: str, text: str, answer: Answer | Stream, visual_tokens: int
) -> dict[str, Any]:
    return {
        "command": "ask",
        "adapter" if source.file else "video": source.path,
        "question": question,
        "answer": text,
        **model_record(source.loader, source.chosen_by),
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.tokens,
        "time_to_first_token": answer.time_to_first_token,
        "tokens_per_second": answer.tokens_per_second,
        "together": getattr(answer, "together", 1),
        "visual_tokens": visual_tokens,
        **_evidence_record(answer.evidence),
    }


def _evidence_record(evidence: Evidence | None) -> dict[str, Any]:
    if evidence is None:
        return {}
    segments = [{"start": each.start, "end": each.end, "frames": list(each.timestamps)} for each in evidence.segments]
    return {"segments": segments, "routed_by": str(evidence.routed_by)}
