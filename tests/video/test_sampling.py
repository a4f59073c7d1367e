"""Frame selection: the published cases, ranges, and variable rates. No test here opens a file."""

import json
import math
import pickle

import numpy as np
import pytest
import small
from places import DATA

from v2l.errors import V2LError
from v2l.video.sampling import choose_frames, frame_range, sample_indices

CASES = json.loads((DATA / "sampling.json").read_text())["cases"]


def clip(seconds, fps=None):
    times = np.round(np.asarray(seconds, float), 6)
    rate = fps or (len(times) - 1) / times[-1]
    return small.video_of(times, rate, constant=fps is not None)


def test_the_312_published_cases():
    assert len(CASES) == 312
    wrong = [case for case in CASES if sample_indices(*case[:5]) != case[5]]
    assert wrong == []


def test_fifteen_seconds_and_longer_lose_their_ends():
    assert sample_indices(14 * 30, 30, 12)[0] == 0
    long = sample_indices(15 * 30, 30, 12)
    assert (len(long), long[0], long[-1]) == (12, 30, 420)


@pytest.mark.parametrize(
    "arguments", [(0, 30, 12), (30, 0, 12), (30, math.nan, 12), (30, 30, 0), (30, 30, 12, -1), (30, 30, 12, 1, -1)]
)
def test_impossible_numbers_are_refused(arguments):
    with pytest.raises(V2LError):
        sample_indices(*arguments)


@pytest.mark.parametrize("fps", [8, 24000 / 1001, 25, 30000 / 1001, 60])
def test_range_holds_exactly_the_frames_shown_in_it(fps):
    video = clip(np.arange(300) / fps, fps)
    for start, end in [(None, None), (1 / 3, 2.0), (0, 0.5), (1.0, 1.5), (4 / fps, 9 / fps), (2, 1e9)]:
        first, stop = frame_range(video, start, end)
        low, high = round(start or 0, 6), math.inf if end is None else round(end, 6)
        inside = [i for i, t in enumerate(video.seconds) if low <= t < high]
        assert list(range(first, stop)) == inside
    assert frame_range(video, 4 / fps, 9 / fps) == (4, 9)


@pytest.mark.parametrize(
    "start, end, says",
    [
        (-1, None, "start"),
        (None, -1, "end"),
        (2, 2, "before end"),
        (3, 2, "before end"),
        (10, None, "after the end"),
        (math.nan, None, "start"),
        (0, math.inf, "end"),
    ],
)
def test_impossible_ranges_are_refused(start, end, says):
    with pytest.raises(V2LError, match=says):
        frame_range(clip(np.arange(100) / 10, 10), start, end)


def test_a_range_between_two_frames_shows_the_first_and_one_before_all_frames_none():
    video = clip(1 + np.arange(100) / 10, 10)
    assert frame_range(video, 2.01, 2.02) == (10, 11)
    with pytest.raises(V2LError, match="its first frame is at 1 s"):
        frame_range(video, 0.2, 0.9)


def test_a_range_is_sampled_as_a_file_of_its_own():
    video = clip(np.arange(3000) / 30, 30)
    assert choose_frames(video, 12) == sample_indices(3000, 30, 12)
    assert choose_frames(video, 12, 1.0, 20, 50) == [600 + i for i in sample_indices(900, 30, 12)]
    assert choose_frames(video, 5, 0.5, end=4) == sample_indices(120, 30, 5, 0.5)


def test_variable_rate_counts_the_seconds_of_the_range():
    times = np.concatenate([np.arange(300) / 30, 10 + np.arange(50) / 5])
    slow = choose_frames(clip(times), 64, 1.0, 10, 20)
    assert len(slow) == 10 and all(10 <= times[i] < 20 for i in slow)
    assert all(times[i] < 10 for i in choose_frames(clip(times), 64, 1.0, 0, 10))
    assert choose_frames(clip(times), 64, 1.0, 10, 1000) == choose_frames(clip(times), 64, 1.0, 10)


def test_variable_rate_counts_no_seconds_before_the_first_frame():
    """Four frames of four seconds, although the range has six."""
    video = clip([2.0, 2.5, 3.1, 3.5, 4.0, 4.5, 5.1, 5.5, 6.0])
    assert choose_frames(video, 12, end=6.0) == [0, 2, 4, 7]


def test_video_can_be_pickled_and_compared():
    video = clip(np.arange(30) / 30, 30)
    again = pickle.loads(pickle.dumps(video))
    assert again == video and np.array_equal(again.seconds, video.seconds)
