"""Convert frames and questions to model inputs, for encoding and for in-context inference.

Pixels and text equal those of the SmolVLM processor of transformers 4.51.3 (PIL path), which the published
hypernetworks were trained with. Later versions of transformers resize and tile differently, so v2l does not call them.
arXiv 2606.04351, section 4, uses this input with 12 frames of 384 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from v2l.errors import V2LError
from v2l.models.config import VisionGeometry
from v2l.video.sampling import Video

if TYPE_CHECKING:
    import torch

START, END_OF_TURN = "<|im_start|>", "<end_of_utterance>"
IMAGE, IMAGE_EDGE, GLOBAL_VIEW = "<image>", "<fake_token_around_image>", "<global-img>"
PIXEL_MEAN = PIXEL_STD = 0.5

QUESTIONS = (
    "what is on the whiteboard?",
    "which word comes last?",
    "how does the circle move?",
    "what colour is the square?",
)
"""Questions for measuring speed and for verifying adapters."""


@dataclass(frozen=True)
class PromptFrame:
    """A frame in the prompt: its time in seconds, its grid of tiles (0 x 0 if it is not tiled), and whether it is the
    last frame of the video."""

    seconds: float
    rows: int = 0
    cols: int = 0
    last: bool = False


def prompt_frames(
    video: Video, chosen: Sequence[int], end: float | None, grid: tuple[int, int] = (0, 0)
) -> list[PromptFrame]:
    """Return the chosen frames of a video for the prompt. The final one is marked as the last frame of the video if
    `end` is the end of the video.

    chosen: frame indices
    end: seconds up to which frames were chosen; None for the end of the video
    grid: rows and columns of tiles
    """
    continues = end is not None and end < video.duration - 1e-6  # ends of segments are rounded to that
    frames = [PromptFrame(float(video.seconds[index]), *grid) for index in chosen]
    return frames if continues else [*frames[:-1], replace(frames[-1], last=True)]


# Pixels ------------------------------------------------------------------------------------------------------------


def frame_images(
    pixels: np.ndarray,
    geometry: VisionGeometry,
    longest_edge: int | None = None,
    grid: tuple[int, int] | None = None,
) -> np.ndarray:
    """Convert one frame to the square inputs of the vision tower.

    pixels: (H, W, 3) uint8 RGB
    longest_edge: pixels of the longer side before squashing; a frame larger than `image_size` is cut into tiles
    grid: rows and columns of tiles; default from the frame's own size (set it for a video whose size changes)

    Returns (N, 3, S, S) uint8 with S = `image_size`: the tiles row by row, then the whole frame squashed to S x S.
    N is 1 if the frame is not tiled.
    """
    from PIL import Image  # which answering from an adapter does not need

    size = geometry.image_size
    frame_height, frame_width = pixels.shape[:2]
    width, height = _fit_longest_edge(frame_width, frame_height, longest_edge or geometry.longest_edge)
    rows, cols = grid or tile_grid(frame_width, frame_height, geometry, longest_edge)
    # Resize to the longest edge, then to a multiple of the input size
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    image = image.resize((max(cols, 1) * size, max(rows, 1) * size), Image.Resampling.LANCZOS)
    # Cut the tiles and append the whole frame
    tiles = [image.crop((x * size, y * size, (x + 1) * size, (y + 1) * size)) for y in range(rows) for x in range(cols)]
    if tiles:
        tiles.append(image.resize((size, size), Image.Resampling.LANCZOS))
    return np.stack([np.asarray(tile).transpose(2, 0, 1) for tile in tiles or [image]])


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 images, of any shape, to the range of the vision tower, -1 to 1, in float32."""
    return (images.float() / 255 - PIXEL_MEAN) / PIXEL_STD


def tile_grid(width: int, height: int, geometry: VisionGeometry, longest_edge: int | None = None) -> tuple[int, int]:
    """Return (rows, columns) of the tiles of a frame of width x height pixels; (0, 0) if it is not tiled."""
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
    """Scale the longer side to `longest_edge`; the other side is rounded down and then up to an even number."""
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
    """Return the user turn with a video, followed by `prompt`.

    frames: in order; each is preceded by its time, floored to MM:SS
    duration: seconds of the whole video, floored to H:MM:SS in the intro line
    generation_prompt: end with `Assistant:`, for a question in context; internalization does not
    marks_end: announce the last frame of the video as such; the paper does not

    Raises V2LError if there are no frames, or more than can be spelled out.
    """
    if not frames:
        raise V2LError("a video prompt needs at least one frame; ask for --frames 1 or more")
    intro = (
        f"You are provided the following series of {number_in_words(len(frames))} frames "
        f"from a {_clock_hours(duration)} [H:MM:SS] video.\n"
    )
    shown = "".join(
        f"\n{'Last frame' if marks_end and frame.last else 'Frame'} from {frame_clock(frame.seconds)}:"
        f"{_image_text(frame, geometry)}"
        for frame in frames
    )
    return _user_turn(f"{intro}{shown}\n\n{prompt}", generation_prompt)


def question_text(question: str) -> str:
    """Return the user turn of a question without a video, up to `Assistant:`. It contains no visual token."""
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


def frame_clock(seconds: float) -> str:
    """Format the time of a frame as the prompt announces it: MM:SS, floored."""
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
    """Spell a number from 0 to 999,999 in English words, for the prompt's intro line: 1024 is
    "one thousand and twenty-four", 1100 is "one thousand, one hundred". Raises V2LError for other numbers."""
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
