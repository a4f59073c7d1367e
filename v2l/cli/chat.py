"""`v2l ask`: answers for a terminal or a pipe, and the chat."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from v2l.cli.commands import announce_fallback, outcomes
from v2l.cli.console import Display
from v2l.cli.session import (
    AnswerOptions,
    AnswerSource,
    Asked,
    answer_batch,
    batches,
    check_plan,
    sort_words,
    start_answer,
    subjects_of,
)
from v2l.errors import V2LError
from v2l.inference.ask import Answer, Stream
from v2l.inference.batch import EncodeOptions
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import Destination, find_targets
from v2l.io.text import inert, printable, tab_separated
from v2l.video.sampling import Reading


def ask(
    words: Sequence[str],
    questions: Sequence[str],
    in_context: Sequence[Path],
    options: AnswerOptions,
    choice: ModelLoader,
    display: Display,
    streaming: bool = True,
) -> bool:
    """Asks everything that the words mean; True where all was answered."""
    asked = sort_words(words)
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not display.as_json
    check_plan(
        Asked(asked.adapters, asked.videos, (*asked.questions, *questions), asked.read_stdin), in_context, interactive
    )
    asked_all = [*asked.questions, *questions]
    if asked.read_stdin:
        asked_all += [line.strip() for line in sys.stdin if line.strip()]
    ok = True
    adapters = list(asked.adapters)
    for video in asked.videos:
        adapter = _encoded(video, options, choice, display)
        ok = ok and adapter is not None
        adapters += [adapter] if adapter else []
    subjects = [*subjects_of(adapters, choice), *(AnswerSource(video, choice) for video in in_context)]
    if not (asked_all or asked.read_stdin):
        return _chat(subjects, options, display) and ok
    sound = _sound(subjects, display)
    ok = ok and len(sound) == len(subjects)
    if len(subjects) * len(asked_all) == 1:
        failed = sum(not _answer(subject, asked_all[0], options, display, streaming) for subject in sound)
        return ok and not failed
    failed = sum(not _answer_together(batch, options, display) for batch in batches(sound, asked_all))
    return ok and not failed


def _sound(subjects: Sequence[AnswerSource | tuple[Path, V2LError]], display: Display) -> list[AnswerSource]:
    """Those that can be asked; of each other one it is said why."""
    for subject in subjects:
        if not isinstance(subject, AnswerSource):
            display.error(str(subject[1]))
    return [subject for subject in subjects if isinstance(subject, AnswerSource) and _ready(subject, display)]


def _encoded(video: Path, options: AnswerOptions, choice: ModelLoader, display: Display) -> Path | None:
    """The current adapter of a video named among the words; None, said, where it cannot be made."""
    (target,) = find_targets([video], Destination(), options.reading)
    unsaid = options.reading == Reading()
    options = EncodeOptions(options.reading, replace_foreign=choice.chosen_by == "option", any_reading=unsaid)
    for outcome in outcomes([target], options, choice, display):
        display.end_progress()
        if outcome.status == "failed":
            display.error(outcome.note)
            return None
        if outcome.note:
            made = "kept" if outcome.status == "kept" else "encoded again"
            display.note(f"{printable(outcome.target.output)}: {made}: {outcome.note}")
    return target.output


def _ready(subject: AnswerSource, display: Display) -> bool:
    """Whether the subject's model is there, said once and not for every question."""
    try:
        announce_fallback(subject.choice, display)
        _ = subject.choice.language_model if subject.adapter else subject.choice.vlm
    except V2LError as error:
        display.error(f"{printable(subject.path)}: {error}")
        return False
    return True


def _answer(
    subject: AnswerSource, question: str, options: AnswerOptions, display: Display, streaming: bool = True
) -> bool:
    """The one answer, as it comes where someone watches."""
    try:
        answer = start_answer(subject, question, options)
        live = streaming and sys.stdout.isatty() and not display.as_json
        text = ""
        for piece in answer:
            text += piece
            if live:
                display.write(_printed(piece, options))
    except V2LError as error:
        display.error(f"{printable(subject.path)}: {error}")
        return False
    if live:
        display.write("\n")
    else:
        record = _record(subject, question, text, answer) | {"visual_tokens": answer.visual_tokens}
        display.result(_printed(text, options), record)
    return True


def _printed(text: str, options: AnswerOptions) -> str:
    """An answer as standard output gets it: what a model says may hold control characters, in a pipe too."""
    return text if options.raw else inert(text)


def _answer_together(batch: Sequence[tuple[AnswerSource, str]], options: AnswerOptions, display: Display) -> bool:
    """Answers of several, a line each: adapters in one batch, a video by itself."""
    try:
        if batch[0][0].adapter is None:
            ((subject, question),) = batch
            stream = start_answer(subject, question, options)
            told = [("".join(stream), stream, stream.visual_tokens)]
        else:
            told = [(answer.text, answer, 0) for answer in answer_batch(batch, options)]
    except V2LError as error:
        if len(batch) > 1:  # one of them is at fault; the others have their answers
            return sum(not _answer_together([each], options, display) for each in batch) == 0
        display.error(f"{printable(batch[0][0].path)}: {error}")
        return False
    for (subject, question), (text, answer, visual) in zip(batch, told, strict=True):
        asked, said = tab_separated(os.fspath(subject.path), question), _printed(tab_separated(text), options)
        record = _record(subject, question, text, answer) | {"visual_tokens": visual}
        display.result((inert(asked) if sys.stdout.isatty() else asked) + "\t" + said, record)
    return True


def _record(subject: AnswerSource, question: str, text: str, answer: Answer | Stream) -> dict[str, object]:
    return {
        "command": "ask",
        "adapter" if subject.adapter else "video": subject.path,
        "question": question,
        "answer": text,
        "model": subject.choice.folder.id,
        "model_chosen_by": subject.choice.chosen_by,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.tokens,
        "time_to_first_token": answer.time_to_first_token,
        "tokens_per_second": answer.tokens_per_second,
        "together": getattr(answer, "together", 1),
    }


def _chat(subjects: Sequence[AnswerSource | tuple[Path, V2LError]], options: AnswerOptions, display: Display) -> bool:
    """Questions typed at a terminal until Ctrl-D; Ctrl-C stops an answer."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() its line editing and history

    sound = _sound(subjects, display)
    display.note("ask away, one question a line; Ctrl-D ends the chat, Ctrl-C an answer")
    ok = len(sound) == len(subjects)
    while sound:
        try:
            question = input("> ").strip()
        except EOFError:
            display.write("\n")
            break
        if not question:
            continue
        try:
            for subject in sound:
                if len(sound) > 1:
                    display.write(f"{printable(subject.path)}: ")
                ok = _answer(subject, question, options, display) and ok
        except KeyboardInterrupt:
            display.write("\n")
    return ok
