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

from v2l.checkpoint import load_hypernetwork
from v2l.errors import V2LError
from v2l.files import open_regular, printable, unreadable
from v2l.hub import HubFile, NotThere, check_online, download, list_files
from v2l.loading import load_vlm
from v2l.lock import Lock, LockedRepo, is_commit, lock_path, read_lock, write_lock
from v2l.models import PRESETS, Preset
from v2l.pipeline import check_belongs

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
    check_online()
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
    """Return the sha256 of a file of the hub, which is fetched if the cache does not have it. A wrong one is thrown
    away."""
    if place.pointer.exists():
        return _checked(place, place.pointer, recorded)
    with place.writing():
        source = place.blob
        if not source.exists():
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
    """Return the sha256 of `source`. Raise V2LError, and throw it away, if it is not the file that the hub lists or
    that was recorded."""
    try:
        with open_regular(source) as content:
            sha256 = got = hashlib.file_digest(content, "sha256").hexdigest()
            if is_commit(place.file.digest):  # not in LFS: git's hash of it, which its length begins
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
    """The paths of a file of the hub in the local cache, all of names that were checked."""

    repo: str
    commit: str
    file: HubFile

    @property
    def folder(self) -> Path:
        """The repository's."""
        return _cache() / f"models--{self.repo.replace('/', '--')}"

    @property
    def blob(self) -> Path:
        """The content, by its hash."""
        return self.folder / "blobs" / self.file.digest

    @property
    def part(self) -> Path:
        """What has arrived of the content."""
        return self.folder / "blobs" / f"{self.file.digest}.incomplete"

    @property
    def pointer(self) -> Path:
        """The file as everybody reads it, a link to the content."""
        return self.folder / "snapshots" / self.commit / self.file.name

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folders and keep other processes that fetch the same file waiting. Raises V2LError if they lead out
        of the cache, cannot be made or not be written to."""
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
        """Let the pointer lead to the content; in the place of a pointer that leads nowhere."""
        from huggingface_hub import constants

        self.pointer.unlink(missing_ok=True)
        try:
            if getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False):
                raise OSError
            os.symlink(os.path.relpath(self.blob, self.pointer.parent), self.pointer)
        except OSError:  # a file system without links
            os.replace(self.blob, self.pointer)

    def discard(self, wrong: Path | None = None) -> None:
        """Remove the pointer, what has arrived, and the content if `wrong`, which was read, is it. Of a link the link
        alone is removed. Raises V2LError if links lead out of the cache, and OSError."""
        is_content = wrong is not None and os.path.realpath(wrong) == os.path.realpath(self.blob)
        for path in (self.part, self.pointer, *([self.blob] if is_content else [])):
            _check_inside(path.parent)
            path.unlink(missing_ok=True)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _check_inside(folder: Path) -> None:
    """Raise V2LError if links lead the folder out of the cache."""
    if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(_cache())):
        raise V2LError(
            f"{printable(folder)} is a link out of the cache, where nothing is written or removed; remove the link, or "
            "set HF_HUB_CACHE"
        )


def _open_part(path: Path) -> BinaryIO:
    """Open to append, without following a link. Raises OSError."""
    follow_none = getattr(os, "O_NOFOLLOW", 0)
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags | follow_none, 0o666))


def _check_space(files: Sequence[HubFile]) -> None:
    """Raises V2LError where the cache's disk could not hold them all; what is there already counts as missing only by
    name, so the estimate is on the safe side."""
    place = _cache()
    needed = sum(file.size for file in files if not any(place.glob(f"models--*/blobs/{file.digest}")))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise V2LError(f"{needed / 1e9:.1f} GB are to be fetched and {printable(place)} has {free / 1e9:.1f} GB free")
