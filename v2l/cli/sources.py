"""The adapters, videos and questions on a command line, in the order in which they are answered."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from v2l.cli.encode import encode_with_progress
from v2l.cli.outcomes import note_reason
from v2l.errors import UsageError, V2LError
from v2l.io.files import unreadable
from v2l.io.text import clock, counted, printable

if TYPE_CHECKING:
    from v2l.adapters.adapter import Adapter
    from v2l.adapters.description import AdapterFile
    from v2l.adapters.timeline import Timeline
    from v2l.adapters.timeline_description import TimelineFile
    from v2l.cli.console import Display
    from v2l.inference.model_loader import ModelLoader
    from v2l.inference.targets import Destination
    from v2l.video.sampling import Reading

ANSWERS_AT_ONCE, ADAPTER_BYTES_AT_ONCE = 32, 2**30
"""Limits of a batch: its answers, and the bytes of its adapters."""


@dataclass(frozen=True)
class AskRequest:
    """The words of a command line by kind.

    read_stdin: `-` was among them; is_joined: the question was given as several words
    from_folders: the adapters that stand for a folder; errors: folders without any
    """

    adapters: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    questions: tuple[str, ...] = ()
    read_stdin: bool = False
    is_joined: bool = False
    from_folders: tuple[Path, ...] = ()
    errors: tuple[str, ...] = ()


def sort_words(words: Sequence[str], recursive: bool = False) -> AskRequest:
    """Sort the words of a command line.

    An adapter is known by its suffix, a video by its suffix and its presence, a folder is replaced by its adapters, and
    any other word is a question, or a part of one, see `_is_one_question`.

    recursive: a folder stands for the adapters in its subfolders, too
    Raises V2LError for an adapter, or a name that can only be a video's, that is missing.
    """
    from v2l.adapters.timeline_description import is_adapter_file
    from v2l.inference.naming import ADAPTER_SUFFIX, VIDEO_SUFFIXES
    from v2l.inference.targets import find_adapters

    adapters: list[Path] = []
    videos, questions = [], []
    from_folders: list[tuple[Path, str]] = []
    for word in words:
        if word == "-":
            continue
        path = Path(word)
        plain = not any(char.isspace() for char in word)
        if not word:
            raise UsageError("one of the words is empty, perhaps an unset variable; leave it out")
        if word.endswith(ADAPTER_SUFFIX):
            if not os.path.exists(path):
                raise V2LError(f"no adapter {printable(word)}; make it with: v2l encode VIDEO")
            adapters.append(path)
        elif os.path.isdir(path):
            from_folders += find_adapters([path], recursive)
            adapters += [found for found, error in from_folders if not error and found not in adapters]
        elif path.suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(path):
            videos.append(path)
        elif plain and "://" in word:
            raise unreadable(path, FileNotFoundError())
        elif plain and path.suffix.lower() in VIDEO_SUFFIXES:
            raise V2LError(f"no video {printable(word)}; check the name")
        elif os.path.exists(path):
            if is_adapter_file(path):  # under another name
                adapters.append(path)
                continue
            raise V2LError(
                f"{printable(word)} is a file but neither an adapter nor a video; put a question in quotes, or after -q"
            )
        else:
            questions.append(word)
    folders = tuple(path for path, error in from_folders if not error and os.fspath(path) not in words)
    errors = tuple(error for _, error in from_folders if error)
    is_joined = _is_one_question(questions, words)
    asked = [" ".join(questions)] if is_joined else questions
    return AskRequest(
        tuple(dict.fromkeys(adapters)), tuple(videos), tuple(asked), "-" in words, is_joined, folders, errors
    )


def _is_one_question(questions: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether several words are one question without quotes: each is a single word, they follow each other on
    the command line, and not all of them end in a question mark, as several one-word questions do.

    A word of a script without spaces between words can be a question of its own.
    """
    start = words.index(questions[0]) if len(questions) > 1 else 0
    return (
        len(questions) > 1
        and list(words[start : start + len(questions)]) == list(questions)
        and not any(map(_is_phrase, questions))
        and not all(word.endswith("?") for word in questions)
    )


