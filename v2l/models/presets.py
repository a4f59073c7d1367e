"""Presets and model folders: find a model on disk, read its files, compute its fingerprint.

No function here uses the network. Presets other than `tiny` are looked up in the local Hugging Face cache, at the
commit that the lock file records.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.safetensors_file import canonical_json
from v2l.io.text import printable
from v2l.io.untrusted import read_json, shown
from v2l.models.config import (
    MAX_FRAME_SIZE,
    SmolVLMConfig,
    VisionGeometry,
    language_settings,
    read_config,
    tensor_shapes,
)
from v2l.models.lock_file import StoredCopy, own_folder, read_lock
from v2l.models.weights import StoredTensor, check_tensors, stored_tensors


@dataclass(frozen=True)
class Preset:
    """A frozen model on the hub and the published hypernetwork that was trained for it.

    model: repository of the frozen model
    tokens_per_image: the number that the model folder must state
    size: the size as written in the file names of the hypernetworks
    hypernetworks: repositories of the hypernetwork, the current one first, then its former names
    """

    model: str
    tokens_per_image: int
    size: str
    hypernetworks: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the preset."""
        return next(name for name, preset in PRESETS.items() if preset is self)

    @property
    def file(self) -> str:
        """The current file name of the hypernetwork."""
        return f"frames2lora-smolvlm2-{self.size}-best-ce.pt"

    def is_hypernetwork(self, name: str) -> bool:
        """Return whether a file of `hypernetworks` is the hypernetwork, under its current or a former name."""
        return name.endswith(".pt") and self.size in name and "trainer" not in name

    def choose_hypernetwork(self, names: Iterable[str]) -> str | None:
        """Return the hypernetwork among files: the current name, else the best checkpoint under a former name, else the
        first that could be one; None if there is none."""
        found = sorted(
            filter(self.is_hypernetwork, names), key=lambda name: (name != self.file, "best" not in name, name)
        )
        return found[0] if found else None


_PUBLISHED = ("MananSuri27/Frames2LoRA-SmolVLM-ckpts", "MananSuri27/Video2LoRA-SmolVLM-ckpts")
PRESETS = {
    "smolvlm2-500m": Preset(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        64,
        "500m",
        (*_PUBLISHED, "MananSuri27/video2lora-smolvlm2-500m-video-best-ce"),
    ),
    "smolvlm2-2.2b": Preset(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        81,
        "2.2b",
        (*_PUBLISHED, "MananSuri27/video2lora-smolvlm2-2.2b-best-ce"),
    ),
}
EMBEDDED = Path(__file__).parents[1] / "tiny" / "weights"
"""The folder of the embedded model `tiny`: the frozen model and `hypernetwork.safetensors` beside it."""
RELEASE = "tiny-5"
"""Name of the embedded frozen model in adapters: the release that introduced it. Its hypernetwork, which may come from
a later release, has its own name."""
_TINY_FINGERPRINTS = {
    "tiny-1": "649479fc33f47f61a3278b827e2bf1718f5be0ec3837f523685927fc6ba1b93e",
    "tiny-2": "0305b7921c90deebf5ff8bd18a079e4242df88ad4fed1d3ddcb420463debf8a8",
    "tiny-4": "a399c91c0c00f6539c61a116c0c766a7b31e420df7fce18a93ac634774e8369a",
    RELEASE: "041f52e5871f6d3274e81428c103a95eae294a821ce2a14dbb9b4233fb9b2e11",
}
"""Fingerprints of the embedded frozen models by release."""
MAX_INDEX_QUESTIONS = 32
"""Limit of the questions in the index of a timeline."""
TINY_QUESTIONS = (
    "Describe what is happening in this video.",
    "which words are written?",
    "what is on the whiteboard?",
    "which colour has the shape?",
    "tell me the shape.",
)
INDEX_QUESTIONS = {"tiny": TINY_QUESTIONS, RELEASE: TINY_QUESTIONS}
"""Questions that every segment of a timeline answers, by the name of the frozen model, for hypernetworks that list none
(docs/world.md). The words are asked for twice, because each answer misses some."""


def is_tiny(fingerprint: str | None) -> bool:
    """Return whether a fingerprint is that of the embedded model, of any release and wherever its files are."""
    return fingerprint in _TINY_FINGERPRINTS.values()


