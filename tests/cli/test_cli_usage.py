"""The help, the versions, and wrong command lines, which end with exit code 2 before any work."""

import re
import shlex
import sys

import pytest
from terminal import SUFFIX, V2L, Terminal, fill, nobody_reads, plain, run, run_each, tree
from typer.testing import CliRunner

import v2l
from v2l.cli.app import app

COMMANDS = "encode ask find frames demo compose info verify export pull import bench eval train completion help".split()


def test_help_and_completion_import_nothing_heavy():
    code = (
        "import sys\n"
        "from v2l.cli.app import main\n"
        "sys.argv = ['v2l', *sys.argv[1:]]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(*[name for name in ('torch', 'transformers', 'cv2', 'numpy') if name in sys.modules], file=sys.stderr)\n"
    )
    helps = ["--help"], *([command, "-h"] for command in COMMANDS)
    for done in run_each(*helps, program=[sys.executable, "-c", code]):
        assert (done.code, done.err) == (0, "\n")
        assert "Usage: v2l" in done.out


def test_help_lists_the_commands():
    done = run("--help")
    assert (done.code, done.err) == (0, "")
    assert all(f" {command} " in done.out for command in COMMANDS)


def test_help_is_a_command_too():
    for words in ([], ["encode"], ["help"]):
        helped, asked = run("help", *words), run(*words, "--help")
        assert (helped.code, helped.out, helped.err) == (0, asked.out, "")
    unknown = run("help", "nosuch")
    assert (unknown.code, unknown.out) == (2, "")
    assert "nosuch" in unknown.err


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_columns_sets_the_width_of_the_help(columns):
    widths = map(len, run("encode", "--help", env={"COLUMNS": str(columns)}).lines)
    assert columns - 20 < max(widths) <= columns


def test_columns_sets_the_width_of_progress(tmp_path, videos, model_folder):
    folder, environment = fill(tmp_path, talk=videos[0]), {"COLUMNS": "30"}
    _, screen = Terminal("encode", "talk.mp4", columns=120, cwd=folder, model=model_folder, env=environment).end()
    drawn = [line for line in re.split(r"[\r\n]|\x1b\[.", screen) if line.startswith("loading") or "%|" in line]
    assert len(drawn) > 1
    assert max(map(len, drawn)) <= 30


def test_python_m_v2l_is_the_command():
    done = run("encode", "--help", program=[sys.executable, "-m", "v2l"])
    assert (done.code, done.err) == (0, "")
    assert "Usage: python -m v2l encode" in done.out


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=str)
def test_a_terminal_of_40_columns_gets_all_of_the_help(environment):
    terminal = Terminal("encode", "--help", columns=40, env=environment)
    code, screen = terminal.end()
    assert code == 0
    assert all(option in screen for option in ("--output-dir", "--segment-seconds", "--check-hash", "--hypernetwork"))
    assert not has_colour(screen)
    assert "NO_COLOR" in environment or "\x1b" not in screen


def has_colour(screen: str) -> bool:
    sequences = [part.split("m")[0].split(";") for part in screen.split("\x1b[")[1:]]
    return any(30 <= int(number or 0) <= 49 or 90 <= int(number or 0) <= 107 for codes in sequences for number in codes)


def test_version_names_what_v2l_stands_on():
    done = run("--version", "--json")
    assert (done.code, done.err) == (0, "")
    (record,) = done.records
    assert record["v2l"] == 1
    assert record["command"] == "version"
    assert record["versions"]["v2l"] == v2l.__version__
    assert {"torch", "transformers", "opencv-python", "FFmpeg avcodec"} <= record["versions"].keys()


def test_version_is_a_line_each_and_survives_a_reader_that_left():
    assert f"v2l {v2l.__version__}" in run("--version").lines
    assert run("--version", stdout=nobody_reads()).err == ""


# Words that cannot be meant --------------------------------------------------------------------------------------

BEFORE_TORCH = {
    "": "encode",  # the help: what there is to do
    "--json": "Usage",
    "nosuch": "nosuch",
    "encode": "v2l: error: VIDEO|FOLDER is missing",
    "lecture.mp4": "v2l encode lecture.mp4",
    "encode --nosuch": "--nosuch",
    "encode a.mp4 --segments 0": "Invalid value for '--segments': 0 is too small; give 1 or more",
    "encode a.mp4 --frames x": "Invalid value for '--frames': 'x' is not a whole number",
    "encode a.mp4 --start -1": "--start",
    "encode a.mp4 --end 1:2:3:4": "--end",
    "encode a.mp4 --dtype int8": "Invalid value for '--dtype': 'int8' is not one of",
    "encode a.mp4 --device gpu": "--device gpu",
    "ask -q": "-q",
    f"compose a{SUFFIX}": "--output",
    "import a.pt": "--output",
}