def _is_phrase(word: str) -> bool:
    return any(char.isspace() or unicodedata.east_asian_width(char) in "WF" for char in word)


@dataclass(frozen=True)
class AnswerSource:
    """An adapter's file and the loader of its model, a video in context if `file` is None, or an adapter that cannot be
    read and its error.

    named: how the adapter's model was chosen; empty if as the loader states. All sources of a model share one loader,
        so that it is loaded once, whether an adapter names it or it is the default
    """

    path: Path
    loader: ModelLoader
    file: AdapterFile | TimelineFile | None = None
    error: V2LError | None = None
    named: str = ""

    @property
    def chosen_by(self) -> str:
        """How the model was chosen, see `ModelLoader`."""
        return self.named or self.loader.chosen_by

    @property
    def adapter(self) -> Adapter | Timeline | None:
        """A new copy of the adapter, or the timeline. Imports torch, which reading the file does not."""
        from v2l.adapters.adapter import Adapter
        from v2l.adapters.description import AdapterFile

        if self.file is None:
            return None
        return Adapter.from_file(self.file) if isinstance(self.file, AdapterFile) else self._timeline

    def summary(self) -> str:
        """Describe the source on one line: `"a.v2l.safetensors: 0:00-1:00, 5 segments, SmolVLM2"`."""
        if self.file is None:
            return f"{printable(self.path)}: in context"
        made = self.file.description
        count, first, last = len(made.segments), made.segments[0], made.segments[-1]
        segments = f"{count} segments" if count > 1 else counted(len(first.timestamps), "frame")
        return f"{printable(self.path)}: {clock(first.start)}-{clock(last.end)}, {segments}, {made.base_model.id}"

    @cached_property
    def _timeline(self) -> Timeline:
        """The timeline, which keeps its index and the latest parts between questions."""
        from v2l.adapters.timeline import Timeline
        from v2l.adapters.timeline_description import TimelineFile

        assert isinstance(self.file, TimelineFile), "the other files are adapters"
        return Timeline(self.file)


def encode_source(
    video: Path,
    destination: Destination,
    reading: Reading,
    loader: ModelLoader,
    display: Display,
    overwrite: bool = False,
) -> Path | None:
    """Return the up-to-date adapter of a video, encoding it if needed; None, with an error printed, if that fails.

    An adapter of the video that was read in another way stays as it is: the one to ask goes to the cache.

    overwrite: encode it in any case
    """
    from v2l.adapters.timeline_description import Segmentation
    from v2l.inference.batch import EncodeOptions, locate_adapter
    from v2l.inference.targets import find_targets
    from v2l.video.sampling import Reading

    targets = find_targets([video], destination, reading)
    encoding = EncodeOptions(
        reading,
        Segmentation(frames=reading.frames is not None),
        overwrite=overwrite,
        replace_foreign=loader.chosen_by == "option",
        any_reading=reading == Reading(),
    )
    for place, target in enumerate(targets if reading != Reading() else []):
        with contextlib.suppress(V2LError):  # encoding raises it again
            if target.cache and not target.error and locate_adapter(target, encoding, loader)[1].other_reading:
                targets[place] = target.in_cache()
    adapter = None
    for outcome in encode_with_progress(targets, encoding, loader, display):
        display.end_progress()
        if outcome.status == "failed":
            display.error(outcome.note)
            return None
        note_reason(outcome, display)
        adapter = outcome.target.output
        if outcome.status == "encoded" and destination.cache and adapter.is_relative_to(destination.cache):
            display.note(f"{printable(video)}: its adapter is kept in the cache, {printable(adapter)}")
    return adapter


