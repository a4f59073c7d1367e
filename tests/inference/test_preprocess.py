"""Frames, windows and prompts of a video, as the frozen model receives them."""

import dataclasses
import threading

import pytest
import torch

import v2l
from v2l.inference.preprocess import Prefetcher, cut_windows, encode_video_images, video_ids
from v2l.inference.readings import fill_reading
from v2l.models.hypernetwork_file import TrainedWith
from v2l.video.sampling import Reading

QUESTION = "what is on the whiteboard?"


def test_tiles_reach_the_prompt(videos, vlm):
    encoded = encode_video_images(videos[0], vlm, Reading(frames=2, fps=1.0, resolution=64))
    assert encoded.images.shape == (2 * 5, 4, 48)
    assert [(frame.rows, frame.cols) for frame in encoded.frames] == [(2, 2), (2, 2)]
    (window,) = cut_windows(encoded, vlm, TrainedWith(prompt="Watch.", window_frames=4))
    assert window.frames == 2


def test_a_window_is_the_prompt_of_its_own_frames(videos, vlm):
    """Each window equals the prompt of its frames alone: own frame count, times of the video, positions from zero."""
    reading = Reading(frames=63, fps=8.0, resolution=32)
    encoded = encode_video_images(videos[2], vlm, reading)
    windows = cut_windows(encoded, vlm, TrainedWith(prompt="Watch.", window_frames=4))
    part = dataclasses.replace(encoded, frames=encoded.frames[4:8], images=encoded.images[4:8])
    (alone,) = cut_windows(part, vlm, TrainedWith(prompt="Watch.", window_frames=4))
    assert torch.equal(windows[1].input_ids, alone.input_ids)
    assert torch.equal(windows[1].images, alone.images)


def test_the_end_of_the_video_is_marked_if_the_hypernetwork_was_trained_with_marks(videos, vlm):
    """Only in the last window, not if the reading ends before the video, and never in context."""
    trained = TrainedWith(prompt="Watch.", window_frames=4)
    marking = dataclasses.replace(trained, marks_end=True)

    def texts(reading: Reading, trained_with: TrainedWith) -> list[str]:
        encoded = encode_video_images(videos[2], vlm, reading)
        windows = cut_windows(encoded, vlm, trained_with)
        return [vlm.tokenizer.decode(window.input_ids.tolist(), skip_special_tokens=False) for window in windows]

    whole = Reading(frames=63, fps=8.0, resolution=32)
    plain, marked = texts(whole, trained), texts(whole, marking)
    assert len(plain) > 2
    assert marked[:-1] == plain[:-1]
    before, _, after = plain[-1].rpartition("Frame from")
    assert marked[-1] == f"{before}Last frame from{after}"
    duration = encode_video_images(videos[2], vlm, whole).video.duration
    partial = dataclasses.replace(whole, frames=4, end=duration - 1)
    assert texts(partial, marking) == texts(partial, trained)
    ended = dataclasses.replace(partial, end=round(duration, 6))
    assert texts(ended, marking) != texts(ended, trained)
    in_context = video_ids(encode_video_images(videos[2], vlm, partial), vlm, QUESTION, answer=True)
    assert "Last frame" not in vlm.tokenizer.decode(in_context.tolist(), skip_special_tokens=False)


def test_windows_shrink_if_they_do_not_fit(videos, vlm, monkeypatch):
    encoded = encode_video_images(videos[2], vlm, Reading(frames=12, fps=2.0, resolution=128))
    windows = cut_windows(encoded, vlm, TrainedWith(prompt="Watch.", window_frames=12))
    assert sum(window.frames for window in windows) == 12
    assert len(windows) > 1
    assert max(len(window.input_ids) for window in windows) <= vlm.max_positions
    monkeypatch.setattr(vlm, "max_positions", 100)
    with pytest.raises(v2l.V2LError, match="one frame takes"):
        cut_windows(encoded, vlm, TrainedWith(prompt="Watch.", window_frames=12))


def test_the_prefetcher_produces_the_next_item_while_one_is_in_use():
    made = [threading.Event() for _ in range(4)]

    def items():
        for place, event in enumerate(made):
            event.set()
            yield torch.tensor(place)

    for place, item in enumerate(Prefetcher(items())):
        assert int(item) == place
        if place + 1 < len(made):
            assert made[place + 1].wait(timeout=60)  # before it is requested

    def broken():
        yield torch.tensor(0)
        raise v2l.V2LError("no second")

    with pytest.raises(v2l.V2LError, match="no second"):
        list(Prefetcher(broken()))


def test_defaults_come_from_the_hypernetwork_then_the_model(vlm):
    trained = TrainedWith(frames=5, fps=2.0, resolution=None)
    assert fill_reading(Reading(), trained, vlm.geometry) == Reading(frames=5, fps=2.0, resolution=32)
    assert fill_reading(Reading(frames=9), TrainedWith(resolution=48), vlm.geometry) == Reading(9, 1.0, resolution=48)
