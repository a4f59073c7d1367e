"""Probing of a video's true frames and times, and decoding of selected frames, as a player shows them.

Runs in the decoding worker: imports only the standard library, numpy and, inside functions, PyAV. Axes: N frames of
the video in presentation order, P packets of its stream in storage order.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from v2l.errors import V2LError
from v2l.video.container import Source, load_av, open_source, regular_file, take_errors
from v2l.video.decoder import Decoder, Frame, decode
from v2l.video.packets import MISSING, PacketReader, Packets, packets_of, scan
from v2l.video.picture import Converter
from v2l.video.sampling import FrameIndex, Video

MAX_FPS = 1000.0
MAX_OVERSTATED = 1.05  # ratio of stated to decodable frames, or seconds, up to which a header is accepted
CLOCK_NOISE = 0.0015  # seconds; rounding of the times of a constant rate in containers with a resolution of 1 ms
HEAD_PACKETS = 24  # decoded at the start of a file to check that its packets determine its frames
STARTS_TRIED = 4  # key packets tried as the start of a cut recording

_NO_EDITS = {"ignore_editlist": "1"}
_CUT_OFF = "the file is cut off or damaged; get it again whole, or re-mux or re-encode it"

Heartbeat = Callable[[], None]
"""Called at every packet that is read or decoded."""


def probe(path: str | os.PathLike[str], shown: str = "", heartbeat: Heartbeat = lambda: None) -> Video:
    """Check a video file and determine its true frame count, rate, size and the time of every frame.

    Reads the file once without decoding and decodes about two dozen frames at its start. If the packets do not
    determine the frames, decodes the whole file instead.
    shown: name for messages; heartbeat: called at every packet
    Raises V2LError if it is not a regular, readable local file, is a playlist or a still image, has no decodable frame,
    states over 5% more frames or seconds than can be decoded, or states an impossible size or frame rate.
    """
    shown = shown or os.fsdecode(path)
    name = regular_file(path, shown)
    with open_source(name, shown, threads=1) as source:
        packets = scan(source, heartbeat)
        head, index = _frames_of(source, packets, heartbeat)
        if index is None:
            pts, held = _decode_all(source, heartbeat), 0
        else:
            pts, held = index.pts, int(packets.duration[index.packet[-1]])
        if not head or len(pts) == 0:
            raise V2LError(f"no frame of {shown!r} can be decoded: re-encode it, or check that it is complete")
        seconds, fps, constant, duration = _rate(source, pts, held)
        _check_stated_length(source, packets, len(seconds), duration, heartbeat)
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
            index=index,
            frame_cost=source.decoding / source.decoded,
        )


def read_frames(
    video: Video,
    indices: Sequence[int],
    shown: str = "",
    keep_damaged: bool = False,
    heartbeat: Heartbeat = lambda: None,
) -> Generator[Frame, None, None]:
    """Decode the frames with these ascending indices; the pixels equal those of sequential decoding.

    Decodes only from the key frames that the selected frames depend on. Closing the generator releases the file.
    shown: name for messages; keep_damaged: yield damaged frames as a player shows them, with a note
    Raises V2LError if the indices do not ascend or are outside 0 .. frame_count - 1, or if a frame is damaged or cannot
    be decoded; the message has its time.
    """
    wanted, shown = [int(index) for index in indices], shown or video.path
    if any(a >= b for a, b in itertools.pairwise(wanted)):
        raise V2LError("frame indices must ascend without repeats")
    if wanted and not 0 <= wanted[0] <= wanted[-1] < video.frame_count:
        raise V2LError(f"frame indices {wanted[0]} to {wanted[-1]} are outside {shown!r}: 0 to {video.frame_count - 1}")
    with open_source(regular_file(video.path, shown), shown, video.stream) as source:
        yield from Decoder(source, video, keep_damaged, heartbeat).frames(wanted)


def library_versions() -> dict[str, str]:
    """Return the versions of FFmpeg's libraries by name. Raises V2LError if they cannot be loaded."""
    return {name: ".".join(map(str, each)) for name, each in load_av().library_versions.items()}


def decoder_version() -> str:
    """Return the versions of PyAV and FFmpeg in the form that adapters record.

    Raises V2LError if they cannot be loaded.
    """
    av = load_av()
    return f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info})"


def _frames_of(source: Source, packets: Packets, heartbeat: Heartbeat) -> tuple[list[Any], FrameIndex | None]:
    """Return the first decoded frames and the index; the index is None if the packets do not determine the frames."""
    keys, stop, clean = packets.keys.tolist(), len(packets.pts), False
    head: list[Any] = []
    if not keys:
        return [], None
    for start in keys[: STARTS_TRIED if source.streamed else 1]:
        head, clean = _decoded(source, packets, start, start + HEAD_PACKETS, heartbeat)
        if not clean:
            since = int(packets.pts[start])
            head, clean = _decoded(source, packets, start, start + HEAD_PACKETS, heartbeat, since)
        if clean:
            break
    else:
        # With intra refresh there is no key frame at the start: the pictures are complete after the first cycle.
        start = keys[min(1, len(keys) - 1)] if source.streamed else keys[0]
    if source.streamed and keys[-1] < stop - 1:
        # A recording may end in the middle of its last picture.
        tail, complete = _decoded(source, packets, keys[max(-2, -len(keys))], stop, heartbeat, None, stop - 1)
        stop -= not complete or packets.pts[stop - 1] not in {frame.pts for frame in tail}
    index = packets.index(start, stop, {frame.pts for frame in head if not source.incomplete(frame)})
    return head, index if index and _is_confirmed(source, index, head, clean, start + HEAD_PACKETS) else None


