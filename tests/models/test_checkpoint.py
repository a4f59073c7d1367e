"""Hypernetwork files: a published pickle and v2l's safetensors load as the same network; other files are refused."""

import json
import random
import shutil
import zipfile

import pytest
import small
import torch
from places import DATA
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import v2l
from v2l.models.checkpoint import PUBLISHED_TRAINING, save_hypernetwork, with_provenance
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import INTERNALIZATION_PROMPT, HypernetworkConfig, TrainedWith
from v2l.tiny.recipe.model import SIGNIFICANT_BITS
from v2l.tiny.recipe.release import save_half

OFFICIAL = DATA / "official-a" / "hypernet.pt"


def same(one: Hypernetwork, other: Hypernetwork) -> bool:
    states = one.state_dict(), other.state_dict()
    return (
        one.config == other.config
        and one.provenance == other.provenance
        and list(states[0]) == list(states[1])
        and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    )


def test_an_import_is_the_same_network(tmp_path):
    output = tmp_path / "hypernetwork.safetensors"
    imported = v2l.import_checkpoint(OFFICIAL, output)
    published, own = v2l.load_hypernetwork(OFFICIAL), v2l.load_hypernetwork(output)
    assert same(imported, published)
    assert same(own, published)
    assert v2l.load_hypernetwork(tmp_path).provenance == own.provenance
    first = output.read_bytes()
    v2l.import_checkpoint(OFFICIAL, output)
    assert output.read_bytes() == first


def test_settings_of_a_published_checkpoint():
    hypernetwork = v2l.load_hypernetwork(OFFICIAL)
    assert hypernetwork.config == HypernetworkConfig(
        num_layers=3, hidden_size=48, intermediate_size=96, rank=4, lora_alpha=16.0, latent_size=32, num_blocks=3
    )
    trained_with = hypernetwork.provenance.trained_with
    assert trained_with == TrainedWith()
    assert (trained_with.frames, trained_with.fps, trained_with.window_frames) == (12, 1.0, 12)
    assert trained_with.prompt == INTERNALIZATION_PROMPT == "Internalize this video for later captioning."
    assert {training.resolution for training in PUBLISHED_TRAINING.values()} == {384}


def test_own_files_round_trip(model_folder, tmp_path):
    settings = TrainedWith(frames=24, fps=2.0, resolution=64, prompt="Watch.", window_frames=6, windows=8, segments=8)
    hypernetwork = small.small_hypernetwork(model_folder, trained_with=settings)
    save_hypernetwork(hypernetwork, tmp_path / "h.safetensors")
    again = v2l.load_hypernetwork(tmp_path / "h.safetensors")
    assert same(again, hypernetwork)
    assert again.provenance.trained_with == settings


@pytest.mark.parametrize(
    "later", [{}, {"marks_end": True}, {"index_questions": ("which words?", "which shape?")}], ids=str
)
def test_settings_added_later_are_written_only_if_they_differ_from_the_default(model_folder, tmp_path, later):
    """Files written before these fields existed keep their bytes and sha256."""
    hypernetwork = small.small_hypernetwork(model_folder, trained_with=TrainedWith(**later))
    save_hypernetwork(hypernetwork, tmp_path / "h.safetensors")
    again = v2l.load_hypernetwork(tmp_path / "h.safetensors")
    assert same(again, hypernetwork) and again.provenance == hypernetwork.provenance
    with safe_open(tmp_path / "h.safetensors", "pt") as file:
        told = json.loads(file.metadata()["v2l"])["trained_with"]
    assert told.keys() == vars(TrainedWith()).keys() - ({"marks_end", "index_questions"} - later.keys())


def test_a_hypernetwork_must_say_where_it_comes_from(tmp_path, videos, vlm):
    hypernetwork = Hypernetwork(HypernetworkConfig(3, 48, 96, rank=2, latent_size=16, num_blocks=1))
    with pytest.raises(v2l.V2LError, match="no provenance"):
        save_hypernetwork(hypernetwork, tmp_path / "h.safetensors")
    with pytest.raises(v2l.V2LError, match="has no provenance"):
        v2l.encode(videos[0], vlm, hypernetwork)
    named = with_provenance(hypernetwork, "mine", "small", None, TrainedWith())
    assert len(named.provenance.sha256) == 64


