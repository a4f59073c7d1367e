"""The client end of decoding: probes and reads videos in one long-lived worker process, so that no file ends a run.

FFmpeg is C code that parses untrusted files. The worker (`worker.py`) imports only PyAV and numpy, has a memory limit
and must send heartbeats. If it crashes, hangs or exceeds the limit, only the current file fails, and the next request
starts another worker. Answers are JSON and pixels, never objects that could run code. The worker imports from the
import path of this process, never from the working folder.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from v2l.errors import V2LError
from v2l.io.text import printable, whole
from v2l.video.limits import MEMORY, POLL, SILENCE
from v2l.video.probe import Frame
from v2l.video.protocol import Message, receive, send, video_from_json, video_to_json
from v2l.video.sampling import Video

PROGRAM = """\
import sys
sys.path[:] = sys.argv[3:]
from v2l.video.worker import serve
serve(int(sys.argv[1]), int(sys.argv[2]))
"""
"""The worker's Python program. Its arguments: the memory limit, the id of this process, and the import path."""
_KEPT = frozenset("PATH HOME LANG LC_ALL LC_CTYPE TZ TMPDIR TMP TEMP SYSTEMROOT WINDIR SYSTEMDRIVE".split())
_LIBRARIES = ("LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")


def probe(path: str | os.PathLike[str]) -> Video:
    """Run `probe.probe` in the worker. Raises V2LError as it does, and if the file crashes or hangs the decoder."""
    answer, payload = shared_worker().request({"do": "probe", **_names(path)}, about=path)
    return video_from_json(answer, payload)


def read_frames(video: Video, indices: Sequence[int], keep_damaged: bool = False) -> Iterator[Frame]:
    """Run `probe.read_frames` in the worker. Raises V2LError as it does, and if the file crashes or hangs the decoder.

    If another file ends the worker in the meantime, this one is reopened at the next frame.
    """
    worker, remaining, about = shared_worker(), [int(index) for index in indices], _names(video.path)
    while True:
        plain, arrays = video_to_json(video)
        request = {"do": "open", "indices": remaining, "keep_damaged": keep_damaged, **plain, **about}
        answer, _ = worker.request(request, video.path, payload=arrays)
        number, generation = answer["number"], answer["generation"]
        try:
            while remaining:
                answer, pixels = worker.request({"do": "frame", "number": number, **about}, video.path, generation)
                remaining.pop(0)
                shape = (answer["height"], answer["width"], 3)
                picture = np.frombuffer(pixels, np.uint8).reshape(shape)
                yield Frame(answer["index"], answer["seconds"], picture, tuple(answer["notes"]), answer["damage"])
            return
        except WorkerRestarted:
            continue
        finally:
            with contextlib.suppress(WorkerRestarted, V2LError):
                worker.request({"do": "close", "number": number}, video.path, generation)


def decoder_version() -> str:
    """Return the versions of PyAV and FFmpeg in the form that adapters record."""
    return shared_worker().request({"do": "version"}, about="PyAV")[0]["version"]


def library_versions() -> dict[str, str]:
    """Return the versions of FFmpeg's libraries by name. Raises V2LError if they cannot be loaded."""
    return shared_worker().request({"do": "version"}, about="PyAV")[0]["libraries"]


