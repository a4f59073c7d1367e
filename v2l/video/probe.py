"""Learns a video's true frames and their times, and decodes the chosen ones: the pictures that a player shows.

Runs in the decoding worker: imports only the standard library, numpy and PyAV (late). Axes: N frames of the video in
the order shown, P packets of its stream in the order stored.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from v2l.errors import V2LError
from v2l.video.container import Source, load_av, open_source, regular_file, take_errors
from v2l.video.decoder import Decoder, Frame, decode
from v2l.video.packets import MISSING, Index, PacketReader, Packets, packets_of, scan
from v2l.video.picture import Converter
from v2l.video.sampling import Video

MAX_FPS = 1000.0
LIE_LIMIT = 1.05  # a header may promise this many times the frames, or seconds, that can be decoded
CLOCK_NOISE = 0.0015  # seconds; containers as coarse as 1 ms round the times of a constant rate by up to this much
HEAD_PACKETS = 24  # decoded at the start of a file to see whether its packets tell its frames
STARTS_TRIED = 4  # key packets at which a recording that was cut may begin

_NO_EDITS = {"ignore_editlist": "1"}
_CUT_OFF = "the file is cut off or damaged; get it again whole, or re-mux or re-encode it"

Alive = Callable[[], None]
"""Called at every packet that is passed: a sign of life."""


def probe(path: str | os.PathLike[str], shown: str = "", alive: Alive = lambda: None) -> Video:
    """Open the file, check it, and learn its true frame count, rate, size and the time of every frame.

    Costs one read of the file without decoding, and two dozen decoded frames at its start; a file whose packets do not
    tell its frames is decoded once from start to end instead. shown: the name for messages.
    Raises V2LError: not a regular, readable local file; a playlist or a still picture; no frame can be decoded; a
    header that promises over 5% more than can be decoded; a size or frame rate that cannot be true.
    """
    shown = shown or os.fsdecode(path)
    name = regular_file(path, shown)
    with open_source(name, shown, threads=1) as source:
        packets = scan(source, alive)
        head, index = _frames_of(source, packets, alive)
        if index is None:
            pts, held = _decode_all(source, alive), 0
        else:
            pts, held = index.pts, int(packets.duration[index.packet[-1]])
        if not head or len(pts) == 0:
            raise V2LError(f"no frame of {shown!r} can be decoded: re-encode it, or check that it is complete")
        seconds, fps, constant, duration = _rate(source, pts, held)
        _check_promise(source, packets, len(seconds), duration, alive)
        converter = Converter(source.stream.sample_aspect_ratio)
        width, height = converter.size(head[0])
        return Video(
            path=name,
            stream=source.stream.index,
            frame_count=len(seconds),
            fps=fps,
            duration=duration,
            width=width,
            height=height,
            constant_rate=constant,
            interlaced=any(frame.interlaced_frame for frame in head),
            notes=(*_notes(source, packets, index, seconds), *converter.notes(head[0])),
            seconds=seconds,
            **(vars(index) if index else dict.fromkeys(("pts", "packet", "keys", "key_pts"))),
        )


def read_frames(
    video: Video,
    indices: Sequence[int],
    shown: str = "",
    keep_damaged: bool = False,
    alive: Alive = lambda: None,
) -> Iterator[Frame]:
    """Decode the frames with these ascending indices, one at a time; the pixels are those of a read from the start.

    Decodes from the key frames that the chosen frames need and passes over the rest. Closing the generator early
    releases the file. keep_damaged: yield damaged frames as a player shows them, with a note.
    Raises V2LError: indices that do not ascend or lie outside 0 .. frame_count - 1; a frame that is damaged or cannot
    be decoded, named with its time.
    """
    wanted, shown = [int(index) for index in indices], shown or video.path
    if any(a >= b for a, b in itertools.pairwise(wanted)):
        raise V2LError("frame indices must ascend without repeats")
    if wanted and not 0 <= wanted[0] <= wanted[-1] < video.frame_count:
        raise V2LError(f"frame indices {wanted[0]} to {wanted[-1]} leave {shown!r}: 0 to {video.frame_count - 1}")
    with open_source(regular_file(video.path, shown), shown, video.stream) as source:
        yield from Decoder(source, video, keep_damaged, alive).frames(wanted)


def library_versions() -> dict[str, str]:
    """FFmpeg's libraries by name. Raises V2LError where they cannot be loaded."""
    return {name: ".".join(map(str, each)) for name, each in load_av().library_versions.items()}


def decoder_version() -> str:
    """PyAV's and FFmpeg's versions, as adapters record them. Raises V2LError where they cannot be loaded."""
    av = load_av()
    return f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info})"


def _frames_of(source: Source, packets: Packets, alive: Alive) -> tuple[list[Any], Index | None]:
    """The first decoded frames, and the index of all; None where the packets do not tell the frames."""
    keys, stop, clean, head = packets.keys.tolist(), len(packets.pts), False, []
    if not keys:
        return [], None
    for start in keys[: STARTS_TRIED if source.streamed else 1]:
        head, clean = _decoded(source, packets, start, start + HEAD_PACKETS, alive)
        if not clean:
            since = int(packets.pts[start])
            head, clean = _decoded(source, packets, start, start + HEAD_PACKETS, alive, since)
        if clean:
            break
    else:
        # A recording that refreshes its pictures bit by bit has none to start with: the first round completes them.
        start = keys[min(1, len(keys) - 1)] if source.streamed else keys[0]
    if source.streamed and keys[-1] < stop - 1:
        # A recording may break off within its last picture.
        tail, whole = _decoded(source, packets, keys[max(-2, -len(keys))], stop, alive, None, stop - 1)
        stop -= not whole or packets.pts[stop - 1] not in {frame.pts for frame in tail}
    index = packets.index(start, stop, {frame.pts for frame in head if not source.incomplete(frame)})
    return head, index if index and _tells(source, index, head, clean, start + HEAD_PACKETS) else None


