"""The methods that the bench compares: each keeps something of a video and answers questions from it.

All methods use the same weights, kernels and prompts in one process and differ only in what they keep. They are those
of paper section 5.4 and some that the paper leaves out: visual features, the video's KV cache, and fewer frames.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from v2l.adapters.adapter import Adapter
from v2l.adapters.lora import applied, merging_is_faster
from v2l.adapters.timeline import Timeline, attach
from v2l.bench.peer import generate, transformers_model
from v2l.inference.ask import question_embeddings
from v2l.inference.encode import encode_segments
from v2l.inference.preprocess import EncodedFrames, FramePlan, encode_video_images, plan_frames, video_ids
from v2l.inference.readings import fill_reading
from v2l.inference.timeline import encode_timeline
from v2l.io.text import clock
from v2l.models.checkpoint import check_belongs
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.language_model import KVCache
from v2l.models.processor import QUESTIONS, normalise, question_text, video_text
from v2l.models.smolvlm import FrozenVLM
from v2l.video.client import probe
from v2l.video.sampling import Reading

FEW_FRAMES = 12
"""Frames of the reduced in-context baseline; the paper's number."""

Tokens = Generator[list[int]]
"""The ids of an answer as they are generated, one row each."""


@dataclass(frozen=True)
class Subject:
    """The inputs of all methods.

    video: the file; reading: its frames, filled; vlm, hypernetwork: the models that answer and encode
    folder: for files that methods keep; new_tokens: length of an answer
    segments: number of segments that the adapter is composed of
    adapter: of the video, None until `encoded`
    """

    video: Path
    reading: Reading
    vlm: FrozenVLM
    hypernetwork: Hypernetwork
    folder: Path
    new_tokens: int
    segments: int = 1
    adapter: Adapter | None = None

    def encoded(self) -> Subject:
        """Encode the video and return the subject with its adapter."""
        adapter = encode_segments(self.video, self.vlm, self.hypernetwork, self.reading, self.segments)
        return replace(self, adapter=adapter)


@dataclass(frozen=True)
class PreparedMethod:
    """A method that has processed a video.

    answer: generates the tokens of an answer; kept_bytes: size of what is kept of the video, in memory or on disk
    attach: context manager around any number of answers, not included in their time
    """

    answer: Callable[[str], Tokens]
    kept_bytes: int
    attach: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class Method:
    """One of the compared methods of answering questions about a video.

    name: label in tables and files; in_context: whether the video is in the prompt
    prepare: does the work that is needed once per video, except for encoding
    needs_adapter: whether `prepare` takes an encoded subject; merged: how the adapter is applied, see `applied`
    frames: number of frames that the method uses, None for those of the subject
    """

    name: str
    in_context: bool
    prepare: Callable[[Subject], PreparedMethod]
    needs_adapter: bool = False
    merged: bool | None = None
    frames: int | None = None

    def reading(self, reading: Reading) -> Reading:
        """Return `reading` with the method's own number of frames."""
        return reading if self.frames is None else replace(reading, frames=self.frames)


# In context --------------------------------------------------------------------------------------------------------


def cold(subject: Subject) -> PreparedMethod:
    """Keep nothing: every question decodes and encodes the video and prefills it again (the paper's baseline)."""

    def answer(question: str) -> Tokens:
        return _in_context(subject, encode_video_images(subject.video, subject.vlm, subject.reading), question)

    return PreparedMethod(answer, 0)


def decoded(subject: Subject) -> PreparedMethod:
    """Keep the pixels that the vision tower takes."""
    plan = plan_frames(probe(subject.video), subject.vlm, subject.reading)
    images = torch.cat(list(plan.images)).to(subject.vlm.device)

    def answer(question: str) -> Tokens:
        return _in_context(
            subject, EncodedFrames(plan.video, plan.frames, subject.vlm.encode_images(images), plan.span), question
        )

    return PreparedMethod(answer, images.nbytes)


def features(subject: Subject) -> PreparedMethod:
    """Keep the output of the vision tower."""
    encoded = encode_video_images(subject.video, subject.vlm, subject.reading)
    return PreparedMethod(lambda question: _in_context(subject, encoded, question), encoded.images.nbytes)


def kv_in_memory(subject: Subject) -> PreparedMethod:
    """Keep the KV cache of the prompt up to the question, as prefix caching does."""
    prefix = _prefill(subject)
    cache = prefix.cache
    size = sum(tensor.nbytes for tensor in _tensors(cache).values())

    def answer(question: str) -> Tokens:
        cache.crop(prefix.length)  # remove the previous question and answer
        return _continue(subject, cache, prefix.tail(question))

    return PreparedMethod(answer, size)


def kv_on_disk(subject: Subject) -> PreparedMethod:
    """Keep the KV cache in a file, from which every question restores it."""
    prefix = _prefill(subject)
    path, tail = subject.folder / "kv.safetensors", prefix.tail
    save_file({name: tensor.contiguous() for name, tensor in _tensors(prefix.cache).items()}, path)
    del prefix  # free the memory

    def answer(question: str) -> Tokens:
        ids = tail(question)
        return _continue(subject, _restore(path, subject, len(ids)), ids)

    return PreparedMethod(answer, os.stat(path).st_size)


