"""An adapter and a question to an answer, from text alone; and the same question with the video in the prompt."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from v2l.adapter import Adapter
from v2l.errors import V2LError
from v2l.hypernetwork import TrainedWith
from v2l.lora import applied
from v2l.prompt import question_text
from v2l.sampling import Reading
from v2l.vlm import FrozenVLM
from v2l.watch import fill_reading, see_video, video_ids

MAX_NEW_TOKENS = 128


class Stream:
    """An answer as it comes: iterate over its pieces of text, which together are the answer without white space at
    its ends; then read how it went. The model wears the adapter from the first piece to the last, or to `close`.

    prompt_tokens, visual_tokens: how many went in, and how many of them were image tokens
    tokens: how many came out so far, the one that ends the answer included
    """

    def __init__(
        self,
        prompt: torch.Tensor,
        visual_tokens: int,
        vlm: FrozenVLM,
        max_new_tokens: int,
        asked: float,
        wearing: AbstractContextManager | None = None,
    ):
        """prompt: (T, D) embeddings; asked: `time.perf_counter()` when the question came."""
        self.prompt_tokens, self.visual_tokens = len(prompt), visual_tokens
        self.tokens = 0
        self._asked, self._first, self._last = asked, None, None
        self._pieces = self._answer(prompt, vlm, max_new_tokens, wearing or nullcontext())

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the answer early and takes the adapter off."""
        self._pieces.close()

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the question to the first token; None before it."""
        return None if self._first is None else self._first - self._asked

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token; None while there is no second."""
        return None if self.tokens < 2 else (self.tokens - 1) / (self._last - self._first)

    def _answer(
        self, prompt: torch.Tensor, vlm: FrozenVLM, max_new_tokens: int, wearing: AbstractContextManager
    ) -> Iterator[str]:
        with wearing:
            yield from _text_pieces(self._timed(vlm.greedy([prompt], max_new_tokens)), vlm)

    def _timed(self, steps: Iterator[list[int]]) -> Iterator[int]:
        for (token,) in steps:
            self._last = time.perf_counter()
            self._first = self._first or self._last
            self.tokens += 1
            yield token


def stream(
    adapter: Adapter,
    question: str,
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
) -> Stream:
    """The answer to a question about an encoded video, piece by piece: text alone goes in, not one visual token.

    max_new_tokens: the longest answer; strength: how much of the adapter to wear, 1 as made
    Raises V2LError where the adapter was made for another model, or the question is empty or holds control tokens.
    """
    asked = time.perf_counter()
    prompt = question_embeddings(question, vlm)
    return Stream(prompt, 0, vlm, max_new_tokens, asked, applied(vlm, adapter, strength))


def stream_in_context(
    path: str | os.PathLike,
    question: str,
    vlm: FrozenVLM,
    reading: Reading | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Stream:
    """The answer with the video in the prompt: what adapters are measured against, from the same frames and words.

    reading: how to read the video; None, and what is None in it, is as the published method reads it
    Raises V2LError where the video cannot be read or its prompt exceeds the model's positions.
    """
    asked = time.perf_counter()
    question = vlm.check_user_text(question)
    seen = see_video(path, vlm, fill_reading(reading or Reading(), TrainedWith(), vlm.geometry))
    ids = video_ids(seen, vlm, question, answer=True)
    visual_tokens = int((ids == vlm.image_token_id).sum())
    return Stream(vlm.embed(ids, seen.images), visual_tokens, vlm, max_new_tokens, asked)


def ask(
    adapter: Adapter,
    question: str,
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
) -> str:
    """The whole answer of `stream`."""
    return "".join(stream(adapter, question, vlm, max_new_tokens, strength))


def ask_in_context(
    path: str | os.PathLike,
    question: str,
    vlm: FrozenVLM,
    reading: Reading | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str:
    """The whole answer of `stream_in_context`."""
    return "".join(stream_in_context(path, question, vlm, reading, max_new_tokens))


def ask_each(
    adapters: Sequence[Adapter], questions: Sequence[str], vlm: FrozenVLM, max_new_tokens: int = MAX_NEW_TOKENS
) -> list[str]:
    """One answer per pair of adapter and question, all in one batch: row i wears adapters[i]."""
    prompts = [question_embeddings(question, vlm) for question in questions]
    if len(adapters) != len(prompts):
        raise V2LError(f"{len(adapters)} adapters and {len(prompts)} questions were given; give one question for each")
    if not prompts:
        return []
    with applied(vlm, adapters):
        steps = list(vlm.greedy(prompts, max_new_tokens))
    return ["".join(_text_pieces(iter(ids), vlm)) for ids in zip(*steps, strict=True)]


def question_embeddings(question: str, vlm: FrozenVLM) -> torch.Tensor:
    """(T, D): the prompt of a question without a video. It cannot hold a visual token, whatever the question says."""
    return vlm.embed(vlm.tokenize(question_text(vlm.check_user_text(question))))


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
