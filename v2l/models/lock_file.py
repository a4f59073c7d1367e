"""The lock file of `v2l pull`: what it downloaded, trusted on first use.

`$HF_HOME/v2l.lock.json` beside the Hugging Face cache records the commit of each repository, the sha256 of each file,
and the default preset. A file that is downloaded again must be identical. Paths are built from the hub's answers and
from this file only after `is_commit`, `is_sha256` and `is_plain_name` have accepted their parts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.files import make_folder, open_regular, write_atomically
from v2l.io.text import printable

MAX_LOCK_BYTES = 1_000_000
"""Largest lock file; a preset takes about 2 kB."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,98}[A-Za-z0-9])?")


def is_commit(value: object) -> bool:
    """Return whether the value is a commit id or a git object id: exactly 40 lower-case hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{40}", value) is not None


def is_sha256(value: object) -> bool:
    """Return whether the value is a sha256: exactly 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_plain_name(value: object) -> bool:
    """Return whether the value is a file name without a folder: 1 to 100 ASCII letters, digits and `._+-`, with a
    letter or digit at both ends and without `..`."""
    return isinstance(value, str) and _PLAIN_NAME.fullmatch(value) is not None and ".." not in value


COPY_DTYPES = ("bfloat16", "float16")
"""Number types of a `StoredCopy`."""


@dataclass(frozen=True)
class StoredCopy:
    """A copy of a model with rounded weights, kept by v2l in place of the published files (`v2l pull --dtype`).

    dtype: one of `COPY_DTYPES`; files: name to sha256
    fingerprint: of the model as published, which adapters record; rounded: the fingerprint of the files of the copy
    """

    dtype: str
    files: dict[str, str]
    fingerprint: str
    rounded: str


@dataclass(frozen=True)
class LockedRepo:
    """A repository in the lock file.

    revision: the branch, tag or commit that was requested; commit: the commit it resolved to; files: name to sha256
    copy: of a model that is stored in another number type
    """

    revision: str
    commit: str
    files: dict[str, str]
    copy: StoredCopy | None = None


@dataclass(frozen=True)
class Lock:
    """The lock file.

    repos: by name on the hub; default: the preset that is used if no model is named
    """

    repos: dict[str, LockedRepo] = field(default_factory=dict)
    default: str | None = None


def lock_path() -> Path:
    """Return the path of the lock file; HF_HOME is obeyed."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "v2l.lock.json"


def own_folder() -> Path:
    """Return v2l's own folder beside the lock file, for files that `v2l pull` derives from the hub's."""
    return lock_path().parent / "v2l"


def read_lock() -> Lock:
    """Read the lock file. Return an empty lock if the file is missing. Raise V2LError if it is damaged, of another
    version, or holds an invalid commit, hash or file name."""
    path = lock_path()
    try:
        with open_regular(path) as file:
            data = file.read(MAX_LOCK_BYTES + 1)
        if len(data) > MAX_LOCK_BYTES:
            raise ValueError(f"more than {MAX_LOCK_BYTES} bytes")
        values = json.loads(data.decode())
        if values["v2l"] != 1:
            raise ValueError(f"version {values['v2l']!r}")
        repos = {name: _locked_repo(**repo) for name, repo in values["repos"].items()}
        if values["default"] is not None and not is_plain_name(values["default"]):
            raise ValueError("the default is not the name of a preset")
        return Lock(repos, values["default"])
    except FileNotFoundError:
        return Lock()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise V2LError(
            f"cannot read {printable(path)} ({printable(error)}); move it away, and v2l pull writes it anew"
        ) from error


def write_lock(lock: Lock) -> None:
    """Write the lock file, atomically. Raises V2LError if that fails."""
    values = dataclasses.asdict(lock)
    for repo in values["repos"].values():
        if repo["copy"] is None:  # unknown to earlier versions
            del repo["copy"]
    text = json.dumps({"v2l": 1, **values}, indent=1, sort_keys=True) + "\n"
    make_folder(lock_path().parent)
    write_atomically(lock_path(), text.encode())


def _locked_repo(revision: Any, commit: Any, files: Any, copy: Any = None) -> LockedRepo:
    if not isinstance(revision, str):
        raise ValueError("a revision is not a string")
    if not is_commit(commit):
        raise ValueError(f"{commit!r} is not a commit of 40 hexadecimal digits")
    return LockedRepo(revision, commit, _files(files), None if copy is None else _stored_copy(**copy))


def _stored_copy(dtype: Any, files: Any, fingerprint: Any, rounded: Any) -> StoredCopy:
    if dtype not in COPY_DTYPES:
        raise ValueError(f"{dtype!r} is not a number type of a copy")
    if not (is_sha256(fingerprint) and is_sha256(rounded)):
        raise ValueError("a fingerprint is not 64 hexadecimal digits")
    return StoredCopy(dtype, _files(files), fingerprint, rounded)


def _files(files: Any) -> dict[str, str]:
    for name, sha256 in files.items():
        if not is_plain_name(name):
            raise ValueError(f"{name!r} is not a plain file name")
        if not is_sha256(sha256):
            raise ValueError(f"the sha256 of {name} is not 64 hexadecimal digits")
    return dict(files)
