"""Batches through the library: segments, composition, and adapters that are kept."""

import dataclasses
import itertools
import math
import os
import sys
import threading
from pathlib import Path

import pytest
import small
import torch
from terminal import PATIENCE, fill

import v2l
from v2l.adapters.timeline import Timeline
from v2l.adapters.timeline_description import Segmentation
from v2l.inference.batch import EncodeOptions, Watch, encode_targets
from v2l.inference.model_loader import ModelLoader
from v2l.inference.preview import preview_targets
from v2l.inference.readings import cut, fill_reading
from v2l.inference.staleness import Wanted, check_staleness
from v2l.inference.targets import Destination, Target, find_targets
from v2l.io.files import try_lock
from v2l.video.client import probe
from v2l.video.sampling import Reading


@pytest.fixture(scope="module")
def loader(model_folder):
    return ModelLoader(str(model_folder), "option", device="cpu")


@pytest.fixture
def target(tmp_path):
    return Target(small.write_video(tmp_path / "a.mp4", frames=40), tmp_path / "a.v2l.safetensors")


def statuses(target, loader, **options):
    chosen = EncodeOptions(options.pop("reading", Reading()), **options)
    return [(outcome.target.output.name, outcome.status) for outcome in _outcomes(target, loader, chosen)]


def _outcomes(target, loader, options):
    return list(encode_targets([target], options, loader, Watch()))


TWO = Segmentation(segments=2)


def test_segments_are_one_file_or_with_split_one_each(target, loader):
    assert statuses(target, loader, segmentation=TWO) == [("a.v2l.safetensors", "encoded")]
    whole = Timeline.load(target.output)
    assert [(part.start, part.end) for part in whole.description.segments] == [(0.0, 2.5), (2.5, 5.0)]
    assert statuses(target, loader, segmentation=TWO) == [("a.v2l.safetensors", "current")]
    names = [f"a.00{n}.v2l.safetensors" for n in range(2)]
    assert statuses(target, loader, segmentation=TWO, split=True) == [(name, "encoded") for name in names]
    assert statuses(target, loader, segmentation=TWO, split=True) == [(name, "current") for name in names]
    for number, name in enumerate(names):
        part = v2l.Adapter.load(target.output.with_name(name))
        assert torch.equal(part.a, whole.select([number]).a)
        assert part.description == whole.select([number]).description


def test_parts_of_an_interrupted_timeline_go_with_the_wish_for_it(target, loader):
    def interrupt(target, done, total):
        if done > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(encode_targets([target], EncodeOptions(Reading(), TWO), loader, Watch(interrupt)))
    (partial,) = target.output.parent.glob(".*")
    assert partial.name == ".a.v2l.safetensors.partial"
    assert statuses(target, loader) == [("a.v2l.safetensors", "encoded")]
    assert not partial.exists()
    with pytest.raises(KeyboardInterrupt):
        list(encode_targets([target], EncodeOptions(Reading(), TWO, overwrite=True), loader, Watch(interrupt)))
    with open(partial / "lock") as lock:
        try_lock(lock.fileno())  # as another process that makes them
        assert statuses(target, loader) == [("a.v2l.safetensors", "current")] and partial.exists()
    assert statuses(target, loader) == [("a.v2l.safetensors", "current")]
    assert not partial.exists()


def test_other_segments_are_encoded_again(target, loader):
    for segmentation in (TWO, Segmentation(seconds=1.5), Segmentation(segments=1)):
        assert statuses(target, loader, segmentation=segmentation) == [("a.v2l.safetensors", "encoded")]
        assert statuses(target, loader, segmentation=segmentation) == [("a.v2l.safetensors", "current")]
    assert statuses(target, loader) == [("a.v2l.safetensors", "current")]  # a short video is one encoding anyway
    assert statuses(target, loader, segmentation=Segmentation(seconds=9.0)) == [("a.v2l.safetensors", "current")]


def test_one_encoding_of_a_long_video_is_kept_with_a_remark(target, loader):
    small.write_video(target.video, frames=160)
    assert statuses(target, loader, segmentation=Segmentation(segments=1)) == [("a.v2l.safetensors", "encoded")]
    (outcome,) = _outcomes(target, loader, EncodeOptions(Reading()))
    assert (outcome.status, outcome.note) == (
        "current",
        "it is one encoding of 0:20; --overwrite makes a timeline of it",
    )
    (outcome,) = _outcomes(target, loader, EncodeOptions(Reading(), overwrite=True))
    assert len(outcome.adapter.description.segments) == 3


