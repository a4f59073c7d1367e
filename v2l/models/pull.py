"""Download a preset from the hub: the frozen model and its published hypernetwork, each file verified by its hash.

Only this module uses the hub, through hub.py, and the files go into the local Hugging Face cache, through hub_cache.py.
HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are obeyed. A branch is resolved to a commit once; the hashes of that
commit's files are recorded in the lock file and must not change.

The model may be stored in another number type instead, see rounded_copy.py.
The hypernetwork, a pickle, is imported into v2l's own file at once, so that later commands need not read the pickle.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.files import make_folder
from v2l.io.text import amount, printable
from v2l.models.checkpoint import check_belongs, import_checkpoint, load_hypernetwork
from v2l.models.hub import HubFile, NotThere, list_files
from v2l.models.hub_cache import CachePlace, check_recorded, fetch_file, hub_cache
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.loading import load_vlm
from v2l.models.lock_file import Lock, LockedRepo, StoredCopy, is_commit, is_sha256, own_folder, read_lock, write_lock
from v2l.models.presets import (
    PRESETS,
    Preset,
    cached_file,
    copy_folder,
    imported_hypernetwork,
    no_preset,
    open_folder,
    recorded_hypernetwork,
)
from v2l.models.rounded_copy import is_sound, write_copy

MODEL_FILES = re.compile(r"[^/]+\.(json|jinja|safetensors)|LICENSE[^/]*")
"""Files of the model's repository: those at its top level, weights as safetensors only."""


@dataclass(frozen=True)
class Pulled:
    """A downloaded repository: its name, the commit, the licence that it states, and the bytes of its files."""

    repo: str
    commit: str
    licence: str
    size: int


@dataclass(frozen=True)
class PullOptions:
    """Options of a download.

    revision: branch, tag or commit of the model's repository; None for the recorded one, else `main`
    make_default: use this preset if no model is named; the first preset that is pulled always becomes the default
    dtype: "bfloat16" or "float16" stores the model rounded, in place of the published files; "float32" stores it as
        published; None for as before, else as published
    """

    revision: str | None = None
    make_default: bool = False
    dtype: str | None = None


@dataclass(frozen=True)
class PullWatch:
    """Callbacks of a download.

    note: called with a line about each step
    confirm: called once with the bytes to download, before any of them; False ends the download
    progress: called with the bytes so far, the bytes of all files together, and the name of a file
    """

    note: Callable[[str], object] = lambda line: None
    confirm: Callable[[int], bool] = lambda size: True
    progress: Callable[[int, int, str], object] = lambda done, total, name: None


@dataclass(frozen=True)
class RepoDownload:
    """The files of a repository that a preset needs.

    revision: as it is recorded; known: the sha256 of files that the lock file has for this commit
    cache: where the files go
    dtype: number type of the copy that is stored in place of the files, None for the files themselves
    copy: this copy, if it is there and sound, so that no file is needed
    """

    repo: str
    revision: str
    commit: str
    licence: str
    files: tuple[HubFile, ...]
    known: dict[str, str]
    cache: Path = field(default_factory=hub_cache)
    dtype: str | None = None
    copy: StoredCopy | None = None

    @property
    def places(self) -> list[CachePlace]:
        """The places of the files that are needed."""
        return [] if self.copy else [CachePlace(self.repo, self.commit, file, self.cache) for file in self.files]

    @property
    def weights(self) -> list[HubFile]:
        return [file for file in self.files if file.name.endswith(".safetensors")]

    @property
    def missing(self) -> int:
        """Bytes to download."""
        return sum(place.missing for place in self.places)

    @property
    def pulled(self) -> Pulled:
        return Pulled(self.repo, self.commit, self.licence, sum(file.size for file in self.files))


