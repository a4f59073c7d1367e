"""Decodes chosen frames of an open video: from the key frames that they need, past everything else.

Runs in the decoding worker: imports only the standard library, numpy and PyAV (late).
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
from v2l.video.sampling import Video

DECODE_ON = 16
"""Packets between two chosen frames that are decoded rather than passed over."""
MAX_LEAD = 3
"""Key packets that decoding starts early where a frame is missing or incomplete without an error."""
SETTLED = 40
"""Frames after the last error at which a key frame shows that the damage is over: more than any decoder works ahead."""
_SKIPS = {"h264", "mpeg1video", "mpeg2video"}  # decoders that can leave out pictures that no other refers to


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded frame.

    index: in the whole video; seconds: presentation time from the container's start, rounded to microseconds
    pixels: (H, W, 3) uint8 RGB, upright, square pixels; H and W are the video's unless its size changes midway
    notes: what a person should know about this picture, one sentence each; damage: what is wrong with it, mostly empty
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
    """Decode from where the reader stands up to the packet before `stop`, or to the end, and nothing beyond; the
    decoder is as new afterwards.

    needed: presentation times of the frames that matter, None for all; others may be left out
    since: presentation time before which packets are passed over, as those that an open group of pictures stores behind
        its key packet and shows before it: they refer to what is not decoded, and nothing refers to them
    counts_from: place of the first packet whose errors count; needs a decoder with one thread
    Yields PyAV's frames in the order shown.
    """
    import av

    context = source.stream.codec_context
    skips = needed is not None and context.name in _SKIPS
    try:
        while stop is None or reader.place < stop:
            packet = reader.next()
            if packet is None:
                break
            if packet.is_corrupt:
                source.suspects.add(packet.pts)
            if since is not None and packet.pts is not None and packet.pts < since:
                continue
            if skips:
                context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
            frames = []
            try:
                frames = context.decode(packet)
            except (av.FFmpegError, ValueError):
                source.fault("a packet that cannot be decoded")
            if reader.place <= counts_from:
                take_errors(source)
            yield from frames
        try:
            yield from context.decode(None)
        except av.EOFError:
            pass
        except av.FFmpegError:
            source.fault("a packet that cannot be decoded")
    finally:
        context.flush_buffers()
        context.skip_frame = "DEFAULT"


class _Again(Exception):
    """What was learned on the way makes it necessary to decode from further back, or with the neighbours."""


@dataclass(frozen=True)
class _Group:
    """Frames that are decoded in one go: from key packet number `key` up to the packet before `stop`. Errors count
    from the packet at `counts_from` on."""

    key: int
    stop: int
    indices: list[int]
    counts_from: int


class Decoder:
    """Decodes frames of one open file; `decoded` counts the frames that the decoder gave so far.

    keep_damaged: yield damaged frames with their damage told; alive: called at every packet
    """

    def __init__(self, source: Source, video: Video, keep_damaged: bool, alive: Callable[[], None]):
        self.source, self.video, self.keep_damaged = source, video, keep_damaged
        self.decoded = 0
        self._alive = alive
        self._reader = PacketReader(source, alive)
        self._converter = Converter(source.stream.sample_aspect_ratio)
        self._neighbours = 1 if video.interlaced else 0
        # Where something is wrong, a second look decides whether it matters: decoding starts this many key packets
        # earlier, so that nothing is missing that the pictures refer to, and errors on that way do not count.
        self._lead = 0
        self._singly = False  # and every frame is decoded by itself, so that an error is known to be of its pictures
        self._damage, self._damaged_at = "", 0
        self._latest: Any = None  # the last frame decoded, which a player goes on showing where one is missing

    def frames(self, wanted: Sequence[int]) -> Iterator[Frame]:
        """The frames with these ascending indices. Raises V2LError at one that is damaged or missing."""
        if self.video.pts is None:
            yield from self._from_the_start(wanted)
            return
        left = deque(wanted)
        while left:
            try:
                for frame in self._pass(list(left)):
                    left.popleft()
                    yield frame
            except _Again:
                continue

    def _pass(self, wanted: Sequence[int]) -> Iterator[Frame]:
        for group in self._groups(wanted):
            yield from self._group(group)

    def _groups(self, wanted: Sequence[int]) -> Iterator[_Group]:
        """The chosen frames in groups that are decoded in one go each."""
        video, group = self.video, None
        gap = 0 if len(video.keys) >= len(video.packet) else DECODE_ON
        for index in wanted:
            around = self._around(index)
            key = min(self._key_of(each) for each in around)
            stop = int(max(video.packet[each] for each in around)) + 1
            if group and not self._singly and video.keys[key] <= group.stop + gap:
                group = replace(group, stop=max(stop, group.stop), indices=[*group.indices, index])
                continue
            if group:
                yield group
            counts_from = int(video.keys[key]) if self._lead else 0
            group = _Group(max(key - self._lead, 0), stop, [index], counts_from)
        if group:
            yield group

    def _key_of(self, index: int) -> int:
        """Number of the last key packet that is stored and shown no later than this frame, so that the frame should
        refer to nothing before it."""
        video = self.video
        at = int(np.searchsorted(video.key_pts, video.pts[index], side="right")) - 1
        while at > 0 and video.keys[at] > video.packet[index]:
            at -= 1
        return max(at, 0)

    def _group(self, group: _Group) -> Iterator[Frame]:
        video, pending = self.video, deque(group.indices)
        around = {i: self._around(i) for i in pending}
        needed = {int(video.pts[each]) for i in pending for each in around[i]}
        self._reader.go_to(int(video.keys[group.key]), int(video.key_pts[group.key]))
        self._forget_damage()
        held: dict[int, Any] = {}
        since = min(int(video.key_pts[group.key]), *needed)
        for frame in decode(self.source, self._reader, group.stop, needed, since, group.counts_from):
            self._count(frame)
            if frame.pts in needed:
                held[frame.pts] = frame
            while pending and all(int(video.pts[each]) in held for each in around[pending[0]]):
                yield self._frame(pending.popleft(), held, group)
                oldest = int(video.pts[around[pending[0]][0]]) if pending else None
                held = {pts: kept for pts, kept in held.items() if oldest is not None and pts >= oldest}
        self._collect_damage()
        while pending:
            yield self._frame(pending.popleft(), held, group)

    def _around(self, index: int) -> range:
        return range(max(index - self._neighbours, 0), min(index + self._neighbours, self.video.frame_count - 1) + 1)

    def _frame(self, index: int, held: dict[int, Any], group: _Group) -> Frame:
        """The picture of this index from the frames at hand. Raises _Again where more must be decoded for it."""
        pts = self.video.pts
        frame = held.get(int(pts[index]))
        before, after = (held.get(int(pts[each])) if 0 <= each < len(pts) else None for each in (index - 1, index + 1))
        if frame is not None and frame.interlaced_frame and not self._neighbours:
            self._neighbours = 1
            raise _Again
        if self._damage or frame is None or self.source.incomplete(frame):
            self._look_again(group)
        return self._shown(index, frame, before, after)

    def _look_again(self, group: _Group) -> None:
        """Raise _Again where a closer look may show that the frames at hand are sound."""
        if not self._lead or (not self._damage and self._lead < MAX_LEAD and group.key > 0):
            self._lead += 1
        elif not self._singly:
            self._singly = True
        else:
            return
        self.source.reopen(threads=1)
        self._reader = PacketReader(self.source, self._alive)
        raise _Again

    def _from_the_start(self, wanted: Sequence[int]) -> Iterator[Frame]:
        """Decode everything from the start, for files whose packets do not tell their frames."""
        pending, window = deque(wanted), deque([None, None, None], 3)  # before, the frame, after
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
                "the file again, or take it as it is with: v2l encode --keep-damaged"
            )
        notes = self._converter.notes(frame)
        width, height = self._converter.size(frame)
        if (width, height) != (self.video.width, self.video.height):
            notes.append(f"its pictures change their size to {width}x{height}")
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
    """The frames, and a None behind the last one."""
    yield from frames
    yield None
