"""Decoding in a process of its own: one long-lived worker opens the video files, so that no file can end a long run.

FFmpeg is C that parses whatever a file holds. The worker imports nothing but PyAV and numpy, has a limit on its memory
and must show a sign of life; where it crashes, hangs or grows past the limit, that one file has failed, and the next
request starts another worker. What comes back is JSON and pixels, never an object that could run code. The worker
imports from this process's own import path, never from the working folder.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.video.probe import Frame
from v2l.video.sampling import Video
from v2l.video.worker import SIZES, send, video_from_json, video_to_json

SILENCE = 60.0
"""Seconds without a sign of life after which a worker counts as hanging: it gives one at every packet it passes."""
GLANCE = 1.0
"""Seconds of one look for an answer. A look that takes longer than that, because this process was paused or had no
processor, counts as one look all the same: the worker was probably no better off."""
MEMORY = 8 * 2**30
"""Bytes of address space that a worker may use, where the system has such a limit."""
_COMMAND = """\
import sys
sys.path[:] = sys.argv[3:]
from v2l.video.worker import serve
serve(int(sys.argv[1]), int(sys.argv[2]))
"""
_KEPT = frozenset("PATH HOME LANG LC_ALL LC_CTYPE TZ TMPDIR TMP TEMP SYSTEMROOT WINDIR SYSTEMDRIVE".split())
_LIBRARIES = ("LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")


def probe(path: str | os.PathLike[str]) -> Video:
    """`video.probe` in the worker; V2LError as there, and where the file crashes the decoder or makes it hang."""
    answer, payload = the_worker().ask({"do": "probe", **_named(path)}, about=path)
    return video_from_json(answer, payload)


def read_frames(video: Video, indices: Sequence[int], keep_damaged: bool = False) -> Iterator[Frame]:
    """`video.read_frames` in the worker; V2LError as there, and where the file crashes the decoder or makes it hang.
    Where another file did that meanwhile, this one is opened again and goes on."""
    worker, left, about = the_worker(), [int(index) for index in indices], _named(video.path)
    while True:
        plain, arrays = video_to_json(video)
        request = {"do": "open", "indices": left, "keep_damaged": keep_damaged, **plain, **about}
        answer, _ = worker.ask(request, video.path, payload=arrays)
        number, generation = answer["number"], answer["generation"]
        try:
            while left:
                answer, pixels = worker.ask({"do": "frame", "number": number, **about}, video.path, generation)
                left.pop(0)
                shape = (answer["height"], answer["width"], 3)
                picture = np.frombuffer(pixels, np.uint8).reshape(shape)
                yield Frame(answer["index"], answer["seconds"], picture, tuple(answer["notes"]), answer["damage"])
            return
        except Restarted:
            continue
        finally:
            with contextlib.suppress(Restarted, V2LError):
                worker.ask({"do": "close", "number": number}, video.path, generation)


def decoder_version() -> str:
    """PyAV's and FFmpeg's, as adapters record them."""
    return the_worker().ask({"do": "version"}, about="PyAV")[0]["version"]


def library_versions() -> dict[str, str]:
    """FFmpeg's libraries by name, as the worker has them. Raises V2LError where they cannot be loaded."""
    return the_worker().ask({"do": "version"}, about="PyAV")[0]["libraries"]


def _named(path: str | os.PathLike[str]) -> dict[str, str]:
    """A file by its absolute path, as the worker stands elsewhere, and by the name that messages show. Raises V2LError
    where a relative name means nothing because the working folder was deleted."""
    shown = os.fsdecode(path)
    try:
        return {"path": os.path.abspath(shown), "shown": shown}
    except FileNotFoundError as error:
        raise V2LError(f"cannot find {printable(shown)}: the working folder was deleted; change to another") from error


class Restarted(Exception):
    """The process that had a file open is no more."""


