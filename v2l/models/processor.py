"""Frames and questions to model inputs: the one builder that encoding and in-context inference share.

Pixels and text are those of transformers 4.51.3's SmolVLM processor (PIL path), which the published
hypernetworks were trained on; later transformers versions resize and tile differently, so v2l never calls them.
Paper arXiv 2606.04351 section 4 uses exactly this input at 12 frames and 384 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from v2l.errors import V2LError
from v2l.video.sampling import Video

START, END_OF_TURN = "<|im_start|>", "<end_of_utterance>"
IMAGE, IMAGE_EDGE, GLOBAL_VIEW = "<image>", "<fake_token_around_image>", "<global-img>"
PIXEL_MEAN = PIXEL_STD = 0.5

INTERNALIZATION_PROMPT = "Internalize this video for later captioning."
"""What the published hypernetworks heard at the end of the video, in training and in use."""
QUESTIONS = (
    "what is on the whiteboard?",
    "which word comes last?",
    "how does the circle move?",
    "what colour is the square?",
)
"""Questions to measure speed with, in turn."""


@dataclass(frozen=True)
class VisionGeometry:
    """What a model folder says about its images.

    image_size: side in pixels of the square image that the vision tower takes
    tokens_per_image: how many `<image>` tokens one such image becomes
    longest_edge: pixels that the longer side of a video frame is resized to when nothing else is asked for
    """

    image_size: int
    tokens_per_image: int
    longest_edge: int


@dataclass(frozen=True)
class PromptFrame:
    """A frame's place in the prompt: its time in seconds, its grid of tiles (0 x 0 where it is not tiled), and whether
    the video ends with it."""

    seconds: float
    rows: int = 0
    cols: int = 0
    last: bool = False


def prompt_frames(
    video: Video, chosen: Sequence[int], end: float | None, grid: tuple[int, int] = (0, 0)
) -> list[PromptFrame]:
    """The chosen frames as the prompt shows them; the last one is the video's where they were chosen up to its end.

    end: seconds that they were chosen up to, None for the video's end; grid: rows and columns of tiles
    """
    goes_on = end is not None and end < video.duration - 1e-6  # ends of segments are rounded to that
    frames = [PromptFrame(float(video.seconds[index]), *grid) for index in chosen]
    return frames if goes_on else [*frames[:-1], replace(frames[-1], last=True)]


# Pixels ------------------------------------------------------------------------------------------------------------


def frame_images(
    pixels: np.ndarray,
    geometry: VisionGeometry,
    longest_edge: int | None = None,
    grid: tuple[int, int] | None = None,
) -> np.ndarray:
    """One frame as the square images that the vision tower takes.

    pixels: (H, W, 3) uint8 RGB
    longest_edge: pixels of the longer side before squashing; beyond `image_size` the frame is cut into tiles
    grid: rows and columns of tiles where the frame's own size does not decide, as in a video that changes its size

    Returns (N, 3, S, S) uint8 with S = `image_size`: the tiles row by row, then the whole frame squashed to S x S;
    N is 1 where nothing is tiled. `tile_grid` tells rows and columns.
    """
    size = geometry.image_size
    frame_height, frame_width = pixels.shape[:2]
    width, height = _fit_longest_edge(frame_width, frame_height, longest_edge or geometry.longest_edge)
    rows, cols = grid or tile_grid(frame_width, frame_height, geometry, longest_edge)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    image = image.resize((max(cols, 1) * size, max(rows, 1) * size), Image.Resampling.LANCZOS)
    tiles = [image.crop((x * size, y * size, (x + 1) * size, (y + 1) * size)) for y in range(rows) for x in range(cols)]
    if tiles:
        tiles.append(image.resize((size, size), Image.Resampling.LANCZOS))
    return np.stack([np.asarray(tile).transpose(2, 0, 1) for tile in tiles or [image]])


def tile_grid(width: int, height: int, geometry: VisionGeometry, longest_edge: int | None = None) -> tuple[int, int]:
    """(rows, columns) of the tiles that a frame of width x height pixels is cut into; (0, 0) for a single image."""
    width, height = _fit_longest_edge(width, height, longest_edge or geometry.longest_edge)
    aspect, size = width / height, geometry.image_size
    if width >= height:
        cols = math.ceil(width / size)
        rows = math.ceil(int(cols * size / aspect) / size)
    else:
        rows = math.ceil(height / size)
        cols = math.ceil(int(rows * size * aspect) / size)
    rows, cols = max(rows, 1), max(cols, 1)
    return (0, 0) if rows == cols == 1 else (rows, cols)


def _fit_longest_edge(width: int, height: int, longest_edge: int) -> tuple[int, int]:
    """Width and height with the longer one equal to `longest_edge`, the other rounded down and then made even."""
    aspect = width / height
    if width >= height:
        short = int(longest_edge / aspect)
        return longest_edge, max(short + short % 2, 1)
    short = int(longest_edge * aspect)
    return max(short + short % 2, 1), longest_edge


# Text --------------------------------------------------------------------------------------------------------------


def video_text(
    frames: Sequence[PromptFrame],
    duration: float,
    prompt: str,
    geometry: VisionGeometry,
    generation_prompt: bool = False,
    marks_end: bool = False,
) -> str:
    """The user turn that shows a video and then says `prompt`.

    frames: in the order shown; each is announced with its own time, floored to MM:SS
    duration: seconds of the whole video, floored in the intro line to H:MM:SS
    generation_prompt: end with `Assistant:`, as a question in context needs it and internalization does not
    marks_end: announce the frame that the video ends with as the last one; the paper does not
    """
    if not frames:
        raise V2LError("a video prompt needs at least one frame; ask for --frames 1 or more")
    intro = (
        f"You are provided the following series of {number_in_words(len(frames))} frames "
        f"from a {_clock_hours(duration)} [H:MM:SS] video.\n"
    )
    shown = "".join(
        f"\n{'Last frame' if marks_end and frame.last else 'Frame'} from {_clock(frame.seconds)}:"
        f"{_image_text(frame, geometry)}"
        for frame in frames
    )
    return _user_turn(f"{intro}{shown}\n\n{prompt}", generation_prompt)


def question_text(question: str) -> str:
    """The user turn of a question without any video, ready for the answer: no visual token in it."""
    return _user_turn(question, generation_prompt=True)


def _user_turn(content: str, generation_prompt: bool) -> str:
    return f"{START}User: {content}{END_OF_TURN}\n" + ("Assistant:" if generation_prompt else "")


def _image_text(frame: PromptFrame, geometry: VisionGeometry) -> str:
    image = IMAGE * geometry.tokens_per_image
    tiles = ""
    for row in range(1, frame.rows + 1):
        tiles += "".join(f"{IMAGE_EDGE}<row_{row}_col_{col}>{image}" for col in range(1, frame.cols + 1)) + "\n"
    if tiles:
        tiles += "\n"
    return f"{tiles}{IMAGE_EDGE}{GLOBAL_VIEW}{image}{IMAGE_EDGE}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(math.floor(seconds), 60)
    return f"{minutes:02d}:{rest:02d}"


def _clock_hours(seconds: float) -> str:
    minutes, rest = divmod(math.floor(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_in_words(number: int) -> str:
    """A count from 0 to 999,999 in English words, as the prompt's intro line spells it: 1024 is
    "one thousand and twenty-four", 1100 "one thousand, one hundred"."""
    if not 0 <= number < 1_000_000:
        raise V2LError(f"{number} frames cannot be put into words; v2l takes up to 999,999")
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} hundred" + (f" and {number_in_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = " and " if rest < 100 else ", "
    return f"{number_in_words(thousands)} thousand" + (f"{joint}{number_in_words(rest)}" if rest else "")
