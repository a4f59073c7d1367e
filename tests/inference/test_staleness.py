"""A video counts as changed since its adapter was made if its content differs, whatever its dates are."""

import dataclasses
import os
import time

import pytest
import small
import torch

import v2l
from v2l.adapters.segments import compose
from v2l.inference.model_loader import ModelLoader
from v2l.inference.readings import fill_reading, segment_readings
from v2l.inference.staleness import Wanted, check_staleness
from v2l.video.client import probe
from v2l.video.sampling import Reading

DAY = 86_400


@pytest.fixture(scope="module")
def loader(model_folder):
    return ModelLoader(str(model_folder), "option", device="cpu")


class Workspace:
    """A video, its adapter, and their comparison by `v2l encode`."""

    def __init__(self, folder, loader, vlm, hypernetwork):
        self.video, self.output = folder / "talk.mp4", folder / "talk.v2l.safetensors"
        self.loader, self.models = loader, (vlm, hypernetwork)
        self.clip = small.write_video(folder / "clip.mp4", frames=8).read_bytes()
        self.write(self.video, b"before!!")
        self.dates = self.video.stat().st_mtime - DAY, self.video.stat().st_mtime - DAY
        os.utime(self.video, self.dates)

    def write(self, path, content):
        """Write the clip with `content` in a box that players ignore: other bytes, same size, same pictures."""
        path.write_bytes(self.clip + b"\0\0\0\x10free" + content)

    def encode(self):
        return v2l.encode(self.video, *self.models)

    def save(self, **dated):
        """Save the adapter with the given times, or with one after the video's and before everything that follows."""
        self.encode().save(self.output)
        os.utime(self.output, **dated)
        assert self.compare().state == "current"
        clock = self.video.with_name("clock")
        clock.touch()
        while clock.stat().st_ctime_ns <= self.output.stat().st_mtime_ns <= time.time_ns():  # coarse clock
            clock.touch()

    def compare(self, **how):
        reading = fill_reading(Reading(), self.loader.provenance.trained_with, self.loader.folder.geometry)
        return check_staleness(
            self.output, Wanted(self.video, reading, self.loader.fingerprint, self.loader.provenance), **how
        )

    def is_stale(self):
        found = self.compare()
        return (found.state, found.reason) == ("stale", "the video's content changed")


@pytest.fixture
def workspace(tmp_path, loader, vlm, hypernetwork):
    return Workspace(tmp_path, loader, vlm, hypernetwork)


def test_an_untouched_video_is_current_without_hashing(workspace):
    workspace.save()
    before = workspace.output.stat().st_mtime_ns
    assert workspace.compare().state == "current"
    assert workspace.output.stat().st_mtime_ns == before  # not touched, so not hashed


def test_the_number_type_alone_makes_nothing_stale(workspace):
    made = workspace.encode()
    assert made.a.dtype == torch.bfloat16
    dataclasses.replace(made, a=made.a.float(), b=made.b.float()).save(workspace.output)
    assert workspace.compare().state == "current"


def test_other_content_of_one_size_with_an_old_date_is_noticed(workspace):
    """For example after `cp -p other.mp4 talk.mp4`."""
    workspace.save()
    workspace.write(workspace.video, b"after!!!")
    os.utime(workspace.video, workspace.dates)
    assert workspace.is_stale()


def test_another_file_moved_over_the_video_is_noticed(workspace):
    other = workspace.video.with_name("other.mp4")
    workspace.write(other, b"after!!!")
    os.utime(other, workspace.dates)
    workspace.save()
    os.replace(other, workspace.video)
    assert workspace.is_stale()


def test_a_link_that_leads_to_another_video_is_noticed(workspace):
    real, other = workspace.video.with_name("real.mp4"), workspace.video.with_name("other.mp4")
    os.replace(workspace.video, real)
    workspace.video.symlink_to(real)
    workspace.write(other, b"after!!!")
    workspace.save()
    workspace.video.unlink()
    workspace.video.symlink_to(other)
    assert workspace.is_stale()


def test_a_change_behind_a_link_is_noticed_in_spite_of_its_date(workspace):
    real = workspace.video.with_name("real.mp4")
    os.replace(workspace.video, real)
    workspace.video.symlink_to(real)
    workspace.save()
    workspace.write(real, b"after!!!")
    os.utime(real, workspace.dates)
    assert workspace.is_stale()


def test_an_adapter_dated_in_the_future_hides_no_change(workspace):
    """For example one that was written while the clock was wrong."""
    future = time.time() + DAY
    workspace.save(times=(future, future))
    assert workspace.output.stat().st_mtime <= time.time()  # given a new date
    os.utime(workspace.output, (future, future))
    workspace.write(workspace.video, b"after!!!")
    assert workspace.is_stale()


def test_a_video_dated_in_the_future_hides_no_change(workspace):
    future = time.time() + DAY
    os.utime(workspace.video, (future, future))
    workspace.save()
    workspace.write(workspace.video, b"after!!!")
    os.utime(workspace.video, (future, future))
    assert workspace.is_stale()


def test_a_change_between_the_last_check_of_the_video_and_the_write_of_its_adapter_is_noticed(workspace):
    adapter = workspace.encode()
    workspace.write(workspace.video, b"after!!!")
    os.utime(workspace.video, workspace.dates)
    adapter.save(workspace.output)
    assert workspace.is_stale()


def test_such_a_change_is_noticed_in_composed_segments_too(workspace):
    frames, parts = Reading(frames=2), []
    for place, reading in enumerate(segment_readings(probe(workspace.video), frames, 2)):
        part = v2l.encode(workspace.video, *workspace.models, frames=2, start=reading.start, end=reading.end)
        part.save(workspace.output.with_name(f"{place}.v2l.safetensors"))
        parts.append(v2l.Adapter.load(workspace.output.with_name(f"{place}.v2l.safetensors")))
    workspace.write(workspace.video, b"after!!!")
    os.utime(workspace.video, workspace.dates)
    compose(parts).save(workspace.output)
    assert workspace.compare(any_reading=True).state == "stale"


def test_a_change_within_the_tick_of_the_last_check_is_noticed(workspace):
    """Even if the file system rounds its times down to two seconds, as FAT does."""
    before = time.time_ns()
    adapter = workspace.encode()
    adapter.save(workspace.output)
    assert workspace.output.stat().st_mtime_ns <= time.time_ns() - 2 * 10**9
    assert workspace.output.stat().st_mtime_ns >= before - 2 * 10**9
    assert workspace.compare().state == "current"
