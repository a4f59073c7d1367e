"""The paths of adapters where several videos could have the same one."""

import dataclasses
import itertools
import os
from pathlib import Path

import pytest

from v2l.inference.targets import Destination, find_targets
from v2l.video.sampling import Reading

SUFFIX = ".v2l.safetensors"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


@pytest.fixture
def record(adapters):
    """A function that writes an adapter of a video, with its name and size."""

    def write(path, video, size=None):
        (segment,) = adapters[0].description.segments
        source = dataclasses.replace(segment.source, name=os.path.basename(video), size=size or os.stat(video).st_size)
        segments = (dataclasses.replace(segment, source=source),)
        description = dataclasses.replace(adapters[0].description, segments=segments)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        dataclasses.replace(adapters[0], description=description).save(path)

    return write


def names(*inputs, folder=None, reading=Reading()):  # noqa: B008  # frozen
    """Return the adapters by video, the same in every order of the inputs; errors for those that have none."""
    found = []
    for order in itertools.permutations(inputs):
        targets = find_targets([Path(each) for each in order], Destination(folder=folder), reading, recursive=True)
        found.append({str(each.video): each.error or str(each.output).removesuffix(SUFFIX) for each in targets})
    assert all(each == found[0] for each in found)
    return found[0]


def test_the_first_in_the_folder_has_the_plain_name_whichever_is_given(here):
    put("a.mp4", "a.avi", "b.mp4", "x/a.mp4")
    assert names(".") == {"a.avi": "a", "a.mp4": "a.mp4", "b.mp4": "b", "x/a.mp4": "x/a"}
    assert names("a.avi", "a.mp4") == {"a.avi": "a", "a.mp4": "a.mp4"}
    assert names("a.mp4") == {"a.mp4": "a.mp4"} and names("a.avi") == {"a.avi": "a"}
    assert names("a.mp4", reading=Reading(start=1.0)) == {"a.mp4": "a.mp4.1-end"}


def test_an_adapter_stays_that_of_its_video(here, record):
    put("a.mp4", "a.avi")
    record(f"a{SUFFIX}", "a.mp4")
    assert names("a.avi", "a.mp4") == {"a.avi": "a.avi", "a.mp4": "a"}
    assert names("a.avi") == {"a.avi": "a.avi"}
    record(f"a.avi{SUFFIX}", "a.avi")
    Path("a.mp4").unlink()
    assert names("a.avi") == {"a.avi": "a.avi"}


def test_an_adapter_that_was_renamed_with_its_video_is_known_by_the_size(here, record):
    put("first name.mp4", "a.avi")
    record(f"a{SUFFIX}", "first name.mp4")
    os.rename("first name.mp4", "a.mp4")
    assert names("a.avi", "a.mp4") == {"a.avi": "a.avi", "a.mp4": "a"}


def test_a_file_of_another_suffix_leaves_the_plain_name_to_the_video(here):
    put("a.dat", "a.mp4", "a.avi/readme")
    assert names("a.dat", "a.mp4") == {"a.dat": "a.dat", "a.mp4": "a"}
    assert names("a.dat") == {"a.dat": "a.dat"}


def test_a_full_name_that_is_the_plain_name_of_another_is_refused_alone(here):
    put("a.avi", "a.mp4", "a.mp4.mov")
    found = names(".")
    assert (found["a.avi"], found["a.mp4.mov"]) == ("a", "a.mp4")
    assert "a.mp4 and a.mp4.mov would both write" in found["a.mp4"] and found["a.mp4"].endswith("with -o")
    assert names("a.mp4") == {"a.mp4": found["a.mp4"]}


def test_a_folder_of_adapters_keeps_the_folders_below_what_is_common(here):
    put("in/x/a.mp4", "in/x/a.avi", "in/y/a.mp4")
    out = {"in/x/a.avi": "out/x/a", "in/x/a.mp4": "out/x/a.mp4", "in/y/a.mp4": "out/y/a"}
    assert names("in", folder=Path("out")) == out
    assert names(*out, folder=Path("out")) == out
    assert names("in/x", "in/y/a.mp4", folder=Path("out")) == out
    assert names("in/x/a.mp4", folder=Path("out")) == {"in/x/a.mp4": "out/a.mp4"}


def test_a_later_run_with_other_inputs_finds_what_an_earlier_one_wrote(here, record):
    put("in/x/a.mp4", "in/x/a.avi", "in/why/a.mp4", "in/a.mp4")
    record(f"out/x/a{SUFFIX}", "in/x/a.avi")
    record(f"out/x/a.mp4{SUFFIX}", "in/x/a.mp4", size=1)  # the video has changed
    assert names("in/x/a.avi", folder=Path("out")) == {"in/x/a.avi": "out/x/a"}
    assert names("in/x", folder=Path("out")) == {"in/x/a.avi": "out/x/a", "in/x/a.mp4": "out/x/a.mp4"}
    record(f"out/a{SUFFIX}", "in/why/a.mp4")  # by a run with this video alone
    assert names("in/x", "in/why", folder=Path("out"))["in/why/a.mp4"] == "out/a"
    assert names("in", folder=Path("out")) == {  # the place of another video
        "in/a.mp4": "out/a",
        "in/x/a.avi": "out/x/a",
        "in/x/a.mp4": "out/x/a.mp4",
        "in/why/a.mp4": "out/why/a",
    }


def test_a_video_given_twice_is_one_target(here):
    put("a.mp4")
    assert len(find_targets([Path("a.mp4"), here / "a.mp4", Path()], Destination(), Reading())) == 1
