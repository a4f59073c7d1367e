"""Scenes as plain numbers: a whiteboard whose word changes, and one or two coloured shapes that move.

Coordinates are fractions of the frame, x to the right and y down; times are in seconds of the whole video. A split's
name and a seed determine a scene, in any process and on any machine.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np

from v2l.errors import V2LError

WORDS = (
    "lora video frame pixel token layer rank batch model train loss graph mango apple lemon peach river cloud storm "
    "winter tiger horse zebra mouse eagle piano drum flute violin paper pencil table chair window bridge tower castle "
    "garden forest desert island planet comet rocket engine wheel anchor candle button ladder basket hammer"
).split()
COLOURS = {
    "red": (215, 35, 35),
    "orange": (245, 140, 20),
    "yellow": (240, 225, 40),
    "green": (40, 165, 60),
    "cyan": (50, 205, 215),
    "blue": (40, 70, 215),
    "purple": (140, 50, 175),
}
"""Name to RGB."""
KINDS = ("circle", "square", "triangle", "cross", "ring")
MOTIONS = ("still", "left", "right", "up", "down", "back and forth")
PLACES = (("top left", "top", "top right"), ("left", "middle", "right"), ("bottom left", "bottom", "bottom right"))
"""Names of the nine regions of a frame, by row and column."""

SHAPES = 1
"""Maximum number of shapes per scene for the embedded model, which does not learn to distinguish two."""

SPLITS = ("train", "validation", "test", "held-out")
"""`held-out` shows combinations that appear in no other split. No two splits share a random stream, whatever the seeds,
but the few words and shapes of a scene can occur in a scene of another split."""
HELD_OUT_SHARE = 16
"""One in this many combinations of colour, shape, motion and word is held out."""

FEWEST_SECONDS, MOST_SECONDS = 2.0, 3600.0
BOARD_HEIGHT = 0.27
UNCLEAR = 0.025
"""Distance to a border between two regions below which no place is asked for: about 1.5 pixels of 64."""
_NEAR, _FAR = (0.13, 0.27), (0.73, 0.87)
_GREYS = ((225, 222, 215), (190, 200, 210), (120, 125, 130), (70, 75, 85), (35, 35, 40), (205, 190, 165))


@dataclass(frozen=True)
class Board:
    """A whiteboard that shows `words[i]` from `changes[i]` seconds until the next change.

    top: y of the upper edge; left, width: horizontal extent; size: share of the board that the word fills, 0 to 1
    stroke: line width in hundredths of the frame height; ink, paper: RGB
    """

    words: tuple[str, ...]
    changes: tuple[float, ...]
    top: float
    left: float
    width: float
    size: float
    stroke: float
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]

    def word_at(self, seconds: float) -> str:
        """Return the word on the board at `seconds`."""
        return self.words[max(0, sum(change <= seconds for change in self.changes) - 1)]


@dataclass(frozen=True)
class Shape:
    """A shape that moves in a straight line from `start` to `end`, (x, y) each, during its scene.

    With the motion `back and forth` it reaches `end` half-way and returns.

    size: height as a fraction of the frame's shorter side; angle: rotation in degrees
    """

    kind: str
    colour: str
    motion: str
    start: tuple[float, float]
    end: tuple[float, float]
    size: float
    angle: float

    def place(self, progress: float) -> tuple[float, float]:
        """Return the centre (x, y) at `progress`, 0 to 1, of the scene."""
        if self.motion == "back and forth":
            progress = 1 - abs(2 * progress - 1)
        (x0, y0), (x1, y1) = self.start, self.end
        return x0 + (x1 - x0) * progress, y0 + (y1 - y0) * progress


@dataclass(frozen=True)
class Scene:
    """The content of a video from `start` seconds on, for `duration` seconds.

    background: RGB of the upper and of the lower edge; brightness: factor applied to every pixel
    noise: standard deviation of the grain in grey levels; seed: random seed of the grain
    """

    start: float
    duration: float
    board: Board
    shapes: tuple[Shape, ...]
    background: tuple[tuple[int, int, int], tuple[int, int, int]]
    brightness: float
    noise: float
    seed: int

    def progress(self, seconds: float) -> float:
        """Return the elapsed share of the scene, 0 to 1, at `seconds` of the video."""
        return min(max((seconds - self.start) / self.duration, 0.0), 1.0)

    def where(self, shape: Shape, seconds: float) -> tuple[float, float]:
        """Return the centre (x, y) of a shape at `seconds` of the video."""
        return shape.place(self.progress(seconds))


@dataclass(frozen=True)
class Story:
    """A sequence of scenes, each with its own board and shapes. Most videos have one scene."""

    scenes: tuple[Scene, ...]

    @property
    def start(self) -> float:
        """Second of the video at which the first scene starts."""
        return self.scenes[0].start

    @property
    def duration(self) -> float:
        """Seconds from the start of the first scene to the end of the last."""
        return self.scenes[-1].start + self.scenes[-1].duration - self.start

    def at(self, seconds: float) -> Scene:
        """Return the scene at `seconds` of the video."""
        return self.scenes[max(0, sum(scene.start <= seconds for scene in self.scenes) - 1)]

    def word_at(self, seconds: float) -> str:
        """Return the word on the board at `seconds` of the video."""
        return self.at(seconds).board.word_at(seconds)

    def between(self, first: float, last: float) -> Story:
        """Return the story reduced to the scenes between two times, in seconds."""
        return Story(
            tuple(scene for scene in self.scenes if first < scene.start + scene.duration and scene.start <= last)
        )


def place_name(x: float, y: float) -> str:
    """Return the name of the region that contains the point."""
    return PLACES[min(int(y * 3), 2)][min(int(x * 3), 2)]


def place_is_clear(x: float, y: float) -> bool:
    """Return whether the point is at least `UNCLEAR` away from every region border."""
    return all(abs(side - border) >= UNCLEAR for side in (x, y) for border in (1 / 3, 2 / 3))


def is_held_out(colour: str, kind: str, motion: str, word: str) -> bool:
    """Return whether the combination is reserved for the test; its hash decides."""
    digest = hashlib.sha256(f"{colour} {kind} {motion} {word}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def held_out_in(scene: Scene) -> bool:
    """Return whether the scene contains a held-out combination, simultaneous or not."""
    pairs = itertools.product(scene.shapes, scene.board.words)
    return any(is_held_out(shape.colour, shape.kind, shape.motion, word) for shape, word in pairs)


def sample_story(
    split: str, seed: int, duration: float, start: float = 0.0, views: int = 12, count: int = 1, shapes: int = 2
) -> Story:
    """Return the story for a split and a seed: `count` scenes of equal length.

    No word appears in two scenes, so "what comes after lora" has one answer.

    duration, start: seconds
    views: number of evenly spaced frames that are enough to show every word at least once
    shapes: maximum number of shapes per scene, 1 or 2
    Raises V2LError for an unknown split, a duration outside 2 seconds to 1 hour, or more scenes than seconds.
    """
    if split not in SPLITS:
        raise V2LError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if not FEWEST_SECONDS <= duration <= MOST_SECONDS:
        raise V2LError(f"invalid duration {duration:g} s; choose {FEWEST_SECONDS:g} to {MOST_SECONDS:g} s")
    if not 1 <= count <= min(duration, len(WORDS)):
        raise V2LError(
            f"{count} scenes do not fit into {duration:g} s; choose 1 to {len(WORDS)} of at least one second each"
        )
    random = np.random.default_rng([SPLITS.index(split), seed])
    each = duration / count
    scenes: list[Scene] = []
    for words in np.array_split(random.permutation(len(WORDS)), count):
        while True:
            random.shuffle(words)
            scene = _sample_scene(random, (start + each * len(scenes), each), views // count, words, shapes)
            if held_out_in(scene) == (split == "held-out"):
                break
        scenes.append(scene)
    return Story(tuple(scenes))


def _sample_scene(
    random: np.random.Generator, span: tuple[float, float], views: int, words: np.ndarray, shapes: int
) -> Scene:
    start, duration = span
    upper, lower = (_jitter(random, _GREYS[random.integers(len(_GREYS))], 12) for _ in range(2))
    if random.random() < 0.5:
        lower = upper
    board = _sample_board(random, duration, start, views, words)
    return Scene(
        start=start,
        duration=duration,
        board=board,
        shapes=_sample_shapes(random, board, shapes),
        background=(upper, lower),
        brightness=float(random.uniform(0.8, 1.15)),
        noise=float(random.uniform(0, 10)),
        seed=int(random.integers(2**31)),
    )


def _sample_board(random: np.random.Generator, duration: float, start: float, views: int, choice: np.ndarray) -> Board:
    count = min(int(random.integers(1, 5)), max(1, views // 2), len(choice))
    words = choice[:count]
    # Show each word for the minimum share of the time and distribute the rest at random.
    least = 1.2 / max(views, 1) if count > 1 else 0.0
    spare = random.dirichlet([1.0] * count) * (1 - least * count)
    shares = np.cumsum(spare + least)[:-1]
    width = float(random.uniform(0.78, 0.96))
    margin = float(random.uniform(0.02, 0.05))
    return Board(
        words=tuple(WORDS[word] for word in words),
        changes=(start, *(start + duration * float(share) for share in shares)),
        top=margin if random.random() < 0.5 else 1 - margin - BOARD_HEIGHT,
        left=float(random.uniform(0.02, 0.98 - width)),
        width=width,
        size=float(random.uniform(0.75, 0.92)),
        stroke=float(random.uniform(1.2, 2.6)),
        ink=_jitter(random, ((15, 15, 20), (20, 30, 110), (110, 15, 20), (10, 80, 30))[random.integers(4)], 15),
        paper=_jitter(random, (240, 240, 238), 12),
    )


def _sample_shapes(random: np.random.Generator, board: Board, most: int) -> tuple[Shape, ...]:
    """Sample 1 to `most` shapes that overlap neither the board nor each other and differ in kind and colour."""
    count = int(random.integers(1, most + 1))
    kinds = random.choice(len(KINDS), count, replace=False)
    colours = random.choice(len(COLOURS), count, replace=False)
    motions = random.integers(len(MOTIONS), size=count)
    names = [(KINDS[k], list(COLOURS)[c], MOTIONS[m]) for k, c, m in zip(kinds, colours, motions, strict=True)]
    moved = {motion for _, _, motion in names}
    if "back and forth" in moved and moved & {"up", "down"}:  # these paths always cross
        return _sample_shapes(random, board, most)
    while True:
        shapes = [_sample_shape(random, *name, board=board) for name in names]
        if len(shapes) == 1 or _apart(*shapes):
            return tuple(shapes)


def _sample_shape(random: np.random.Generator, kind: str, colour: str, motion: str, board: Board) -> Shape:
    above = (0.14, 0.26), (0.50, 0.56)
    near, far = above if board.top > 0.5 else tuple((1 - b, 1 - a) for a, b in reversed(above))
    x0, y0 = random.uniform(0.13, 0.87), random.uniform(near[0], far[1])
    x1, y1 = x0, y0
    if motion in ("left", "right", "back and forth"):
        x0, x1 = random.uniform(*_NEAR), random.uniform(*_FAR)
        if motion == "left" or (motion == "back and forth" and random.random() < 0.5):
            x0, x1 = x1, x0
    if motion in ("up", "down"):
        y0, y1 = random.uniform(*near), random.uniform(*far)
        if motion == "up":
            y0, y1 = y1, y0
    start, end = (float(x0), float(y0)), (float(x1), float(y1))
    return Shape(kind, colour, motion, start, end, float(random.uniform(0.2, 0.27)), float(random.uniform(-12, 12)))


def _apart(one: Shape, other: Shape) -> bool:
    progress = np.linspace(0, 1, 17)
    distances = np.array([np.subtract(one.place(each), other.place(each)) for each in progress.tolist()])  # (17, 2)
    return bool((np.abs(distances).max(1) > (one.size + other.size) / 2 + 0.02).all())


def _jitter(random: np.random.Generator, colour: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    values = np.clip(np.array(colour) + random.integers(-amount, amount + 1, 3), 0, 255)
    red, green, blue = (int(value) for value in values)
    return red, green, blue
