"""The memory of the process: the C library's allocator, in which torch keeps tensors on the CPU, and Python's garbage
collector. Imports no torch."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MAPPED_FROM, KEPT = 1 << 20, 16 << 20
"""Bytes from which a block of memory is mapped by itself, and that may stay free at the end of the heap."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def return_freed_memory() -> None:
    """Return large blocks of memory to the system as soon as they are freed, in this process from now on.

    glibc raises the size from which it does so to that of the blocks that were freed, up to 32 MiB, and keeps smaller
    ones in its heap, where the next large one often does not fit. The peak of encoding then varies by up to half
    between runs. Other C libraries have no such setting and stay as they are.
    """
    import ctypes

    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, MAPPED_FROM)
        set_option(_M_TRIM_THRESHOLD, KEPT)


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage in the block, for objects that stay until the end: visiting them again and again takes a tenth
    of the time of `import torch`, and a seventh of that of an index. A block in another one changes nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
