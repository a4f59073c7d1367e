"""The worker end of decoding: the program of the worker process, which answers requests until its input is closed.

Imports only the standard library, numpy and PyAV. `client.py` is the other end, `protocol.py` the format of messages.
Before an answer there may be heartbeats, messages that say only that the worker is alive.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from v2l.errors import V2LError
from v2l.video import probe as decoder
from v2l.video.protocol import receive, send, video_from_json, video_to_json

HEARTBEAT = 1.0
"""Seconds between two heartbeats, and between two checks that the parent process is alive."""

Frames = Generator[decoder.Frame, None, None]


def serve(
    memory: int, parent: int, heartbeat: float = HEARTBEAT, on_packet: Callable[[], object] = lambda: None
) -> None:
    """Answer requests on standard input until it is closed.

    memory: limit of the address space in bytes
    parent: id of the requesting process; when it ends, this process ends at once, even in the middle of decoding
    heartbeat: seconds between two heartbeats
    on_packet: called at every packet that is read or decoded, before a heartbeat is sent
    """
    threading.Thread(target=_exit_without, args=(parent,), daemon=True).start()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    limit_memory(memory)
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        on_packet()
        if time.monotonic() - last > heartbeat:
            last = time.monotonic()
            send(answers, {"alive": True})

    opened: dict[int, Frames] = {}
    while True:
        try:
            request, payload = receive(requests.read)
        except EOFError:
            return
        last = time.monotonic()
        about = repr(request.get("shown", "the file"))
        try:
            answer = _answer(request, payload, opened, beat)
        except V2LError as error:
            answer = {"error": str(error)}, b""
        except MemoryError:
            answer = {"error": f"{about} needs more than {memory / 1e9:.1f} GB of memory to decode; leave it out"}, b""
        except Exception as error:  # PyAV has exception classes of its own
            first = (str(error).splitlines() or [""])[0]
            answer = {"error": f"{about} cannot be decoded ({type(error).__name__}: {first}); re-encode it"}, b""
        send(answers, *answer)


def _answer(
    request: dict[str, Any], payload: bytes, opened: dict[int, Frames], beat: Callable[[], None]
) -> tuple[dict[str, Any], bytes]:
    if request["do"] == "version":
        return {"version": decoder.decoder_version(), "libraries": decoder.library_versions()}, b""
    if request["do"] == "probe":
        return video_to_json(decoder.probe(request["path"], request["shown"], beat))
    if request["do"] == "open":
        number = max(opened, default=0) + 1
        video = video_from_json(request, payload)
        opened[number] = decoder.read_frames(video, request["indices"], request["shown"], request["keep_damaged"], beat)
        return {"number": number}, b""
    if request["do"] == "frame":
        frame = next(opened[request["number"]])
        height, width, _ = frame.pixels.shape
        values = {"index": frame.index, "seconds": frame.seconds, "height": height, "width": width}
        return values | {"notes": frame.notes, "damage": frame.damage}, frame.pixels.tobytes()
    opened.pop(request["number"]).close()
    return {}, b""


def _exit_without(parent: int) -> None:
    """Exit soon after the parent process, which may be killed during a long request."""
    while os.name == "posix" and os.getppid() == parent:
        time.sleep(HEARTBEAT)
    if os.name == "posix":
        os._exit(1)


def limit_memory(size: int) -> None:
    """Limit the address space of this process, best effort: Windows has no such limit, and macOS refuses to set it."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