def test_every_truncation_and_flipped_bits_are_refused(model_folder, tmp_path):
    path = tmp_path / "h.safetensors"
    save_hypernetwork(small.small_hypernetwork(model_folder, latent_size=8, num_blocks=1), path)
    data = path.read_bytes()
    random.seed(0)
    for _ in range(30):
        path.write_bytes(data[: random.randrange(len(data))])
        with pytest.raises(v2l.V2LError, match="not a sound v2l hypernetwork"):
            v2l.load_hypernetwork(path)
    for place in [*range(0, 2000, 23), *random.sample(range(len(data)), 60)]:
        changed = bytearray(data)
        changed[place] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(v2l.V2LError, match="not a sound v2l hypernetwork"):
            v2l.load_hypernetwork(path)


def test_damaged_published_checkpoints_write_nothing(tmp_path):
    copy, output = tmp_path / "copy.pt", tmp_path / "out.safetensors"
    data = OFFICIAL.read_bytes()
    for damaged in (data[:-1000], data[: len(data) // 2], data[:100_000] + b"\xff" + data[100_001:], b"", b"\x80\x02."):
        copy.write_bytes(damaged)
        with pytest.raises(v2l.V2LError):
            v2l.import_checkpoint(copy, output)
        assert not output.exists()


def test_a_pickle_that_would_run_a_command_is_named_and_not_run(tmp_path):
    canary = tmp_path / "ran"
    pickle = (
        b"\x80\x02cos\nsystem\nX"
        + len(f"touch {canary}").to_bytes(4, "little")
        + f"touch {canary}".encode()
        + b"\x85R."
    )
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", pickle)
    with pytest.raises(v2l.V2LError, match=r"os\.system"):
        v2l.import_checkpoint(tmp_path / "evil.pt", tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pt"]


def test_what_is_not_a_hypernetwork(tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    shutil.copy(model_folder / "model.safetensors", tmp_path)
    save_file(load_file(model_folder / "hypernetwork.safetensors"), tmp_path / "bare.safetensors")
    for source, message in {
        tmp_path / "empty": "has no hypernetwork",
        tmp_path / "model.safetensors": "not a sound v2l hypernetwork",
        tmp_path / "bare.safetensors": "metadata",
        tmp_path / "notes.txt": "is not a hypernetwork",
        tmp_path / "missing.pt": "cannot read",
        "smolvlm2-2.2b": "v2l pull smolvlm2-2.2b gets it",
    }.items():
        with pytest.raises(v2l.V2LError, match=message):
            v2l.load_hypernetwork(source)
    with pytest.raises(v2l.V2LError, match=r"must end in \.safetensors"):
        v2l.import_checkpoint(OFFICIAL, tmp_path / "out.bin")


def test_a_hypernetwork_for_another_model_is_refused(videos, vlm, tmp_path):
    other = small.write_model(tmp_path / "other", seed=3)
    with pytest.raises(v2l.V2LError, match="trained for other and does not fit small"):
        v2l.encode(videos[0], vlm, small.small_hypernetwork(other))
    larger = small.write_model(tmp_path / "larger", config=small.small_config(num_hidden_layers=2))
    with pytest.raises(v2l.V2LError, match="trained for larger"):
        v2l.encode(videos[0], vlm, small.small_hypernetwork(larger))


def test_half_precision_is_read_as_float32(hypernetwork, tmp_path):
    path = tmp_path / "half.safetensors"
    save_half(hypernetwork, path)
    whole = tmp_path / "whole.safetensors"
    save_hypernetwork(hypernetwork, whole)
    assert path.stat().st_size < 0.6 * whole.stat().st_size
    read = v2l.load_hypernetwork(path, device="cpu")
    assert read.provenance.sha256 != hypernetwork.provenance.sha256
    assert read.provenance.trained_with == hypernetwork.provenance.trained_with
    for name, tensor in read.state_dict().items():
        assert tensor.dtype == torch.float32
        own = hypernetwork.state_dict()[name]
        if own.ndim < 2:
            assert torch.equal(tensor, own.half().float())
        else:  # the same to five significant bits, and nothing else in the other bits
            assert torch.allclose(tensor, own, rtol=2.0**-SIGNIFICANT_BITS, atol=1e-7)
            mantissa, _ = torch.frexp(tensor[tensor.abs() > 2.0**-14])  # below, float16 itself has fewer
            assert torch.equal(mantissa * 2**SIGNIFICANT_BITS, (mantissa * 2**SIGNIFICANT_BITS).round())
