"""Download a preset from the hub: the frozen model and its published hypernetwork, each file verified by its hash.

Only this module uses the hub, through hub.py, and the files go into the local Hugging Face cache, through hub_cache.py.
HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are obeyed. A branch is resolved to a commit once; the hashes of that
commit's files are recorded in the lock file and must not change.

The hypernetwork, a pickle, is imported into v2l's own file at once, so that later commands need not read the pickle.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from v2l.errors import V2LError
from v2l.io.files import make_folder
from v2l.io.text import printable
from v2l.models.checkpoint import check_belongs, import_checkpoint, load_hypernetwork
from v2l.models.hub import HubFile, NotThere, list_files
from v2l.models.hub_cache import CachePlace, fetch_file, hub_cache
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.loading import load_vlm
from v2l.models.lock_file import Lock, LockedRepo, is_commit, read_lock, write_lock
from v2l.models.presets import (
    PRESETS,
    Preset,
    cached_file,
    imported_hypernetwork,
    recorded_hypernetwork,
)

MODEL_FILES = re.compile(r"[^/]+\.(json|jinja|safetensors)|LICENSE[^/]*")
"""Files of the model's repository: those at its top level, weights as safetensors only."""


@dataclass(frozen=True)
class Pulled:
    """A downloaded repository: its name, the commit, the licence that it states, and the bytes of its files."""

    repo: str
    commit: str
    licence: str
    size: int


Report = Callable[[str], None]


def pull(name: str, revision: str | None, make_default: bool, report: Report) -> list[Pulled]:
    """Download the two repositories of a preset, check that they work together, and record them in the lock file.

    revision: branch, tag or commit of the model's repository; None for the recorded one, else `main`
    make_default: use this preset if no model is named; the first preset that is pulled always becomes the default
    report: called with a line about each step

    Raises V2LError, and records nothing, if the hub cannot be reached, a file is missing or differs from the hub's
    listing or the lock file, the disk is full, or the two do not work together. Downloaded parts are kept for the next
    attempt.
    """
    if name not in PRESETS:
        raise V2LError(f"unknown preset {printable(name)}; choose from {', '.join(PRESETS)}")
    preset, lock = PRESETS[name], read_lock()
    model, lock = _fetch(preset.model, MODEL_FILES.fullmatch, revision, lock, report)
    weights = [name for name in lock.repos[preset.model].files if name.endswith(".safetensors")]
    lacking = "" if weights else ".safetensors"
    if "config.json" not in lock.repos[preset.model].files:
        lacking = "config.json"
    if lacking:
        raise V2LError(f"{preset.model} has no {lacking} at {model.commit[:12]}; name another --revision")
    hypernetwork, lock = _fetch_hypernetwork(preset, lock, report)
    first = lock.default is None
    if first or make_default:
        lock = dataclasses.replace(lock, default=name)
    before = read_lock()
    write_lock(lock)  # the self-test finds the preset by it
    try:
        self_test(name, preset, _import_hypernetwork(preset), report)
    except BaseException:
        write_lock(before)
        raise
    return [model, hypernetwork]


def self_test(name: str, preset: Preset, hypernetwork: Hypernetwork, report: Report) -> None:
    """Load the model strictly. Raises V2LError if the tokenizer, the images or the hypernetwork are not those that v2l
    implements."""
    report(f"self-test: loading {preset.model}")
    vlm = load_vlm(name, device="cpu")
    if vlm.geometry.tokens_per_image != preset.tokens_per_image:
        raise V2LError(
            f"{preset.model} turns an image into {vlm.geometry.tokens_per_image} tokens and "
            f"{preset.tokens_per_image} were expected; name another --revision"
        )
    check_belongs(hypernetwork, vlm)


def _import_hypernetwork(preset: Preset) -> Hypernetwork:
    """Return the recorded hypernetwork of a preset from its import, which is made unless it is there and sound. Raises
    V2LError if the published file is not a hypernetwork that v2l implements."""
    repo, name, sha256 = recorded_hypernetwork(preset)
    imported = imported_hypernetwork(sha256)
    try:
        return load_hypernetwork(imported, device="cpu")
    except V2LError:  # missing or damaged
        make_folder(imported.parent)
        return import_checkpoint(cached_file(repo, name), imported)


def _fetch_hypernetwork(preset: Preset, lock: Lock, report: Report) -> tuple[Pulled, Lock]:
    """Fetch the hypernetwork from the first of its repositories that the hub has."""

    def choose(files: list[HubFile]) -> list[HubFile]:
        chosen = preset.choose_hypernetwork(file.name for file in files)
        return [file for file in files if file.name == chosen]

    for repo in preset.hypernetworks:
        try:
            return _fetch(repo, preset.is_hypernetwork, None, lock, report, choose)
        except NotThere as error:
            missing = error
            report(f"{error}; trying a former name")
    raise V2LError(f"the hub has the hypernetwork under none of its names: {missing}")


def _fetch(
    repo: str,
    wanted: Callable[[str], Any],
    revision: str | None,
    lock: Lock,
    report: Report,
    choose: Callable[[list[HubFile]], list[HubFile]] = list,
) -> tuple[Pulled, Lock]:
    """Fetch and verify files of a repository: those that `choose` takes of the wanted ones. Returns the lock with
    them."""
    locked = lock.repos.get(repo)
    requested = revision or (locked.commit if locked else "main")
    listing = list_files(repo, requested, wanted)
    commit = listing.commit
    if is_commit(requested) and commit != requested:
        raise V2LError(
            f"the hub answers with commit {commit[:12]} of {repo} instead of {requested[:12]}; check HF_ENDPOINT"
        )
    files = choose(listing.files)
    if not files:
        raise NotThere(f"{repo} has none of the required files at {commit[:12]}")
    _check_space(files)
    known = locked.files if locked and locked.commit == commit else {}
    found = {}
    for file in sorted(files, key=lambda file: file.name):
        report(f"{repo} {file.name}")
        found[file.name] = fetch_file(CachePlace(repo, commit, file), known.get(file.name))
    # the other files of this commit belong to another preset
    kept = LockedRepo(revision or (locked.revision if locked else "main"), commit, known | found)
    pulled = Pulled(repo, commit, listing.licence, sum(file.size for file in files))
    return pulled, dataclasses.replace(lock, repos=lock.repos | {repo: kept})


def _check_space(files: Sequence[HubFile]) -> None:
    """Raise V2LError if the disk of the cache has no space for the files. Files in the cache are not counted; partial
    downloads are, so the estimate is an upper bound."""
    place = hub_cache()
    needed = sum(file.size for file in files if not any(place.glob(f"models--*/blobs/{file.digest}")))
    while not os.path.exists(place):
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise V2LError(
            f"the download takes {needed / 1e9:.1f} GB and {printable(place)} has {free / 1e9:.1f} GB free; make room"
        )
