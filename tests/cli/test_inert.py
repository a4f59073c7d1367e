"""Foreign names and metadata are escaped: no control byte reaches a terminal, and nothing is read as markup."""

import dataclasses
import io
import json
import re
import shutil
import signal
import sys
import warnings

import pytest
import small
import typer
from terminal import SUFFIX

from v2l.cli.app import app
from v2l.models.checkpoint import save_hypernetwork, with_provenance

EVIL = "[red]x\x1b]0;evil\x07\x9b31m\u202e\x08\x7f\nname"
SHOWN = r"[red]x\x1b]0;evil\x07\x9b31m\u202e\x08\x7f\nname"
"""Its escaped forms on a terminal."""


class Tty(io.TextIOWrapper):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch, tmp_path):
    """Run `v2l WORDS...` in this process with terminals as streams; return (exit code, stdout, stderr)."""
    handlers = signal.getsignal(signal.SIGTERM), warnings.showwarning
    for name, value in {"COLUMNS": "2000", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "V2L_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def command(*words, stream=Tty):
        screens = [stream(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
            for name, screen in zip(("stdout", "stderr"), screens, strict=True):
                patch.setattr(sys, name, screen)
            with pytest.raises(SystemExit) as end:
                typer.main.get_command(app).main([str(word) for word in words], prog_name="v2l")
        return end.value.code, *(screen.buffer.getvalue().decode() for screen in screens)

    yield command
    signal.signal(signal.SIGTERM, handlers[0])
    warnings.showwarning = handlers[1]


def check(done, code=0, named=1):
    """Check that only the styles of rich and the moves of the bar remain, and that the escaped name is shown."""
    assert done[0] == code, done
    for screen in done[1:]:
        left = re.sub(r"\x1b\[[0-9;?]*[A-HJKlhm]", "", screen)  # a bare CSI is none of EVIL's
        assert all(char.isprintable() or char in "\n\r\t" for char in left), repr(left)
        assert "\x1b]" not in screen and "\x9b" not in screen
    assert (done[1] + done[2]).count(SHOWN) >= named, done
    return done


@pytest.fixture(scope="module")
def evil(adapters):
    """Return an adapter with such text in every text field."""
    made = adapters[0].description
    segment = made.segments[0]
    segment = dataclasses.replace(
        segment, source=dataclasses.replace(segment.source, name=EVIL), decoder=EVIL, prompt=EVIL
    )
    description = dataclasses.replace(
        made,
        base_model=dataclasses.replace(made.base_model, id=EVIL, revision=EVIL),
        hypernetwork=dataclasses.replace(made.hypernetwork, id=EVIL),
        segments=(segment,),
        v2l_version=EVIL,
    )
    return dataclasses.replace(adapters[0], description=description, b=adapters[0].b * 100)


@pytest.fixture
def saved(evil, tmp_path):
    path = f"{EVIL}{SUFFIX}"
    evil.save(tmp_path / path)
    return path


def test_encode(terminal, tmp_path, videos, model_folder, evil):
    shutil.copy(videos[0], tmp_path / f"{EVIL}.mp4")
    (tmp_path / f"{EVIL}2.mp4").touch()
    words = ("encode", ".", "--model", model_folder)
    _, out, notes = check(terminal(*words), code=1, named=2)
    assert "is empty" in notes and out.count(SUFFIX) == 1
    check(terminal(*words, "--frames", "4"), code=1, named=3)  # encoded again, and why
    check(terminal("encode", f"{EVIL}.mp4", "--model", EVIL), code=1)
    check(terminal("encode", f"{EVIL}.mp4", "--hypernetwork", EVIL, "--model", model_folder), code=1)
    check(terminal("encode", "a.mp4", "-o", EVIL), code=2)
    check(terminal("encode", "--files-from", EVIL), code=2)
    check(terminal("encode", f"http://{EVIL}", "--model", model_folder), code=1)
    foreign = dataclasses.replace(
        evil.description, base_model=dataclasses.replace(evil.description.base_model, fingerprint="0" * 64)
    )
    dataclasses.replace(evil, description=foreign).save(tmp_path / f"{EVIL}{SUFFIX}")
    (tmp_path / f"{EVIL}2.mp4").unlink()
    check(terminal("encode", f"{EVIL}.mp4"), named=3)  # kept: made for a model of that name


def test_ask(terminal, saved, tmp_path, videos, model_folder):
    shutil.copy(videos[0], tmp_path / f"{EVIL}.mp4")
    more = ("--model", model_folder, "--max-new-tokens", "3")
    check(terminal("ask", saved, "what?", *more), named=0)
    check(terminal("ask", saved, saved, "what?", EVIL, "--in-context", f"{EVIL}.mp4", *more), named=6)
    check(terminal("ask", f"{EVIL}3{SUFFIX}", "what?", *more), code=1)
    check(terminal("ask", saved, "what?"), code=1)  # made for a model that nobody knows
    check(terminal("ask", f"{EVIL}.mp4", "what?", "--model", "tiny", "--max-new-tokens", "1"), named=0)


def test_files_in_and_files_out(terminal, saved, tmp_path, evil, adapters, model_folder):
    check(terminal("info", saved), named=7)
    check(terminal("info", saved, stream=io.TextIOWrapper), named=7)
    check(terminal("compose", saved, saved, "-o", f"{EVIL}2{SUFFIX}"), named=2)
    check(terminal("compose", saved, saved, "-o", f"{EVIL}2{SUFFIX}", "--rank", "2"), code=1)  # already exists
    adapters[1].save(tmp_path / f"b{SUFFIX}")
    check(terminal("verify", saved, "--model", model_folder), named=2)
    check(terminal("verify", saved, "--model", "tiny"), code=1)
    for form in ("peft", "gguf"):
        check(terminal("export", saved, "--format", form), named=2)
        check(terminal("export", saved, "--format", form), code=1)
    assert json.loads((tmp_path / f"{EVIL}.peft" / "adapter_config.json").read_text())["revision"] == EVIL
    for word in ("info", "verify", "compose", "export"):
        rest = {"compose": ["-o", f"c{SUFFIX}"], "export": ["--format", "peft"]}.get(word, [])
        check(terminal(word, f"{EVIL}9{SUFFIX}", *rest), code=1)


def test_hypernetworks_and_checkpoints(terminal, tmp_path, model_folder):
    hypernetwork = small.small_hypernetwork(model_folder)
    provenance = hypernetwork.provenance
    trained = dataclasses.replace(provenance.trained_with, prompt=EVIL)
    named = with_provenance(hypernetwork, EVIL, EVIL, provenance.base_fingerprint, trained)
    save_hypernetwork(named, tmp_path / f"{EVIL}.safetensors")
    check(terminal("info", f"{EVIL}.safetensors"), named=4)
    (tmp_path / f"{EVIL}.pt").write_bytes(b"PK\3\4" + b"\0" * 50)
    check(terminal("import", f"{EVIL}.pt", "-o", "h.safetensors"), code=1)
    check(terminal("import", f"{EVIL}.pt", "-o", EVIL), code=2)


def test_manifests_and_what_is_measured(terminal, tmp_path, videos, model_folder):
    shutil.copy(videos[0], tmp_path / f"{EVIL}.mp4")
    rows = [
        {"id": EVIL, "video_path": f"{EVIL}.mp4", "question": EVIL, "answer": EVIL, "metadata": {"kind": EVIL}},
        {"id": f"{EVIL}2", "video_path": f"{EVIL}2.mp4", "question": EVIL, "answer": EVIL, "metadata": {"kind": EVIL}},
        {"id": "3", "video_path": str(videos[1]), "question": "what?", "answer": "a"},
    ]
    manifest = tmp_path / f"{EVIL}.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = ("--model", model_folder, "--max-new-tokens", "1", "--frames", "2")
    check(terminal("eval", manifest, *short), code=1, named=4)
    check(terminal("train", f"{EVIL}9.jsonl", "-o", "run"), code=1)
    manifest.write_text(json.dumps(rows[0] | {"video_path": 3, "id": EVIL}) + "\n")
    check(terminal("train", manifest, "-o", "run"), code=1)
    check(terminal("train", manifest, "-o", "run", "--set", EVIL), code=2)
    check(terminal("bench", f"{EVIL}9.mp4", "--model", model_folder), code=1)
    check(terminal("bench", "--plot", EVIL), code=2)
    check(terminal("pull", EVIL), code=2)
