"""Every step of every write fails once, as a full disk and as a broken one: one line that says so, what stood there is
untouched, and nothing is left beside it."""

import ast
import errno
import os
import tempfile

import pytest
import torch
from conftest import DATA
from faults import Disk, room
from terminal import SUFFIX, fill
from test_layout import TREES
from typer.testing import CliRunner

import v2l
from v2l import batch, demo, optimise
from v2l.choice import Choice
from v2l.cli import app
from v2l.journal import Journal
from v2l.lock import Lock, write_lock
from v2l.sampling import Reading
from v2l.targets import Target
from v2l.world.clip import ClipFormat, write_clip
from v2l.world.dataset import write_dataset


def command(*words):
    """`v2l WORDS...` in this process: its error, None where there was none."""
    done = CliRunner().invoke(app, [os.fspath(word) for word in words])
    assert done.exit_code in (0, 1), done.output
    if done.exit_code == 0:
        return None
    (line,) = done.stderr.splitlines()
    assert line.startswith("v2l: error: ") and done.stdout == ""
    return line


def library(work):
    """The same for a call."""
    try:
        work()
    except v2l.V2LError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, adapters, videos):
    """Two adapters and a video, out of the failing disk's reach."""
    folder = fill(tmp_path_factory.mktemp("shelf"), talk=videos[0])
    for name, adapter in zip("ab", adapters, strict=False):
        adapter.save(folder / f"{name}{SUFFIX}")
    return folder


def header(path):
    return Journal(path, {"v2l": 1, "model": "x"}, "evaluation", "model")


def begin_journal(path):
    with header(path):
        pass


def go_on(path, row=2):
    with header(path) as journal:
        journal.add({"row": row, "text": "x" * 50})


def half_a_line(path):
    go_on(path, row=1)
    path.write_text(path.read_text() + '{"row": 2, "te')


def write_manifest(place):
    write_dataset(place, "test", 1)


class WRITERS:
    """Each: (what stands there before, the write that fails). They get a folder and the things they need."""

    @staticmethod
    def of(name, place, shelf, adapters, choice):
        a, b, talk = shelf / f"a{SUFFIX}", shelf / f"b{SUFFIX}", shelf / "talk.mp4"
        old = lambda name: lambda: (place / name).write_bytes(b"old")  # noqa: E731
        torch.manual_seed(0)
        part = torch.nn.Linear(30, 20)
        return {
            "adapter": (
                lambda: adapters[0].save(place / f"x{SUFFIX}"),
                lambda: library(lambda: adapters[1].save(place / f"x{SUFFIX}")),
            ),
            "encode into a new folder": (lambda: None, lambda: encode(talk, place / "new" / f"x{SUFFIX}", choice)),
            "encode over an old one": (old(f"x{SUFFIX}"), lambda: encode(talk, place / f"x{SUFFIX}", choice)),
            "compose": (old(f"x{SUFFIX}"), lambda: command("compose", a, b, "-o", place / f"x{SUFFIX}", "--overwrite")),
            "export peft": (lambda: None, lambda: command("export", a, "--format", "peft", "-o", place / "x")),
            "export peft over an old one": (
                lambda: command("export", b, "--format", "peft", "-o", place / "x"),
                lambda: command("export", a, "--format", "peft", "-o", place / "x", "--overwrite"),
            ),
            "export gguf": (
                old("x.gguf"),
                lambda: command("export", a, "--format", "gguf", "-o", place / "x.gguf", "--overwrite"),
            ),
            "import": (
                old("x.safetensors"),
                lambda: command(
                    *("import", DATA / "official-a" / "hypernet.pt", "-o", place / "x.safetensors", "--overwrite")
                ),
            ),
            "pull's lock": (
                lambda: write_lock(Lock(default="smolvlm2-500m")),
                lambda: library(lambda: write_lock(Lock(default="smolvlm2-2.2b"))),
            ),
            "a new journal": (lambda: None, lambda: library(lambda: begin_journal(place / "x.jsonl"))),
            "a journal's next line": (
                lambda: go_on(place / "x.jsonl", row=1),
                lambda: library(lambda: go_on(place / "x.jsonl")),
            ),
            "a journal's half line": (
                lambda: half_a_line(place / "x.jsonl"),
                lambda: library(lambda: begin_journal(place / "x.jsonl")),
            ),
            "training's state": (
                lambda: optimise.keep({"part": part}, 1, place / "state.pt"),
                lambda: library(lambda: optimise.keep({"part": part}, 2, place / "state.pt")),
            ),
            "training's figures": (
                lambda: optimise.record(place / "metrics.jsonl", {"step": 10}),
                lambda: library(lambda: optimise.record(place / "metrics.jsonl", {"step": 20})),
            ),
            "a manifest": (
                lambda: [write_manifest(place), (place / "test.jsonl").write_bytes(b"old")],
                lambda: library(lambda: write_manifest(place)),
            ),
            "a drawn clip": (
                old("x.mp4"),
                lambda: library(lambda: write_clip(demo.sample_lecture()[0], place / "x.mp4", ClipFormat(64, 48, 1.0))),
            ),
            "demo's lecture": (
                old("lecture.mp4"),
                lambda: library(lambda: demo.write_lecture(demo.sample_lecture()[0], place / "lecture.mp4", True)),
            ),
        }[name]


