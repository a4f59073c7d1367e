"""Tokenizer, architecture and training stages of the embedded model, with a few real and reproducible steps."""

import shutil

import numpy as np
import pytest
import small
import torch
from transformers import AutoTokenizer

import v2l
from v2l.errors import V2LError
from v2l.models.hypernetwork_file import INTERNALIZATION_PROMPT
from v2l.models.processor import question_text
from v2l.tiny.recipe.asked_clips import (
    BEFORE,
    FRAME_LABELS,
    clip_questions,
    pointers,
    prompt_text,
    sample_clip,
    write_rows,
)
from v2l.tiny.recipe.language_stage import ClipBatches, LanguageStage, LanguageTrainer, Size
from v2l.tiny.recipe.model import new_model, save_model
from v2l.tiny.recipe.release import release
from v2l.tiny.recipe.vision_stage import LABELS, PATCH_LABELS, VisionStage, frame_batch, train
from v2l.tiny.world.scene import COLOURS, KINDS, WORDS, held_out_in
from v2l.tiny.world.tokenizer import SPECIAL_TOKENS, VOCABULARY, train_tokenizer
from v2l.training.packing import IGNORED, UNASKED, pack_questions


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of the untrained embedded model."""
    place = tmp_path_factory.mktemp("tiny")
    save_model(new_model(), place)
    return place


def test_the_worlds_words_are_single_tokens(tokenizer):
    assert tokenizer.get_vocab_size() <= VOCABULARY
    for word in (*WORDS, *COLOURS, *KINDS):
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False).ids) == 1, word
    assert tokenizer.encode("00:12", add_special_tokens=False).tokens == ["00", ":", "12"]
    for place, token in enumerate(SPECIAL_TOKENS):
        assert tokenizer.encode(token, add_special_tokens=False).ids == [place]
    assert tokenizer.to_str() == train_tokenizer().to_str()


def test_the_folder_loads_like_any_model(folder):
    vlm = v2l.load_vlm(folder)
    assert sum(p.numel() for p in new_model().parameters()) < 3e6
    assert (folder / "model.safetensors").stat().st_size < 6e6
    assert (vlm.geometry.image_size, vlm.geometry.tokens_per_image, vlm.max_positions) == (64, 4, 512)
    roles = AutoTokenizer.from_pretrained(folder)
    assert (roles.bos_token, roles.eos_token, roles.pad_token) == ("<|im_start|>", "<end_of_utterance>", "<|im_end|>")
    text = question_text("what is on the whiteboard?")
    assert roles(text, add_special_tokens=False).input_ids == vlm.tokenize(text).tolist()
    assert vlm.encode_images(torch.zeros(2, 3, 64, 64)).shape == (2, 4, 160)


def test_saving_does_not_change_the_model(tmp_path):
    model = new_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path / "m")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_training_clips_contain_no_held_out_combination():
    random = np.random.default_rng(0)
    for _ in range(60):
        assert not any(held_out_in(scene) for scene in sample_clip(random, 8).story.scenes)


def test_frame_labels_are_valid_and_reproducible():
    images, labels = frame_batch(seed=1, step=2, count=6)
    assert images.shape == (6, 3, 64, 64)
    answers = LABELS | PATCH_LABELS
    assert labels.keys() == answers.keys()
    assert all(int(label.min()) >= 0 and int(label.max()) < answers[name] for name, label in labels.items())
    bare = labels["patch kind"] == len(KINDS)
    assert torch.equal(bare, labels["patch colour"] == len(COLOURS))
    assert (~bare).sum(1).min() > 0 and (~bare).float().mean() < 0.2
    again, _ = frame_batch(seed=1, step=2, count=6)
    other, _ = frame_batch(seed=1, step=3, count=6)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_the_loss_covers_answers_only(tokenizer):
    random = np.random.default_rng(5)
    clip = sample_clip(random, 6)
    asked = [(each.prompt, each.answer) for each in clip_questions(clip, random)[:5]]
    for visible in (clip, None):
        sequence = pack_questions(prompt_text(visible), asked, tokenizer)
        assert len(sequence.ids) == len(sequence.labels) == len(sequence.positions) == len(sequence.group)
        counted = sequence.labels[sequence.labels != IGNORED].tolist()
        text = tokenizer.decode(counted, skip_special_tokens=False)
        assert text == "".join(f" {answer}<end_of_utterance>" for _, answer in asked)
        for number, (prompt, answer) in enumerate(asked, 1):  # compare with a single question as v2l asks it
            alone = (sequence.group == 0) | (sequence.group == number)
            whole = prompt_text(visible).replace("\0", prompt) + f" {answer}<end_of_utterance>"
            assert sequence.ids[alone].tolist() == tokenizer.encode(whole, add_special_tokens=False).ids
            assert torch.equal(sequence.positions[alone], torch.arange(int(alone.sum())))


def test_sampled_clips_vary(tokenizer):
    random = np.random.default_rng(2)
    clips = [sample_clip(random, 2 + number % 11) for number in range(60)]
    assert {len(clip.times) for clip in clips} == set(range(2, 13))
    assert 5 < sum(clip.times[0] > 0 for clip in clips) < 40
    assert {len(clip.story.scenes) for clip in clips} >= {1, 2, 3}
    assert all(len({int(seconds) for seconds in clip.times}) == len(clip.times) for clip in clips)
    prompts = {question.prompt for clip in clips for question in clip_questions(clip, random)}
    assert INTERNALIZATION_PROMPT in prompts


def test_packed_questions_equal_single_ones(tokenizer):
    random = np.random.default_rng(5)
    clip = sample_clip(random, 6)
    questions = clip_questions(clip, random)
    for visible in (True, False):
        asked = write_rows(clip, visible, questions, tokenizer)
        assert len(asked.kinds) > 8
        assert (asked.images is None, asked.frame_labels is None) == (not visible, not visible)
        whole = pack_questions(
            prompt_text(clip if visible else None), [(q.prompt, q.answer) for q in questions], tokenizer
        )
        assert torch.equal(asked.ids, whole.ids[whole.group == 0])
        own = {tuple(whole.ids[whole.group == number + 1].tolist()) for number in range(len(questions))}
        for number in range(len(asked.kinds)):
            here = asked.question == number
            assert tuple(asked.rows[here].tolist()) in own
            assert asked.positions[here].tolist() == list(range(len(asked.ids), len(asked.ids) + int(here.sum())))
        assert (asked.labels[asked.question == UNASKED] == IGNORED).all()


def test_pointers_name_the_frames_with_the_answer(tokenizer):
    random = np.random.default_rng(6)
    kinds = set()
    for _ in range(20):
        clip = sample_clip(random, 8)
        labels = clip.labels()
        assert set(labels) == set(FRAME_LABELS)
        for question in clip_questions(clip, random):
            asked = pack_questions(prompt_text(clip), [(question.prompt, question.answer)], tokenizer)
            own = asked.group == 1
            ids, length = asked.ids[own].tolist(), int((asked.labels[own] == IGNORED).sum())
            for pointer in pointers(clip, question, ids, length, tokenizer):
                kinds.add(question.kind)
                assert pointer.back == (question.kind == "word before")
                token = tokenizer.id_to_token(ids[pointer.place])
                for frame in pointer.frames:
                    now, before = (int(labels[name][frame]) for name in ("word", BEFORE))
                    if pointer.whole:
                        assert int(clip.times[frame]) % 60 == int(token)
                        assert WORDS[now] == pointer.word
                    elif pointer.back:
                        assert (f"Ġ{WORDS[now]}", WORDS[before]) == (token, pointer.word)
                    else:
                        assert (f"Ġ{WORDS[before]}", WORDS[now]) == (token, pointer.word)
                answer = tokenizer.decode(ids[pointer.answers[0] + 1 : len(ids) - 1]).split()
                if question.kind in ("word at", "word after", "word before"):
                    assert answer == [pointer.word]
    assert kinds >= {"word at", "place at", "colour at", "shape at", "word after", "word before", "words", "caption"}


def test_batches_of_the_language_stage_vary():
    batches = ClipBatches(LanguageStage(steps=80))
    early, steps = batches.batch(0), range(24, 40)
    assert {len(clip.images) for clip in early if clip.images is not None} == {1}
    row, view = SPECIAL_TOKENS.index("<row_1_col_1>"), SPECIAL_TOKENS.index("<global-img>")
    clips = []
    for step in steps:
        size, batch = batches.size(step), batches.batch(step)
        assert len(batch) == size.clips
        assert max(len(clip.ids) for clip in batch) <= size.tokens
        assert max(int(clip.positions.max()) for clip in batch) < 512
        clips += batch
    assert {batches.size(step) for step in steps} == set(batches.stage.sizes)
    assert any(clip.images is None for clip in clips)
    assert any((clip.ids == row).any() for clip in clips)
    for clip in clips:
        if clip.images is not None:
            assert len(clip.frame_labels["word"]) == int((clip.ids == view).sum())


def rates_and_moment(optimizer, unclipped=0):
    """Return the next learning rates and the norm of AdamW's first moment, without the last parameters of group 0."""
    first, *more = optimizer["param_groups"]
    clipped = first["params"][: len(first["params"]) - unclipped] + [each for group in more for each in group["params"]]
    moment = torch.cat([optimizer["state"][number]["exp_avg"].ravel() for number in clipped])
    return [group["lr"] for group in (first, *more)], moment.norm().item()