@dataclass(frozen=True)
class ModelFolder:
    """A frozen SmolVLM on disk, in the Hugging Face layout.

    id: public name of the model, or the folder's name if the model has none
    revision: commit of the hub; None for a folder that does not come from the hub
    config: sizes of the networks, with every default filled in
    geometry: image size, tokens per image and frame size that the folder states
    copy: of a folder with rounded weights that `v2l pull` made
    """

    path: Path
    id: str
    revision: str | None
    config: SmolVLMConfig = field(repr=False)
    geometry: VisionGeometry
    copy: StoredCopy | None = field(default=None, repr=False)

    @property
    def end_of_answer_ids(self) -> set[int]:
        """Token ids that end an answer, from generation_config.json. Raises V2LError if one is not a token id."""
        path, size = self.path / "generation_config.json", self.config.text_config.vocab_size
        stated = read_json(path, optional=True).get("eos_token_id")
        ids = [] if stated is None else stated if isinstance(stated, list) else [stated]
        for token in ids:
            if type(token) is not int or not 0 <= token < size:
                raise V2LError(
                    f"{printable(path)} states eos_token_id = {shown(token)}; this model's tokens have ids from 0 "
                    f"to {size - 1:,}, get another copy of it"
                )
        return set(ids)

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The stored tensors by name: exactly those of the configuration, with its shapes. Raises V2LError if the files
        hold anything else."""
        stored = stored_tensors(self.path)
        check_tensors(stored, tensor_shapes(self.config), self.path)
        return stored

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits that identify the frozen language model, independent of its location.

        It is `stored_fingerprint`, but a copy that `v2l pull` rounded has the fingerprint of the published model: they
        are one model in two number types, as if it had been loaded in another. Raises V2LError if the copy has changed.
        """
        if self.copy is None:
            return self.stored_fingerprint
        if self.stored_fingerprint != self.copy.rounded:
            name = preset_name(self.id) or "PRESET"
            raise V2LError(
                f"{printable(self.path)} has changed since v2l pull stored it; v2l pull {name} gets it again"
            )
        return self.copy.fingerprint

    @cached_property
    def stored_fingerprint(self) -> str:
        """The fingerprint of the files in this folder.

        The sha256 covers the configuration of the language model, the sorted names, shapes and dtypes of its tensors,
        and all bytes of the final norm and of the first and the last down_proj, as stored.
        """
        stored = self.tensors
        last = self.config.text_config.num_hidden_layers - 1
        read_whole = {
            "model.text_model.norm.weight",
            "model.text_model.layers.0.mlp.down_proj.weight",
            f"model.text_model.layers.{last}.mlp.down_proj.weight",
        }
        digest = hashlib.sha256(canonical_json(language_settings(self.config)).encode())
        for name in sorted(stored):
            if not name.startswith(("model.text_model.", "lm_head.")):
                continue
            line = {"name": name, "shape": list(stored[name].shape), "dtype": stored[name].dtype}
            digest.update(canonical_json(line).encode())
            if name in read_whole:
                digest.update(stored[name].read())
        return digest.hexdigest()


def preset_name(model: str) -> str | None:
    """Return the name under which v2l knows a model, from the id that adapters record: "tiny" for "tiny-5"."""
    named = {preset.model: name for name, preset in PRESETS.items()} | {RELEASE: "tiny"}
    return named.get(model)


def named_by_repository(repo: str) -> tuple[str, ...]:
    """Return the presets whose model or hypernetwork is in a repository of the hub."""
    return tuple(name for name, preset in PRESETS.items() if repo in (preset.model, *preset.hypernetworks))


def check_no_repository(name: str) -> None:
    """Raise V2LError, with the preset, if a name is that of a repository and not of a local file or folder."""
    if presets := named_by_repository(name):
        raise V2LError(f"no file or folder {printable(name)}; the preset of that name is {' or '.join(presets)}")


def no_preset(name: str) -> str:
    """Return why a name cannot be pulled, for messages, and what can."""
    if name in ("tiny", RELEASE):
        return f"{name} is a part of v2l; there is nothing to pull"
    if presets := named_by_repository(name):
        return f"{printable(name)} is pulled by the name of its preset: v2l pull {' or '.join(presets)}"
    return f"'{printable(name)}' is not a preset; choose from {', '.join(PRESETS)}"


def find_model(name: str | os.PathLike) -> ModelFolder:
    """Return the model folder of a preset or a path. Raises V2LError, with the remedy, if there is none."""
    name = os.fspath(name)
    if name == "tiny":
        return open_folder(EMBEDDED, id=RELEASE, revision=None)
    if name in PRESETS:
        return _find_preset(PRESETS[name])
    folder = Path(name)
    if not os.path.isdir(folder):  # unlike Path.is_dir, it never raises
        check_no_repository(name)
        raise V2LError(
            f"no model folder {printable(name)}; name a folder in the Hugging Face layout or one of "
            f"{', '.join(['tiny', *PRESETS])}"
        )
    return open_folder(folder, id=None, revision=None)


