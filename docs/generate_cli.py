"""Write docs/cli.md, the reference of the command line, from its definition.

`python docs/generate_cli.py` writes it; with `--check` it only reports whether it is current.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from v2l.cli.app import app
from v2l.cli.help import GroupedCommand

PAGE = Path(__file__).with_name("cli.md")
HEAD = """\
# Command line

Written by `python docs/generate_cli.py` from the definition of the commands; `v2l COMMAND --help` prints the same.

Results are printed to standard output, notes, progress and errors to standard error. Exit codes: 0 if everything was
done, 1 if something failed, 2 if the command line is wrong, 130 after Ctrl-C, 143 after SIGTERM. Environment variables:
`V2L_MODEL` names the model, `V2L_CACHE` a folder to keep adapters in, `V2L_JUDGE_KEY` holds the key of the judge.
"""


def page() -> str:
    """Return the text of docs/cli.md."""
    group = typer.main.get_command(app)
    root = typer.Context(group, info_name="v2l", **group.context_settings)
    commands = list(group.commands.items())
    index = "\n".join(f"| [`v2l {name}`](#v2l-{name}) | {_paragraphs(command)[0]} |" for name, command in commands)
    parts = [HEAD, f"| command | purpose |\n| --- | --- |\n{index}\n"]
    parts += ["\n".join(_command(name, command, root)) for name, command in commands]
    return "\n".join(parts)


def _command(name: str, command: GroupedCommand, root: typer.Context) -> Iterator[str]:
    context = typer.Context(command, parent=root, info_name=name)
    yield f"## v2l {name}\n"
    for paragraph in _paragraphs(command):
        yield f"{paragraph}\n"
    yield f"```sh\n{command.example}\n```\n"
    for title, rows in command.sections(context).items():
        yield f"{title}:\n"
        yield "| | |\n| --- | --- |"
        for option, text in rows:
            yield f"| `{_cell(option.strip())}` | {_cell(text)} |"
        yield ""


def _paragraphs(command: GroupedCommand) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write the page; with `--check`, exit with 1 if it is not current."""
    parser = argparse.ArgumentParser(description="Write docs/cli.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is not current")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/cli.md is not current; run python docs/generate_cli.py")


if __name__ == "__main__":
    main()
