"""Published checkpoints of any size with random weights, pickled as the official code does with several versions of
peft."""

from __future__ import annotations

import contextlib
import copyreg
import enum
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch

from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import TARGET, HypernetworkConfig

HYPERNET = ("ctx_to_lora.modeling.hypernet", "HypernetConfig")
ENCODER = ("ctx_to_lora.configs", "CtxEncoderArguments")
TASK = ("peft.utils.peft_types", "TaskType")
CLASSES = [
    HYPERNET,
    ENCODER,
    ("ctx_to_lora.modeling.aggregator", "AggregatorConfig"),
    ("peft.tuners.lora.config", "LoraConfig"),
    ("peft.tuners.lora.config", "LoraRuntimeConfig"),
]

_LORA = {
    "auto_mapping": None,
    "revision": None,
    "inference_mode": False,
    "lora_dropout": 0.0,
    "fan_in_fan_out": False,
    "bias": "none",
    "use_rslora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "layers_pattern": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "loftq_config": {},
    "use_dora": False,
    "layer_replication": None,
}
_SINCE_0_14 = {"exclude_modules": None, "eva_config": None, "lora_bias": False, "_custom_modules": None}
_SINCE_0_21 = dict.fromkeys(
    (
        *("trainable_token_indices", "corda_config", "lora_ga_config", "velora_config", "alora_invocation_tokens"),
        *("monteclora_config", "target_parameters", "use_bdlora", "arrow_config", "kasa_config"),
    )
) | {"peft_version": "0.21.2", "use_qalora": False, "qalora_group_size": 16, "ensure_weight_tying": False}
PEFT = {"0.11.1": _LORA, "0.14.0": _LORA | _SINCE_0_14, "0.21.2": _LORA | _SINCE_0_14 | _SINCE_0_21}
"""Fields of `LoraConfig` by version of peft, beside those that a checkpoint sets. Since 0.14 there is a runtime
configuration too."""


@contextlib.contextmanager
def stand_ins() -> Iterator[types.SimpleNamespace]:
    """Make the seven classes that the official code pickles importable under their names within the block."""
    made = {}
    for module_name, name in CLASSES:
        made[name] = type(name, (types.SimpleNamespace,), {"__module__": module_name, "__reduce_ex__": _plain_reduce})
    for name, member in (("PeftType", "LORA"), ("TaskType", "CAUSAL_LM")):
        made[name] = enum.Enum(name, {member: member}, type=str, module=TASK[0])
    modules: dict[str, types.ModuleType] = {}
    for cls in made.values():
        parts = cls.__module__.split(".")
        for length in range(1, len(parts) + 1):  # every parent package, as an import needs it
            name = ".".join(parts[:length])
            modules.setdefault(name, types.ModuleType(name))
        setattr(modules[cls.__module__], cls.__name__, cls)
    with patch.dict(sys.modules, modules):
        yield types.SimpleNamespace(**made)


def _plain_reduce(self: object, protocol: int) -> tuple:
    """Pickle like a dataclass instance: an empty new object, then its attributes."""
    return copyreg.__newobj__, (type(self),), self.__dict__


def write_published(path: Path, sizes: HypernetworkConfig, base_model: str, peft: str) -> None:
    """Write a checkpoint of these sizes for a model. peft: a version in `PEFT`"""
    torch.manual_seed(0)
    hypernetwork = Hypernetwork(sizes)
    with torch.no_grad():
        hypernetwork.scaler_B[TARGET].normal_(std=0.5)  # an untrained scaler is zero and gives zero factors
        hypernetwork.bias_B[TARGET].normal_(std=0.02)
    with stand_ins() as classes:
        values = OrderedDict(hypernetwork.state_dict())
        values["base_model_name_or_path"] = base_model
        values["hypernet_config"] = _hypernet_config(classes, sizes, base_model, peft)
        values["ctx_encoder_args"] = classes.CtxEncoderArguments(
            ctx_encoder_type="per_layer_activations", layer_idx=None, quantize_ctx_encoder=False
        )
        torch.save(values, path)


def _hypernet_config(classes: types.SimpleNamespace, sizes: HypernetworkConfig, base_model: str, peft: str) -> object:
    lora = classes.LoraConfig(
        task_type=classes.TaskType.CAUSAL_LM,
        peft_type=classes.PeftType.LORA,
        base_model_name_or_path=base_model,
        r=sizes.rank,
        lora_alpha=sizes.lora_alpha,
        target_modules={TARGET},
        **PEFT[peft],
    )
    if peft != "0.11.1":
        lora.runtime_config = classes.LoraRuntimeConfig(ephemeral_gpu_offload=False)
    aggregator = classes.AggregatorConfig(
        aggregator_type="perceiver",
        num_layers=sizes.num_layers,
        output_size=sizes.latent_size,
        feature_size=sizes.hidden_size,
        lora_r=sizes.rank,
        n_latent_queries=sizes.num_latents,
        num_blocks=sizes.num_blocks,
        num_self_attn_per_block=0,
        shared_weights=False,
        layer_to_layer_ctx_encoder=True,
    )
    return classes.HypernetConfig(
        latent_size=sizes.latent_size,
        use_light_weight_lora=False,
        per_rank_gen=True,
        use_per_rank_bias=False,
        use_bias=True,
        per_layer_processing=False,
        use_token_mixing=False,
        num_pre_head_layers=1,
        dropout_rate=0.0,
        lora_config=lora,
        extra_modules=None,
        base_hidden_size=sizes.hidden_size,
        layer_indices=torch.arange(sizes.num_layers),
        feature_sizes=({TARGET: sizes.intermediate_size}, {TARGET: sizes.hidden_size}),
        aggregator_config=aggregator,
    )