def _find_preset(preset: Preset) -> ModelFolder:
    """Return the model's copy that `v2l pull` stored, else its snapshot in the local Hugging Face cache."""
    repo = preset.model
    locked = read_lock().repos.get(repo)
    if locked is None or locked.copy is None:
        config = cached_file(preset, repo, "config.json")
        return open_folder(config.parent, id=repo, revision=config.parent.name)
    folder = copy_folder(repo, locked.commit, locked.copy.dtype)
    if not os.path.isdir(folder):
        raise V2LError(
            f"{printable(folder)}, where v2l pull stored {repo}, is missing; v2l pull {preset.name} gets it again"
        )
    return replace(open_folder(folder, id=repo, revision=locked.commit), copy=locked.copy)


def copy_folder(repo: str, commit: str, dtype: str) -> Path:
    """Return the folder of a model that `v2l pull` stores in another number type."""
    return own_folder() / "models" / f"{repo.replace('/', '--')}-{commit}-{dtype}"


def cached_file(preset: Preset, repo: str, file: str) -> Path:
    """Return the path of a file of a preset in the local cache (HF_HOME is obeyed), at the commit in the lock file, if
    any. Raises V2LError, with the command that gets it, if it is not there; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    locked = read_lock().repos.get(repo)
    found = try_to_load_from_cache(repo, file, revision=locked.commit if locked else None)
    if not isinstance(found, str):
        raise V2LError(f"{repo} is not in the local Hugging Face cache; v2l pull {preset.name} gets it")
    return Path(found)


def cached_hypernetwork(preset: Preset) -> Path:
    """Return the path of the preset's hypernetwork: its import, else the published file in the local cache. Raises
    V2LError if neither is there.

    Earlier versions of v2l made no import; another `v2l pull` makes it.
    """
    repo, name, sha256 = recorded_hypernetwork(preset)
    imported = imported_hypernetwork(sha256) if sha256 else None
    return imported if imported and os.path.isfile(imported) else cached_file(preset, repo, name)


def recorded_hypernetwork(preset: Preset) -> tuple[str, str, str]:
    """Return repository, file name and sha256 of the hypernetwork in the lock file; if it has none, the current names
    and an empty sha256."""
    repos = read_lock().repos
    for repo in preset.hypernetworks:
        name = preset.choose_hypernetwork(repos[repo].files) if repo in repos else None
        if name is not None:
            return repo, name, repos[repo].files[name]
    return preset.hypernetworks[0], preset.file, ""


def imported_hypernetwork(sha256: str) -> Path:
    """Return the path of the import of a published hypernetwork. sha256: of the published file"""
    return own_folder() / "hypernetworks" / f"{sha256}.safetensors"


def open_folder(path: Path, id: str | None, revision: str | None) -> ModelFolder:
    """Read the configuration of a folder. id: None for the name that it states. Raises V2LError."""
    config, name = read_config(path / "config.json")
    return ModelFolder(path, id or name or path.resolve().name, revision, config, _geometry(path, config))


def _geometry(path: Path, config: SmolVLMConfig) -> VisionGeometry:
    """Compute the image sizes of a folder: for the published models, 64 tokens a frame at 500M and 81 at 2.2B."""
    vision, scale = config.vision_config, config.scale_factor
    processor = _image_processor(path)
    size = _edge(processor, "max_image_size") or vision.image_size
    if size > vision.image_size:
        raise V2LError(
            f"{printable(path)} states images of {size:,} pixels for a vision tower that takes {vision.image_size:,}; "
            "get another copy of the model"
        )
    patches = size // vision.patch_size
    if patches < 1 or patches % scale:
        raise V2LError(
            f"{printable(path)} states images of {size} pixels, patches of {vision.patch_size} and a scale factor of "
            f"{scale}, which do not divide; get another copy of the model"
        )
    longest_edge = _edge(_mapping(processor.get("video_sampling")), "video_size") or size
    return VisionGeometry(size, (patches // scale) ** 2, longest_edge)


def _image_processor(path: Path) -> Mapping[str, Any]:
    """Return the settings of the image processor: a separate file until transformers 5, part of a larger one since."""
    own = read_json(path / "preprocessor_config.json", optional=True)
    return own or _mapping(read_json(path / "processor_config.json", optional=True).get("image_processor"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _edge(settings: Mapping[str, Any], key: str) -> int | None:
    """Return a size in pixels, stated as a number or as `{"longest_edge": number}`; None if it is not stated."""
    value = settings.get(key)
    value = value.get("longest_edge") if isinstance(value, Mapping) else value
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MAX_FRAME_SIZE:
        raise V2LError(
            f"the model folder states {key} = {shown(value)}; it must be a number of pixels from 1 to "
            f"{MAX_FRAME_SIZE:,}"
        )
    return value
