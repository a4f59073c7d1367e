"""What `v2l pull` fetched, trusted on first use: commits and hashes, and which preset is the default.

One JSON file beside the Hugging Face cache, `$HF_HOME/v2l.lock.json`. Everything that is fetched again must be the
same; presets are read at the commit that stands here.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from v2l.errors import V2LError
from v2l.files import make_folder, printable, write_atomically


@dataclass(frozen=True)
class LockedRepo:
    """revision: the branch, tag or commit that was asked for; commit: what it was; files: name to sha256"""

    revision: str
    commit: str
    files: dict[str, str]


@dataclass(frozen=True)
class Lock:
    """repos: by the hub's name; default: the preset that stands in where no model is named"""

    repos: dict[str, LockedRepo] = field(default_factory=dict)
    default: str | None = None


def lock_path() -> Path:
    """Where it stands; HF_HOME is obeyed."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "v2l.lock.json"


def read_lock() -> Lock:
    """What stands there, nothing where it is not there. Raises V2LError where it cannot be understood."""
    path = lock_path()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["v2l"] != 1:
            raise ValueError(f"version {values['v2l']!r}")
        repos = {name: LockedRepo(**repo) for name, repo in values["repos"].items()}
        return Lock(repos, values["default"])
    except FileNotFoundError:
        return Lock()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise V2LError(
            f"cannot read {printable(path)} ({printable(error)}); move it away, and v2l pull writes it anew"
        ) from error


def write_lock(lock: Lock) -> None:
    """Puts it there. Raises V2LError where that is impossible."""
    text = json.dumps({"v2l": 1, **dataclasses.asdict(lock)}, indent=1, sort_keys=True) + "\n"
    make_folder(lock_path().parent)
    write_atomically(lock_path(), text.encode())
