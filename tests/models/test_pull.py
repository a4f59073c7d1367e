"""`v2l pull` with the real client against a local hub: files are verified, recorded and tested, and a hostile hub gains
nothing. `tests/stress/hubs.py` has more such hubs."""

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import json
import os
import pty
import re
import resource
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import small
from broken import BROKEN
from faults import Disk
from hub import LISTING, Hub, Repo, git_blob
from huggingface_hub import constants, hf_hub_download, scan_cache_dir, try_to_load_from_cache
from places import DATA
from terminal import PATIENCE, SUFFIX, Running, run
from typer.testing import CliRunner

import v2l.cli.models
import v2l.models.hub_cache
import v2l.models.pull
from v2l.cli.app import app
from v2l.cli.console import Display
from v2l.cli.models import pull_preset
from v2l.errors import V2LError
from v2l.inference.model_loader import ModelLoader, choose_model
from v2l.io.text import amount
from v2l.models.checkpoint import load_hypernetwork, save_hypernetwork
from v2l.models.hub import list_files
from v2l.models.hypernetwork_file import FILE_NAME, locate
from v2l.models.lock_file import lock_path, read_lock, write_lock
from v2l.models.presets import (
    EMBEDDED,
    PRESETS,
    cached_file,
    find_model,
    imported_hypernetwork,
    recorded_hypernetwork,
)
from v2l.models.pull import MODEL_FILES, PullOptions, PullWatch

MODEL, (PUBLISHED, OLDER, OLDEST) = PRESETS["smolvlm2-500m"].model, PRESETS["smolvlm2-500m"].hypernetworks
HYPERNETWORK = PRESETS["smolvlm2-500m"].file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with as many tokens per image as the preset."""
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
        return run("pull", "smolvlm2-500m", *words, "--no-proof", env=where, cwd=tmp_path)

    return command


@pytest.fixture
def fetch(hub, tmp_path, monkeypatch):
    """Return `pull` of the preset in this process."""
    home = tmp_path / "home"
    where = {"ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
    for name, value in {**where, "HF_HUB_OFFLINE": False, "HF_HUB_DOWNLOAD_TIMEOUT": 1}.items():
        monkeypatch.setattr(constants, name, value)
    return partial(v2l.models.pull.pull, "smolvlm2-500m")


@pytest.fixture
def fetch_both(hub, fetch, folder, monkeypatch):
    """Pull both presets in this process, from a hub whose larger model is the small one in another repository. The
    hypernetworks stand in one repository, as on the hub."""
    larger = PRESETS["smolvlm2-2.2b"]
    monkeypatch.setitem(PRESETS, "smolvlm2-2.2b", dataclasses.replace(larger, tokens_per_image=64))
    hub.repos[larger.model] = Repo.of(folder)
    hub.repos[PUBLISHED].files[larger.file] = hub.repos[PUBLISHED].files[HYPERNETWORK]
    return lambda: [v2l.models.pull.pull(name) for name in PRESETS]


@pytest.fixture
def victim(tmp_path):
    """A file of the user outside the cache."""
    path = tmp_path / "precious.txt"
    path.write_text("the user's")
    return path


@pytest.fixture
def embedded(hub, fetch, monkeypatch):
    """The embedded model in place of the preset's, with its hypernetwork as if it had been imported."""
    preset, trained = PRESETS["smolvlm2-500m"], load_hypernetwork("tiny", device="cpu")
    tokens = find_model("tiny").geometry.tokens_per_image
    monkeypatch.setitem(PRESETS, "smolvlm2-500m", dataclasses.replace(preset, tokens_per_image=tokens))
    hub.repos[MODEL] = Repo({path.name: path.read_bytes() for path in EMBEDDED.iterdir() if path.name != FILE_NAME})
    imported = imported_hypernetwork(hashlib.sha256(hub.repos[PUBLISHED].files[HYPERNETWORK]).hexdigest())
    imported.parent.mkdir(parents=True)
    save_hypernetwork(trained, imported)
    return imported, trained


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
    asked = {path for _, path, _ in hub.requests if "/resolve/" not in path}
    assert asked == {f"/api/models/{repo}/revision/main" for repo in (MODEL, PUBLISHED)}  # and nothing else at all
    assert sorted(os.listdir(tmp_path / "home")) == ["hub", "v2l", "v2l.lock.json"]
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


