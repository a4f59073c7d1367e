"""Untrusted model folders: a selection of the cases of tests/stress/model_folders.py, the tensor shapes of a
configuration compared with transformers' module, and escaping in messages."""

import dataclasses
import json
import os
import signal
import tracemalloc

import pytest
import small
import torch
import transformers
from stress.folder_cases import CASES, FAST
from stress.model_folders import attempt, build, fault, write_sound
from transformers import SmolVLMForConditionalGeneration
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

import v2l
from v2l.adapters.lora import check_fits
from v2l.adapters.segments import compose
from v2l.inference.model_loader import choose_model_for
from v2l.io.tensors import all_finite
from v2l.models.checkpoint import save_hypernetwork, with_provenance
from v2l.models.config import MODEL_TYPES, SmolVLMConfig, TextConfig, VisionConfig, read_config, tensor_shapes
from v2l.models.device import cpu_capabilities, default_dtype, prefers_bfloat16
from v2l.models.hypernetwork_file import TrainedWith
from v2l.models.presets import EMBEDDED

EVIL = "\x1b[2J\x07\u202e\ud800"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_sound(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def no_hanging():
    """Raise an exception if a test takes minutes: opening a pipe, for example, would block."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it does not end"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", FAST)
def test_a_hostile_folder_is_one_line_or_loads_without_what_it_brings(sound, tmp_path, monkeypatch, no_hanging, name):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    outcome, line = attempt(build(name, sound, tmp_path))
    assert fault(CASES[name].outcome, outcome, line) is None, (outcome, line)
    assert os.listdir(work) == []


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"head_dim": 16}, {"num_key_value_heads": 4}],
)
def test_what_a_configuration_asks_for_is_what_transformers_module_holds(tmp_path, changes):
    config = small.small_config(**changes)
    config.tie_word_embeddings = changes.get("tie_word_embeddings", False)
    config.save_pretrained(tmp_path)
    read, _ = read_config(tmp_path / "config.json")
    with torch.device("meta"):
        expected = SmolVLMForConditionalGeneration(config).state_dict()
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    asked = list(tensor_shapes(read))
    assert dict(asked) == {name: tuple(tensor.shape) for name, tensor in expected.items()}
    assert len(asked) == len(expected)


def test_the_embedded_models_configuration_is_read_as_transformers_reads_it():
    read, name = read_config(EMBEDDED / "config.json")
    assert read == as_transformers_reads(EMBEDDED)
    assert name is None


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_every_default_is_that_of_transformers(tmp_path, kind):
    """Nothing is stated but the kind of model and what the checks relate to one another."""
    stated = {"model_type": kind, "text_config": {"vocab_size": 130000}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    read, _ = read_config(tmp_path / "config.json")
    assert read == as_transformers_reads(tmp_path)


@torch.no_grad()
def test_the_first_smolvlm_is_computed_as_transformers_idefics3_does(tmp_path):
    folder = small.write_model(tmp_path / "model")
    stated = json.loads((folder / "config.json").read_text())
    stated["model_type"], stated["architectures"] = "idefics3", ["Idefics3ForConditionalGeneration"]
    stated["vision_config"]["model_type"] = "idefics3_vision"
    (folder / "config.json").write_text(json.dumps(stated))
    theirs, ours = transformers.Idefics3ForConditionalGeneration.from_pretrained(folder), v2l.load_vlm(folder)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = theirs.model.connector(theirs.model.vision_model(pixel_values=images).last_hidden_state)
    assert torch.allclose(ours.encode_images(images), features, atol=1e-5)
    ids = torch.arange(100, 120)
    assert torch.allclose(ours.logits(ids), theirs(input_ids=ids[None]).logits[0], atol=1e-5)


def as_transformers_reads(folder):
    theirs = transformers.AutoConfig.from_pretrained(folder)
    text, vision = theirs.text_config, theirs.vision_config
    own = {
        field.name: getattr(text, field.name) for field in dataclasses.fields(TextConfig) if field.name != "rope_theta"
    }
    return SmolVLMConfig(
        TextConfig(**own, rope_theta=text.rope_parameters["rope_theta"]),
        VisionConfig(**{field.name: getattr(vision, field.name) for field in dataclasses.fields(VisionConfig)}),
        theirs.scale_factor,
        theirs.image_token_id,
        theirs.tie_word_embeddings,
    )


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("text_config", "attention_bias", True),
        ("text_config", "mlp_bias", True),
        ("text_config", "hidden_act", "gelu"),
        ("vision_config", "hidden_act", "relu"),
        ("text_config", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_what_the_modules_do_not_implement_is_refused_by_name(tmp_path, part, name, value):
    small.small_config().save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    stated[part].pop("rope_parameters", None)
    stated[part][name] = value
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(v2l.V2LError, match=rf"{part}\.(rope_parameters\.)?(rope_type|{name}) = "):
        read_config(tmp_path / "config.json")


def test_transformers_own_template_is_known(sound, tmp_path, recwarn):
    folder = build("the published template", sound, tmp_path)
    (folder / "chat_template.jinja").write_text(DEFAULT_CHAT_TEMPLATE)
    v2l.load_vlm(folder)
    assert not [warning for warning in recwarn if issubclass(warning.category, v2l.V2LWarning)]


def test_truncation_and_padding_of_a_tokenizer_change_no_prompt(sound, tmp_path):
    text = "what is at 00:12 of this lecture?"
    expected = v2l.load_vlm(sound).tokenize(text)
    for name in ("truncation to a token", "padding to a gigabyte"):
        assert torch.equal(v2l.load_vlm(build(name, sound, tmp_path)).tokenize(text), expected)


def test_reading_takes_memory_for_the_file_and_not_for_the_limit(sound):
    path = sound / "hypernetwork.safetensors"
    tracemalloc.start()
    try:
        v2l.load_hypernetwork(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6 + 4 * path.stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("capabilities", "half"),
    [
        ({"cpu_name": "AMD EPYC 9B14", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "AMD EPYC 7B12", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"architecture": "arm64", "bf16": True}, False),
        ({}, False),
    ],
)
def test_a_processor_prefers_bfloat16_if_it_multiplies_it_faster(capabilities, half):
    assert prefers_bfloat16(capabilities) == half


def test_the_default_number_type_follows_device_processor_and_size(monkeypatch):
    cpu, small_config = torch.device("cpu"), read_config(EMBEDDED / "config.json")[0].text_config
    large = TextConfig(hidden_size=960, intermediate_size=2560, num_attention_heads=15, num_key_value_heads=5)
    assert default_dtype(cpu, small_config) == torch.float32
    assert (default_dtype(cpu, large) == torch.bfloat16) == prefers_bfloat16(cpu_capabilities())
    for capability, expected in (((6, 1), torch.float32), ((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert {default_dtype(torch.device("cuda"), config) for config in (small_config, large)} == {expected}
    assert default_dtype(torch.device("mps"), large) == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite_are_found_anywhere(dtype):
    numbers = torch.randn(1003).to(dtype)
    assert all_finite(numbers) and all_finite(numbers[:0])
    for place in (0, 500, 1002):
        for value in (float("nan"), float("inf"), -float("inf")):
            changed = numbers.clone()
            changed[place] = value
            assert not all_finite(changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"fps": 1e308},
        {"fps": 0.0},
        {"frames": 10**18},
        {"window_frames": 0},
        {"windows": 0},
        {"segments": 10**9},
        {"resolution": 10**6},
        {"prompt": "\ud800"},
    ],
)
def test_a_hypernetwork_cannot_be_of_impossible_training(sound, tmp_path, changes):
    (name,) = changes
    hypernetwork = small.small_hypernetwork(sound, trained_with=TrainedWith(**changes), latent_size=8, num_blocks=1)
    with pytest.raises(v2l.V2LError, match=rf"trained_with\.{name}"):
        save_hypernetwork(hypernetwork, tmp_path / "h.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_hypernetworks_hashes_are_hashes(hypernetwork, tmp_path):
    provenance = hypernetwork.provenance
    strange = small.small_hypernetwork(EMBEDDED, latent_size=8, num_blocks=1)
    with_provenance(strange, "mine", "small", EVIL, provenance.trained_with)
    with pytest.raises(v2l.V2LError, match="base_fingerprint is not 64 hex digits"):
        save_hypernetwork(strange, tmp_path / "h.safetensors")


def test_another_preset_than_the_adapters_is_refused_before_it_is_looked_for(adapters, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    tiny = v2l.load_vlm("tiny", vision=False)
    base = dataclasses.replace(adapters[0].description.base_model, id=tiny.id, fingerprint=tiny.fingerprint)
    with pytest.raises(v2l.V2LError, match="made for tiny and not for smolvlm2-500m; load its model"):
        choose_model_for(base, "smolvlm2-500m")
    assert choose_model_for(base, "tiny") == ("tiny", "option")
    with pytest.raises(v2l.V2LError, match="the preset of that name is smolvlm2-500m"):
        v2l.load_vlm("HuggingFaceTB/SmolVLM2-500M-Video-Instruct")


def test_foreign_fingerprints_are_printable_in_every_message(adapters, vlm, monkeypatch):
    monkeypatch.delenv("V2L_MODEL", raising=False)
    made = adapters[0].description
    foreign = dataclasses.replace(made, base_model=dataclasses.replace(made.base_model, fingerprint=EVIL))
    reworked = dataclasses.replace(made, hypernetwork=dataclasses.replace(made.hypernetwork, sha256=EVIL))
    model, maker = (dataclasses.replace(adapters[0], description=described) for described in (foreign, reworked))
    for refused in (
        lambda: check_fits(model, vlm),
        lambda: choose_model_for(model.description.base_model, None),
        lambda: compose([adapters[0], model]),
        lambda: compose([maker, adapters[0]]),
    ):
        with pytest.raises(v2l.V2LError, match=r"\\x1b\[2J") as caught:
            refused()
        assert str(caught.value).isprintable()
