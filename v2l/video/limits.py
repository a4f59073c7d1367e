"""Limits of decoding and of what is read from a video, importable without NumPy."""

LEAST_RESOLUTION = 8
"""Smallest accepted longest edge of a frame, in pixels."""
SILENCE = 60.0
"""Seconds without a message after which a worker counts as hung. It sends heartbeats while packets are processed."""
POLL = 1.0
"""Seconds of one wait for a message. A wait that takes longer, because this process was paused or not scheduled, counts
as this long: the worker was probably not running either."""
MEMORY = 8 * 2**30
"""Limit of a worker's address space in bytes, on systems with such a limit."""
