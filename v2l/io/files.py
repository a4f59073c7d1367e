"""File identity and atomic writes.

Imports no torch, because the command line imports this module at its start.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from v2l.errors import V2LError
from v2l.io.text import is_address, printable

try:
    import fcntl

    HAS_LOCKS = True
except ImportError:  # Windows
    HAS_LOCKS = False

# Identity and time -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileIdentity:
    """A video as recorded in an adapter: its file name without folders, size in bytes and sha256."""

    name: str
    size: int
    sha256: str


def identify(path: str | os.PathLike) -> FileIdentity:
    """Compute the identity of a file; reads it once. Raises V2LError if it cannot be read or is not a regular file."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileIdentity(path.name, os.fstat(file.fileno()).st_size, digest)
    except OSError as error:
        raise unreadable(path, error) from error


ROUNDING_NS = 2 * 10**9
"""Nanoseconds by which a recorded time may precede the change itself: FAT stores times in steps of two seconds."""


def time_of_check() -> int:
    """Return the nanoseconds to record for a check of a file that starts now. Later changes of it have later times,
    however the file system rounds them."""
    return time.time_ns() - ROUNDING_NS


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """Open a regular file for reading; does not block on a pipe without a writer. Raises OSError if that fails, and
    V2LError if it is not a regular file."""
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise V2LError(f"{printable(path)} is a device, pipe or socket; name a regular file")
    return file


def unreadable(path: str | os.PathLike, error: OSError | ValueError) -> V2LError:
    """Return the error for a file that cannot be opened or read."""
    if is_address(path) and isinstance(error, FileNotFoundError):
        return V2LError(f"{printable(path)} is an address; v2l reads local files, fetch it first")
    why = getattr(error, "strerror", None) or error  # a ValueError: a name that no file can have
    return V2LError(f"cannot read {printable(path)}: {why}; check the name and its permissions")


# Writing -----------------------------------------------------------------------------------------------------------


def write_atomically(path: str | os.PathLike, data: bytes, modified_ns: int | None = None) -> None:
    """Write `data` to `path` atomically; parameters and errors as for `atomically`."""
    with atomically(path, modified_ns) as file:
        file.write(data)


@contextlib.contextmanager
def atomically(path: str | os.PathLike, modified_ns: int | None = None) -> Iterator[BinaryIO]:
    """Open a file that appears at `path` when the block ends without an exception.

    Until then the data goes to a temporary file in the same folder, so that neither a reader, a crash nor a full disk
    can leave a partial file. An existing file is kept until the new one is safely on disk; the new file gets its
    permissions.

    modified_ns: modification time of the file in nanoseconds; now if None, or if the file system refuses it
    Raises V2LError for every OSError, including those raised in the block.
    """
    path = Path(path)
    try:
        sweep(path.parent)
        mode = _mode_of(path)
        with temporary_beside(path, private=mode is not None) as (part, handle):
            with open(part if handle is None else os.dup(handle), "wb") as file:
                yield file
                file.flush()
                if modified_ns is not None:
                    with contextlib.suppress(OSError):
                        os.utime(part if handle is None else handle, ns=(modified_ns, modified_ns))
                _set_mode(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    _sync_name(path)


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder of files atomically, replacing an existing one and keeping its permissions.

    contents: file names to bytes
    A process that is killed between moving the old folder away and renaming the new one leaves neither at `folder`.
    Raises V2LError.
    """
    try:
        sweep(folder.parent)
        mode = _mode_of(folder)
        with temporary_beside(folder, is_folder=True, private=mode is not None) as (new, handle):
            for name, data in contents.items():
                with open(new / name, "wb") as file:
                    file.write(data)
                    file.flush()
                    _set_mode(file.fileno(), _mode_of(folder / name))
                    os.fsync(file.fileno())
            _set_mode(handle, mode)
            _sync_folder(new)
            _replace_folder(new, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    _sync_name(folder)


def _replace_folder(new: Path, folder: Path) -> None:
    if not os.path.lexists(folder):
        os.rename(new, folder)
        return
    old = _part_name(folder)
    with _lock_folder(folder):
        os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:
            os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _mode_of(path: Path) -> int | None:
    """Return the permission bits of an existing file or folder; None if there is none."""
    try:
        return os.stat(path).st_mode & 0o777
    except OSError:
        return None


def _set_mode(handle: int | None, mode: int | None) -> None:
    if handle is not None and mode is not None and hasattr(os, "fchmod"):
        os.fchmod(handle, mode)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents unless they exist. Raises V2LError."""
    missing, ancestor = [], folder
    while not os.path.isdir(ancestor) and ancestor != ancestor.parent:  # pathlib would recurse without a limit
        missing.append(ancestor)
        ancestor = ancestor.parent
    try:
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):  # made by another process, or not a folder
                os.mkdir(each)
        if not os.path.isdir(folder):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except OSError as error:
        raise V2LError(
            f"cannot create the folder {printable(folder)}: {error.strerror}; check its parent folder and the "
            "permissions"
        ) from error


