"""Claims on files that are being made, so that two processes that work on one folder do not make a file twice."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from pathlib import Path

from v2l.errors import V2LError
from v2l.io.files import CLAIM_END, HAS_LOCKS, MAX_NAME_BYTES, make_folder, sweep, try_lock, unwritable
from v2l.io.text import printable


class UnwritableFolder(V2LError):
    """The folder of a file cannot be written."""


def hidden_beside(path: Path, ending: str) -> Path:
    """Return the hidden name of a file or folder that belongs to `path`: `.NAME` and the ending, or a hash in the place
    of a name that leaves no room for it."""
    name = path.name
    if len(os.fsencode(f".{name}{ending}")) > MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return path.with_name(f".{name}{ending}")


def parts_folder(output: Path) -> Path:
    """Return the hidden folder beside an output that holds its finished parts."""
    return hidden_beside(output, ".partial")


class Claims:
    """The claims of a batch. Use it as a context manager, which gives them back at its end."""

    def __init__(self) -> None:
        self.held: set[Claim] = set()
        self.mutex = threading.Lock()
        self.is_closed = False

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        with self.mutex:
            self.is_closed = True
        for claim in list(self.held):
            claim.give_back()


class Claim:
    """The claim of one process on a file that it makes.

    It is a locked, hidden file `.NAME.v2l-claim` beside that file. The system releases the lock of a process that ends,
    however it ends, so that no claim outlives its owner; `sweep` removes the file that a killed process left. Without
    locks (Windows, some network file systems) every claim is granted.
    """

    def __init__(self, claims: Claims):
        self._claims, self._path, self._handle = claims, "", -1

    def take(self, path: Path, wait: bool = False) -> bool:
        """Claim a file, whose folder is created, instead of the file claimed before. Return False if another claim on
        it is held, or if the batch has ended.

        wait: wait until the other claim is given back or its process ends, in the main thread, which Ctrl-C interrupts
        Raises UnwritableFolder if the folder cannot be written, and V2LError for other errors.
        """
        place = os.fspath(hidden_beside(path, CLAIM_END))
        if not HAS_LOCKS or place == self._path:
            return True
        self.give_back()
        sweep(path.parent)
        try:
            handle = _acquire(place, path.parent, wait)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise UnwritableFolder(f"cannot write {printable(path)}: {error.strerror}") from error
            raise unwritable(path, error) from error
        if handle is None:
            return False
        with self._claims.mutex:
            if self._claims.is_closed:
                _remove(place, handle)
                return False
            self._path, self._handle = place, handle
            self._claims.held.add(self)
        return True

    def give_back(self) -> None:
        """Give the claim back, if it is held."""
        with self._claims.mutex:
            if self._path:
                _remove(self._path, self._handle)
                self._path = ""
                self._claims.held.discard(self)


def _acquire(claim: str, folder: Path, wait: bool) -> int | None:
    """Return a handle that holds the lock of a claim, or None if another process holds it. Raises OSError."""
    while True:
        try:
            handle = _open(claim)
        except FileNotFoundError:
            make_folder(folder)
            handle = _open(claim)
        try:
            if not try_lock(handle, wait):
                os.close(handle)
                return None
        except OSError:  # a file system without locks, or a file that this user may not lock
            return handle
        except BaseException:  # Ctrl-C while waiting
            os.close(handle)
            raise
        with contextlib.suppress(OSError):  # the owner removed the file meanwhile
            if os.path.samestat(os.fstat(handle), os.stat(claim)):
                return handle
        os.close(handle)


def _open(claim: str) -> int:
    """Open a claim for writing, as NFS wants it for a lock, or the claim of another user for reading."""
    try:
        return os.open(claim, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError:
        if not os.path.lexists(claim):
            raise
        return os.open(claim, os.O_RDONLY | os.O_NOFOLLOW)


def _remove(claim: str, handle: int) -> None:
    """Remove a claim while its lock is held, so that nobody who waits for it keeps a removed file."""
    with contextlib.suppress(OSError):
        os.unlink(claim)
    os.close(handle)
