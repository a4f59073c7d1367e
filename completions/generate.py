"""Write the completion files of bash, zsh and fish into v2l/cli/completions, from the definition of the command line.

The files are static, so that completion starts no Python. `python completions/generate.py` writes them; with `--check`
it only reports whether they are current.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from v2l.cli.app import app
from v2l.cli.manual import Shell
from v2l.cli.options import Arch, Dtype, ExportFormat, Metric, PaperModel
from v2l.evaluation.conditions import Ablation, Control
from v2l.evaluation.datasets.registry import BENCHMARKS
from v2l.inference.naming import ADAPTER_SUFFIX, VIDEO_SUFFIXES
from v2l.models.presets import PRESETS

Parameter = typer.core.TyperOption | typer.core.TyperArgument
HEADER = "# Completion of v2l's command line in {shell}. Written by completions/generate.py; change that file instead."


@dataclass(frozen=True)
class Kind:
    """The candidates at a place of the command line.

    words: candidates themselves
    suffixes: of the files to offer, in upper and lower case; an empty one allows any file
    paths: offer folders, too
    """

    words: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    paths: bool = True


VIDEOS = tuple(sorted(VIDEO_SUFFIXES))
KINDS = {
    "ablations": Kind(words=tuple(Ablation), paths=False),
    "adapters": Kind(suffixes=(ADAPTER_SUFFIX,)),
    "architectures": Kind(words=tuple(Arch), paths=False),
    "benchmarks": Kind(words=tuple(BENCHMARKS), paths=False),
    "checkpoints": Kind(suffixes=(".pt",)),
    "devices": Kind(words=("cpu", "cuda", "mps"), paths=False),
    "dtypes": Kind(words=tuple(Dtype), paths=False),
    "files": Kind(suffixes=("",)),
    "formats": Kind(words=tuple(ExportFormat), paths=False),
    "folders": Kind(),
    "images": Kind(suffixes=(".pdf", ".png", ".svg")),
    "commands": Kind(words=tuple(registered.name for registered in app.registered_commands), paths=False),
    "controls": Kind(words=tuple(Control), paths=False),
    "manifests": Kind(suffixes=(".jsonl",)),
    "metrics": Kind(words=tuple(Metric), paths=False),
    "models": Kind(words=("tiny", *PRESETS)),
    "papers": Kind(words=tuple(PaperModel), paths=False),
    "safetensors": Kind(suffixes=(".safetensors",)),
    "shells": Kind(words=tuple(Shell), paths=False),
    "tables": Kind(suffixes=(".csv",)),
    "subjects": Kind(suffixes=(ADAPTER_SUFFIX, *VIDEOS)),
    "videos": Kind(suffixes=VIDEOS),
    "weights": Kind(suffixes=(".pt", ".safetensors")),
}
FREE = ""
"""The kind of a number, a time or a question, which have no candidates."""

PARAMETERS = {
    **dict.fromkeys("frames fps start end resolution segments segment_seconds".split(), FREE),
    **dict.fromkeys("max_new_tokens strength question rank".split(), FREE),
    **dict.fromkeys("learning_rate steps batch seed settings".split(), FREE),
    **dict.fromkeys("questions repeats new_tokens budget shard".split(), FREE),
    **dict.fromkeys("limit answer at segment".split(), FREE),
    "inputs": "videos",
    "video": "videos",
    "arch": "architectures",
    "bench output": "manifests",
    "table": "tables",
    "plot": "images",
    "words": "subjects",
    "find words": "adapters",
    "strip": "images",
    "adapters": "adapters",
    "files": "weights",
    "checkpoint": "checkpoints",
    "files_from": "files",
    "in_context": "videos",
    "output": "adapters",
    "import output": "safetensors",
    "output_dir": "folders",
    "model": "models",
    "hypernetwork": "weights",
    "device": "devices",
    "dtype": "dtypes",
    "manifest": "manifests",
    "adapter": "adapters",
    "preset": "architectures",
    "revision": FREE,
    "form": "formats",
    "export output": "files",
    "eval output": "manifests",
    "train output": "folders",
    "validation": "manifests",
    "root": "folders",
    "metric": "metrics",
    "without": "controls",
    "paper": "papers",
    **dict.fromkeys("judge judge_model".split(), FREE),
    "ablate": "ablations",
    "benchmark": "benchmarks",
    "shell": "shells",
    "topic": "commands",
}
"""The kind of the values of each parameter; `command parameter` overrides the parameter alone."""


@dataclass(frozen=True)
class Option:
    """An option, its long name first. kind: of its value, None for a flag."""

    name: str
    flags: tuple[str, ...]
    help: str
    kind: str | None
    repeats: bool


@dataclass(frozen=True)
class Words:
    """The argument of a command, a single one or several."""

    kind: str = FREE
    help: str = ""
    repeats: bool = False


@dataclass(frozen=True)
class Command:
    """A command, its options and its argument."""

    name: str
    help: str
    options: tuple[Option, ...]
    words: Words


def read_commands() -> tuple[Command, ...]:
    """Return the root, whose name is empty, and its commands."""
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name=app.info.name, **root.context_settings)
    found = [Command("", "", _options("", root.get_params(context)), Words())]
    for name, command in root.commands.items():
        parameters = command.get_params(typer.Context(command, parent=context, info_name=name))
        found.append(Command(name, _first_sentence(command.help), _options(name, parameters), _words(name, parameters)))
    return tuple(found)


def _options(command: str, parameters: Sequence[Parameter]) -> tuple[Option, ...]:
    """Return the options with their names sorted: those of --help come from a set, in any order."""
    return tuple(
        Option(
            parameter.name.replace("_", " "),
            tuple(sorted((*parameter.opts, *parameter.secondary_opts), key=len, reverse=True)),
            _first_sentence(parameter.help),
            None if parameter.is_flag else _kind(command, parameter.name),
            parameter.multiple,
        )
        for parameter in parameters
        if parameter.param_type_name == "option" and not parameter.hidden
    )


def _words(command: str, parameters: Sequence[Parameter]) -> Words:
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    if not arguments:
        return Words()
    (argument,) = arguments  # several would have to be counted during completion
    return Words(_kind(command, argument.name), _first_sentence(argument.help), argument.nargs == -1)


def _kind(command: str, parameter: str) -> str:
    for name in (f"{command} {parameter}", parameter):
        if name in PARAMETERS:
            return PARAMETERS[name]
    raise SystemExit(f"{parameter} of v2l {command} is new: add its kind to PARAMETERS in {__file__}")


def _first_sentence(help: str | None) -> str:
    """Return the first sentence on one line, without its full stop."""
    line = " ".join((help or "").split("\n\n")[0].split())
    return line.partition(". ")[0].removesuffix(".")


# bash --------------------------------------------------------------------------------------------------------------

BASH = r"""
# Candidates are added to COMPREPLY line by line, so that spaces and wildcards in names stay what they are.
_v2l_words() {
    mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W "$2" -- "$1")
}

