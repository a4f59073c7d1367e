"""The messages between a process and its decoding worker: two sizes, that much JSON, and that many bytes of arrays."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from v2l.video.sampling import FrameIndex, Video

SIZES = struct.Struct("<II")
"""Sizes in bytes of the JSON and of the payload that follow."""
READ_BYTES = 2**20
"""Most bytes of one read."""
Message = tuple[dict[str, Any], bytes]
"""The JSON of a message and its payload."""
INDEX_ARRAYS = tuple(field.name for field in dataclasses.fields(FrameIndex))


def send(pipe: IO[bytes], header: dict[str, Any], payload: bytes = b"") -> None:
    """Write a message."""
    text = json.dumps(header).encode()
    pipe.write(SIZES.pack(len(text), len(payload)) + text)
    pipe.write(payload)
    pipe.flush()


def receive(read: Callable[[int], bytes]) -> Message:
    """Read a message. Raises EOFError if the input ends.

    read: returns that many bytes or fewer, none at the end of the input
    """
    header_size, payload_size = SIZES.unpack(_read_exactly(read, SIZES.size))
    return json.loads(_read_exactly(read, header_size)), _read_exactly(read, payload_size)


def _read_exactly(read: Callable[[int], bytes], size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        part = read(min(size - len(content), READ_BYTES))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def video_to_json(video: Video) -> tuple[dict[str, Any], bytes]:
    """Split a video into plain values and the concatenated bytes of its arrays."""
    values = {name: value for name, value in vars(video).items() if name not in ("seconds", "index")}
    arrays = [video.seconds]
    if video.index is not None:
        arrays += [getattr(video.index, name) for name in INDEX_ARRAYS]
    values["array_lengths"] = [len(array) for array in arrays]
    return values, b"".join(array.tobytes() for array in arrays)


def video_from_json(values: dict[str, Any], payload: bytes) -> Video:
    """Rebuild a video from what `video_to_json` returned; other names among the values are ignored."""
    arrays, start = [], 0
    for number, length in enumerate(values["array_lengths"]):
        array = np.frombuffer(payload, np.int64 if number else np.float64, length, start)
        arrays.append(array)
        start += array.nbytes
    seconds, *index = arrays
    fields = {field.name: values[field.name] for field in dataclasses.fields(Video) if field.name in values}
    fields |= {"notes": tuple(fields["notes"]), "seconds": seconds, "index": FrameIndex(*index) if index else None}
    return Video(**fields)
