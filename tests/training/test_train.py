"""Training on small random models: the sampled clips, the loss against a reference, and exact resumption of a run."""

import dataclasses
import json
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from peers import side_path, transformers_model
from terminal import run
from torch.nn import functional as F
from training_runs import CURRICULUM, SIZES, TRAINING, fresh, lively

import v2l
from v2l.adapters.lora import attached
from v2l.errors import V2LError
from v2l.inference.encode import generate_factors
from v2l.inference.readings import fill_reading
from v2l.io.manifest import Example, read_manifest
from v2l.models.checkpoint import with_provenance
from v2l.models.hypernetwork_file import TrainedWith
from v2l.models.processor import question_text
from v2l.models.smolvlm import Window
from v2l.tiny.world.dataset import varied, write_dataset
from v2l.tiny.world.scene import COLOURS, KINDS, WORDS, is_held_out
from v2l.training.data import MicroBatches, SampleReader, TrainingSample, UnreadableClip, read_sample, validation_split
from v2l.training.losses import TrainingObjective
from v2l.training.packing import IGNORED
from v2l.training.resize import widened
from v2l.training.schedule import warm_cosine
from v2l.training.teacher import EMPTY_ANSWER, with_teacher_answers
from v2l.training.trainer import METRICS, SETTINGS, STATE, Trainer, sizes_for

QUESTIONS = (("what is on the whiteboard?", "a square"), ("where is it?", "left"), ("what moves?", "nothing at all"))


@pytest.fixture(scope="module")
def examples(videos):
    return [
        Example(f"{clip}-{number}", video, "qa", "qa", *question, None, None)
        for clip, video in enumerate(videos)
        for number, question in enumerate(QUESTIONS)
    ]


@pytest.fixture(scope="module")
def reader(vlm):
    return SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)


def trainer(vlm, examples, folder, training=TRAINING, hypernetwork=None, **options):
    return Trainer(vlm, hypernetwork or fresh(vlm), (examples, examples[:6]), training, folder, **options)


# Samples ----------------------------------------------------------------------------------------------


def test_clips_are_sampled_whole_in_windows_and_in_segments(examples, reader):
    samples = MicroBatches(examples, reader, CURRICULUM, seed=1, steps=20, batch=3, together=2)
    assert len(samples) == 40
    drawn = [sample for number in range(40) for sample in samples.batch(number)]
    assert len(drawn) == 60
    modes = Counter((sample.composed, len(sample.parts)) for sample in drawn)
    assert modes[True, 2] > modes[True, 3]
    assert set(modes) == {(False, 1), (False, 2), (False, 3), (True, 2), (True, 3)}
    assert len({sum(part.frames for part in sample.parts) for sample in drawn}) > 3
    first, again = samples.batch(7), samples.batch(7)
    assert all(torch.equal(x.parts[0].images, y.parts[0].images) for x, y in zip(first, again, strict=True))


def test_every_clip_is_sampled_once_an_epoch(examples, reader):
    samples = MicroBatches(examples, reader, CURRICULUM, seed=1, steps=2, batch=3, together=3)
    lengths = [sorted(len(sample.in_context.ids) for sample in samples.batch(step)) for step in range(2)]
    assert all(len(set(each)) == 3 for each in lengths)


def test_processes_share_a_step(examples, reader):
    def samples(process, count):
        shared = MicroBatches(examples, reader, CURRICULUM, 1, steps=1, batch=6, together=2, process=(process, count))
        return [sample for number in range(len(shared)) for sample in shared.batch(number)]

    alone = [sample.parts[0].images.sum().item() for sample in samples(0, 1)]
    shared = [sample.parts[0].images.sum().item() for process in (0, 1) for sample in samples(process, 2)]
    assert sorted(alone) == sorted(shared)


@pytest.mark.parametrize("marks_end", [False, True])
def test_without_randomness_a_clip_is_read_as_encoding_reads_it(examples, reader, vlm, videos, marks_end):
    curriculum = dataclasses.replace(CURRICULUM, frames=12, marks_end=marks_end)
    sample = read_sample(examples[:3], reader, curriculum, None)
    reading = fill_reading(
        v2l.Reading(frames=12), v2l.load_hypernetwork(vlm.folder.path).provenance.trained_with, vlm.geometry
    )
    seen = v2l.inference.preprocess.encode_video_images(videos[0], vlm, reading)
    (part,) = sample.parts
    assert torch.equal(vlm.encode_images(part.images), seen.images)
    assert torch.equal(part.ids, v2l.inference.preprocess.video_ids(seen, vlm, CURRICULUM.prompt, marks_end=marks_end))


