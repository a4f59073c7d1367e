"""Fetches a preset: the frozen model and its published hypernetwork, from the hub, each file proven by its hash.

The only module that reaches the hub, through hub.py, and the only one that writes into the local Hugging Face cache,
in the layout of huggingface_hub: `models--OWNER--NAME/blobs/HASH`, linked from `snapshots/COMMIT/FILE`. HF_HOME,
HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are obeyed. A branch is resolved to a commit once; what that commit's files are
is recorded and must stay so.
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
"""Of the model's repository: what stands at its top, weights as safetensors only."""


@dataclass(frozen=True)
class Pulled:
    """A repository that is there: its name, the commit, the licence that it states, and bytes of its files."""

    repo: str
    commit: str
    licence: str
    size: int


Told = Callable[[str], None]


def pull(name: str, revision: str | None, make_default: bool, told: Told) -> list[Pulled]:
    """Fetches the preset's two repositories, proves that they work together, and records them.

    revision: of the model's repository, a branch, tag or commit; None for the one that is recorded, else `main`
    make_default: let this preset stand in where no model is named; the first one that is pulled always does
    told: hears what is being done

    Raises V2LError, and records nothing, where the hub cannot be reached, a file is missing or not what the hub or the
    record says, space runs out, or the two do not work together. What has arrived stays for the next try.
    """
    if name not in PRESETS:
        raise V2LError(f"there is no preset {printable(name)} to pull; choose from {', '.join(PRESETS)}")
    preset, lock = PRESETS[name], read_lock()
    model, lock = _fetch(preset.model, MODEL_FILES.fullmatch, revision, lock, told)
    weights = [name for name in lock.repos[preset.model].files if name.endswith(".safetensors")]
    lacking = "" if weights else ".safetensors"
    if "config.json" not in lock.repos[preset.model].files:
        lacking = "config.json"
    if lacking:
        raise V2LError(f"{preset.model} has no {lacking} at {model.commit[:12]}; name another --revision")
    hypernetwork, lock = _fetch_first(preset, lock, told)
    first = lock.default is None
    if first or make_default:
        lock = dataclasses.replace(lock, default=name)
    before = read_lock()
    write_lock(lock)  # by which the presets are found
    try:
        self_test(name, preset, told)
    except BaseException:
        write_lock(before)
        raise
    return [model, hypernetwork]


def self_test(name: str, preset: Preset, told: Told) -> None:
    """Loads both strictly, and raises V2LError where the tokenizer, the images or the hypernetwork are not what v2l
    was made for."""
    told(f"self-test: loading {preset.model} and its hypernetwork")
    vlm = load_vlm(name, device="cpu")
    if vlm.geometry.tokens_per_image != preset.tokens_per_image:
        raise V2LError(
            f"{preset.model} turns an image into {vlm.geometry.tokens_per_image} tokens and "
            f"{preset.tokens_per_image} were expected; name another --revision"
        )
    check_belongs(load_hypernetwork(name, device="cpu"), vlm)


def _fetch_first(preset: Preset, lock: Lock, told: Told) -> tuple[Pulled, Lock]:
    """The hypernetwork from the first of its names that the hub knows."""
    for repo in preset.hypernetworks:
        try:
            return _fetch(repo, preset.is_hypernetwork, None, lock, told)
        except NotThere as error:
            missing = error
            told(f"{error}; trying an older name")
    raise V2LError(f"none of the names of its hypernetwork is there: {missing}")


def _fetch(
    repo: str, wanted: Callable[[str], Any], revision: str | None, lock: Lock, told: Told
) -> tuple[Pulled, Lock]:
    """The wanted files of a repository, in the cache and proven; returns the lock with them."""
    locked = lock.repos.get(repo)
    asked = revision or (locked.commit if locked else "main")
    listing = list_files(repo, asked, wanted)
    commit = listing.commit
    if is_commit(asked) and commit != asked:
        raise V2LError(
            f"the hub answers with commit {commit[:12]} of {repo} where {asked[:12]} was asked for; check HF_ENDPOINT"
        )
    if not listing.files:
        raise NotThere(f"{repo} has none of the files that are needed at {commit[:12]}")
    _check_space(listing.files)
    known = locked.files if locked and locked.commit == commit else {}
    found = {}
    for file in sorted(listing.files, key=lambda file: file.name):
        told(f"{repo} {file.name}")
        found[file.name] = _proven(CachePlace(repo, commit, file), known.get(file.name))
    kept = LockedRepo(revision or (locked.revision if locked else "main"), commit, found)
    pulled = Pulled(repo, commit, listing.licence, sum(file.size for file in listing.files))
    return pulled, dataclasses.replace(lock, repos=lock.repos | {repo: kept})


def _proven(place: CachePlace, recorded: str | None) -> str:
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
            if is_commit(place.file.digest):  # the hash that git takes of a file outside LFS: a header, then the data
                start = b"blob %d\0" % content.tell()
                content.seek(0)
                got = hashlib.file_digest(content, lambda: hashlib.sha1(start)).hexdigest()
    except OSError as error:
        raise unreadable(source, error) from error
    what = f"{place.repo} {place.file.name}"
    if got != place.file.digest:
        place.discard(wrong=source)
        raise V2LError(
            f"{what} has the hash {got[:12]} and the hub states {place.file.digest[:12]}; it was thrown away, pull "
            "again"
        )
    if recorded not in (None, sha256):
        place.discard()
        raise V2LError(
            f"{what} is another file of the same commit than was recorded ({sha256[:12]}, {recorded[:12]}); check "
            f"HF_ENDPOINT, or move {printable(lock_path())} away to trust what the hub has now"
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
        """The complete content, named by its hash."""
        return self.folder / "blobs" / self.file.digest

    @property
    def part(self) -> Path:
        """The content as far as it has arrived."""
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
                tag.write("Signature: 8a477f597d28d172789f06886806bc55\n")  # backups leave such a folder out
            with WeakFileLock(locks / f"{self.file.digest}.lock"):
                yield
        except OSError as error:
            raise V2LError(
                f"cannot write into {printable(self.folder)}: {error.strerror or error}; check its permissions and "
                "pull again"
            ) from error

    def link(self) -> None:
        """Link the pointer to the blob. Replace a pointer that leads nowhere."""
        from huggingface_hub import constants

        self.pointer.unlink(missing_ok=True)
        try:
            if getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False):
                raise OSError
            os.symlink(os.path.relpath(self.blob, self.pointer.parent), self.pointer)
        except OSError:  # a file system without links
            os.replace(self.blob, self.pointer)

    def discard(self, wrong: Path | None = None) -> None:
        """Remove the pointer and the part, and the blob too if `wrong` is it or a link to it. Remove links themselves,
        never their targets. Raise V2LError if a folder leads out of the cache, or if removing fails."""
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
            f"{printable(folder)} is a link out of the cache, where nothing is written or removed; remove the link, or "
            "set HF_HUB_CACHE"
        )


def _open_part(path: Path) -> BinaryIO:
    """Open a file for appending. Do not follow a link, and do not wait for the reader of a pipe. Raise OSError."""
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags | careful, 0o666))


def _check_space(files: Sequence[HubFile]) -> None:
    """Raises V2LError where the cache's disk could not hold them all; what is there already counts as missing only by
    name, so the estimate is on the safe side."""
    place = _cache()
    needed = sum(file.size for file in files if not any(place.glob(f"models--*/blobs/{file.digest}")))
    while not os.path.exists(place):
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise V2LError(f"{needed / 1e9:.1f} GB are to be fetched and {printable(place)} has {free / 1e9:.1f} GB free")
