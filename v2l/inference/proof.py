"""Prove that a frozen model and its hypernetwork work together: that adapters tell one video from another.

The model captions each video with its frames in the prompt. A working hypernetwork makes that caption likelier under
the adapter of its own video than under the adapter of another one, and likelier than under the learned bias alone,
which all adapters share. Random or shuffled weights do neither, except by chance, so each difference has to be a part
of the gain that the video brings in context.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from v2l.adapters.adapter import Adapter
from v2l.errors import V2LError
from v2l.inference.ask import ask_each_about_frames
from v2l.inference.encode import adapter_from_frames, open_video, start_encode
from v2l.inference.likelihood import answer_ids, answer_likelihoods, likelihood_in_context
from v2l.inference.preprocess import EncodedFrames, encode_images
from v2l.inference.timeline import CAPTION_QUESTIONS
from v2l.io.text import printable
from v2l.models.device import memory_errors
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.smolvlm import FrozenVLM
from v2l.video.sampling import Reading

CAPTION_TOKENS = 64
"""Maximum length of a caption."""
LEAST_SHARE = 0.1
"""Part of the gain in context that both differences have to reach. The embedded model reaches 0.7; how many broken
hypernetworks reach it by chance: docs/reliability.md."""


@dataclass(frozen=True)
class Proof:
    """The log-likelihood of a video's caption, in nats per token, at most 0; nearer 0 is likelier.

    caption: the answer of the model in context; tokens: its length
    own: under the adapter of the video; other: under those of the other videos, their mean
    bias: under the learned bias alone; in_context: with the video in the prompt, the most to expect
    """

    video: Path
    caption: str
    tokens: int
    own: float
    other: float
    bias: float
    in_context: float

    @property
    def trouble(self) -> str | None:
        """The reason why the proof fails, in one line; None if it holds."""
        if not all(map(math.isfinite, (self.own, self.other, self.bias, self.in_context))):
            return "the model's numbers are not finite; try another --dtype, or get another copy of the model"
        gain = self.in_context - self.bias
        if gain <= 0:
            return "its caption is no likelier with the video in context than without; this video proves nothing"
        if self.own - self.bias < LEAST_SHARE * gain:
            return (
                "its adapter tells the model no more of it than the learned bias alone; get another copy of the "
                "hypernetwork, or try another video"
            )
        if self.own - self.other < LEAST_SHARE * gain:
            return (
                "its adapter tells the model no more of it than the adapter of another video; get another copy of the "
                "hypernetwork, or try videos that differ more"
            )
        return None


def prove(videos: Sequence[str | os.PathLike], vlm: FrozenVLM, hypernetwork: Hypernetwork) -> list[Proof]:
    """Encode at least two videos and compare the likelihoods of their captions under each other's adapters.

    Raises V2LError if there are fewer or two of the same content, if a video cannot be read or does not fit in context,
    or if the model has no caption of it.
    """
    if len(videos) < 2:
        raise V2LError("the caption of a video is compared under the adapter of another one; give at least two videos")
    encoded, adapters = zip(*(_encode(video, vlm, hypernetwork) for video in videos), strict=True)
    sources = [adapter.description.segments[0].source.sha256 for adapter in adapters]
    for place, sha256 in enumerate(sources):
        if sha256 in sources[:place]:
            first = videos[sources.index(sha256)]
            raise V2LError(
                f"{printable(first)} and {printable(videos[place])} are the same video; name two that differ"
            )
    return [
        _prove(Path(video), frames, place, adapters, vlm)
        for place, (video, frames) in enumerate(zip(videos, encoded, strict=True))
    ]


def _encode(video: str | os.PathLike, vlm: FrozenVLM, hypernetwork: Hypernetwork) -> tuple[EncodedFrames, Adapter]:
    """Encode a video. The vision tower, which takes most of the time, runs once for the adapter and the context."""
    pending = start_encode(open_video(video), vlm, hypernetwork, Reading())
    with memory_errors(f"encoding {printable(video)}", vlm.device, vlm.dtype):
        encoded = encode_images(pending.plan, vlm)
    return encoded, adapter_from_frames(pending, encoded, vlm, hypernetwork)


def _prove(video: Path, encoded: EncodedFrames, place: int, adapters: Sequence[Adapter], vlm: FrozenVLM) -> Proof:
    """Return the proof of one video. place: of its adapter among all"""
    adapter, (question,) = adapters[place], CAPTION_QUESTIONS
    caption = _caption(video, encoded, question, vlm)
    tokens = len(answer_ids(caption, vlm))
    *each, bias = answer_likelihoods([*adapters, adapter.bias_alone()], question, caption, vlm)
    own = each.pop(place)
    in_context = likelihood_in_context(encoded, question, caption, vlm)
    other = sum(each) / len(each)
    return Proof(video, caption, tokens, own / tokens, other / tokens, bias / tokens, in_context / tokens)


def _caption(video: Path, encoded: EncodedFrames, question: str, vlm: FrozenVLM) -> str:
    (caption,) = ask_each_about_frames(encoded, [question], vlm, CAPTION_TOKENS)
    if not caption:
        raise V2LError(f"the model has no caption of {printable(video)} in context; try another video")
    return caption
