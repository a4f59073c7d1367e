"""Messages that name a thing as it was given, the fix, and no more: addresses, extras, JSON, videos, interrupts."""

import io
import json
import os
import sys
from dataclasses import replace

import pytest
import typer
from terminal import SUFFIX, Running, fill
from typer.testing import CliRunner

from v2l.adapters.export import export_gguf
from v2l.cli.app import app
from v2l.cli.console import Display, command
from v2l.cli.options import check_plot
from v2l.errors import V2LError
from v2l.inference.cache import AdapterCache
from v2l.io.manifest import read_manifest
from v2l.io.text import counted, printable, whole

ADDRESS = "https://example.org/a?v=1&b"
NAMED = ["encode {0}", "ask {0} what", "ask --in-context {0} what", "info {0}.mp4", "info {0}", "verify --video {0}"]
NAMED += ["compose {0} -o x.v2l.safetensors", "export {0} --format peft", "frames {0}.v2l.safetensors -o pictures"]
NAMED += ["find word {0}", "bench {0}", "eval {0}", "import {0}.pt -o new.safetensors"]


@pytest.fixture
def v2l_command(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("V2L_MODEL", str(model_folder))
    return lambda *words: CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture
def empty_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))


@pytest.mark.parametrize("words", NAMED)
def test_an_address_is_named_whole_and_as_no_local_file(v2l_command, words):
    done = v2l_command(*words.format(ADDRESS).split())
    line = next(line for line in done.stderr.splitlines() if "error" in line)
    assert done.exit_code == 1 and ADDRESS in line and "local files" in line


def test_only_addresses_get_a_second_slash(tmp_path):
    assert whole("file:/a/b") == "file:///a/b" and whole("C:/a") == "C:/a" and whole("a/b:c/d") == "a/b:c/d"
    assert printable(tmp_path / "a") == str(tmp_path / "a")


def test_a_missing_extra_is_one_error_everywhere(tmp_path, adapters, monkeypatch):
    for name in ("matplotlib", "gguf"):
        monkeypatch.setitem(sys.modules, name, None)
    for needs in (
        lambda: check_plot(tmp_path / "a.png"),
        lambda: export_gguf(adapters[0], tmp_path / "a.gguf"),
    ):
        with pytest.raises(V2LError, match=r"needs \w+, which is not installed: pip install 'v2l\[\w+\]'") as caught:
            needs()
        assert type(caught.value) is V2LError  # so that the exit code is 1


def test_a_row_that_is_no_json_has_one_position(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"id": "1", video}\n')
    with pytest.raises(V2LError) as caught:
        read_manifest(path)
    reason = "it is not JSON: Expecting property name enclosed in double quotes at column 13"
    assert str(caught.value) == f"{path}, line 2: {reason}; fix that row"


def test_an_adapter_is_known_under_another_name(v2l_command, tmp_path, adapters):
    adapters[0].save(tmp_path / f"a{SUFFIX}")
    os.rename(tmp_path / f"a{SUFFIX}", tmp_path / "renamed")
    assert v2l_command("info", "renamed").stdout.split()[:2] == ["adapter", "renamed"]
    done = v2l_command("ask", "renamed", "is", "it?", "--max-new-tokens", "1", "--strength", "4.5")
    assert (done.exit_code, done.stderr.splitlines()) == (
        0,
        [
            "warning: --strength 4.5 is outside 0 to 4, where answers make sense",
            'asked as one question: "is it?"; quote each to ask several',
        ],
    )


def test_info_of_a_video_tells_the_state_of_its_adapter(v2l_command, tmp_path, adapters, videos, monkeypatch):
    fill(tmp_path, talk=videos[0])
    made = adapters[1].description
    segment = replace(made.segments[0], source=replace(made.sources[0], name="talk.mp4"))
    before = replace(adapters[1], description=replace(made, segments=(segment,)))
    states = []
    for adapter in (None, adapters[0], before):
        if adapter:
            adapter.save(tmp_path / f"talk{SUFFIX}")
        record = json.loads(v2l_command("info", "talk.mp4", "--json").stdout)
        assert (record["kind"], record["frames"], record["demonstration"]) == ("video", 32, False)
        states.append((record["adapter"], record["adapter_state"], record["note"]))
    made = f"talk{SUFFIX}"
    assert states == [(None, "missing", ""), (made, "current", ""), (made, "stale", "the video's content changed")]
    done = v2l_command("info", "talk.mp4")
    assert (done.exit_code, done.stdout.splitlines()[-1].strip()) == (0, "out of date: the video's content changed")
    monkeypatch.setenv("V2L_CACHE", "cache")
    cached = AdapterCache(tmp_path / "cache", "", is_preferred=True).path(tmp_path / "talk.mp4", f"talk{SUFFIX}")
    fill(cached.parent)
    adapters[0].save(cached)
    record = json.loads(v2l_command("info", "talk.mp4", "--json").stdout)
    assert (record["adapter"], record["adapter_state"]) == (str(cached.relative_to(tmp_path)), "current")


def test_parts_of_different_videos_are_named(v2l_command, tmp_path, adapters):
    for name, adapter in zip("ab", adapters, strict=False):
        adapter.save(tmp_path / f"{name}{SUFFIX}")
    done = v2l_command("compose", f"a{SUFFIX}", f"b{SUFFIX}", "-o", f"c{SUFFIX}")
    assert "the parts are of 2 different videos: clip 0.mp4, clip 1.mp4" in done.stderr.splitlines()


def test_quiet_prints_errors_and_no_warnings(capsys, empty_input):
    display = Display(quiet=True)
    display.warn("warning: odd")
    display.note("done")
    display.error("broken")
    assert capsys.readouterr().err == "v2l: error: broken\n"


# Interrupts ---------------------------------------------------------------------------------------------------------


def test_one_thing_is_singular():
    assert [counted(number, "frame") for number in (1.0, 0.5, 12)] == ["1 frame", "0.5 frames", "12 frames"]


INTERRUPTED = "interrupted; what was finished is kept, and the same command continues"


def test_an_interrupt_during_the_first_imports_leaves_no_traceback(tmp_path):
    again = "import atexit, signal\natexit.register(signal.raise_signal, signal.SIGINT)\nraise KeyboardInterrupt"
    (tmp_path / "typer.py").write_text(again)
    done = Running("info", "x", env={"PYTHONPATH": str(tmp_path)}).end()
    assert (done.code, done.out, done.err) == (130, "", "")


def test_an_interrupt_that_an_import_turned_into_an_error_is_an_interrupt(capsys, empty_input):
    """As libraries in C do."""
    with pytest.raises(typer.Exit) as caught, command(False, False, False):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ImportError("numpy.core.multiarray failed to import")  # noqa: B904
    assert (caught.value.exit_code, capsys.readouterr().err) == (130, f"{INTERRUPTED}\n")


def test_an_interrupt_at_a_prompt_begins_a_line(monkeypatch):
    master, slave = os.openpty()
    for name, mode in (("stdin", "r"), ("stderr", "w")):
        monkeypatch.setattr(sys, name, open(slave, mode, closefd=False))  # noqa: SIM115
    with pytest.raises(typer.Exit), command(False, False, False):
        print("> exit", end="", file=sys.stderr, flush=True)
        raise KeyboardInterrupt
    screen = b""
    while screen.count(b"\n") < 2:  # a terminal is read in pieces
        screen += os.read(master, 1000)
    assert screen == f"> exit\r\n{INTERRUPTED}\r\n".encode()
