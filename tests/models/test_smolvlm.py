"""Compare the frozen model in v2l with the same model in transformers, and check its errors."""

import json
import shutil

import pytest
import small
import torch
from safetensors.torch import load_file, save_file
from transformers import SmolVLMForConditionalGeneration

import v2l
from v2l.models.presets import find_model
from v2l.models.processor import question_text
from v2l.models.smolvlm import Window


@pytest.fixture(scope="module")
def reference(model_folder):
    return SmolVLMForConditionalGeneration.from_pretrained(model_folder, attn_implementation="eager").eval()


@pytest.fixture
def copied_model(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "copy")


def prompt_with_images(vlm, count):
    images = torch.rand(count, 3, 32, 32) * 2 - 1
    ids = torch.tensor([1, 90, 91, *([92, 4, 5, *[vlm.image_token_id] * 4, 4] * count), 93, 94, 3])
    return ids, images


@torch.no_grad()
def test_layer_inputs_are_the_hidden_states(vlm, reference):
    torch.manual_seed(0)
    ids, images = prompt_with_images(vlm, 3)
    expected = reference.model(input_ids=ids[None], pixel_values=images[None], output_hidden_states=True).hidden_states
    actual = [torch.cat(list(pieces), dim=1) for pieces in vlm.read_layers([Window(3, ids, vlm.encode_images(images))])]
    assert len(actual) == len(expected) - 1
    for one, other in zip(actual, expected, strict=False):
        assert torch.allclose(one, other, atol=1e-5)


@torch.no_grad()
def test_windows_do_not_see_each_other(vlm):
    """Windows of different lengths, padded together, give the same hidden states as each alone."""
    torch.manual_seed(1)
    windows = []
    for count in (2, 5, 1):
        ids, images = prompt_with_images(vlm, count)
        windows.append(Window(count, ids, vlm.encode_images(images)))
    alone = [[torch.cat(list(p), dim=1) for p in vlm.read_layers([window])] for window in windows]
    together = [torch.cat(list(p), dim=1) for p in vlm.read_layers(windows)]
    for layer, states in enumerate(together):
        assert torch.allclose(states, torch.cat([one[layer] for one in alone], dim=1), atol=1e-5)


def test_the_language_model_alone_says_the_same(vlm, model_folder):
    alone = v2l.load_vlm(model_folder, vision=False)
    ids = vlm.tokenize(question_text("what is on the whiteboard?"))
    assert torch.equal(alone.logits(ids), vlm.logits(ids))
    assert alone.fingerprint == vlm.fingerprint
    with pytest.raises(v2l.V2LError, match="without its vision tower"):
        alone.encode_images(torch.zeros(1, 3, 32, 32))


def test_tied_embeddings_load_alone(tmp_path):
    config = small.small_config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    folder = small.write_model(tmp_path / "tied", config=config)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    whole, alone = v2l.load_vlm(folder), v2l.load_vlm(folder, vision=False)
    ids = torch.tensor([5, 60, 61])
    assert torch.equal(alone.logits(ids), whole.logits(ids))


@torch.no_grad()
def test_greedy_is_transformers_greedy(vlm, reference):
    ids = vlm.tokenize(question_text("what is on the whiteboard?"))
    expected = reference.generate(ids[None], max_new_tokens=20, do_sample=False, pad_token_id=2)[0, len(ids) :].tolist()
    actual = [step[0] for step in vlm.greedy([vlm.embed(ids)], max_new_tokens=20)]
    assert actual == expected


def test_rows_of_a_batch_answer_as_alone(vlm):
    prompts = [vlm.embed(vlm.tokenize(question_text(text))) for text in ("what?", "where is the red square now?", "no")]
    together = list(zip(*vlm.greedy(prompts, max_new_tokens=12), strict=True))
    for prompt, answer in zip(prompts, together, strict=True):
        alone = [step[0] for step in vlm.greedy([prompt], max_new_tokens=12)]
        assert list(answer[: len(alone)]) == alone


