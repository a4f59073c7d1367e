"""The packets of a video stream: read once without decoding, they tell its frames, their times and where to start.

Runs in the decoding worker: imports only the standard library, numpy and PyAV (late).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from v2l.video.container import Source

MISSING = np.iinfo(np.int64).min
"""Stands for a presentation time that a packet does not have."""
READ_ON = 64
"""Packets that are passed over rather than sought past."""
_SEEK_BACK = (0.0, 2.0, 20.0)  # seconds before the key packet that a seek aims at, try by try


@dataclass(frozen=True, eq=False)
class Index:
    """Where the frames of a video stand in its file.

    pts: (N,) int64, presentation times in the stream's time base, ascending
    packet: (N,) int64, place of each frame's packet in storage order
    keys, key_pts: (K,) int64, place and presentation time of the packets that decoding can start at
    """

    pts: np.ndarray
    packet: np.ndarray
    keys: np.ndarray
    key_pts: np.ndarray


@dataclass(frozen=True, eq=False)
class Packets:
    """All packets of a stream in storage order, (P,) each.

    pts: int64, MISSING where a packet has none; duration: int64, 0 where unknown
    key: decoding can start there; hidden: it is decoded and not shown
    """

    pts: np.ndarray
    duration: np.ndarray
    key: np.ndarray
    hidden: np.ndarray

    @property
    def keys(self) -> np.ndarray:
        """(K,) int64 places of the packets that decoding can start at: the first one where none says so."""
        found = np.flatnonzero(self.key & (self.pts != MISSING))
        return found if len(found) else np.zeros(min(1, len(self.pts)), np.int64)

    def index(self, start: int, stop: int, decoded: Set[int]) -> Index | None:
        """The index of the frames of packets start .. stop - 1, where `start` is a key packet; None where the packets
        lack times or repeat them.

        decoded: presentation times of the sound frames that decoding from `start` gave. Frames that are stored after
        the packet at `start` and shown before it count only where they are among these.
        """
        shown = ~self.hidden
        shown[:start] = shown[stop:] = False
        leading = shown & (self.pts < self.pts[start])
        shown[leading] = np.isin(self.pts[leading], list(decoded))
        places = np.flatnonzero(shown)
        packet = places[np.argsort(self.pts[places], kind="stable")]
        pts, keys = self.pts[packet], self.keys
        if len(pts) == 0 or pts[0] == MISSING or np.any(np.diff(pts) <= 0):
            return None
        return Index(pts, packet, keys, self.pts[keys])


def scan(source: Source, alive: Callable[[], None]) -> Packets:
    """Read every packet of the stream once. alive: called at each."""
    pts, duration, key, hidden = [], [], [], []
    vp8 = source.stream.codec_context.name in ("vp8", "libvpx")
    for packet in packets_of(source):
        alive()
        pts.append(MISSING if packet.pts is None else packet.pts)
        duration.append(packet.duration or 0)
        key.append(packet.is_keyframe)
        # VP8 keeps reference pictures that are never shown in packets of their own, and says so in their first byte.
        hidden.append(packet.is_discard or (vp8 and not bytes(packet)[0] & 0x10))
    return Packets(np.array(pts, np.int64), np.array(duration, np.int64), np.array(key, bool), np.array(hidden, bool))


def packets_of(source: Source) -> Iterator[Any]:
    """The stream's packets from where the file stands, until it ends or cannot be read on."""
    import av

    try:
        for packet in source.container.demux(source.stream):
            if packet.size:
                yield packet
    except (av.FFmpegError, OSError):
        return


class PacketReader:
    """Gives the stream's packets by their place. place: of the packet that comes next, 0 for a file just opened."""

    def __init__(self, source: Source, alive: Callable[[], None], place: int = 0):
        self.place = place
        self._source, self._alive = source, alive
        self._coming = packets_of(source)
        self._held: Any = None

    def next(self) -> Any:
        """The next packet; None at the end."""
        self._alive()
        packet, self._held = self._held or next(self._coming, None), None
        self.place += packet is not None
        return packet

    def go_to(self, place: int, pts: int) -> None:
        """Stand before the key packet at this place, whose presentation time is `pts`. Where seeking does not lead
        there, reads on from the start of the file instead."""
        near = self.place <= place <= self.place + READ_ON
        if not near and not self._sought(place, pts):
            self._source.reopen()
            self.place, self._held, self._coming = 0, None, packets_of(self._source)
        while self.place < place and self.next() is not None:
            pass

    def _sought(self, place: int, pts: int) -> bool:
        import av

        for seconds in _SEEK_BACK:
            target = pts - round(seconds / self._source.stream.time_base)
            try:
                self._source.container.seek(target, stream=self._source.stream)
            except (av.FFmpegError, OSError):
                return False
            self._held, self._coming = None, packets_of(self._source)
            for packet in self._coming:
                self._alive()
                if packet.pts == pts and packet.is_keyframe:
                    self.place, self._held = place, packet
                    return True
                if packet.is_keyframe and packet.pts is not None and packet.pts > pts:
                    break
        return False
