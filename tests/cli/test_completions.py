"""The completion files: current, valid in their shells, and correct without starting a program."""

import importlib.util
import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest
import typer
from places import ROOT
from terminal import PATIENCE, run

from v2l.cli.app import app
from v2l.cli.manual import Shell
from v2l.cli.options import Dtype
from v2l.inference.naming import VIDEO_SUFFIXES
from v2l.models.presets import PRESETS

GENERATOR = ROOT / "completions" / "generate.py"
FILES = {str(shell): shell.file for shell in Shell}
COMMANDS = typer.main.get_command(app).commands
ENVIRONMENT = {"PATH": "", "LC_ALL": "C.UTF-8", "TERM": "dumb", "INPUTRC": os.devnull}
"""With an empty PATH, no shell can start a program."""

ODD_VIDEOS = [
    "my first video.mp4",
    "it's.MKV",
    'say "hi".webm',
    "Grüße aus Köln.mov",
    "dollar$x.ts",
    "col:on=.avi",
    "back\\slash.m4v",
]
ADAPTERS = ["lecture.v2l.safetensors", "old one.v2l.safetensors"]
FOLDERS = ["Clips ü", "like-a-video.mp4"]


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate_completions", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of files to complete."""
    folder = tmp_path_factory.mktemp("home")
    for name in [*ODD_VIDEOS, *ADAPTERS, "hyper.safetensors", "published.pt", "notes.txt", "-dash.mp4"]:
        (folder / name).touch()
    for name in FOLDERS:
        (folder / name).mkdir()
    (folder / FOLDERS[0] / "in side.mp4").touch()
    return folder


# the files ---------------------------------------------------------------------------------------------------------


def test_the_files_are_what_the_generator_writes(generator):
    assert {path: path.read_text(encoding="utf-8") for path in FILES.values()} == generator.generate()


def test_check_finds_what_is_not_current_and_a_plain_run_mends_it(tmp_path):
    (tmp_path / "completions").mkdir()
    program = shutil.copy(GENERATOR, tmp_path / "completions")
    copy = shutil.copytree(FILES["bash"].parent, tmp_path / "v2l" / "cli" / "completions")

    def run(*arguments):
        return subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True)

    (copy / "_v2l").unlink()
    (copy / "v2l.fish").write_text("complete -c v2l\n")
    checked = run("--check")
    assert (checked.returncode, checked.stdout) == (1, "")
    assert [line.split()[0] for line in checked.stderr.splitlines()] == ["_v2l", "v2l.fish"]
    assert not (copy / "_v2l").exists()
    assert run().returncode == 0
    assert [(copy / path.name).read_bytes() for path in FILES.values()] == [p.read_bytes() for p in FILES.values()]
    assert run("--check").returncode == 0


def test_a_parameter_that_nothing_was_decided_for_stops_the_generator(generator, monkeypatch):
    monkeypatch.delitem(generator.PARAMETERS, "in_context")
    with pytest.raises(SystemExit, match="in_context of v2l ask is new"):
        generator.read_commands()


def test_every_command_and_option_stands_in_every_file_and_each_shell_that_is_here_accepts_its_own():
    for shell, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        for name, command in COMMANDS.items():
            assert name in text
            for parameter in command.params:
                for flag in parameter.opts if parameter.param_type_name == "option" and not parameter.hidden else []:
                    written = f" -l {flag[2:]} " if flag.startswith("--") else f" -s {flag[1:]} "
                    assert (written if shell == "fish" else flag) in text, (shell, name, flag)
        assert "python" not in text.replace("completions/generate.py", "")
        if shutil.which(shell):
            checked = subprocess.run([shell, "-n", path], capture_output=True, text=True)
            assert (checked.returncode, checked.stderr) == (0, ""), shell


def test_the_command_prints_each_file():
    for shell, path in FILES.items():
        done = run("completion", shell)
        assert (done.code, done.out, done.err) == (0, path.read_text(encoding="utf-8"), "")
    assert run("completion", "ksh").code == 2


# bash, by its completion function ----------------------------------------------------------------------------------

CALL = """
compopt() { [[ "$*" == "-o filenames" ]] && filenames=yes; }  # the true one works only while TAB is pressed
source "$1"; shift
[[ $(complete -p v2l) == "complete -F _v2l v2l" ]] || exit 3
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
_v2l v2l "${@: -1}" "${@: -2:1}"
printf '%s\\0' "${filenames-no}" "${COMPREPLY[@]}"
"""


