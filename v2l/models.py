"""The model folder: where a preset or a path leads, what its files say, and its fingerprint.

Nothing here reaches the network: presets other than `tiny` are looked up in the local Hugging Face cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from v2l.errors import ModelError, V2LError
from v2l.files import printable
from v2l.lock import read_lock
from v2l.prompt import VisionGeometry
from v2l.sealed import canonical_json


@dataclass(frozen=True)
class Preset:
    """A frozen model on the hub and the published hypernetwork that was trained for it.

    tokens_per_image: what the model's folder must state
    size: as it stands in the names of the hypernetworks' files
    hypernetworks: repositories, the present one first and then the older ones
    """

    model: str
    tokens_per_image: int
    size: str
    hypernetworks: tuple[str, ...]

    @property
    def file(self) -> str:
        """The hypernetwork's present name."""
        return f"frames2lora-smolvlm2-{self.size}-best-ce.pt"

    def is_hypernetwork(self, name: str) -> bool:
        """Whether a file of those repositories is it, by its present name or an older one."""
        return name.endswith(".pt") and self.size in name and "trainer" not in name


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
EMBEDDED = Path(__file__).parent / "tiny"
"""The folder of the embedded model `tiny`: the frozen model and `hypernetwork.safetensors` beside it."""
RELEASE = "tiny-5"
"""What the embedded frozen model calls itself in adapters: the release that it came with. Its hypernetwork, which may
come from a later one, has a name of its own."""


@dataclass(frozen=True)
class ModelFolder:
    """A frozen SmolVLM on disk, in the Hugging Face layout.

    id: the model's public name, or the folder's where it has none
    revision: the hub's commit, or None for a folder that did not come from there
    config: the transformers SmolVLMConfig, with every default filled in
    geometry: image size, tokens per image and frame size, as this folder states them
    """

    path: Path
    id: str
    revision: str | None
    config: Any = field(repr=False)
    geometry: VisionGeometry

    @property
    def end_of_answer_ids(self) -> set[int]:
        """Token ids that end an answer, from generation_config.json."""
        stated = _read_json(self.path / "generation_config.json", optional=True).get("eos_token_id")
        stated = stated if isinstance(stated, list) else [stated]
        return {token for token in stated if isinstance(token, int)}

    def chat_template(self) -> str | None:
        """The chat template that the folder brings, wherever its version of transformers put it."""
        plain = self.path / "chat_template.jinja"
        if plain.is_file():
            return plain.read_text(encoding="utf-8")
        for name in ("chat_template.json", "tokenizer_config.json"):
            template = _read_json(self.path / name, optional=True).get("chat_template")
            if isinstance(template, str):
                return template
        return None

    def fingerprint(self) -> str:
        """64 hex digits that tell one frozen language model from another, wherever its folder lies.

        sha256 over the configuration of the language model, the sorted names, shapes and dtypes of its tensors, and
        all bytes of the final norm and of the first and the last down_proj, as they stand in the files.
        """
        from safetensors import safe_open

        where = self.tensor_files()
        text = self.config.text_config
        last = text.num_hidden_layers - 1
        read_whole = {
            "model.text_model.norm.weight",
            "model.text_model.layers.0.mlp.down_proj.weight",
            f"model.text_model.layers.{last}.mlp.down_proj.weight",
        }
        if not read_whole <= where.keys():
            raise V2LError(
                f"{printable(self.path)} has no {sorted(read_whole - where.keys())[0]}; name a folder that holds a "
                "whole SmolVLMForConditionalGeneration"
            )
        digest = hashlib.sha256(canonical_json(_language_config(self.config)).encode())
        for name in sorted(where):
            if not name.startswith(("model.text_model.", "lm_head.")):
                continue
            with safe_open(where[name], framework="np") as file:
                part = file.get_slice(name)
                line = {"name": name, "shape": part.get_shape(), "dtype": part.get_dtype()}
            digest.update(canonical_json(line).encode())
            if name in read_whole:
                digest.update(_tensor_bytes(where[name], name))
        return digest.hexdigest()

    def tensor_files(self) -> dict[str, Path]:
        """Tensor name -> the safetensors file that holds it."""
        from safetensors import SafetensorError, safe_open

        single = self.path / "model.safetensors"  # which transformers takes first, too
        if not single.is_file():
            index = _read_json(self.path / "model.safetensors.index.json", optional=True).get("weight_map")
            if isinstance(index, dict):
                return {name: self.path / Path(shard).name for name, shard in index.items()}
            raise V2LError(
                f"{printable(self.path)} has no model.safetensors; v2l reads no pickled weights, save the model as "
                "safetensors"
            )
        try:
            with safe_open(single, framework="np") as file:
                return dict.fromkeys(file.keys(), single)
        except SafetensorError as error:
            raise V2LError(
                f"{printable(single)} is damaged: {printable(error)}; get another copy of the model"
            ) from error