def pull(name: str, options: PullOptions = PullOptions(), watch: PullWatch = PullWatch()) -> list[Pulled]:
    """Download the two repositories of a preset, check that they work together, and record them in the lock file.

    Raises V2LError, and records nothing, if the hub cannot be reached, a file is missing or differs from the hub's
    listing or the lock file, the disk has no room, the download is not confirmed, or the two do not work together.
    Downloaded parts are kept for the next attempt.
    """
    if name not in PRESETS:
        raise V2LError(no_preset(name))
    preset, before = PRESETS[name], read_lock()
    model = _plan_model(preset, options, before)
    plans = [model, _plan_hypernetwork(preset, before, watch.note)]
    _check_space(plans)
    _announce(name, plans, watch)
    lock = _store_rounded(model, _fetch(plans, before, watch), watch.note)
    if lock.default is None or options.make_default:
        lock = replace(lock, default=name)
    write_lock(lock)  # the self-test finds the preset by it
    try:
        self_test(name, preset, _import_hypernetwork(preset), watch.note)
    except BaseException:
        write_lock(before)
        raise
    _remove_unused(model)
    return [plan.pulled for plan in plans]


def self_test(name: str, preset: Preset, hypernetwork: Hypernetwork, note: Callable[[str], object]) -> None:
    """Load the model strictly. Raises V2LError if the tokenizer, the images or the hypernetwork are not those that v2l
    implements."""
    note(f"self-test: loading {preset.model}")
    vlm = load_vlm(name, device="cpu")
    if vlm.tokenizer is None:
        raise V2LError(f"{preset.model} has no tokenizer.json, which prompts need; name another --revision")
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
        return import_checkpoint(cached_file(preset, repo, name), imported)


# Plan --------------------------------------------------------------------------------------------------------------


def _plan_model(preset: Preset, options: PullOptions, lock: Lock) -> RepoDownload:
    """List the model's repository. Raises V2LError if it has no configuration or no weights as safetensors."""
    plan = _plan(preset.model, MODEL_FILES.fullmatch, options.revision, lock)
    lacking = "" if plan.weights else ".safetensors"
    lacking = lacking if "config.json" in [file.name for file in plan.files] else "config.json"
    if lacking:
        raise V2LError(f"{preset.model} has no {lacking} at {plan.commit[:12]}; name another --revision")
    locked = lock.repos.get(preset.model)
    copy = locked.copy if locked else None
    dtype = options.dtype or (copy.dtype if copy else None)
    return plan if dtype in (None, "float32") else _plan_copy(plan, dtype, locked)


def _plan_copy(plan: RepoDownload, dtype: str | None, locked: LockedRepo | None) -> RepoDownload:
    """Plan to store a model in another number type: keep the copy if it is sound, else make it from the Hugging Face
    cache if the published weights are there, else from files that are removed afterwards."""
    if locked and locked.copy and locked.commit == plan.commit and locked.copy.dtype == dtype:
        for file in plan.weights:
            if is_sha256(file.digest):  # of a file in LFS, as weights are
                check_recorded(f"{plan.repo} {file.name}", file.digest, plan.known.get(file.name, file.digest))
        if is_sound(locked.copy, copy_folder(plan.repo, plan.commit, locked.copy.dtype)):
            return replace(plan, dtype=dtype, copy=locked.copy)
    there = all(os.path.exists(CachePlace(plan.repo, plan.commit, file).pointer) for file in plan.weights)
    return replace(plan, dtype=dtype, cache=plan.cache if there else own_folder() / "downloads")


def _plan_hypernetwork(preset: Preset, lock: Lock, note: Callable[[str], object]) -> RepoDownload:
    """List the first of the hypernetwork's repositories that the hub has, and choose one file."""
    for repo in preset.hypernetworks:
        try:
            plan = _plan(repo, preset.is_hypernetwork, None, lock)
        except NotThere as error:
            missing = error
            note(f"{error}; trying a former name")
            continue
        chosen = preset.choose_hypernetwork(file.name for file in plan.files)
        return replace(plan, files=tuple(file for file in plan.files if file.name == chosen))
    raise V2LError(f"the hub has the hypernetwork under none of its names: {missing}")


def _plan(repo: str, wanted: Callable[[str], Any], revision: str | None, lock: Lock) -> RepoDownload:
    """List the wanted files of a repository: at `revision`, else at the recorded commit, else at `main`."""
    locked = lock.repos.get(repo)
    requested = revision or (locked.commit if locked else "main")
    listing = list_files(repo, requested, wanted)
    commit = listing.commit
    if is_commit(requested) and commit != requested:
        raise V2LError(
            f"the hub answers with commit {commit[:12]} of {repo} instead of {requested[:12]}; check HF_ENDPOINT"
        )
    if not listing.files:
        raise NotThere(f"{repo} has none of the required files at {commit[:12]}")
    files = tuple(sorted(listing.files, key=lambda file: file.name))
    known = locked.files if locked and locked.commit == commit else {}
    return RepoDownload(
        repo, revision or (locked.revision if locked else "main"), commit, listing.licence, files, known
    )