def test_a_download_is_proven_on_drawn_clips(embedded, tmp_path):
    imported, trained = embedded
    command = ["pull", "smolvlm2-500m", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "warning" not in done.stderr
    *repos, first, second = map(json.loads, done.stdout.splitlines())
    assert [record["repo"] for record in repos] == [MODEL, PUBLISHED]
    for proof in (first, second):
        assert proof["sound"] and proof["own"] > max(proof["other"], proof["bias"]) and proof["model"] == MODEL
    again = CliRunner().invoke(app, command)
    assert len(again.stdout.splitlines()) == 2  # nothing was downloaded

    # one that fails is told, and the preset stays
    shutil.rmtree(tmp_path / "home" / "hub")
    save_hypernetwork(BROKEN["silent"](trained, 0), imported)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "no more of it than the learned bias alone" in done.stderr
    assert done.stderr.splitlines()[-1].endswith(
        "prove it on a clip of yours: v2l verify --video CLIP --model smolvlm2-500m"
    )
    assert read_lock().default == "smolvlm2-500m" and find_model("smolvlm2-500m").fingerprint


def test_a_broken_connection_is_taken_up_again(hub, pull):
    hub.repos[MODEL].files["more.safetensors"] = bytes(24 * 2**20)
    hub.cut = {"model.safetensors", "more.safetensors", HYPERNETWORK}
    for _ in range(3):
        done = pull()
        if done.code == 0:
            break
        assert done.code == 1 and "completed parts are kept" in done.err
    assert done.code == 0
    begins = [rest for method, path, rest in hub.requests if method == "GET" and path.endswith("more.safetensors")]
    assert begins == [None, "bytes=12582912-"]


def test_a_moved_branch_does_not_move_what_is_pinned(hub, fetch, tmp_path):
    fetch()
    repo = hub.repos[MODEL]
    older = repo.files
    repo.commit, repo.files = "c" * 40, older | {"LICENSE": b"other"}
    with pytest.raises(V2LError, match="no such revision"):  # this hub forgets; the real one gives the old commit
        fetch()
    fetch(PullOptions("main"))
    assert lock(tmp_path)["repos"][MODEL]["commit"] == "c" * 40
    repo.files = older  # the same commit, and other files
    with pytest.raises(V2LError, match="it was discarded, pull again"):  # what is there contradicts the hub
        fetch()
    with pytest.raises(V2LError, match="differs from the file that was recorded for this commit"):
        fetch()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_what_the_hub_states_is_thrown_away(hub, fetch, tmp_path, name):
    data = hub.repos[MODEL].files[name]
    hub.served[name] = data[:-2] + b"!!"
    with pytest.raises(V2LError, match=f"{re.escape(name)} has the hash .* it was discarded"):
        fetch()
    assert not (tmp_path / "home" / "v2l.lock.json").exists()
    hub.served.clear()
    fetch()
    assert read_lock().default == "smolvlm2-500m"


def test_older_names_of_the_hypernetwork_are_tried(hub, fetch, tmp_path):
    repo = hub.repos.pop(PUBLISHED)
    data = repo.files.popitem()[1]
    repo.files = {"video2lora-500m.pt": data, "video2lora-500m.trainer.pt": b"", "video2lora-2.2b.pt": b""}
    hub.repos[OLDEST] = repo
    notes = []
    fetch(watch=PullWatch(notes.append))
    assert sum("trying a former name" in note for note in notes) == 2
    assert list(lock(tmp_path)["repos"][OLDEST]["files"]) == ["video2lora-500m.pt"]
    small.write_video(tmp_path / "clip.mp4")
    assert run("encode", "clip.mp4", cwd=tmp_path, env={"HF_HOME": str(tmp_path / "home")}).code == 0


def test_a_second_preset_leaves_the_first_one_recorded(hub, fetch_both):
    """One repository holds the hypernetworks of both."""
    fetch_both()
    for name, preset in PRESETS.items():
        assert recorded_hypernetwork(preset)[:2] == (PUBLISHED, preset.file) and locate(name).exists()
    hub.requests.clear()
    fetch_both()
    assert downloads(hub) == []
    # the repository under its former name, with former names of files
    repo = hub.repos[OLDER] = hub.repos.pop(PUBLISHED)
    repo.files = {f"video2lora-{preset.size}.pt": repo.files[preset.file] for preset in PRESETS.values()}
    os.unlink(lock_path())
    fetch_both()
    assert [recorded_hypernetwork(preset)[:2] for preset in PRESETS.values()] == [(OLDER, name) for name in repo.files]


def test_one_of_several_hypernetworks_is_taken(hub, fetch):
    """The current name wins over former ones, the best checkpoint over the others."""
    preset, former = PRESETS["smolvlm2-500m"], ["a-500m-last.pt", "b-500m-best-ce.pt", "c-2.2b-best-ce.pt"]
    assert preset.choose_hypernetwork(former) == "b-500m-best-ce.pt"
    assert preset.choose_hypernetwork(former[2:]) is None
    hub.repos[PUBLISHED].files |= dict.fromkeys(former, b"another")
    fetch()
    assert [*read_lock().repos[PUBLISHED].files] == [HYPERNETWORK]
    older = read_lock()  # earlier versions recorded all of them
    more = dataclasses.replace(older.repos[PUBLISHED], files=dict.fromkeys([*former, HYPERNETWORK], "0" * 64))
    write_lock(dataclasses.replace(older, repos=older.repos | {PUBLISHED: more}))
    assert locate("smolvlm2-500m").name == HYPERNETWORK


def test_a_hypernetwork_is_imported_once_and_stays_the_same(hub, fetch, tmp_path):
    published = cached_file(PRESETS["smolvlm2-500m"], PUBLISHED, HYPERNETWORK) if fetch() else None
    imported = locate("smolvlm2-500m")
    assert imported.parent == tmp_path / "home" / "v2l" / "hypernetworks"
    expected = load_hypernetwork(published).provenance
    assert load_hypernetwork("smolvlm2-500m").provenance == expected

    # what a command needs to know stands in the header
    held = published.resolve().rename(tmp_path / "held")
    assert ModelLoader("smolvlm2-500m", "option").provenance == expected
    held.rename(published.resolve())

    # a cache of an earlier version, a damaged import
    whole = imported.read_bytes()
    imported.unlink()
    assert locate("smolvlm2-500m") == published
    assert ModelLoader("smolvlm2-500m", "option").provenance == expected
    imported.write_bytes(whole[:-1] + b"!")
    with pytest.raises(V2LError, match="its content does not match its own sha256"):
        load_hypernetwork("smolvlm2-500m")
    fetch()
    assert imported.read_bytes() == whole


def test_the_size_is_told_and_confirmed_and_one_bar_shows_it(hub, fetch, monkeypatch, tmp_path):
    files = {name: data for name, data in hub.repos[MODEL].files.items() if MODEL_FILES.fullmatch(name)}
    half = len(files["model.safetensors"]) // 2
    blobs = tmp_path / "home" / "hub" / f"models--{MODEL.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{hashlib.sha256(files['model.safetensors']).hexdigest()}.incomplete"
    part.write_bytes(files["model.safetensors"][:half])
    sizes = [sum(map(len, files.values())) - half, len(hub.repos[PUBLISHED].files[HYPERNETWORK])]
    notes, asked, steps = [], [], []
    watch = PullWatch(notes.append, lambda size: asked.append(size), lambda *step: steps.append(step))
    with pytest.raises(V2LError, match="not confirmed, so nothing was downloaded; --yes downloads without asking"):
        fetch(watch=watch)
    assert asked == [sum(sizes)] and downloads(hub) == [] and not lock_path().exists()
    assert notes == [
        f"smolvlm2-500m: {amount(sum(sizes))} to download ({MODEL} {amount(sizes[0])}, {PUBLISHED} {amount(sizes[1])})"
    ]
    # no room: the import takes as much as the hypernetwork once more
    usage = shutil.disk_usage(tmp_path)
    for free in (sum(sizes) + sizes[1] - 1, sum(sizes) + sizes[1]):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        with pytest.raises(V2LError, match="free; make room" if free < sum(sizes) + sizes[1] else "not confirmed"):
            fetch(watch=watch)
    assert downloads(hub) == []
    agreed = dataclasses.replace(watch, confirm=lambda size: True)
    fetch(watch=agreed)
    done = [step[0] for step in steps]
    assert done == sorted(done) and done[-1] == sum(sizes) and {step[1] for step in steps} == {sum(sizes)}
    assert {step[2] for step in steps} == {*files, HYPERNETWORK}
    asked.clear()
    fetch(watch=watch)
    assert asked == []


def test_a_model_is_stored_in_half_precision_on_request(hub, fetch, folder, tmp_path):
    home = tmp_path / "home"
    cached = home / "hub" / f"models--{MODEL.replace('/', '--')}"
    expected, whole = find_model(folder).fingerprint, (folder / "model.safetensors").stat().st_size
    for _ in range(2):  # an interrupted download is continued
        with contextlib.suppress(V2LError):
            hub.lies["tokenizer.json"] = answer(b"", 404)
            fetch(PullOptions(dtype="bfloat16"))
    hub.lies.clear()
    fetch(PullOptions(dtype="bfloat16"))
    assert len(set(downloads(hub))) == len(downloads(hub)) - 2  # of tokenizer.json alone
    assert not cached.exists() and {*os.listdir(home / "v2l")} == {"hypernetworks", "models"}
    model = find_model("smolvlm2-500m")
    assert model.path.is_relative_to(home / "v2l") and (model.id, model.revision) == (MODEL, "a" * 40)
    assert model.fingerprint == expected
    assert whole * 0.4 < (model.path / "model.safetensors").stat().st_size < whole * 0.6

    # it stays so, and is made again if it is damaged
    hub.requests.clear()
    fetch()
    assert downloads(hub) == [] and find_model("smolvlm2-500m").path == model.path
    good = (model.path / "model.safetensors").read_bytes()
    (model.path / "model.safetensors").write_bytes(good[:-1] + b"!")
    fetch()
    assert (model.path / "model.safetensors").read_bytes() == good and "model.safetensors" in downloads(hub)
    stated = hub.repos[MODEL].files["model.safetensors"]
    hub.repos[MODEL].files["model.safetensors"] = stated[:-1] + b"!"
    with pytest.raises(V2LError, match=r"model\.safetensors differs from the file that was recorded for this commit"):
        fetch()
    hub.repos[MODEL].files["model.safetensors"] = stated

    # as published again, and from there without a download; the cache keeps what others may use
    fetch(PullOptions(dtype="float32"))
    assert find_model("smolvlm2-500m").path.is_relative_to(cached) and not model.path.exists()
    assert "copy" not in lock(tmp_path)["repos"][MODEL]
    hub.requests.clear()
    fetch(PullOptions(dtype="float16"))
    assert downloads(hub) == [] and cached.exists() and find_model("smolvlm2-500m").fingerprint == expected
    shutil.rmtree(find_model("smolvlm2-500m").path)
    with pytest.raises(
        V2LError, match=f"where v2l pull stored {MODEL}, is missing; v2l pull smolvlm2-500m gets it again"
    ):
        find_model("smolvlm2-500m")


@pytest.mark.parametrize(("typed", "agrees"), [("n\n", False), ("\4", False), ("\n", True), ("Yes\n", True)])
def test_a_terminal_is_asked_before_a_large_download(hub, fetch, monkeypatch, typed, agrees):
    monkeypatch.setattr(v2l.cli.models, "ASKED_ABOVE", 10)
    keyboard, terminal = pty.openpty()
    os.write(keyboard, typed.encode())
    with open(terminal) as keys, open(os.dup(terminal), "w") as screen:
        monkeypatch.setattr(sys, "stdin", keys)
        monkeypatch.setattr(sys, "stderr", screen)
        display = Display(quiet=True)
        if agrees:
            pull_preset("smolvlm2-500m", PullOptions(), False, display)
        else:
            with pytest.raises(V2LError, match="not confirmed"):
                pull_preset("smolvlm2-500m", PullOptions(), False, display)
            pull_preset("smolvlm2-500m", PullOptions(), True, display)  # --yes
        with open(os.devnull) as nothing:  # a script is never asked
            monkeypatch.setattr(sys, "stdin", nothing)
            assert display.confirm("download?")
        assert os.read(keyboard, 10_000).count(b"? [Y/n] ") == 1
    os.close(keyboard)
    assert downloads(hub)


def test_what_cannot_be_fetched_is_one_line(hub, pull, fetch, monkeypatch, tmp_path):
    done = pull(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.code == 1 and sum(line.startswith("v2l: error:") for line in done.notes) == 1
    assert "cannot fetch from http://127.0.0.1:9" in done.err

    def refused(says, **options):
        with pytest.raises(V2LError, match=re.escape(says)) as caught:
            fetch(PullOptions(**options))
        assert "\n" not in str(caught.value)

    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        refused("HF_HUB_OFFLINE is set")
    refused("has no such revision", revision="v9")
    del hub.repos[MODEL].files["model.safetensors"]
    refused("has no .safetensors at aaaaaaaaaaaa")
    hub.repos.pop(PUBLISHED)
    hub.repos[MODEL].files["model.safetensors"] = b"x"
    refused("the hub has the hypernetwork under none of its names")
    del hub.repos[MODEL]
    refused(f"the hub does not have {MODEL}")
    assert not (tmp_path / "home" / "v2l.lock.json").exists()
    assert run("pull", "smolvlm9").code == 2


def test_a_model_that_is_not_the_one_expected_fails_its_test(hub, fetch, tmp_path):
    other = small.write_model(tmp_path / "other")  # 4 tokens an image
    hub.repos[MODEL] = Repo.of(other)
    with pytest.raises(V2LError, match="turns an image into 4 tokens and 64 were expected"):
        fetch()
    assert not (tmp_path / "home" / "v2l.lock.json").exists() or lock(tmp_path)["repos"] == {}


def test_a_model_without_a_tokenizer_fails_its_test(model_folder, hypernetwork, tmp_path):
    lacking = shutil.copytree(model_folder, tmp_path / "lacking", ignore=shutil.ignore_patterns("tokenizer.json"))
    with pytest.raises(V2LError, match=r"SmolVLM2-500M-Video-Instruct has no tokenizer\.json"):
        v2l.models.pull.self_test(str(lacking), PRESETS["smolvlm2-500m"], hypernetwork, lambda line: None)


def test_a_full_disk_is_one_line(hub, tmp_path):
    """A limit on the size of files replaces a full disk: the write fails half-way in the same manner."""
    where = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run("pull", "smolvlm2-500m", env=where, prepare=small_files_only)
    assert done.code == 1 and sum(line.startswith("v2l: error:") for line in done.notes) == 1
    assert run("pull", "smolvlm2-500m", "--no-proof", env=where).code == 0
    assert os.path.exists(tmp_path / "home" / "v2l.lock.json")


def test_a_disk_that_fails_at_any_step_is_one_line_and_nothing_half_written_is_trusted(hub, fetch, tmp_path):
    listing = list_files(MODEL, "main", lambda name: name == "config.json")
    data = hub.repos[MODEL].files["config.json"]
    for number in range(1, 100):
        constants.HF_HUB_CACHE = str(tmp_path / str(number))
        os.mkdir(constants.HF_HUB_CACHE)
        place = v2l.models.hub_cache.CachePlace(MODEL, listing.commit, *listing.files)
        with Disk(tmp_path, number, (errno.ENOSPC, errno.EIO)[number % 2]).mounted() as disk:
            try:
                v2l.models.hub_cache.fetch_file(place, None)
            except V2LError as trouble:
                assert str(trouble).isprintable()
            if len(disk.steps) < number:
                break
        assert not place.blob.exists() or place.blob.read_bytes() == data
        v2l.models.hub_cache.fetch_file(place, None)
        assert place.pointer.read_bytes() == data
    assert 10 < number < 99


# Hubs that lie -----------------------------------------------------------------------------------------------------


def answer(body, status=200, **headers):
    """Return these responses instead of the hub."""

    def told(request):
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return told


def endless(hub, head, piece, pause=0, status="200 OK"):
    """Send until the client closes the connection."""

    def told(request):
        request.close_connection = True
        request.wfile.write(f"HTTP/1.1 {status}\r\n".encode() + head)
        while not hub.leaving.wait(pause):
            request.wfile.write(piece)
            request.wfile.flush()

    return told


def says(hub, **changes):
    """Return the listing of the model with other values."""
    hub.lies.clear()
    hub.lies[LISTING] = answer(json.dumps(json.loads(hub.listing(MODEL)) | changes).encode())


def test_commits_and_hashes_are_checked_before_they_are_paths(hub, fetch, tmp_path, victim):
    out = "../" * 16 + str(victim)
    lies = [{"sha": sha} for sha in (out, str(victim), "..", "A" * 40, "a" * 39, "a" * 40 + "\n", "", None, 5, ["x"])]
    file = {"rfilename": "config.json", "size": 2, "blobId": git_blob(b"{}")}
    changes = ({"blobId": out}, {"blobId": "*"}, {"lfs": {"sha256": out}}, {"lfs": {"sha256": "a" * 40}}, {"lfs": []})
    lies += [{"siblings": [file | change]} for change in changes]
    for lie in lies:
        says(hub, **lie)
        with pytest.raises(V2LError, match=f"the hub's listing of {MODEL} is invalid"):
            fetch()
    assert downloads(hub) == [] and not (tmp_path / "home").exists() and victim.read_text() == "the user's"


def test_no_header_of_a_file_is_a_path(hub, fetch, tmp_path, victim):
    """ETags and commits name files in the cache of other clients."""
    out, new = "../" * 16 + str(victim), "../" * 16 + str(tmp_path / "new")
    config = hub.repos[MODEL].files["config.json"]
    for data, path in ((config[:-2] + b"!!", out), (config, new)):
        headers = {"ETag": f'"{path}"', "X_Linked_ETag": f'"{path}"', "X_Repo_Commit": path}
        hub.lies["config.json"] = answer(data, **headers)
        if data != config:
            with pytest.raises(V2LError, match=r"config\.json has the hash"):
                fetch()
        else:
            fetch()
        assert victim.read_text() == "the user's" and not (tmp_path / "new").exists()


def test_files_whose_names_are_no_plain_names_are_left_out(hub, fetch, tmp_path):
    repo = hub.repos[MODEL]
    plain = {name for name in repo.files if re.fullmatch(r"LICENSE|.*\.(json|safetensors)", name)}
    odd = ["..safetensors", "a\nb.json", "\x1b[2Jb.json", "\u202eb.json", " .json", "a" * 300 + ".json", "a\0b.json"]
    for name in (*odd, "..\\x.json", "C:x.json", ".json"):
        repo.files[name] = b"{}"
    hub.repos[PUBLISHED].files["../" * 16 + str(tmp_path / "evil-500m.pt")] = b"evil"
    fetch()
    assert lock(tmp_path)["repos"][MODEL]["files"].keys() == plain
    assert [*lock(tmp_path)["repos"][PUBLISHED]["files"]] == [HYPERNETWORK]
    assert not (tmp_path / "evil-500m.pt").exists()


def test_a_listing_of_any_shape_is_one_line(hub, fetch):
    named = {"rfilename": "a.json", "size": 2, "blobId": "a" * 40}
    siblings = (None, {}, [5], [None], [{"size": 2}], [named | {"rfilename": 5}], [named, named], [named] * 10_001)
    sizes = ("big", -1, 1e30, True, None, 10**4000, 65 * 10**9)
    shapes = [{"siblings": shape} for shape in siblings]
    shapes += [{"siblings": [named | {"size": size}]} for size in sizes]
    shapes += [{"siblings": [named | {"rfilename": f"{number}.json"} for number in range(101)]}]
    shapes += [{"cardData": card} for card in ([1], {"license": 5}, {"license": {}}, {"license": [5]})]
    bodies = [b"[]", b"null", b"5", b"{}", b"", b"<html>", b"{", b'"\xff"', b"[" * 10**6, b"9" * 10**5]
    for shape in shapes:
        says(hub, **shape)
        bodies.append(json.dumps(json.loads(hub.listing(MODEL)) | shape).encode())
    for body in bodies:
        hub.lies[LISTING] = answer(body)
        with pytest.raises(V2LError, match=f"the hub's listing of {MODEL} is invalid") as raised:
            fetch()
        assert str(raised.value).isprintable() and len(str(raised.value)) < 500


def test_what_the_hub_says_is_printable(hub, fetch):
    escape = "\x1b]0;owned\x07\x9b2J"
    hub.repos[MODEL].licence = escape
    assert fetch()[0].licence == r"\x1b]0;owned\x07\x9b2J"
    for lie in ({"sha": escape}, {"siblings": [{"rfilename": "a.json", "size": escape}]}):
        says(hub, **lie)
        with pytest.raises(V2LError) as raised:
            fetch()
        assert str(raised.value).isprintable()
    hub.lies[LISTING] = answer(b"", 403, X_Error_Message="\x9b2J" + "x" * 500)
    with pytest.raises(V2LError, match=r"it answers 403, \\x9b2Jxx") as raised:
        fetch()
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500


def test_no_more_is_read_than_was_stated(hub, fetch, tmp_path):
    bomb = gzip.compress(bytes(100 * 2**20))
    floods = {
        "is longer than 4194304 bytes": (LISTING, endless(hub, b"\r\n", b"[" * 2**16)),
        "which was not requested": (LISTING, answer(bomb, Content_Encoding="gzip")),
        "sends more than the": ("config.json", endless(hub, b"\r\n", b"x" * 2**16)),
        "it redirects more than 10 times": ("config.json", answer(b"", 302, Location="config.json")),
        "unsupported protocol 'file://'": (LISTING, answer(b"", 302, Location="file:///etc/hostname")),
        "it answers 404": (LISTING, endless(hub, b"\r\n", b"x" * 2**16, status="404 Not Found")),
    }
    for told, (name, lie) in floods.items():
        hub.lies = {name: lie}
        with pytest.raises(V2LError, match=told):
            fetch()
    assert sum(path.stat().st_size for path in (tmp_path / "home").rglob("*.incomplete")) == 0


@pytest.mark.parametrize("head", [b"Content-Length: 1000000\r\n\r\n", b"Server: "], ids=["body", "headers"])
def test_an_answer_that_trickles_ends(hub, fetch, head):
    hub.lies[LISTING] = endless(hub, head, b" ", pause=0.1)
    with pytest.raises(V2LError, match="fewer than 1000 bytes a second in 1 s, which HF_HUB_DOWNLOAD_TIMEOUT sets"):
        fetch()


def test_what_sigterm_leaves_is_not_trusted_but_completed(hub, fetch, tmp_path):
    data = hub.repos[MODEL].files["model.safetensors"]
    half = len(data) // 2

    def stall(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data[:half])
        request.wfile.flush()
        hub.leaving.wait()

    hub.lies["model.safetensors"] = stall
    home = tmp_path / "home"
    where = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "999"}
    command = Running("pull", "smolvlm2-500m", "--no-proof", env=where, cwd=tmp_path)
    until = time.monotonic() + PATIENCE
    while not any(path.stat().st_size == half for path in home.rglob("*.incomplete")):
        assert time.monotonic() < until and command.process.poll() is None
        time.sleep(0.01)
    command.process.send_signal(signal.SIGTERM)
    assert command.end().code == 143
    assert not (home / "v2l.lock.json").exists() and not [*home.rglob("model.safetensors")]
    hub.lies.clear()
    fetch()
    begins = [begin for _, path, begin in hub.requests if path.endswith("model.safetensors")]
    assert begins == [None, f"bytes={half}-"]


def test_a_hub_cannot_move_a_recorded_commit(hub, fetch, tmp_path):
    fetch()
    says(hub, sha="c" * 40)
    with pytest.raises(V2LError, match=f"answers with commit cccccccccccc of {MODEL} instead of aaaaaaaaaaaa"):
        fetch()
    assert lock(tmp_path)["repos"][MODEL]["commit"] == "a" * 40


def test_the_cache_is_huggingface_hubs_own(hub, fetch, monkeypatch):
    address = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    config = hf_hub_download(
        MODEL, "config.json", revision="a" * 40, endpoint=hub.address, cache_dir=constants.HF_HUB_CACHE
    )
    hub.requests.clear()
    fetch()
    assert (
        "config.json" not in downloads(hub)
        and try_to_load_from_cache(MODEL, "config.json", revision="a" * 40) == config
    )
    found = scan_cache_dir(constants.HF_HUB_CACHE)
    assert found.warnings == [] and {repo.repo_id for repo in found.repos} == {MODEL, PUBLISHED}
    revision = next(repo for repo in found.repos if repo.repo_id == MODEL).revisions
    names = {file.file_name for one in revision for file in one.files}
    assert names == read_lock().repos[MODEL].files.keys()
    for repo, name in ((MODEL, "model.safetensors"), (PUBLISHED, HYPERNETWORK)):
        path = hf_hub_download(
            repo, name, revision=read_lock().repos[repo].commit, local_files_only=True, cache_dir=constants.HF_HUB_CACHE
        )
        assert Path(path).read_bytes() == hub.repos[repo].files[name]


@pytest.mark.parametrize("link", ["", "blobs", "snapshots", "snapshots/" + "a" * 40, "../.locks"])
def test_links_out_of_the_cache_are_not_followed(hub, fetch, tmp_path, victim, link):
    place = Path(os.path.normpath(tmp_path / "home" / "hub" / f"models--{MODEL.replace('/', '--')}" / link))
    place.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place.symlink_to(elsewhere)
    with pytest.raises(V2LError, match="is a link out of the cache"):
        fetch()
    assert [*elsewhere.iterdir()] == []


@pytest.mark.parametrize("kind", ["snapshots/" + "a" * 40 + "/config.json", "blobs/{blob}", "blobs/{blob}.incomplete"])
def test_a_link_to_a_file_is_removed_or_refused_and_the_file_stays(hub, fetch, tmp_path, victim, kind):
    blob = git_blob(hub.repos[MODEL].files["config.json"])
    place = tmp_path / "home" / "hub" / f"models--{MODEL.replace('/', '--')}" / kind.format(blob=blob)
    place.parent.mkdir(parents=True)
    place.symlink_to(victim)
    with pytest.raises(V2LError, match=r"it was discarded|cannot write into"):
        fetch()
    assert victim.read_text() == "the user's"


def test_a_pipe_in_the_place_of_what_has_arrived_is_not_waited_for(hub, fetch, tmp_path):
    blob = git_blob(hub.repos[MODEL].files["config.json"])
    place = tmp_path / "home" / "hub" / f"models--{MODEL.replace('/', '--')}" / "blobs" / f"{blob}.incomplete"
    place.parent.mkdir(parents=True)
    os.mkfifo(place)
    with pytest.raises(V2LError, match="cannot write into"):
        fetch()


def test_a_cdn_gets_no_token_and_a_gated_repository_needs_one(hub, fetch, monkeypatch, tmp_path):
    hub.cdn, hub.token = True, "secret"
    with pytest.raises(V2LError, match=f"{MODEL} requires access; request it on the hub, then set HF_TOKEN"):
        fetch()
    monkeypatch.setenv("HF_TOKEN", "secret")
    fetch()  # the hub refuses what comes without it, the other host what comes with it
    assert any(path.startswith("/cdn/") for _, path, _ in hub.requests)
    monkeypatch.setenv("HF_TOKEN", "secret\nX-Other: 1")
    with pytest.raises(V2LError, match="contains invalid characters") as raised:
        fetch()
    assert "secret" not in str(raised.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))  # of hf auth login
    (tmp_path / "token").write_text("secret\n")
    fetch()