class Worker:
    """One decoding process, and the requests to it from any thread, one at a time.

    silence: seconds; memory: bytes of address space
    """

    def __init__(self, silence: float = SILENCE, memory: int = MEMORY):
        self.silence, self.memory = silence, memory
        self.process: subprocess.Popen | None = None
        self._generation, self._received = 0, bytearray()
        self._lock = threading.Lock()

    def ask(
        self,
        request: dict[str, Any],
        about: str | os.PathLike[str],
        generation: int | None = None,
        payload: bytes = b"",
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to a request: JSON and bytes. about: the file, for messages; generation: the process that the
        request is for, as an answer of it said; None for any.

        Raises V2LError as the worker did, or where it crashed or hung over this request; Restarted where the process
        that it was for is no more.
        """
        with self._lock:
            if generation is not None and (generation != self._generation or not self._runs()):
                raise Restarted
            self._start()
            try:
                send(self.process.stdin, request, payload)
                answer, found = self._receive()
                while "alive" in answer:
                    answer, found = self._receive()
            except (OSError, EOFError) as error:
                how = self._end(error)
                raise V2LError(
                    f"{printable(about)} {how}; the file is damaged or made to do harm: re-encode it, or leave it out"
                ) from error
            except BaseException:  # interrupted in the middle of an answer
                self._end(None)
                raise
        if "error" in answer:
            raise V2LError(answer["error"])
        return answer | {"generation": self._generation}, found

    def start(self) -> None:
        """Starts the process, without waiting for it, unless one runs."""
        with self._lock:
            self._start()

    def close(self) -> None:
        """Ends the process, if one runs."""
        with self._lock:
            if self.process is not None:
                self._end(None)

    def _runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _start(self) -> None:
        if self._runs():
            return
        if self.process is not None:
            self._end(None)
        # Isolated (-I) and without site (-S): neither the working folder nor a file that site would execute is read.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _COMMAND, str(self.memory), str(os.getpid()), *import_path()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd=os.path.abspath(os.sep),
            start_new_session=True,  # Ctrl-C at a terminal is this process's to handle
        )
        self._generation += 1
        self._received.clear()

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        header_size, payload_size = SIZES.unpack(self._read(SIZES.size))
        return json.loads(self._read(header_size)), self._read(payload_size)

    def _read(self, size: int) -> bytes:
        """Raises EOFError where the process has ended, TimeoutError where it is silent."""
        pipe, silent = self.process.stdout.fileno(), 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while len(self._received) < size:
                glance, before = min(GLANCE, self.silence), time.monotonic()
                if not selector.select(glance):
                    silent += min(time.monotonic() - before, glance)
                    if silent >= self.silence:
                        raise TimeoutError
                    continue
                more = os.read(pipe, 2**20)
                if not more:
                    raise EOFError
                self._received += more
                silent = 0.0
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _end(self, error: Exception | None) -> str:
        """Takes the process down, and says what it did."""
        process, self.process = self.process, None
        with contextlib.suppress(OSError):
            process.stdin.close()
        if isinstance(error, EOFError | BrokenPipeError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        process.kill()
        code = process.wait()
        process.stdout.close()
        if isinstance(error, TimeoutError):
            return f"kept the decoder busy for {self.silence:g} s without a sign of life"
        return f"crashed the decoder ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


def import_path() -> list[str]:
    """Absolute folders that the worker imports from: the standard library's first, then this process's, user
    site-packages included, without the working folder and whatever was given relative to it."""
    relative = {os.path.abspath(each) for each in _entries("PYTHONPATH") if not os.path.isabs(each)}
    with contextlib.suppress(FileNotFoundError):  # a working folder that was deleted
        relative |= {os.getcwd(), os.path.realpath(os.getcwd())}
    package = str(Path(__file__).resolve().parents[2])
    library = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    given = [each for each in sys.path if os.path.isabs(each) and each not in relative]
    own = [each for each in given if os.path.realpath(each) in library or os.path.basename(each) == "lib-dynload"]
    return list(dict.fromkeys([*own, *given, package]))


def _entries(name: str) -> list[str]:
    return os.environ.get(name, "").split(os.pathsep)


def _environment() -> dict[str, str]:
    """What the worker needs of this process's environment: nothing that leads a library to files of the working folder,
    and one thread for numpy, whose arenas would take the address space on a machine with many processors."""
    kept = {name: value for name, value in os.environ.items() if name.upper() in _KEPT}
    for name in _LIBRARIES:
        absolute = [each for each in _entries(name) if os.path.isabs(each)]
        if absolute:
            kept[name] = os.pathsep.join(absolute)
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


_worker: Worker | None = None
_worker_lock = threading.Lock()


def the_worker() -> Worker:
    """This process's; none runs before the first request."""
    global _worker
    with _worker_lock:
        if _worker is None:
            _worker = Worker()
            atexit.register(_worker.close)
        return _worker
