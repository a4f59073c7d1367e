"""Ways to answer a question about a video, from the dearest to none at all, each ready to be timed.

Each way first prepares what it keeps of a video, then answers questions from that. All of them run the same weights,
kernels and prompts in one process; they differ in what they keep (paper section 5.4, and what the paper leaves out:
visual features, the video's KV cache, and fewer frames).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from v2l.adapters.adapter import Adapter
from v2l.adapters.lora import applied
from v2l.inference.ask import question_embeddings
from v2l.inference.encode import encode_segments
from v2l.inference.preprocess import EncodedFrames, encode_video_images, plan_frames, video_ids
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.processor import QUESTIONS, video_text
from v2l.models.smolvlm import FrozenVLM
from v2l.video.sampling import Reading

FEW_FRAMES = 12
"""What people try first: a dozen frames."""


@dataclass(frozen=True)
class Subject:
    """What every way is about.

    video: the file; reading: its frames, filled; vlm, hypernetwork: what answers and what encodes
    folder: for what is kept on disk; new_tokens: of an answer, the first included
    segments: of how many the adapter is composed
    adapter: of the video, for the ways that need one
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
        """The same with its adapter."""
        made = encode_segments(self.video, self.vlm, self.hypernetwork, self.reading, self.segments)
        return replace(self, adapter=made)

    def few(self) -> Subject:
        """The same video with a dozen frames."""
        return replace(self, reading=replace(self.reading, frames=FEW_FRAMES))


@dataclass(frozen=True)
class Ready:
    """A way that has prepared.

    answer: the tokens of a question's answer as they come; attach: held around any number of answers, its time not
        counted
    kept_bytes: what was kept of the video, in memory or on disk
    """

    answer: Callable[[str], Iterator[list[int]]]
    kept_bytes: int
    attach: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class Method:
    """name: as it stands in tables and files; in_context: whether the video is in the prompt
    prepare: does what is done once a video, but for encoding it where wears_adapter says that it is needed
    """

    name: str
    in_context: bool
    prepare: Callable[[Subject], Ready]
    wears_adapter: bool = False


# In context --------------------------------------------------------------------------------------------------------


def cold(subject: Subject) -> Ready:
    """Keeps nothing: every question decodes, sees and reads the video again (the paper's baseline)."""

    def answer(question: str) -> Iterator[list[int]]:
        return _in_context(subject, encode_video_images(subject.video, subject.vlm, subject.reading), question)

    return Ready(answer, 0)


def few_frames(subject: Subject) -> Ready:
    """`cold` with a dozen frames."""
    return cold(subject.few())


def decoded(subject: Subject) -> Ready:
    """Keeps the pixels as the vision tower takes them."""
    plan = plan_frames(subject.video, subject.vlm, subject.reading)
    images = torch.cat(list(plan.images)).to(subject.vlm.device)

    def answer(question: str) -> Iterator[list[int]]:
        return _in_context(subject, EncodedFrames(plan.video, plan.frames, subject.vlm.encode_images(images)), question)

    return Ready(answer, images.nbytes)


def features(subject: Subject) -> Ready:
    """Keeps what the vision tower made of the frames."""
    seen = encode_video_images(subject.video, subject.vlm, subject.reading)
    return Ready(lambda question: _in_context(subject, seen, question), seen.images.nbytes)


def kv_in_memory(subject: Subject) -> Ready:
    """Keeps the KV cache of the prompt up to the question, as prefix caching does."""
    kept = _prefill(subject)
    size = sum(tensor.nbytes for tensor in _tensors(kept.cache).values())

    def answer(question: str) -> Iterator[list[int]]:
        kept.cache.crop(kept.length - kept.cache.get_seq_length())  # what the question before added
        return _go_on(subject, kept.cache, kept.tail(question))

    return Ready(answer, size)


def kv_on_disk(subject: Subject) -> Ready:
    """Keeps that cache in a file, from which every question restores it."""
    kept = _prefill(subject)
    path = subject.folder / "kv.safetensors"
    save_file(_tensors(kept.cache), path)
    kept.cache = None

    def answer(question: str) -> Iterator[list[int]]:
        return _go_on(subject, _restored(path, subject.vlm), kept.tail(question))

    return Ready(answer, os.stat(path).st_size)


# Without the video -------------------------------------------------------------------------------------------------


def attached_adapter(subject: Subject) -> Ready:
    """Keeps an adapter, worn as `applied` does on this device for one that stays on."""
    return _worn(subject, merged=None)


def side_path_adapter(subject: Subject) -> Ready:
    """Keeps an adapter, worn beside the weights."""
    return _worn(subject, merged=False)


def merged_adapter(subject: Subject) -> Ready:
    """Keeps an adapter, folded into a copy of the weights."""
    return _worn(subject, merged=True)


