"""`v2l find`: the segments of many videos that match words, or an answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2l.cli.console import Display, announce_model, command
from v2l.cli.help import GroupedCommand
from v2l.cli.options import READ, AdapterModel, Debug, Device, Json, NumberType, Quiet, model_loader
from v2l.errors import UsageError, V2LError
from v2l.io.text import clock, counted, inert, printable, tab_separated

if TYPE_CHECKING:
    from v2l.adapters.search import Finding
    from v2l.inference.model_loader import ModelLoader

LIKELIHOOD = "By likelihood (experimental)"


class FindCommand(GroupedCommand):
    """`v2l find --help` with an example."""

    example = 'v2l find "a red ring, ladder" talks/'


def find(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT ADAPTER|FOLDER",
            help="Find TEXT in these adapters, and in the adapters in these folders.",
            show_default="the current folder",
            rich_help_panel=READ,
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Search subfolders, too.", rich_help_panel=READ)
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, metavar="N", help="Print at most N segments.", rich_help_panel=READ)
    ] = 10,
    question: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Rank by the likelihood of --answer to this question, instead of by words.",
            rich_help_panel=LIKELIHOOD,
        ),
    ] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The answer to --question.", rich_help_panel=LIKELIHOOD)
    ] = None,
    model: AdapterModel = None,
    device: Device = None,
    dtype: NumberType = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the segments of videos that match a text, best first. Experimental.

    While a long video is encoded, each of its segments answers a few questions, and its file keeps the answers as an
    index. TEXT is compared with them: a segment ranks higher, the more words it shares and the rarer they are. No model
    is loaded. In a pipe, a line holds adapter, start and end in seconds, and the answers that match, separated by tabs.
    If nothing is found, a note says so, and the exit code is 0.

    With --question and --answer, segments are ranked by the likelihood of the answer instead. The model computes it
    under every segment, and under every adapter of a short video; a line then ends with its logarithm. Both ways are
    experimental: they have been measured with the embedded model only.
    """
    with command(as_json, quiet, debug) as display:
        words = words or []
        if (question is None) != (answer is None):
            raise UsageError("give --question and --answer together")
        if question is None or answer is None:
            if (model, device, dtype) != (None, None, None):
                raise UsageError("--model, --device and --dtype are for --question; searching words loads no model")
            text, *inputs = words or [""]
            ok = find_words(text, _paths(inputs), recursive, limit, display)
        else:
            loader = model_loader(model, None, device, dtype, display)
            ok = find_answer(question, answer, _paths(words), recursive, limit, loader, display)
        raise typer.Exit(0 if ok else 1)


def _paths(words: Sequence[str]) -> list[Path]:
    return [Path(word) for word in words] or [Path()]


def find_words(text: str, inputs: Sequence[Path], recursive: bool, limit: int, display: Display) -> bool:
    """Print the segments whose answers share the rarest words with a text; True if all files could be read."""
    from v2l.adapters.index import search_words
    from v2l.adapters.search import SearchIndex
    from v2l.models.presets import is_tiny
    from v2l.models.process_memory import without_collection

    if os.path.exists(text) and (inputs == [Path()] or not any(map(os.path.exists, inputs))):
        raise UsageError(f'say what to find, before the files: v2l find "a red ring" {printable(text)}')
    unquoted = [word for word in map(os.fspath, inputs) if not os.path.exists(word) and word.isalnum()]
    if unquoted and text.isalnum():
        whole = printable(" ".join([text, *unquoted]))
        raise UsageError(f'{printable(unquoted[0])} is no adapter or folder; quote a text of several words: "{whole}"')
    if not search_words(text):
        raise UsageError(f"{printable(text)!r} has no word to search for; name a thing, a colour or a written word")
    index = SearchIndex()
    paths, ok = _adapters(inputs, recursive, display)
    with without_collection():
        for path in paths:
            try:
                index.add(path)
            except V2LError as error:
                display.error(str(error))
                ok = False
        found = index.search(text, limit)
    if index.without_index:
        display.note(
            f"not searched, because they hold no index: {index.without_index:,} of {len(paths):,} adapters (of short "
            "videos, or encoded with --no-index)"
        )
    if any(map(is_tiny, index.fingerprints)):
        display.announce_tiny()
    if not found:
        display.note(f"nothing found in the {len(index):,} segments that have an index")
        deeper = 0 if recursive else _number_below(inputs) - len(paths)
        if deeper > 0:
            display.note(f"{counted(deeper, 'more adapter')} in subfolders; --recursive searches them")
    _print(found, "answer", display)
    return ok