def test_what_does_not_fit_is_cut_as_encoding_cuts_it(examples, reader, vlm, videos):
    curriculum = dataclasses.replace(CURRICULUM, fps=8.0, frames=63, segments=1)
    seen = v2l.inference.preprocess.encode_video_images(
        videos[2], vlm, v2l.Reading(63, 8.0, None, None, vlm.geometry.longest_edge)
    )
    windows = v2l.inference.preprocess.cut_windows(seen, vlm, TrainedWith(window_frames=63))
    assert len(windows) > 1
    sample = read_sample(examples[6:9], reader, curriculum, None)
    assert all(torch.equal(part.ids, window.input_ids) for part, window in zip(sample.parts, windows, strict=True))
    curriculum = dataclasses.replace(CURRICULUM, fps=8.0, longest=63)
    modes = [read_sample(examples[6:9], reader, curriculum, np.random.default_rng(seed)) for seed in range(8)]
    assert {(sample.composed, len(sample.parts)) for sample in modes} == {(False, 16), (True, 3)}


@pytest.mark.parametrize(("most", "segments"), [(1, 1), (3, 2)])
def test_validation_reads_a_clip_as_it_is_encoded(vlm, examples, reader, videos, most, segments):
    """A clip of twice the length that is read whole: one adapter of the same number of frames, or composed ones."""
    hypernetwork = with_provenance(lively(vlm), "test", vlm.id, vlm.fingerprint, TrainedWith(frames=4, window_frames=4))
    curriculum = dataclasses.replace(CURRICULUM, segments=most)
    sample = read_sample(examples[6:9], reader, curriculum, None)
    assert (sample.composed, [part.frames for part in sample.parts]) == (segments > 1, [4] * segments)
    adapter = v2l.inference.encode.encode_segments(videos[2], vlm, hypernetwork, v2l.Reading(), segments)
    objective = TrainingObjective(vlm, hypernetwork)
    with torch.no_grad():
        factors = objective.factors([sample], objective.encode_images([sample]))
    for layer, pair in enumerate(factors):
        for found, encoded in zip(pair, (adapter.a, adapter.b), strict=True):
            assert torch.allclose(found[0], encoded[layer].float(), rtol=0.01, atol=1e-4)


def test_the_line_break_after_an_answer_counts_if_requested(examples, reader):
    """As published; by default the loss ends with the end of the answer."""
    for newline, end in ((False, "<end_of_utterance>"), (True, "<end_of_utterance>\n")):
        sample = read_sample(examples[:1], reader, dataclasses.replace(CURRICULUM, newline=newline), None)
        for sequence in (sample.sequence, sample.in_context):
            counted = sequence.labels[sequence.labels != IGNORED].tolist()
            text = reader.tokenizer.decode(counted, skip_special_tokens=False)
            assert text == f" {examples[0].target}{end}"


def test_the_end_of_the_video_is_marked_in_its_last_part_alone(examples, reader):
    """A clip that ends before its video has no mark, and neither has the teacher's prompt."""
    curriculum = dataclasses.replace(CURRICULUM, marks_end=True)
    ended = {True: examples[:3], False: [dataclasses.replace(example, end=3.0) for example in examples[:3]]}

    def marked(ids: torch.Tensor) -> bool:
        return "Last frame from" in reader.tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    modes = set()
    for last, clip in ended.items():
        for seed in range(8):
            sample = read_sample(clip, reader, curriculum, np.random.default_rng(seed))
            assert [marked(part.ids) for part in sample.parts] == [False] * (len(sample.parts) - 1) + [last]
            assert sample.edges[1] == last
            assert not marked(sample.in_context.ids)
            modes.add((last, sample.composed, len(sample.parts) > 1))
    assert len(modes) == 6


