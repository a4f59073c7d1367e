"""Ranks that are drawn to what questions name: which, where, and how far they are from it."""

import dataclasses

import numpy as np
import pytest
import torch
from test_reading_stage import CURRICULUM, trainer
from torch.nn import functional as F

import v2l
from v2l.errors import V2LError
from v2l.io.manifest import group_by_clip
from v2l.tiny.recipe.binding import (
    AFTER,
    BEFORE,
    EDGE,
    FAINT,
    FIRST,
    FIRST_LAYER,
    LAST,
    MINUTES,
    TIME,
    Binding,
    TimeKeys,
)
from v2l.tiny.recipe.language_stage import REFERRING
from v2l.tiny.recipe.reading_stage import ASKED, known_of_frames
from v2l.tiny.world.scene import WORDS
from v2l.training.common import keep
from v2l.training.data import SampleReader, SamplingConfig, read_sample
from v2l.training.packing import IGNORED, pack_questions
from v2l.training.trainer import STATE

ONE, OTHER, THIRD = WORDS[3], WORDS[8], WORDS[1]


@pytest.fixture(scope="module")
def vlm():
    """The embedded model, whose tokenizer knows the world's words."""
    return v2l.load_vlm("tiny")


@pytest.fixture(scope="module")
def samples(world_examples, vlm):
    """One clip after the other: whole, in windows and composed."""
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    clips = group_by_clip(world_examples)
    return [read_sample(clip, reader, CURRICULUM, np.random.default_rng(seed)) for clip in clips for seed in range(8)]


@pytest.fixture(scope="module")
def binding(vlm):
    return Binding(vlm.tokenizer, 16)


def seconds_of(part):
    return [second for second in part.ends.tolist() if second >= 0]


def named(binding, vlm, *questions):
    """What each fact's tokens say."""
    sequence = pack_questions("\0\nAssistant:", questions, vlm.tokenizer)
    ids = sequence.ids[sequence.group > 0]
    return {fact: vlm.tokenizer.decode(ids[start:end].tolist()) for start, end, fact in binding.named(sequence)}


def test_of_two_words_the_first_is_where_the_other_is_asked_for(binding, vlm):
    found = named(binding, vlm, (f"what comes after {ONE}?", OTHER), ("read it.", f"{THIRD} then {ONE} then {OTHER}"))
    assert found == {(3, 8): f" {ONE}", (1, 3): f" {THIRD}"}


def test_a_time_is_named_until_the_answer(binding, vlm):
    found = named(binding, vlm, ("what is there at 01:07?", ONE), ("at 00:03, where?", f"left {OTHER}"))
    assert found == {(67,): "07?\nAssistant:", (3,): "03, where?\nAssistant:"}


def test_what_a_question_calls_first_or_last_is_named_until_the_answer(binding, vlm):
    asked = ("tell me the last word.", ONE), ("where is it at first?", "left"), ("read it.", f"first {ONE}")
    found = named(binding, vlm, *asked)
    assert found == {LAST: " last word.\nAssistant:", FIRST: " first?\nAssistant:"}


def test_a_rank_knows_the_frame_it_reads(samples, binding):
    ways = set()
    for sample in samples:
        if sum(part.frames for part in sample.parts) > 16:
            continue
        frames, number = known_of_frames(sample), 0
        knowing = binding.ranks(sample, frames)
        ways.add((sample.composed, len(sample.parts) > 1))
        for part, shown in enumerate(frames):
            for second, (word, before, *_) in zip(seconds_of(sample.parts[part]), shown.tolist(), strict=True):
                rank = 16 * part + second if sample.composed else second
                assert knowing[second,] == [rank]
                if before != IGNORED:
                    assert rank in knowing[before, word]
                    number += 1
        assert number == sum(len(ranks) for fact, ranks in knowing.items() if len(fact) == 2)
    assert ways == {(False, False), (False, True), (True, True)}