def offered(home, *words, as_files=False):
    """Return the candidates of bash for the last of the words after v2l."""
    done = subprocess.run(
        [shutil.which("bash"), "--norc", "--noprofile", "-c", CALL, "bash", FILES["bash"], "v2l", *words],
        cwd=home,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, ""), "a program that is not found would be reported here"
    filenames, *found, end = done.stdout.split("\0")
    assert (filenames, end) == ("yes" if as_files else "no", "")
    return set(found) - {""}


def test_commands_and_the_options_of_v2l_itself(home):
    assert offered(home, "") == set(COMMANDS)
    assert offered(home, "en") == {"encode"}
    assert offered(home, "-") == {"--version", "-V", "--json", "--help", "-h"}
    assert offered(home, "help", "en") == {"encode"}
    assert offered(home, "completion", "") == set(FILES)
    assert offered(home, "--json", "inf") == {"info"}
    assert offered(home, "unheard", "") == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_offers_exactly_its_options(home, name):
    options = [option for option in COMMANDS[name].params if option.param_type_name == "option" and not option.hidden]
    flags = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    assert offered(home, name, "-") == flags | {"-h", "--help"}
    assert offered(home, name, "--js") == {"--json"} & flags
    begun = {flag for flag in flags if flag.startswith("--de")}
    assert offered(home, name, "some", "thing", "--json", "--de") <= begun


def test_words_of_an_option(home):
    for command in ("encode", "ask"):
        assert offered(home, command, "--dtype", "") == set(Dtype)
        assert offered(home, command, "--device", "") == {"cpu", "cuda", "mps"}
        for flag in ("--model", "-m"):
            assert offered(home, command, flag, "", as_files=True) == {"tiny", *PRESETS, *FOLDERS}
    assert offered(home, "encode", "--frames", "") == set()
    assert offered(home, "ask", "-q", "-") == set()


def test_a_value_behind_an_equals_sign(home):
    """bash splits words at `=`."""
    assert offered(home, "encode", "--dtype", "=", "bf") == {"bfloat16"}
    assert offered(home, "encode", "--device", "=") == {"cpu", "cuda", "mps"}
    assert offered(home, "encode", "--dtype", "=", "bfloat16", "--js") == {"--json"}


def test_files_of_an_option(home):
    def files(*words):
        return offered(home, *words, as_files=True) - set(FOLDERS)

    everything = {path.name for path in home.iterdir() if path.is_file()}
    for command in ("encode", "compose"):
        for flag in ("--output", "-o"):
            assert files(command, flag, "") == set(ADAPTERS)
    assert files("import", "-o", "") == {*ADAPTERS, "hyper.safetensors"}
    assert files("encode", "--hypernetwork", "") == {*ADAPTERS, "hyper.safetensors", "published.pt"}
    assert files("encode", "--files-from", "") == everything
    assert files("encode", "--output-dir", "") == set()
    assert files("ask", "--in-context", "") == {*ODD_VIDEOS, "-dash.mp4"}


def test_words_of_a_command_and_folders_to_look_into(home):
    videos = {*ODD_VIDEOS, "-dash.mp4"}
    for command, files in {
        "encode": videos,
        "ask": videos | set(ADAPTERS),
        "compose": set(ADAPTERS),
        "info": {*ADAPTERS, "hyper.safetensors", "published.pt"},
        "import": {"published.pt"},
    }.items():
        assert offered(home, command, "", as_files=True) == files | set(FOLDERS)
    assert offered(home, "encode", "Clips ü/", as_files=True) == {"Clips ü/in side.mp4"}
    assert offered(home, "encode", "--json", "-r", "--frames", "8", "my", as_files=True) == {"my first video.mp4"}


def test_after_two_dashes_there_are_no_options(home):
    assert offered(home, "encode", "--", "-", as_files=True) == {"-dash.mp4"}
    assert offered(home, "encode", "--", "--dtype", "Gr", as_files=True) == {"Grüße aus Köln.mov"}


def test_all_video_suffixes_in_either_case(tmp_path):
    names = {f"a{suffix}" for suffix in VIDEO_SUFFIXES} | {f"B{suffix.upper()}" for suffix in VIDEO_SUFFIXES}
    for name in [*names, "a.mp4.txt", "mp4", "a.tsx"]:
        (tmp_path / name).touch()
    assert offered(tmp_path, "encode", "", as_files=True) == names


# shells on a terminal ----------------------------------------------------------------------------------------------

