"""Pixels and text equal those of the SmolVLM processor of transformers 4.51.3."""

import json

import numpy as np
import pytest
import small
from PIL import Image
from places import DATA
from safetensors import safe_open

from v2l.errors import V2LError
from v2l.models.config import VisionGeometry
from v2l.models.processor import (
    PromptFrame,
    frame_images,
    number_in_words,
    prompt_frames,
    question_text,
    tile_grid,
    video_text,
)

PIXELS = DATA / "pixels.safetensors"
"""Seven frames processed by the official processor: complete inputs, every eighth pixel of the outputs."""

with safe_open(PIXELS, framework="np") as _file:
    CASES = json.loads(_file.metadata()["cases"])


@pytest.mark.parametrize("name", sorted(CASES))
def test_pixels_within_one_level(name):
    case = CASES[name]
    with safe_open(PIXELS, framework="np") as file:
        frame, expected = file.get_tensor(f"{name}.input"), file.get_tensor(f"{name}.every_8th")
    geometry = VisionGeometry(case["max_image_size"], 64, case["longest_edge"])
    images = frame_images(frame, geometry)
    assert images.dtype == np.uint8
    assert tile_grid(frame.shape[1], frame.shape[0], geometry) == (case["rows"], case["cols"])
    difference = images[:, :, 3::8, 3::8].astype(int) - expected
    assert difference.shape == expected.shape
    assert abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("image_size", "longest_edge", "width", "height", "grid"),
    [
        # the paper's resolutions: 512-pixel images (500M) and 384-pixel images (2.2B)
        (512, 384, 1280, 720, (0, 0)),
        (512, 512, 1280, 720, (0, 0)),
        (512, 1024, 1280, 720, (2, 2)),
        (384, 384, 640, 480, (0, 0)),
        (384, 512, 640, 480, (2, 2)),
        (384, 1024, 1280, 720, (2, 3)),
        (384, 1024, 720, 1280, (3, 2)),
        (384, 1024, 640, 480, (3, 3)),
        (384, 1024, 4000, 2, (1, 3)),
    ],
)
def test_tiles(image_size, longest_edge, width, height, grid):
    geometry = VisionGeometry(image_size, 1, image_size)
    assert tile_grid(width, height, geometry, longest_edge) == grid
    images = frame_images(np.zeros((height, width, 3), np.uint8), geometry, longest_edge)
    count = grid[0] * grid[1] + 1 if grid != (0, 0) else 1
    assert images.shape == (count, 3, image_size, image_size)


def test_tiles_stand_row_by_row_with_the_whole_frame_last():
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:32, 32:] = 100
    frame[32:, :32] = 200
    tiles = frame_images(frame, VisionGeometry(32, 1, 32), longest_edge=64)
    assert [int(tile[:, 8:24, 8:24].mean()) for tile in tiles[:4]] == [0, 100, 200, 0]
    assert tiles[4, 0, 4, 28] == 100
    assert tiles[4, 0, 28, 4] == 200


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_odd_sizes_become_one_square(width, height):
    images = frame_images(np.full((height, width, 3), 77, np.uint8), VisionGeometry(32, 1, 32))
    assert images.shape == (1, 3, 32, 32)
    assert (images == 77).all()


@pytest.mark.parametrize("landscape", [True, False])
def test_an_odd_shorter_side_is_resized_to_the_next_even_number(landscape):
    """128 x 98 pixels become 64 x 49, so 64 x 50, before they are squashed."""
    pixels = np.random.default_rng(0).integers(0, 256, (98, 128, 3), dtype=np.uint8)
    pixels, size = (pixels, (64, 50)) if landscape else (pixels.transpose(1, 0, 2).copy(), (50, 64))
    expected = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS).resize((64, 64), Image.Resampling.LANCZOS)
    (found,) = frame_images(pixels, VisionGeometry(64, 1, 64), longest_edge=64)
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_video_text():
    frames = [PromptFrame(0.0), PromptFrame(61.99)]
    text = video_text(frames, 30.9, "Say it.", VisionGeometry(512, 2, 512))
    image = "<fake_token_around_image><global-img><image><image><fake_token_around_image>"
    assert text == (
        "<|im_start|>User: You are provided the following series of two frames from a 0:00:30 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{image}\nFrame from 01:01:{image}\n\nSay it.<end_of_utterance>\n"
    )
    asked = video_text(frames, 30.9, "Say it.", VisionGeometry(512, 2, 512), generation_prompt=True)
    assert asked == text + "Assistant:"


def test_the_last_frame_is_announced_as_such_where_that_is_asked_for():
    frames = [PromptFrame(0.0), PromptFrame(61.99, last=True)]
    plain, marked = (
        video_text(frames, 62.0, "Say it.", VisionGeometry(512, 2, 512), marks_end=marks) for marks in (False, True)
    )
    assert plain.count("Frame from") == 2
    assert marked == plain.replace("Frame from 01:01:", "Last frame from 01:01:")


@pytest.mark.parametrize(
    ("end", "last"), [(None, True), (3.0, False), (5.999, False), (5.9999995, True), (6.0, True), (9.0, True)]
)
def test_the_last_frame_is_the_videos_where_they_are_chosen_up_to_its_end(end, last):
    video = small.video_of(np.arange(12) * 0.5, fps=2.0)
    frames = prompt_frames(video, [0, 4, 9], end, (2, 3))
    assert frames == [PromptFrame(0.0, 2, 3), PromptFrame(2.0, 2, 3), PromptFrame(4.5, 2, 3, last)]


def test_video_text_with_tiles():
    text = video_text([PromptFrame(3.0, rows=1, cols=2)], 3725, "Say it.", VisionGeometry(512, 1, 512))
    edge = "<fake_token_around_image>"
    assert text == (
        "<|im_start|>User: You are provided the following series of one frames from a 1:02:05 [H:MM:SS] video.\n"
        f"\nFrame from 00:03:{edge}<row_1_col_1><image>{edge}<row_1_col_2><image>\n"
        f"\n{edge}<global-img><image>{edge}\n\nSay it.<end_of_utterance>\n"
    )


def test_question_text_is_text_alone():
    assert question_text("Who?") == "<|im_start|>User: Who?<end_of_utterance>\nAssistant:"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (12, "twelve"),
        (20, "twenty"),
        (64, "sixty-four"),
        (100, "one hundred"),
        (256, "two hundred and fifty-six"),
        (1024, "one thousand and twenty-four"),
        (1100, "one thousand, one hundred"),
        (12_345, "twelve thousand, three hundred and forty-five"),
    ],
)
def test_numbers_in_words(number, words):
    assert number_in_words(number) == words


def test_what_cannot_be_said_is_refused():
    with pytest.raises(V2LError, match="1000000 frames"):
        number_in_words(1_000_000)
    with pytest.raises(V2LError, match="at least one frame"):
        video_text([], 1.0, "Say it.", VisionGeometry(512, 1, 512))
