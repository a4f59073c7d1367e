"""Answer a question from an adapter, with text alone in the prompt, or with the video itself in the prompt."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from v2l.adapters.adapter import Adapter
from v2l.adapters.description import Segment
from v2l.adapters.lora import applied, check_fits
from v2l.adapters.own_times import in_own_times
from v2l.adapters.timeline import Attachment, Timeline, attach
from v2l.errors import V2LError
from v2l.inference.limits import MAX_NEW_TOKENS
from v2l.inference.preprocess import EncodedFrames, encode_video_images, video_ids
from v2l.inference.readings import fill_reading
from v2l.io.text import clock
from v2l.models.device import FEWER_FRAMES, memory_errors
from v2l.models.hypernetwork_file import TrainedWith
from v2l.models.processor import question_text
from v2l.models.smolvlm import FrozenVLM
from v2l.video.sampling import Reading

QUESTIONS_AT_ONCE, ROWS_AT_ONCE = 16, 32
"""Batch sizes: prompts that contain the video, and prompts with an adapter each."""


@dataclass
class _Timing:
    """Number of tokens so far, and `time.perf_counter` at the start, the first token and the last token."""

    started: float
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Evidence:
    """The segments of video that an answer comes from. routed_by: why, a value of `RoutedBy`"""

    segments: tuple[Segment, ...]
    routed_by: str


class Stream:
    """An answer in pieces of text, with its statistics.

    Iterate over it to get the pieces; joined, they are the answer without surrounding white space. The model is locked
    from the first piece until the last one, `close`, or the garbage collection of the stream. As a context manager,
    the stream closes itself.

    prompt_tokens: tokens in the prompt; visual_tokens: how many of them are image tokens
    evidence: the segments of video that the answer comes from, and why they were chosen; None in context
    """

    def __init__(
        self,
        pieces: Generator[str],
        timing: _Timing,
        prompt_tokens: int,
        visual_tokens: int,
        evidence: Evidence | None = None,
    ):
        # The generator must not refer to this object: a cycle would keep the adapter of a dropped stream applied.
        self._pieces, self._timing = pieces, timing
        self.prompt_tokens, self.visual_tokens, self.evidence = prompt_tokens, visual_tokens, evidence

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the answer early and remove the adapter."""
        self._pieces.close()

    @property
    def tokens(self) -> int:
        """Tokens generated so far, including the one that ends the answer."""
        return self._timing.tokens

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the call to the first token; None before it."""
        return self._timing.first - self._timing.started if self._timing.tokens else None

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token; None before the second."""
        timing = self._timing
        return None if timing.tokens < 2 else (timing.tokens - 1) / (timing.last - timing.first)


def stream(
    adapter: Adapter | Timeline,
    question: str,
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
    whole: bool = False,
) -> Stream:
    """Answer a question about an encoded video, piece by piece. The prompt is text alone, without visual tokens.

    max_new_tokens: maximum length of the answer; strength: scale of the adapter, 1 as encoded
    whole: apply all segments of a timeline or of a composed adapter; by default the part that the question is about is
        applied, see `attach` of adapters/timeline.py. The segments of a long stretch ("from 1:00 to 9:00") answer one
        by one, on a line each
    Raises V2LError if the adapter was made for another model, if the question is empty, too long, contains control
        tokens or asks about a time outside of the video, or if the adapter is so strong that the activations are not
        finite.
    """
    timing = _Timing(started=time.perf_counter())
    attachment = attach(adapter, question, whole)
    if len(attachment.adapters) > 1:
        (found,) = _answer_attached([attachment], vlm, max_new_tokens, strength, timing.started)
        return Stream(_stream_lines(found, timing), timing, found.prompt_tokens, 0, found.evidence)
    (selected,) = attachment.adapters
    prompt = question_embeddings(attachment.questions[0], vlm, max_new_tokens)
    check_fits(selected, vlm)
    session = applied(vlm, selected, strength, merged=False)  # merging does not pay for a single question
    pieces = _generate_text(prompt, vlm, max_new_tokens, timing, session)
    return Stream(pieces, timing, len(prompt), 0, Evidence(selected.description.segments, attachment.routed_by))


def _stream_lines(found: Answer, timing: _Timing) -> Generator[str]:
    """Yield the lines of a question that several segments answered one by one."""
    timing.first, timing.last = timing.started + found.time_to_first_token, time.perf_counter()
    timing.tokens = found.tokens
    yield found.text


