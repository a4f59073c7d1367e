"""Choose the model and hypernetwork of a command, identify them by their files, and load them when needed.

Torch is imported when something is loaded, and not before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from v2l.adapters.description import BaseModel
from v2l.errors import ModelError, V2LError, reason
from v2l.io.text import printable
from v2l.models.hypernetwork_file import HypernetworkConfig, Provenance, locate, read_header
from v2l.models.lock_file import lock_path, read_lock
from v2l.models.presets import PRESETS, ModelFolder, find_model, is_tiny, preset_name
from v2l.models.process_memory import return_freed_memory, without_collection

if TYPE_CHECKING:
    import torch

    from v2l.models.hypernetwork import Hypernetwork
    from v2l.models.smolvlm import FrozenVLM

ENVIRONMENT = "V2L_MODEL"


@dataclass
class ModelLoader:
    """A model by name, the source of its hypernetwork, and how to load them.

    chosen_by: "option", "environment", "adapter", "default" (recorded by `v2l pull`) or "fallback" (the demonstration
        model, used if nothing else was chosen)
    announce: called with the name of the model before it is loaded, which takes seconds
    """

    model: str
    chosen_by: str
    hypernetwork_source: str | None = None
    device: str | None = None
    dtype: str | None = None
    announce: Callable[[str], object] = lambda name: None
    _failures: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def folder(self) -> ModelFolder:
        """The model's folder. Raises V2LError if it is missing."""
        return find_model(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the frozen model, computed from its files."""
        return self.folder.fingerprint

    @property
    def is_tiny(self) -> bool:
        """Whether the frozen model is the embedded one, which knows drawn clips only."""
        return is_tiny(self.fingerprint)

    @property
    def provenance(self) -> Provenance:
        """Provenance of the hypernetwork."""
        return self.hypernetwork_header[1]

    @cached_property
    def hypernetwork_header(self) -> tuple[HypernetworkConfig, Provenance]:
        """Sizes and provenance of the hypernetwork, read from its file; a published .pt has to be loaded for them."""
        path = locate(self.hypernetwork_source or self.model)
        if path.suffix == ".safetensors":
            return read_header(path)
        loaded = self._hypernetwork_on_cpu
        assert loaded.provenance is not None, "a hypernetwork that was loaded has its provenance"
        return loaded.config, loaded.provenance

    @cached_property
    def vlm(self) -> FrozenVLM:
        """The model with its vision tower, for encoding and for answers in context. The tower is added if the language
        model is loaded already."""
        if "language_model" not in self.__dict__:
            return self._load(vision=True)
        with self._loading("vlm"):
            self.announce(self.model)
            from v2l.models.loading import add_vision

            return add_vision(self.language_model)

    @cached_property
    def language_model(self) -> FrozenVLM:
        """The model without its vision tower, for answers from adapters; the whole model if it is loaded already."""
        return self.__dict__.get("vlm") or self._load(vision=False)

    @cached_property
    def hypernetwork(self) -> Hypernetwork:
        """The hypernetwork, on the model's device."""
        vlm, hypernetwork = self.vlm, self._hypernetwork_on_cpu
        with self._loading("hypernetwork"):
            from v2l.models.device import move

            return move(hypernetwork, vlm.device, "the hypernetwork")

    @cached_property
    def _hypernetwork_on_cpu(self) -> Hypernetwork:
        with self._loading("hypernetwork"):
            if "vlm" not in self.__dict__:
                self.announce(self.model)
            from v2l.models.checkpoint import load_hypernetwork

            return load_hypernetwork(self.hypernetwork_source or self.model, device="cpu")

    @property
    def number_type(self) -> torch.dtype | None:
        """`dtype` as a torch dtype, None if it is not given."""
        import torch

        return getattr(torch, self.dtype) if self.dtype else None

    def check(self) -> None:
        """Raises V2LError if the model or its hypernetwork is missing. Loads neither, except for a published
        .pt, which does not state what it is."""
        _ = self.fingerprint, self.provenance

    def load(self) -> tuple[FrozenVLM, Hypernetwork]:
        """Load both, for encoding. Raises ModelError if one cannot be loaded, since every video would fail.

        From then on, the process returns freed memory to the system, which bounds the peak of encoding.
        """
        return_freed_memory()
        return self.vlm, self.hypernetwork

    def _load(self, vision: bool) -> FrozenVLM:
        with self._loading("vlm" if vision else "language_model"):
            folder = self.folder
            self.announce(self.model)
            from v2l.models.loading import load_vlm

            return load_vlm(folder, device=self.device, dtype=self.number_type, vision=vision)

    @contextmanager
    def _loading(self, part: str) -> Iterator[None]:
        """Raise any error of the block as a ModelError, and raise it again instead of loading the part another time,
        which would take as long and fail as well. The block imports torch, whose objects stay."""
        if part in self._failures:
            raise ModelError(self._failures[part])
        try:
            with without_collection():
                yield
        except Exception as error:
            described = str(error)
            if not isinstance(error, V2LError):
                described = f"cannot load {printable(self.model)}: {printable(reason(error))}; use another --device"
            self._failures[part] = described  # the text alone: a traceback would keep tensors
            raise ModelError(described) from error


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


def choose_model_for(base: BaseModel, option: str | None) -> tuple[str, str]:
    """Return (model, chosen_by) for an adapter: the model it was made for, if neither the option nor the environment
    names one. Raises V2LError if its model has no name, or they name another preset than the adapter's."""
    model, chosen_by = choose_model(option)
    name = preset_name(base.id)
    if chosen_by not in ("default", "fallback"):
        own = "tiny" if is_tiny(base.fingerprint) else name
        if own not in (None, model) and model in ("tiny", *PRESETS):
            raise V2LError(
                f"this adapter was made for {own} and not for {model}; load its model (--model {own}), or encode the "
                "video again"
            )
        return model, chosen_by
    if name is None:
        raise V2LError(
            f"this adapter was made for {printable(base.id)} ({printable(base.fingerprint[:12])}), a model that v2l "
            f"has no name for; give its folder with --model FOLDER or {ENVIRONMENT}"
        )
    return name, "adapter"