def test_nothing_held_out_reaches_a_training_manifest(tmp_path):
    """Checked on the captions of the manifest, independently of the code that wrote them."""
    manifest = write_dataset(tmp_path, "train", 60, varied)
    moves = {
        "stands still": "still",
        "moves to the left": "left",
        "moves to the right": "right",
        "moves up": "up",
        "moves down": "down",
        "moves back and forth": "back and forth",
    }
    seen = 0
    for example in read_manifest(manifest):
        if example.kind != "caption":
            continue
        *shapes, board = example.target.removesuffix(".").split(". ")
        words = [word for word in board.split() if word in WORDS]
        for shape in shapes:
            _, colour, kind, *move = shape.split()
            assert (colour in COLOURS, kind in KINDS) == (True, True)
            if move:
                seen += len(words)
                assert not any(is_held_out(colour, kind, moves[" ".join(move)], word) for word in words)
    assert seen > 40
    kept = [json.loads(line)["metadata"]["kept_phrasing"] for line in manifest.read_text().splitlines()]
    assert not any(kept)


def test_one_clip_in_a_hundred_validates(examples):
    learn, validate = validation_split(examples)
    assert {example.video for example in validate} == {examples[0].video}
    assert len(learn) == 6
    with pytest.raises(V2LError, match="only one clip"):
        validation_split(examples[:3])


# Loss --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(examples, reader):
    batches = MicroBatches(examples, reader, CURRICULUM, seed=3, steps=8, batch=3, together=3)
    return [sample for number in range(8) for sample in batches.batch(number)]


def test_the_factors_of_a_batch_are_those_of_each_alone(vlm, examples, samples, tmp_path):
    hypernetwork = lively(vlm)
    run = trainer(vlm, examples, tmp_path, hypernetwork=hypernetwork)
    with torch.no_grad():
        together = run.objective.factors(samples, run.objective.encode_images(samples))
    rank = hypernetwork.config.rank
    for place, sample in enumerate(samples):
        windows = [Window(part.frames, part.ids, vlm.encode_images(part.images)) for part in sample.parts]
        groups = [[window] for window in windows] if sample.composed else [windows]
        a, b = zip(*(generate_factors(group, vlm, hypernetwork) for group in groups), strict=True)
        for own, batched in ((a, 0), (b, 1)):
            wanted = torch.cat([*(each[:, :rank] for each in own), own[0][:, rank:]], dim=1)
            found = torch.stack([layer[batched][place] for layer in together])
            assert torch.allclose(found[:, : wanted.shape[1]], wanted, atol=2e-5)
            assert not found[:, wanted.shape[1] :].any()


def test_the_loss_is_the_mean_over_clips_of_questions_of_tokens(vlm, examples, samples, tmp_path):
    hypernetwork = lively(vlm)
    run = trainer(vlm, examples, tmp_path, hypernetwork=hypernetwork)
    some = samples[:3]
    with torch.no_grad():
        loss = run.objective.loss(some).item()
        factors = run.objective.factors(some, run.objective.encode_images(some))
        wanted = 0.0
        for place, sample in enumerate(some):
            asked = vlm.tokenizer.decode(sample.sequence.ids.tolist(), skip_special_tokens=False)
            means = []
            for prompt, answer in QUESTIONS:
                assert prompt in asked
                ids = vlm.tokenize(question_text(prompt))
                said = vlm.tokenize(f" {answer}<end_of_utterance>")
                with attached(vlm.language_model, [(a[place], b[place]) for a, b in factors]):
                    logits = vlm.logits(torch.cat([ids, said]))[len(ids) - 1 : -1]
                means.append(F.cross_entropy(logits, said).item())
            wanted += np.mean(means)
    assert loss == pytest.approx(wanted, rel=1e-5)


def alone(vlm, sample, number, images, factors):
    """Run transformers' own pass on one question, without the video and with `factors` applied, and with the video in
    context. Return for both the (N, vocabulary) log-probabilities of the answer and the hidden states of question and
    answer after each layer."""
    own = sample.in_context.group == number
    length = min(int(own.sum()), int((sample.sequence.group == number).sum()))  # the first word's tokens may differ
    said = int((sample.in_context.labels[own] >= 0).sum())
    text = sample.sequence.ids[(sample.sequence.group == 0) | (sample.sequence.group == number)]
    shown = sample.in_context.ids[(sample.in_context.group == 0) | own]
    zero = [(torch.zeros_like(a), torch.zeros_like(b)) for a, b in factors]
    found, peer = [], transformers_model(vlm)
    for embedded, applied in ((vlm.embed(text), factors), (vlm.embed(shown, images), zero)):
        with torch.no_grad(), side_path(peer, applied):
            read = peer.model.text_model(inputs_embeds=embedded[None], output_hidden_states=True)
        states = [state[0, -length:] for state in read.hidden_states[1:]]
        assert torch.equal(states[-1], read.last_hidden_state[0, -length:])
        found.append((peer.lm_head(states[-1])[-1 - said : -1].log_softmax(-1), states))
    return found


