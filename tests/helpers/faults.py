"""Simulated disk failures.

`Disk` counts every system call by which Python writes below a folder, and fails one of them, or all from it on, like a
full or broken disk. `room` sets the kernel's limit of file sizes, which also applies to native libraries.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BY_NAME = ("mkdir", "rename", "replace", "chmod", "fchmod", "unlink", "rmdir", "truncate", "link", "symlink")
CLEARING = ("unlink", "rmdir")
"""Calls that fail only on a broken disk, not on a full one."""


class Disk:
    """A disk that fails at a chosen call. steps: names of the calls so far

    failing: number of the call that fails, from 1, 0 for none; error: its errno; for_good: all later calls fail too
    """

    def __init__(self, root: Path, failing: int = 0, error: int = errno.ENOSPC, for_good: bool = False):
        self.root, self.failing, self.error, self.for_good = str(root), failing, error, for_good
        self.steps: list[str] = []

    def step(self, name: str, *places: object) -> None:
        """Count a call, and raise the error if it is to fail."""
        if not any(self._is_below(place) for place in places):
            return
        broken = self.for_good and len(self.steps) >= self.failing
        if name not in CLEARING:
            self.steps.append(name)
        if broken or (name not in CLEARING and len(self.steps) == self.failing):
            raise OSError(self.error, os.strerror(self.error), str(places[0]))

    def _is_below(self, place: object) -> bool:
        if isinstance(place, int):
            place = os.readlink(f"/proc/self/fd/{place}")
        return os.fsdecode(place).startswith(self.root)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Disk]:
        """Route the calls of this process through the disk during the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in BY_NAME:
                patch.setattr(os, name, self._by_name(name, getattr(os, name)))
            patch.setattr(os, "fsync", self._by_name("fsync", os.fsync))
            patch.setattr(os, "open", self._os_open(os.open))
            for module in (builtins, io):
                patch.setattr(module, "open", self._open(module.open))
            yield self

    def _by_name(self, name: str, real: Callable) -> Callable:
        def call(*places: Any, **named: Any) -> Any:
            if named.get("dir_fd") is None and not (name == "mkdir" and os.path.isdir(places[0])):
                self.step(name, *(places[:2] if name in ("rename", "replace", "link", "symlink") else places[:1]))
            elif self.for_good and self.failing and len(self.steps) >= self.failing:
                raise OSError(self.error, os.strerror(self.error), str(places[0]))
            return real(*places, **named)

        return call

    def _os_open(self, real: Callable) -> Callable:
        def call(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if sys._getframe(1).f_code.co_filename != shutil.__file__:  # rmtree opens folders to list them
                self.step("open", path)
            return real(path, flags, *rest, **named)

        return call

    def _open(self, real: Callable) -> Callable:
        def call(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not self._is_below(file):
                return real(file, mode, buffering, *rest, **named)
            if not isinstance(file, int):
                self.step("open", file)
            raw = Faulty(self, file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, "utf-8")

        return call


class Faulty(io.FileIO):
    """A file on a `Disk`. On a full disk, a write stores half of its data before it fails."""

    def __init__(self, disk: Disk, file: str | int, mode: str):
        super().__init__(file, mode)
        self.disk, self.full = disk, False

    def write(self, data: Any) -> int:
        """Write like FileIO, or fail."""
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            self.disk.step("write", self.fileno())
        except OSError as error:
            if error.errno == errno.ENOSPC and len(data) > 1 and not self.disk.for_good:
                self.full = True
                return super().write(memoryview(data)[: len(data) // 2])
            raise
        return super().write(data)

    def close(self) -> None:
        """Close like FileIO, even if the call fails."""
        if self.closed:
            return
        place = os.readlink(f"/proc/self/fd/{self.fileno()}")
        super().close()
        self.disk.step("close", place)


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Limit the size of all files to `size` bytes during the block, by the kernel."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
