"""The local Hugging Face cache: where a file stands, and how it gets there, verified by its hash.

Only this module writes into the cache, in the layout of huggingface_hub: `models--OWNER--NAME/blobs/HASH`, linked from
`snapshots/COMMIT/FILE`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from v2l.errors import V2LError
from v2l.io.files import open_regular, unreadable
from v2l.io.text import printable
from v2l.models.hub import HubFile, download
from v2l.models.lock_file import is_commit, lock_path


def hub_cache() -> Path:
    """Return the folder of the Hugging Face cache; HF_HOME and HF_HUB_CACHE are obeyed."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True)
class CachePlace:
    """The paths of one file in a cache, built from checked names only."""

    repo: str
    commit: str
    file: HubFile
    cache: Path = field(default_factory=hub_cache)

    @property
    def folder(self) -> Path:
        """The folder of the repository."""
        return self.cache / f"models--{self.repo.replace('/', '--')}"

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

    @property
    def missing(self) -> int:
        """Bytes to download."""
        if os.path.exists(self.pointer) or os.path.exists(self.blob):
            return 0
        try:
            return max(0, self.file.size - os.lstat(self.part).st_size)
        except OSError:
            return self.file.size

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Create the folders and hold the lock of this file, which huggingface_hub takes too. Raise V2LError if a
        folder leads out of the cache, or if the cache cannot be written."""
        from huggingface_hub.utils import WeakFileLock

        locks = self.cache / ".locks" / self.folder.name
        try:
            for folder in (self.blob.parent, self.pointer.parent, locks):
                _check_inside(folder, self.cache)
                folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError), open(self.cache / "CACHEDIR.TAG", "x") as tag:
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
            _check_inside(path.parent, self.cache)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise V2LError(
                    f"cannot remove {printable(path)}, which is wrong: {error.strerror or error}; remove it by hand"
                ) from error


def _check_inside(folder: Path, cache: Path) -> None:
    """Raise V2LError if the folder, with all links resolved, is outside the cache."""
    if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(cache)):
        raise V2LError(
            f"{printable(folder)} is a link out of the cache, where v2l does not write or remove files; remove the "
            "link, or set HF_HUB_CACHE"
        )


def _open_part(path: Path) -> BinaryIO:
    """Open a file for appending, without following a link or waiting for the reader of a pipe. Raise OSError."""
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags | careful, 0o666))


def fetch_file(place: CachePlace, recorded: str | None, report: Callable[[int], object] = lambda left: None) -> str:
    """Fetch a file unless the cache holds it, verify it and return its sha256.

    recorded: the sha256 that the lock file states, None if it states none
    report: called with the bytes that are left to download

    Raises V2LError, and discards the file, if it is not the one that the hub lists or that was recorded.
    """
    if os.path.exists(place.pointer):
        return _checked(place, place.pointer, recorded)
    with place.writing():
        source = place.blob
        if not os.path.exists(source):
            source = place.part
            with _open_part(source) as part:
                download(place.repo, place.commit, place.file, part, report)
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
    try:
        check_recorded(name, sha256, recorded or sha256)
    except V2LError:
        place.discard()
        raise
    return sha256


def check_recorded(name: str, sha256: str, recorded: str) -> None:
    """Raise V2LError if a file is another than the lock file records."""
    if sha256 != recorded:
        raise V2LError(
            f"{name} differs from the file that was recorded for this commit ({sha256[:12]}, {recorded[:12]}); check "
            f"HF_ENDPOINT, or move {printable(lock_path())} away to trust the hub's current files"
        )
