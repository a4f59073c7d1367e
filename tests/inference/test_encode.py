"""Encode a video file into an adapter, with small models of the real classes."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import small
import torch
from places import CLIPS, DATA

import v2l
from v2l.inference.encode import group_bytes, layers_at_once
from v2l.inference.preprocess import cut_windows, encode_video_images
from v2l.models.hypernetwork_file import HypernetworkConfig, TrainedWith
from v2l.video.sampling import Reading


def segment(adapter: v2l.Adapter):
    (only,) = adapter.description.segments
    return only


def test_an_adapter_describes_its_source(videos, vlm, hypernetwork, adapters):
    description = adapters[0].description
    assert description.base_model.fingerprint == vlm.fingerprint
    assert description.hypernetwork.sha256 == hypernetwork.provenance.sha256
    assert [(block.rank, block.segments) for block in description.blocks] == [(4, 1)]
    assert description.bias_rank == 4
    only = segment(adapters[0])
    assert (only.source.name, only.source.size) == ("clip 0.mp4", videos[0].stat().st_size)
    assert (only.start, only.end, only.timestamps) == (0.0, 4.0, (0.0, 1.25, 2.5, 3.875))
    assert (only.width, only.height, only.windows) == (64, 48, (4,))
    assert only.reading == Reading(frames=8, fps=1.0, resolution=32)


def test_factors_are_those_of_the_hypernetwork_on_the_hidden_states(videos, vlm, hypernetwork, adapters):
    encoded = encode_video_images(videos[0], vlm, Reading(frames=8, fps=1.0, resolution=32))
    (window,) = cut_windows(encoded, vlm, TrainedWith(window_frames=4))
    with torch.no_grad():
        layers = [torch.cat(list(pieces), dim=1) for pieces in vlm.read_layers([window])]
        factors = hypernetwork.generate(torch.stack(layers, dim=1))
    for layer, (a, b) in enumerate(factors):
        for kept, factor in ((adapters[0].a[layer], a[0]), (adapters[0].b[layer], b[0])):
            assert kept.dtype == torch.bfloat16
            assert torch.allclose(kept.float(), factor, rtol=2**-8, atol=1e-6)


def test_groups_of_layers_fit_their_memory():
    config = HypernetworkConfig(num_layers=32, hidden_size=960, intermediate_size=2560)

    def together(tokens, budget, dtype=torch.float32):
        return layers_at_once(config, tokens, budget, dtype)

    each = 1000 * (2 * 512 * 4 + 16 * 8 * 20)
    assert [together(1000, each * share) for share in (0, 1, 5, 100)] == [1, 1, 5, 32]
    assert together(1000, 5 * each - 1) == 4 and together(1000, 5 * each, torch.bfloat16) > 5
    assert together(923, group_bytes(torch.device("cpu"))) == 5


def test_different_videos_give_different_adapters(adapters):
    assert not torch.allclose(adapters[0].a[:, :4], adapters[1].a[:, :4], atol=1e-4)
    assert torch.equal(adapters[0].a[:, 4:], adapters[1].a[:, 4:])


ENCODE = """
import sys, v2l
vlm, hypernetwork = v2l.load_vlm(sys.argv[1]), v2l.load_hypernetwork(sys.argv[1])
for video in sys.argv[3:]:
    v2l.encode(video, vlm, hypernetwork).save(sys.argv[2] + "/" + video.rpartition("/")[2] + ".v2l.safetensors")
