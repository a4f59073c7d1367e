"""The start of a command: what it says and does before it imports torch."""

import json
import shutil
import sys

import pytest
from terminal import SUFFIX, Terminal, run

IN_ONE_PROCESS = """
import json, sys
from v2l.cli.app import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["v2l", *words]
    try:
        main()
    except SystemExit as end:
        print(end.code)
print(*[name for name in ("torch", "transformers", "cv2", "av") if name in sys.modules])
"""

COLLECTIONS = """
import gc, json, sys
from v2l.__main__ import main
found = []
def note(phase, details):
    found.append("torch" in sys.modules)
gc.callbacks.append(note)
sys.argv = ["v2l", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as end:
    gc.callbacks.remove(note)
    print(end.code, sum(found), gc.isenabled(), len(gc.get_objects()))
"""
"""Run a command, and print its exit code, how many collections began or ended once torch was imported in part, whether
garbage is still collected, and from how many objects."""


@pytest.fixture
def desk(tmp_path, videos, adapters):
    """A video beside its adapter, and one without."""
    shutil.copy(videos[0], tmp_path / "talk.mp4")
    shutil.copy(videos[1], tmp_path / "new.mp4")
    adapters[0].save(tmp_path / f"talk{SUFFIX}")
    return tmp_path


def test_commands_that_compute_nothing_import_no_torch(desk, model_folder):
    commands = {
        ("encode", "talk.mp4"): 0,
        ("encode", "missing.mp4", "talk.mp4"): 1,
        ("info", f"talk{SUFFIX}", f"{model_folder}"): 0,
        ("ask", f"missing{SUFFIX}", "what?"): 1,
    }
    program = [sys.executable, "-c", IN_ONE_PROCESS]
    done = run(json.dumps([*commands]), program=program, cwd=desk, model=model_folder)
    assert [line for line in done.lines if line.isdigit()] == [str(code) for code in commands.values()]
    assert done.lines[-1] == ""
    current, missing, both, no_adapter = done.notes
    assert (current, both) == ("1 current", "1 current, 1 failed")
    assert "missing.mp4" in missing and f"missing{SUFFIX}" in no_adapter


@pytest.mark.parametrize("words", [("encode", "talk.mp4", "new.mp4"), ("ask", f"talk{SUFFIX}", "what?")], ids=str)
def test_a_terminal_shows_what_is_loaded_before_torch_is_imported(desk, model_folder, words):
    names_imports = {"PYTHONPROFILEIMPORTTIME": "1"}
    terminal = Terminal(*words, columns=400, cwd=desk, model=model_folder, env=names_imports)
    before = terminal.read_until("torch")
    terminal.process.kill()
    terminal.end()
    assert f"loading {model_folder}" in before
    assert ("1 video to encode, 1 to compare" in before) == (words[0] == "encode")


def test_the_objects_of_torch_are_collected_neither_during_its_import_nor_at_exit(desk, model_folder):
    program = [sys.executable, "-c", COLLECTIONS]
    done = run(json.dumps(["ask", f"talk{SUFFIX}", "what?"]), program=program, cwd=desk, model=model_folder)
    code, collections, is_enabled, objects = done.lines[-1].split()
    assert (code, is_enabled) == ("0", "True")
    assert int(collections) < 100, "over 600 if the import collects"
    assert int(objects) < 10_000, "some 190,000 if all are visited at exit"
