"""Fetches a preset: the frozen model and its published hypernetwork, from the hub, each file proven by its hash.

The only module that reaches the hub, through huggingface_hub, which obeys HF_HOME, HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE; judge.py alone reaches anything else, where a judge is named. A branch is resolved to a commit once;
what that commit's files are is recorded and must stay so.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2l.checkpoint import load_hypernetwork
from v2l.errors import V2LError
from v2l.files import open_regular, printable
from v2l.loading import load_vlm
from v2l.lock import Lock, LockedRepo, read_lock, write_lock
from v2l.models import PRESETS, Preset
from v2l.pipeline import check_belongs

MODEL_FILES = re.compile(r"[^/]+\.(json|jinja|safetensors)|LICENSE[^/]*")
"""Of the model's repository: what stands at its top, weights as safetensors only."""


@dataclass(frozen=True)
class Pulled:
    """A repository that is there: its name, the commit, the licence that it states, and bytes of its files."""

    repo: str
    commit: str
    licence: str
    size: int


Told = Callable[[str], None]


def pull(name: str, revision: str | None, make_default: bool, told: Told) -> list[Pulled]:
    """Fetches the preset's two repositories, proves that they work together, and records them.

    revision: of the model's repository, a branch, tag or commit; None for the one that is recorded, else `main`
    make_default: let this preset stand in where no model is named; the first one that is pulled always does
    told: hears what is being done

    Raises V2LError, and records nothing, where the hub cannot be reached, a file is missing or not what the hub or the
    record says, space runs out, or the two do not work together. What has arrived stays for the next try.
    """
    if name not in PRESETS:
        raise V2LError(f"there is no preset {printable(name)} to pull; choose from {', '.join(PRESETS)}")
    preset, lock = PRESETS[name], read_lock()
    model, lock = _fetch(preset.model, MODEL_FILES.fullmatch, revision, lock, told)
    weights = [name for name in lock.repos[preset.model].files if name.endswith(".safetensors")]
    lacking = "" if weights else ".safetensors"
    if "config.json" not in lock.repos[preset.model].files:
        lacking = "config.json"
    if lacking:
        raise V2LError(f"{preset.model} has no {lacking} at {model.commit[:12]}; name another --revision")
    hypernetwork, lock = _fetch_first(preset, lock, told)
    first = lock.default is None
    if first or make_default:
        lock = dataclasses.replace(lock, default=name)
    before = read_lock()
    write_lock(lock)  # by which the presets are found
    try:
        self_test(name, preset, told)
    except BaseException:
        write_lock(before)
        raise
    return [model, hypernetwork]


def self_test(name: str, preset: Preset, told: Told) -> None:
    """Loads both strictly, and raises V2LError where the tokenizer, the images or the hypernetwork are not what v2l
    was made for."""
    told(f"self-test: loading {preset.model} and its hypernetwork")
    vlm = load_vlm(name, device="cpu")
    if vlm.geometry.tokens_per_image != preset.tokens_per_image:
        raise V2LError(
            f"{preset.model} turns an image into {vlm.geometry.tokens_per_image} tokens and "
            f"{preset.tokens_per_image} were expected; name another --revision"
        )
    check_belongs(load_hypernetwork(name, device="cpu"), vlm)


def _fetch_first(preset: Preset, lock: Lock, told: Told) -> tuple[Pulled, Lock]:
    """The hypernetwork from the first of its names that the hub knows."""
    for repo in preset.hypernetworks:
        try:
            return _fetch(repo, preset.is_hypernetwork, None, lock, told)
        except NotThere as error:
            missing = error
            told(f"{error}; trying an older name")
    raise V2LError(f"none of the names of its hypernetwork is there: {missing}")


class NotThere(V2LError):
    """The hub has no such repository, or the repository no such file."""


