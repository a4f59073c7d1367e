"""Every step of every write fails once, as on a full and on a broken disk.

The result is a one-line error, the old file is unchanged, and no temporary file is left.
"""

import dataclasses
import errno
import os
import re
import tempfile
from pathlib import Path

import pytest
import torch
from faults import Disk, room
from places import DATA
from terminal import SUFFIX, fill
from typer.testing import CliRunner

import v2l
from v2l.cli.app import app
from v2l.inference import batch
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import Target
from v2l.io.journal import Journal
from v2l.models.lock_file import Lock, write_lock
from v2l.tiny import demo
from v2l.tiny.world.clip import ClipFormat, write_clip
from v2l.tiny.world.dataset import write_dataset
from v2l.training import common
from v2l.video.sampling import Reading

PACKAGE = Path(v2l.__file__).parent


def command(*words):
    """Run `v2l WORDS...` in this process and return its error; None if it succeeded."""
    done = CliRunner().invoke(app, [os.fspath(word) for word in words])
    assert done.exit_code in (0, 1), done.output
    if done.exit_code == 0:
        return None
    (line,) = done.stderr.splitlines()
    assert line.startswith("v2l: error: ") and done.stdout == ""
    return line


def library(work):
    """Call `work` and return its error; None if it succeeded."""
    try:
        work()
    except v2l.V2LError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, adapters, videos):
    """Return a folder with two adapters and a video, outside the failing disk."""
    folder = fill(tmp_path_factory.mktemp("shelf"), talk=videos[0])
    for name, adapter in zip("ab", adapters, strict=False):
        adapter.save(folder / f"{name}{SUFFIX}")
    return folder


def open_journal(path):
    return Journal(path, {"v2l": 1, "model": "x"}, "evaluation", "model")


def start_journal(path):
    with open_journal(path):
        pass


def append(path, row):
    with open_journal(path) as journal:
        journal.add({"row": row, "text": "x" * 50})


def half_a_line(path):
    append(path, row=1)
    path.write_text(path.read_text() + '{"row": 2, "te')


@dataclasses.dataclass
class Kit:
    """A folder to write into (`place`), and the inputs of the writers outside the failing disk."""

    place: Path
    shelf: Path
    adapters: list[v2l.Adapter]
    choice: ModelLoader

    def old(self, name):
        """Write an existing file."""
        (self.place / name).write_bytes(b"old")

    def command(self, *words, output):
        return command(*words, "-o", self.place / output)

    def keep(self, step):
        torch.manual_seed(0)
        common.save_state({"part": torch.nn.Linear(30, 20)}, step, self.place / "state.pt")

    def manifest(self):
        write_dataset(self.place, "test", 1)

    def clip(self):
        write_clip(demo.sample_lecture()[0], self.place / "x.mp4", ClipFormat(64, 48, 1.0))

    def lecture(self):
        demo.write_lecture(demo.sample_lecture()[0], self.place / "lecture.mp4", overwrite=True)

    @property
    def a(self):
        return self.shelf / f"a{SUFFIX}"

    @property
    def b(self):
        return self.shelf / f"b{SUFFIX}"


X, JOURNAL, FIGURES = f"x{SUFFIX}", "x.jsonl", "metrics.jsonl"
WRITERS = {  # preparation; the write, which returns its error
    "adapter": (
        lambda kit: kit.adapters[0].save(kit.place / X),
        lambda kit: library(lambda: kit.adapters[1].save(kit.place / X)),
    ),
    "encode into a new folder": (lambda kit: None, lambda kit: encode(kit, kit.place / "new" / X)),
    "encode over an old one": (lambda kit: kit.old(X), lambda kit: encode(kit, kit.place / X)),
    "compose": (lambda kit: kit.old(X), lambda kit: kit.command("compose", kit.a, kit.b, "--overwrite", output=X)),
    "export peft": (lambda kit: None, lambda kit: kit.command("export", kit.a, "--format", "peft", output="x")),
    "export peft over an old one": (
        lambda kit: kit.command("export", kit.b, "--format", "peft", output="x"),
        lambda kit: kit.command("export", kit.a, "--format", "peft", "--overwrite", output="x"),
    ),
    "export gguf": (
        lambda kit: kit.old("x.gguf"),
        lambda kit: kit.command("export", kit.a, "--format", "gguf", "--overwrite", output="x.gguf"),
    ),
    "import": (
        lambda kit: kit.old("x.safetensors"),
        lambda kit: kit.command("import", DATA / "official-a" / "hypernet.pt", "--overwrite", output="x.safetensors"),
    ),
    "pull's lock": (
        lambda kit: write_lock(Lock(default="smolvlm2-500m")),
        lambda kit: library(lambda: write_lock(Lock(default="smolvlm2-2.2b"))),
    ),
    "a new journal": (lambda kit: None, lambda kit: library(lambda: start_journal(kit.place / JOURNAL))),
    "a journal's next line": (
        lambda kit: append(kit.place / JOURNAL, row=1),
        lambda kit: library(lambda: append(kit.place / JOURNAL, row=2)),
    ),
    "a journal's half line": (
        lambda kit: half_a_line(kit.place / JOURNAL),
        lambda kit: library(lambda: start_journal(kit.place / JOURNAL)),
    ),
    "training's state": (lambda kit: kit.keep(1), lambda kit: library(lambda: kit.keep(2))),
    "training's figures": (
        lambda kit: common.append_metrics(kit.place / FIGURES, {"step": 10}),
        lambda kit: library(lambda: common.append_metrics(kit.place / FIGURES, {"step": 20})),
    ),
    "a manifest": (lambda kit: [kit.manifest(), kit.old("test.jsonl")], lambda kit: library(kit.manifest)),
    "a drawn clip": (lambda kit: kit.old("x.mp4"), lambda kit: library(kit.clip)),
    "demo's lecture": (lambda kit: kit.old("lecture.mp4"), lambda kit: library(kit.lecture)),
}