def _is_confirmed(source: Source, index: FrameIndex, head: Sequence[Any], clean: bool, stop: int) -> bool:
    """Return True if decoding up to packet `stop` gave the frames in the index, or had errors.

    A decoder that reorders frames must give them in the order of their times.
    """
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
    heartbeat: Heartbeat,
    since: int | None = None,
    counts_from: int = 0,
) -> tuple[list[Any], bool]:
    """Decode packets start .. stop - 1 and return the frames, and True if there were frames and no errors.

    since, counts_from: as for `decode`
    """
    reader = PacketReader(source, heartbeat, position=len(packets.pts))
    reader.go_to(start, int(packets.pts[start]))
    take_errors(source)
    frames = list(_timed(source, decode(source, reader, stop, None, since, counts_from)))
    return frames, bool(frames) and not take_errors(source)


def _timed(source: Source, frames: Iterator[Any]) -> Iterator[Any]:
    """Yield decoded frames, and add their number and the processor time that they took to the source's."""
    started = time.thread_time()
    for frame in frames:
        source.decoded += 1
        source.decoding += time.thread_time() - started
        yield frame
        started = time.thread_time()


def _decode_all(source: Source, heartbeat: Heartbeat) -> np.ndarray:
    """Decode the whole file and return the presentation times, (N,) int64; all MISSING if they do not ascend."""
    source.reopen()
    times = []
    for frame in _timed(source, decode(source, PacketReader(source, heartbeat), None)):
        times.append(MISSING if frame.pts is None else frame.pts)
    pts = np.array(times, np.int64)
    ascending = len(pts) > 0 and pts[0] != MISSING and bool(np.all(np.diff(pts) > 0))
    return pts if ascending else np.full(len(pts), MISSING)


def _rate(source: Source, pts: np.ndarray, held: int) -> tuple[np.ndarray, float, bool, float]:
    """Return the frames' seconds (N,) from the container's start, the average rate, True if it is constant, and the
    end of the last frame in seconds.

    held: duration of the last frame in the stream's time base, 0 if unknown
    """
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
    """Return the values of `_rate` for a constant rate. Raises V2LError for an impossible rate."""
    if not 0 < fps <= MAX_FPS:
        raise V2LError(
            f"{source.shown!r} has a frame rate of {fps:g} per second: rates up to {MAX_FPS:g} are supported; "
            "re-encode the file"
        )
    return np.round(first + np.arange(count) / fps, 6), fps, True, first + count / fps


def _check_stated_length(source: Source, packets: Packets, count: int, end: float, heartbeat: Heartbeat) -> None:
    """Raise V2LError if the header states over 5% more frames, or seconds if it states no frames, than can be decoded.

    Frames hidden by an edit list and the length of other streams do not count. end: of the last frame, in seconds
    """
    frames, seconds = source.stated_frames_and_seconds()
    if frames > max(count, len(packets.pts)) * MAX_OVERSTATED and (not seconds or seconds > end * MAX_OVERSTATED):
        with open_source(source.path, source.shown, source.stream.index, options=_NO_EDITS) as unedited:
            packet_count = sum(1 for _ in packets_of(unedited))
        if frames > packet_count * MAX_OVERSTATED:
            raise V2LError(
                f"the header of {source.shown!r} promises {frames} frames, {count} can be decoded: {_CUT_OFF}"
            )
    # Matroska measures lengths from zero, whatever the time of the first frame.
    stated = seconds or source.stated_length()
    length = stated - max(source.start() or 0.0, 0.0)
    # The length of the other streams comes last, because it takes reading all of them.
    if not frames and length > end * MAX_OVERSTATED and length > source.longest_stream(heartbeat) * MAX_OVERSTATED:
        raise V2LError(
            f"the header of {source.shown!r} promises {stated:.1f} seconds, {end:.1f} can be decoded: {_CUT_OFF}"
        )


def _notes(source: Source, packets: Packets, index: FrameIndex | None, seconds: np.ndarray) -> Iterator[str]:
    """Yield remarks for the user on how this file is read, one sentence each."""
    if source.others:
        yield f"video stream {source.stream.index} of {source.others + 1}"
    if index is not None and len(packets.keys) and index.packet.min() > packets.keys[0]:
        yield f"the part before {seconds[0]:.1f} s is cut off and cannot be decoded"