def transformers_in_context(subject: Subject) -> PreparedMethod:
    """Keep nothing, and generate with transformers' own classes: what a user of them does without v2l."""
    vlm, model = subject.vlm, transformers_model(subject.vlm)

    def answer(question: str) -> Tokens:
        plan = plan_frames(probe(subject.video), vlm, subject.reading)
        pixels = normalise(torch.cat(list(plan.images)).to(vlm.device)).to(vlm.dtype)
        return generate(model, _plan_ids(plan, question, vlm), pixels, subject.new_tokens)

    return PreparedMethod(answer, 0)


# Without the video -------------------------------------------------------------------------------------------------


def attached_adapter(subject: Subject) -> PreparedMethod:
    """Keep an adapter, applied in the way that is faster on this device."""
    return _applied_adapter(subject, merged=None)


def side_path_adapter(subject: Subject) -> PreparedMethod:
    """Keep an adapter, applied beside the weights."""
    return _applied_adapter(subject, merged=False)


def merged_adapter(subject: Subject) -> PreparedMethod:
    """Keep an adapter, merged into a copy of the weights."""
    return _applied_adapter(subject, merged=True)


def adapter_on_disk(subject: Subject) -> PreparedMethod:
    """Keep an adapter file, which every question reads and applies."""
    path = subject.folder / "clip.v2l.safetensors"
    _adapter(subject).save(path)

    def answer(question: str) -> Tokens:
        with applied(subject.vlm, Adapter.load(path), merged=False):
            yield from _without_video(subject, question)

    return PreparedMethod(answer, os.stat(path).st_size)


def timeline_on_disk(subject: Subject) -> PreparedMethod:
    """Keep a timeline of the video, encoded here with the trained settings and without an index. Every question names
    a moment of another segment; it opens the file, chooses that segment, reads it and applies it."""
    vlm, hypernetwork, path = subject.vlm, subject.hypernetwork, subject.folder / "timeline.v2l.safetensors"
    reading = replace(subject.reading, frames=None, fps=None)
    encode_timeline(subject.video, vlm, hypernetwork, path, reading, index=False)
    starts = itertools.cycle([part.start for part in Timeline.load(path).description.segments])

    def answer(question: str) -> Tokens:
        question = about_moment(question, next(starts))
        attached = attach(Timeline.load(path), question)
        ((adapter,), (question,)) = attached.adapters, attached.questions
        with applied(vlm, adapter, merged=False):
            yield from _without_video(subject, question)

    return PreparedMethod(answer, os.stat(path).st_size)


def text_only(subject: Subject) -> PreparedMethod:
    """Keep nothing and answer without the video: the lower bound of the time."""
    return PreparedMethod(lambda question: _without_video(subject, question), 0)


def transformers_text_only(subject: Subject) -> PreparedMethod:
    """Answer without the video, with `generate` of transformers' own classes."""
    vlm, model = subject.vlm, transformers_model(subject.vlm)

    def answer(question: str) -> Tokens:
        return generate(model, vlm.tokenize(question_text(question)), None, subject.new_tokens)

    return PreparedMethod(answer, 0)


METHODS = (
    Method("in context, cold", True, cold),
    Method("in context, frames decoded", True, decoded),
    Method("in context, features kept", True, features),
    Method("in context, KV in memory", True, kv_in_memory),
    Method("in context, KV on disk", True, kv_on_disk),
    Method(f"in context, {FEW_FRAMES} frames, cold", True, cold, frames=FEW_FRAMES),
    Method("transformers, in context", True, transformers_in_context),
    Method("adapter, attached", False, attached_adapter, needs_adapter=True),
    Method("adapter, on the side path", False, side_path_adapter, needs_adapter=True, merged=False),
    Method("adapter, merged", False, merged_adapter, needs_adapter=True, merged=True),
    Method("adapter, from disk", False, adapter_on_disk, needs_adapter=True),
    Method("timeline, from disk", False, timeline_on_disk),
    Method("transformers, no video", False, transformers_text_only),
    Method("no video", False, text_only),
)


def distinct_methods(vlm: FrozenVLM, frames: int, as_timeline: bool = False) -> list[Method]:
    """Return the methods without those that would repeat another one: the attached adapter is either merged or on the
    side path, and few frames are no fewer than `frames` if those are few.

    as_timeline: whether the video is long enough for a timeline
    """
    attached_merged = merging_is_faster(vlm)
    return [
        method
        for method in METHODS
        if method.merged is not attached_merged
        and (method.frames is None or frames > method.frames)
        and (as_timeline or method.prepare is not timeline_on_disk)
    ]


def warm_up(subject: Subject) -> None:
    """Encode one frame and answer from it, with v2l and with transformers, so that no method is charged for imports,
    loading and first calls."""
    one = replace(subject, reading=replace(subject.reading, frames=1), segments=1, new_tokens=2).encoded()
    for prepare in (cold, attached_adapter, transformers_in_context):
        for _ in prepare(one).answer(QUESTIONS[0]):
            pass


