"""Decoding of selected frames of an open video, starting at the key frames that they depend on.

Runs in the decoding worker: imports only the standard library, numpy and, inside functions, PyAV.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from v2l.errors import V2LError
from v2l.io.text import clock
from v2l.video.container import Source, take_errors
from v2l.video.packets import PacketReader
from v2l.video.picture import Converter
from v2l.video.sampling import FrameIndex, Video

DECODE_ON = 16
"""Largest gap, in packets, between two selected frames that is decoded rather than skipped."""
MAX_LEAD = 3
"""Number of key packets by which decoding starts earlier if a frame is missing or incomplete without an error."""
SETTLED = 40
"""Frames after the last error before a key frame is trusted again; no decoder buffers more frames than this."""
_SKIPS = {"h264", "mpeg1video", "mpeg2video"}  # decoders that can skip frames that no other frame refers to


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded frame.

    index: position in the video; seconds: presentation time from the container's start, rounded to microseconds
    pixels: (H, W, 3) uint8 RGB, upright, square pixels; H and W are the video's unless its size changes midway
    notes: remarks for the user on this frame, one sentence each; damage: description of its damage, empty if sound
    """

    index: int
    seconds: float
    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    damage: str = ""


def decode(
    source: Source,
    reader: PacketReader,
    stop: int | None,
    needed: set[int] | None = None,
    since: int | None = None,
    counts_from: int = 0,
) -> Iterator[Any]:
    """Decode from the reader's position to the packet before `stop`, None for the end of the file.

    Flushes the decoder afterwards. Yields PyAV frames in presentation order.
    needed: presentation times of the required frames, None for all; others may be skipped
    since: packets with an earlier presentation time are skipped. An open group of pictures stores such packets after
        its key packet: they refer to frames that are not decoded, and no other packet refers to them.
    counts_from: position of the first packet whose errors count; requires a decoder with one thread
    """
    import av

    context = source.stream.codec_context
    can_skip = needed is not None and context.name in _SKIPS
    try:
        while stop is None or reader.position < stop:
            packet = reader.next()
            if packet is None:
                break
            if packet.is_corrupt:
                source.suspects.add(packet.pts)
            if since is not None and packet.pts is not None and packet.pts < since:
                continue
            if can_skip:
                context.skip_frame = "DEFAULT" if needed is None or packet.pts in needed else "NONREF"
            frames = []
            try:
                frames = context.decode(packet)
            except (av.FFmpegError, ValueError):
                source.add_error("a packet that cannot be decoded")
            if reader.position <= counts_from:
                take_errors(source)
            yield from frames
        try:
            yield from context.decode(None)
        except av.EOFError:
            pass
        except av.FFmpegError:
            source.add_error("a packet that cannot be decoded")
    finally:
        context.flush_buffers()
        context.skip_frame = "DEFAULT"


class _Again(Exception):
    """The remaining frames must be decoded again, from an earlier key packet or with their neighbours."""


@dataclass(frozen=True)
class _Group:
    """Frames that are decoded together.

    key: number of the key packet to start at; stop: position after the last packet
    indices: the selected frames; counts_from: position of the first packet whose errors count
    """

    key: int
    stop: int
    indices: list[int]
    counts_from: int


def frames_to_decode(video: Video, wanted: Sequence[int]) -> int:
    """Return how many frames of a sound file are decoded to read those with these ascending indices."""
    if video.index is None:
        return wanted[-1] + 1 if wanted else 0
    groups = _groups(video.index, wanted, _neighbours(video))
    return sum(group.stop - int(video.index.keys[group.key]) for group in groups)


def _neighbours(video: Video) -> int:
    """Return how many frames before and after each selected one are needed, to deinterlace it."""
    return 1 if video.interlaced else 0


def _groups(
    stored: FrameIndex, wanted: Sequence[int], neighbours: int, lead: int = 0, singly: bool = False
) -> Iterator[_Group]:
    """Split the selected frames into groups, each decoded without seeking.

    lead: number of key packets by which decoding starts earlier; singly: one group for each frame
    """
    group: _Group | None = None
    gap = 0 if len(stored.keys) >= len(stored.packet) else DECODE_ON
    for index in wanted:
        around = _around(stored, index, neighbours)
        key = min(_key_of(stored, each) for each in around)
        stop = int(max(stored.packet[each] for each in around)) + 1
        if group and not singly and stored.keys[key] <= group.stop + gap:
            group = replace(group, stop=max(stop, group.stop), indices=[*group.indices, index])
            continue
        if group:
            yield group
        group = _Group(max(key - lead, 0), stop, [index], int(stored.keys[key]) if lead else 0)
    if group:
        yield group


def _key_of(stored: FrameIndex, index: int) -> int:
    """Return the number of the last key packet stored and shown no later than this frame.

    The frame should not refer to anything before it.
    """
    at = int(np.searchsorted(stored.key_pts, stored.pts[index], side="right")) - 1
    while at > 0 and stored.keys[at] > stored.packet[index]:
        at -= 1
    return max(at, 0)


def _around(stored: FrameIndex, index: int, neighbours: int) -> range:
    return range(max(index - neighbours, 0), min(index + neighbours, len(stored.packet) - 1) + 1)