def _names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the absolute path, since the worker has another working folder, and the name to show in messages.

    Raises V2LError if the path is relative and the working folder was deleted.
    """
    name = os.fsdecode(path)
    shown = whole(name)
    try:
        return {"path": os.path.abspath(name), "shown": shown}
    except FileNotFoundError as error:
        raise V2LError(f"cannot find {printable(shown)}: the working folder was deleted; change to another") from error


class WorkerRestarted(Exception):
    """The worker process that had the file open has ended."""


class WorkerProcess:
    """A worker process, started on demand. Any thread may send requests; they are processed one at a time.

    silence: seconds without a message after which it counts as hung
    memory: limit of its address space in bytes
    program: Python source that it runs; see `PROGRAM`
    """

    def __init__(self, silence: float = SILENCE, memory: int = MEMORY, program: str = PROGRAM):
        self.silence, self.memory, self.program = silence, memory, program
        self.process: subprocess.Popen[bytes] | None = None
        self._answers: AnswerReader | None = None
        self._generation = 0
        self._lock = threading.Lock()

    def request(
        self,
        message: dict[str, Any],
        about: str | os.PathLike[str],
        generation: int | None = None,
        payload: bytes = b"",
    ) -> Message:
        """Send a request and return the answer, JSON and bytes.

        about: the file, for messages
        generation: `generation` of an earlier answer, if the request must go to the same process
        Raises V2LError if the worker answers with an error, crashes or hangs, and WorkerRestarted if the process of
        that generation has ended.
        """
        with self._lock:
            if generation is not None and (generation != self._generation or not self._is_running()):
                raise WorkerRestarted
            process = self._start()
            try:
                send(_pipes(process)[0], message, payload)
                answer, data = self._receive()
                while "alive" in answer:
                    answer, data = self._receive()
            except (OSError, EOFError) as error:
                failure = self._end(process, error)
                raise V2LError(
                    f"{printable(about)} {failure}; the file is damaged or malicious: re-encode it, or leave it out"
                ) from error
            except BaseException:  # interrupted in the middle of an answer
                self._end(process)
                raise
        if "error" in answer:
            raise V2LError(answer["error"])
        return answer | {"generation": self._generation}, data

    def start(self) -> None:
        """Start the process unless it is running, without waiting for it."""
        with self._lock:
            self._start()

    def close(self) -> None:
        """End the process if it is running."""
        with self._lock:
            if self.process is not None:
                self._end(self.process)

    def _is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _start(self) -> subprocess.Popen[bytes]:
        if self.process is not None:
            if self.process.poll() is None:
                return self.process
            self._end(self.process)
        # Isolated (-I) and without site (-S): Python neither imports from the working folder nor runs .pth files.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", self.program, str(self.memory), str(os.getpid()), *import_path()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd=os.path.abspath(os.sep),
            start_new_session=True,  # so that Ctrl-C reaches only this process
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        self._answers = AnswerReader(_pipes(self.process)[1])
        self._generation += 1
        return self.process

    def _receive(self) -> Message:
        """Return the next message. Raises EOFError if the process has ended and TimeoutError if it is silent."""
        assert self._answers is not None  # it starts with the process
        self._answers.ask()
        silent, wait = 0.0, min(POLL, self.silence)
        while True:
            before = time.monotonic()
            try:
                return self._answers.get(wait)
            except queue.Empty:
                silent += min(time.monotonic() - before, wait)
            if silent >= self.silence:
                raise TimeoutError

    def _end(self, process: subprocess.Popen[bytes], error: Exception | None = None) -> str:
        """End the process and describe its failure, for messages."""
        self.process = None
        requests, _ = _pipes(process)
        with contextlib.suppress(OSError):
            requests.close()
        if isinstance(error, EOFError | BrokenPipeError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        process.kill()
        code = process.wait()
        if self._answers is not None:
            self._answers.close()
        if isinstance(error, TimeoutError):
            return f"made the decoder hang (no heartbeat for {self.silence:g} s)"
        return f"crashed the decoder ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


class AnswerReader:
    """Reads messages from a pipe in a thread of its own, because no call that ends after a time can wait for a pipe on
    every system: Windows refuses `select`. A message is read only once it was asked for.

    pipe: is closed by the thread
    """

    def __init__(self, pipe: IO[bytes]):
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._read: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(pipe,), name="v2l-answers", daemon=True).start()

    def ask(self) -> None:
        """Start to read a message."""
        self._asked.put(True)

    def get(self, timeout: float) -> Message:
        """Return the message that was asked for. Raises queue.Empty after that many seconds without one, and EOFError
        or OSError if the pipe ended or failed."""
        answer = self._read.get(timeout=timeout)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the thread once the other end of the pipe is closed."""
        self._asked.put(False)

    def _run(self, pipe: IO[bytes]) -> None:
        # Reads past the buffer of `pipe`, whose lock Python could not release at exit
        with pipe:
            while self._asked.get():
                try:
                    self._read.put(receive(lambda size: os.read(pipe.fileno(), size)))
                except Exception as error:
                    self._read.put(error)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Return the pipes to standard input and from standard output."""
    assert process.stdin is not None and process.stdout is not None  # every worker is started with both pipes
    return process.stdin, process.stdout


def import_path() -> list[str]:
    """Return the absolute folders that the worker imports from.

    These are the standard library's folders, then those of this process, including user site-packages, without the
    working folder and folders given relative to it.
    """
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
    """Return the worker's environment.

    It has no variable that could lead a library to files of the working folder, and limits numpy to one thread, because
    the memory arenas of many threads would exhaust the address space on a machine with many processors.
    """
    kept = {name: value for name, value in os.environ.items() if name.upper() in _KEPT}
    for name in _LIBRARIES:
        absolute = [each for each in _entries(name) if os.path.isabs(each)]
        if absolute:
            kept[name] = os.pathsep.join(absolute)
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


_worker: WorkerProcess | None = None
_worker_lock = threading.Lock()


def shared_worker() -> WorkerProcess:
    """Return the worker of this process, started by the first request."""
    global _worker
    with _worker_lock:
        if _worker is None:
            _worker = WorkerProcess()
            atexit.register(_worker.close)
        return _worker