def adapter_on_disk(subject: Subject) -> Ready:
    """Keeps an adapter file, which every question reads and attaches."""
    path = subject.folder / "clip.v2l.safetensors"
    subject.adapter.save(path)

    def answer(question: str) -> Iterator[list[int]]:
        with applied(subject.vlm, Adapter.load(path), merged=False):
            yield from _without_video(subject, question)

    return Ready(answer, os.stat(path).st_size)


def text_only(subject: Subject) -> Ready:
    """Keeps nothing and knows nothing: the floor."""
    return Ready(lambda question: _without_video(subject, question), 0)


METHODS = (
    Method("in context, cold", True, cold),
    Method("in context, frames decoded", True, decoded),
    Method("in context, features kept", True, features),
    Method("in context, KV in memory", True, kv_in_memory),
    Method("in context, KV on disk", True, kv_on_disk),
    Method(f"in context, {FEW_FRAMES} frames, cold", True, few_frames),
    Method("adapter, attached", False, attached_adapter, wears_adapter=True),
    Method("adapter, on the side path", False, side_path_adapter, wears_adapter=True),
    Method("adapter, merged", False, merged_adapter, wears_adapter=True),
    Method("adapter, from disk", False, adapter_on_disk, wears_adapter=True),
    Method("no video", False, text_only),
)
"""The attached adapter is one of the two after it."""


# Parts -------------------------------------------------------------------------------------------------------------


def _in_context(subject: Subject, seen: EncodedFrames, question: str) -> Iterator[list[int]]:
    prompt = subject.vlm.embed(video_ids(seen, subject.vlm, question, answer=True), seen.images)
    yield from subject.vlm.greedy([prompt], subject.new_tokens, for_speed=True)


def _without_video(subject: Subject, question: str) -> Iterator[list[int]]:
    yield from subject.vlm.greedy([question_embeddings(question, subject.vlm)], subject.new_tokens, for_speed=True)


def _worn(subject: Subject, merged: bool | None) -> Ready:
    return Ready(
        lambda question: _without_video(subject, question),
        subject.adapter.a.nbytes + subject.adapter.b.nbytes,
        lambda: applied(subject.vlm, subject.adapter, merged=merged),
    )


def prompt_size(subject: Subject, way: Method) -> tuple[int, int]:
    """Tokens of a question's prompt, those that stand in a cache included, and how many of them are visual. Decodes
    nothing."""
    vlm = subject.vlm
    if not way.in_context:
        return len(question_embeddings(QUESTIONS[0], vlm)), 0
    plan = plan_frames(subject.video, vlm, (subject.few() if way.prepare is few_frames else subject).reading)
    text = video_text(plan.frames, plan.video.duration, QUESTIONS[0], vlm.geometry, generation_prompt=True)
    ids = vlm.tokenize(text)
    return len(ids), int((ids == vlm.image_token_id).sum())


@dataclass
class _Prefilled:
    """The KV cache of what all prompts about a video begin with, and how they go on.

    length: tokens in the cache before a question; tail: the ids that a question adds
    """

    cache: Any
    length: int
    tail: Callable[[str], torch.Tensor]


def _prefill(subject: Subject) -> _Prefilled:
    vlm, seen = subject.vlm, encode_video_images(subject.video, subject.vlm, subject.reading)

    def ids(question: str, first: int = 0) -> torch.Tensor:
        return video_ids(seen, vlm, question, first, answer=True)

    whole = _common_beginning([ids(question) for question in QUESTIONS])
    # the last frame alone goes on in the same way, and is soon tokenized
    short = len(_common_beginning([ids(question, first=-1) for question in QUESTIONS]))
    cache = vlm.prefill(vlm.embed(whole, seen.images))
    return _Prefilled(cache, len(whole), lambda question: ids(question, first=-1)[short:])


def _go_on(subject: Subject, cache: Any, tail: torch.Tensor) -> Iterator[list[int]]:
    prompt = subject.vlm.embed(tail)
    yield from subject.vlm.greedy([prompt], subject.new_tokens, cache=cache, for_speed=True)


def _common_beginning(prompts: Sequence[torch.Tensor]) -> torch.Tensor:
    shortest = min(map(len, prompts))
    same = torch.stack([prompt[:shortest] == prompts[0][:shortest] for prompt in prompts]).all(0)
    return prompts[0][: int(same.long().cumprod(0).sum())]


def _tensors(cache: Any) -> dict[str, torch.Tensor]:
    """Keys and values, (1, heads, T, width) each, by layer and name."""
    named = {}
    for index, layer in enumerate(cache.layers):
        named |= {f"{index}.keys": layer.keys.contiguous(), f"{index}.values": layer.values.contiguous()}
    return named


def _restored(path: Path, vlm: FrozenVLM) -> Any:
    tensors, cache = load_file(path, device=str(vlm.device)), vlm.new_cache()
    for index in range(vlm.num_layers):
        cache.update(tensors[f"{index}.keys"], tensors[f"{index}.values"], index)
    return cache
