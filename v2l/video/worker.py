"""The other end of decoding.py: answers requests on standard input until it is closed. Imports PyAV and numpy, and
the standard library.

Requests and answers are two sizes, that much JSON and that many bytes of arrays or pixels. Before an answer there may
be signs of life, answers that say nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from v2l.errors import V2LError
from v2l.video import probe as decoder
from v2l.video.sampling import Video

SIZES = struct.Struct("<II")
ARRAYS = {"seconds": np.float64, "pts": np.int64, "packet": np.int64, "keys": np.int64, "key_pts": np.int64}
BEAT = 1.0
"""Seconds between two signs of life, and between two looks at whether the parent still lives."""


def serve(memory: int, parent: int) -> None:
    """Answer requests until standard input ends.

    memory: bytes of address space, at most; parent: the process that asks, without which this one ends at once, even in
    the middle of decoding
    """
    threading.Thread(target=_end_without, args=(parent,), daemon=True).start()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints is no answer
    _limit_memory(memory)
    last = time.monotonic()

    def alive() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT:
            last = time.monotonic()
            send(answers, {"alive": True})

    opened: dict[int, Iterator[decoder.Frame]] = {}
    while sizes := requests.read(SIZES.size):
        header_size, payload_size = SIZES.unpack(sizes)
        request, payload = json.loads(requests.read(header_size)), requests.read(payload_size)
        last = time.monotonic()
        about = repr(request.get("shown", "the file"))
        try:
            answer = _answer(request, payload, opened, alive)
        except V2LError as error:
            answer = {"error": str(error)}, b""
        except MemoryError:
            answer = {"error": f"{about} needs more than {memory / 1e9:.1f} GB of memory to decode; leave it out"}, b""
        except Exception as error:  # PyAV raises classes of its own
            first = (str(error).splitlines() or [""])[0]
            answer = {"error": f"{about} cannot be decoded ({type(error).__name__}: {first}); re-encode it"}, b""
        send(answers, *answer)


def send(pipe: BinaryIO, header: dict[str, Any], payload: bytes = b"") -> None:
    """A request or an answer: two sizes, that much JSON, that many bytes."""
    text = json.dumps(header).encode()
    pipe.write(SIZES.pack(len(text), len(payload)) + text)
    pipe.write(payload)
    pipe.flush()


def video_to_json(video: Video) -> tuple[dict[str, Any], bytes]:
    """Plain values, and the arrays one after the other; those that are None are told apart from empty ones."""
    values = {name: value for name, value in vars(video).items() if name not in ARRAYS}
    arrays = [getattr(video, name) for name in ARRAYS]
    values["arrays"] = [None if array is None else len(array) for array in arrays]
    return values, b"".join(array.tobytes() for array in arrays if array is not None)


def video_from_json(values: dict[str, Any], payload: bytes) -> Video:
    """What `video_to_json` made plain; other names are passed over."""
    plain = {field.name: values[field.name] for field in dataclasses.fields(Video) if field.name not in ARRAYS}
    arrays, start = {}, 0
    for (name, kind), length in zip(ARRAYS.items(), values["arrays"], strict=True):
        size = (length or 0) * np.dtype(kind).itemsize
        arrays[name] = None if length is None else np.frombuffer(payload[start : start + size], kind)
        start += size
    return Video(**plain | {"notes": tuple(plain["notes"])}, **arrays)


def _answer(
    request: dict[str, Any], payload: bytes, opened: dict[int, Iterator[decoder.Frame]], alive: Callable[[], None]
) -> tuple[dict[str, Any], bytes]:
    if request["do"] == "version":
        return {"version": decoder.decoder_version(), "libraries": decoder.library_versions()}, b""
    if request["do"] == "probe":
        return video_to_json(decoder.probe(request["path"], request["shown"], alive))
    if request["do"] == "open":
        number = max(opened, default=0) + 1
        video = video_from_json(request, payload)
        opened[number] = decoder.read_frames(
            video, request["indices"], request["shown"], request["keep_damaged"], alive
        )
        return {"number": number}, b""
    if request["do"] == "frame":
        frame = next(opened[request["number"]])
        height, width, _ = frame.pixels.shape
        values = {"index": frame.index, "seconds": frame.seconds, "height": height, "width": width}
        return values | {"notes": frame.notes, "damage": frame.damage}, frame.pixels.tobytes()
    opened.pop(request["number"]).close()
    return {}, b""


def _end_without(parent: int) -> None:
    """Ends this process soon after its parent, which may have been killed while a long request is under way."""
    while os.name == "posix" and os.getppid() == parent:
        time.sleep(BEAT)
    if os.name == "posix":
        os._exit(1)


def _limit_memory(size: int) -> None:
    """Best effort: there is no such limit on Windows, and macOS refuses to set it."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
