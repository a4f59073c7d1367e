"""The exit codes of every command: 0 all done, 1 something failed, 2 wrong usage, 130 interrupted, 143 terminated.
Existing files are unchanged."""

import builtins
import io
import os
import signal
import warnings

import pytest
from places import DATA
from terminal import SUFFIX, TRACEBACK, fill
from typer.testing import CliRunner

from v2l.cli.app import app

A, B, CUT = f"a{SUFFIX}", f"b{SUFFIX}", f"cut{SUFFIX}"
MODEL = "--model MODEL"
WORDS = {  # command -> {exit code: words that end so}
    "encode": {
        0: [f"talk.mp4 {MODEL}", f"talk.mp4 talk.mp4 {MODEL}", f"talk.mp4 --segments 2 --split {MODEL}"],
        1: [f"empty.mp4 {MODEL}", f"gone.mp4 talk.mp4 {MODEL}", "talk.mp4 --model nosuch", f"folder {MODEL}"],
        2: [f"talk.mp4 --compose {MODEL}", "talk.mp4 --nosuch", "--files-from nosuch", "talk.mp4 --shard 3/2"],
    },
    "ask": {
        0: [f"{A} what? {MODEL} --max-new-tokens 1"],
        1: [f"{CUT} what? {MODEL}", f"gone{SUFFIX} what?", f"{A} {CUT} what? {MODEL}", f"{A} what? --model nosuch"],
        2: [A, "what?", f"{A} what? --strength nan", f"{A} what? --max-new-tokens 0"],
    },
    "compose": {
        0: [f"{A} {B} -o new{SUFFIX}"],
        1: [f"{A} {CUT} -o new{SUFFIX}", f"{A} {B} -o {A}", f"{A} {B} -o folder/no/new{SUFFIX}"],
        2: [f"{A} {B}", f"{A} {B} -o new.bin", f"{A} {B} -o new{SUFFIX} --rank 0"],
    },
    "info": {0: [A, f"{A} {B} --json"], 1: [CUT, f"{A} {CUT}", "gone"], 2: [f"{A} --nosuch"]},
    "verify": {
        0: [f"{A} {MODEL}"],
        1: [f"{A} {CUT} {MODEL}", f"{A} --model tiny", f"gone{SUFFIX} {MODEL}"],
        2: [f"{A} --dtype int8", "talk.mp4"],
    },
    "export": {
        0: [f"{A} --format peft", f"{A} --format gguf"],
        1: [f"{CUT} --format peft", f"{A} --format peft -o folder"],
        2: [A, "talk.mp4 --format peft", f"{A} --format onnx", f"{A} --format gguf -o a.bin"],
    },
    "import": {
        0: ["checkpoint.pt -o new.safetensors"],
        1: ["empty.mp4 -o new.safetensors", "checkpoint.pt -o talk.safetensors"],
        2: ["checkpoint.pt", f"checkpoint.pt -o new{SUFFIX}"],
    },
    "eval": {
        0: [f"good.jsonl {MODEL} --frames 2 --max-new-tokens 1 --without in_context"],
        1: ["bad.jsonl", "gone.jsonl", f"good.jsonl {MODEL} -o bad.jsonl"],
        2: [f"good.jsonl {MODEL} -o good.jsonl", "good.jsonl --set margin=0", "good.jsonl --metric nosuch"],
    },
    "train": {
        1: ["bad.jsonl -o run", "gone.jsonl -o run", "good.jsonl -o talk.mp4 --model MODEL"],
        2: ["good.jsonl", *(f"good.jsonl -o run {word}" for word in ("--set rank", "--set nosuch=1", "--steps 0"))],
    },
    "bench": {
        1: [f"gone.mp4 {MODEL}", f"empty.mp4 {MODEL}"],
        2: ["--frames x", "--arch smolvlm2-500m", "--plot a.txt", "--budget 0"],
    },
    "demo": {1: ["--output-dir talk.mp4"], 2: ["--nosuch"]},
    "pull": {1: ["smolvlm2-500m"], 2: ["nosuch", ""]},  # offline, as all tests are
}
TABLE = [(name, code, words) for name, codes in WORDS.items() for code, all_ in codes.items() for words in all_]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, adapters, videos):
    folder = fill(tmp_path_factory.mktemp("desk"), talk=videos[0], other=videos[1])
    adapters[0].save(folder / A)
    adapters[1].save(folder / B)
    (folder / CUT).write_bytes((folder / A).read_bytes()[:-1])
    (folder / "checkpoint.pt").write_bytes((DATA / "official-a" / "hypernet.pt").read_bytes())
    (folder / "talk.safetensors").write_bytes(b"mine")
    (folder / "empty.mp4").touch()
    (folder / "folder").mkdir()
    (folder / "bad.jsonl").write_text('{"id": 1}\n')
    row = '{"id": "%s", "video_path": "%s.mp4", "question": "what?", "answer": "a"}\n'
    (folder / "good.jsonl").write_text(row % ("1", "talk") + row % ("2", "other"))
    return folder


@pytest.fixture
def v2l_command(desk, model_folder, monkeypatch, tmp_path):
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    shown = warnings.showwarning
    os.symlink(model_folder, tmp_path / "MODEL")
    for path in desk.iterdir():
        os.symlink(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("V2L_MODEL", raising=False)
    yield lambda name, words: CliRunner().invoke(app, [name, *words.split()])
    for number, handler in handlers:
        signal.signal(number, handler)
    warnings.showwarning = shown


@pytest.mark.parametrize(("name", "code", "words"), TABLE, ids=lambda value: str(value))
def test_the_exit_code_says_how_it_went(v2l_command, desk, name, code, words):
    before = {path: path.stat().st_mtime_ns for path in desk.iterdir()}
    done = v2l_command(name, words)
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    errors = [line for line in done.stderr.splitlines() if line.startswith("v2l: error: ")]
    usage = "Usage: " in done.stderr or "Usage: " in done.stdout
    assert bool(errors or usage) == (code != 0), done.stderr
    assert TRACEBACK not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in desk.iterdir()} == before


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["130", "143"])
def test_a_command_that_is_told_to_stop_says_so(v2l_command, desk, monkeypatch, tmp_path, name, number, code):
    """The signal is sent at the first access to one of its files."""
    words = {
        "train": f"good.jsonl -o run {MODEL}",
        "bench": f"talk.mp4 --frames 4 {MODEL}",
        "demo": "--output-dir new",
    }.get(name)
    words = words or WORDS[name].get(0, WORDS[name][1])[0]
    sent = []

    def watching(real):
        def call(path, *rest, **named):
            begun = signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
            words = os.fspath(path).split("/") if isinstance(path, str | os.PathLike) else [""]
            if not sent and begun and (words[0] in names or words[-1] == "v2l.lock.json"):
                sent.append(path)
                signal.raise_signal(number)
            return real(path, *rest, **named)

        return call

    names = {*os.listdir(tmp_path), "new"} - {"MODEL"}
    for module, function in ((os, "stat"), (os, "open"), (builtins, "open"), (io, "open")):
        monkeypatch.setattr(module, function, watching(getattr(module, function)))
    done = v2l_command(name, words)
    assert sent and done.exit_code == code, (done.exit_code, done.stderr, done.exception)
    assert ("interrupted; what was finished is kept" in done.stderr) == (code == 130)
