"""When a video counts as changed since its adapter was made: whatever its dates say, its content decides."""

import os
import time

import pytest
import small

import v2l
from v2l.adapters.segments import compose
from v2l.inference.model_loader import ModelLoader
from v2l.inference.preprocess import fill_reading, segment_readings
from v2l.inference.staleness import Wanted, judge
from v2l.video.sampling import Reading

DAY = 86_400


@pytest.fixture(scope="module")
def choice(model_folder):
    return ModelLoader(str(model_folder), "option", device="cpu")


class Desk:
    """A video, its adapter, and what `v2l encode` thinks of the two."""

    def __init__(self, folder, choice, vlm, hypernetwork):
        self.video, self.output = folder / "talk.mp4", folder / "talk.v2l.safetensors"
        self.choice, self.maker = choice, (vlm, hypernetwork)
        self.clip = small.write_video(folder / "clip.mp4", frames=8).read_bytes()
        self.write(self.video, b"before!!")
        self.dates = self.video.stat().st_mtime - DAY, self.video.stat().st_mtime - DAY
        os.utime(self.video, self.dates)

    def write(self, path, content):
        """The clip with something in it that no player looks at: other bytes, same size, same pictures."""
        path.write_bytes(self.clip + b"\0\0\0\x10free" + content)

    def encode(self):
        return v2l.encode(self.video, *self.maker)

    def saved(self, **dated):
        """The adapter, with that date, or one that is later than the video and earlier than all that happens next."""
        self.encode().save(self.output)
        os.utime(self.output, **dated)
        assert self.judged().state == "current"
        clock = self.video.with_name("clock")
        clock.touch()
        while clock.stat().st_ctime_ns <= self.output.stat().st_mtime_ns <= time.time_ns():  # file times come in ticks
            clock.touch()

    def judged(self, **how):
        reading = fill_reading(Reading(), self.choice.provenance.trained_with, self.choice.folder.geometry)
        return judge(self.output, Wanted(self.video, reading, self.choice.fingerprint, self.choice.provenance), **how)

    def is_noticed(self):
        verdict = self.judged()
        return (verdict.state, verdict.reason) == ("stale", "the video's content changed")


@pytest.fixture
def desk(tmp_path, choice, vlm, hypernetwork):
    return Desk(tmp_path, choice, vlm, hypernetwork)


def test_a_video_that_nothing_happened_to_is_current_at_a_glance(desk):
    desk.saved()
    before = desk.output.stat().st_mtime_ns
    assert desk.judged().state == "current"
    assert desk.output.stat().st_mtime_ns == before  # not touched, because not hashed


def test_other_content_of_one_size_with_an_old_date_is_noticed(desk):
    """As after `cp -p other.mp4 talk.mp4`."""
    desk.saved()
    desk.write(desk.video, b"after!!!")
    os.utime(desk.video, desk.dates)
    assert desk.is_noticed()


def test_another_file_moved_over_the_video_is_noticed(desk):
    other = desk.video.with_name("other.mp4")
    desk.write(other, b"after!!!")
    os.utime(other, desk.dates)
    desk.saved()
    os.replace(other, desk.video)
    assert desk.is_noticed()


def test_a_link_that_leads_to_another_video_is_noticed(desk):
    real, other = desk.video.with_name("real.mp4"), desk.video.with_name("other.mp4")
    os.replace(desk.video, real)
    desk.video.symlink_to(real)
    desk.write(other, b"after!!!")
    desk.saved()
    desk.video.unlink()
    desk.video.symlink_to(other)
    assert desk.is_noticed()


def test_an_adapter_dated_in_the_future_hides_no_change(desk):
    """As one that was written while the clock was wrong."""
    future = time.time() + DAY
    desk.saved(times=(future, future))
    assert desk.output.stat().st_mtime <= time.time()  # dated anew
    os.utime(desk.output, (future, future))
    desk.write(desk.video, b"after!!!")
    assert desk.is_noticed()


def test_a_video_dated_in_the_future_hides_no_change(desk):
    future = time.time() + DAY
    os.utime(desk.video, (future, future))
    desk.saved()
    desk.write(desk.video, b"after!!!")
    os.utime(desk.video, (future, future))
    assert desk.is_noticed()


def test_a_change_between_the_last_check_of_the_video_and_the_write_of_its_adapter_is_noticed(desk):
    adapter = desk.encode()
    desk.write(desk.video, b"after!!!")
    os.utime(desk.video, desk.dates)
    adapter.save(desk.output)
    assert desk.is_noticed()


def test_such_a_change_is_noticed_of_composed_segments_too(desk):
    frames, parts = Reading(frames=2), []
    for place, reading in enumerate(segment_readings(desk.video, frames, 2)):
        part = v2l.encode(desk.video, *desk.maker, frames=2, start=reading.start, end=reading.end)
        part.save(desk.output.with_name(f"{place}.v2l.safetensors"))
        parts.append(v2l.Adapter.load(desk.output.with_name(f"{place}.v2l.safetensors")))
    desk.write(desk.video, b"after!!!")
    os.utime(desk.video, desk.dates)
    compose(parts).save(desk.output)
    assert desk.judged(any_reading=True).state == "stale"


def test_a_change_within_the_tick_of_the_last_check_is_noticed(desk):
    """Even where the file system rounds its times down to two seconds, as FAT does."""
    before = time.time_ns()
    adapter = desk.encode()
    adapter.save(desk.output)
    assert desk.output.stat().st_mtime_ns <= time.time_ns() - 2 * 10**9
    assert desk.output.stat().st_mtime_ns >= before - 2 * 10**9
    assert desk.judged().state == "current"