NAMES = [
    *("adapter", "encode into a new folder", "encode over an old one", "compose", "export peft"),
    *("export peft over an old one", "export gguf", "import", "pull's lock", "a new journal", "a journal's next line"),
    *("a journal's half line", "training's state", "training's figures", "a manifest", "a drawn clip"),
    "demo's lecture",
]


def encode(video, output, choice):
    options = batch.EncodeOptions(Reading(frames=2), overwrite=True)
    (outcome,) = batch.encode_targets([Target(video, output)], options, choice, lambda *_: None)
    return outcome.note if outcome.status == "failed" else None


@pytest.fixture(scope="module")
def choice(model_folder, vlm, hypernetwork):
    choice = Choice(str(model_folder), "option")
    choice.vlm, choice.hypernetwork = vlm, hypernetwork
    return choice


@pytest.fixture
def bench(tmp_path, shelf, adapters, choice, monkeypatch, recwarn):
    """A writer by name, in a folder of its own, begun anew for every try: (folder, write)."""
    from huggingface_hub import constants

    tries = iter(range(10_000))

    def anew(name):
        place = tmp_path / str(next(tries))
        (place / "home").mkdir(parents=True)
        monkeypatch.setattr(constants, "HF_HOME", str(place / "home"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        before, write = WRITERS.of(name, place, shelf, adapters, choice)
        before()
        return place, write

    return anew


def contents(place):
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_a_write_fails_once(bench, name):
    place, write = bench(name)
    with Disk(place.parent).mounted() as disk:
        assert write() is None
    steps, written = disk.steps, contents(place)
    assert "open" in steps or "replace" in steps
    assert steps.count("fsync") >= 2 or name in ("a journal's next line", "training's figures", "a drawn clip")
    for number in range(1, len(steps) + 1):
        for error in (errno.ENOSPC, errno.EIO):
            place, write = bench(name)
            before, told = contents(place), f"{name}, step {number} of {steps}, {os.strerror(error)}"
            with Disk(place.parent, number, error).mounted():
                line = write()
            assert line is not None and line.isprintable(), told
            assert os.strerror(error) in line, (told, line)
            if "was written whole, but" in line:
                assert contents(place) == written and steps[number - 1 :] in (["open", "fsync"], ["fsync"]), told
            elif "cannot go on writing" in line and steps[number - 1] == "close":
                assert contents(place) == written, told
            else:
                assert contents(place) == before, told
                if number == len(steps) - 2:
                    assert write() is None and contents(place) == written, told  # the disk is sound again


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_dies_in_the_middle_loses_nothing_that_was_there(bench, name):
    place, write = bench(name)
    with Disk(place.parent).mounted() as disk:
        write()
    written = contents(place)
    for number in range(1, len(disk.steps) + 1):
        place, write = bench(name)
        before = contents(place)
        with Disk(place.parent, number, errno.EIO, for_good=True).mounted():
            line = write()
        assert line is not None and line.isprintable()
        after = contents(place)
        whole = {path: data for path, data in after.items() if ".part" not in path}
        moved_away = name == "export peft over an old one" and not whole
        assert whole in (before, written) or (moved_away and set(before.values()) <= set(after.values()))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_system_that_takes_no_more_bytes(bench, name):
    """The kernel refuses them, whoever writes."""
    place, write = bench(name)
    before = contents(place)
    assert write() is None
    (size,) = {len(data) for path, data in contents(place).items() if data != before.get(path) and "config" not in path}
    by_opencv = name in ("a drawn clip", "demo's lecture")  # whose last bytes are a remark
    for limit in (0, 1, size // 2, size // 2 if by_opencv else size - 1):
        place, write = bench(name)
        before = contents(place)
        with room(limit):
            line = write()
        assert line is not None and line.isprintable() and contents(place) == before, (name, limit)


def test_nothing_writes_but_through_files():
    """Else this file's list would have a hole: what opens a file to write, or moves one, stands in files.py."""
    known = {
        ("world/clip.py", "replace"),  # a drawn clip: OpenCV writes by itself
        ("finevideo.py", "replace"),  # a clip that ffmpeg cut
        ("ways.py", "save_file"),  # the bench's KV cache, in a temporary folder
        ("machine.py", "write_text"),  # to /proc
        ("decode_worker.py", "open"),  # a pipe
    }
    found = set()
    for path, tree in TREES.items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            owner = ast.unparse(call.func).removesuffix(name).rstrip(".")
            modes = [
                arg.value for arg in [*call.args, *(k.value for k in call.keywords)] if isinstance(arg, ast.Constant)
            ]
            writes = name in ("open", "fdopen") and any(
                isinstance(mode, str) and set(mode) <= set("wax+bt") and set(mode) & set("wax+") for mode in modes
            )
            if (
                writes
                or name in ("write_text", "write_bytes", "save_file", "rename")
                or (name == "replace" and owner == "os")
            ):
                found.add((str(path), name.removeprefix("fd")))
    mine = {each for each in found if each[0] not in ("files.py", "cli.py") and not each[0].startswith("arch")}
    made_for_release = {each for each in mine if each[0] == "world/model.py"}
    assert mine - made_for_release == known