def test_a_padded_batch_of_logits_equals_single_rows(vlm):
    ids = torch.tensor([[60, 61, 62, 2, 2], [63, 64, 65, 66, 67]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batch = vlm.logits(ids, mask)
    assert torch.allclose(batch[0, :3], vlm.logits(ids[0, :3]), atol=1e-5)
    assert torch.allclose(batch[1], vlm.logits(ids[1]), atol=1e-5)


def test_positions_end(vlm):
    with pytest.raises(v2l.V2LError, match="1,024 positions"):
        next(vlm.greedy([torch.zeros(1000, 48)], max_new_tokens=25))


@pytest.mark.parametrize("text", ["what is <image> here?", "a<end_of_utterance>b", "<row_1_col_2>", "", "  \n"])
def test_user_text_cannot_hold_control_tokens(vlm, text):
    with pytest.raises(v2l.V2LError, match=r"control token|empty"):
        vlm.check_user_text(text)


def test_image_tokens_and_images_must_agree(vlm):
    with pytest.raises(v2l.V2LError, match="4 image tokens and 8 image embeddings"):
        vlm.embed(torch.tensor([1, *[vlm.image_token_id] * 4]), torch.zeros(2, 4, 48))


def test_a_fingerprint_is_the_model_and_not_its_path(vlm, copied_model):
    assert find_model(copied_model).fingerprint == vlm.fingerprint
    weights = load_file(copied_model / "model.safetensors")
    weights["model.text_model.layers.2.mlp.down_proj.weight"][0, 0] += 1
    save_file(weights, copied_model / "model.safetensors", {"format": "pt"})
    assert find_model(copied_model).fingerprint != vlm.fingerprint


def test_a_sharded_model_has_the_same_fingerprint(vlm, copied_model):
    weights = load_file(copied_model / "model.safetensors")
    names = sorted(weights)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: weights[name] for name in part}, copied_model / shard, {"format": "pt"})
    (copied_model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (copied_model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert v2l.load_vlm(copied_model).fingerprint == vlm.fingerprint


def test_one_file_comes_before_shards_as_in_transformers(vlm, copied_model):
    (copied_model / "model.safetensors.index.json").write_text('{"weight_map": {"x": "nowhere.safetensors"}}')
    assert find_model(copied_model).fingerprint == vlm.fingerprint


def test_a_foreign_template_is_one_warning(copied_model):
    (copied_model / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}]{% endfor %}")
    with pytest.warns(v2l.V2LWarning, match="chat template"):
        v2l.load_vlm(copied_model)


def test_the_familys_template_is_no_warning(copied_model, recwarn):
    template = (
        "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
        "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )
    (copied_model / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    v2l.load_vlm(copied_model)
    assert not [warning for warning in recwarn if issubclass(warning.category, v2l.V2LWarning)]


def _remove(folder, name):
    (folder / name).unlink()


def _cut(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:100])


def _change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _drop_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.text_model.layers.1.mlp.gate_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _remove(folder, "config.json"), "config.json is missing"),
        (lambda folder: _cut(folder, "config.json"), "is not JSON"),
        (lambda folder: _change_config(folder, model_type="qwen"), "model of type qwen"),
        (lambda folder: _remove(folder, "model.safetensors"), "cannot load|no model.safetensors"),
        (lambda folder: _cut(folder, "model.safetensors"), "cannot load|damaged"),
        (_drop_tensor, r"has no model\.text_model\.layers\.1\.mlp\.gate_proj\.weight"),
        (lambda folder: _cut(folder, "tokenizer.json"), "is not JSON"),
        (lambda folder: _change_config(folder, image_token_id=7), "disagree"),
        (lambda folder: _change_config(folder, scale_factor=3), "do not divide"),
        (lambda folder: _change_config(folder, scale_factor=0), "scale_factor = 0; v2l takes a whole number from 1"),
        (lambda folder: _change_config(folder, text_config={"hidden_size": "wide"}), "text_config.hidden_size = wide"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("[]"), "not a JSON object"),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text('{"max_image_size": true}'),
            "number of pixels",
        ),
    ],
)
def test_a_damaged_folder_is_one_line(copied_model, damage, message):
    damage(copied_model)
    with pytest.raises(v2l.V2LError, match=message) as caught:
        v2l.load_vlm(copied_model)
    assert "\n" not in str(caught.value)


def test_unknown_models_and_devices(tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(v2l.V2LError, match="no model folder nowhere"):
        v2l.load_vlm("nowhere")
    with pytest.raises(v2l.V2LError, match=r"SmolVLM2-500M-Video-Instruct is not in .* v2l pull smolvlm2-500m gets it"):
        v2l.load_vlm("smolvlm2-500m")
    with pytest.raises(v2l.V2LError, match="cuda:7 is not there"):
        v2l.load_vlm(model_folder, device="cuda:7")
