"""The README says what is there: every file, and only commands and options that exist."""

import re
import shlex

import typer
from places import ROOT

from v2l.cli.app import app

README = (ROOT / "README.md").read_text()


def test_the_map_names_every_file_once():
    named = re.findall(r"^\| `v2l/(\S+\.py)` \|", README, re.MULTILINE)
    there = [path.name for path in (ROOT / "v2l").glob("*.py") if not path.name.startswith("__")]
    assert sorted(named) == sorted(there)


def test_commands_and_options_exist():
    known = typer.main.get_command(app).commands
    blocks = "\n".join(re.findall(r"^```(?:sh)?\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
    lines = re.findall(r"(?:^\$ |^|&& |v2l )(?:\S*/)?v2l (\w+ .*)$", blocks, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        command, *words = shlex.split(line, comments=True)
        options = {name for parameter in known[command].params for name in parameter.opts}
        assert {word for word in words if word.startswith("-") and word != "-"} <= options


def test_the_training_page_names_options_that_exist():
    known = typer.main.get_command(app).commands
    text = (ROOT / "docs" / "training.md").read_text().replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    lines = re.findall(r"\bv2l (train|eval|pull) ([^&;\n]*)", blocks)
    assert len(lines) >= 8
    for command, words in lines:
        options = {name for parameter in known[command].params for name in parameter.opts}
        assert {word for word in shlex.split(words) if word.startswith("-")} <= options


def test_both_commands_are_one_line():
    for kind in ("run", "test"):
        (command,) = re.findall(rf"^<!-- {kind} command -->\n```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
        assert command.count("\n") == 1