class Decoder:
    """Decodes selected frames of one open file. decoded: number of frames decoded so far

    keep_damaged: yield damaged frames, with `Frame.damage` set; heartbeat: called at every packet
    """

    def __init__(self, source: Source, video: Video, keep_damaged: bool, heartbeat: Callable[[], None]):
        self.source, self.video, self.keep_damaged = source, video, keep_damaged
        self.decoded = 0
        self._heartbeat = heartbeat
        self._reader = PacketReader(source, heartbeat)
        self._converter = Converter(source.stream.sample_aspect_ratio)
        self._neighbours = _neighbours(video)
        # After an error, decoding is repeated from this many key packets earlier, so that all references are available.
        # Errors before the original key packet do not count.
        self._lead = 0
        self._singly = False  # decode each frame separately, so that an error can be attributed to it
        self._damage, self._damaged_at = "", 0
        self._latest: Any = None  # the last decoded frame, which a player keeps showing if the next is missing

    def frames(self, wanted: Sequence[int]) -> Iterator[Frame]:
        """Yield the frames with these ascending indices. Raises V2LError at a damaged or missing frame."""
        if self.video.index is None:
            yield from self._from_the_start(wanted)
            return
        remaining = deque(wanted)
        while remaining:
            try:
                for frame in self._pass(list(remaining)):
                    remaining.popleft()
                    yield frame
            except _Again:
                continue

    @property
    def _index(self) -> FrameIndex:
        assert self.video.index is not None  # `frames` decodes videos without an index from the start
        return self.video.index

    def _pass(self, wanted: Sequence[int]) -> Iterator[Frame]:
        for group in _groups(self._index, wanted, self._neighbours, self._lead, self._singly):
            yield from self._group(group)

    def _group(self, group: _Group) -> Iterator[Frame]:
        stored, pending = self._index, deque(group.indices)
        around = {i: _around(stored, i, self._neighbours) for i in pending}
        needed = {int(stored.pts[each]) for i in pending for each in around[i]}
        self._reader.go_to(int(stored.keys[group.key]), int(stored.key_pts[group.key]))
        self._forget_damage()
        held: dict[int, Any] = {}
        since = min(int(stored.key_pts[group.key]), *needed)
        for frame in decode(self.source, self._reader, group.stop, needed, since, group.counts_from):
            self._count(frame)
            if frame.pts in needed:
                held[frame.pts] = frame
            while pending and all(int(stored.pts[each]) in held for each in around[pending[0]]):
                yield self._frame(pending.popleft(), held, group)
                oldest = int(stored.pts[around[pending[0]][0]]) if pending else None
                held = {pts: kept for pts, kept in held.items() if oldest is not None and pts >= oldest}
        self._collect_damage()
        while pending:
            yield self._frame(pending.popleft(), held, group)

    def _frame(self, index: int, held: dict[int, Any], group: _Group) -> Frame:
        """Convert the frame with this index. Raises _Again if it must be decoded again."""
        pts = self._index.pts
        frame = held.get(int(pts[index]))
        before, after = (held.get(int(pts[each])) if 0 <= each < len(pts) else None for each in (index - 1, index + 1))
        if frame is not None and frame.interlaced_frame and not self._neighbours:
            self._neighbours = 1
            raise _Again
        if self._damage or frame is None or self.source.incomplete(frame):
            self._look_again(group)
        return self._shown(index, frame, before, after)

    def _look_again(self, group: _Group) -> None:
        """Raise _Again if decoding with other settings may show that the frame is sound."""
        if not self._lead or (not self._damage and self._lead < MAX_LEAD and group.key > 0):
            self._lead += 1
        elif not self._singly:
            self._singly = True
        else:
            return
        self.source.reopen(threads=1)
        self._reader = PacketReader(self.source, self._heartbeat)
        raise _Again

    def _from_the_start(self, wanted: Sequence[int]) -> Iterator[Frame]:
        """Decode the whole file, for videos without an index."""
        pending = deque(wanted)
        window: deque[Any] = deque([None, None, None], 3)  # previous, current and next frame
        self._forget_damage()
        decoded = decode(self.source, self._reader, None)
        for count, frame in enumerate(_with_end(decoded)):
            window.append(frame)
            if frame is not None:
                self._count(frame)
            if pending and pending[0] == count - 1:
                yield self._shown(pending.popleft(), window[1], window[0], window[2])
            if not pending:
                return
        for index in pending:
            yield self._shown(index, None, None, None)

    def _shown(self, index: int, frame: Any, before: Any, after: Any) -> Frame:
        seconds = float(self.video.seconds[index])
        damage = self._damage
        if not damage and frame is not None and self.source.incomplete(frame):
            damage = "its picture is incomplete"
        if frame is None and self.keep_damaged:
            frame, damage = before or self._latest or after, damage or "it is missing"
        if frame is None or (damage and not self.keep_damaged):
            raise V2LError(
                f"{self.source.shown!r} is damaged at {clock(seconds)} ({damage or 'a frame cannot be decoded'}): get "
                "the file again, or accept the damage with: v2l encode --keep-damaged"
            )
        notes = self._converter.notes(frame)
        width, height = self._converter.size(frame)
        if (width, height) != (self.video.width, self.video.height):
            notes.append(f"the frame size changes to {width}x{height}")
        if damage:
            notes.append(f"damaged at {clock(seconds)}, kept")
        return Frame(index, seconds, self._converter.rgb(frame, before, after), tuple(notes), damage)

    def _count(self, frame: Any) -> None:
        self.decoded += 1
        self._latest = frame
        self._collect_damage()
        complete = frame.key_frame and not self.source.incomplete(frame)
        if complete and self.decoded > self._damaged_at + SETTLED:
            self._damage = ""

    def _collect_damage(self) -> None:
        found = take_errors(self.source)
        if found:
            self._damage, self._damaged_at = self._damage or found[0], self.decoded

    def _forget_damage(self) -> None:
        take_errors(self.source)
        self._damage = ""


def _with_end(frames: Iterator[Any]) -> Iterator[Any]:
    """Yield the frames, then None."""
    yield from frames
    yield None