def _tells(source: Source, index: Index, head: Sequence[Any], clean: bool, stop: int) -> bool:
    """Whether decoding up to packet `stop` gave the frames that the index says, where it had no errors; a decoder that
    puts them in order gives them in the order of their times."""
    expected = set(index.pts[index.packet < stop].tolist())
    given = [frame.pts for frame in head if not source.incomplete(frame)]
    if not clean:
        return True
    ordered = given == sorted(given) or not source.stream.codec_context.has_b_frames
    return ordered and set(given) <= set(index.pts.tolist()) and expected <= set(given)


def _decoded(
    source: Source,
    packets: Packets,
    start: int,
    stop: int,
    alive: Alive,
    since: int | None = None,
    counts_from: int = 0,
) -> tuple[list[Any], bool]:
    """The frames of packets start .. stop - 1, and whether they decode without an error, that of packets before
    `counts_from` aside; since: as for `decode`."""
    reader = PacketReader(source, alive, place=len(packets.pts))
    reader.go_to(start, int(packets.pts[start]))
    take_errors(source)
    frames = list(decode(source, reader, stop, None, since, counts_from))
    return frames, bool(frames) and not take_errors(source)


def _decode_all(source: Source, alive: Alive) -> np.ndarray:
    """(N,) int64 presentation times of all frames, by decoding everything; MISSING where they do not ascend."""
    source.reopen()
    times = []
    for frame in decode(source, PacketReader(source, alive), None):
        times.append(MISSING if frame.pts is None else frame.pts)
    pts = np.array(times, np.int64)
    ascending = len(pts) > 0 and pts[0] != MISSING and bool(np.all(np.diff(pts) > 0))
    return pts if ascending else np.full(len(pts), MISSING)


def _rate(source: Source, pts: np.ndarray, held: int) -> tuple[np.ndarray, float, bool, float]:
    """Seconds (N,) of the frames from the container's start, average rate, whether the rate is constant, and the time
    at which the last frame ends; held: how long that one is shown, in the stream's time base, 0 where unknown."""
    count, base, rates = len(pts), float(source.stream.time_base), source.rates()
    header = rates[0] if rates else 0.0
    if pts[0] == MISSING:
        return _checked_rate(source, 0.0, count, header)
    times = (pts - pts[0]) * base
    start = source.start()
    first = 0.0 if start is None else max(float(pts[0]) * base - start, 0.0)
    if count == 1:
        return _checked_rate(source, first, count, header or (1 / (held * base) if held else 0.0))
    measured = (count - 1) / float(times[-1])
    for fps in (*rates, measured):
        if 0 < fps <= MAX_FPS and np.abs(times - np.arange(count) / fps).max() <= CLOCK_NOISE:
            return _checked_rate(source, first, count, fps)
    if measured > MAX_FPS:
        return _checked_rate(source, first, count, measured)
    length = float(times[-1]) + (held * base or float(np.median(np.diff(times))))
    return np.round(first + times, 6), count / length, False, first + length


def _checked_rate(source: Source, first: float, count: int, fps: float) -> tuple[np.ndarray, float, bool, float]:
    """What `_rate` returns for a constant rate. Raises V2LError for one that cannot be true."""
    if not 0 < fps <= MAX_FPS:
        raise V2LError(
            f"{source.shown!r} has a frame rate of {fps:g} per second: 0 to {MAX_FPS:g} is read; re-encode the file"
        )
    return np.round(first + np.arange(count) / fps, 6), fps, True, first + count / fps


def _check_promise(source: Source, packets: Packets, count: int, end: float, alive: Alive) -> None:
    """Raises V2LError where the header promises over 5% more than there is, in frames or, where it states no number of
    them, in seconds. What an edit list hides, and how long other streams go on, is no promise. end: seconds."""
    frames, seconds = source.promised()
    if frames > max(count, len(packets.pts)) * LIE_LIMIT and (not seconds or seconds > end * LIE_LIMIT):
        with open_source(source.path, source.shown, source.stream.index, **_NO_EDITS) as whole:
            there = sum(1 for _ in packets_of(whole))
        if frames > there * LIE_LIMIT:
            raise V2LError(
                f"the header of {source.shown!r} promises {frames} frames, {count} can be decoded: {_CUT_OFF}"
            )
    # Matroska counts its lengths from zero, wherever the first frame is.
    stated = seconds or source.stated_length()
    length = stated - max(source.start() or 0.0, 0.0)
    # What other streams show is asked last: only reading all of them tells.
    if not frames and length > end * LIE_LIMIT and length > source.longest_stream(alive) * LIE_LIMIT:
        raise V2LError(
            f"the header of {source.shown!r} promises {stated:.1f} seconds, {end:.1f} can be decoded: {_CUT_OFF}"
        )


def _notes(source: Source, packets: Packets, index: Index | None, seconds: np.ndarray) -> Iterator[str]:
    """What a person should know about how this file is read, one sentence each."""
    if source.others:
        yield f"video stream {source.stream.index} of {source.others + 1}"
    if index is not None and len(packets.keys) and index.packet.min() > packets.keys[0]:
        yield f"what comes before {seconds[0]:.1f} s is cut off and cannot be decoded"
