"""The reading stage: targets, losses, exact resumption, and the command line."""

import json
import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_runs import SIZES, TRAINING

from v2l.errors import errors_in_one_line
from v2l.io.manifest import group_by_clip
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.hypernetwork_file import FILE_NAME
from v2l.models.presets import find_model
from v2l.tiny.recipe.reading_stage import ReadingLoss, ReadingTraining, edge_targets, frame_facts, main
from v2l.tiny.recipe.vision_stage import PLACE_NAMES
from v2l.tiny.world.dataset import varied, write_dataset
from v2l.tiny.world.scene import WORDS
from v2l.training.common import save_state
from v2l.training.data import NO_END, SampleReader, SamplingConfig, read_sample
from v2l.training.packing import IGNORED
from v2l.training.trainer import STATE, Trainer, sizes_for

CURRICULUM = SamplingConfig(frames=12, windows=2, segments=2, denser=1, questions=4)


def trainer(vlm, examples, folder, steps=4, answers=True, hypernetwork=None, **weights):
    torch.manual_seed(0)
    often = {"steps": steps, "validate_every": steps, "save_every": 2}
    changed = {"curriculum": CURRICULUM, **often, "answers": answers, **weights}
    training = ReadingTraining(**{**vars(TRAINING), **changed})
    hypernetwork = hypernetwork or Hypernetwork(sizes_for(vlm, {**SIZES, "rank": 16, "num_latents": 16}))
    auxiliary = ReadingLoss(vlm, hypernetwork, training)
    return Trainer(vlm, hypernetwork, (examples, examples[:4]), training, folder, auxiliary=auxiliary)


def test_the_facts_of_a_frame_agree_with_the_answers(world_examples, vlm):
    """The manifest's questions give the words and, for some seconds, the place."""
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    compared, whole = 0, SamplingConfig(frames=24, segments=1, questions=4)
    for clip in group_by_clip(world_examples):
        sample = read_sample(clip, reader, whole, None)
        shown = frame_facts(*sample.shows[:2])
        words = [WORDS[number] for number in shown[:, 0].tolist()]
        changes = [i for i in range(1, len(words)) if words[i] != words[i - 1]]
        assert [i for i in range(len(words)) if shown[i, 1] != IGNORED] == changes
        assert all(WORDS[shown[i, 1]] == words[i - 1] for i in changes)
        ends = torch.cat([part.ends for part in sample.parts])
        seconds = ends[ends >= 0].tolist()
        for example in clip:
            if example.target in PLACE_NAMES and " at 00:" in f" {example.prompt}":
                second = int(example.prompt.split("00:")[1][:2])
                if second in seconds:
                    assert PLACE_NAMES[shown[seconds.index(second), 2]] == example.target
                    compared += 1
            if example.prompt == "what is written first?":
                assert example.target == words[0]
    assert compared > 3


def test_heads_learn_the_facts_of_frames(vlm, world_examples, tmp_path):
    run = trainer(vlm, world_examples, tmp_path, steps=40, answers=False)
    first, *_, last = run.run()
    reading = run.objective.auxiliary
    assert last.loss < 0.8 * first.loss
    assert all(heads.abs().max() > 1e-3 for heads in (*reading.heads, *reading.when, *reading.edges))


def test_seconds_and_minutes_have_the_given_weight(vlm, world_examples, tmp_path):
    """New heads predict a uniform distribution of either, from tokens, latents and ranks."""
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    sample = read_sample(group_by_clip(world_examples)[0], reader, CURRICULUM, None)
    losses = [
        trainer(vlm, world_examples, tmp_path / str(weight), answers=False, when_weight=weight)
        .objective.loss([sample])
        .item()
        for weight in (0, 1, 3)
    ]
    assert losses[1] - losses[0] == pytest.approx(6 * math.log(60), rel=1e-3)
    assert losses[2] - losses[0] == pytest.approx(18 * math.log(60), rel=1e-3)


def test_the_ends_of_the_video_are_targets_of_the_ends_of_parts(vlm, world_examples, tmp_path):
    """For the first and the last frame of each part new heads predict a uniform distribution."""
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    clip = group_by_clip(world_examples)[0]
    samples = {
        (sample.composed, len(sample.parts)): sample
        for sample in (read_sample(clip, reader, CURRICULUM, np.random.default_rng(seed)) for seed in range(8))
    }
    assert samples.keys() == {(False, 1), (False, 2), (True, 2)}
    for (composed, parts), sample in samples.items():
        edges = edge_targets(sample)
        assert edges[0][0, 0] == edges[-1][-1, 1] == 1
        assert parts == 1 or edges[0][-1, 1] == edges[1][0, 0] == 0
        assert int((torch.cat(edges) != IGNORED).sum()) == 2 * parts
        losses = [
            trainer(vlm, world_examples, tmp_path / f"{composed}-{parts}-{weight}", answers=False, edge_weight=weight)
            .objective.loss([sample])
            .item()
            for weight in (0, 1, 3)
        ]
        each = 6 * math.log(2) * (1 if composed else parts)  # each part of a composed sample is an adapter
        assert losses[1] - losses[0] == pytest.approx(each, rel=1e-3)
        assert losses[2] - losses[0] == pytest.approx(3 * each, rel=1e-3)


def test_a_clip_cut_from_a_video_lacks_its_ends(vlm, world_examples):
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    clip = [replace(example, start=1.0, end=3.0) for example in group_by_clip(world_examples)[0]]
    edges = torch.cat(edge_targets(read_sample(clip, reader, CURRICULUM, None)))
    assert edges[0, 0] == edges[-1, 1] == 0
    assert int((edges != IGNORED).sum()) == 2


