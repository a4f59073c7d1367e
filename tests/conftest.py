"""Fixtures shared by many tests, and two rules of the whole suite: no network, and no unexpected skip."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ["HF_HOME"] = tempfile.mkdtemp()  # whatever this machine's own cache holds
os.environ.setdefault("OFFLINE_LOG", os.path.join(tempfile.mkdtemp(), "reached"))
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the other cores are the other workers'
OFFLINE = str(Path(__file__).parent / "helpers" / "offline")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [OFFLINE, os.environ.get("PYTHONPATH")]))

import offline_guard  # noqa: F401  # from here on nothing reaches the network
import pytest
import small

import v2l
from v2l.io.manifest import Example, read_manifest
from v2l.tiny.world.dataset import varied, write_dataset

EXPECTED_SKIPS = ("needs the real clips", "llama-cpp-python is not installed", "could not import 'ray'")
"""Reasons for which a test may be skipped. Any other skip fails the run."""


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A small SmolVLM with random weights and a hypernetwork beside it."""
    folder = small.write_model(tmp_path_factory.mktemp("models") / "small")
    small.write_hypernetwork(folder)
    return folder


@pytest.fixture(scope="session")
def vlm(model_folder):
    return v2l.load_vlm(model_folder)


@pytest.fixture(scope="session")
def hypernetwork(model_folder):
    return v2l.load_hypernetwork(model_folder)


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> list[Path]:
    """Three different clips of 4, 6 and 8 seconds."""
    folder = tmp_path_factory.mktemp("videos")
    return [small.write_video(folder / f"clip {n}.mp4", frames=32 + 16 * n, seed=n) for n in range(3)]


@pytest.fixture(scope="session")
def world_examples(tmp_path_factory) -> list[Example]:
    """Six training clips of the embedded world and what is asked about them."""
    return read_manifest(write_dataset(tmp_path_factory.mktemp("world"), "train", 6, varied, "train-varied"))


@pytest.fixture(scope="session")
def adapters(videos, vlm, hypernetwork) -> list[v2l.Adapter]:
    return [v2l.encode(video, vlm, hypernetwork) for video in videos]


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return  # a worker, whose reports another process sums up
    reached = Path(os.environ["OFFLINE_LOG"])
    if reached.exists():
        reporter.write_line(f"something reached for the network:\n{reached.read_text()}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    for report in reporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(expected in reason for expected in EXPECTED_SKIPS):
            reporter.write_line(f"unexpected skip: {report.nodeid}: {reason}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
