"""The packets of a video stream: its frames, their times and its key frames, found without decoding.

Runs in the decoding worker: imports only the standard library, numpy and, inside functions, PyAV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from v2l.video.container import Source
from v2l.video.sampling import FrameIndex

MISSING = np.iinfo(np.int64).min
"""Placeholder for the presentation time of a packet that has none."""
READ_ON = 64
"""Distance in packets up to which reading on is preferred to seeking."""
_SEEK_BACK = (0.0, 2.0, 20.0)  # targets of successive seeks, in seconds before the key packet


@dataclass(frozen=True, eq=False)
class Packets:
    """All P packets of a stream in storage order.

    pts: (P,) int64, presentation times, MISSING for a packet without one
    duration: (P,) int64, 0 if unknown
    key: (P,) bool, decoding can start at this packet; hidden: (P,) bool, decoded but not shown
    """

    pts: np.ndarray
    duration: np.ndarray
    key: np.ndarray
    hidden: np.ndarray

    @property
    def keys(self) -> np.ndarray:
        """(K,) int64, positions of the packets at which decoding can start; the first packet if none is marked."""
        found = np.flatnonzero(self.key & (self.pts != MISSING))
        return found if len(found) else np.zeros(min(1, len(self.pts)), np.int64)

    def index(self, start: int, stop: int, decoded: Set[int]) -> FrameIndex | None:
        """Index the frames of packets start .. stop - 1; None if packets lack presentation times or repeat them.

        start: position of a key packet
        decoded: presentation times of the sound frames obtained by decoding from `start`. Frames that are stored after
            the packet at `start` but shown before it are included only if they are among these.
        """
        shown = ~self.hidden
        shown[:start] = shown[stop:] = False
        leading = shown & (self.pts < self.pts[start])
        shown[leading] = np.isin(self.pts[leading], list(decoded))
        positions = np.flatnonzero(shown)
        packet = positions[np.argsort(self.pts[positions], kind="stable")]
        pts, keys = self.pts[packet], self.keys
        if len(pts) == 0 or pts[0] == MISSING or np.any(np.diff(pts) <= 0):
            return None
        return FrameIndex(pts, packet, keys, self.pts[keys])


def scan(source: Source, heartbeat: Callable[[], None]) -> Packets:
    """Read every packet of the stream once, without decoding. heartbeat: called at each packet."""
    pts, duration, key, hidden = [], [], [], []
    vp8 = source.stream.codec_context.name in ("vp8", "libvpx")
    for packet in packets_of(source):
        heartbeat()
        pts.append(MISSING if packet.pts is None else packet.pts)
        duration.append(packet.duration or 0)
        key.append(packet.is_keyframe)
        # VP8 stores reference frames that are never shown in separate packets, marked in their first byte.
        hidden.append(packet.is_discard or (vp8 and not bytes(packet)[0] & 0x10))
    return Packets(np.array(pts, np.int64), np.array(duration, np.int64), np.array(key, bool), np.array(hidden, bool))


def packets_of(source: Source) -> Iterator[Any]:
    """Yield the stream's packets from the current position until the end of the file or the first read error."""
    import av

    try:
        for packet in source.container.demux(source.stream):
            if packet.size:
                yield packet
    except (av.FFmpegError, OSError):
        return


class PacketReader:
    """Reads the stream's packets. position: of the next packet in storage order, 0 for a file just opened."""

    def __init__(self, source: Source, heartbeat: Callable[[], None], position: int = 0):
        self.position = position
        self._source, self._heartbeat = source, heartbeat
        self._packets = packets_of(source)
        self._pending: Any = None  # a packet that was read while seeking

    def next(self) -> Any:
        """Return the next packet; None at the end."""
        self._heartbeat()
        packet, self._pending = self._pending or next(self._packets, None), None
        self.position += packet is not None
        return packet

    def go_to(self, position: int, pts: int) -> None:
        """Move to the key packet at this position with presentation time `pts`.

        Reads from the start of the file if seeking does not find the packet.
        """
        near = self.position <= position <= self.position + READ_ON
        if not near and not self._seek(position, pts):
            self._source.reopen()
            self.position, self._pending, self._packets = 0, None, packets_of(self._source)
        while self.position < position and self.next() is not None:
            pass

    def _seek(self, position: int, pts: int) -> bool:
        import av

        for seconds in _SEEK_BACK:
            target = pts - round(seconds / self._source.stream.time_base)
            try:
                self._source.container.seek(target, stream=self._source.stream)
            except (av.FFmpegError, OSError):
                return False
            self._pending, self._packets = None, packets_of(self._source)
            for packet in self._packets:
                self._heartbeat()
                if packet.pts == pts and packet.is_keyframe:
                    self.position, self._pending = position, packet
                    return True
                if packet.is_keyframe and packet.pts is not None and packet.pts > pts:
                    break
        return False