def load_sources(adapters: Sequence[Path], loader: ModelLoader) -> Iterator[AnswerSource]:
    """Read adapters and group them by model, in the order in which the models first appear; those that cannot be read
    form a group.

    loader: of the model that the user chose; without a choice, each adapter names its model
    """
    from v2l.adapters.timeline_description import read_adapter_file
    from v2l.inference.model_loader import choose_model_for

    groups: dict[str, list[AnswerSource]] = {}
    loaders: dict[str, ModelLoader] = {}
    for path in adapters:
        try:
            file = read_adapter_file(path)
            option = loader.model if loader.chosen_by == "option" else None
            model, chosen_by = choose_model_for(file.description.base_model, option)
            if model not in loaders:
                other = replace(loader, model=model, chosen_by=chosen_by, hypernetwork_source=None)
                loaders[model] = loader if model == loader.model else other
            groups.setdefault(model, []).append(AnswerSource(path, loaders[model], file, named=chosen_by))
        except V2LError as error:
            groups.setdefault("", []).append(AnswerSource(path, loader, error=error))
    for group in groups.values():
        yield from group


def choose_in_folders(
    sources: Sequence[AnswerSource], from_folders: Sequence[Path], display: Display
) -> list[AnswerSource]:
    """Return the sources to ask, without the files of segments whose whole is asked, and note what was left out, and
    the adapters whose video is gone from a folder of videos.

    from_folders: the adapters that were found in folders; those that the user named are asked in any case
    """
    asked, left_out = [], Counter[Path]()
    names = {source.path: _video_names(source) for source in sources if source.file}
    for source in sources:
        whole = _whole(source.path) if source.path in from_folders else None
        if whole in names and names[whole] == names.get(source.path):
            left_out[whole] += 1
        else:
            asked.append(source)
    for whole, count in left_out.items():
        segments = f"{count} segment{'s' * (count > 1)}"
        display.note(f"{printable(whole)}: asked instead of its {segments}, which are files of their own")
    for source in asked:
        gone = [name for name in names.get(source.path, ()) if not os.path.exists(source.path.parent / name)]
        if gone and source.path in from_folders and _holds_videos(source.path.parent):
            display.note(f"{printable(source.path)}: its video {printable(gone[0])} is not in the folder any more")
    return asked


def _video_names(source: AnswerSource) -> tuple[str, ...]:
    assert source.file is not None, "only adapters have names of videos"
    return tuple(dict.fromkeys(each.name for each in source.file.description.sources))


def _whole(path: Path) -> Path | None:
    """Return the adapter of the whole video, by the name of the adapter of a segment."""
    from v2l.inference.naming import ADAPTER_SUFFIX

    stem, _, number = path.name.removesuffix(ADAPTER_SUFFIX).rpartition(".")
    is_segment = stem and len(number) >= 3 and number.isascii() and number.isdigit()
    return path.with_name(f"{stem}{ADAPTER_SUFFIX}") if is_segment else None


@cache
def _holds_videos(folder: Path) -> bool:
    from v2l.inference.naming import is_video

    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return any(is_video(entry.name) for entry in entries)
    return False


def error_line(path: Path, error: V2LError) -> str:
    """Return the line of an error with the path that it is about, once."""
    name, text = printable(path), str(error)
    return text if name in text else f"{name}: {text}"


def batches(sources: Sequence[AnswerSource], questions: Sequence[str]) -> Iterator[list[tuple[AnswerSource, str]]]:
    """Yield every question to every source, in order: consecutive adapters of one model as one batch, as far as its
    limits allow, and each question to a video alone."""
    batch: list[tuple[AnswerSource, str]] = []
    held = 0
    for source in sources:
        for question in questions:
            size = source.file.attached_bytes if source.file else 0
            alike = batch and source.file and batch[0][0].file and source.loader is batch[0][0].loader
            if batch and not (alike and len(batch) < ANSWERS_AT_ONCE and held + size <= ADAPTER_BYTES_AT_ONCE):
                yield batch
                batch, held = [], 0
            batch.append((source, question))
            held += size
    if batch:
        yield batch