# Folders, and files whose names match the pattern.
_v2l_paths() {
    compopt -o filenames
    mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(_v2l_list "$1" "$2")
}

# compgen undoes the quotes of what was typed; the subshell keeps the shell's own options as they were.
_v2l_list() (
    shopt -s extglob nocasematch
    compgen -d -- "$1"
    while IFS= read -r name; do
        [[ $name == $2 ]] && printf '%s\n' "$name"
    done < <(compgen -f -- "$1")
)

_v2l_offer() {
    case $1 in
@offers@
    esac
}

# Sets `kind` to what follows an option of a command; fails where nothing does.
_v2l_option() {
    case $1 in
@values@
        *) return 1 ;;
    esac
}

_v2l() {
    local IFS=$' \t\n' current=$2 command='' kind='' takes_value='' only_words='' options='' words='' word
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $takes_value ]]; then
            [[ $word == = ]] || takes_value='' # bash makes three words of --model=tiny
        elif [[ $only_words || $word != -?* ]]; then
            command=${command:-$word}
        elif [[ $word == -- ]]; then
            only_words=yes
        elif _v2l_option "$command $word"; then
            takes_value=yes
        fi
    done
    if [[ $takes_value ]]; then
        [[ $current == = ]] && current=''
        _v2l_offer "$kind" "$current"
        return
    fi
    case $command in