def _adapters(inputs: Sequence[Path], recursive: bool, display: Display) -> tuple[list[Path], bool]:
    """Return the adapters to read, and False if an error was printed."""
    from v2l.inference.targets import find_adapters

    found = find_adapters(inputs, recursive)
    for _, error in found:
        if error:
            display.error(error)
    paths = [path for path, error in found if not error]
    return paths, len(paths) == len(found)


def _number_below(inputs: Sequence[Path]) -> int:
    """Return the number of adapters in folders and all their subfolders."""
    from v2l.inference.targets import find_adapters

    return sum(not error for _, error in find_adapters(inputs, recursive=True))


def find_answer(
    question: str,
    answer: str,
    inputs: Sequence[Path],
    recursive: bool,
    limit: int,
    loader: ModelLoader,
    display: Display,
) -> bool:
    """Print the segments under which an answer is the most likely; True if all adapters could be read."""
    from v2l.inference.likelihood import Candidates, answer_likelihoods

    paths, ok = _adapters(inputs, recursive, display)
    candidates = Candidates(paths, loader)
    display.start_progress(len(paths), "adapter")
    found: list[Finding] = []
    for batch in candidates.batches():
        model = candidates.loader.language_model
        likelihoods = answer_likelihoods([each.adapter for each in batch], question, answer, model)
        found += [
            replace(each.finding, matches=((question, answer),), score=likelihood)
            for each, likelihood in zip(batch, likelihoods, strict=True)
        ]
        display.progress(candidates.read, len(paths))
    display.end_progress()
    for error in candidates.errors:
        display.error(error)
    announce_model(candidates.loader, display)
    _print(sorted(found, key=lambda each: -each.score)[:limit], "log-probability", display)
    return ok and not candidates.errors


def _print(found: Sequence[Finding], shows: str, display: Display) -> None:
    """Print segments. shows: the last column, "answer" or "log-probability" """
    texts = [f"{each.score:.3f}" if shows == "log-probability" else _answer(each) for each in found]
    if display.as_json or not sys.stdout.isatty():
        for each, text in zip(found, texts, strict=True):
            segment = tab_separated(os.fspath(each.path), f"{each.start:.6g}", f"{each.end:.6g}")
            display.result(f"{segment}\t{inert(tab_separated(text))}", _record(each))
    elif found:
        rows = [
            [_video(each), f"{clock(each.start)}-{clock(each.end)}", text]
            for each, text in zip(found, texts, strict=True)
        ]
        display.table(["video", "time", shows], rows, justify="left")


def _video(found: Finding) -> str:
    """Return the video with the folder of its adapter, beside which it usually is."""
    return os.fspath(found.path.parent / found.video)


def _answer(found: Finding) -> str:
    """Return the answers that matched, in one line."""
    return "; ".join(answer.removesuffix(".") for _, answer in found.matches)


def _record(found: Finding) -> dict[str, Any]:
    question, answer = found.matches[0]
    return {
        "command": "find",
        "adapter": found.path,
        "video": found.video,
        "start": found.start,
        "end": found.end,
        "question": question,
        "answer": answer,
        "matches": [{"question": question, "answer": answer} for question, answer in found.matches],
        "score": found.score,
    }
