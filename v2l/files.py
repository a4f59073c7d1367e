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
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from v2l.errors import V2LError

# Identity ----------------------------------------------------------------------------------------------------------


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


def printable(text: object) -> str:
    """A file name or a foreign string as it may stand in a message: control characters escaped, no more than 200
    characters."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in _text(text))
    return shown if len(shown) <= 200 else shown[:197] + "..."


def _text(value: object) -> str:
    # undecodable bytes of a POSIX file name arrive as lone surrogates, which no stream would take
    return str(value).encode("utf-8", "backslashreplace").decode()


# Writing -----------------------------------------------------------------------------------------------------------


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Puts `data` at `path`, whole or not at all, as `atomically` has it."""
    with atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write into, which stands at `path` where the block ends well: a temporary one in the same folder until
    then, so that a reader, a crash or a full disk never meets half of it; what stood there before stays until the new
    file is safely on disk. What a killed process left in that folder is cleared away.

    Raises V2LError for every OSError, the block's too."""
    path = Path(path)
    try:
        sweep(path.parent)
        handle, temporary = tempfile.mkstemp(prefix=part_prefix(path), suffix=part_suffix(), dir=path.parent)
        try:
            with open(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                os.unlink(temporary)
            raise
    except OSError as error:
        raise unwritable(path, error) from error
    _sync_name(path)


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Puts a folder of files there, whole or not at all, in the place of one that stands there. Between moving that
    away and the new one to its name a killed process leaves neither. Raises V2LError."""
    try:
        sweep(folder.parent)
        made = Path(tempfile.mkdtemp(prefix=part_prefix(folder), suffix=part_suffix(), dir=folder.parent))
        try:
            for name, data in contents.items():
                with open(made / name, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            os.chmod(made, 0o777 & ~_umask())
            _sync_folder(made)
            _put_folder(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    _sync_name(folder)


def _put_folder(made: Path, folder: Path) -> None:
    if not os.path.lexists(folder):
        os.rename(made, folder)
        return
    before = made.with_name(f"{part_prefix(folder)}before{part_suffix()}")
    os.rename(folder, before)
    try:
        os.rename(made, folder)
    except BaseException:
        os.rename(before, folder)
        raise
    shutil.rmtree(before, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Makes it, and those that it stands in, unless it is there. Raises V2LError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    return V2LError(
        f"cannot write {printable(path)}: {error.strerror or error}; nothing was left there, check the folder, its "
        "permissions and the free space"
    )


_HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_PART = re.compile(rf"\..*\.{_HERE}-(\d+)\.part")
_swept: set[str] = set()


def part_prefix(path: Path) -> str:
    """How the name of a temporary file in the place of `path` begins."""
    return f".{path.name[:100]}."


def part_suffix() -> str:
    """How it ends: the machine and the process that writes it, by which others know whether it is still being
    written."""
    return f".{_HERE}-{os.getpid()}.part"


def sweep(folder: Path) -> None:
    """Removes temporary files of processes of this machine that are no more; once a process and folder. Others' are
    left alone, and so is what cannot be removed."""
    place = os.path.abspath(folder)
    if place in _swept:
        return
    _swept.add(place)
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            found = _PART.fullmatch(entry.name)
            if found and not _is_alive(int(found[1])):
                with contextlib.suppress(OSError):
                    shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # os.kill would end it there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
