"""Download a preset from the hub: the frozen model and its published hypernetwork, each file verified by its hash.

Only this module uses the hub, through hub.py, and only this module writes into the local Hugging Face cache, in the
layout of huggingface_hub: `models--OWNER--NAME/blobs/HASH`, linked from `snapshots/COMMIT/FILE`. HF_HOME, HF_TOKEN,
HF_ENDPOINT and HF_HUB_OFFLINE are obeyed. A branch is resolved to a commit once; the hashes of that commit's files are
recorded in the lock file and must not change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from v2l.errors import V2LError
from v2l.io.files import open_regular, unreadable
from v2l.io.text import printable
from v2l.models.checkpoint import check_belongs, load_hypernetwork
from v2l.models.hub import HubFile, NotThere, download, list_files
from v2l.models.loading import load_vlm
from v2l.models.presets import PRESETS, Lock, LockedRepo, Preset, is_commit, lock_path, read_lock, write_lock

MODEL_FILES = re.compile(r"[^/]+\.(json|jinja|safetensors)|LICENSE[^/]*")
"""Files of the model's repository: those at its top level, weights as safetensors only."""


@dataclass(frozen=True)
class Pulled:
    """A downloaded repository: its name, the commit, the licence that it states, and the bytes of its files."""

    repo: str
    commit: str
    licence: str
    size: int


Report = Callable[[str], None]


def pull(name: str, revision: str | None, make_default: bool, report: Report) -> list[Pulled]:
    """Download the two repositories of a preset, check that they work together, and record them in the lock file.

    revision: branch, tag or commit of the model's repository; None for the recorded one, else `main`
    make_default: use this preset if no model is named; the first preset that is pulled always becomes the default
    report: called with a line about each step

    Raises V2LError, and records nothing, if the hub cannot be reached, a file is missing or differs from the hub's
    listing or the lock file, the disk is full, or the two do not work together. Downloaded parts are kept for the next
    attempt.
    """
    if name not in PRESETS:
        raise V2LError(f"unknown preset {printable(name)}; choose from {', '.join(PRESETS)}")
    preset, lock = PRESETS[name], read_lock()
    model, lock = _fetch(preset.model, MODEL_FILES.fullmatch, revision, lock, report)
    weights = [name for name in lock.repos[preset.model].files if name.endswith(".safetensors")]
    lacking = "" if weights else ".safetensors"
    if "config.json" not in lock.repos[preset.model].files:
        lacking = "config.json"
    if lacking:
        raise V2LError(f"{preset.model} has no {lacking} at {model.commit[:12]}; name another --revision")
    hypernetwork, lock = _fetch_hypernetwork(preset, lock, report)
    first = lock.default is None
    if first or make_default:
        lock = dataclasses.replace(lock, default=name)
    before = read_lock()
    write_lock(lock)  # the self-test finds the preset by it
    try:
        self_test(name, preset, report)
    except BaseException:
        write_lock(before)
        raise
    return [model, hypernetwork]


def self_test(name: str, preset: Preset, report: Report) -> None:
    """Load the model and the hypernetwork strictly. Raises V2LError if the tokenizer, the images or the hypernetwork
    are not those that v2l implements."""
    report(f"self-test: loading {preset.model} and its hypernetwork")
    vlm = load_vlm(name, device="cpu")
    if vlm.geometry.tokens_per_image != preset.tokens_per_image:
        raise V2LError(
            f"{preset.model} turns an image into {vlm.geometry.tokens_per_image} tokens and "
            f"{preset.tokens_per_image} were expected; name another --revision"
        )
    check_belongs(load_hypernetwork(name, device="cpu"), vlm)


def _fetch_hypernetwork(preset: Preset, lock: Lock, report: Report) -> tuple[Pulled, Lock]:
    """Fetch the hypernetwork from the first of its repositories that the hub has."""

    def choose(files: list[HubFile]) -> list[HubFile]:
        chosen = preset.choose_hypernetwork(file.name for file in files)
        return [file for file in files if file.name == chosen]

    for repo in preset.hypernetworks:
        try:
            return _fetch(repo, preset.is_hypernetwork, None, lock, report, choose)
        except NotThere as error:
            missing = error
            report(f"{error}; trying a former name")
    raise V2LError(f"the hub has the hypernetwork under none of its names: {missing}")


def _fetch(
    repo: str,
    wanted: Callable[[str], Any],
    revision: str | None,
    lock: Lock,
    report: Report,
    choose: Callable[[list[HubFile]], list[HubFile]] = list,
) -> tuple[Pulled, Lock]:
    """Fetch and verify files of a repository: those that `choose` takes of the wanted ones. Returns the lock with
    them."""
    locked = lock.repos.get(repo)
    requested = revision or (locked.commit if locked else "main")
    listing = list_files(repo, requested, wanted)
    commit = listing.commit
    if is_commit(requested) and commit != requested:
        raise V2LError(
            f"the hub answers with commit {commit[:12]} of {repo} instead of {requested[:12]}; check HF_ENDPOINT"
        )
    files = choose(listing.files)
    if not files:
        raise NotThere(f"{repo} has none of the required files at {commit[:12]}")
    _check_space(files)
    known = locked.files if locked and locked.commit == commit else {}
    found = {}
    for file in sorted(files, key=lambda file: file.name):
        report(f"{repo} {file.name}")
        found[file.name] = _fetch_file(CachePlace(repo, commit, file), known.get(file.name))
    # the other files of this commit belong to another preset
    kept = LockedRepo(revision or (locked.revision if locked else "main"), commit, known | found)
    pulled = Pulled(repo, commit, listing.licence, sum(file.size for file in files))
    return pulled, dataclasses.replace(lock, repos=lock.repos | {repo: kept})


