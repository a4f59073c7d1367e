"""`v2l demo` with another model than the embedded one, and on a video of the user's."""

import io
import json
import re
import sys

import pytest
from places import ROOT
from terminal import SUFFIX, fill
from typer.testing import CliRunner

from v2l.cli.app import app
from v2l.cli.console import Display
from v2l.cli.demo import _print_answers
from v2l.io.text import escape
from v2l.tiny.demo import ASKED, NATURAL_QUESTIONS, DemoAnswer, sample_lecture


@pytest.fixture
def demo(tmp_path, model_folder, monkeypatch):
    """`v2l demo WORDS...` in an empty folder: what it printed, line by line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("v2l.tiny.demo.ANSWER_TOKENS", 6)

    def run(*words):
        done = CliRunner().invoke(app, ["demo", *words, "--model", str(model_folder)])
        assert done.exit_code == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_another_model_is_also_asked_for_a_caption_of_the_lecture(demo, tmp_path):
    header, caption, *others = [line.split("\t") for line in demo("--output-dir", "new/sub")]
    assert header[:4] == ["question", "the clip shows", "adapter", "in context"]
    assert caption[:2] == [
        NATURAL_QUESTIONS[0],
        "A blue cross moves up. The whiteboard says token then ladder then eagle.",
    ]
    assert len(others) == len(ASKED)
    assert sorted(path.name for path in (tmp_path / "new" / "sub").iterdir()) == ["lecture.mp4", f"lecture{SUFFIX}"]


def test_a_video_is_encoded_as_by_encode_and_asked_what_suits_any_video(demo, tmp_path, videos):
    fill(tmp_path, talk=videos[0])
    records = [json.loads(line) for line in demo("talk.mp4", "--json")]
    assert [record["question"] for record in records] == list(NATURAL_QUESTIONS)
    assert {(record["adapter"], record["truth"]) for record in records} == {(f"talk{SUFFIX}", None)}
    made = (tmp_path / f"talk{SUFFIX}").stat().st_ino
    header, *rows = [line.split("\t") for line in demo("talk.mp4")]
    assert header[:3] == ["question", "adapter", "in context"]
    assert [row[1:3] for row in rows] == [
        [escape(record["from_adapter"]), escape(record["in_context"])] for record in records
    ]
    assert (tmp_path / f"talk{SUFFIX}").stat().st_ino == made  # it was current


def test_the_readme_shows_what_a_terminal_of_100_columns_prints(monkeypatch, capsys):
    readme = ROOT / "README.md"
    (shown,) = re.findall(r"^\$ v2l demo\n(.*?)^\$ ", readme.read_text(), re.MULTILINE | re.DOTALL)
    times = re.findall(r"0 / 32 +(\S+) / (\S+)$", shown, re.MULTILINE)
    answers = [
        DemoAnswer(each.prompt, each.answer, each.answer, each.answer, (0, 32), (float(first) / 1e3, float(cold) / 1e3))
        for each, (first, cold) in zip(sample_lecture()[1], times, strict=True)
    ]
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _print_answers(readme, readme, answers, None, Display(quiet=True))
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert [line.rstrip() for line in printed.splitlines() if line.strip()] == shown.splitlines()