def unit(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("weighted", ["kl_weight", "hidden_weight"])
def test_the_teacher_is_the_same_model_with_the_video_in_context(vlm, examples, samples, tmp_path, weighted):
    hypernetwork = lively(vlm)
    run = trainer(vlm, examples, tmp_path / "a", dataclasses.replace(TRAINING, **{weighted: 0.5}), hypernetwork)
    plain = trainer(vlm, examples, tmp_path / "b", hypernetwork=hypernetwork)
    some = [sample for sample in samples if not sample.composed][:3]
    some[1] = dataclasses.replace(some[1], in_context=None)  # as for a clip that exceeds the teacher's context
    with torch.no_grad():
        added = run.objective.loss(some).item() - plain.objective.loss(some).item()
        factors = run.objective.factors(some, run.objective.encode_images(some))
    wanted = 0.0
    for place in (0, 2):
        images = vlm.encode_images(torch.cat([part.images for part in some[place].parts]))
        means = []
        for number in range(1, 4):
            own_factors = [(a[place], b[place]) for a, b in factors]
            (student, own), (teacher, shown) = alone(vlm, some[place], number, images, own_factors)
            if weighted == "kl_weight":
                means.append((teacher.exp() * (teacher - student)).sum(-1).mean().item())
            else:
                layers = [(unit(x) - unit(y)).square().mean().item() for x, y in zip(own, shown, strict=True)]
                means.append(np.mean(layers))
        wanted += np.mean(means)
    assert added == pytest.approx(0.5 * wanted, rel=1e-4)
    assert added > 0


def test_micro_batches_change_nothing(vlm, examples, tmp_path):
    """Compares gradients: AdamW would hide a wrong scale."""

    def gradients(together):
        run = trainer(vlm, examples, tmp_path / str(together), dataclasses.replace(TRAINING, together=together))
        run._train_step(iter([run.samples.batch(number) for number in range(run.samples.per_step)]))
        return torch.cat([p.grad.ravel() for p in run.hypernetwork.parameters() if p.grad is not None])

    one, all_at_once = gradients(1), gradients(3)
    assert one.abs().max() > 0
    assert torch.allclose(one, all_at_once, atol=1e-6)


def test_the_optimizer_has_the_settings_of_the_run(vlm, examples, tmp_path):
    training = dataclasses.replace(TRAINING, learning_rate=2e-4, weight_decay=0.3)
    (group,) = trainer(vlm, examples, tmp_path, training).optimizer.param_groups
    assert (group["initial_lr"], group["weight_decay"]) == (2e-4, 0.3)


@pytest.mark.parametrize("share", [0.01, 100.0])
def test_a_step_uses_gradients_of_at_most_the_clip_norm(vlm, examples, tmp_path, share):
    """AdamW's first moment after one step is a tenth of the gradient that it used."""

    def first_moment(clip_norm, folder):
        training = dataclasses.replace(TRAINING, clip_norm=clip_norm)
        run = trainer(vlm, examples, tmp_path / folder, training, lively(vlm))
        run._train_step(iter([run.samples.batch(0)]))
        return torch.cat([state["exp_avg"].ravel() for state in run.optimizer.state.values()])

    whole = first_moment(1e9, "whole")
    norm = 10 * whole.norm().item()
    clipped = first_moment(share * norm, "clipped")
    assert torch.allclose(clipped, min(1.0, share) * whole, rtol=1e-3, atol=1e-9 * norm)


# Runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(vlm, examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, list(trainer(vlm, examples, folder).run())


def test_it_learns(vlm, examples, tmp_path):
    training = dataclasses.replace(TRAINING, steps=40, validate_every=40)
    *_, last = trainer(vlm, examples, tmp_path, training).run()
    first = json.loads((tmp_path / METRICS).read_text().splitlines()[0])
    assert last.validation < 0.9 * first["loss"]
    adapter = v2l.encode(examples[0].video, vlm, v2l.load_hypernetwork(tmp_path))
    (segment,) = adapter.description.segments
    assert (segment.reading.frames, segment.window_frames) == (4, 4)


def test_an_interrupted_run_resumes_exactly(finished, vlm, examples, tmp_path):
    folder, whole = finished
    run = trainer(vlm, examples, tmp_path / "parts").run()
    assert next(run) == dataclasses.replace(whole[0], clips_per_second=pytest.approx(0, abs=1e9))
    run.close()  # after the state of step 2 was written
    resumed = trainer(vlm, examples, tmp_path / "parts", hypernetwork=fresh(vlm, seed=9))
    assert resumed.step == 2
    list(resumed.run())
    one, other = (torch.load(place / STATE, weights_only=True) for place in (folder, tmp_path / "parts"))
    assert one["step"] == other["step"] == 4
    for name, tensor in one["hypernetwork"].items():
        assert torch.equal(tensor, other["hypernetwork"][name])
    same = [(place / "hypernetwork.safetensors").stat().st_size for place in (folder, tmp_path / "parts")]
    assert same[0] == same[1]


def test_a_run_resumes_with_the_micro_batches_of_its_next_step(vlm, examples, tmp_path):
    training = dataclasses.replace(TRAINING, batch=2, together=1, steps=2, validate_every=1, validation_clips=1)
    whole = list(trainer(vlm, examples, tmp_path / "whole", training).run())
    parts = trainer(vlm, examples, tmp_path / "parts", training).run()
    next(parts)
    parts.close()
    (last,) = trainer(vlm, examples, tmp_path / "parts", training, fresh(vlm, seed=9)).run()
    assert (last.loss, last.validation) == (whole[1].loss, whole[1].validation)


def test_a_run_keeps_the_best_and_its_figures(finished):
    folder, progress = finished
    assert [each.step for each in progress] == [2, 4]
    assert progress[-1].best == min(each.validation for each in progress)
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    assert [line["validation"] for line in lines] == [each.validation for each in progress]
    assert json.loads((folder / SETTINGS).read_text())["steps"] == 4
    provenance = v2l.load_hypernetwork(folder).provenance
    assert (provenance.id, provenance.trained_with.frames, provenance.trained_with.windows) == ("whole", 4, 3)


def test_a_worse_validation_leaves_the_best_hypernetwork(vlm, examples, tmp_path):
    """The rate is so high that the run gets worse and ends so."""
    training = dataclasses.replace(TRAINING, learning_rate=0.3, steps=3, validate_every=1)
    losses = [each.validation for each in trainer(vlm, examples, tmp_path / "run", training).run()]
    assert losses[-1] > 1.05 * min(losses)
    saved = v2l.load_hypernetwork(tmp_path / "run")
    assert trainer(vlm, examples, tmp_path / "again", training, saved).validate() == pytest.approx(min(losses))


def test_the_learning_rate_rises_and_then_follows_a_cosine_to_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, rates = warm_cosine(optimizer, 8, 4), []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    quarter = 2**0.5 / 2
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 1 + quarter, 1.0, 1 - quarter, 0.0, 0.0])