def test_a_record_leads_nowhere_else(fetch, tmp_path):
    good = {"revision": "main", "commit": "a" * 40, "files": {"config.json": "a" * 64}}
    copy = {"dtype": "float16", "files": {"config.json": "a" * 64}, "fingerprint": "a" * 64, "rounded": "b" * 64}
    changes = (
        {"commit": "../../.."},
        {"commit": None},
        {"files": {"../x-500m.pt": "a" * 64}},
        {"files": {"a": "../x"}},
        *(
            {"copy": copy | change}
            for change in ({"dtype": "../x"}, {"files": {"../x": "a" * 64}}, {"rounded": 5}, {"x": 1})
        ),
    )
    records = [{"default": None, "repos": {MODEL: good | change}} for change in changes]
    records += [{"default": str(tmp_path), "repos": {}}, {"default": 5, "repos": {}}, {"default": None, "repos": []}]
    lock_path().parent.mkdir()
    for text in [*(json.dumps({"v2l": 1, **record}) for record in records), "[" * 10**5, " " * 2**21]:
        lock_path().write_text(text)
        with pytest.raises(V2LError, match=r"cannot read .*v2l.lock.json \(.*\); move it away"):
            read_lock()
    lock_path().write_text(json.dumps({"v2l": 1, "default": "folder", "repos": {MODEL: good | {"copy": copy}}}))
    assert read_lock().repos[MODEL].commit == "a" * 40
    with pytest.raises(V2LError, match="names no preset as the default"):
        choose_model(None)
