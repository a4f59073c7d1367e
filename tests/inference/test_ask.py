"""Answer questions from adapters and in context, with small models of the real classes."""

import gc
import json
from contextlib import contextmanager

import numpy as np
import peft
import pytest
import torch
from transformers import SmolVLMForConditionalGeneration

import v2l
from v2l.inference.ask import answer_each
from v2l.models.processor import question_text
from v2l.video.sampling import Reading

QUESTION = "what is on the whiteboard?"


@contextmanager
def recorded_passes(vlm):
    """Yield the list that the input embeddings of every forward pass of the language model are appended to."""
    model, fed = vlm.language_model, []

    def run(x, *rest, **named):
        fed.append(x)
        return type(model).run(model, x, *rest, **named)

    model.run = run
    try:
        yield fed
    finally:
        del model.run


def test_peft_loads_the_file_and_gives_the_same_logits(adapters, vlm, model_folder, tmp_path):
    """The adapter file is a PEFT checkpoint without changes; only the folder and its configuration are added."""
    adapters[0].save(tmp_path / "adapter_model.safetensors")
    rank = adapters[0].rank
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["down_proj"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base = SmolVLMForConditionalGeneration.from_pretrained(model_folder)
    peft_model = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    ids = vlm.tokenize(question_text(QUESTION))
    with torch.no_grad():
        expected = peft_model(input_ids=ids[None]).logits[0]
        greedy = peft_model.generate(input_ids=ids[None], max_new_tokens=12, do_sample=False, pad_token_id=2)[
            0, len(ids) :
        ]
    with v2l.applied(vlm, adapters[0]):
        assert (vlm.logits(ids) - expected).abs().max() < 1e-4
        assert [step[0] for step in vlm.greedy([vlm.embed(ids)], max_new_tokens=12)] == greedy.tolist()


def test_answers_come_from_the_adapter_and_no_visual_token(adapters, vlm):
    ids = vlm.tokenize(question_text(QUESTION))
    with recorded_passes(vlm) as fed:
        v2l.ask(adapters[0], QUESTION, vlm, max_new_tokens=1)
    assert torch.equal(fed[0], vlm.language_model.embed(ids))
    assert vlm.image_token_id not in ids
    with v2l.applied(vlm, adapters[0]):
        expected = vlm.logits(ids)[-1].argmax()
    first = vlm.detokenize([int(expected)]).strip()
    assert v2l.ask(adapters[0], QUESTION, vlm, max_new_tokens=1) == first


def test_the_language_model_alone_answers_the_same(adapters, vlm, model_folder):
    alone = v2l.load_vlm(model_folder, vision=False)
    assert v2l.ask(adapters[0], QUESTION, alone, 16) == v2l.ask(adapters[0], QUESTION, vlm, 16)


def test_a_stream_is_the_answer_in_pieces(adapters, vlm):
    pieces = list(v2l.stream(adapters[1], QUESTION, vlm, max_new_tokens=24))
    assert len(pieces) > 1
    assert "".join(pieces) == v2l.ask(adapters[1], QUESTION, vlm, max_new_tokens=24)


@pytest.mark.parametrize("how", ["close", "with", "break", "dropped in a cycle", "never started"])
def test_a_stream_left_early_leaves_the_model_as_it_was(adapters, vlm, how):
    ids = vlm.tokenize(question_text(QUESTION))
    before = vlm.logits(ids)
    if how == "break":
        for _ in v2l.stream(adapters[1], QUESTION, vlm):
            break
    else:
        answer = v2l.stream(adapters[1], QUESTION, vlm)
        if how == "with":
            with answer:
                next(answer)
        elif how != "never started":
            next(answer)
        if how == "close":
            answer.close()
        cycle = [answer]
        cycle.append(cycle)
        del answer, cycle
        gc.collect()
    assert torch.equal(vlm.logits(ids), before)
    assert v2l.ask(adapters[1], QUESTION, vlm, 4) == v2l.ask(adapters[1], QUESTION, vlm, 4)


def test_a_stream_counts(adapters, videos, vlm):
    answer = v2l.stream(adapters[1], QUESTION, vlm, max_new_tokens=6)
    assert (answer.tokens, answer.time_to_first_token, answer.tokens_per_second) == (0, None, None)
    list(answer)
    assert (answer.prompt_tokens, answer.visual_tokens) == (len(vlm.tokenize(question_text(QUESTION))), 0)
    assert 1 < answer.tokens <= 6
    assert answer.time_to_first_token > 0
    assert answer.tokens_per_second > 0
    in_context = v2l.stream_in_context(videos[0], QUESTION, vlm)
    assert in_context.visual_tokens == 4 * 4


def test_a_batch_of_adapters_answers_as_one_at_a_time(adapters, vlm):
    questions = ["what?", "where is the red square?", "who is there, and since when?"]
    expected = [v2l.ask(a, q, vlm, 12) for a, q in zip(adapters, questions, strict=True)]
    assert v2l.ask_each(adapters, questions, vlm, 12) == expected
    assert v2l.ask_each([], [], vlm) == []
    with pytest.raises(v2l.V2LError, match="one question for each"):
        v2l.ask_each(adapters, ["what?"], vlm)


def test_a_batch_takes_as_many_steps_as_its_longest_answer(adapters, vlm):
    """The number of rows does not add steps."""
    with recorded_passes(vlm) as calls:
        answers = answer_each(adapters * 4, [QUESTION] * 12, vlm, 7)
    assert len(calls) == max(answer.tokens for answer in answers) <= 7
    assert {answer.together for answer in answers} == {12}
    singles = [v2l.stream(adapter, QUESTION, vlm, 7) for adapter in adapters]
    for answer, single in zip(answers, singles, strict=False):
        assert answer.text == "".join(single)
        assert (answer.tokens, answer.prompt_tokens) == (single.tokens, single.prompt_tokens)
    # One adapter for all rows is applied once.
    assert v2l.ask_each([adapters[0]] * 3, [QUESTION] * 3, vlm, 7) == [answers[0].text] * 3


def test_in_context_is_transformers_on_the_same_inputs(videos, vlm, model_folder):
    reference = SmolVLMForConditionalGeneration.from_pretrained(model_folder).eval()
    import v2l.models.processor as prompt
    from v2l.video.probe import probe, read_frames

    video = probe(videos[0])
    frames = list(read_frames(video, [0, 10, 20, 31]))
    images = np.concatenate([prompt.frame_images(frame.pixels, vlm.geometry) for frame in frames])
    pixels = (torch.from_numpy(images).float() / 255 - 0.5) / 0.5
    shown = [prompt.PromptFrame(frame.seconds) for frame in frames]
    ids = vlm.tokenize(prompt.video_text(shown, video.duration, QUESTION, vlm.geometry, generation_prompt=True))
    answer = reference.generate(
        input_ids=ids[None], pixel_values=pixels[None], max_new_tokens=10, do_sample=False, pad_token_id=2
    )[0, len(ids) :].tolist()
    if answer[-1] in vlm.end_of_answer_ids:
        answer.pop()
    assert v2l.ask_in_context(videos[0], QUESTION, vlm, max_new_tokens=10) == vlm.detokenize(answer).strip()


def test_a_video_in_context_must_fit(videos, vlm):
    with pytest.raises(v2l.V2LError, match="1,024 positions"):
        v2l.ask_in_context(videos[2], QUESTION, vlm, Reading(frames=63, fps=8.0))
