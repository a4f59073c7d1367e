"""A model folder without a hypernetwork: answers in context work, and what needs one says so."""

import json
import shutil

import pytest
from typer.testing import CliRunner

import v2l
from v2l.cli.app import app
from v2l.models.hypernetwork_file import FILE_NAME


@pytest.fixture(scope="module")
def bare(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns(FILE_NAME))
    return folder


def test_it_answers_in_context(bare, videos, vlm):
    words = ["ask", "--in-context", videos[0], "what moves?", "--model", bare, "--max-new-tokens", "6", "--json"]
    done = CliRunner().invoke(app, [*map(str, words)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["answer"] == v2l.ask_in_context(videos[0], "what moves?", vlm, max_new_tokens=6)


@pytest.mark.parametrize(
    "words", ["encode VIDEO", "ask VIDEO what?", "verify --video VIDEO", "demo VIDEO", "bench VIDEO"]
)
def test_what_encodes_says_that_there_is_none(bare, videos, words):
    words = words.replace("VIDEO", "\n").split(" ")
    done = CliRunner().invoke(
        app, [str(videos[0]) if word == "\n" else word for word in words] + ["--model", str(bare)]
    )
    (line,) = done.stderr.splitlines()
    assert done.exit_code == 1
    assert f"{bare} has no hypernetwork" in line and "v2l ask --in-context VIDEO" in line
