"""The whole story on small models of the real classes: a video file to an adapter to an answer."""

import dataclasses
import gc
import json
import os
import subprocess
import sys
import threading

import numpy as np
import peft
import pytest
import small
import torch
from places import CLIPS, DATA
from transformers import SmolVLMForConditionalGeneration

import v2l
from v2l.inference.ask import answer_each
from v2l.inference.preprocess import Prefetcher, cut_windows, encode_video_images, fill_reading, video_ids
from v2l.models.hypernetwork import TrainedWith
from v2l.models.processor import question_text
from v2l.video.sampling import Reading

QUESTION = "what is on the whiteboard?"


def segment(adapter: v2l.Adapter):
    (only,) = adapter.description.segments
    return only


def test_an_adapter_says_what_it_was_made_from(videos, vlm, hypernetwork, adapters):
    description = adapters[0].description
    assert description.base_model.fingerprint == vlm.fingerprint
    assert description.hypernetwork.sha256 == hypernetwork.provenance.sha256
    assert [(block.rank, block.segments) for block in description.blocks] == [(4, 1)]
    assert description.bias_rank == 4
    only = segment(adapters[0])
    assert (only.source.name, only.source.size) == ("clip 0.mp4", videos[0].stat().st_size)
    assert (only.start, only.end, only.timestamps) == (0.0, 4.0, (0.0, 1.25, 2.5, 3.875))
    assert (only.width, only.height, only.windows) == (64, 48, (4,))
    assert only.reading == Reading(frames=8, fps=1.0, resolution=32)


def test_factors_are_the_hypernetworks_on_the_hidden_states(videos, vlm, hypernetwork, adapters):
    seen = encode_video_images(videos[0], vlm, Reading(frames=8, fps=1.0, resolution=32))
    (window,) = cut_windows(seen, vlm, TrainedWith(window_frames=4))
    with torch.no_grad():
        layers = [torch.cat(list(pieces), dim=1) for pieces in vlm.read_layers([window])]
        factors = hypernetwork.generate(torch.stack(layers, dim=1))
    for layer, (a, b) in enumerate(factors):
        assert torch.allclose(adapters[0].a[layer], a[0], atol=1e-6)
        assert torch.allclose(adapters[0].b[layer], b[0], atol=1e-6)


def test_different_videos_give_different_adapters(adapters):
    assert not torch.allclose(adapters[0].a[:, :4], adapters[1].a[:, :4], atol=1e-4)
    assert torch.equal(adapters[0].a[:, 4:], adapters[1].a[:, 4:])


ENCODE = """
import sys, v2l
vlm, hypernetwork = v2l.load_vlm(sys.argv[1]), v2l.load_hypernetwork(sys.argv[1])
for video in sys.argv[3:]:
    v2l.encode(video, vlm, hypernetwork).save(sys.argv[2] + "/" + video.rpartition("/")[2] + ".v2l.safetensors")
"""


def test_same_input_same_bytes(videos, model_folder, tmp_path):
    """Two processes with different hash seeds, alone and beside other videos in another order."""
    for number, names in enumerate(([1], [2, 1, 0])):
        (tmp_path / str(number)).mkdir()
        arguments = [str(model_folder), str(tmp_path / str(number)), *(str(videos[n]) for n in names)]
        environment = {**os.environ, "PYTHONHASHSEED": str(number + 1)}
        subprocess.run([sys.executable, "-c", ENCODE, *arguments], check=True, env=environment)
    one, other = (tmp_path / number / "clip 1.mp4.v2l.safetensors" for number in "01")
    assert one.read_bytes() == other.read_bytes()


