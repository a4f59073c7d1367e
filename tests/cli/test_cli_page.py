"""docs/cli.md and the manual page: current, complete and true."""

import re
import shutil
import subprocess
import sys
import tomllib

import typer
from places import ROOT

from v2l.cli.app import app
from v2l.cli.eval import EvalCommand
from v2l.cli.train import TrainCommand


def test_the_pages_are_current():
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


def test_the_pages_have_every_option_and_every_variable_that_is_read():
    page, manual = (ROOT / "docs" / name for name in ("cli.md", "v2l.1"))
    plain = re.sub(r"\\f.|\\(?=-)", "", manual.read_text())
    for name, command in typer.main.get_command(app).commands.items():
        assert f".SS v2l {name}\n" in plain
        below = plain.partition(f".SS v2l {name}\n")[2].partition("\n.SS ")[0]
        options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
        assert [flag for option in options for flag in option.opts if flag not in below] == []
    sources = "".join(path.read_text() for path in (ROOT / "v2l").rglob("*.py"))
    for variable in {*re.findall(r'"(V2L_[A-Z_]+)"', sources), "COLUMNS", "NO_COLOR"}:
        assert f"| `{variable}` |" in page.read_text() and variable in plain
    (installed,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"].items()
    assert installed == ("share/man/man1", [str(manual.relative_to(ROOT))])
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", manual], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_what_the_table_of_habits_says_of_v2l_is_true():
    """Every option of its last column is one of the command, or of some command if none is named."""
    commands = typer.main.get_command(app).commands
    lines = (ROOT / "docs" / "cli.md").read_text().partition("| v2l |\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(lines) > 20
    for said in (code for line in lines for code in re.findall("`([^`]+)`", line.rpartition(" | ")[2])):
        words = said.split()
        name = "".join(re.findall(r"\bv2l (\w+)", said))
        known = [commands[name]] if name else [typer.main.get_command(app), *commands.values()]
        flags = {flag for command in known for parameter in command.params for flag in parameter.opts} | {"--help"}
        assert {word for word in words if re.match("--?[a-zA-Z]", word)} <= flags, said
        assert name or words[0].startswith("-") or words[0] in ("V2L_MODEL", "exit", "quit", "man")
