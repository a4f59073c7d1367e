"""Many videos: one command, a shell loop and xargs write the same files; and the output on a terminal."""

import os
import shlex
import sys

import pytest
import small
from terminal import SUFFIX, V2L, Running, Terminal, fill, plain, run, tree

import v2l


def check_all_ways_agree(folder, clips, model_folder, **env):
    """Encode copies of the clips by one command, a loop and xargs, and compare the bytes."""
    ways = {
        "one": f"{shlex.quote(V2L)} encode .",
        "loop": f'for clip in *.mp4; do {shlex.quote(V2L)} encode "$clip" || exit; done',
        "xargs": f"printf '%s\\0' *.mp4 | xargs -0 -n 1 -P 2 {shlex.quote(V2L)} encode",
    }
    for way in ways:
        fill(folder / way, **clips)
    made = sorted(f"{name}{SUFFIX}" for name in clips)
    for way, line in ways.items():
        done = Running(cwd=folder / way, model=model_folder, env=env, program=["sh", "-c", line]).end()
        assert done.code == 0, (way, done)
        assert sorted(done.lines) == made
        assert tree(folder / way) == sorted([*made, *(f"{name}.mp4" for name in clips)])
    for name in made:
        assert len({(folder / way / name).read_bytes() for way in ways}) == 1, name
    contents = {v2l.Adapter.load(folder / "one" / name).sha256() for name in made}
    assert len(contents) == len(made)


def test_a_loop_and_xargs_make_the_same_files_as_one_command(tmp_path, videos, model_folder):
    clips = {f"clip {index}": video for index, video in enumerate(videos)}
    check_all_ways_agree(tmp_path, clips, model_folder)


@pytest.mark.slow
def test_a_loop_and_xargs_make_the_same_files_of_twenty_clips(tmp_path, model_folder):
    clips = {
        f"clip {seed:02d}": small.write_video(tmp_path / f"{seed}.mp4", frames=24 + 4 * seed, seed=seed)
        for seed in range(20)
    }
    check_all_ways_agree(tmp_path, clips, model_folder)


@pytest.fixture(scope="module")
def shown(tmp_path_factory, videos, model_folder):
    """The output of a batch on terminals of 40 columns, with and without cursor movement."""
    terminals = {}
    for term in ("xterm-256color", "dumb"):
        here = fill(tmp_path_factory.mktemp(term), **{"a clip of a long name": videos[0], "b": videos[1]})
        (here / "c.mp4").touch()
        env = {"TERM": term, "NO_COLOR": "1"}
        terminals[term] = here, Terminal("encode", ".", columns=40, cwd=here, model=model_folder, env=env)
    return {term: (here, *terminal.end()) for term, (here, terminal) in terminals.items()}


def test_a_terminal_sees_results_notes_and_a_bar_that_goes_away(shown):
    here, code, screen = shown["xterm-256color"]
    assert code == 1
    assert "video" in screen
    assert "\r" in screen.replace("\r\n", "\n")
    check_lines(here, after_the_bar(screen))


def test_a_dumb_terminal_sees_lines_only(shown):
    here, code, screen = shown["dumb"]
    assert code == 1
    assert "\x1b" not in screen
    assert "\r" not in screen.replace("\r\n", "\n")
    check_lines(here, plain(screen))


def after_the_bar(screen):
    """Return the lines that remain: of every line, the part after its last carriage return."""
    return "".join(line.split("\r")[-1] + "\n" for line in plain(screen).split("\n")[:-1])


def check_lines(here, text):
    lines = [line for line in text.split("\n")[:-1] if not line.startswith("loading ")]
    plan, first, second, error, summary = lines
    assert plan == "3 videos to encode"
    for name, frames, line in (("a clip of a long name", 4, first), ("b", 6, second)):
        size = os.stat(here / f"{name}{SUFFIX}").st_size
        assert line.startswith(f"{name}{SUFFIX}  {size / 1000:.1f} kB, {frames} frames"), text
    assert error.startswith("v2l: error: ")
    assert "c.mp4" in error
    assert summary == "2 encoded, 1 failed"


def test_progress_is_for_terminals_results_for_pipes_and_quiet_is_quiet(tmp_path, videos, model_folder):
    piped, silent = (fill(tmp_path / name, a=videos[0], b=videos[1]) for name in ("piped", "silent"))
    reading, writing = os.pipe()
    terminal = Terminal("encode", ".", cwd=piped, model=model_folder, stdout=writing)
    quiet = Terminal("encode", ".", "--quiet", cwd=silent, model=model_folder)
    os.close(writing)
    code, screen = terminal.end()
    with open(reading, "rb") as pipe:
        assert pipe.read() == f"a{SUFFIX}\nb{SUFFIX}\n".encode()
    assert code == 0
    assert "\r" in screen.replace("\r\n", "\n")
    assert after_the_bar(screen) == "2 videos to encode\n2 encoded\n"
    code, screen = quiet.end()
    assert code == 0
    first, second = screen.split("\r\n")[:-1]
    assert first.startswith(f"a{SUFFIX}  ")
    assert second.startswith(f"b{SUFFIX}  ")


def test_debug_shows_where_it_went_wrong(tmp_path, model_folder):
    (tmp_path / "empty.mp4").touch()
    words = ["info", "nosuch" + SUFFIX, "--debug"]
    done = run(*words, cwd=tmp_path, traceback=True, program=[sys.executable, "-m", "v2l"])
    assert done.code == 1
    assert f"nosuch{SUFFIX}" in done.err