def test_peft_loads_the_file_and_gives_the_same_logits(adapters, vlm, model_folder, tmp_path):
    """The adapter file is a PEFT checkpoint as it stands; only the folder and its configuration are PEFT's own."""
    adapters[0].save(tmp_path / "adapter_model.safetensors")
    rank = adapters[0].rank
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["down_proj"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base = SmolVLMForConditionalGeneration.from_pretrained(model_folder)
    worn = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    ids = vlm.tokenize(question_text(QUESTION))
    with torch.no_grad():
        expected = worn(input_ids=ids[None]).logits[0]
        greedy = worn.generate(input_ids=ids[None], max_new_tokens=12, do_sample=False, pad_token_id=2)[0, len(ids) :]
    with v2l.applied(vlm, adapters[0]):
        assert (vlm.logits(ids) - expected).abs().max() < 1e-4
        assert [step[0] for step in vlm.greedy([vlm.embed(ids)], max_new_tokens=12)] == greedy.tolist()


def test_answers_come_from_the_adapter_and_no_visual_token(adapters, vlm):
    ids = vlm.tokenize(question_text(QUESTION))
    fed = []
    watch = vlm.text_model.register_forward_pre_hook(
        lambda _module, _inputs, named: fed.append(named), with_kwargs=True
    )
    try:
        v2l.ask(adapters[0], QUESTION, vlm, max_new_tokens=1)
    finally:
        watch.remove()
    assert torch.equal(fed[0]["inputs_embeds"][0], vlm.text_model.embed_tokens(ids))
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


@pytest.mark.parametrize("how", ["close", "with", "break", "forgotten in a cycle", "never begun"])
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
        elif how != "never begun":
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
    """However many rows it has: what a batch is for."""
    calls = []
    handle = vlm.text_model.register_forward_hook(lambda *_: calls.append(1))
    try:
        answers = answer_each(adapters * 4, [QUESTION] * 12, vlm, 7)
    finally:
        handle.remove()
    assert len(calls) == max(answer.tokens for answer in answers) <= 7
    assert {answer.together for answer in answers} == {12}
    singles = [v2l.stream(adapter, QUESTION, vlm, 7) for adapter in adapters]
    for answer, single in zip(answers, singles, strict=False):
        assert answer.text == "".join(single)
        assert (answer.tokens, answer.prompt_tokens) == (single.tokens, single.prompt_tokens)
    # one adapter for all rows is held once
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


def test_frames_rate_range_and_resolution(videos, vlm, hypernetwork):
    few = segment(v2l.encode(videos[1], vlm, hypernetwork, frames=2))
    assert len(few.timestamps) == 2
    many = segment(v2l.encode(videos[1], vlm, hypernetwork, frames=100, fps=4))
    assert len(many.timestamps) == 24
    part = segment(v2l.encode(videos[1], vlm, hypernetwork, start=2, end=4, fps=2))
    assert (part.start, part.end) == (2.0, 4.0)
    assert part.timestamps == (2.0, 2.625, 3.25, 3.875)
    tiled = v2l.encode(videos[1], vlm, hypernetwork, resolution=64)
    assert segment(tiled).reading.resolution == 64
    assert not torch.allclose(tiled.a, v2l.encode(videos[1], vlm, hypernetwork).a)


def test_tiles_reach_the_prompt(videos, vlm):
    seen = encode_video_images(videos[0], vlm, Reading(frames=2, fps=1.0, resolution=64))
    assert seen.images.shape == (2 * 5, 4, 48)
    assert [(frame.rows, frame.cols) for frame in seen.frames] == [(2, 2), (2, 2)]
    (window,) = cut_windows(seen, vlm, TrainedWith(prompt="Watch.", window_frames=4))
    assert window.frames == 2


def test_one_window_while_the_prompt_fits_then_windows(videos, vlm, model_folder):
    """1,024 positions: 16 frames are one prompt, 64 are windows of 4, each a whole prompt of its own."""
    hypernetwork = small.small_hypernetwork(model_folder, trained_with=TrainedWith(frames=64, window_frames=4))
    published = v2l.encode(videos[2], vlm, hypernetwork, frames=16, fps=8)
    assert segment(published).windows == (16,)
    assert published.description.not_validated == []
    long = v2l.encode(videos[2], vlm, hypernetwork, frames=63, fps=8)
    assert segment(long).windows == (4,) * 15 + (3,)
    assert long.description.not_validated == ["read in 16 windows, trained on 1: not validated"]


def test_a_window_is_the_prompt_of_its_own_frames(videos, vlm):
    """Windows read together are the prompts of their parts: own frame count, absolute times, positions from zero."""
    reading = Reading(frames=63, fps=8.0, resolution=32)
    seen = encode_video_images(videos[2], vlm, reading)
    windows = cut_windows(seen, vlm, TrainedWith(prompt="Watch.", window_frames=4))
    part = type(seen)(seen.video, seen.frames[4:8], seen.images[4:8])
    (alone,) = cut_windows(part, vlm, TrainedWith(prompt="Watch.", window_frames=4))
    assert torch.equal(windows[1].input_ids, alone.input_ids)
    assert torch.equal(windows[1].images, alone.images)


def test_the_end_of_the_video_is_marked_where_the_hypernetwork_was_trained_so(videos, vlm):
    """In the last window alone, and not where the reading ends before the video does; in context never."""
    trained = TrainedWith(prompt="Watch.", window_frames=4)
    marking = dataclasses.replace(trained, marks_end=True)

    def texts(reading: Reading, trained_with: TrainedWith) -> list[str]:
        seen = encode_video_images(videos[2], vlm, reading)
        windows = cut_windows(seen, vlm, trained_with)
        return [vlm.tokenizer.decode(window.input_ids.tolist(), skip_special_tokens=False) for window in windows]

    whole = Reading(frames=63, fps=8.0, resolution=32)
    plain, marked = texts(whole, trained), texts(whole, marking)
    assert len(plain) > 2
    assert marked[:-1] == plain[:-1]
    before, _, after = plain[-1].rpartition("Frame from")
    assert marked[-1] == f"{before}Last frame from{after}"
    duration = encode_video_images(videos[2], vlm, whole).video.duration
    begun = dataclasses.replace(whole, frames=4, end=duration - 1)
    assert texts(begun, marking) == texts(begun, trained)
    ended = dataclasses.replace(begun, end=round(duration, 6))
    assert texts(ended, marking) != texts(ended, trained)
    in_context = video_ids(encode_video_images(videos[2], vlm, begun), vlm, QUESTION, answer=True)
    assert "Last frame" not in vlm.tokenizer.decode(in_context.tolist(), skip_special_tokens=False)


def test_an_adapter_of_the_last_segment_knows_that_it_is_the_last(videos, vlm, model_folder):
    plain, marking = (
        small.small_hypernetwork(model_folder, trained_with=TrainedWith(frames=4, marks_end=marks))
        for marks in (False, True)
    )
    for readings, same in (({"end": 2.0}, True), ({"start": 2.0}, False), ({}, False)):
        one, other = (v2l.encode(videos[0], vlm, each, **readings) for each in (plain, marking))
        assert torch.equal(one.b, other.b) == same


def test_windows_shrink_where_even_they_do_not_fit(videos, vlm, monkeypatch):
    seen = encode_video_images(videos[2], vlm, Reading(frames=12, fps=2.0, resolution=128))
    windows = cut_windows(seen, vlm, TrainedWith(prompt="Watch.", window_frames=12))
    assert sum(window.frames for window in windows) == 12
    assert len(windows) > 1
    assert max(len(window.input_ids) for window in windows) <= vlm.max_positions
    monkeypatch.setattr(vlm, "max_positions", 100)
    with pytest.raises(v2l.V2LError, match="one frame takes"):
        cut_windows(seen, vlm, TrainedWith(prompt="Watch.", window_frames=12))


def test_a_video_in_context_must_fit(videos, vlm):
    with pytest.raises(v2l.V2LError, match="1,024 positions"):
        v2l.ask_in_context(videos[2], QUESTION, vlm, Reading(frames=63, fps=8.0))


def test_the_next_images_are_made_while_the_last_are_in_use():
    made = [threading.Event() for _ in range(4)]

    def items():
        for place, event in enumerate(made):
            event.set()
            yield torch.tensor(place)

    for place, item in enumerate(Prefetcher(items())):
        assert int(item) == place
        if place + 1 < len(made):
            assert made[place + 1].wait(timeout=10)  # though nobody has asked for it yet

    def broken():
        yield torch.tensor(0)
        raise v2l.V2LError("no second")

    with pytest.raises(v2l.V2LError, match="no second"):
        list(Prefetcher(broken()))


def test_a_resolution_no_prompt_could_hold_is_refused_before_decoding(videos, vlm, hypernetwork):
    with pytest.raises(v2l.V2LError, match="image tokens and the model has 1,024 positions"):
        v2l.encode(videos[0], vlm, hypernetwork, resolution=10**6)
    with pytest.raises(v2l.V2LError, match="6 x 7 tiles and the model has no token"):
        v2l.encode(videos[0], vlm, hypernetwork, resolution=224)


def test_a_hypernetwork_that_only_fits_by_size_is_one_warning(videos, vlm, hypernetwork, monkeypatch):
    strange = dataclasses.replace(hypernetwork.provenance, base_model="someone/other", base_fingerprint=None)
    monkeypatch.setattr(hypernetwork, "provenance", strange)
    with pytest.warns(v2l.V2LWarning, match=r"trained for someone/other .* is named small"):
        v2l.encode(videos[0], vlm, hypernetwork)


@pytest.mark.parametrize("frames", [True, 1.5, "3"])
def test_frames_are_counted_in_whole_numbers(videos, vlm, hypernetwork, frames):
    with pytest.raises(v2l.V2LError, match="whole number"):
        v2l.encode(videos[0], vlm, hypernetwork, frames=frames)


def test_numpy_numbers_are_numbers(videos, vlm, hypernetwork, tmp_path):
    adapter = v2l.encode(videos[0], vlm, hypernetwork, frames=np.int64(3), fps=np.float32(2))
    adapter.save(tmp_path / "a.v2l.safetensors")
    assert v2l.Adapter.load(tmp_path / "a.v2l.safetensors").description == adapter.description


@pytest.mark.parametrize("setting", [{"frames": 0}, {"fps": 0}, {"fps": -1.0}, {"resolution": 0}, {"frames": -3}])
def test_settings_that_make_no_sense(videos, vlm, hypernetwork, setting):
    with pytest.raises(v2l.V2LError, match=f"{next(iter(setting))} is .*above 0"):
        v2l.encode(videos[0], vlm, hypernetwork, **setting)


def test_a_video_that_changes_while_it_is_read_is_refused(videos, vlm, hypernetwork, tmp_path):
    path = tmp_path / "growing.mp4"
    path.write_bytes(videos[0].read_bytes())
    generate = hypernetwork.generate

    def append_and_generate(*inputs):
        with open(path, "ab") as file:
            file.write(b"more")
        return generate(*inputs)

    hypernetwork.generate = append_and_generate
    try:
        with pytest.raises(v2l.V2LError, match="changed while it was being read"):
            v2l.encode(path, vlm, hypernetwork)
    finally:
        del hypernetwork.generate


def test_what_is_no_video(tmp_path, vlm, hypernetwork):
    (tmp_path / "notes.mp4").write_text("not a video")
    for path in (tmp_path / "missing.mp4", tmp_path / "notes.mp4", tmp_path):
        with pytest.raises(v2l.V2LError) as caught:
            v2l.encode(path, vlm, hypernetwork)
        assert "\n" not in str(caught.value)


def test_defaults_come_from_the_hypernetwork_then_the_model(vlm):
    trained = TrainedWith(frames=5, fps=2.0, resolution=None)
    assert fill_reading(Reading(), trained, vlm.geometry) == Reading(frames=5, fps=2.0, resolution=32)
    assert fill_reading(Reading(frames=9), TrainedWith(resolution=48), vlm.geometry) == Reading(9, 1.0, resolution=48)


@pytest.mark.parametrize("name", ["Tarsier_20.mp4", "v_00014063_0.mp4", "v_00016555_0.mp4"])
def test_real_clips(name, vlm, hypernetwork, tmp_path):
    if not (CLIPS / name).is_file():
        pytest.skip("needs the real clips")
    adapter = v2l.encode(CLIPS / name, vlm, hypernetwork)
    adapter.save(tmp_path / "a.v2l.safetensors")
    assert torch.equal(v2l.Adapter.load(tmp_path / "a.v2l.safetensors").a, adapter.a)
    assert 5 < len(segment(adapter).timestamps) <= 8


def test_public_names():
    for name in v2l._MODULES:
        assert getattr(v2l, name).__name__ == name
    assert v2l.load_hypernetwork(DATA / "official-a" / "hypernet.pt").config.rank == 4
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = v2l.nothing