def append_line(path: Path, line: str) -> None:
    """Append a whole line to a file, or nothing. Raises V2LError."""
    try:
        with open(path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                written = file.write(line.encode() + b"\n")
                if written <= len(line.encode()):  # only a part was written
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
    except OSError as error:
        raise V2LError(
            f"cannot append to {printable(path)}: {error.strerror or error}; its existing lines are intact; check the "
            "folder and the free space, then run this again"
        ) from error


def unwritable(path: str | os.PathLike, error: OSError) -> V2LError:
    """Return the error for a file or folder that could not be written."""
    if error.errno == errno.ENAMETOOLONG:
        return _too_long(Path(path))
    return V2LError(
        f"cannot write {printable(path)}: {error.strerror or error}; nothing was left there, check the folder, its "
        "permissions and the free space"
    )


MAX_NAME_BYTES = 255
"""The longest file name, in bytes, on nearly all file systems."""


def check_name(path: Path) -> None:
    """Raise V2LError if the name or path is too long for the file system. Creates nothing."""
    existing = path.parent
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    for candidate in (path, existing / path.name):
        try:
            os.lstat(candidate)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise _too_long(path) from error


def _too_long(path: Path) -> V2LError:
    size = len(os.fsencode(path.name))
    if size > MAX_NAME_BYTES:
        problem = f"its name is {size} bytes long; file systems allow at most {MAX_NAME_BYTES}"
    else:
        problem = f"its path is {len(os.fsencode(path)):,} bytes long; the system allows fewer"
    return V2LError(f"cannot write {printable(path.name)}: {problem}; give a shorter one with -o")


# Temporary files ---------------------------------------------------------------------------------------------------

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_PART_END = f".{_HOST}.part"
CLAIM_END = ".v2l-claim"
_LEFT = re.compile(rf"\..*({re.escape(_PART_END)}|{re.escape(CLAIM_END)})", re.DOTALL)
_swept: set[str] = set()


def try_lock(handle: int, wait: bool = False) -> bool:
    """Lock an open file or folder. Without `wait`, returns False if another process holds the lock.

    The lock belongs to the open file: it is released when the file is closed or its process ends, however it ends.
    Process ids are not used, because containers that share a folder number their processes independently. Raises
    OSError if the system or the file system does not support such locks.
    """
    if not HAS_LOCKS:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def temporary_beside(path: Path, is_folder: bool = False, private: bool = False) -> Iterator[tuple[Path, int | None]]:
    """Create an empty temporary file or folder beside `path`, and remove it at the end of the block unless renamed.

    Yields its path and an open handle. The handle holds a lock, so that no other process sweeps the file; it is None
    if the system has no locks. Raises OSError.

    private: accessible to its owner only; otherwise the umask decides
    """
    while True:
        part = _part_name(path)
        try:
            handle = _make_part(part, is_folder, private)
        except FileExistsError:
            continue
        if handle is None or _locked(handle, part):
            break
        os.close(handle)
    try:
        yield part, handle
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            shutil.rmtree(part) if is_folder else os.unlink(part)
        if handle is not None:
            os.close(handle)


def _part_name(path: Path) -> Path:
    """Return a new temporary name beside `path`, short enough in bytes."""
    start = os.fsencode(path.name)[:100].decode("utf-8", "ignore")
    return path.with_name(f".{start}.{secrets.token_hex(4)}{_PART_END}")


def _make_part(part: Path, is_folder: bool, private: bool) -> int | None:
    if is_folder:
        os.mkdir(part, 0o700 if private else 0o777)
        try:
            return os.open(part, os.O_RDONLY) if HAS_LOCKS else None
        except FileNotFoundError as error:  # swept before it could be locked
            raise FileExistsError from error
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    if not HAS_LOCKS:  # Windows, which does not rename open files either
        os.close(handle)
        return None
    return handle


def _locked(handle: int, part: Path) -> bool:
    """Lock a new temporary file. Returns False if another process swept it before."""
    try:
        return try_lock(handle) and os.path.lexists(part)
    except OSError:  # a file system without locks is never swept
        return True


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder that gets a temporary name, so that no other process sweeps it."""
    if not HAS_LOCKS:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try_lock(handle)
        yield
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the unlocked temporary files of this machine from a folder, and unlocked claims (`io/claims.py`): those
    that killed processes left. Runs once per process and folder. Ignores files that cannot be locked or removed."""
    absolute = os.path.abspath(folder)
    if absolute in _swept or not HAS_LOCKS:
        return
    _swept.add(absolute)
    with contextlib.suppress(OSError), os.scandir(absolute) as entries:
        for entry in entries:
            if _LEFT.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_unless_locked(entry)


def _remove_unless_locked(entry: os.DirEntry) -> None:
    is_folder = entry.is_dir(follow_symlinks=False)
    access = os.O_RDONLY if is_folder else os.O_RDWR  # NFS locks only files that are open for writing
    handle = os.open(entry.path, access | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if try_lock(handle) and os.path.samestat(os.fstat(handle), os.lstat(entry.path)):
            shutil.rmtree(entry.path) if is_folder else os.unlink(entry.path)
    finally:
        os.close(handle)


# Durability --------------------------------------------------------------------------------------------------------


def _sync_name(path: Path) -> None:
    """Make the new name itself durable, if the file system supports syncing a folder."""
    try:
        _sync_folder(path.parent)
    except OSError as error:
        raise V2LError(
            f"{printable(path)} was written, but the disk did not confirm it: {error.strerror or error}; "
            "check the disk, then run this again"
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that can be written but not read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # not supported by this file system
            raise
    finally:
        os.close(handle)
