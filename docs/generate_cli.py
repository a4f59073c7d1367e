"""Write docs/cli.md, the reference of the command line, and docs/v2l.1, its manual page, from its definition.

`python docs/generate_cli.py` writes both; with `--check` it only reports whether they are current.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from v2l.cli.app import app
from v2l.cli.help import GroupedCommand

FOLDER = Path(__file__).parent
STREAMS = "Results are printed to standard output, notes, progress and errors to standard error."
EXIT_CODES = {
    "0": "Everything was done.",
    "1": "Something failed.",
    "2": "The command line is wrong.",
    "130": "Ctrl-C ended the command.",
    "143": "SIGTERM ended the command.",
}
ENVIRONMENT = {
    "V2L_MODEL": "The model to use, a preset or a folder, unless `--model` names one.",
    "V2L_CACHE": "A folder to keep all adapters in, as `--cache` keeps them in the user's cache folder.",
    "V2L_HISTORY": "The file of the lines typed in chats, `~/.local/state/v2l/history` by default; `off` keeps none.",
    "V2L_JUDGE_KEY": "The key of the judge of `v2l eval --judge`.",
    "HF_HOME": "The folder of downloaded models, `~/.cache/huggingface` by default.",
    "HF_TOKEN": "The token that `v2l pull` sends to the hub.",
    "XDG_CACHE_HOME": "The folder of the cache's folder, `~/.cache` by default.",
    "XDG_STATE_HOME": "The folder of the history's folder, `~/.local/state` by default.",
    "COLUMNS": "The width of help, tables and progress, instead of the terminal's.",
    "NO_COLOR": "If set, nothing is printed dim or in colour.",
}

PROGRAMS = ("whisper", "yt-dlp", "llm", "hf", "v2l")
HABITS = """\
several inputs; `whisper a.mp3 b.mp3`; `yt-dlp URL URL`; ; `hf download REPO FILE FILE`; `v2l encode a.mp4 b.mp4 talks/`
inputs from a list; ; `-a FILE`, `-a -`; ; ; `v2l encode --files-from FILE`, `--files-from -`
the model; `--model turbo`; ; `-m NAME`, `LLM_MODEL`; ; `-m NAME`, `V2L_MODEL`
the model of all later commands; ; ; `llm models default NAME`; ; `v2l pull NAME --default`
fetch a model; at the first use; ; `llm install PLUGIN`; `hf download REPO`; `v2l pull NAME`
the device; `--device cuda`; ; ; ; `--device cuda`
a part of a video; `--clip_timestamps 10,20`; `--download-sections "*10-20"`; ; ; `--start 10 --end 20`
files are written; to the working folder; to the working folder; ; to a cache; beside the videos
to another folder; `-o FOLDER`; `-P FOLDER`; ; `--local-dir FOLDER`; `--output-dir FOLDER`
to a file of this name; ; `-o TEMPLATE`; ; ; `-o FILE`
what is there already; is made again; is kept; ; is kept; is kept if it is up to date
make it again; always; `--force-overwrites`; ; `--force-download`; `--overwrite`
show what would be done; ; `-s`; ; `--dry-run`; `v2l encode --dry-run`
stop at the first failure; ; `--abort-on-error`; ; ; `--fail-fast`
subtitles; `-f srt`; `--write-subs`; ; ; `v2l ask ADAPTER QUESTION --each --format srt`
JSON; `-f json`; `-j`; `--json`; `--json`; `--json`
print less; `--verbose False`; `-q`; ; `-q`; `--quiet`; in `v2l ask`, `-q` is a question
print more; ; `-v`; ; ; `-v`
a pipe; ; URLs, with `-a -`; the prompt; ; the questions: `cat questions \| v2l ask ADAPTER`
a chat; ; ; `llm chat`; ; `v2l ask ADAPTER`
leave the chat; ; ; `exit`, `quit`; ; `exit`, `quit`, Ctrl-D, Ctrl-C twice
versions; ; `--version`; `--version`; `--version`; `--version`, `-V`
completion; ; files in `share/`; `_LLM_COMPLETE=bash_source llm`; `hf --show-completion`; `v2l completion bash`
the manual; `--help`; `--help`, `man yt-dlp`; `--help`; `--help`; `--help`, `v2l help`, `man v2l`
"""
"""Rows of the table of habits: the purpose, and for each of the programs how it is done there; nothing if it is not."""


# The page ----------------------------------------------------------------------------------------------------------


def page() -> str:
    """Return the text of docs/cli.md."""
    names = "\n".join(f"| [`v2l {name}`](#v2l-{name}) | {_paragraphs(each)[0]} |" for name, each in commands().items())
    head = (
        "# Command line\n\nWritten by `python docs/generate_cli.py` from the definition of the commands; `v2l help "
        f"COMMAND` and `man v2l` print the same.\n\n{STREAMS}\n"
    )
    tables = (
        f"| command | purpose |\n| --- | --- |\n{names}\n",
        _table("exit code", EXIT_CODES),
        _table("environment", ENVIRONMENT),
        habits(),
    )
    return "\n".join([head, *tables, *("\n".join(_section(*each)) for each in commands().items())])


def _table(title: str, rows: dict[str, str]) -> str:
    lines = "".join(f"| `{name}` | {text} |\n" for name, text in rows.items())
    return f"| {title} | meaning |\n| --- | --- |\n{lines}"


def habits() -> str:
    """Return the table of habits: users of other programs find in it what they know."""
    lines = "".join(f"| {' | '.join(re.split('; ?', row, maxsplit=len(PROGRAMS)))} |\n" for row in HABITS.splitlines())
    return (
        f"What is done elsewhere, and here:\n\n| | {' | '.join(PROGRAMS)} |\n|{' --- |' * (1 + len(PROGRAMS))}\n{lines}"
    )


def _section(name: str, command: GroupedCommand) -> Iterator[str]:
    yield f"## v2l {name}\n"
    for paragraph in _paragraphs(command):
        yield f"{paragraph}\n"
    yield f"```sh\n{command.example}\n```\n"
    for title, rows in _groups(name, command).items():
        yield f"{title}:\n"
        yield "| | |\n| --- | --- |"
        for option, text in rows:
            yield f"| `{_cell(option.strip())}` | {_cell(text)} |"
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# The manual page ---------------------------------------------------------------------------------------------------


def manual() -> str:
    """Return the source of the manual page, in the man macros of roff."""
    return "".join(f"{line}\n" for line in _manual())


def _manual() -> Iterator[str]:
    yield '.\\" Written by docs/generate_cli.py; change that file instead.'
    yield '.TH V2L 1 "" v2l "User Commands"\n.SH NAME'
    yield f"v2l \\- {_roff(app.info.help[0].lower() + app.info.help[1:].removesuffix('.'))}"
    yield ".SH SYNOPSIS\n.B v2l\n.I COMMAND\n.RI [ OPTIONS ]\n.RI [ ARGUMENTS ]"
    yield f".SH DESCRIPTION\n{_roff(STREAMS)}"
    yield ".SH COMMANDS"
    for name, command in commands().items():
        yield f".SS {_roff(f'v2l {name}')}"
        yield "\n.PP\n".join(map(_roff, _paragraphs(command)))
        yield f".PP\n.EX\n{_roff(command.example)}\n.EE"
        for title, rows in _groups(name, command).items():
            yield f".PP\n{_roff(title)}:"
            yield from (_term(option.strip(), text) for option, text in rows)
    for heading, entries in (("EXIT STATUS", EXIT_CODES), ("ENVIRONMENT", ENVIRONMENT)):
        yield f".SH {heading}"
        yield from (_term(name, text.replace("`", "")) for name, text in entries.items())


def _term(name: str, text: str) -> str:
    """Return an entry of a list, its name in bold and its placeholders, which are in capitals, in italics."""
    parts = re.split(r"([A-Z]{2,}|(?<= )[A-Z]\b)", _roff(name))
    spelled = name if name.isupper() else "".join(f"\\fI{p}\\fB" if n % 2 else p for n, p in enumerate(parts))
    return f".TP\n\\fB{spelled}\\fR\n{_roff(text)}"


def _roff(text: str) -> str:
    """Escape what roff would interpret: backslashes, hyphens, which it may print as dashes, and a first control."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


# Both --------------------------------------------------------------------------------------------------------------


def commands() -> dict[str, GroupedCommand]:
    """Return the commands by name."""
    return dict(typer.main.get_command(app).commands)


def _groups(name: str, command: GroupedCommand) -> dict[str, list[tuple[str, str]]]:
    group = typer.main.get_command(app)
    root = typer.Context(group, info_name="v2l", **group.context_settings)
    return command.sections(typer.Context(command, parent=root, info_name=name))


def _paragraphs(command: GroupedCommand) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]


def main() -> None:
    """Write the files; with `--check`, exit with 1 if one is not current."""
    parser = argparse.ArgumentParser(description="Write docs/cli.md and docs/v2l.1.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not current")
    check = parser.parse_args().check
    for path, text in ((FOLDER / "cli.md", page()), (FOLDER / "v2l.1", manual())):
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"docs/{path.name} is not current; run python docs/generate_cli.py")


if __name__ == "__main__":
    main()
