"""`v2l pull` with the real client against a hub on this machine: what arrives is proven, recorded and tried."""

import json
import os
import re
import resource

import pytest
import small
from conftest import DATA
from hub import Hub, Repo
from terminal import SUFFIX, run

from v2l.models import PRESETS

MODEL, (PUBLISHED, OLDER, OLDEST) = PRESETS["smolvlm2-500m"].model, PRESETS["smolvlm2-500m"].hypernetworks
HYPERNETWORK = PRESETS["smolvlm2-500m"].file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model whose images take as many tokens as the preset's."""
    config = small.small_config()
    config.vision_config.image_size, config.scale_factor = 64, 1
    folder = small.write_model(tmp_path_factory.mktemp("hub") / "model", config=config)
    (folder / "LICENSE").write_text("free")
    (folder / "README.md").write_text("not needed")
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    return folder


@pytest.fixture
def hub(folder):
    hypernetwork = Repo({HYPERNETWORK: (DATA / "official-a" / "hypernet.pt").read_bytes()}, "b" * 40, licence="mit")
    with Hub({MODEL: Repo.of(folder), PUBLISHED: hypernetwork}).running() as hub:
        yield hub


@pytest.fixture
def pull(hub, tmp_path):
    def command(*words, **changes):
        where = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", **changes}
        return run("pull", "smolvlm2-500m", *words, env=where, cwd=tmp_path)

    return command


def lock(tmp_path):
    return json.loads((tmp_path / "home" / "v2l.lock.json").read_text())


def downloads(hub):
    return [path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]


def test_a_preset_is_fetched_proven_recorded_and_used(hub, pull, tmp_path):
    done = pull()
    assert done.code == 0, done.err
    assert done.lines == [
        f"{MODEL}  aaaaaaaaaaaa, {re.search(r'aaa, (.*), licence', done.out)[1]}, licence apache-2.0",
        f"{PUBLISHED}  bbbbbbbbbbbb, {re.search(r'bbb, (.*), licence', done.out)[1]}, licence mit",
    ]
    assert "it is the default now" in done.err
    # no pickle of the model's, no README
    wanted = {name for name in hub.repos[MODEL].files if name.endswith((".json", ".safetensors")) or name == "LICENSE"}
    assert set(downloads(hub)) == {*wanted, HYPERNETWORK}
    kept = lock(tmp_path)
    assert kept["default"] == "smolvlm2-500m" and kept["repos"][MODEL]["commit"] == "a" * 40
    assert kept["repos"][MODEL]["files"].keys() == wanted

    # offline from here on, and nothing else to name
    small.write_video(tmp_path / "clip.mp4")
    home = {"HF_HOME": str(tmp_path / "home")}
    encoded = run("encode", "clip.mp4", "--json", cwd=tmp_path, env=home)
    assert encoded.records[0]["model"] == MODEL and encoded.records[0]["model_chosen_by"] == "default"
    asked = run("ask", f"clip{SUFFIX}", "what?", "--max-new-tokens", "3", "--json", cwd=tmp_path, env=home)
    assert asked.records[0]["model"] == MODEL

    hub.requests.clear()
    assert pull("--json").records[0]["commit"] == "a" * 40
    assert downloads(hub) == []


def test_a_broken_connection_is_taken_up_again(hub, pull):
    hub.repos[MODEL].files["more.safetensors"] = bytes(24 * 2**20)
    hub.cut = {"model.safetensors", "more.safetensors", HYPERNETWORK}
    for _ in range(3):
        done = pull()
        if done.code == 0:
            break
        assert done.code == 1 and "what has arrived is kept" in done.err
    assert done.code == 0
    begins = [rest for method, path, rest in hub.requests if method == "GET" and path.endswith("more.safetensors")]
    assert begins == [None, "bytes=12582912-"]


