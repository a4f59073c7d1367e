"""docs/cli.md: current, and complete."""

import re
import subprocess
import sys

import typer
from places import ROOT

from v2l.cli.app import app
from v2l.cli.eval import EvalCommand
from v2l.cli.train import TrainCommand


def test_the_page_is_current():
    program = [sys.executable, ROOT / "docs" / "generate_cli.py", "--check"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_has_an_example_and_every_option_a_group_and_a_sentence():
    group = typer.main.get_command(app)
    root = typer.Context(group, info_name="v2l", **group.context_settings)
    for name, command in group.commands.items():
        assert command.example.startswith(f"v2l {name}")
        sections = command.sections(typer.Context(command, parent=root, info_name=name))
        assert "Options" not in sections, name
        for option, text in (row for rows in sections.values() for row in rows):
            assert "<" not in option
            assert text.split("  [")[0].endswith("."), (name, option, text)


def test_settings_named_in_the_docs_exist():
    known = {each.name for command in (EvalCommand, TrainCommand) for each in command.named_settings()}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"--set ([a-z_]+)\b", page.read_text(encoding="utf-8"))}
    assert named <= known
