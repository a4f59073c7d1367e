"""Draw a scene at a point in time, at any frame size, with OpenCV's fonts and shapes."""

from __future__ import annotations

import math

import numpy as np

from v2l.errors import V2LError
from v2l.tiny.world.opencv import cv2
from v2l.tiny.world.scene import BOARD_HEIGHT, COLOURS, Board, Scene, Shape

_SHIFT = 4
"""Fractional bits of OpenCV's drawing coordinates; shapes move by less than a pixel."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(scene: Scene, seconds: float, height: int = 64, width: int = 64) -> np.ndarray:
    """Draw the scene at `seconds` of its video, (height, width, 3) uint8 RGB.

    Raises V2LError if a side is below 32 pixels.
    """
    if min(height, width) < 32:
        raise V2LError(f"cannot draw a frame of {width} x {height} pixels; each side must be at least 32")
    image = _background(scene, height, width)
    _draw_board(image, scene.board, scene.board.word_at(seconds))
    for shape in scene.shapes:
        _draw_shape(image, shape, scene.where(shape, seconds))
    grain = np.random.default_rng([scene.seed, round(seconds * 1000)])
    # Draw the grain at 64 lines: resizing a frame to the model's image size would average out finer grain.
    coarse = grain.standard_normal((64, 64, 1), dtype=np.float32) * scene.noise
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    pixels = image.astype(np.float32) * scene.brightness + noise[..., None]
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)


def _background(scene: Scene, height: int, width: int) -> np.ndarray:
    upper, lower = (np.array(colour, dtype=np.float32) for colour in scene.background)
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    rows = (upper + (lower - upper) * ramp).astype(np.uint8)  # (height, 3)
    return np.repeat(rows[:, None], width, axis=1)


def _draw_board(image: np.ndarray, board: Board, word: str) -> None:
    height, width = image.shape[:2]
    left, right = round(board.left * width), round((board.left + board.width) * width)
    top, bottom = round(board.top * height), round((board.top + BOARD_HEIGHT) * height)
    cv2.rectangle(image, (left, top), (right, bottom), board.paper, -1)
    cv2.rectangle(image, (left, top), (right, bottom), (90, 90, 95), max(1, height // 96))
    # Scale the word to the board and centre it.
    stroke = max(1, round(board.stroke * height / 100))
    (text_width, text_height), baseline = cv2.getTextSize(word, _FONT, 1.0, 1)
    room = board.size * (right - left) - stroke, board.size * (bottom - top) - stroke
    scale = min(room[0] / text_width, room[1] / (text_height + baseline))
    drawn_width, drawn_height, drop = text_width * scale, text_height * scale, baseline * scale
    x = round((left + right - drawn_width) / 2)
    y = round((top + bottom + drawn_height - drop) / 2)
    cv2.putText(image, word, (x, y), _FONT, scale, board.ink, stroke, cv2.LINE_AA)


def _draw_shape(image: np.ndarray, shape: Shape, centre: tuple[float, float]) -> None:
    height, width = image.shape[:2]
    x, y = centre[0] * width, centre[1] * height
    radius = shape.size * min(height, width) / 2
    colour = COLOURS[shape.colour]
    if shape.kind in ("circle", "ring"):
        thickness = -1 if shape.kind == "circle" else max(2, round(radius * 0.45))
        reach = radius if thickness < 0 else radius - thickness / 2
        cv2.circle(image, _fixed(x, y), round(reach * 2**_SHIFT), colour, thickness, cv2.LINE_AA, _SHIFT)
        return
    # Rotate the corners and fill the polygon.
    turn = math.radians(shape.angle)
    cos, sin = math.cos(turn), math.sin(turn)
    outline = [
        _fixed(x + radius * (cos * dx - sin * dy), y + radius * (sin * dx + cos * dy))
        for dx, dy in _OUTLINES[shape.kind]
    ]
    cv2.fillPoly(image, [np.array(outline, dtype=np.int32)], colour, cv2.LINE_AA, _SHIFT)


def _fixed(x: float, y: float) -> tuple[int, int]:
    return round(x * 2**_SHIFT), round(y * 2**_SHIFT)


_ARM = 0.32
_OUTLINES = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)),
    "cross": (
        *((-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM)),
        *((_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM)),
    ),
}
"""Corners of the polygonal shapes, for a radius of 1."""