def join_equal(answers: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Join neighbouring stretches with the same answer: (start, end, answer), in seconds, in order."""
    joined: list[tuple[float, float, str]] = []
    for start, end, text in answers:
        if joined and joined[-1][2] == text and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end, text)
        else:
            joined.append((start, end, text))
    return joined


def stream_in_context(
    path: str | os.PathLike,
    question: str,
    vlm: FrozenVLM,
    reading: Reading | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Stream:
    """Answer a question with the video in the prompt: the baseline for adapters, with the same frames and wording.

    reading: how to read the video; None fields default to 12 frames, one per second, at the model's own frame size.
        `adapter.description.segments[0].reading` selects the frames of an adapter
    Raises V2LError if the video cannot be read or its prompt exceeds the model's positions.
    """
    timing = _Timing(started=time.perf_counter())
    question = vlm.check_user_text(question)
    encoded = encode_video_images(path, vlm, fill_reading(reading or Reading(), TrainedWith(), vlm.geometry))
    ids = question_ids(encoded, vlm, question)
    vlm.check_length(len(ids), max_new_tokens)
    prompt = vlm.embed(ids, encoded.images)
    pieces = _generate_text(prompt, vlm, max_new_tokens, timing, vlm.exclusively("answering in context"))
    return Stream(pieces, timing, len(prompt), visual_tokens=int((ids == vlm.image_token_id).sum()))


def ask(
    adapter: Adapter | Timeline,
    question: str,
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
    whole: bool = False,
) -> str:
    """Answer a question about an encoded video. Arguments and errors are those of `stream`."""
    return "".join(stream(adapter, question, vlm, max_new_tokens, strength, whole))


def ask_in_context(
    path: str | os.PathLike,
    question: str,
    vlm: FrozenVLM,
    reading: Reading | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str:
    """Answer a question with the video in the prompt. Arguments and errors are those of `stream_in_context`."""
    return "".join(stream_in_context(path, question, vlm, reading, max_new_tokens))


def ask_each(
    adapters: Sequence[Adapter | Timeline] | None,
    questions: Sequence[str],
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    whole: bool = False,
) -> list[str]:
    """Answer several questions in one batch: questions[i] from adapters[i], or all without an adapter if `adapters` is
    None. Arguments and errors are those of `stream`; also raises V2LError if the two lengths differ."""
    return [answer.text for answer in answer_each(adapters, questions, vlm, max_new_tokens, whole=whole)]


@dataclass(frozen=True)
class Answer:
    """A complete answer from a batch.

    prompt_tokens: tokens in the prompt; tokens: generated tokens, including the one that ends the answer
    time_to_first_token: seconds from the start of the batch; tokens_per_second: speed of this answer after its first
        token, None if it has only one; together: number of answers in the batch
    evidence: as in `Stream`; None without an adapter
    """

    text: str
    prompt_tokens: int
    tokens: int
    time_to_first_token: float
    tokens_per_second: float | None
    together: int
    evidence: Evidence | None = None


def answer_each(
    adapters: Sequence[Adapter | Timeline] | None,
    questions: Sequence[str],
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
    whole: bool = False,
) -> list[Answer]:
    """`ask_each` with token counts, times and evidence. strength: scale of the adapters, 1 as encoded"""
    started = time.perf_counter()
    if adapters is None:
        prompts = [question_embeddings(question, vlm, max_new_tokens) for question in questions]
        if not prompts:
            return []
        with vlm.exclusively("answering without a video"):
            return _generate_answers(prompts, vlm, max_new_tokens, started)
    if len(adapters) != len(questions):
        raise V2LError(
            f"{len(adapters)} adapters and {len(questions)} questions were given; give one question for each"
        )
    attachments = [attach(adapter, question, whole) for adapter, question in zip(adapters, questions, strict=True)]
    return _answer_attached(attachments, vlm, max_new_tokens, strength, started)


def _answer_attached(
    attachments: Sequence[Attachment],
    vlm: FrozenVLM,
    max_new_tokens: int,
    strength: float,
    started: float,
) -> list[Answer]:
    """Answer the question of each attachment, in rows: one for each adapter, several for a long stretch of a timeline.
    started: `time.perf_counter`"""
    rows = [
        (question_embeddings(question, vlm, max_new_tokens), adapter)
        for attachment in attachments
        for question, adapter in zip(attachment.questions, attachment.adapters, strict=True)
    ]
    answers: list[Answer] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = rows[start : start + ROWS_AT_ONCE]
        factors = [adapter for _, adapter in batch]
        shared = all(adapter is factors[0] for adapter in factors)  # applied once, not once per row
        with applied(vlm, factors[0] if shared else factors, strength, merged=False):
            answers += _generate_answers([prompt for prompt, _ in batch], vlm, max_new_tokens, started)
    found = iter(answers)
    return [_combine(attachment, [next(found) for _ in attachment.adapters]) for attachment in attachments]


def _combine(attachment: Attachment, answers: Sequence[Answer]) -> Answer:
    """Return the answers of the adapters of one question as one; a line for each of several, equal neighbours
    joined."""
    segments = tuple(segment for adapter in attachment.adapters for segment in adapter.description.segments)
    evidence = Evidence(segments, attachment.routed_by)
    if len(answers) == 1:
        return replace(answers[0], evidence=evidence)
    lines = join_equal([(each.start, each.end, answer.text) for each, answer in zip(segments, answers, strict=True)])
    text = "\n".join(f"{clock(start)}-{clock(end)} {text}" for start, end, text in lines)
    return replace(answers[0], text=text, tokens=sum(answer.tokens for answer in answers), evidence=evidence)


def ask_each_in_context(
    path: str | os.PathLike,
    questions: Sequence[str],
    vlm: FrozenVLM,
    reading: Reading | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """`ask_in_context` for several questions about one video, which is decoded and encoded once."""
    questions = [vlm.check_user_text(question) for question in questions]
    encoded = encode_video_images(path, vlm, fill_reading(reading or Reading(), TrainedWith(), vlm.geometry))
    return ask_each_about_frames(encoded, questions, vlm, max_new_tokens)


def ask_each_about_frames(
    encoded: EncodedFrames, questions: Sequence[str], vlm: FrozenVLM, max_new_tokens: int = MAX_NEW_TOKENS
) -> list[str]:
    """`ask_each_in_context` for a video whose frames are encoded already. Raises V2LError if the prompt exceeds the
    model's positions."""
    texts: list[str] = []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        batch = questions[start : start + QUESTIONS_AT_ONCE]
        ids = [question_ids(encoded, vlm, question) for question in batch]
        vlm.check_length(max(map(len, ids)), max_new_tokens)
        prompts = [vlm.embed(each, encoded.images) for each in ids]
        with vlm.exclusively("answering in context"):
            answers = _generate_answers(prompts, vlm, max_new_tokens, started=time.perf_counter())
        texts += [answer.text for answer in answers]
    return texts


def question_ids(encoded: EncodedFrames, vlm: FrozenVLM, question: str) -> torch.Tensor:
    """Tokenize a question with the video in the prompt, in the times of the frames: ids, (T,)."""
    if encoded.span != (0.0, encoded.video.duration):
        question = in_own_times(question, [encoded.span], encoded.video.duration)
    return video_ids(encoded, vlm, question, answer=True)


def question_embeddings(question: str, vlm: FrozenVLM, max_new_tokens: int = 0) -> torch.Tensor:
    """Embed the prompt of a question without a video: (T, D). It contains no visual token, whatever the question is.
    Raises V2LError, before embedding, if the prompt and `max_new_tokens` exceed the model's positions.
    """
    ids = vlm.tokenize(question_text(vlm.check_user_text(question)))
    vlm.check_length(len(ids), max_new_tokens)
    return vlm.language_model.embed(ids)  # `vlm.embed` counts image tokens, for which the host waits for the device


def _generate_answers(
    prompts: Sequence[torch.Tensor], vlm: FrozenVLM, max_new_tokens: int, started: float
) -> list[Answer]:
    """Answer several prompts, (T_b, D) each, in one batch. The caller holds the model. started: `time.perf_counter`"""
    # Generate one id per prompt and step
    steps, times = [], []
    with memory_errors("the answer", vlm.device, vlm.dtype, fix=FEWER_FRAMES):
        for step_ids in vlm.greedy(prompts, max_new_tokens):
            steps.append(step_ids)
            times.append(time.perf_counter())

    # Cut each answer at its end
    answers = []
    for prompt, ids in zip(prompts, zip(*steps, strict=True), strict=True):
        last = next((index for index, token in enumerate(ids) if token in vlm.end_of_answer_ids), len(ids) - 1)
        speed = last / (times[last] - times[0]) if last else None
        text = "".join(_detokenize(iter(ids), vlm))
        answers.append(Answer(text, len(prompt), last + 1, times[0] - started, speed, len(prompts)))
    return answers


def _generate_text(
    prompt: torch.Tensor, vlm: FrozenVLM, max_new_tokens: int, timing: _Timing, session: AbstractContextManager
) -> Generator[str]:
    """Answer one prompt, (T, D), while `session` holds the model."""

    def timed() -> Iterator[int]:
        for (token,) in vlm.greedy([prompt], max_new_tokens):
            timing.last = time.perf_counter()
            timing.first = timing.first or timing.last
            timing.tokens += 1
            yield token

    with session, memory_errors("the answer", vlm.device, vlm.dtype, fix=FEWER_FRAMES):
        yield from _detokenize(timed(), vlm)


def _detokenize(tokens: Iterator[int], vlm: FrozenVLM) -> Iterator[str]:
    """Convert generated ids to pieces of text, up to the first id that ends an answer."""
    ids: list[int] = []
    emitted = ""
    for token in tokens:
        if token in vlm.end_of_answer_ids:
            break
        ids.append(token)
        complete = vlm.detokenize(ids).strip().removesuffix("\ufffd")  # wait for the other bytes of a character
        if len(complete) > len(emitted) and complete.startswith(emitted):
            yield complete[len(emitted) :]
            emitted = complete
    text = vlm.detokenize(ids).strip()
    if len(text) > len(emitted):
        yield text[len(emitted) :]