def test_a_run_changes_its_learning_rate_at_every_step(finished):
    """The steps have the rates 1, 1, 0.75 and 0.25 of the peak; a report states that of its last step."""
    folder, progress = finished
    peak = TRAINING.learning_rate
    assert [each.learning_rate for each in progress] == pytest.approx([peak, 0.25 * peak])
    state = torch.load(folder / STATE, weights_only=True)
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_a_run_with_other_settings_is_not_resumed(finished, vlm, examples):
    folder, _ = finished
    with pytest.raises(V2LError, match="other settings"):
        trainer(vlm, examples, folder, dataclasses.replace(TRAINING, learning_rate=1e-4))


def test_a_run_is_not_resumed_on_another_manifest(finished, vlm, examples, tmp_path):
    """One of the same length, in either place; a run from before manifests were recorded is resumed."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    changed = [*examples[:-1], dataclasses.replace(examples[-1], target="something else")]
    for manifests in ((changed, examples[:6]), (examples, [*examples[:5], changed[-1]])):
        with pytest.raises(V2LError, match=r"other settings \(manifests\)"):
            Trainer(vlm, fresh(vlm), manifests, TRAINING, folder)
    recorded = json.loads((folder / SETTINGS).read_text())
    del recorded["manifests"], recorded["curriculum"]["newline"]
    (folder / SETTINGS).write_text(json.dumps(recorded))
    assert trainer(vlm, examples, folder, dataclasses.replace(TRAINING, recompute=False)).step == 4
    assert json.loads((folder / SETTINGS).read_text())["manifests"]
    (folder / SETTINGS).write_text("{")
    with pytest.raises(V2LError, match="cannot be read"):
        trainer(vlm, examples, folder)


def test_clips_that_cannot_be_read_are_skipped(vlm, examples, reader, tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"no video")
    broken = dataclasses.replace(examples[0], id="broken", video=tmp_path / "no.mp4")
    samples = MicroBatches([*examples, broken], reader, CURRICULUM, 0, steps=1, batch=4, together=4).batch(0)
    assert sorted(isinstance(sample, TrainingSample) for sample in samples) == [False, True, True, True]
    (sample,) = [sample for sample in samples if isinstance(sample, UnreadableClip)]
    assert "no.mp4" in sample.reason
    warnings = []
    run = trainer(vlm, [*examples, broken], tmp_path / "run", warn=warnings.append)
    list(run.run())
    assert warnings and all("no.mp4" in text for text in warnings)
    nothing = Trainer(vlm, fresh(vlm), ([broken], examples[:3]), TRAINING, tmp_path / "none")
    with pytest.raises(V2LError, match="not one clip"):
        list(nothing.run())


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ({"ranks": 4}, "is not a hypernetwork size"),
        ({"num_layers": 4}, "is not a hypernetwork size"),
        ({"rank": 0}, "above 0"),
        ({"num_heads": 5}, "cannot share"),
    ],
)
def test_sizes_that_make_no_network(vlm, sizes, complaint):
    with pytest.raises(V2LError, match=complaint):
        sizes_for(vlm, sizes)


def test_the_multiplier_follows_from_the_rank_unless_it_is_chosen_or_trained(vlm):
    assert [sizes_for(vlm, sizes).lora_alpha for sizes in ({}, {"rank": 4})] == [128.0, 16.0]
    assert sizes_for(vlm, {"rank": 4, "lora_alpha": 7}).lora_alpha == 7
    assert sizes_for(vlm, {"rank": 8}, lively(vlm).config).lora_alpha == lively(vlm).config.lora_alpha != 2 * 8**1.5


def test_a_wider_hypernetwork_starts_with_almost_the_same_output(vlm, examples, samples, tmp_path):
    old = lively(vlm)
    wide = widened(old, sizes_for(vlm, {"rank": 8}, old.config))
    assert (wide.config.rank, wide.config.num_latents) == (8, 4)
    assert wide.config.lora_alpha == old.config.lora_alpha
    hidden = torch.randn(2, vlm.num_layers, 9, vlm.adapted_size[2])
    with torch.no_grad():
        for (a, b), (wide_a, wide_b) in zip(old.generate(hidden), wide.generate(hidden), strict=True):
            assert wide_a.shape[1] == 2 * a.shape[1]
            change, wide_change = a.transpose(1, 2) @ b, wide_a.transpose(1, 2) @ wide_b
            assert (wide_change - change).norm() < 0.5 * change.norm()  # an unrelated one: 1.4
            assert (wide_a[:, 4:8] - wide_a[:, :4]).norm() > 0.1 * wide_a[:, :4].norm()  # copies differ
            assert wide_b[:, :4].norm() > 0
            assert wide_b[:, 4:8].norm() == 0  # no effect yet
    other = widened(old, sizes_for(vlm, {"num_latents": 12}, old.config))
    assert other.aggregator["perceiver"].encoder.latents_q.shape == (12, 32)
    heads = widened(old, sizes_for(vlm, {"num_kv_heads": old.config.num_heads}, old.config))
    assert heads.config.num_kv_heads > old.config.num_kv_heads
    with torch.no_grad():
        for pair, own in zip(heads.generate(hidden), old.generate(hidden), strict=True):
            torch.testing.assert_close(pair, own)
    with pytest.raises(V2LError, match="cannot share"):
        widened(old, sizes_for(vlm, {"num_kv_heads": 3 * old.config.num_kv_heads}, old.config))
    with pytest.raises(V2LError, match="above 0"):
        widened(old, sizes_for(vlm, {"num_kv_heads": 0}, old.config))
    with pytest.raises(V2LError, match="can be multiplied"):
        widened(old, sizes_for(vlm, {"rank": 6}, old.config))
    with pytest.raises(V2LError, match="can be multiplied"):
        widened(old, sizes_for(vlm, {"latent_size": 64}, old.config))


def test_cached_frames_are_neither_decoded_nor_encoded_again(vlm, examples, reader, tmp_path):
    same = dataclasses.replace(TRAINING, curriculum=dataclasses.replace(CURRICULUM, denser=1.0))
    run = trainer(vlm, examples, tmp_path, same, hypernetwork=lively(vlm))
    first, again = (run.samples.batch(0) for _ in range(2))
    with torch.no_grad():
        loss = run.objective.loss(first).item()
        again = run.samples.batch(0)
        assert all(part.images is None for sample in again for part in sample.parts)
        assert run.objective.loss(again).item() == loss
    assert set(run.objective.image_cache) == {sample.shows for sample in first}


def test_frames_of_several_resolutions_are_sampled(examples, reader):
    several = dataclasses.replace(CURRICULUM, resolutions=(32, 64), segments=1, windows=1)
    samples = MicroBatches(examples, reader, several, seed=3, steps=8, batch=3, together=3)
    drawn = [sample for number in range(8) for sample in samples.batch(number)]
    assert {sample.shows[2] for sample in drawn} == {32, 64}
    assert all(part.count == len(part.images) for sample in drawn for part in sample.parts)
    assert {part.count // part.frames for sample in drawn for part in sample.parts} > {1}
    rare = dataclasses.replace(several, at_first=0.9)
    samples.sampling = rare
    again = Counter(sample.shows[2] for number in range(8) for sample in samples.batch(number))
    assert 0 < again[64] < sum(sample.shows[2] == 64 for sample in drawn)
    assert max(len(part.ids) for sample in drawn for part in sample.parts) <= reader.positions


def test_a_clip_that_tiles_would_make_too_long_is_read_at_the_first_resolution(examples, reader):
    """Tiles make at most 30 images of four seconds, and at least 40 of eight."""
    tiled = dataclasses.replace(CURRICULUM, resolutions=(32, 64), at_first=0.0, longest=38)
    drawn = {0: set(), 6: set()}
    for first, resolutions in drawn.items():
        for seed in range(12):
            sample = read_sample(examples[first : first + 3], reader, tiled, np.random.default_rng(seed))
            assert sum(part.count for part in sample.parts) <= 38
            resolutions.add(sample.shows[2])
    assert drawn == {0: {32, 64}, 6: {32}}


# Teacher -----------------------------------------------------------------------------------------------------------


def test_the_teacher_answers_once(vlm, hypernetwork, examples, tmp_path):
    cache = tmp_path / "teacher.jsonl"
    reading = fill_reading(v2l.Reading(frames=3), hypernetwork.provenance.trained_with, vlm.geometry)
    asked = examples[:4]
    answered = with_teacher_answers(asked, vlm, reading, cache)
    for before, after in zip(asked, answered, strict=True):
        text = v2l.ask_in_context(before.video, before.prompt, vlm, reading, 64)
        assert after == dataclasses.replace(before, target=text or EMPTY_ANSWER)
    lines = cache.read_text().splitlines()
    changed = [lines[0], *(json.dumps({**json.loads(line), "text": "kept"}) for line in lines[1:-1])]
    cache.write_text("\n".join(changed) + "\n" + lines[-1][:9])  # the last line was cut short
    again = with_teacher_answers(asked, vlm, reading, cache)
    assert [each.target for each in again] == ["kept"] * 3 + [answered[3].target]
    with pytest.raises(V2LError, match="another reading"):
        with_teacher_answers(asked, vlm, dataclasses.replace(reading, frames=2), cache)


def test_the_teacher_answers_each_range_from_its_frames(vlm, hypernetwork, examples, tmp_path):
    reading = fill_reading(v2l.Reading(frames=3), hypernetwork.provenance.trained_with, vlm.geometry)
    ranges = [(0.0, 2.0), (None, None)]
    asked = [dataclasses.replace(examples[3], start=start, end=end) for start, end in ranges]
    answered = with_teacher_answers(asked, vlm, reading, tmp_path / "teacher.jsonl")
    for example, (start, end) in zip(answered, ranges, strict=True):
        clip = dataclasses.replace(reading, start=start, end=end)
        text = v2l.ask_in_context(example.video, example.prompt, vlm, clip, 64)
        assert example.target == (text or EMPTY_ANSWER)
    assert answered[0].target != answered[1].target


def test_what_the_teacher_cannot_read_is_left_out(vlm, hypernetwork, examples, tmp_path):
    reading = fill_reading(v2l.Reading(), hypernetwork.provenance.trained_with, vlm.geometry)
    lost = dataclasses.replace(examples[0], video=tmp_path / "lost.mp4")
    warnings = []
    kept = with_teacher_answers([lost, examples[0]], vlm, reading, tmp_path / "t.jsonl", warn=warnings.append)
    assert [example.id for example in kept] == [examples[0].id]
    assert "lost.mp4" in warnings[0]
    with pytest.raises(V2LError, match="none of the manifest's videos"):
        with_teacher_answers([lost], vlm, reading, tmp_path / "t.jsonl")


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, examples, model_folder):
    """A folder with clips, their manifest and a model, for separate processes."""
    folder = tmp_path_factory.mktemp("training")
    shutil.copytree(model_folder, folder / "model")
    rows = []
    for example in examples:
        shutil.copy(example.video, folder / example.video.name)
        row = {"id": example.id, "video_path": example.video.name}
        rows.append({**row, "question": example.prompt, "answer": example.target})
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(folder, steps):
    numbers = {**SIZES, "together": 2, "segments": 2, "windows": 2, "save_every": 1}
    settings = " ".join(f"--set {name}={value}" for name, value in numbers.items())
    run = f"--steps {steps} --batch 4 --frames 4 --learning-rate 1e-3"
    return f"m.jsonl -o {folder} --model model --device cpu {run} {settings}".split()


def train(workplace, *words):
    return run("train", *words, cwd=workplace)


def test_two_processes_compute_the_gradients_of_one(workplace):
    one = train(workplace, *options("one", 2))
    assert (one.code, one.out) == (0, "one/hypernetwork.safetensors\n")
    assert "validation" in one.err
    shared = "torch.distributed.run --standalone --nproc_per_node 2"  # accelerate launch --cpu starts one alone
    two = run(*options("two", 2), cwd=workplace, program=[sys.executable, "-m", *shared.split(), "-m", "v2l", "train"])
    assert (two.code, two.out) == (0, "two/hypernetwork.safetensors\n"), two.err
    assert two.err.count("2 processes share each step") == 1
    single, double = (torch.load(workplace / name / STATE, weights_only=True) for name in ("one", "two"))
    # the gradients themselves: AdamW's first moment is their running mean
    moments = [[state["exp_avg"] for state in each["optimizer"]["state"].values()] for each in (single, double)]
    assert max(float(moment.abs().max()) for moment in moments[0]) > 1e-4
    for mine, theirs in zip(*moments, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_the_command_resumes_and_prints_json(workplace):
    first = train(workplace, *options("run", 2), "--json")
    lines = [json.loads(line) for line in first.out.splitlines()]
    assert lines[-1]["hypernetwork"] == "run/hypernetwork.safetensors"
    assert lines[0]["validation"] > 0
    assert "loss" in lines[0] and "--teacher" not in first.err
    again = train(workplace, *options("run", 2))
    assert "resuming after step 2 of 2" in again.err
    other = train(workplace, *options("run", 3))
    assert other.code == 1
    assert other.err.startswith("v2l: error: run holds a run with other settings")
    taught_run = train(workplace, *options("taught", 1), "--teacher")
    assert taught_run.code == 0
    assert len((workplace / "m.teacher.jsonl").read_text().splitlines()) == 1 + len(QUESTIONS) * 3


def test_the_end_is_marked_if_requested_or_if_the_weights_were_trained_so(workplace):
    def marks(folder, *words):
        done = train(workplace, *options(folder, 1), *words)
        assert done.code == 0, done.err
        marked = v2l.load_hypernetwork(workplace / folder).provenance.trained_with.marks_end
        assert json.loads((workplace / folder / SETTINGS).read_text())["curriculum"]["marks_end"] == marked
        return marked

    from_marked = "--hypernetwork", "marked/hypernetwork.safetensors"
    assert marks("marked", "--set", "marks_end=yes")
    assert marks("marked-still", *from_marked)
    assert not marks("unmarked", *from_marked, "--set", "marks_end=no")


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("--set", "rank:4"), 2, "write NAME=VALUE"),
        (("--set", "ranks=4"), 2, "unknown setting ranks"),
        (("--set", "rank=0"), 2, "rank takes a whole number of at least 1; the settings are together"),
        (("--learning-rate", "0"), 2, "above 0"),
        (("--validation", "none.jsonl"), 1, "none.jsonl"),
    ],
)
def test_invalid_options_are_one_line(workplace, words, code, complaint):
    done = train(workplace, "m.jsonl", "-o", "bad", "--model", "model", "--steps", "1", *words)
    assert done.code == code
    assert complaint in done.err
    assert done.err.count("\n") == 1
    assert not (workplace / "bad" / STATE).exists()