def test_the_vision_stage_resumes_exactly(tmp_path):
    stage = VisionStage(steps=4, batch=4, save_every=2, measured=16)
    whole = list(train(stage, tmp_path / "whole"))
    parts = train(stage, tmp_path / "parts")
    next(parts)
    parts.close()
    second = list(train(stage, tmp_path / "parts"))
    assert [record["step"] for record in whole] == [2, 4]
    assert [record["step"] for record in second] == [4]
    one, other = (torch.load(tmp_path / name / "vision.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(one["reader"][name], other["reader"][name]) for name in one["reader"])
    rates, moment = rates_and_moment(one["optimizer"])
    assert rates == pytest.approx([stage.learning_rate * 5 / stage.warmup])
    assert moment <= 1 - 0.9**4  # no gradient was longer than 1


def test_the_language_stage_resumes_exactly(tmp_path):
    list(train(VisionStage(steps=1, batch=2, save_every=1, measured=4), tmp_path))
    stage = LanguageStage(steps=4, sizes=(Size(1.0, 2, 3, 160),), save_every=2, warmup=1)

    def state(name, part="model"):
        return torch.load(tmp_path / name / "language.pt", weights_only=True)[part]

    losses = [
        record["answers"] for record in LanguageTrainer(stage, tmp_path / "vision.pt", tmp_path / "whole").train()
    ]
    first = LanguageTrainer(stage, tmp_path / "vision.pt", tmp_path / "parts").train()
    next(first)
    first.close()
    list(LanguageTrainer(stage, tmp_path / "vision.pt", tmp_path / "parts").train())
    assert losses[1] < losses[0]
    one, other = state("whole"), state("parts")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert v2l.load_vlm(tmp_path / "whole" / "model").max_positions == 512
    rates, moment = rates_and_moment(state("whole", "optimizer"), 2 * len([*FRAME_LABELS, *LABELS, *LABELS]))
    assert rates == pytest.approx([0.0, 0.0])
    assert moment <= 1 - 0.9**4


def test_a_release_needs_a_matching_pair(folder, tmp_path):
    model = tmp_path / "tiny-9"
    shutil.copytree(folder, model)
    small.write_hypernetwork(model)
    release(model, model, tmp_path / "released")
    frozen = (tmp_path / "released" / "model.safetensors").stat().st_mtime_ns
    release(tmp_path / "released", model, tmp_path / "released")
    assert (tmp_path / "released" / "model.safetensors").stat().st_mtime_ns == frozen
    vlm, hypernetwork = v2l.load_vlm(tmp_path / "released"), v2l.load_hypernetwork(tmp_path / "released")
    assert hypernetwork.provenance.base_model == "tiny-9"
    assert hypernetwork.provenance.base_fingerprint == vlm.fingerprint
    other = small.write_model(tmp_path / "other")
    with pytest.raises(V2LError, match="was not trained for"):
        release(other, model, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