def test_the_word_before_a_parts_first_frame_is_no_target(vlm, world_examples, tmp_path):
    run = trainer(vlm, world_examples, tmp_path, answers=False)
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    unknown = 0
    for clip in group_by_clip(world_examples):
        for seed in range(8):
            sample = read_sample(clip, reader, CURRICULUM, np.random.default_rng(seed))
            run.objective.loss([sample])
            whole = frame_facts(*sample.shows[:2])
            firsts = np.cumsum([0, *(part.frames for part in sample.parts[:-1])])
            asked = torch.cat(run.objective.auxiliary.row_facts)
            assert (asked[firsts, 1] == IGNORED).all()
            unknown += int((whole[firsts, 1] != IGNORED).sum())
            asked[firsts, 1] = whole[firsts, 1]
            assert torch.equal(asked, whole)
    assert unknown > 3


def test_heads_read_frames_of_several_tiles(vlm, world_examples, tmp_path):
    """A frame of twice the model's edge is five images; the token after the last one ends it."""
    run = trainer(vlm, world_examples, tmp_path, answers=False)
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    tiled = replace(CURRICULUM, frames=4, resolutions=(2 * vlm.geometry.image_size,))
    sample = read_sample(group_by_clip(world_examples)[0], reader, tiled, None)
    frames = sum(part.frames for part in sample.parts)
    assert sum(part.count for part in sample.parts) == 5 * frames
    assert sum(int((part.ends != NO_END).sum()) for part in sample.parts) == frames
    run.objective.loss([sample]).backward()
    assert len(torch.cat(run.objective.auxiliary.row_facts)) == frames
    assert all(heads.any() for heads in run.objective.auxiliary.heads.grad)


def test_an_interrupted_run_resumes_exactly(vlm, world_examples, tmp_path):
    list(trainer(vlm, world_examples, tmp_path / "whole").run())
    run = trainer(vlm, world_examples, tmp_path / "parts")
    for _ in range(2):
        run._train_step(run.samples.batch(number) for number in range(run.step, 99))
        run.step += 1
    save_state(run.parts, run.step, tmp_path / "parts" / STATE)
    list(trainer(vlm, world_examples, tmp_path / "parts").run())
    one, other = (torch.load(tmp_path / place / STATE, weights_only=True) for place in ("whole", "parts"))
    assert one["step"] == other["step"] == 4
    assert one["heads"]["0"].abs().max() > 0
    for part in ("hypernetwork", "heads", "when", "edges"):
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items())


def test_heads_are_loaded_from_another_run(vlm, world_examples, tmp_path):
    list(trainer(vlm, world_examples, tmp_path / "one").run())
    heads = torch.load(tmp_path / "one" / STATE, weights_only=True)["heads"]
    run = trainer(vlm, world_examples, tmp_path / "other", taught=str(tmp_path / "one"))
    assert heads["0"].any() and torch.equal(run.objective.auxiliary.heads, heads["0"])


def test_heads_that_the_other_run_lacks_are_new(vlm, world_examples, tmp_path):
    (tmp_path / "one").mkdir()
    heads = trainer(vlm, world_examples, tmp_path / "none").objective.auxiliary.heads + 1
    torch.save({"heads": {"0": heads}}, tmp_path / "one" / STATE)
    reading = trainer(vlm, world_examples, tmp_path / "other", taught=str(tmp_path / "one")).objective.auxiliary
    assert torch.equal(reading.heads, heads) and not reading.when.any()


def run_program(monkeypatch, *words):
    """`python -m v2l.tiny.recipe.reading_stage WORDS...` in this process, which has imported torch."""
    monkeypatch.setattr(sys, "argv", ["reading_stage", *map(str, words)])
    with errors_in_one_line():
        main()


def test_options_become_the_settings_of_the_run(tmp_path, monkeypatch, capsys):
    """Each numeric option gets a different value, and all are found in training.json."""
    manifest = write_dataset(tmp_path, "train", 2, varied, "train-varied")
    model = find_model("tiny").path
    with pytest.raises(SystemExit, match="0"):
        run_program(monkeypatch, "--help")
    names = re.findall(r"\[--(\S+-weight|seed|learning-rate) ", capsys.readouterr().out)
    assert len(names) > 8
    values = {name: number / 1000 if name != "seed" else number for number, name in enumerate(names, 3)}
    options = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    files = [manifest, manifest, model, model / FILE_NAME, tmp_path / "run"]
    run_program(monkeypatch, *files, "--answers", "--steps", "1", "--segments", "1", *options)
    kept = json.loads((tmp_path / "run" / "training.json").read_text())
    assert {name: kept[name.replace("-", "_")] for name in names} == values
    assert (kept["steps"], kept["answers"], kept["curriculum"]["marks_end"]) == (1, True, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--bind-weight 1", "--bind-weight and --found-weight concern the words of questions and need --answers"),
        ("--found-weight 1", "--bind-weight and --found-weight concern the words of questions and need --answers"),
        ("--resolution 64,7", "--resolution '64,7': give numbers of at least 8"),
    ],
)
def test_invalid_options_are_refused(options, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run_program(monkeypatch, *"abcde", *options.split())
    code = caught.value.code  # Python prints a text and exits with 1
    assert message in (code if code != 2 else capsys.readouterr().err.splitlines()[-1])
