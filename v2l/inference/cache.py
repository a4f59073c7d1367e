"""The user's cache of adapters, for videos in folders that cannot be written: found again by the video's content."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from v2l.inference.naming import is_adapter
from v2l.io.files import identify

ENVIRONMENT = "V2L_CACHE"
"""The variable that names a folder to keep adapters in, as `--cache` keeps them in the default one."""


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder of the cache: that of V2L_CACHE, or `v2l/adapters` where the system keeps caches; None for a
    user without a home folder."""
    if environment.get(ENVIRONMENT):
        return Path(environment[ENVIRONMENT])
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        caches = environment.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        caches = home / "Library" / "Caches"
    else:
        caches = environment.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(caches) / "v2l" / "adapters"


def is_chosen(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether V2L_CACHE asks for the cache."""
    return bool(environment.get(ENVIRONMENT))


@dataclass(frozen=True)
class AdapterCache:
    """Where the cache keeps the adapter of a video: `FOLDER/SHA256/NAME`, with the range that was read.

    range_name: of the range; is_preferred: keep the adapter here even where its own folder can be written
    """

    folder: Path
    range_name: str
    is_preferred: bool

    def path(self, video: Path, name: str) -> Path:
        """Return the path of a video's adapter: an existing one under whatever name, else a new one under `name`.
        Hashes the video. Raises V2LError if it cannot be read."""
        place = self.folder / f"{identify(video).sha256}{self.range_name}"
        try:
            found = sorted(each for each in os.listdir(place) if is_adapter(each) and not each.startswith("."))
        except OSError:
            found = []
        return place / (found[0] if found else name)