def _fetch(
    repo: str, wanted: Callable[[str], Any], revision: str | None, lock: Lock, told: Told
) -> tuple[Pulled, Lock]:
    """The wanted files of a repository, in the cache and proven; returns the lock with them."""
    from huggingface_hub import HfApi

    locked = lock.repos.get(repo)
    asked = revision or (locked.commit if locked else "main")
    info = _of_the_hub(lambda: HfApi().model_info(repo, revision=asked, files_metadata=True), repo)
    commit, files = info.sha, [file for file in info.siblings if wanted(file.rfilename)]
    if not files:
        raise NotThere(f"{repo} has none of the files that are needed at {commit[:12]}")
    _check_space(files)
    known = locked.files if locked and locked.commit == commit else {}
    found = {}
    for file in sorted(files, key=lambda file: file.rfilename):
        told(f"{repo} {file.rfilename}")
        found[file.rfilename] = _proven(repo, commit, file, known.get(file.rfilename))
    kept = LockedRepo(revision or (locked.revision if locked else "main"), commit, found)
    licence = (info.card_data or {}).get("license") or "not stated"
    pulled = Pulled(repo, commit, str(licence), sum(file.size or 0 for file in files))
    return pulled, dataclasses.replace(lock, repos=lock.repos | {repo: kept})


def _proven(repo: str, commit: str, file: Any, recorded: str | None) -> str:
    """The sha256 of a file of the hub, fetched where it is not there. A wrong one is thrown away."""
    from huggingface_hub import hf_hub_download

    path = Path(_of_the_hub(lambda: hf_hub_download(repo, file.rfilename, revision=commit), repo))
    with open_regular(path) as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        content.seek(0)
        if file.lfs is not None:
            expected, got = file.lfs.sha256, sha256
        else:  # a small file's name in git
            data = content.read()
            expected, got = file.blob_id, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    trouble = ""
    if got != expected:
        trouble = f"has the hash {got[:12]} and the hub states {expected[:12]}"
    elif recorded not in (None, sha256):
        trouble = f"is another file of the same commit than was recorded ({sha256[:12]}, {recorded[:12]})"
    if trouble:
        for place in (Path(os.path.realpath(path)), path):
            place.unlink(missing_ok=True)
        raise V2LError(f"{repo} {printable(file.rfilename)} {trouble}; it was thrown away, pull again")
    return sha256


def _check_space(files: Sequence[Any]) -> None:
    """Raises V2LError where the cache's disk could not hold them all; what is there already counts as missing only by
    name, so the estimate is on the safe side."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    needed = sum(file.size or 0 for file in files if not _is_there(place, file))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise V2LError(f"{needed / 1e9:.1f} GB are to be fetched and {printable(place)} has {free / 1e9:.1f} GB free")


def _is_there(cache: Path, file: Any) -> bool:
    name = file.lfs.sha256 if file.lfs is not None else file.blob_id
    return any(cache.glob(f"models--*/blobs/{name}"))


def _of_the_hub(request: Callable[[], Any], repo: str) -> Any:
    """What the request returns; whatever goes wrong becomes one line."""
    from huggingface_hub import constants, errors

    try:
        return request()
    except errors.OfflineModeIsEnabled as error:
        raise V2LError(
            "HF_HUB_OFFLINE is set, and v2l pull is the one command that needs the network; unset it"
        ) from error
    except errors.GatedRepoError as error:
        raise V2LError(f"{repo} must be asked for on the hub first; then set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise V2LError(f"{repo} has no such revision; leave --revision out for the recorded one") from error
    except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise NotThere(f"the hub has no {repo}, or not its file") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise V2LError(
                f"the disk is full: {printable(constants.HF_HUB_CACHE)}; make room and pull again"
            ) from error
        raise _unreachable(error) from error
    except Exception as error:  # the HTTP library's own classes
        raise _unreachable(error) from error


def _unreachable(error: Exception) -> V2LError:
    from huggingface_hub import constants

    first = (str(error).splitlines() or [type(error).__name__])[0]
    return V2LError(
        f"cannot fetch from {printable(constants.ENDPOINT)} ({printable(first)}); check the network, HF_ENDPOINT and "
        "HF_TOKEN, and pull again: what has arrived is kept"
    )