@commands@
    esac
    if [[ $current == -* && ! $only_words ]]; then
        _v2l_words "$current" "$options"
    elif [[ $command ]]; then
        _v2l_offer "$words" "$current"
    else
        _v2l_words "$current" '@names@'
    fi
}

complete -F _v2l v2l
"""


def bash_file(commands: tuple[Command, ...]) -> str:
    """Return the text of v2l.bash."""
    parts = {
        "offers": _lines(8, (f"{name}) {'; '.join(_bash_offers(kind))} ;;" for name, kind in KINDS.items())),
        "values": _lines(8, _bash_values(commands)),
        "commands": _lines(8, (_bash_command(command) for command in commands)),
        "names": " ".join(command.name for command in commands if command.name),
    }
    return HEADER.format(shell="bash, 4 or later") + "\n" + _filled(BASH, parts)


def _bash_offers(kind: Kind) -> Iterator[str]:
    if kind.words:
        yield f"_v2l_words \"$2\" '{' '.join(kind.words)}'"
    if kind.paths:
        pattern = "*" if "" in kind.suffixes else f"*@({'|'.join(kind.suffixes)})" if kind.suffixes else ""
        yield f"_v2l_paths \"$2\" '{pattern}'"


def _bash_values(commands: tuple[Command, ...]) -> Iterator[str]:
    """Yield a line of case patterns for each kind of value."""
    for kind in (*KINDS, FREE):
        patterns = [
            f"'{command.name} {flag}'"
            for command in commands
            for option in command.options
            if option.kind == kind
            for flag in option.flags
        ]
        if patterns:
            yield f"{' | '.join(patterns)}) kind='{kind}' ;;"


def _bash_command(command: Command) -> str:
    flags = " ".join(flag for option in command.options for flag in option.flags)
    return f"'{command.name}') words='{command.words.kind}' options='{flags}' ;;"


# zsh ---------------------------------------------------------------------------------------------------------------

ZSH = r"""
@kinds@

_v2l_commands() {
    local -a commands=(
@names@
    )
    _describe -t commands command commands
}

_v2l() {
    local curcontext=$curcontext state line
    local -A opt_args
    _arguments -C -s -S \
@root@
        '(-): :_v2l_commands' \
        '(-)*:: :->words' && return
    [[ $state == words ]] || return
    curcontext=${curcontext%:*:*}:v2l-$words[1]:
    case $words[1] in
@commands@
    esac
}

if [[ $funcstack[1] == _v2l ]]; then # loaded from $fpath: this file is the body of the function
    _v2l "$@"
else # read by source or eval
    compdef _v2l v2l
fi
"""


def zsh_file(commands: tuple[Command, ...]) -> str:
    """Return the text of _v2l."""
    root, *others = commands
    names = (_quoted(f"{command.name}:{command.help}") for command in others)
    parts = {
        "kinds": "\n".join(f"_v2l_{name}() {{ {_zsh_offers(name, kind)} }}" for name, kind in KINDS.items()),
        "names": _lines(8, names),
        "root": _lines(8, (f"{spec} \\" for spec in _zsh_specs(root))),
        "commands": "\n".join(_zsh_command(command) for command in others),
    }
    return "#compdef v2l\n" + HEADER.format(shell="zsh") + "\n" + _filled(ZSH, parts)


def _zsh_offers(name: str, kind: Kind) -> str:
    """Return the body of a function that _arguments calls."""
    words = " ".join(kind.words)
    if not kind.paths:
        return f'compadd "$@" -- {words};'
    if words:
        return f"_alternative '{name}:{name}:({words})' 'folders:folder:_files -/';"
    if not kind.suffixes:
        return '_files "$@" -/;'
    if "" in kind.suffixes:
        return '_files "$@";'
    return f"_files \"$@\" -g '(#i)*({'|'.join(kind.suffixes)})(-.)';"


def _zsh_command(command: Command) -> str:
    specs = list(_zsh_specs(command))
    if command.words.kind:
        place = "*" if command.words.repeats else "1"
        specs.append(_quoted(f"{place}:{_zsh_message(command.words.help)}:_v2l_{command.words.kind}"))
    call = " \\\n                ".join(["_arguments -s -S", *specs])
    return _lines(8, [f"{command.name})", f"    {call}", "    ;;"])


def _zsh_specs(command: Command) -> Iterator[str]:
    """Yield a spec for each name of each option. `(-o --output)` excludes an option that was given already; `=` and `+`
    allow its value to be joined to it."""
    for option in command.options:
        for flag in option.flags:
            again = "*" if option.repeats else f"({' '.join(option.flags)})"
            text = "[" + option.help.replace("]", "\\]") + "]"
            if option.kind is None:
                yield _quoted(f"{again}{flag}{text}")
                continue
            joint = "=" if flag.startswith("--") else "+"
            action = f"_v2l_{option.kind}" if option.kind else " "
            yield _quoted(f"{again}{flag}{joint}{text}:{_zsh_message(option.name)}:{action}")


def _zsh_message(text: str) -> str:
    return text.replace(":", "\\:")


# fish --------------------------------------------------------------------------------------------------------------

FISH = r"""
# Whether the command is the one named; without a name, whether there is none yet.
function __v2l_in
    for word in (commandline -opc)[2..]
        string match -q -- '-*' $word; and continue
        test "$word" = "$argv[1]"
        return
    end
    test -z "$argv[1]"