def test_of_a_rank_that_reads_two_frames_nothing_is_asked(world_examples, vlm):
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    curriculum = SamplingConfig(frames=12, windows=1, segments=1, denser=1)
    for clip in group_by_clip(world_examples):
        sample = read_sample(clip, reader, curriculum, None)
        seconds = seconds_of(sample.parts[0])
        knowing = Binding(vlm.tokenizer, 3).ranks(sample, known_of_frames(sample))
        alone = [one for one in seconds if sum(one % 3 == other % 3 for other in seconds) == 1]
        assert [fact for fact in knowing if len(fact) == 1] == [(second,) for second in alone]
        assert len(alone) < len(seconds)


def test_the_end_is_the_business_of_the_rank_that_reads_the_last_frame_whatever_else_it_reads(samples, vlm):
    """In joint windows one of three ranks, composed one of the last part's."""
    narrow, composed = Binding(vlm.tokenizer, 3), set()
    for sample in samples:
        last = seconds_of(sample.parts[-1])[-1]
        asks = dataclasses.replace(
            sample, sequence=pack_questions("\0\nAssistant:", [("what is last?", ONE)], vlm.tokenizer)
        )
        ((*_, fact, ranks),) = narrow.asked(asks, known_of_frames(sample))[EDGE]
        before = 3 * (len(sample.parts) - 1) if sample.composed else 0
        assert (fact, ranks) == ((last,), [before + last % 3])
        composed.add(sample.composed)
    assert composed == {False, True}


def test_of_a_clip_cut_from_a_video_no_rank_knows_the_videos_ends(samples, binding, vlm):
    ends = [("what is last?", ONE), ("what is first?", ONE)]
    for edges, asked in (((True, True), 2), ((True, False), 1), ((False, False), 0)):
        sample = dataclasses.replace(
            samples[0], edges=edges, sequence=pack_questions("\0\nAssistant:", ends, vlm.tokenizer)
        )
        assert len(binding.asked(sample, known_of_frames(sample))[EDGE]) == asked


def test_times_words_and_ends_are_asked_apart(binding, vlm, samples):
    sample = next(each for each in samples if len(each.parts) == 1 and 3 <= each.parts[0].frames <= 16)
    begin = sample.parts[0].ends[sample.parts[0].ends >= 0][:3].tolist()
    known = [[3, IGNORED, 5, 1, 2], [8, 3, 0, 1, 2], *[[1, IGNORED, 0, 1, 2]] * (sample.parts[0].frames - 2)]
    known = torch.tensor(known)
    known[2, 1] = 8
    of_words = (f"what comes after {ONE}?", OTHER), ("read it.", f"{ONE} then {OTHER}"), (f"before {THIRD}?", OTHER)
    others = (f"at 00:{begin[0]:02d}?", ONE), ("which is last?", THIRD)
    sequence = pack_questions("\0\nAssistant:", (*of_words, *others), vlm.tokenizer)
    asked = binding.asked(dataclasses.replace(sample, sequence=sequence), [known])
    ranks = {way: [ranks for *_, ranks in spans] for way, spans in asked.items()}
    last = int(sample.parts[0].ends.max())
    assert ranks == {AFTER: [[begin[1]]] * 2, BEFORE: [[begin[2]]], TIME: [[begin[0]]], EDGE: [[last]]}
    texts = [vlm.tokenizer.decode([token]) for token in sequence.ids[sequence.group > 0].tolist()]
    at_time, after, before, at_last = (
        [(text, *found) for text, found in zip(texts, told, strict=True) if any(label != IGNORED for label in found)]
        for told in binding.told(dataclasses.replace(sample, sequence=sequence), [known]).tolist()
    )
    alone = 8, *[IGNORED] * 4
    assert at_time == [(f"{begin[0]:02d}", 3, IGNORED, 5, 1, 2)]
    assert at_last == [(" last", 1, IGNORED, 0, 1, 2)]
    assert (after, before) == ([(f" {ONE}", *alone)] * 2, [(f" {THIRD}", *alone)])