@pytest.mark.parametrize("words", BEFORE_TORCH)
def test_a_word_that_is_not_understood_is_a_usage_error(words):
    done = run(*words.split(), program=[sys.executable, "-X", "importtime", "-m", "v2l"])
    said = [line for line in done.notes if not line.startswith("import time:")]
    assert (done.code, done.out) == (2, "")
    assert BEFORE_TORCH[words] in "\n".join(said)
    assert "torch" not in {line.split()[-1] for line in done.notes if line.startswith("import time:")}


@pytest.mark.parametrize(
    ("words", "said"),
    {
        "encode --force": "No such option: --force (Possible options: --overwrite)",
        "import -f": "No such option: -f (Possible options: --overwrite)",
        "info -f": "No such option: -f\n",
        f"a{SUFFIX}": f"ask a{SUFFIX}",
        ".": "encode .",
        "pull": "v2l: error: PRESET is missing; v2l pull --help",
        "pull tiny": "tiny is a part of v2l; there is nothing to pull",
        "pull HuggingFaceTB/SmolVLM2-2.2B-Instruct": "v2l pull smolvlm2-2.2b",
        "ask --fps x": "'x' is not a number",
    }.items(),
)
def test_a_usage_error_says_what_to_write_instead(words, said):
    done = CliRunner().invoke(app, words.split(), prog_name="v2l")
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Value error" not in done.stderr and "Input should" not in done.stderr


CONTRADICTIONS = {
    "encode talk.mp4 --segments 2 --segment-seconds 3": "--segment-seconds",
    "encode talk.mp4 --compose": "--split",
    f"encode talk.mp4 -o a{SUFFIX} --output-dir out": "--output-dir",
    "encode talk.mp4 -o a.safetensors": SUFFIX,
    "encode --files-from nosuch.txt": "nosuch.txt",
    "encode talk.mp4 --start 5 --end 2": "start",
    "ask what?": SUFFIX,
    f"ask whole{SUFFIX}": "-q",
    f"ask whole{SUFFIX} what? --strength nan": "--strength",
    f"compose whole{SUFFIX} -o other.safetensors": SUFFIX,
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory, videos, adapters):
    folder = fill(tmp_path_factory.mktemp("desk"), talk=videos[0])
    adapters[0].save(folder / f"whole{SUFFIX}")
    return folder


@pytest.fixture(scope="module")
def contradicted(desk, model_folder):
    before = tree(desk)
    done = run_each(*(words.split() for words in CONTRADICTIONS), cwd=desk, model=model_folder)
    return dict(zip(CONTRADICTIONS, done, strict=True)), tree(desk) == before


@pytest.mark.parametrize("words", CONTRADICTIONS)
def test_words_that_contradict_each_other_are_one_line_and_begin_nothing(words, contradicted):
    done, untouched = contradicted[0][words], contradicted[1]
    assert (done.code, done.out) == (2, "")
    (line,) = done.notes
    assert line.startswith("v2l: error: ")
    assert CONTRADICTIONS[words] in line
    assert untouched


def test_one_file_for_two_videos_is_refused_before_anything_is_written(tmp_path, model_folder):
    (tmp_path / "talk.mp4").touch()
    (tmp_path / "talk.mkv").touch()
    done = run("encode", ".", "-o", f"one{SUFFIX}", cwd=tmp_path, model=model_folder)
    assert (done.code, done.out) == (2, "")
    assert "--output-dir" in done.err
    assert tree(tmp_path) == ["talk.mkv", "talk.mp4"]


def test_usage_errors_at_a_narrow_terminal_lose_nothing(desk, model_folder):
    terminal = Terminal("encode", "talk.mp4", "--compose", columns=40, cwd=desk, model=model_folder)
    code, screen = terminal.end()
    assert code == 2
    assert plain(screen) == (
        "v2l: error: --compose is gone: --segments and --segment-seconds write one file; --split writes one a segment\n"
    )


def test_streams_that_are_closed_from_the_start_are_no_reason_for_a_traceback(desk, model_folder):
    """As with `>&-`, or under a daemon that starts a command without streams."""
    streams = "0<&-", "1>&-", "2>&-"
    lines = [f"{shlex.quote(V2L)} info whole{SUFFIX} --json {stream}" for stream in streams]
    shells = run_each(*(["-c", line] for line in lines), cwd=desk, model=model_folder, program=["sh"])
    for stream, done in zip(streams, shells, strict=True):
        assert (done.code, done.err) == (0, ""), stream
        assert [record["command"] for record in done.records] == ([] if stream == "1>&-" else ["info"])
