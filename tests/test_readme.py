"""README and documentation name only files, commands and options that exist, and keep to their size."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer
from places import DATA, ROOT

from v2l.adapters.adapter import Adapter
from v2l.cli.app import app

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands


def command_lines(page: Path) -> list[str]:
    """Every `v2l COMMAND ...` in a code block or a code span of a page, without `v2l`."""
    text = page.read_text().replace("\\\n", " ")
    fence = re.compile(r"^```(?:sh|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
    blocks = fence.findall(text)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    code = [line for block in blocks for line in block.splitlines()] + [" ".join(span.split()) for span in spans]
    known = "|".join(COMMANDS)
    found = [
        re.search(rf"(?:^|^\$ |&& |-m |^\w+=\S+ )(?:\S*/)?v2l ((?:{known})\b[^&;|]*)", line.strip()) for line in code
    ]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page):
    if "history" in page.parts:
        return  # records of commands as they were at the time
    for line in command_lines(page):
        command, *words = shlex.split(line, comments=True)
        options = {
            name for parameter in COMMANDS[command].params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= options | {"--help", "-h"}, line


def test_the_readme_shows_every_command():
    shown = {line.split()[0] for line in command_lines(README)}
    assert shown == set(COMMANDS)


def test_the_readme_and_the_page_of_figures_are_short():
    assert len(README.read_text().splitlines()) <= 180
    for page in (README, ROOT / "docs" / "reproduce.md"):
        assert len(page.read_text().split()) <= 1500, page


def test_set_up_and_test_are_one_line_each():
    for kind in ("run", "test"):
        pattern = rf"^<!-- {kind} command -->\n```sh\n(.*?)^```"
        (command,) = re.findall(pattern, README.read_text(), re.MULTILINE | re.DOTALL)
        assert command.count("\n") == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", sorted((DATA / "golden").glob("*.safetensors")), ids=lambda path: path.name)
def test_the_reader_on_the_format_page_reads_golden_files(path, tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "format.md").read_text(), re.MULTILINE | re.DOTALL)
    reader = {"__name__": "reader"}
    exec(code, reader)
    description, tensors = reader["read_adapter"](path)
    known = Adapter.load(path)
    assert description["sha256"] == known.sha256()
    assert {name: tensor["shape"] for name, tensor in tensors.items()} == {
        name: list(tensor.shape) for name, tensor in known.named_tensors().items()
    }
    damaged = tmp_path / "damaged"
    damaged.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(AssertionError, match="damaged"):
        reader["read_adapter"](damaged)


def test_the_architecture_page_names_every_module_once():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`(v2l/[\w/]+\.py)`", text)
    modules = [path for path in (ROOT / "v2l").rglob("*.py") if not is_empty(path)]
    assert sorted(named) == sorted(str(path.relative_to(ROOT)) for path in modules)


def test_the_architecture_page_names_every_folder():
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "v2l").rglob("__init__.py")}
    assert {f"`{folder}/`" for folder in folders if folder.name != "v2l"} <= set(re.findall(r"`v2l/[\w/]*`", text))


def is_empty(path: Path) -> bool:
    """A module without code: the `__init__.py` of a folder."""
    return path.name == "__init__.py" and all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_paths_exist(page):
    if "history" in page.parts:
        return
    named = re.findall(r"\b(?<!/)((?:v2l|tests|docs|completions)/[\w./-]*\w/?)", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", page.read_text())) <= tests
