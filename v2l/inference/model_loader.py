"""Choose the model and hypernetwork of a command, identify them by their files, and load them when needed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

import torch

from v2l.adapters.adapter import Adapter
from v2l.errors import ModelError, V2LError
from v2l.io.text import printable
from v2l.models.checkpoint import load_hypernetwork, read_provenance
from v2l.models.hypernetwork import Hypernetwork, Provenance
from v2l.models.loading import load_vlm
from v2l.models.presets import PRESETS, RELEASE, ModelFolder, find_model, lock_path, read_lock
from v2l.models.smolvlm import FrozenVLM

ENVIRONMENT = "V2L_MODEL"


@dataclass
class ModelLoader:
    """A model by name, the source of its hypernetwork, and how to load them.

    chosen_by: "option", "environment", "adapter", "default" (recorded by `v2l pull`) or "fallback" (the demonstration
        model, used if nothing else was chosen)
    """

    model: str
    chosen_by: str
    hypernetwork_source: str | None = None
    device: str | None = None
    dtype: str | None = None

    @cached_property
    def folder(self) -> ModelFolder:
        """The model's folder. Raises V2LError if it is missing."""
        return find_model(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the frozen model, computed from its files."""
        return self.folder.fingerprint()

    @cached_property
    def provenance(self) -> Provenance:
        """Provenance of the hypernetwork, read from its file."""
        return read_provenance(self.hypernetwork_source or self.model)

    @cached_property
    def vlm(self) -> FrozenVLM:
        """The model with its vision tower, for encoding and for answers in context."""
        return self._load(vision=True)

    @cached_property
    def language_model(self) -> FrozenVLM:
        """The model without its vision tower, for answers from adapters; the whole model if it is loaded already."""
        return self.__dict__.get("vlm") or self._load(vision=False)

    @cached_property
    def hypernetwork(self) -> Hypernetwork:
        """The hypernetwork, on the model's device."""
        return load_hypernetwork(self.hypernetwork_source or self.model, device=self.vlm.device)

    @property
    def number_type(self) -> torch.dtype | None:
        """`dtype` as a torch dtype, None if it is not given."""
        return getattr(torch, self.dtype) if self.dtype else None

    def check(self) -> None:
        """Raises V2LError if the model or its hypernetwork is missing. Loads neither."""
        _ = self.fingerprint, self.provenance

    def load(self) -> tuple[FrozenVLM, Hypernetwork]:
        """Load both, for encoding. Raises ModelError if one cannot be loaded, since every video would fail."""
        try:
            return self.vlm, self.hypernetwork
        except V2LError as error:
            raise ModelError(str(error)) from error

    def _load(self, vision: bool) -> FrozenVLM:
        return load_vlm(self.model, device=self.device, dtype=self.number_type, vision=vision)


def choose_model(option: str | None) -> tuple[str, str]:
    """Return (model, chosen_by) without an adapter: `--model`, else V2L_MODEL, else the default that `v2l pull`
    recorded, else the demonstration model."""
    if option:
        return option, "option"
    if os.environ.get(ENVIRONMENT):
        return os.environ[ENVIRONMENT], "environment"
    default = read_lock().default
    if default is None:
        return "tiny", "fallback"
    if default not in PRESETS:  # any other name could be a folder
        raise V2LError(f"{printable(lock_path())} names no preset as the default; v2l pull PRESET --default sets it")
    return default, "default"


def choose_model_for(adapter: Adapter, option: str | None) -> tuple[str, str]:
    """Return (model, chosen_by) for an adapter, which names the model it was made for if neither the option nor the
    environment does."""
    model, chosen_by = choose_model(option)
    if chosen_by not in ("default", "fallback"):
        return model, chosen_by
    base = adapter.description.base_model
    named = {preset.model: name for name, preset in PRESETS.items()} | {RELEASE: "tiny"}
    if base.id not in named:
        raise V2LError(
            f"this adapter was made for {printable(base.id)} ({printable(base.fingerprint[:12])}), a model that v2l "
            f"has no name for; give its folder with --model FOLDER or {ENVIRONMENT}"
        )
    return named[base.id], "adapter"