@pytest.mark.parametrize("third", [AFTER, EDGE])
@pytest.mark.parametrize("composed", [False, True])
def test_what_is_lacked_is_what_others_fire(samples, binding, composed, third):
    ways = ((each, binding.asked(each, known_of_frames(each))) for each in samples if each.composed is composed)
    sample, asked = next((each, asked) for each, asked in ways if asked.keys() >= {TIME, BEFORE, third})
    frames = known_of_frames(sample)
    count = 16 * len(sample.parts) if composed else 16
    tokens = int((sample.sequence.group > 0).sum())
    even = torch.ones(REFERRING + 2, tokens, count + 16)  # the learned bias's ranks fire, too, and do not count
    shares = {way: np.array([len(ranks) / count for *_, ranks in spans]) for way, spans in asked.items()}
    expected = -sum(np.mean(np.log(shares[way] + FAINT)) for way in asked if way != BEFORE)
    expected -= 4 * np.mean(np.log((1 - np.sqrt(shares[BEFORE])) / 2 + FAINT))
    assert float(binding.lacked([sample], [frames], even)) == pytest.approx(expected, rel=1e-4)
    for signs in ((1, 1), (-1, 1)):  # of the first layer and of the others
        right, wrong = even.clone(), even.clone()
        for fired, before in ((right, -2), (wrong, 2)):
            fired[FIRST_LAYER:REFERRING] = 0
            for way in (BEFORE, AFTER, TIME, EDGE):  # a time ends later than a word that it comes with
                for start, end, _, ranks in asked[way]:
                    fired[FIRST_LAYER:REFERRING, start:end, ranks] = before if way == BEFORE else 2
            fired[FIRST_LAYER] *= signs[0]
        assert float(binding.lacked([sample], [frames], right)) < 0.5 * expected
        assert float(binding.lacked([sample], [frames], wrong)) > 4
    assert float(binding.lacked([sample] * 2, [frames] * 2, torch.cat([even, even], 1))) == pytest.approx(2 * expected)


def test_a_model_of_another_world_is_refused(model_folder):
    with pytest.raises(V2LError, match=r"writes ' \w+' in \d tokens"):
        Binding(v2l.load_vlm(model_folder).tokenizer, 16)


def test_what_a_word_finds_is_written_as_the_teacher_writes_it(vlm, world_examples, samples, tmp_path):
    """A head learns it from the teacher alone; the student learns it from the head, at the words that ask."""
    student = trainer(vlm, world_examples, tmp_path, found_weight=1.0, hidden_weight=1.0).objective
    samples = samples[1::8]  # of each clip one
    student.known = [known_of_frames(sample) for sample in samples]
    told = torch.cat([student.binding.told(*pair) for pair in zip(samples, student.known, strict=True)], dim=1)
    asks = (told != IGNORED).any(2)
    assert asks.any(1).all()
    width = student.found.in_features
    states = F.rms_norm(torch.randn(2, told.shape[1], width), (width,)).requires_grad_()
    student._beside_teacher(samples, torch.arange(told.shape[1]), [tuple(states)] * vlm.num_layers).backward()
    own, its = states.grad.abs().sum(-1) > 0
    assert torch.equal(own, asks.any(0)) and torch.equal(its, asks.any(0))
    sizes, teacher, learned = list(ASKED.values()), states[1].detach(), 0.0
    for way, columns in ((TIME, (0, 2, 3, 4)), (AFTER, (0,)), (BEFORE, (0,)), (EDGE, (0, 2, 3, 4))):
        said = student.found(teacher[asks[way]]).split(sizes, dim=1)
        learned += sum(F.cross_entropy(said[column], told[way, asks[way], column]) for column in columns) / len(columns)
    learned = len(samples) * learned
    assert torch.allclose(student.found.weight.grad, torch.autograd.grad(learned, student.found.weight)[0], atol=1e-5)
    assert student.learners["found"] is student.found


