"""The measurements for a GPU, run on the CPU at small sizes: they need one for their figures, not to be right."""

import math

import gpu
import pytest
import torch


@pytest.fixture
def one_thread():
    """Small operations take longer to share than to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_section_runs_on_the_cpu(tmp_path, one_thread):
    found = dict(gpu.measure("cpu", quick=True, seconds=math.inf, folder=tmp_path, output=tmp_path / "sweep.jsonl"))
    assert list(found) == ["small, decoding", "small, encoding, 4 frames", "small, sweep"]
    decoding, encoding, sweep = found.values()
    assert decoding.pop("tokens that graphs choose otherwise") == 0
    assert all(value > 0 for value in decoding.values()) and len(decoding) == 18
    differences = [value for name, value in encoding.items() if "difference" in name]
    assert len(differences) == 4 and max(differences) < 1e-2
    assert sweep.keys() >= {"4 frames, 32 px, in context, cold", "4 frames, 32 px, adapter, attached"}
    assert all(isinstance(value, float) for value in sweep.values())
    assert (tmp_path / "sweep.jsonl").stat().st_size


def test_sections_after_the_time_are_left_out(tmp_path, one_thread):
    sections = [name for name, _ in gpu.measure("cpu", quick=True, seconds=0, folder=tmp_path, output=None)]
    assert sections == ["small, decoding"]
