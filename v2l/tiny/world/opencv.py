"""Import OpenCV safely and with clear errors: `from v2l.tiny.world.opencv import cv2`."""

from __future__ import annotations

import os

from v2l.errors import V2LError

for _name in [name for name in os.environ if name.startswith("OPENCV") and name.endswith("PATH")]:
    if not os.path.isabs(os.environ[_name]):
        del os.environ[_name]  # never load OpenCV plug-ins from the working folder

try:
    import cv2
except ImportError as error:
    if any(name in str(error) for name in ("libGL", "libgthread", "libglib", "libxcb", "libSM")):
        raise V2LError(
            f"OpenCV cannot load a system library ({error}): on Debian or Ubuntu run `apt-get install libgl1 "
            "libglib2.0-0`, or replace opencv-python with opencv-python-headless"
        ) from error
    raise V2LError(f"OpenCV cannot be imported ({error}): run `pip install opencv-python`") from error

__all__ = ["cv2"]
