"""Batches through the library: segments, composition, and what is left alone."""

import dataclasses
import itertools
import threading

import pytest
import small

import v2l
from v2l.inference import batch
from v2l.inference.batch import EncodeOptions, encode_targets
from v2l.inference.encode import start_encode
from v2l.inference.model_loader import ModelLoader
from v2l.inference.preprocess import cut, fill_reading
from v2l.inference.staleness import Wanted, judge
from v2l.inference.targets import Target
from v2l.video.sampling import Reading


@pytest.fixture(scope="module")
def choice(model_folder):
    return ModelLoader(str(model_folder), "option", device="cpu")


@pytest.fixture
def target(tmp_path):
    return Target(small.write_video(tmp_path / "a.mp4", frames=40), tmp_path / "a.v2l.safetensors")


def made(target, choice, **options):
    chosen = EncodeOptions(options.pop("reading", Reading()), **options)
    return [(outcome.target.output.name, outcome.status) for outcome in _outcomes(target, choice, chosen)]


def _outcomes(target, choice, options):
    return list(encode_targets([target], options, choice, lambda *_: None))


def test_segments_follow_one_another_and_compose(target, choice):
    names = [f"a.00{n}.v2l.safetensors" for n in range(2)]
    encoded = [(names[0], "encoded"), (names[1], "encoded"), ("a.v2l.safetensors", "composed")]
    assert made(target, choice, segments=2, compose=True) == encoded
    whole = v2l.Adapter.load(target.output).description
    assert [(segment.start, segment.end) for segment in whole.segments] == [(0.0, 2.5), (2.5, 5.0)]
    assert made(target, choice, segments=2, compose=True) == [(name, "current") for name, _ in encoded]


@pytest.mark.parametrize("seconds", [1.0, 1.65, 2.45, 4.95, 4.9999, 5.0, 7.0, 0.1])
def test_no_stretch_is_without_a_frame(target, seconds):
    readings = cut(target.video, Reading(), None, seconds)
    assert readings[0].start == 0.0
    assert readings[-1].end == 5.0
    assert all(one.end == two.start for one, two in itertools.pairwise(readings))
    last_frame = 39 / 8
    assert all(reading.start < reading.end and reading.start <= last_frame for reading in readings)


def test_too_many_segments_to_compose_are_refused_after_the_first(target, choice):
    small.write_video(target.video, frames=160)
    outcomes = _outcomes(target, choice, EncodeOptions(Reading(), segments=128, compose=True))
    assert [outcome.status for outcome in outcomes] == ["encoded", "failed"]
    assert "rank 516" in outcomes[1].note


def test_composing_leaves_another_models_adapter_alone(target, choice, tmp_path):
    other = small.write_model(tmp_path / "other", seed=4)
    small.write_hypernetwork(other)
    made(target, ModelLoader(str(other), "option", device="cpu"))
    before = target.output.read_bytes()
    *_, last = _outcomes(target, choice, EncodeOptions(Reading(), segments=2, compose=True))
    assert (last.status, target.output.read_bytes()) == ("kept", before)
    *_, last = _outcomes(target, choice, EncodeOptions(Reading(), segments=2, compose=True, replace_foreign=True))
    assert (last.status, last.note) == ("composed", "it held something else")


def test_a_start_at_zero_is_the_beginning(target, choice):
    assert made(target, choice, reading=Reading(start=0.0, end=4.0)) == [("a.v2l.safetensors", "encoded")]
    assert made(target, choice, reading=Reading(end=4.0)) == [("a.v2l.safetensors", "current")]


def test_any_reading_will_do_where_nothing_was_said(target, choice):
    made(target, choice, segments=2, compose=True)
    assert made(target, choice, any_reading=True) == [("a.v2l.safetensors", "current")]
    small.write_video(target.video, frames=48, seed=3)
    assert made(target, choice, any_reading=True) == [("a.v2l.safetensors", "encoded")]


def test_one_videos_trouble_is_its_own(target, choice, monkeypatch):
    def trouble(*_):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(choice.vlm, "see", trouble)
    (outcome,) = _outcomes(target, choice, EncodeOptions(Reading()))
    assert (outcome.status, outcome.note) == ("failed", "RuntimeError: out of")
    assert not target.output.exists()


def test_the_next_video_is_begun_while_one_is_in_the_model(tmp_path, choice, monkeypatch):
    videos = [small.write_video(tmp_path / f"{n}.mp4", frames=8 * n, seed=n) for n in (1, 2, 3)]
    begun = {video: threading.Event() for video in videos}

    def seen(path, *rest):
        begun[path].set()
        return start_encode(path, *rest)

    monkeypatch.setattr(batch, "start_encode", seen)

    def watch(target, done, total):
        place = videos.index(target.video)
        assert all(begun[video].wait(timeout=10) for video in videos[: place + 2])
        assert not any(begun[video].is_set() for video in videos[place + 2 :])

    targets = [Target(video, video.with_suffix(".v2l.safetensors")) for video in videos]
    found = list(encode_targets(targets, EncodeOptions(Reading()), choice, watch))
    assert [outcome.status for outcome in found] == ["encoded"] * 3
    vlm, hypernetwork = choice.load()
    for video, outcome in zip(videos, found, strict=True):
        assert outcome.adapter.sha256() == v2l.encode(video, vlm, hypernetwork).sha256()


def test_a_model_that_cannot_be_loaded_ends_the_batch(target, tmp_path):
    broken = small.write_model(tmp_path / "broken")
    small.write_hypernetwork(broken)
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(v2l.V2LError, match=r"tokenizer\.json"):
        _outcomes(target, ModelLoader(str(broken), "option", device="cpu"), EncodeOptions(Reading()))


def test_the_verdict_names_what_changed(target, choice):
    made(target, choice)
    reading = fill_reading(Reading(), choice.provenance.trained_with, choice.folder.geometry)
    wanted = Wanted(target.video, reading, choice.fingerprint, choice.provenance)
    assert judge(target.output, wanted).state == "current"
    changed = dataclasses.replace(wanted, reading=dataclasses.replace(reading, frames=3))
    assert judge(target.output, changed).reason == "frames was 8 and is 3"
    another = dataclasses.replace(wanted, provenance=dataclasses.replace(choice.provenance, sha256="0" * 64))
    assert judge(target.output, another).reason == "it was made by another hypernetwork"
    target.output.write_bytes(b"damaged")
    assert judge(target.output, wanted).state == "stale"