def test_what_finds_are_read_with_goes_on_from_another_run(vlm, world_examples, tmp_path):
    one = trainer(vlm, world_examples, tmp_path / "one", found_weight=1.0)
    one.student.found.weight.data += 1
    keep(one.parts, 0, tmp_path / "one" / STATE)
    other = trainer(vlm, world_examples, tmp_path / "other", found_weight=1.0, taught=str(tmp_path / "one"))
    assert torch.equal(other.student.found.weight, one.student.found.weight)
    assert "found" not in trainer(vlm, world_examples, tmp_path / "third", taught=str(tmp_path / "one")).parts


def test_ranks_learn_to_fire_where_their_facts_are_named(vlm, world_examples, samples, tmp_path):
    student = trainer(
        vlm, world_examples, tmp_path, bind_weight=5.0, hypernetwork=v2l.load_hypernetwork("tiny")
    ).objective
    samples = samples[1::8][:3]  # of three clips one each
    lacked, measure = [], student.binding.lacked

    def measured(*given):
        lacked.append(measure(*given))
        return lacked[-1]

    student.binding.lacked = measured
    optimiser = torch.optim.Adam(student.hypernetwork.parameters(), 1e-3)
    for _ in range(8):
        optimiser.zero_grad()
        student.loss(samples).backward()
        optimiser.step()
    assert 0 < lacked[-1] < 0.8 * lacked[0]


@pytest.fixture(scope="module")
def keys(vlm, binding):
    return TimeKeys(vlm, binding)


def rows_that_fire_at(keys, seconds):
    """Of each layer the rows of A, (N, d_in), that a ridge makes of the keys of these seconds."""
    rows = [None] * FIRST_LAYER
    for layer in keys.keys:
        near = layer[:, :64].flatten(0, 1)
        spread = near.T @ near
        ridge = torch.eye(len(spread)) * 0.01 * spread.diagonal().mean()
        rows.append(torch.linalg.solve(spread + ridge, layer[:, seconds].mean(0).T).T)
    return rows


def test_a_row_that_fires_at_its_own_time_lacks_little_of_it(keys):
    seconds = torch.arange(64)
    own = keys.missed(rows_that_fire_at(keys, seconds), seconds)
    mixed_up = keys.missed(rows_that_fire_at(keys, (seconds + 16) % 64), seconds)
    assert keys.keys.shape[:3] == (REFERRING - FIRST_LAYER, 2, 60 * MINUTES)
    assert (own < mixed_up - 1).all() and own.mean() < 3
    # what fires everywhere alike has one part of all the times of a minute and of that second in all minutes
    everywhere = [None] * FIRST_LAYER + [layer.mean((0, 1))[None] for layer in keys.keys]
    alike = keys.missed([row if row is None else row.expand(64, -1) for row in everywhere], seconds)
    assert alike.mean().item() == pytest.approx(np.log(60 + MINUTES - 1), abs=0.5)


def test_the_size_of_a_row_is_nothing_to_its_key(keys):
    seconds = torch.arange(0, 600, 7)
    rows = rows_that_fire_at(keys, seconds)
    larger = [None if row is None else 100 * row for row in rows]
    assert torch.allclose(keys.missed(rows, seconds), keys.missed(larger, seconds), rtol=1e-4)


def test_ranks_learn_to_fire_at_their_own_time_alone(vlm, world_examples, tmp_path):
    """Without an answer asked; `--key-weight` alone makes the difference."""
    weights = {"steps": 30, "answers": False, "reading_weight": 0.0, "key_weight": 1.0}
    first, *_, last = trainer(vlm, world_examples, tmp_path, **weights).run()
    assert last.loss < first.loss - 0.3
