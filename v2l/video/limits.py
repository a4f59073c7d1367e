"""Limits of what is read from a video, importable without NumPy."""

LEAST_RESOLUTION = 8
"""Pixels of a frame's longest edge, below which there is nothing to see."""