def trained_reading(reading: Reading, hypernetwork: Hypernetwork, vlm: FrozenVLM) -> Reading:
    """Return a reading with the frames and the rate that the hypernetwork was trained with, at the same resolution."""
    trained_with = check_belongs(hypernetwork, vlm).trained_with
    return fill_reading(replace(reading, frames=None, fps=None), trained_with, vlm.geometry)


def about_moment(question: str, start: float) -> str:
    """Return a question about the first whole second of a segment, so that it is routed there."""
    return f"at {clock(math.ceil(start))}, {question}"


# Parts -------------------------------------------------------------------------------------------------------------


def _in_context(subject: Subject, encoded: EncodedFrames, question: str) -> Tokens:
    prompt = subject.vlm.embed(video_ids(encoded, subject.vlm, question, answer=True), encoded.images)
    yield from subject.vlm.greedy([prompt], subject.new_tokens, for_speed=True)


def _without_video(subject: Subject, question: str) -> Tokens:
    yield from subject.vlm.greedy([question_embeddings(question, subject.vlm)], subject.new_tokens, for_speed=True)


def _adapter(subject: Subject) -> Adapter:
    assert subject.adapter is not None, "methods with needs_adapter are given an encoded subject"
    return subject.adapter


def _applied_adapter(subject: Subject, merged: bool | None) -> PreparedMethod:
    adapter = _adapter(subject)
    return PreparedMethod(
        lambda question: _without_video(subject, question),
        adapter.a.nbytes + adapter.b.nbytes,
        lambda: applied(subject.vlm, adapter, merged=merged),
    )


def prompt_size(subject: Subject, method: Method) -> tuple[int, int]:
    """Return the number of tokens in a question's prompt, cached ones included, and how many of them are visual.
    Decodes nothing."""
    vlm = subject.vlm
    if not method.in_context:
        is_timed = method.prepare is timeline_on_disk
        question = about_moment(QUESTIONS[0], 0.0) if is_timed else QUESTIONS[0]
        return len(question_embeddings(question, vlm)), 0
    plan = plan_frames(probe(subject.video), vlm, method.reading(subject.reading))
    ids = _plan_ids(plan, QUESTIONS[0], vlm)
    return len(ids), int((ids == vlm.image_token_id).sum())


def _plan_ids(plan: FramePlan, question: str, vlm: FrozenVLM) -> torch.Tensor:
    """Return the ids of the prompt that shows planned frames, decoded or not, and asks a question."""
    text = video_text(plan.frames, plan.video.duration, question, vlm.geometry, generation_prompt=True)
    return vlm.tokenize(text)


@dataclass
class _Prefilled:
    """The KV cache of the common prefix of all prompts about a video.

    length: tokens in the cache before a question; tail: returns the ids that a question adds
    """

    cache: KVCache
    length: int
    tail: Callable[[str], torch.Tensor]


def _prefill(subject: Subject) -> _Prefilled:
    vlm, encoded = subject.vlm, encode_video_images(subject.video, subject.vlm, subject.reading)

    def ids(question: str, first: int = 0) -> torch.Tensor:
        return video_ids(encoded, vlm, question, first, answer=True)

    prefix = _common_prefix([ids(question) for question in QUESTIONS])
    # A prompt with the last frame alone has the same tail and is quick to tokenize.
    short = len(_common_prefix([ids(question, first=-1) for question in QUESTIONS]))
    cache = vlm.prefill(vlm.embed(prefix, encoded.images))
    return _Prefilled(cache, len(prefix), lambda question: ids(question, first=-1)[short:])


def _continue(subject: Subject, cache: KVCache, tail: torch.Tensor) -> Tokens:
    prompt = subject.vlm.embed(tail)
    yield from subject.vlm.greedy([prompt], subject.new_tokens, cache=cache, for_speed=True)


def _common_prefix(prompts: Sequence[torch.Tensor]) -> torch.Tensor:
    shortest = min(map(len, prompts))
    same = torch.stack([prompt[:shortest] == prompts[0][:shortest] for prompt in prompts]).all(0)
    return prompts[0][: int(same.long().cumprod(0).sum())]


def _tensors(cache: KVCache) -> dict[str, torch.Tensor]:
    """Return the keys and values in use, (L, 1, K, T, E) each."""
    return {name: getattr(cache, name)[..., : cache.length, :] for name in ("keys", "values")}


def _restore(path: Path, subject: Subject, tail: int) -> KVCache:
    """Read a cache from its file, with room for a tail of so many tokens and an answer."""
    tensors = load_file(path, device=str(subject.vlm.device))
    length = tensors["keys"].shape[3]
    cache = KVCache(subject.vlm.language_model, 1, length + tail + subject.new_tokens)
    cache.keys[..., :length, :], cache.values[..., :length, :] = tensors["keys"], tensors["values"]
    cache.length = length
    return cache