def test_a_moved_branch_does_not_move_what_is_pinned(hub, pull, tmp_path):
    pull()
    repo = hub.repos[MODEL]
    older = repo.files
    repo.commit, repo.files = "c" * 40, older | {"LICENSE": b"other"}
    moved = pull()
    assert moved.code == 1 and "no such revision" in moved.err  # this hub forgets; the real one gives the old commit
    assert pull("--revision", "main").code == 0
    assert lock(tmp_path)["repos"][MODEL]["commit"] == "c" * 40
    repo.files = older  # the same commit, and other files
    first, again = pull(), pull()  # what is there contradicts the hub, then what came contradicts the record
    assert first.code == 1 and "it was thrown away, pull again" in first.err
    assert again.code == 1 and "another file of the same commit than was recorded" in again.err


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_what_the_hub_states_is_thrown_away(hub, pull, tmp_path, name):
    data = hub.repos[MODEL].files[name]
    hub.served[name] = data[:-2] + b"!!"
    done = pull()
    assert done.code == 1 and f"{name} has the hash" in done.err and "it was thrown away" in done.err
    assert not (tmp_path / "home" / "v2l.lock.json").exists()
    hub.served.clear()
    assert pull().code == 0


def test_older_names_of_the_hypernetwork_are_tried(hub, pull, tmp_path):
    repo = hub.repos.pop(PUBLISHED)
    data = repo.files.popitem()[1]
    repo.files = {"video2lora-500m.pt": data, "video2lora-500m.trainer.pt": b"", "video2lora-2.2b.pt": b""}
    hub.repos[OLDEST] = repo
    done = pull()
    assert done.code == 0, done.err
    assert done.err.count("trying an older name") == 2
    assert list(lock(tmp_path)["repos"][OLDEST]["files"]) == ["video2lora-500m.pt"]
    small.write_video(tmp_path / "clip.mp4")
    assert run("encode", "clip.mp4", cwd=tmp_path, env={"HF_HOME": str(tmp_path / "home")}).code == 0


def test_what_cannot_be_fetched_is_one_line(hub, pull, tmp_path):
    refused = {
        "HF_HUB_OFFLINE is set": pull(HF_HUB_OFFLINE="1"),
        "cannot fetch from http://127.0.0.1:9": pull(HF_ENDPOINT="http://127.0.0.1:9"),
        "has no such revision": pull("--revision", "v9"),
    }
    del hub.repos[MODEL].files["model.safetensors"]
    refused["has no .safetensors at aaaaaaaaaaaa"] = pull()
    hub.repos.pop(PUBLISHED)
    hub.repos[MODEL].files["model.safetensors"] = b"x"
    refused["none of the names of its hypernetwork is there"] = pull()
    del hub.repos[MODEL]
    refused[f"the hub has no {MODEL}"] = pull()
    for says, done in refused.items():
        assert done.code == 1 and says in done.err
        assert sum(line.startswith("v2l: error:") for line in done.notes) == 1
    assert not (tmp_path / "home" / "v2l.lock.json").exists()
    assert run("pull", "smolvlm9").code == 2


def test_a_model_that_is_not_the_one_expected_fails_its_test(hub, pull, tmp_path, folder):
    other = small.write_model(tmp_path / "other")  # 4 tokens an image
    hub.repos[MODEL] = Repo.of(other)
    done = pull()
    assert done.code == 1 and "turns an image into 4 tokens and 64 were expected" in done.err
    assert not (tmp_path / "home" / "v2l.lock.json").exists() or lock(tmp_path)["repos"] == {}


def test_a_full_disk_is_one_line(hub, tmp_path):
    """A limit on the size of files stands in for the disk: the same refusal in the middle of a write."""
    where = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run("pull", "smolvlm2-500m", env=where, prepare=small_files_only)
    assert done.code == 1 and sum(line.startswith("v2l: error:") for line in done.notes) == 1
    assert run("pull", "smolvlm2-500m", env=where).code == 0
    assert os.path.exists(tmp_path / "home" / "v2l.lock.json")
