"""Crashes and concurrent processes: no partial file, no lost file, no temporary file left."""

import ast
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import small
from places import STRESS
from terminal import SUFFIX, Running, counts, fill, run

import v2l
from v2l.inference import batch
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import Target
from v2l.io import files
from v2l.io.files import write_atomically, write_folder
from v2l.video.sampling import Reading


def test_twenty_kills_of_a_folder_encode():
    """For a long run: `python tests/stress/kills.py 1000`."""
    command = [sys.executable, STRESS / "kills.py", "20", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    counts = ast.literal_eval(done.stdout.splitlines()[-1])
    assert counts["kills"] == 20
    assert counts["finished runs, equal to the byte"] == 2 and counts["adapters found whole"] > 20


# Temporary files -----------------------------------------------------------------------------------------------------

WRITING = """
import sys
from v2l.io.files import atomically
with atomically(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""
WRITE = "import sys; from v2l.io.files import write_atomically; write_atomically(sys.argv[1], b'whole')"
PEFT = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


@pytest.fixture
def unswept(monkeypatch):
    """Make this process sweep every folder again."""
    monkeypatch.setattr(files, "_swept", set())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def other_namespace():
    """Return the prefix of a command that runs it in its own process id namespace, like a container.

    Empty if namespaces are not permitted.
    """
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    try:
        return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []
    except OSError:
        return []


def test_temporary_files_of_a_killed_process_are_removed(tmp_path, unswept):
    place = tmp_path / "a.bin"
    child = subprocess.Popen(
        [sys.executable, "-c", WRITING, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "writing\n"
    (left,) = names(tmp_path)
    child.kill()
    child.communicate()
    (tmp_path / left.replace("a.bin", "clip.peft")).mkdir()
    kept = [left.replace(files._HOST, "0" * 8), ".mine.part", "b.bin"]
    for name in kept:
        (tmp_path / name).write_bytes(b"half")
    write_atomically(place, b"whole")
    assert names(tmp_path) == sorted([*kept, "a.bin"])


def test_files_in_use_are_kept_by_processes_that_cannot_see_the_writer(tmp_path):
    """Like two containers with the same host name that share a folder."""
    write = [*other_namespace(), sys.executable, "-c", WRITE]
    with (
        files.temporary_beside(tmp_path / "clip.peft", is_folder=True) as (made, _),
        files.atomically(tmp_path / "a.bin") as file,
    ):
        file.write(b"mine")
        subprocess.run([*write, tmp_path / "b.bin"], check=True)
        subprocess.run([*write, tmp_path / "a.bin"], check=True)
        assert made.is_dir() and len(names(tmp_path)) == 4
    assert names(tmp_path) == ["a.bin", "b.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_a_process_id_of_another_namespace_decides_nothing(tmp_path, unswept):
    """The writer's process id does not exist in this namespace."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    writing = f"import os; os.getpid = lambda: {dead.pid}\n{WRITING}"
    child = subprocess.Popen(
        [sys.executable, "-c", writing, tmp_path / "a.bin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "writing\n"
    write_atomically(tmp_path / "b.bin", b"mine")
    child.communicate()
    assert child.returncode == 0 and names(tmp_path) == ["a.bin", "b.bin"]


def test_a_folder_that_is_being_replaced_is_left_alone(tmp_path, unswept, monkeypatch):
    """Another process sweeps while the old folder has a temporary name."""
    write_folder(tmp_path / "clip.peft", PEFT)
    rename, swept = os.rename, []

    def and_sweep(source, target):
        rename(source, target)
        subprocess.run([sys.executable, "-c", WRITE, tmp_path / "a.bin"], check=True)
        swept.append(names(tmp_path))

    monkeypatch.setattr(os, "rename", and_sweep)
    write_folder(tmp_path / "clip.peft", PEFT)
    assert [len(found) for found in swept] == [3, 3]  # a.bin, and the two folders under whatever names
    assert names(tmp_path) == ["a.bin", "clip.peft"]


def test_a_sweep_between_making_and_locking_a_temporary_file_costs_nothing(tmp_path, monkeypatch):
    real, found = fcntl.flock, []

    def swept_first(handle, how):
        if not found:
            found.extend(tmp_path.iterdir())
            found[0].unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    write_atomically(tmp_path / "a.bin", b"whole")
    assert found and names(tmp_path) == ["a.bin"]


def test_a_file_system_without_locks_is_written_to_and_not_swept(tmp_path, unswept, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    left = f".x.{'0' * 8}{files._PART_END}"
    (tmp_path / left).touch()
    write_atomically(tmp_path / "a.bin", b"whole")
    write_folder(tmp_path / "clip.peft", PEFT)
    write_folder(tmp_path / "clip.peft", PEFT)
    assert names(tmp_path) == [left, "a.bin", "clip.peft"]


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_obeys_the_umask(tmp_path):
    def mode(*parts):
        return stat.S_IMODE(tmp_path.joinpath(*parts).stat().st_mode)

    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.bin", b"new")
        write_folder(tmp_path / "clip.peft", PEFT)
        assert (mode("a.bin"), mode("clip.peft"), mode("clip.peft", "adapter_config.json")) == (0o640, 0o750, 0o640)
        for kept in (0o600, 0o644, 0o664, 0o400):
            (tmp_path / "a.bin").chmod(kept)
            (tmp_path / "clip.peft" / "adapter_config.json").chmod(kept)
            (tmp_path / "clip.peft").chmod(0o700)
            write_atomically(tmp_path / "a.bin", b"newer")
            write_folder(tmp_path / "clip.peft", PEFT)
            found = mode("a.bin"), mode("clip.peft"), mode("clip.peft", "adapter_config.json")
            assert found == (kept, 0o700, kept)
    finally:
        os.umask(before)


def test_a_private_file_is_private_while_it_is_being_replaced(tmp_path):
    (tmp_path / "a.bin").touch(0o600)
    with files.atomically(tmp_path / "a.bin"):
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["x" * 255, "漢" * 85, "é" * 127, "a" + "漢" * 75 + SUFFIX, "\udcff" * 255], ids=ascii)
def test_every_name_that_the_file_system_takes_can_be_written(tmp_path, name):
    write_atomically(tmp_path / name, b"whole")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]
    (tmp_path / name).unlink()
    write_folder(tmp_path / name, PEFT)
    write_folder(tmp_path / name, PEFT)
    assert names(tmp_path) == [name] and names(tmp_path / name) == sorted(PEFT)


def test_two_processes_on_one_folder_make_one_set(model_folder, vlm, hypernetwork, tmp_path):
    for number in range(4):
        small.write_video(tmp_path / f"{number}.mp4", frames=24, seed=number)
    both = [Running("encode", ".", cwd=tmp_path, model=model_folder) for _ in range(2)]
    done = [each.end() for each in both]
    assert [each.code for each in done] == [0, 0]
    assert sum(counts(each.notes[-1]).get("encoded", 0) for each in done) == 4
    for number in range(4):
        expected = v2l.encode(tmp_path / f"{number}.mp4", vlm, hypernetwork)
        assert v2l.Adapter.load(tmp_path / f"{number}{SUFFIX}").sha256() == expected.sha256()
    assert len(list(tmp_path.iterdir())) == 8
    assert "4 current" in run("encode", ".", cwd=tmp_path, model=model_folder).err


# While a video is being read -----------------------------------------------------------------------------------------


def cut_short(video):
    os.truncate(video, video.stat().st_size // 2)


def grow(video):
    with open(video, "ab") as file:
        file.write(b"more")


def replaced(video):
    other = video.with_name("other.mp4")
    shutil.copy(video, other)
    os.replace(other, video)


def its_folder_vanishes(video):
    shutil.rmtree(video.parent)


def encode_while(happens, video, output, model_folder, vlm, hypernetwork):
    """Encode a video, call `happens(video)` after the first frame, and return the outcome."""
    choice = ModelLoader(str(model_folder), "option")
    choice.vlm, choice.hypernetwork = vlm, hypernetwork
    happened = []

    def watch(*_):
        if not happened:
            happened.append(happens(video))

    (outcome,) = batch.encode_targets(
        [Target(video, output)], batch.EncodeOptions(Reading()), choice, batch.Watch(watch)
    )
    assert happened
    return outcome


def rewritten_with_its_old_date(video):
    status, content = video.stat(), video.read_bytes()
    video.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "happens", [Path.unlink, cut_short, grow, replaced, rewritten_with_its_old_date, its_folder_vanishes]
)
def test_a_video_that_changes_while_it_is_read_fails_and_nothing_is_written(
    happens, tmp_path, videos, model_folder, vlm, hypernetwork
):
    video = fill(tmp_path / "in", talk=videos[0]) / "talk.mp4"
    for output in (video.with_name(f"talk{SUFFIX}"), tmp_path / f"talk{SUFFIX}"):
        fill(tmp_path / "in", talk=videos[0])
        outcome = encode_while(happens, video, output, model_folder, vlm, hypernetwork)
        assert outcome.status == "failed" and "talk.mp4" in outcome.note and outcome.note.isprintable()
        assert video.parent.exists() == (happens is not its_folder_vanishes)
        assert not list(tmp_path.rglob("*.part")) + list(tmp_path.rglob(f"*{SUFFIX}"))


def test_a_video_that_only_gets_other_permissions_is_encoded(tmp_path, videos, model_folder, vlm, hypernetwork):
    video = fill(tmp_path, talk=videos[0]) / "talk.mp4"
    outcome = encode_while(
        lambda _: video.chmod(0o600), video, tmp_path / f"x{SUFFIX}", model_folder, vlm, hypernetwork
    )
    assert outcome.status == "encoded"


def test_a_folder_for_adapters_that_vanishes_is_made_again(tmp_path, videos, model_folder, vlm, hypernetwork):
    video = fill(tmp_path, talk=videos[0]) / "talk.mp4"
    output = tmp_path / "out" / f"talk{SUFFIX}"
    output.parent.mkdir()
    outcome = encode_while(lambda _: shutil.rmtree(output.parent), video, output, model_folder, vlm, hypernetwork)
    assert outcome.status == "encoded" and v2l.Adapter.load(output).sha256() == outcome.adapter.sha256()


# Where the results go ------------------------------------------------------------------------------------------------


def test_a_full_standard_output_is_one_line_and_1(tmp_path, adapters):
    adapters[0].save(tmp_path / f"a{SUFFIX}")
    with open("/dev/full", "w") as full:
        done = run("info", f"a{SUFFIX}", cwd=tmp_path, stdout=full.fileno())
        assert (done.code, done.notes) == (
            1,
            ["v2l: error: cannot write standard output: No space left on device; free some space, then run this again"],
        )
        done = run("--help", stdout=full.fileno())
        assert (done.code, done.notes) == (1, ["v2l: error: No space left on device"])