@pytest.mark.parametrize("seconds", [1.0, 1.65, 2.45, 4.95, 4.9999, 5.0, 7.0, 0.13])
def test_every_segment_has_a_frame(target, seconds):
    readings = cut(probe(target.video), Reading(), None, seconds)
    assert readings[0].start == 0.0
    assert readings[-1].end == 5.0
    assert all(one.end == two.start for one, two in itertools.pairwise(readings))
    assert all(reading.start < reading.end for reading in readings)
    assert len(readings) in (max(1, int(5 / seconds)), math.ceil(5 / seconds))


def test_a_timeline_of_another_model_is_left_alone(target, loader, tmp_path):
    other = small.write_model(tmp_path / "other", seed=4)
    small.write_hypernetwork(other)
    statuses(target, ModelLoader(str(other), "option", device="cpu"), segmentation=TWO)
    before = target.output.read_bytes()
    (outcome,) = _outcomes(target, loader, EncodeOptions(Reading(), TWO))
    assert (outcome.status, target.output.read_bytes()) == ("kept", before)
    (outcome,) = _outcomes(target, loader, EncodeOptions(Reading(), TWO, replace_foreign=True))
    assert outcome.status == "encoded" and outcome.note.startswith("it was made for other")


def test_a_start_at_zero_is_the_beginning(target, loader):
    assert statuses(target, loader, reading=Reading(start=0.0, end=4.0)) == [("a.v2l.safetensors", "encoded")]
    assert statuses(target, loader, reading=Reading(end=4.0)) == [("a.v2l.safetensors", "current")]


def test_any_reading_accepts_segments_and_notices_other_content(target, loader):
    statuses(target, loader, segmentation=TWO)
    assert statuses(target, loader, any_reading=True) == [("a.v2l.safetensors", "current")]
    small.write_video(target.video, frames=48, seed=3)
    assert statuses(target, loader, any_reading=True) == [("a.v2l.safetensors", "encoded")]


def test_an_error_of_any_class_is_the_outcome_of_its_video(target, loader):
    def fail(*_):
        raise RuntimeError("out of\nmemory")

    handle = loader.vlm.vision.register_forward_pre_hook(fail)
    try:
        (outcome,) = _outcomes(target, loader, EncodeOptions(Reading()))
    finally:
        handle.remove()
    assert (outcome.status, outcome.note) == ("failed", "RuntimeError: out of")
    assert not target.output.exists()


class Opened:
    """Events that are set when a file is opened; `delay` then holds the opening thread."""

    def __init__(self, paths):
        self.events = {os.fspath(path): threading.Event() for path in paths}
        self.delayed, self.release = set(), threading.Event()
        sys.addaudithook(self._notice)

    def _notice(self, event, arguments):
        path = str(arguments[0]) if event == "open" else None
        if path in self.events:
            self.events[path].set()
            if path in self.delayed:
                self.release.wait(timeout=60)


def test_the_next_video_is_opened_while_one_is_in_the_model(tmp_path, loader):
    videos = [small.write_video(tmp_path / f"{n}.mp4", frames=8 * n, seed=n) for n in (1, 2, 3)]
    opened = list(Opened(videos).events.values())

    def watch(target, done, total):
        place = videos.index(target.video)
        assert all(event.wait(timeout=60) for event in opened[: place + 2])
        assert not any(event.is_set() for event in opened[place + 2 :])

    targets = [Target(video, video.with_suffix(".v2l.safetensors")) for video in videos]
    found = list(encode_targets(targets, EncodeOptions(Reading()), loader, Watch(watch)))
    assert [outcome.status for outcome in found] == ["encoded"] * 3
    vlm, hypernetwork = loader.load()
    for video, outcome in zip(videos, found, strict=True):
        assert outcome.adapter.sha256() == v2l.encode(video, vlm, hypernetwork).sha256()


def test_an_interrupt_does_not_wait_for_the_next_video(tmp_path, loader):
    videos = [small.write_video(tmp_path / f"{n}.mp4", frames=8, seed=n) for n in (1, 2)]
    opened = Opened(videos)
    opened.delayed = {str(videos[1])}

    def interrupt(target, done, total):
        assert opened.events[str(videos[1])].wait(timeout=60)
        raise KeyboardInterrupt

    targets = [Target(video, video.with_suffix(".v2l.safetensors")) for video in videos]
    before = set(threading.enumerate())
    try:
        with pytest.raises(KeyboardInterrupt):
            list(encode_targets(targets, EncodeOptions(Reading()), loader, Watch(interrupt)))
        workers = set(threading.enumerate()) - before
        assert workers  # still held at the second video
    finally:
        opened.release.set()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()


def test_a_model_that_cannot_be_loaded_ends_the_batch(target, tmp_path):
    broken = small.write_model(tmp_path / "broken")
    small.write_hypernetwork(broken)
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(v2l.V2LError, match=r"tokenizer\.json"):
        _outcomes(target, ModelLoader(str(broken), "option", device="cpu"), EncodeOptions(Reading()))


