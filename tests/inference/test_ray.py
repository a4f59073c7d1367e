"""`v2l encode` as a stage of Ray Data: the same files, a row for every outcome, and the documented job."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
from places import ROOT
from terminal import SUFFIX, fill, surroundings, tree

import v2l
from v2l.adapters.timeline_description import Segmentation
from v2l.inference.batch import EncodeOptions
from v2l.inference.ray import Encode, rows
from v2l.video.sampling import Reading

LOCAL = (
    "import ray, runpy; ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False); "
    "runpy.run_path('job.py', run_name='__main__')"
)
DOCUMENTED = ROOT / "docs" / "scale.md"


def batch(**columns):
    return {name: np.array(values, dtype=object) for name, values in columns.items()}


def table(made):
    return [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]


@pytest.fixture(scope="module")
def encode(model_folder):
    return Encode(str(model_folder))


def test_a_batch_gives_what_the_command_gives(encode, tmp_path, videos, vlm, hypernetwork):
    fill(tmp_path, a=videos[0], b=videos[1])
    here, there = str(tmp_path / "a.mp4"), str(tmp_path / "out" / f"b{SUFFIX}")
    (first,) = table(encode(batch(video=[here])))
    assert first == {"video": here, "adapter": str(tmp_path / f"a{SUFFIX}"), "status": "encoded", "message": ""}
    made = table(encode(batch(video=[here, str(tmp_path / "b.mp4")], adapter=[first["adapter"], there])))
    assert [(row["status"], row["adapter"]) for row in made] == [("current", first["adapter"]), ("encoded", there)]
    for row in made:
        assert v2l.Adapter.load(row["adapter"]).sha256() == v2l.encode(row["video"], vlm, hypernetwork).sha256()
    fill(tmp_path, a=videos[2])
    (again,) = table(encode(batch(video=[here])))
    assert (again["status"], again["message"]) == ("encoded", "the video's content changed")


def test_any_row_is_an_outcome_and_no_exception(encode, tmp_path, videos):
    fill(tmp_path, good=videos[0])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "no videos").mkdir()
    bad = {
        str(tmp_path / "empty.mp4"): "is empty",
        str(tmp_path / "gone.mp4"): "No such file",
        str(tmp_path / "no videos"): "holds no videos",
        "http://example.org/a.mp4": "is an address",
        "x" * 5000: "File name too long",
        "null\0byte.mp4": "null byte",
        "": "names no video",
        None: "names no video",
        7.5: "No such file",
    }
    made = table(encode(batch(video=[*bad, str(tmp_path / "good.mp4")])))
    assert [row["status"] for row in made] == ["failed"] * len(bad) + ["encoded"]
    for row, says in zip(made, bad.values(), strict=False):
        assert says in row["message"] and row["message"].isprintable() and row["adapter"] == ""
    (row,) = table(encode(batch(video=[str(tmp_path / "good.mp4")], adapter=[str(tmp_path / "good.bin")])))
    assert row["status"] == "failed" and SUFFIX in row["message"]


def test_options_are_those_of_the_command(model_folder, tmp_path, videos):
    fill(tmp_path, a=videos[0])
    encode = Encode(str(model_folder), EncodeOptions(Reading(frames=8), Segmentation(segments=2)))
    made = table(encode(batch(video=[str(tmp_path / "a.mp4")])))
    assert [row["status"] for row in made] == ["encoded"]
    assert tree(tmp_path) == ["a.mp4", f"a{SUFFIX}"]


def test_a_missing_model_is_an_error_before_any_video():
    with pytest.raises(v2l.V2LError, match="nosuch"):
        Encode("nosuch")


def test_rows_are_absolute_and_collisions_are_refused_before_anything_runs(tmp_path, videos, monkeypatch):
    fill(tmp_path / "in" / "deep", a=videos[0])
    monkeypatch.chdir(tmp_path)
    (row,) = rows(["in"], "out", recursive=True)
    assert row == {"video": str(tmp_path / "in/deep/a.mp4"), "adapter": str(tmp_path / f"out/deep/a{SUFFIX}")}
    (row,) = rows(["in/deep/a.mp4"], reading=Reading(start=1.0))
    assert row["adapter"] == str(tmp_path / f"in/deep/a.1-end{SUFFIX}")
    (tmp_path / "in/deep/a.mkv").write_bytes(videos[1].read_bytes())
    made = [row["adapter"] for row in rows(["in"], "out", recursive=True)]
    assert made == [str(tmp_path / f"out/deep/a{end}{SUFFIX}") for end in ("", ".mp4")]
    (tmp_path / "in/deep/a.mp4.mkv").touch()
    with pytest.raises(v2l.V2LError, match="would both write"):
        rows(["in"], "out", recursive=True)
    (tmp_path / "in/deep/a.mp4.mkv").unlink()
    with pytest.raises(v2l.V2LError, match="holds no videos"):
        rows(["in"])
    os.rename("in/deep/a.mkv", os.fsdecode(b"in/deep/\xff.mp4"))
    assert [name.encode() and name for name in rows(["in/deep"])[1].values()] == [
        str(tmp_path / f"in/deep/\\udcff{end}") for end in (".mp4", SUFFIX)
    ]


def test_the_old_module_still_works_with_a_warning():
    sys.modules.pop("v2l.integrations.ray", None)
    with pytest.warns(DeprecationWarning, match="v2l.inference.ray"):
        module = importlib.import_module("v2l.integrations.ray")
    assert (module.Encode, module.rows) == (Encode, rows)


@pytest.mark.slow  # and 300 MB of packages: pip install -c .ci/constraints.txt -e '.[test,ray]'
def test_the_documented_job_on_a_local_ray_of_two_workers(tmp_path):
    pytest.importorskip("ray")
    (script,) = re.findall(r"^```python\n(.*?)^```", DOCUMENTED.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "in").mkdir()
    for number in range(8):
        small.write_video(tmp_path / "in" / f"{number}.mp4", frames=16, seed=number)
    (tmp_path / "in" / "3.mp4").write_bytes(b"")
    (tmp_path / "job.py").write_text(script)
    (tmp_path / "ray_bootstrap_config.yaml").write_text("{}")  # without it Ray asks the network which cloud this is
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    source = os.pathsep.join([str(Path(v2l.__file__).parents[1]), surroundings()["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-c", LOCAL, "tiny", "in", "out", "2"],
        cwd=tmp_path,
        env=surroundings(PYTHONPATH=source, HOME=str(tmp_path), **loopback),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "7 encoded, 1 failed\n"), done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "3.mp4" in line)
    assert "is empty (0 bytes)" in line
    assert tree(tmp_path / "out") == [f"{number}{SUFFIX}" for number in range(8) if number != 3]
    found = rows([tmp_path / "in"], tmp_path / "out")
    again = table(Encode("tiny")(batch(**{name: [row[name] for row in found] for name in found[0]})))
    assert [row["status"] for row in again] == ["current"] * 3 + ["failed"] + ["current"] * 4