def find_model(name: str | os.PathLike) -> ModelFolder:
    """The frozen model behind a preset's name or a folder's path. Raises V2LError with what to do where there is
    none."""
    if sys.flags.optimize > 1:
        raise ModelError(
            "Python was started without docstrings (-OO or PYTHONOPTIMIZE=2), which transformers cannot do without; "
            "start it with -O or PYTHONOPTIMIZE=1 at most"
        )
    name = os.fspath(name)
    if name == "tiny":
        return _open_folder(EMBEDDED, id=RELEASE, revision=None)
    if name in PRESETS:
        config = cached_file(PRESETS[name].model, "config.json")
        return _open_folder(config.parent, id=PRESETS[name].model, revision=config.parent.name)
    folder = Path(name)
    if not folder.is_dir():
        raise V2LError(
            f"no model folder {printable(name)}; name a folder in the Hugging Face layout or one of "
            f"{', '.join(['tiny', *PRESETS])}"
        )
    return _open_folder(folder, id=None, revision=None)


def cached_file(repo: str, file: str) -> Path:
    """A hub file's place in the local cache (HF_HOME is obeyed), at the commit that `v2l pull` recorded where it did;
    never fetched."""
    from huggingface_hub import try_to_load_from_cache

    locked = read_lock().repos.get(repo)
    found = try_to_load_from_cache(repo, file, revision=locked.commit if locked else None)
    if not isinstance(found, str):
        raise V2LError(f"{repo} is not in the local Hugging Face cache; v2l pull gets it")
    return Path(found)


def cached_hypernetwork(preset: Preset) -> Path:
    """The published file in the local cache: the one that `v2l pull` recorded, else the one of the present name."""
    repos = read_lock().repos
    recorded = [
        (repo, name)
        for repo in preset.hypernetworks
        if repo in repos
        for name in repos[repo].files
        if preset.is_hypernetwork(name)
    ]
    return cached_file(*(recorded or [(preset.hypernetworks[0], preset.file)])[0])


def _open_folder(path: Path, id: str | None, revision: str | None) -> ModelFolder:
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig

    raw = _read_json(path / "config.json")
    if raw.get("model_type") != "smolvlm":
        raise V2LError(
            f"{printable(path)} holds a model of type {printable(raw.get('model_type'))}; v2l works with SmolVLM2 "
            "(model_type smolvlm)"
        )
    try:
        config = SmolVLMConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # its validation raises classes of several libraries
        raise V2LError(
            f"cannot read {printable(path / 'config.json')}: {printable(error)}; get another copy"
        ) from error
    stated = raw.get("_name_or_path")
    stated = stated if isinstance(stated, str) else ""
    return ModelFolder(path, id or stated or path.resolve().name, revision, config, _geometry(path, config))


def _geometry(path: Path, config: Any) -> VisionGeometry:
    """The sizes that the published models state too: 64 tokens a frame at 500M, 81 at 2.2B."""
    vision, scale = config.vision_config, config.scale_factor
    processor = _image_processor(path)
    size = _edge(processor, "max_image_size") or vision.image_size
    patches = size // vision.patch_size
    if patches < 1 or scale < 1 or patches % scale:
        raise V2LError(
            f"{printable(path)} states images of {size} pixels, patches of {vision.patch_size} and a scale factor of "
            f"{scale}, which do not divide; get another copy of the model"
        )
    longest_edge = _edge(_mapping(processor.get("video_sampling")), "video_size") or size
    return VisionGeometry(size, (patches // scale) ** 2, longest_edge)


def _language_config(config: Any) -> dict[str, Any]:
    """What of the configuration changes the language model's numbers; not what a version of transformers adds."""
    text = config.text_config
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size "
        "rms_norm_eps hidden_act attention_bias mlp_bias max_position_embeddings"
    ).split()
    rope = {key: value for key, value in text.rope_parameters.items() if value is not None}
    return {**{name: getattr(text, name) for name in names}, "rope": rope, "tied": config.tie_word_embeddings}


def _tensor_bytes(path: Path, name: str) -> bytes:
    """A tensor's bytes as they stand in the file; torch reads it because numpy knows no bfloat16."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes()


def _image_processor(path: Path) -> Mapping[str, Any]:
    """The image processor's settings: a file of their own until transformers 5, a part of a larger one since."""
    own = _read_json(path / "preprocessor_config.json", optional=True)
    return own or _mapping(_read_json(path / "processor_config.json", optional=True).get("image_processor"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _edge(settings: Mapping[str, Any], key: str) -> int | None:
    """A size in pixels, stated as a number or as `{"longest_edge": number}`; None where it is not stated."""
    value = settings.get(key)
    value = value.get("longest_edge") if isinstance(value, Mapping) else value
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= 16384:
        raise V2LError(f"the model folder states {key} = {printable(value)}; it must be a number of pixels")
    return value


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if optional:
            return {}
        raise V2LError(f"{printable(path)} is missing; name a folder in the Hugging Face layout") from error
    except (OSError, ValueError, RecursionError) as error:
        raise V2LError(f"cannot read {printable(path)}: {printable(error)}; get another copy of it") from error
    if not isinstance(content, dict):
        raise V2LError(f"{printable(path)} is not a JSON object; get another copy of it")
    return content
