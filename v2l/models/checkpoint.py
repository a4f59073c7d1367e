"""Load and save hypernetworks: v2l's safetensors files, and published `.pt` files, which are never executed."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from v2l.errors import V2LError, V2LWarning
from v2l.io.records import from_json, to_json
from v2l.io.safetensors_file import content_sha256
from v2l.io.tensors import dtype_name, to_bytes, to_tensors, write_tensors
from v2l.io.text import printable
from v2l.models.device import choose_device, move
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import (
    TARGET,
    HypernetworkConfig,
    HypernetworkFile,
    Provenance,
    TrainedWith,
    check_weights,
    file_metadata,
    locate,
)
from v2l.models.published import PublishedCheckpoint, read_published
from v2l.models.smolvlm import FrozenVLM

logger = logging.getLogger(__name__)

# Part of the content that the sha256 of a published checkpoint covers: after a change here, new adapters do not compose
# with older ones.
PUBLISHED_TRAINING = {
    # (base model, layers, hidden size, rank) -> how the published checkpoint was trained (paper section 4)
    ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 32, 960, 16): TrainedWith(frames=12, fps=1.0, resolution=384),
    ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", 24, 2048, 16): TrainedWith(frames=12, fps=1.0, resolution=384),
}

# The published checkpoints have these values. Others are not implemented by the published code or were not published.
_PUBLISHED_CHOICES = {
    "per_rank_gen": True,
    "use_bias": True,
    "use_per_rank_bias": False,
    "per_layer_processing": False,
    "use_light_weight_lora": False,
    "use_token_mixing": False,
    "num_pre_head_layers": 1,
    "extra_modules": None,
}
_PUBLISHED_AGGREGATOR = {"num_self_attn_per_block": 0, "shared_weights": False, "layer_to_layer_ctx_encoder": True}


def load_hypernetwork(source: str | os.PathLike, device: str | torch.device | None = None) -> Hypernetwork:
    """Load a hypernetwork with its weights, in float32 and in eval mode.

    source: a preset (tiny, smolvlm2-500m, smolvlm2-2.2b), v2l's .safetensors, a folder that holds one, or a published
        .pt, which is read without executing anything in it
    device: default as for `load_vlm`

    Raises V2LError if it is missing, damaged or not a hypernetwork that v2l implements, and ModelError if it does not
    fit the memory.
    """
    device, started = choose_device(device), time.perf_counter()
    path = locate(source)
    if path.suffix == ".pt":
        hypernetwork = _from_published(read_published(path), path)
    else:
        file = HypernetworkFile.read(path)
        hypernetwork = _with_weights(file.config, to_tensors(file.weights))
        hypernetwork.provenance = file.provenance
    moved = move(hypernetwork, device, "the hypernetwork").eval()
    logger.debug("loaded the hypernetwork %s in %.2f s: %s", path, time.perf_counter() - started, device)
    return moved


def save_hypernetwork(hypernetwork: Hypernetwork, path: str | os.PathLike) -> None:
    """Write v2l's safetensors file, atomically. The same weights and provenance give the same bytes. Raises V2LError if
    there is no provenance, or if its values could not be read again."""
    if hypernetwork.provenance is None:
        raise V2LError("this hypernetwork has no provenance to record; set it with with_provenance() before saving")
    try:
        hypernetwork.provenance.check()
    except ValueError as error:
        raise V2LError(f"cannot write {printable(path)}: {error}; train with other settings") from error
    write_tensors(path, hypernetwork.state_dict(), file_metadata(hypernetwork.config, hypernetwork.provenance))


def import_checkpoint(checkpoint: str | os.PathLike, output: str | os.PathLike) -> Hypernetwork:
    """Convert a published .pt to v2l's safetensors file. Both generate the same adapters, under the same sha256.

    Raises V2LError, and writes nothing, if the file is not a published checkpoint.
    """
    if Path(output).suffix != ".safetensors":
        raise V2LError(f"{printable(output)} must end in .safetensors; v2l recognises the file by it")
    hypernetwork = _from_published(read_published(checkpoint), Path(checkpoint))
    save_hypernetwork(hypernetwork, output)
    return hypernetwork


def with_provenance(
    hypernetwork: Hypernetwork, id: str, base_model: str, base_fingerprint: str | None, trained_with: TrainedWith
) -> Hypernetwork:
    """Set the provenance of a hypernetwork, with the sha256 of its current weights. Returns the same object."""
    unsealed = Provenance(id, base_model, base_fingerprint, trained_with, sha256="")
    sha256 = content_sha256(file_metadata(hypernetwork.config, unsealed), to_bytes(hypernetwork.state_dict()))
    hypernetwork.provenance = Provenance(id, base_model, base_fingerprint, trained_with, sha256)
    return hypernetwork


def _with_weights(config: HypernetworkConfig, weights: Mapping[str, torch.Tensor]) -> Hypernetwork:
    """Build a hypernetwork with these weights, which must be exactly those of its sizes."""
    with torch.device("meta"):  # allocates nothing
        hypernetwork = Hypernetwork(config)
    hypernetwork.load_state_dict({name: t.float() for name, t in weights.items()}, strict=True, assign=True)
    return hypernetwork


# Published checkpoints ---------------------------------------------------------------------------------------------


def _from_published(published: PublishedCheckpoint, path: Path) -> Hypernetwork:
    try:
        config, tensors = _published_config(published), published.tensors
        check_weights(config, {name: (dtype_name(each.dtype), tuple(each.shape)) for name, each in tensors.items()})
        # clone, because tensors of an untrusted file may share memory
        hypernetwork = _with_weights(config, {name: tensor.clone() for name, tensor in tensors.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise V2LError(
            f"{printable(path)} is not a Frames2LoRA checkpoint that v2l implements: {printable(error)}; get the "
            "published one"
        ) from error
    key = (published.base_model, config.num_layers, config.hidden_size, config.rank)
    trained_with = PUBLISHED_TRAINING.get(key, TrainedWith())
    return with_provenance(
        hypernetwork, f"frames2lora {published.base_model}", published.base_model, None, trained_with
    )


def _published_config(published: PublishedCheckpoint) -> HypernetworkConfig:
    stated = published.hypernet_config
    lora, aggregator = stated["lora_config"], stated["aggregator_config"]
    if published.context_encoder.get("ctx_encoder_type") != "per_layer_activations":
        raise ValueError("it does not read the activations of every layer")
    for settings, choices in ((stated, _PUBLISHED_CHOICES), (aggregator, _PUBLISHED_AGGREGATOR)):
        for name, choice in choices.items():
            if settings.get(name, choice) != choice:
                raise ValueError(f"it was made with {name} = {settings[name]!r}")
    if list(lora["target_modules"]) != [TARGET]:
        raise ValueError(f"it adapts {lora['target_modules']} and not {TARGET} alone")
    if stated["layer_indices"] != list(range(len(stated["layer_indices"]))):
        raise ValueError(f"it adapts the layers {stated['layer_indices']} and not all in their order")
    inputs, outputs = stated["feature_sizes"]
    if outputs[TARGET] != stated["base_hidden_size"]:
        raise ValueError(f"its {TARGET} does not lead back to the hidden size")
    sizes = {
        "num_layers": len(stated["layer_indices"]),
        "hidden_size": stated["base_hidden_size"],
        "intermediate_size": inputs[TARGET],
        "rank": lora["r"],
        "lora_alpha": float(lora["lora_alpha"]),
        "latent_size": stated["latent_size"],
        "num_latents": aggregator["n_latent_queries"],
        "num_blocks": aggregator["num_blocks"],
    }
    defaults = to_json(HypernetworkConfig(1, 1, 1))
    return from_json(HypernetworkConfig, {**defaults, **sizes}, "hypernet_config")


def check_belongs(hypernetwork: Hypernetwork, vlm: FrozenVLM) -> Provenance:
    """Check that a hypernetwork belongs to a model, and return its provenance. Raises V2LError, with both names, if it
    was trained for another model or is on another device."""
    provenance = hypernetwork.provenance
    if provenance is None:
        raise V2LError(
            "this hypernetwork has no provenance, which adapters record; load it from a file, or use with_provenance()"
        )
    if not fits(hypernetwork, vlm) or provenance.base_fingerprint not in (None, vlm.fingerprint):
        raise V2LError(
            f"the hypernetwork {printable(provenance.id)} was trained for {printable(provenance.base_model)} and does "
            f"not fit {printable(vlm.id)}; load a model and a hypernetwork that belong together"
        )
    if provenance.base_fingerprint is None and provenance.base_model.split("/")[-1] != vlm.id.split("/")[-1]:
        warnings.warn(
            f"the hypernetwork was trained for {printable(provenance.base_model)} and the model is named "
            f"{printable(vlm.id)}; only their sizes are known to agree",
            V2LWarning,
            stacklevel=3,
        )
    device = hypernetwork.head.weight.device
    if device.type != vlm.device.type:
        raise V2LError(f"the hypernetwork is on {device}, the model on {vlm.device}; load both on one device")
    return provenance


def fits(hypernetwork: Hypernetwork, vlm: FrozenVLM) -> bool:
    """Return whether the model has the sizes of the hypernetwork."""
    config = hypernetwork.config
    return (config.num_layers, config.intermediate_size, config.hidden_size) == vlm.adapted_size