def _check_space(plans: Sequence[RepoDownload]) -> None:
    """Raise V2LError if a disk has no space for the files and for what is made from them."""
    model, hypernetwork = plans
    needs = [(plan.cache, plan.missing) for plan in plans]
    needs += [(own_folder(), file.size) for file in hypernetwork.files if not _is_imported(file)]
    if model.dtype and not model.copy:
        needs += [(own_folder(), file.size // 2) for file in model.weights]  # of float32
    disks: dict[int, tuple[Path, int]] = {}
    for place, size in needs:
        while not os.path.exists(place):
            place = place.parent
        disk = os.stat(place).st_dev
        disks[disk] = (place, size + (disks[disk][1] if disk in disks else 0))
    for place, needed in disks.values():
        free = shutil.disk_usage(place).free
        if needed > free:
            raise V2LError(
                f"the preset takes {amount(needed)} more and {printable(place)} has {amount(free)} free; make room"
            )


def _is_imported(file: HubFile) -> bool:
    return is_sha256(file.digest) and imported_hypernetwork(file.digest).exists()


def _announce(name: str, plans: Sequence[RepoDownload], watch: PullWatch) -> None:
    """Tell how much there is to download. Raises V2LError if that is not confirmed."""
    missing = {plan.repo: plan.missing for plan in plans if plan.missing}
    size = sum(missing.values())
    if not missing:
        return
    parts = ", ".join(f"{repo} {amount(part)}" for repo, part in missing.items())
    watch.note(f"{name}: {amount(size)} to download ({parts})")
    if not watch.confirm(size):
        raise V2LError("not confirmed, so nothing was downloaded; --yes downloads without asking")


# Fetch -------------------------------------------------------------------------------------------------------------


def _fetch(plans: Sequence[RepoDownload], lock: Lock, watch: PullWatch) -> Lock:
    """Fetch and verify the files that the cache lacks. Returns the lock with all files."""
    done, total = 0, sum(plan.missing for plan in plans)
    for plan in plans:
        found = {}
        for place in plan.places:
            size, name = place.missing, place.file.name

            def report(left: int, before: int = done + size, name: str = name) -> None:
                watch.progress(before - left, total, name)

            found[name] = fetch_file(place, plan.known.get(name), report)
            done += size
        # the other files of this commit belong to another preset
        kept = LockedRepo(plan.revision, plan.commit, plan.known | found, plan.copy)
        lock = replace(lock, repos=lock.repos | {plan.repo: kept})
    return lock


def _store_rounded(plan: RepoDownload, lock: Lock, note: Callable[[str], object]) -> Lock:
    """Make the copy of a model that a plan asks for, unless it is there. Returns the lock with it."""
    if plan.dtype is None or plan.copy:
        return lock
    target = copy_folder(plan.repo, plan.commit, plan.dtype)
    note(f"storing {plan.repo} in {plan.dtype}: {printable(target)}")
    published = open_folder(plan.places[0].pointer.parent, plan.repo, plan.commit)
    copy = write_copy(published, [file.name for file in plan.files], target, plan.dtype)
    return replace(lock, repos=lock.repos | {plan.repo: replace(lock.repos[plan.repo], copy=copy)})


def _remove_unused(plan: RepoDownload) -> None:
    """Remove what v2l's own folder holds of a model beside the copy in use: the published files that it was made from,
    and older copies."""
    name = plan.repo.replace("/", "--")
    used = copy_folder(plan.repo, plan.commit, plan.dtype or "float32")
    downloads = own_folder() / "downloads"
    shutil.rmtree(downloads / f"models--{name}", ignore_errors=True)
    if not any(downloads.glob("models--*")):
        shutil.rmtree(downloads, ignore_errors=True)
    for folder in used.parent.glob(f"{name}-*"):
        if folder != used:
            shutil.rmtree(folder, ignore_errors=True)
