"""The whole story: a video to an adapter, an adapter and a question to an answer.

The only place where frames, prompt, model and hypernetwork meet; training, evaluation and benchmarks call its parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch

from v2l import __version__
from v2l.adapter import Adapter, BaseModel, Block, Description, Maker, Reading, Segment
from v2l.errors import V2LError
from v2l.files import identify, printable, unreadable
from v2l.hypernetwork import Hypernetwork, Origin, TrainedWith
from v2l.lora import applied
from v2l.prompt import question_text
from v2l.sampling import frame_range
from v2l.video import load_cv2
from v2l.vlm import FrozenVLM, Window
from v2l.watch import SeenVideo, cut_windows, fill_reading, see_video, video_ids

MAX_NEW_TOKENS = 128


# Encoding ----------------------------------------------------------------------------------------------------------


def encode(
    path: str | os.PathLike,
    vlm: FrozenVLM,
    hypernetwork: Hypernetwork,
    frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    resolution: int | None = None,
) -> Adapter:
    """Reads a video once and returns the adapter that stands for it (paper section 3).

    path: a local video file
    frames: at most this many; fps: frames per second aimed for; resolution: pixels of a frame's longest edge. Where
        None, what the hypernetwork was trained with
    start, end: seconds of the video, None for its beginning and its end

    The same file, settings, device, dtype and number of threads give the same adapter, bit for bit.
    Raises V2LError where the video cannot be read, or model and hypernetwork do not belong together.
    """
    origin = check_belongs(hypernetwork, vlm)
    trained_with = origin.trained_with
    reading = fill_reading(Reading(frames, fps, start, end, resolution), trained_with, vlm)
    before = _status(path)
    source = identify(path)
    seen = see_video(path, vlm, reading)
    windows = cut_windows(seen, vlm, trained_with.prompt, trained_with.window_frames)
    a, b = generate_factors(windows, vlm, hypernetwork)
    if _status(path) != before:
        raise V2LError(f"{printable(path)} changed while it was being read; encode it again when it is complete")
    begin, finish = _span(seen, reading)
    segment = Segment(
        source=source,
        start=begin,
        end=finish,
        timestamps=tuple(frame.seconds for frame in seen.frames),
        width=seen.video.width,
        height=seen.video.height,
        windows=tuple(window.frames for window in windows),
        window_frames=trained_with.window_frames,
        reading=reading,
        prompt=trained_with.prompt,
        decoder=f"opencv {load_cv2().__version__}",
    )
    rank = hypernetwork.config.rank
    description = Description(
        base_model=BaseModel(vlm.id, vlm.revision, vlm.fingerprint),
        hypernetwork=Maker(origin.id, origin.sha256, trained_with.windows, trained_with.segments),
        segments=(segment,),
        blocks=(Block(rank, segments=1, relative_error=0.0),),
        bias_rank=rank,
        v2l_version=__version__,
    )
    return Adapter(a, b, description)


@torch.no_grad()
def generate_factors(
    windows: Sequence[Window], vlm: FrozenVLM, hypernetwork: Hypernetwork
) -> tuple[torch.Tensor, torch.Tensor]:
    """One video's factors, (L, 2R, d_in) and (L, 2R, d_out), float32 on the CPU: the hypernetwork reads the hidden
    states of all windows together, a decoder layer at a time."""
    factors = hypernetwork.generate(vlm.read_layers(windows))
    a, b = zip(*factors, strict=True)
    return torch.cat(a).cpu(), torch.cat(b).cpu()


def check_belongs(hypernetwork: Hypernetwork, vlm: FrozenVLM) -> Origin:
    """The hypernetwork's origin. Raises V2LError, with both names, where it was trained for another model or stands
    on another device."""
    origin, config = hypernetwork.origin, hypernetwork.config
    if origin is None:
        raise V2LError("this hypernetwork was not loaded from a file; adapters must say what made them")
    module = vlm.down_projections[0]
    sizes = (config.num_layers, config.intermediate_size, config.hidden_size)
    if sizes != (vlm.num_layers, module.in_features, module.out_features) or (
        origin.base_fingerprint not in (None, vlm.fingerprint)
    ):
        raise V2LError(
            f"the hypernetwork {printable(origin.id)} was trained for {printable(origin.base_model)}, the model at "
            f"hand is {printable(vlm.id)}; load the two that belong together"
        )
    device = hypernetwork.head.weight.device
    if device.type != vlm.device.type:
        raise V2LError(f"the hypernetwork is on {device}, the model on {vlm.device}; load both on one device")
    return origin


def _span(seen: SeenVideo, reading: Reading) -> tuple[float, float]:
    """Seconds that the frames were chosen from, as far as the video goes."""
    frame_range(seen.video, reading.start, reading.end)
    end = seen.video.duration if reading.end is None else min(reading.end, seen.video.duration)
    return round(reading.start or 0.0, 6), round(end, 6)


def _status(path: str | os.PathLike) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return status.st_ino, status.st_size, status.st_mtime_ns


# Answering ---------------------------------------------------------------------------------------------------------


def ask(
    adapter: Adapter,
    question: str,
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
) -> str:
    """The answer to a question about an encoded video: text alone goes in, not one visual token.

    max_new_tokens: the longest answer; strength: how much of the adapter to wear, 1 as made
    Raises V2LError where the adapter was made for another model, or the question is empty or holds control tokens.
    """
    return "".join(stream(adapter, question, vlm, max_new_tokens, strength))


def stream(
    adapter: Adapter,
    question: str,
    vlm: FrozenVLM,
    max_new_tokens: int = MAX_NEW_TOKENS,
    strength: float = 1.0,
) -> Iterator[str]:
    """The same answer in pieces, as they are chosen. The model wears the adapter until the last piece is taken or
    the iterator is closed."""
    prompt = question_embeddings(question, vlm)
    with applied(vlm, adapter, strength):
        yield from _text_pieces((ids[0] for ids in vlm.greedy([prompt], max_new_tokens)), vlm)


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


def ask_in_context(
    path: str | os.PathLike,
    question: str,
    vlm: FrozenVLM,
    reading: Reading | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str:
    """The answer with the video in the prompt: what adapters are measured against, from the same frames and words.

    reading: how to read the video; None, and what is None in it, is as the published method reads it
    Raises V2LError where the prompt exceeds the model's positions.
    """
    reading = fill_reading(reading or Reading(), TrainedWith(), vlm)
    question = vlm.check_user_text(question)
    seen = see_video(path, vlm, reading)
    prompt = vlm.embed(video_ids(seen, vlm, question, answer=True), seen.images)
    return "".join(_text_pieces((ids[0] for ids in vlm.greedy([prompt], max_new_tokens)), vlm))


def question_embeddings(question: str, vlm: FrozenVLM) -> torch.Tensor:
    """(T, D): the prompt of a question without a video. It cannot hold a visual token, whatever the question says."""
    return vlm.embed(vlm.tokenize(question_text(vlm.check_user_text(question))))


def _text_pieces(tokens: Iterator[int], vlm: FrozenVLM) -> Iterator[str]:
    """Generated ids as pieces of text that together are the answer, without white space at its ends; ends at the
    first id that ends an answer."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        if token in vlm.end_of_answer_ids:
            break
        ids.append(token)
        text = vlm.detokenize(ids).lstrip()
        ready = text.rstrip().removesuffix("\ufffd")  # half a character so far: wait for its other bytes
        if len(ready) > len(shown) and ready.startswith(shown):
            yield ready[len(shown) :]
            shown = ready
    rest = vlm.detokenize(ids).strip()
    if len(rest) > len(shown):
        yield rest[len(shown) :]