end

# Folders, and files that end in one of the suffixes. fish itself completes what was typed, so that its quotes count.
function __v2l_paths
    set -l token (commandline -ct | string replace -r -- '^--[^=]*=' '')
    set -l ends (string escape --style=regex -- / $argv | string join '|')
    complete -C "__fish_command_without_completions $token" | string match -rei -- "^[^\t]*(?:$ends)(?:\t|\$)"
end

@kinds@

complete -c v2l -f
@names@

@options@
"""


def fish_file(commands: tuple[Command, ...]) -> str:
    """Return the text of v2l.fish."""
    root, *others = commands
    parts = {
        "kinds": "\n\n".join(_fish_function(name, kind) for name, kind in KINDS.items()),
        "names": "\n".join(f"{_fish_rule(root)} -a {each.name} -d {_fish_quoted(each.help)}" for each in others),
        "options": "\n\n".join("\n".join(_fish_rules(command)) for command in commands),
    }
    return HEADER.format(shell="fish") + "\n" + _filled(FISH, parts)


def _fish_function(name: str, kind: Kind) -> str:
    body = [f"    printf '%s\\n' {' '.join(kind.words)}"] if kind.words else []
    if kind.paths:
        body.append(" ".join(["    __v2l_paths", *(suffix or "''" for suffix in kind.suffixes)]))
    return "\n".join([f"function __v2l_{name}", *body, "end"])


def _fish_rule(command: Command) -> str:
    return f"complete -c v2l -n '{f'__v2l_in {command.name}'.strip()}'"


def _fish_rules(command: Command) -> Iterator[str]:
    rule = _fish_rule(command)
    if command.words.kind:
        yield f"{rule} -a '(__v2l_{command.words.kind})'"
    for option in command.options:
        flags = " ".join(
            f"-l {flag.removeprefix('--')}" if flag.startswith("--") else f"-s {flag.removeprefix('-')}"
            for flag in option.flags
        )
        value = "" if option.kind is None else f" -x -a '(__v2l_{option.kind})'" if option.kind else " -x"
        yield f"{rule} {flags}{value} -d {_fish_quoted(option.help)}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# all ---------------------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    """Quote a word for bash and zsh; unlike shlex.quote, always, so that columns are aligned."""
    return "'" + text.replace("'", "'\\''") + "'"


def _lines(indent: int, lines: Iterable[str]) -> str:
    return "\n".join(" " * indent + line for line in lines)


def _filled(template: str, parts: Mapping[str, str]) -> str:
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template


def generate() -> dict[Path, str]:
    """Return the path and the text of each completion file."""
    folder, commands = Path(__file__).parent.parent / "v2l" / "cli" / "completions", read_commands()
    texts = {Shell.bash: bash_file(commands), Shell.zsh: zsh_file(commands), Shell.fish: fish_file(commands)}
    return {folder / shell.file.name: text for shell, text in texts.items()}


def main() -> None:
    """Write the files; with `--check`, exit with 1 if one is not current."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not current")
    check = parser.parse_args().check
    stale = [
        (path, text)
        for path, text in generate().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        if check:
            print(f"{path.name} is not current; run python completions/generate.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