def _fetch_file(place: CachePlace, recorded: str | None) -> str:
    """Fetch a file unless the cache holds it, verify it and return its sha256.

    recorded: the sha256 that the lock file states, None if it states none

    Raises V2LError, and discards the file, if it is not the one that the hub lists or that was recorded.
    """
    if os.path.exists(place.pointer):
        return _checked(place, place.pointer, recorded)
    with place.writing():
        source = place.blob
        if not os.path.exists(source):
            source = place.part
            with _open_part(source) as part:
                download(place.repo, place.commit, place.file, part)
                part.flush()
                os.fsync(part.fileno())
        sha256 = _checked(place, source, recorded)
        if source != place.blob:
            os.replace(source, place.blob)
        place.link()
        return sha256


def _checked(place: CachePlace, source: Path, recorded: str | None) -> str:
    """Return the sha256 of `source`, one of the paths of `place`. Raise V2LError and discard it if it is another file
    than the hub lists or than was recorded."""
    try:
        with open_regular(source) as content:
            sha256 = got = hashlib.file_digest(content, "sha256").hexdigest()
            if is_commit(place.file.digest):  # git's hash of a file outside LFS: sha1 of a header and the data
                start = b"blob %d\0" % content.tell()
                content.seek(0)
                got = hashlib.file_digest(content, lambda: hashlib.sha1(start)).hexdigest()
    except OSError as error:
        raise unreadable(source, error) from error
    name = f"{place.repo} {place.file.name}"
    if got != place.file.digest:
        place.discard(wrong=source)
        raise V2LError(
            f"{name} has the hash {got[:12]} and the hub states {place.file.digest[:12]}; it was discarded, pull again"
        )
    if recorded is not None and recorded != sha256:
        place.discard()
        raise V2LError(
            f"{name} differs from the file that was recorded for this commit ({sha256[:12]}, {recorded[:12]}); check "
            f"HF_ENDPOINT, or move {printable(lock_path())} away to trust the hub's current files"
        )
    return sha256


# The cache ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CachePlace:
    """The paths of one file in the local Hugging Face cache, built from checked names only."""

    repo: str
    commit: str
    file: HubFile

    @property
    def folder(self) -> Path:
        """The folder of the repository."""
        return _cache() / f"models--{self.repo.replace('/', '--')}"

    @property
    def blob(self) -> Path:
        """The complete file, named by its hash."""
        return self.folder / "blobs" / self.file.digest

    @property
    def part(self) -> Path:
        """The part of the file that has been downloaded."""
        return self.folder / "blobs" / f"{self.file.digest}.incomplete"

    @property
    def pointer(self) -> Path:
        """The file under its own name: a link to the blob."""
        return self.folder / "snapshots" / self.commit / self.file.name

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Create the folders and hold the lock of this file, which huggingface_hub takes too. Raise V2LError if a
        folder leads out of the cache, or if the cache cannot be written."""
        from huggingface_hub.utils import WeakFileLock

        locks = _cache() / ".locks" / self.folder.name
        try:
            for folder in (self.blob.parent, self.pointer.parent, locks):
                _check_inside(folder)
                folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError), open(_cache() / "CACHEDIR.TAG", "x") as tag:
                tag.write("Signature: 8a477f597d28d172789f06886806bc55\n")  # backup programs skip such a folder
            with WeakFileLock(locks / f"{self.file.digest}.lock"):
                yield
        except OSError as error:
            raise V2LError(
                f"cannot write into {printable(self.folder)}: {error.strerror or error}; check its permissions and "
                "pull again"
            ) from error

    def link(self) -> None:
        """Link the pointer to the blob. Replace a broken pointer."""
        from huggingface_hub import constants

        self.pointer.unlink(missing_ok=True)
        try:
            if getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False):
                raise OSError
            os.symlink(os.path.relpath(self.blob, self.pointer.parent), self.pointer)
        except OSError:  # a file system without symbolic links
            os.replace(self.blob, self.pointer)

    def discard(self, wrong: Path | None = None) -> None:
        """Remove the pointer and the part, and also the blob if `wrong` is it or a link to it. Links are removed, never
        their targets. Raise V2LError if a folder leads out of the cache, or if removing fails."""
        is_blob = wrong is not None and os.path.realpath(wrong) == os.path.realpath(self.blob)
        for path in (self.part, self.pointer, *([self.blob] if is_blob else [])):
            _check_inside(path.parent)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise V2LError(
                    f"cannot remove {printable(path)}, which is wrong: {error.strerror or error}; remove it by hand"
                ) from error


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _check_inside(folder: Path) -> None:
    """Raise V2LError if the folder, with all links resolved, is outside the cache."""
    if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(_cache())):
        raise V2LError(
            f"{printable(folder)} is a link out of the cache, where v2l does not write or remove files; remove the "
            "link, or set HF_HUB_CACHE"
        )


def _open_part(path: Path) -> BinaryIO:
    """Open a file for appending, without following a link or waiting for the reader of a pipe. Raise OSError."""
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags | careful, 0o666))


def _check_space(files: Sequence[HubFile]) -> None:
    """Raise V2LError if the disk of the cache has no space for the files. Files in the cache are not counted; partial
    downloads are, so the estimate is an upper bound."""
    place = _cache()
    needed = sum(file.size for file in files if not any(place.glob(f"models--*/blobs/{file.digest}")))
    while not os.path.exists(place):
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise V2LError(
            f"the download takes {needed / 1e9:.1f} GB and {printable(place)} has {free / 1e9:.1f} GB free; make room"
        )
