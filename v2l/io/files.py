"""Files by name, identity and content: what may be printed of them, and the one way to write them whole or not at all.

Needs no torch: the command line starts with it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
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
from v2l.io.text import printable

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

# Identity and time -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileIdentity:
    """What ties an adapter to its video: the file's name without folders, its size in bytes and its sha256."""

    name: str
    size: int
    sha256: str


def identify(path: str | os.PathLike) -> FileIdentity:
    """Reads the whole file once. Raises V2LError where it cannot be read or is no regular file."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileIdentity(path.name, os.fstat(file.fileno()).st_size, digest)
    except OSError as error:
        raise unreadable(path, error) from error


ROUNDING_NS = 2 * 10**9
"""Nanoseconds by which a file's times may precede the change that they record: FAT counts in steps of two seconds."""


def time_of_check() -> int:
    """Returns the time in nanoseconds to record for a check of a file that starts now. Every later change of the file
    has a later time, however the file system rounds it."""
    return time.time_ns() - ROUNDING_NS


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file to read; a pipe without a writer would block for ever. Raises OSError, and V2LError where
    it is anything else."""
    without_waiting = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | without_waiting))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise V2LError(f"{printable(path)} is a device, pipe or socket; name a regular file")
    return file


def unreadable(path: str | os.PathLike, error: OSError) -> V2LError:
    """The one line for a file that cannot be opened or read."""
    return V2LError(f"cannot read {printable(path)}: {error.strerror or error}; check the name and its permissions")


# Writing -----------------------------------------------------------------------------------------------------------


def write_atomically(path: str | os.PathLike, data: bytes, modified_ns: int | None = None) -> None:
    """Puts `data` at `path`, whole or not at all, as `atomically` has it."""
    with atomically(path, modified_ns) as file:
        file.write(data)


@contextlib.contextmanager
def atomically(path: str | os.PathLike, modified_ns: int | None = None) -> Iterator[BinaryIO]:
    """A file to write into, which stands at `path` where the block ends well: a temporary one in the same folder until
    then, so that a reader, a crash or a full disk never meets half of it. What stood there before stays until the new
    file is safely on disk. The new file keeps the permissions of the one that it replaces.

    modified_ns: modification time of the file in nanoseconds; now if None, or if the file system refuses it

    Raises V2LError for every OSError, the block's too."""
    path = Path(path)
    try:
        sweep(path.parent)
        mode = _mode_of(path)
        with part_of(path, private=mode is not None) as (part, handle):
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
    """Puts a folder of files there, whole or not at all, in the place of one that stands there, with its permissions.
    Between moving that away and the new one to its name a killed process leaves neither. Raises V2LError."""
    try:
        sweep(folder.parent)
        mode = _mode_of(folder)
        with part_of(folder, is_folder=True, private=mode is not None) as (made, handle):
            for name, data in contents.items():
                with open(made / name, "wb") as file:
                    file.write(data)
                    file.flush()
                    _set_mode(file.fileno(), _mode_of(folder / name))
                    os.fsync(file.fileno())
            _set_mode(handle, mode)
            _sync_folder(made)
            _put_folder(made, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    _sync_name(folder)


def _put_folder(made: Path, folder: Path) -> None:
    if not os.path.lexists(folder):
        os.rename(made, folder)
        return
    before = _part_name(folder)
    with _held(folder):
        os.rename(folder, before)
        try:
            os.rename(made, folder)
        except BaseException:
            os.rename(before, folder)
            raise
        shutil.rmtree(before, ignore_errors=True)


def _mode_of(path: Path) -> int | None:
    """Permission bits of what stands there; None where nothing does."""
    try:
        return os.stat(path).st_mode & 0o777
    except OSError:
        return None


def _set_mode(handle: int | None, mode: int | None) -> None:
    if handle is not None and mode is not None and hasattr(os, "fchmod"):
        os.fchmod(handle, mode)


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents unless they exist. Raises V2LError."""
    missing, place = [], folder
    while not os.path.isdir(place) and place != place.parent:  # pathlib recurses, and nested folders may be too many
        missing.append(place)
        place = place.parent
    try:
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process was quicker, or it is no folder
                os.mkdir(each)
        if not os.path.isdir(folder):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except OSError as error:
        raise V2LError(
            f"cannot make the folder {printable(folder)}: {error.strerror}; check the place and its permissions"
        ) from error


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, or nothing. Raises V2LError."""
    try:
        with open(path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                written = file.write(line.encode() + b"\n")
                if written <= len(line.encode()):  # the disk took a part of it
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
    except OSError as error:
        raise V2LError(
            f"cannot go on writing {printable(path)}: {error.strerror or error}; what stands there is whole, check the "
            "folder and the free space and run this again"
        ) from error


def unwritable(path: str | os.PathLike, error: OSError) -> V2LError:
    """The one line for what could not be written and was not."""
    if error.errno == errno.ENAMETOOLONG:
        return _too_long(Path(path))
    return V2LError(
        f"cannot write {printable(path)}: {error.strerror or error}; nothing was left there, check the folder, its "
        "permissions and the free space"
    )


MAX_NAME_BYTES = 255
"""The longest file name on nearly every file system."""


def check_name(path: Path) -> None:
    """Raises V2LError if the file system would refuse to create `path` because of its length. Creates nothing."""
    there = path.parent
    while not os.path.exists(there) and there != there.parent:
        there = there.parent
    for place in (path, there / path.name):
        try:
            os.lstat(place)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise _too_long(path) from error


def _too_long(path: Path) -> V2LError:
    size = len(os.fsencode(path.name))
    if size > MAX_NAME_BYTES:
        what = f"its name has {size} bytes and file systems take {MAX_NAME_BYTES}"
    else:
        what = f"its path has {len(os.fsencode(path)):,} bytes, more than the system takes"
    return V2LError(f"cannot write {printable(path.name)}: {what}; give a shorter one with -o")


# Temporary files ---------------------------------------------------------------------------------------------------

_HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_PART_END = f".{_HERE}.part"
_PART = re.compile(rf"\..*{re.escape(_PART_END)}", re.DOTALL)
_swept: set[str] = set()


def try_lock(handle: int) -> bool:
    """Tries to lock an open file or folder, without waiting. Returns False if another process holds the lock.

    The lock belongs to the open file: it is released when the file is closed or its process ends, however it ends.
    Process ids play no part, because two containers number their processes independently. Raises OSError if the system
    or the file system has no such locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def part_of(path: Path, is_folder: bool = False, private: bool = False) -> Iterator[tuple[Path, int | None]]:
    """Creates an empty temporary file or folder beside `path` and removes it at the end of the block unless it was
    renamed. Yields its path and an open handle that holds a lock, so that no other process sweeps it away. The handle
    is None if the system has no locks. Raises OSError.

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
        with contextlib.suppress(OSError):  # what went wrong first is what is told
            shutil.rmtree(part) if is_folder else os.unlink(part)
        if handle is not None:
            os.close(handle)


def _part_name(path: Path) -> Path:
    """A new name beside `path`, short enough in bytes, which is what file systems count."""
    beginning = os.fsencode(path.name)[:100].decode("utf-8", "ignore")
    return path.with_name(f".{beginning}.{secrets.token_hex(4)}{_PART_END}")


def _make_part(part: Path, is_folder: bool, private: bool) -> int | None:
    if is_folder:
        os.mkdir(part, 0o700 if private else 0o777)
        try:
            return None if fcntl is None else os.open(part, os.O_RDONLY)
        except FileNotFoundError as error:  # swept before it could be locked
            raise FileExistsError from error
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    if fcntl is None:  # such a system does not rename open files either
        os.close(handle)
        return None
    return handle


def _locked(handle: int, part: Path) -> bool:
    """Locks a new temporary file. Returns False if another process took it for an abandoned one before."""
    try:
        return try_lock(handle) and os.path.lexists(part)
    except OSError:  # a file system without locks, on which nobody sweeps
        return True


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locks a folder that gets a temporary name, so that no other process sweeps it away."""
    if fcntl is None:
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
    """Removes the temporary files of this machine that no process has locked, which is what killed processes leave.
    Looks once per process and folder. Ignores what cannot be locked or removed."""
    place = os.path.abspath(folder)
    if place in _swept or fcntl is None:
        return
    _swept.add(place)
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if _PART.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_unless_locked(entry)


def _remove_unless_locked(entry: os.DirEntry) -> None:
    is_folder = entry.is_dir(follow_symlinks=False)
    how = os.O_RDONLY if is_folder else os.O_RDWR  # NFS locks nothing that is not open to write
    handle = os.open(entry.path, how | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if try_lock(handle):
            shutil.rmtree(entry.path) if is_folder else os.unlink(entry.path)
    finally:
        os.close(handle)


# Durability --------------------------------------------------------------------------------------------------------


def _sync_name(path: Path) -> None:
    """Makes the new name itself durable, where the file system can say so of a folder."""
    try:
        _sync_folder(path.parent)
    except OSError as error:
        raise V2LError(
            f"{printable(path)} was written whole, but its disk does not say that it keeps it: "
            f"{error.strerror or error}; check the disk, then run this again"
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder to write into and not to look into
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # how file systems say that they cannot
            raise
    finally:
        os.close(handle)