def encode(kit, output):
    options, target = batch.EncodeOptions(Reading(frames=2), overwrite=True), Target(kit.shelf / "talk.mp4", output)
    (outcome,) = batch.encode_targets([target], options, kit.choice, batch.Watch())
    return outcome.note if outcome.status == "failed" else None


@pytest.fixture(scope="module")
def choice(model_folder, vlm, hypernetwork):
    choice = ModelLoader(str(model_folder), "option")
    choice.vlm, choice.hypernetwork = vlm, hypernetwork
    return choice


@pytest.fixture
def bench(tmp_path, shelf, adapters, choice, monkeypatch):
    """Return a function that prepares a writer, by name, in a new folder and returns (folder, write)."""
    from huggingface_hub import constants

    tries = iter(range(10_000))

    def prepare(name):
        place = tmp_path / str(next(tries))
        (place / "home").mkdir(parents=True)
        monkeypatch.setattr(constants, "HF_HOME", str(place / "home"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        kit, (before, write) = Kit(place, shelf, adapters, choice), WRITERS[name]
        before(kit)
        return place, lambda: write(kit)

    return prepare


def contents(place):
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITERS)
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
            before, case = contents(place), f"{name}, step {number} of {steps}, {os.strerror(error)}"
            with Disk(place.parent, number, error).mounted():
                line = write()
            assert line is not None and line.isprintable(), case
            assert os.strerror(error) in line, (case, line)
            if "was written, but" in line:
                assert contents(place) == written and steps[number - 1 :] in (["open", "fsync"], ["fsync"]), case
            elif "cannot append to" in line and steps[number - 1] == "close":
                assert contents(place) == written, case
            else:
                assert contents(place) == before, case
                if number == len(steps) - 2:
                    assert write() is None and contents(place) == written, case  # the disk works again


@pytest.mark.parametrize("name", WRITERS)
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
        whole = {path: data for path, data in after.items() if ".part" not in path and ".v2l-claim" not in path}
        moved_away = name == "export peft over an old one" and not whole
        assert whole in (before, written) or (moved_away and set(before.values()) <= set(after.values()))


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_system_that_takes_no_more_bytes(bench, name):
    """The kernel refuses them, also from native libraries."""
    place, write = bench(name)
    before = contents(place)
    assert write() is None
    (size,) = {len(data) for path, data in contents(place).items() if data != before.get(path) and "config" not in path}
    by_opencv = name in ("a drawn clip", "demo's lecture")  # whose last bytes are a comment
    for limit in (0, 1, size // 2, size // 2 if by_opencv else size - 1):
        place, write = bench(name)
        before = contents(place)
        with room(limit):
            line = write()
        assert line is not None and line.isprintable() and contents(place) == before, (name, limit)


WRITING = re.compile(r"""open\(.*["'][wax]b?\+?["']|write_text\(|write_bytes\(|save_file\(|os\.(replace|rename)\(""")


def test_nothing_writes_but_through_files():
    """Otherwise WRITERS would be incomplete."""
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if WRITING.search(path.read_text())}
    assert found == {
        "io/files.py",
        "tiny/world/clip.py",  # a drawn clip, covered above: written by OpenCV
        "training/finevideo.py",  # a clip cut by ffmpeg
        "models/hub_cache.py",  # the Hugging Face cache, covered by test_pull.py
        "tiny/recipe/model.py",  # a model made for a release
        "bench/random_model.py",  # in a temporary folder
        "bench/methods.py",  # the KV cache, in a temporary folder
        "bench/resources.py",  # to /proc
        "video/worker.py",  # a pipe
    }