START = {
    "bash": (["--norc", "--noprofile", "-i"], "source {file}"),
    "zsh": (["-f", "-i"], "fpath=({file.parent} $fpath); autoload -U compinit; compinit -D -u"),
    "zsh by eval": (["-f", "-i"], 'autoload -U compinit; compinit -D -u; eval "$(<{file})"'),
}
TYPED = {
    "enc\t": ["encode"],
    "encode my\t": ["encode", "my first video.mp4"],
    "encode my\\ fi\t": ["encode", "my first video.mp4"],
    'encode "my\t': ["encode", "my first video.mp4"],
    "encode 'my\t": ["encode", "my first video.mp4"],
    "encode it\t": ["encode", "it's.MKV"],
    "encode it\\'\t": ["encode", "it's.MKV"],
    "encode say\t": ["encode", 'say "hi".webm'],
    "encode Gr\t": ["encode", "Grüße aus Köln.mov"],
    "encode Grü\t": ["encode", "Grüße aus Köln.mov"],
    "encode dol\t": ["encode", "dollar$x.ts"],
    "encode col\t": ["encode", "col:on=.avi"],
    "encode back\t": ["encode", "back\\slash.m4v"],
    "encode Cl\tin\t": ["encode", "Clips ü/in side.mp4"],
    "encode ~/Cl\tin\t": ["encode", "{home}/Clips ü/in side.mp4"],
    "encode --outp\t-dir\t Cl\tin": ["encode", "--output-dir", "Clips ü/in"],
    "ask lec\t why --dty\t bf\t": ["ask", "lecture.v2l.safetensors", "why", "--dtype", "bfloat16"],
    "info --js\t publ\t": ["info", "--json", "published.pt"],
    "encode -- -d\t": ["encode", "--", "-dash.mp4"],
}
"""Keys typed after `v2l `, and the words that the command receives."""


@pytest.mark.parametrize("shell", [shell for shell in START if shell == "bash" or shutil.which(shell.split()[0])])
def test_pressing_tab(shell, home, tmp_path):
    got = press(shell, TYPED, home, tmp_path / "words")
    assert got == {keys: [word.format(home=home) for word in words] for keys, words in TYPED.items()}


def press(shell, lines, home, record):
    """Type lines after `v2l ` into a shell on a pseudo-terminal, where v2l is a function that records its words."""
    arguments, setup = START[shell]
    program = shell.split()[0]
    setup = setup.format(file=FILES[program])
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [shutil.which(program), *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=home,
        env={**ENVIRONMENT, "HOME": str(home)},
        start_new_session=True,
    )
    os.close(slave)
    screen = b""

    def send(line):
        """Type a line and wait until the shell has recorded its words, reading its output so that it does not block."""
        nonlocal screen
        record.unlink(missing_ok=True)
        os.write(master, line.encode() + b"\n")
        end = time.monotonic() + PATIENCE
        while not (record.exists() and record.read_bytes().endswith(b"\0\n")):
            assert time.monotonic() < end, f"{shell} does not answer to {line!r}:\n{screen.decode(errors='replace')}"
            if select.select([master], [], [], 0.01)[0]:
                screen += os.read(master, 65536)
        return record.read_text(encoding="utf-8").removesuffix("\0\n").split("\0")

    try:
        send(f"{setup}; v2l() {{ printf '%s\\0' \"$@\" > '{record}'; echo >> '{record}'; }}; v2l ready")
        return {keys: send("v2l " + keys) for keys in lines}
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_fish_offers_what_bash_offers_where_fish_is_here(home):
    lines = {
        **dict.fromkeys(["", "ask --device ", "info --d", "encode --frames "], False),
        **dict.fromkeys(["encode ", "ask ", "compose ", "info ", "import "], True),
        **dict.fromkeys(["encode my", "encode -o ", "import -o ", "ask -m ", "encode --output-dir "], True),
    }
    for line, as_files in lines.items():
        bash = offered(home, *line.split(" "), as_files=as_files)
        assert bash or line == "encode --frames "
        if shutil.which("fish"):
            script = f"source {FILES['fish']}; set -g PATH; complete -C 'v2l {line}'"
            arguments = [shutil.which("fish"), "--no-config", "-c", script]
            done = subprocess.run(arguments, cwd=home, capture_output=True, text=True, timeout=PATIENCE)
            found = {row.split("\t")[0].removesuffix("/") for row in done.stdout.splitlines()}
            assert (found, done.stderr) == (bash, ""), line
