"""An adapter and a question to an answer, from text alone; and the same question with the video in the prompt."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from v2l.adapters.adapter import Adapter
from v2l.adapters.lora import applied, check_fits
from v2l.adapters.segments import select_segments
from v2l.errors import V2LError
from v2l.inference.limits import MAX_NEW_TOKENS
from v2l.inference.preprocess import encode_video_images, fill_reading, video_ids
from v2l.models.hypernetwork import TrainedWith
from v2l.models.processor import question_text
from v2l.models.smolvlm import FrozenVLM
from v2l.video.sampling import Reading

QUESTIONS_AT_ONCE = 16
"""How many prompts with the video in them are held together."""


@dataclass
class _Clock:
    """Tokens so far, and when the question, the first and the last of them came, by `time.perf_counter`."""

    asked: float
    first: float | None = None
    last: float | None = None
    tokens: int = 0


class Stream:
    """An answer as it comes: iterate over its pieces of text, which together are the answer without white space at
    its ends; then read how it went. The model is in use from the first piece to the last, to `close`, or until the
    stream is forgotten; as a context manager it closes itself.

    prompt_tokens, visual_tokens: how many went in, and how many of them were image tokens
    """

    def __init__(self, pieces: Generator[str], clock: _Clock, prompt_tokens: int, visual_tokens: int):
        # the generator must not refer back to this object: a cycle would keep a forgotten stream's adapter on
        self._pieces, self._clock = pieces, clock
        self.prompt_tokens, self.visual_tokens = prompt_tokens, visual_tokens

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the answer early and takes the adapter off."""
        self._pieces.close()

    @property
    def tokens(self) -> int:
        """How many came out so far, the one that ends the answer included."""
        return self._clock.tokens

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the question to the first token; None before it."""
        return None if self._clock.first is None else self._clock.first - self._clock.asked

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token; None while there is no second."""
        clock = self._clock
        return None if clock.tokens < 2 else (clock.tokens - 1) / (clock.last - clock.first)


def stream(
    adapter: Adapter,
    question: str,
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
    whole: bool = False,
) -> Stream:
    """The answer to a question about an encoded video, piece by piece: text alone goes in, not one visual token.

    max_new_tokens: the longest answer; strength: how much of the adapter to wear, 1 as made
    whole: wear all segments of a composed adapter, even where the question asks about one time ("at 12:30"), which
        those that show it answer alone
    Raises V2LError where the adapter was made for another model, the question is empty, too long or holds control
        tokens, or the adapter is so strong that the model's numbers are not finite.
    """
    clock = _Clock(asked=time.perf_counter())
    check_fits(adapter, vlm)
    prompt = question_embeddings(question, vlm, max_new_tokens)
    worn = adapter if whole else select_segments(adapter, question)
    using = applied(vlm, worn, strength, merged=False)  # for one question merging would not pay
    pieces = _pieces(prompt, vlm, max_new_tokens, clock, using)
    return Stream(pieces, clock, len(prompt), visual_tokens=0)


