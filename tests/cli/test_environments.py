"""The command in a faulty environment; tests/stress/environments.py has more."""

import os

import pytest
from terminal import Running, fill


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_a_full_standard_error_ends_no_encode(tmp_path, videos, model_folder):
    """As with `2>log` on a full disk: notes are lost, the adapter and the exit code are not."""
    folder = fill(tmp_path / "here", talk=videos[0])
    with open("/dev/full", "wb") as full:
        onto_full = {"prepare": lambda: os.dup2(full.fileno(), 2), "cwd": folder, "model": model_folder}
        done = Running("encode", "talk.mp4", **onto_full).end()
    assert (done.code, done.lines) == (0, ["talk.v2l.safetensors"])
    assert (folder / "talk.v2l.safetensors").stat().st_size > 0
