"""What a line of `v2l ask` means, and the answers it gets: one model at a time, whatever the order of its adapters."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from v2l.adapters.adapter import Adapter
from v2l.errors import UsageError, V2LError
from v2l.inference.ask import Answer, Stream, answer_each, stream, stream_in_context
from v2l.inference.model_loader import ModelLoader, choose_model_for
from v2l.inference.preprocess import fill_reading
from v2l.inference.targets import ADAPTER_SUFFIX, VIDEO_SUFFIXES, adapters_in
from v2l.io.text import printable
from v2l.video.sampling import Reading

ANSWERS_AT_ONCE, FACTOR_BYTES_AT_ONCE = 32, 2**30
"""The largest batch of answers, and of their adapters' factors in memory."""


@dataclass(frozen=True)
class Asked:
    """The words of a command line, sorted: adapters to ask, videos to encode first, questions; `read_stdin` where `-`
    stands for questions on standard input."""

    adapters: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    questions: tuple[str, ...] = ()
    read_stdin: bool = False


def sort_words(words: Sequence[str]) -> Asked:
    """A word is an adapter by its suffix, a video if it is a file with a video's suffix, a folder stands for its
    adapters, `-` for questions from standard input, and anything else is a question.

    Raises V2LError for an adapter, or what can only be a video's name, that is not there.
    """
    adapters, videos, questions = [], [], []
    for word in words:
        if word == "-":
            continue
        path = Path(word)
        plain = not any(char.isspace() for char in word)
        if not word:
            raise UsageError("one of the words is empty, an unset variable perhaps; leave it out")
        if word.endswith(ADAPTER_SUFFIX):
            if not os.path.exists(path):
                raise V2LError(f"no adapter {printable(word)}; make it with: v2l encode VIDEO")
            adapters.append(path)
        elif os.path.isdir(path):
            adapters += adapters_in(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(path):
            videos.append(path)
        elif plain and (path.suffix.lower() in VIDEO_SUFFIXES or "://" in word):
            raise V2LError(f"no video {printable(word)}; only local files are read, check the name")
        elif os.path.exists(path):
            raise V2LError(
                f"{printable(word)} is a file, and neither adapter nor video by its name; if it is a question, say -q"
            )
        else:
            questions.append(word)
    return Asked(tuple(adapters), tuple(videos), tuple(questions), "-" in words)


@dataclass(frozen=True)
class AnswerSource:
    """Something to ask: an adapter with the model it is worn by, or a video in context."""

    path: Path
    choice: ModelLoader
    adapter: Adapter | None = None


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer.

    whole: from all segments of an adapter, whatever time is asked about
    reading: for videos, those that are encoded first and those in context
    raw: print control characters of an answer as they are, not escaped
    """

    max_new_tokens: int
    strength: float
    whole: bool
    reading: Reading
    raw: bool = False


def subjects_of(adapters: Sequence[Path], choice: ModelLoader) -> Iterator[AnswerSource | tuple[Path, V2LError]]:
    """The adapters loaded, those for one model together, in the order in which the models first appear; in place of
    one that cannot be read, its error. `choice` is what the user said; where that is nothing, adapters say."""
    groups: dict[str, list[AnswerSource | tuple[Path, V2LError]]] = {}
    choices: dict[str, ModelLoader] = {}
    for path in adapters:
        try:
            adapter = Adapter.load(path)
            option = choice.model if choice.chosen_by == "option" else None
            model, chosen_by = choose_model_for(adapter, option)
            known = (model, chosen_by) == (choice.model, choice.chosen_by)
            chosen = choices.setdefault(model, choice if known else _like(choice, model, chosen_by))
            groups.setdefault(model, []).append(AnswerSource(path, chosen, adapter))
        except V2LError as error:
            groups.setdefault("", []).append((path, error))
    for group in groups.values():
        yield from group


def batches(subjects: Sequence[AnswerSource], questions: Sequence[str]) -> Iterator[list[tuple[AnswerSource, str]]]:
    """Every subject's every question, in order; consecutive adapters of one model together as far as their factors
    leave room, videos each alone."""
    batch: list[tuple[AnswerSource, str]] = []
    held = 0
    for subject in subjects:
        for question in questions:
            size = 0 if subject.adapter is None else subject.adapter.a.nbytes + subject.adapter.b.nbytes
            alike = batch and subject.adapter and batch[0][0].adapter and subject.choice is batch[0][0].choice
            if batch and not (alike and len(batch) < ANSWERS_AT_ONCE and held + size <= FACTOR_BYTES_AT_ONCE):
                yield batch
                batch, held = [], 0
            batch.append((subject, question))
            held += size
    if batch:
        yield batch


def answer_batch(batch: Sequence[tuple[AnswerSource, str]], options: AnswerOptions) -> list[Answer]:
    """The answers to a batch of `batches` whose subjects are adapters, together. Raises V2LError as `stream` does."""
    adapters, questions = [subject.adapter for subject, _ in batch], [question for _, question in batch]
    model = batch[0][0].choice.language_model
    return answer_each(adapters, questions, model, options.max_new_tokens, options.strength, options.whole)


def start_answer(subject: AnswerSource, question: str, options: AnswerOptions) -> Stream:
    """The answer to a question about a subject, not yet begun. Raises V2LError as `stream` does."""
    if subject.adapter is None:
        reading = _comparable(options.reading, subject.choice)
        return stream_in_context(subject.path, question, subject.choice.vlm, reading, options.max_new_tokens)
    model = subject.choice.language_model
    return stream(subject.adapter, question, model, options.max_new_tokens, options.strength, options.whole)


def _comparable(reading: Reading, choice: ModelLoader) -> Reading:
    """The reading that encoding would use, so that both see the same frames; as given where the model has no
    hypernetwork to say how."""
    try:
        return fill_reading(reading, choice.provenance.trained_with, choice.folder.geometry)
    except V2LError:
        return reading


def check_plan(asked: Asked, in_context: Sequence[Path], interactive: bool) -> None:
    """Raises UsageError where there is nothing to ask, or no question and no terminal to type one at."""
    if not (asked.adapters or asked.videos or in_context):
        raise UsageError(f"name an adapter (*{ADAPTER_SUFFIX}), a video or a folder of adapters to ask")
    if not (asked.questions or asked.read_stdin or interactive):
        raise UsageError("ask a question: after the adapter, with -q, or - for questions on standard input")


def _like(choice: ModelLoader, model: str, chosen_by: str) -> ModelLoader:
    return ModelLoader(model, chosen_by, None, choice.device, choice.dtype)