def stream_in_context(
    path: str | os.PathLike,
    question: str,
    vlm: FrozenVLM,
    reading: Reading | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Stream:
    """The answer with the video in the prompt: what adapters are measured against, from the same frames and words.

    reading: how to read the video; what is None in it is 12 frames, one a second, at the model's own frame size. The
        frames of an adapter are `adapter.description.segments[0].reading`
    Raises V2LError where the video cannot be read or its prompt exceeds the model's positions.
    """
    clock = _Clock(asked=time.perf_counter())
    question = vlm.check_user_text(question)
    seen = encode_video_images(path, vlm, fill_reading(reading or Reading(), TrainedWith(), vlm.geometry))
    ids = video_ids(seen, vlm, question, answer=True)
    vlm.check_length(len(ids), max_new_tokens)
    prompt = vlm.embed(ids, seen.images)
    pieces = _pieces(prompt, vlm, max_new_tokens, clock, vlm.exclusively("answering in context"))
    return Stream(pieces, clock, len(prompt), visual_tokens=int((ids == vlm.image_token_id).sum()))


def ask(
    adapter: Adapter,
    question: str,
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
    whole: bool = False,
) -> str:
    """The answer to a question about an encoded video in one piece; arguments and errors as `stream`."""
    return "".join(stream(adapter, question, vlm, max_new_tokens, strength, whole))


def ask_in_context(
    path: str | os.PathLike,
    question: str,
    vlm: FrozenVLM,
    reading: Reading | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str:
    """The answer with the video in the prompt, whole; arguments and errors as `stream_in_context`."""
    return "".join(stream_in_context(path, question, vlm, reading, max_new_tokens))


def ask_each(
    adapters: Sequence[Adapter] | None,
    questions: Sequence[str],
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    whole: bool = False,
) -> list[str]:
    """One answer per question, all in one batch: row i wears adapters[i], or none does where `adapters` is None.
    Arguments and errors as `stream`, and V2LError where the two numbers differ."""
    return [answer.text for answer in answer_each(adapters, questions, vlm, max_new_tokens, whole=whole)]


@dataclass(frozen=True)
class Answer:
    """A whole answer from a batch.

    prompt_tokens: that went in; tokens: that came out, the one that ends the answer included
    time_to_first_token: seconds from the batch's beginning; tokens_per_second: of this answer after its first token,
        None where there is no second; together: answers in the batch
    """

    text: str
    prompt_tokens: int
    tokens: int
    time_to_first_token: float
    tokens_per_second: float | None
    together: int


def answer_each(
    adapters: Sequence[Adapter] | None,
    questions: Sequence[str],
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
    whole: bool = False,
) -> list[Answer]:
    """`ask_each` with the counts and times of each answer; strength: how much of the adapters to wear."""
    asked = time.perf_counter()
    prompts = [question_embeddings(question, vlm, max_new_tokens) for question in questions]
    if adapters is not None and len(adapters) != len(prompts):
        raise V2LError(f"{len(adapters)} adapters and {len(prompts)} questions were given; give one question for each")
    if not prompts:
        return []
    if adapters is None:
        using = vlm.exclusively("answering without a video")
    else:  # one and the same adapter is worn by the whole batch, not once a row
        if not whole:
            adapters = [
                select_segments(adapter, question) for adapter, question in zip(adapters, questions, strict=True)
            ]
        worn = adapters[0] if all(adapter is adapters[0] for adapter in adapters) else adapters
        using = applied(vlm, worn, strength, merged=False)
    with using:
        return _answers(prompts, vlm, max_new_tokens, asked)


def ask_each_in_context(
    path: str | os.PathLike,
    questions: Sequence[str],
    vlm: FrozenVLM,
    reading: Reading | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """`ask_in_context` for several questions about one video, which is decoded and seen once."""
    questions = [vlm.check_user_text(question) for question in questions]
    seen = encode_video_images(path, vlm, fill_reading(reading or Reading(), TrainedWith(), vlm.geometry))
    answers = []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        some = questions[start : start + QUESTIONS_AT_ONCE]
        ids = [video_ids(seen, vlm, question, answer=True) for question in some]
        vlm.check_length(max(map(len, ids)), max_new_tokens)
        prompts = [vlm.embed(each, seen.images) for each in ids]
        with vlm.exclusively("answering in context"):
            found = _answers(prompts, vlm, max_new_tokens, asked=time.perf_counter())
        answers += [answer.text for answer in found]
    return answers


def question_embeddings(question: str, vlm: FrozenVLM, max_new_tokens: int = 0) -> torch.Tensor:
    """(T, D): the prompt of a question without a video. It cannot hold a visual token, whatever the question says.
    Raises V2LError if the prompt and so many new tokens exceed the model's positions, before it is embedded.
    """
    ids = vlm.tokenize(question_text(vlm.check_user_text(question)))
    vlm.check_length(len(ids), max_new_tokens)
    return vlm.embed(ids)


def _answers(prompts: Sequence[torch.Tensor], vlm: FrozenVLM, max_new_tokens: int, asked: float) -> list[Answer]:
    """The answers to several prompts, (T_b, D) each, in one batch, while the caller holds the model. asked: when."""
    steps, times = [], []
    for ids in vlm.greedy(prompts, max_new_tokens):
        steps.append(ids)
        times.append(time.perf_counter())
    answers = []
    for prompt, ids in zip(prompts, zip(*steps, strict=True), strict=True):
        ended = next((place for place, token in enumerate(ids) if token in vlm.end_of_answer_ids), len(ids) - 1)
        speed = ended / (times[ended] - times[0]) if ended else None
        text = "".join(_text_pieces(iter(ids), vlm))
        answers.append(Answer(text, len(prompt), ended + 1, times[0] - asked, speed, len(prompts)))
    return answers


def _pieces(
    prompt: torch.Tensor, vlm: FrozenVLM, max_new_tokens: int, clock: _Clock, using: AbstractContextManager
) -> Generator[str]:
    """The answer to a prompt, (T, D), while `using` holds the model."""

    def timed() -> Iterator[int]:
        for (token,) in vlm.greedy([prompt], max_new_tokens):
            clock.last = time.perf_counter()
            clock.first = clock.first or clock.last
            clock.tokens += 1
            yield token

    with using:
        yield from _text_pieces(timed(), vlm)


def _text_pieces(tokens: Iterator[int], vlm: FrozenVLM) -> Iterator[str]:
    """Generated ids as pieces of text; ends at the first id that ends an answer."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        if token in vlm.end_of_answer_ids:
            break
        ids.append(token)
        ready = vlm.detokenize(ids).strip().removesuffix("\ufffd")  # half a character: wait for its other bytes
        if len(ready) > len(shown) and ready.startswith(shown):
            yield ready[len(shown) :]
            shown = ready
    rest = vlm.detokenize(ids).strip()
    if len(rest) > len(shown):
        yield rest[len(shown) :]