def test_the_verdict_names_what_changed(target, loader):
    statuses(target, loader)
    reading = fill_reading(Reading(), loader.provenance.trained_with, loader.folder.geometry)
    wanted = Wanted(target.video, reading, loader.fingerprint, loader.provenance)
    assert check_staleness(target.output, wanted).state == "current"
    changed = dataclasses.replace(wanted, reading=dataclasses.replace(reading, frames=3))
    assert check_staleness(target.output, changed).reason == "frames was 8 and is 3"
    another = dataclasses.replace(wanted, provenance=dataclasses.replace(loader.provenance, sha256="0" * 64))
    assert check_staleness(target.output, another).reason == "it was made by another hypernetwork"
    target.output.write_bytes(target.output.read_bytes()[:-1])
    assert check_staleness(target.output, wanted).state == "stale"
    target.output.write_text("the user's notes")
    with pytest.raises(v2l.V2LError, match="is there and is no adapter"):
        check_staleness(target.output, wanted)


def test_settings_that_nobody_chose_make_nothing_stale(target, loader):
    chosen = EncodeOptions(Reading(frames=3, fps=2.0))
    assert [each.status for each in _outcomes(target, loader, chosen)] == ["encoded"]
    (kept,) = _outcomes(target, loader, EncodeOptions(Reading(fps=2.0)))
    assert kept.status == "kept" and "(frames was 3 and is 8)" in kept.note
    assert [each.status for each in _outcomes(target, loader, EncodeOptions(Reading(fps=1.0)))] == ["encoded"]


# Other processes and the cache ---------------------------------------------------------------------------------------


def test_two_encodes_of_a_folder_at_once_do_the_work_once(tmp_path, videos, loader, model_folder):
    folder = fill(tmp_path, **dict.fromkeys("abc", videos[0]))
    targets = find_targets([folder], Destination(), Reading())
    is_waiting, outcomes = threading.Event(), []

    def encode_as_well():
        watch = Watch(waiting=lambda target: is_waiting.set())
        other = ModelLoader(str(model_folder), "option", device="cpu")
        outcomes.extend(encode_targets(targets, EncodeOptions(Reading()), other, watch))

    second = threading.Thread(target=encode_as_well)

    def step(*_):
        if second.ident is None:
            second.start()
            assert is_waiting.wait(PATIENCE)

    outcomes.extend(encode_targets(targets, EncodeOptions(Reading()), loader, Watch(step)))
    second.join()
    assert sorted((outcome.target.video.stem, outcome.status) for outcome in outcomes) == [
        (name, status) for name in "abc" for status in ("current", "encoded")
    ]
    assert len(list(tmp_path.iterdir())) == 6


def test_a_cached_adapter_is_found_by_the_content_of_its_video(tmp_path, videos, loader):
    fill(tmp_path / "here", talk=videos[0])
    fill(tmp_path / "there", other=videos[0])
    cache = tmp_path / "cache"

    def encode(video, destination, reading=Reading()):  # noqa: B008  # frozen
        targets, options = find_targets([video], destination, reading), EncodeOptions(reading)
        before = sorted(tmp_path.rglob("*"))
        (preview,) = preview_targets(targets, options, loader)
        assert sorted(tmp_path.rglob("*")) == before
        (outcome,) = encode_targets(targets, options, loader, Watch())
        assert preview.target.output == outcome.target.output
        assert preview.status == {"encoded": "missing"}.get(outcome.status, outcome.status)
        return outcome.status, outcome.target.output

    always, if_needed = Destination(cache=cache, prefers_cache=True), Destination(cache=cache)
    talk, other = tmp_path / "here" / "talk.mp4", tmp_path / "there" / "other.mp4"
    status, made = encode(talk, always)
    assert (status, made.name, made.parent.parent) == ("encoded", "talk.v2l.safetensors", cache)
    assert encode(other, always) == encode(other, if_needed) == ("current", made)
    status, part = encode(other, always, Reading(start=1.0))
    assert status == "encoded" and part != made
    assert encode(other, Destination()) == ("encoded", other.with_name("other.v2l.safetensors"))
    assert encode(other, always) == ("current", other.with_name("other.v2l.safetensors"))


def test_names_of_more_than_a_thousand_segments_sort_by_time():
    whole = Target(Path("talk.mp4"), Path("talk.v2l.safetensors"))
    for count in (2, 1000, 1001):
        names = [whole.segment(index, count).output.name for index in range(count)]
        assert names == sorted(names)
    assert names[1] == "talk.0001.v2l.safetensors" and whole.segment(1, 1000).output.name == "talk.001.v2l.safetensors"
