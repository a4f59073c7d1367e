"""Conversion of a decoded frame to the picture that a player shows: progressive, square pixels, upright, RGB.

Runs in the decoding worker: imports only the standard library, numpy and, inside functions, PyAV.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

MAX_ASPECT = 10
"""Pixel aspect ratios above this, or below its inverse, are ignored as errors of the file."""
TURN_TOLERANCE = 1.0
"""Tolerance, in degrees, of a display matrix against a quarter turn."""
_HDR = {16: "PQ (HDR10)", 18: "HLG"}  # AVColorTransferCharacteristic
_WIDE = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}  # AVColorPrimaries


class Converter:
    """Converts frames of one stream to RGB arrays, as FFmpeg's command line does.

    aspect: stated width of a pixel divided by its height; None or 0 if not stated
    """

    def __init__(self, aspect: Fraction | None):
        stated = float(aspect or 1)
        self.aspect = stated if 1 / MAX_ASPECT <= stated <= MAX_ASPECT else 1.0
        self._stated = stated
        self._chain: tuple[tuple, Any] | None = None  # of progressive frames: properties, filters

    def size(self, frame: Any) -> tuple[int, int]:
        """Return the width and height in pixels as shown."""
        width, height = self._square(frame)
        transposed, _, _ = turn_of(frame)
        return (height, width) if transposed else (width, height)

    def rgb(self, frame: Any, before: Any = None, after: Any = None) -> np.ndarray:
        """Convert a frame to (H, W, 3) uint8 RGB.

        before, after: adjacent frames, which improve the deinterlacing of an interlaced frame (bwdif, one picture per
            frame, from its first field)
        """
        if frame.interlaced_frame:
            pixels = self._deinterlaced([each for each in (before, frame, after) if _alike(each, frame)], frame)
        else:
            pixels = self._converted(frame)
        transposed, mirrored, flipped = turn_of(frame)
        pixels = pixels.transpose(1, 0, 2) if transposed else pixels
        pixels = pixels[:, ::-1] if mirrored else pixels
        return np.ascontiguousarray(pixels[::-1] if flipped else pixels)

    def notes(self, frame: Any) -> list[str]:
        """Return remarks for the user on how such frames are converted, one sentence each."""
        found = []
        if frame.interlaced_frame:
            found.append("interlaced, deinterlaced with bwdif")
        if self.aspect != self._stated:
            found.append(f"its pixel aspect ratio of {self._stated:g} is taken for an error and not applied")
        angle = _angle(frame)
        if angle is not None:
            found.append(f"it asks to be turned by {angle:g} degrees; only quarter turns and mirroring are applied")
        curve, gamut = _HDR.get(frame.color_trc), _WIDE.get(frame.color_primaries)
        if curve or gamut:
            space = " ".join(filter(None, (gamut, curve)))
            found.append(f"colours of {space} are converted by matrix and range alone, not mapped to standard range")
        return found

    def _square(self, frame: Any) -> tuple[int, int]:
        return max(1, round(frame.width * self.aspect)), frame.height

    def _converted(self, frame: Any) -> np.ndarray:
        properties = _properties(frame)
        if self._chain is None or self._chain[0] != properties:
            self._chain = properties, _graph(frame, self._square(frame))
        graph = self._chain[1]
        graph.push(frame)
        return graph.pull().to_ndarray()

    def _deinterlaced(self, frames: Sequence[Any], wanted: Any) -> np.ndarray:
        graph = _graph(wanted, self._square(wanted), "bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        position = next(n for n, each in enumerate(frames) if each is wanted)
        for number, each in enumerate(frames):
            each.pts = number
            graph.push(each)
        graph.push(None)
        for _ in range(position):
            graph.pull()
        return graph.pull().to_ndarray()


def turn_of(frame: Any) -> tuple[bool, bool, bool]:
    """Return how the display matrix turns a frame: transposed, then mirrored left to right, then flipped top to bottom.

    All False for a matrix that is not a quarter turn, which is not applied.
    """
    if _angle(frame) is not None:
        return False, False, False
    a, b, c, d = _matrix(frame)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def _angle(frame: Any) -> float | None:
    """Return the clockwise rotation in degrees that the display matrix requests; None for quarter turns."""
    a, b, c, d = _matrix(frame)
    off = min(math.degrees(math.atan2(abs(b), abs(a))), math.degrees(math.atan2(abs(a), abs(b))))
    off = max(off, min(math.degrees(math.atan2(abs(c), abs(d))), math.degrees(math.atan2(abs(d), abs(c)))))
    return None if off < TURN_TOLERANCE else round(math.degrees(math.atan2(b, a)), 1)


def _matrix(frame: Any) -> tuple[float, float, float, float]:
    """Return a, b, c, d of the display matrix, which shows (x, y) at (a x + c y, b x + d y).

    The identity if the matrix is missing or singular.
    """
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 1.0, 0.0, 0.0, 1.0
    values = np.frombuffer(bytes(found), np.int32, 9)
    a, b, c, d = (float(values[index]) for index in (0, 1, 3, 4))
    return (a, b, c, d) if a * d - b * c else (1.0, 0.0, 0.0, 1.0)


def _properties(frame: Any) -> tuple[Any, ...]:
    return frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range


def _alike(frame: Any, other: Any) -> bool:
    return frame is not None and _properties(frame) == _properties(other)


def _graph(frame: Any, size: tuple[int, int], *first: str) -> Any:
    """Build FFmpeg's filters from such frames to RGB of this size (width, height).

    first: an additional filter at the start and its options
    """
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1
    nodes = [
        graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base="1/1000",
            pixel_aspect="1/1",
            colorspace=str(frame.colorspace),
            range=str(frame.color_range),
        )
    ]
    if first:
        nodes.append(graph.add(*first))
    nodes.append(graph.add("scale", f"{size[0]}:{size[1]}:flags=bicubic"))
    nodes.append(graph.add("format", "rgb24"))
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()
    return graph