"""


def test_same_input_same_bytes(videos, model_folder, tmp_path):
    """Two processes with different hash seeds; one encodes the video alone, the other among videos in another order."""
    for number, names in enumerate(([1], [2, 1, 0])):
        (tmp_path / str(number)).mkdir()
        arguments = [str(model_folder), str(tmp_path / str(number)), *(str(videos[n]) for n in names)]
        environment = {**os.environ, "PYTHONHASHSEED": str(number + 1)}
        subprocess.run([sys.executable, "-c", ENCODE, *arguments], check=True, env=environment)
    one, other = (tmp_path / number / "clip 1.mp4.v2l.safetensors" for number in "01")
    assert one.read_bytes() == other.read_bytes()


def test_frames_rate_range_and_resolution(videos, vlm, hypernetwork):
    few = segment(v2l.encode(videos[1], vlm, hypernetwork, frames=2))
    assert len(few.timestamps) == 2
    many = segment(v2l.encode(videos[1], vlm, hypernetwork, frames=100, fps=4))
    assert len(many.timestamps) == 24
    part = segment(v2l.encode(videos[1], vlm, hypernetwork, start=2, end=4, fps=2))
    assert (part.start, part.end) == (2.0, 4.0)
    assert part.timestamps == (2.0, 2.625, 3.25, 3.875)
    tiled = v2l.encode(videos[1], vlm, hypernetwork, resolution=64)
    assert segment(tiled).reading.resolution == 64
    assert not torch.allclose(tiled.a, v2l.encode(videos[1], vlm, hypernetwork).a)


def test_one_window_while_the_prompt_fits_then_windows(videos, vlm, model_folder):
    """With 1,024 positions, 16 frames are one prompt and 63 frames are windows of 4, each a complete prompt."""
    hypernetwork = small.small_hypernetwork(model_folder, trained_with=TrainedWith(frames=64, window_frames=4))
    published = v2l.encode(videos[2], vlm, hypernetwork, frames=16, fps=8)
    assert segment(published).windows == (16,)
    assert published.description.not_validated == []
    long = v2l.encode(videos[2], vlm, hypernetwork, frames=63, fps=8)
    assert segment(long).windows == (4,) * 15 + (3,)
    assert long.description.not_validated == ["read in 16 windows, trained on 1: not validated"]


def test_an_adapter_of_the_last_segment_knows_that_it_is_the_last(videos, vlm, model_folder):
    plain, marking = (
        small.small_hypernetwork(model_folder, trained_with=TrainedWith(frames=4, marks_end=marks))
        for marks in (False, True)
    )
    for readings, same in (({"end": 2.0}, True), ({"start": 2.0}, False), ({}, False)):
        one, other = (v2l.encode(videos[0], vlm, each, **readings) for each in (plain, marking))
        assert torch.equal(one.b, other.b) == same


def test_a_resolution_no_prompt_could_hold_is_refused_before_decoding(videos, vlm, hypernetwork):
    with pytest.raises(v2l.V2LError, match="image tokens and the model has 1,024 positions"):
        v2l.encode(videos[0], vlm, hypernetwork, resolution=10**6)
    with pytest.raises(v2l.V2LError, match="6 x 7 tiles and the model has no token"):
        v2l.encode(videos[0], vlm, hypernetwork, resolution=224)


def test_a_hypernetwork_that_only_fits_by_size_is_one_warning(videos, vlm, hypernetwork, monkeypatch):
    strange = dataclasses.replace(hypernetwork.provenance, base_model="someone/other", base_fingerprint=None)
    monkeypatch.setattr(hypernetwork, "provenance", strange)
    with pytest.warns(v2l.V2LWarning, match=r"trained for someone/other .* is named small"):
        v2l.encode(videos[0], vlm, hypernetwork)


@pytest.mark.parametrize("frames", [True, 1.5, "3"])
def test_frames_are_counted_in_whole_numbers(videos, vlm, hypernetwork, frames):
    with pytest.raises(v2l.V2LError, match="whole number"):
        v2l.encode(videos[0], vlm, hypernetwork, frames=frames)


def test_numpy_numbers_are_numbers(videos, vlm, hypernetwork, tmp_path):
    adapter = v2l.encode(videos[0], vlm, hypernetwork, frames=np.int64(3), fps=np.float32(2))
    adapter.save(tmp_path / "a.v2l.safetensors")
    assert v2l.Adapter.load(tmp_path / "a.v2l.safetensors").description == adapter.description


@pytest.mark.parametrize("setting", [{"frames": 0}, {"fps": 0}, {"fps": -1.0}, {"resolution": 0}, {"frames": -3}])
def test_settings_must_be_above_zero(videos, vlm, hypernetwork, setting):
    with pytest.raises(v2l.V2LError, match=f"{next(iter(setting))} is .*above 0"):
        v2l.encode(videos[0], vlm, hypernetwork, **setting)


def test_a_video_that_changes_while_it_is_read_is_refused(videos, vlm, hypernetwork, tmp_path):
    path = tmp_path / "growing.mp4"
    path.write_bytes(videos[0].read_bytes())
    generate = hypernetwork.generate

    def append_and_generate(*inputs, **options):
        with open(path, "ab") as file:
            file.write(b"more")
        return generate(*inputs, **options)

    hypernetwork.generate = append_and_generate
    try:
        with pytest.raises(v2l.V2LError, match="changed while it was being read"):
            v2l.encode(path, vlm, hypernetwork)
    finally:
        del hypernetwork.generate


def test_files_that_are_not_videos_are_one_line_errors(tmp_path, vlm, hypernetwork):
    (tmp_path / "notes.mp4").write_text("not a video")
    for path in (tmp_path / "missing.mp4", tmp_path / "notes.mp4", tmp_path):
        with pytest.raises(v2l.V2LError) as caught:
            v2l.encode(path, vlm, hypernetwork)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Tarsier_20.mp4", "v_00014063_0.mp4", "v_00016555_0.mp4"])
def test_real_clips(name, vlm, hypernetwork, tmp_path):
    if not (CLIPS / name).is_file():
        pytest.skip("needs the real clips")
    adapter = v2l.encode(CLIPS / name, vlm, hypernetwork)
    adapter.save(tmp_path / "a.v2l.safetensors")
    assert torch.equal(v2l.Adapter.load(tmp_path / "a.v2l.safetensors").a, adapter.a)
    assert 5 < len(segment(adapter).timestamps) <= 8


def test_public_names():
    for name in v2l._MODULES:
        assert getattr(v2l, name).__name__ == name
    assert v2l.load_hypernetwork(DATA / "official-a" / "hypernet.pt").config.rank == 4
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = v2l.nothing
