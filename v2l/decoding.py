"""Decoding in a process of its own: one long-lived worker opens the video files, so that no file can end a long run.

FFmpeg is C that parses whatever a file holds. The worker imports nothing but OpenCV and numpy, has a limit on its
memory and must show a sign of life; where it crashes, hangs or grows past the limit, that one file has failed, and the
next request starts another worker. What comes back is JSON and pixels, never an object that could run code.
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
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from v2l.decode_worker import SIZES, send, video_from_json, video_to_json
from v2l.errors import V2LError
from v2l.files import printable
from v2l.sampling import Video
from v2l.video import Frame

SILENCE = 60.0
"""Seconds without a sign of life after which a worker counts as hanging: it gives one at every frame it passes."""
MEMORY = 8 * 2**30
"""Bytes of address space that a worker may use, where the system has such a limit."""
_COMMAND = "import sys; sys.path.insert(0, sys.argv[1]); from v2l.decode_worker import serve; serve(int(sys.argv[2]))"


def probe(path: str | os.PathLike[str]) -> Video:
    """`video.probe` in the worker; V2LError as there, and where the file crashes the decoder or makes it hang."""
    answer, payload = the_worker().ask({"do": "probe", "path": os.fsdecode(path)}, about=path)
    return video_from_json(answer, payload)


def read_frames(video: Video, indices: Sequence[int]) -> Iterator[Frame]:
    """`video.read_frames` in the worker; V2LError as there, and where the file crashes the decoder or makes it hang.
    Where another file did that meanwhile, this one is opened again and goes on."""
    worker, left = the_worker(), [int(index) for index in indices]
    while True:
        plain, arrays = video_to_json(video)
        answer, _ = worker.ask({"do": "open", "indices": left, **plain}, video.path, payload=arrays)
        number, generation = answer["number"], answer["generation"]
        try:
            while left:
                answer, pixels = worker.ask(
                    {"do": "frame", "number": number, "path": video.path}, video.path, generation
                )
                shape = (answer["height"], answer["width"], 3)
                left.pop(0)
                yield Frame(answer["index"], answer["seconds"], np.frombuffer(pixels, np.uint8).reshape(shape))
            return
        except Restarted:
            continue
        finally:
            with contextlib.suppress(Restarted, V2LError):
                worker.ask({"do": "close", "number": number}, video.path, generation)


def decoder_version() -> str:
    """Of OpenCV, as the worker has it."""
    return the_worker().ask({"do": "version"}, about="OpenCV")[0]["version"]


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
                send(self.process.stdin, request | _here(), payload)
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
        told = "OPENCV_LOG_LEVEL" in os.environ or os.environ.get("OPENCV_FFMPEG_LOGLEVEL", "-8") != "-8"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, str(Path(__file__).parents[1]), str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if told else subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at a terminal is this process's to handle
        )
        self._generation += 1
        self._received.clear()

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        header_size, payload_size = SIZES.unpack(self._read(SIZES.size))
        return json.loads(self._read(header_size)), self._read(payload_size)

    def _read(self, size: int) -> bytes:
        """Raises EOFError where the process has ended, TimeoutError where it is silent."""
        pipe = self.process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while len(self._received) < size:
                if not selector.select(self.silence):
                    raise TimeoutError
                more = os.read(pipe, 2**20)
                if not more:
                    raise EOFError
                self._received += more
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


def _here() -> dict[str, str]:
    """Where this process stands now, from which names are meant; nothing where that folder is no more."""
    with contextlib.suppress(OSError):
        return {"folder": os.getcwd()}
    return {}


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
