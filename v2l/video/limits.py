"""Limits of what is read from a video, importable without NumPy."""

LEAST_RESOLUTION = 8
"""Smallest accepted longest edge of a frame, in pixels."""
