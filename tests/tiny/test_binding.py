"""The binding losses: which facts questions ask for, at which tokens, which ranks know them, and the loss itself."""

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
    EPSILON,
    FIRST,
    FIRST_LAYER,
    LAST,
    MINUTES,
    TIME,
    Binding,
    TimeKeys,
)
from v2l.tiny.recipe.language_stage import REFERRING
from v2l.tiny.recipe.reading_stage import FRAME_FACTS, known_facts
from v2l.tiny.world.scene import WORDS
from v2l.training.common import save_state
from v2l.training.data import SampleReader, SamplingConfig, read_sample
from v2l.training.packing import IGNORED, pack_questions
from v2l.training.trainer import STATE

ONE, OTHER, THIRD = WORDS[3], WORDS[8], WORDS[1]


@pytest.fixture(scope="module")
def vlm():
    """The embedded model, whose tokenizer has the world's words."""
    return v2l.load_vlm("tiny")


@pytest.fixture(scope="module")
def samples(world_examples, vlm):
    """Samples of every clip: whole, in windows and composed."""
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    clips = group_by_clip(world_examples)
    return [read_sample(clip, reader, CURRICULUM, np.random.default_rng(seed)) for clip in clips for seed in range(8)]


@pytest.fixture(scope="module")
def binding(vlm):
    return Binding(vlm.tokenizer, 16)


def seconds_of(part):
    return [second for second in part.ends.tolist() if second >= 0]


def mentions(binding, vlm, *questions):
    """The text of the tokens at which each fact is named."""
    sequence = pack_questions("\0\nAssistant:", questions, vlm.tokenizer)
    ids = sequence.ids[sequence.group > 0]
    return {fact: vlm.tokenizer.decode(ids[start:end].tolist()) for start, end, fact in binding.mentions(sequence)}


def test_a_word_is_asked_for_at_the_word_named_before_it(binding, vlm):
    found = mentions(
        binding, vlm, (f"what comes after {ONE}?", OTHER), ("read it.", f"{THIRD} then {ONE} then {OTHER}")
    )
    assert found == {(3, 8): f" {ONE}", (1, 3): f" {THIRD}"}


def test_a_time_is_named_until_the_answer(binding, vlm):
    found = mentions(binding, vlm, ("what is there at 01:07?", ONE), ("at 00:03, where?", f"left {OTHER}"))
    assert found == {(67,): "07?\nAssistant:", (3,): "03, where?\nAssistant:"}


def test_what_a_question_calls_first_or_last_is_named_until_the_answer(binding, vlm):
    asked = ("tell me the last word.", ONE), ("where is it at first?", "left"), ("read it.", f"first {ONE}")
    found = mentions(binding, vlm, *asked)
    assert found == {LAST: " last word.\nAssistant:", FIRST: " first?\nAssistant:"}


def test_a_rank_knows_the_frame_it_reads(samples, binding):
    modes = set()
    for sample in samples:
        if sum(part.frames for part in sample.parts) > 16:
            continue
        frames, number = known_facts(sample), 0
        knowing = binding.ranks(sample, frames)
        modes.add((sample.composed, len(sample.parts) > 1))
        for part, shown in enumerate(frames):
            for second, (word, before, *_) in zip(seconds_of(sample.parts[part]), shown.tolist(), strict=True):
                rank = 16 * part + second if sample.composed else second
                assert knowing[second,] == [rank]
                if before != IGNORED:
                    assert rank in knowing[before, word]
                    number += 1
        assert number == sum(len(ranks) for fact, ranks in knowing.items() if len(fact) == 2)
    assert modes == {(False, False), (False, True), (True, True)}


def test_a_rank_that_reads_two_frames_knows_no_fact(world_examples, vlm):
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    curriculum = SamplingConfig(frames=12, windows=1, segments=1, denser=1)
    for clip in group_by_clip(world_examples):
        sample = read_sample(clip, reader, curriculum, None)
        seconds = seconds_of(sample.parts[0])
        knowing = Binding(vlm.tokenizer, 3).ranks(sample, known_facts(sample))
        alone = [one for one in seconds if sum(one % 3 == other % 3 for other in seconds) == 1]
        assert [fact for fact in knowing if len(fact) == 1] == [(second,) for second in alone]
        assert len(alone) < len(seconds)


def test_the_rank_that_reads_the_last_frame_knows_the_end_even_if_it_reads_others(samples, vlm):
    """One of three ranks in joint windows, one of the last part's ranks in a composed sample."""
    narrow, composed = Binding(vlm.tokenizer, 3), set()
    for sample in samples:
        last = seconds_of(sample.parts[-1])[-1]
        asks = dataclasses.replace(
            sample, sequence=pack_questions("\0\nAssistant:", [("what is last?", ONE)], vlm.tokenizer)
        )
        ((*_, fact, ranks),) = narrow.queries(asks, known_facts(sample))[EDGE]
        before = 3 * (len(sample.parts) - 1) if sample.composed else 0
        assert (fact, ranks) == ((last,), [before + last % 3])
        composed.add(sample.composed)
    assert composed == {False, True}


def test_no_rank_of_a_clip_cut_from_a_video_knows_the_videos_ends(samples, binding, vlm):
    ends = [("what is last?", ONE), ("what is first?", ONE)]
    for edges, asked in (((True, True), 2), ((True, False), 1), ((False, False), 0)):
        sample = dataclasses.replace(
            samples[0], edges=edges, sequence=pack_questions("\0\nAssistant:", ends, vlm.tokenizer)
        )
        assert len(binding.queries(sample, known_facts(sample))[EDGE]) == asked


def test_times_words_and_ends_are_queries_of_different_kinds(binding, vlm, samples):
    sample = next(each for each in samples if len(each.parts) == 1 and 3 <= each.parts[0].frames <= 16)
    begin = sample.parts[0].ends[sample.parts[0].ends >= 0][:3].tolist()
    known = [[3, IGNORED, 5, 1, 2], [8, 3, 0, 1, 2], *[[1, IGNORED, 0, 1, 2]] * (sample.parts[0].frames - 2)]
    known = torch.tensor(known)
    known[2, 1] = 8
    of_words = (f"what comes after {ONE}?", OTHER), ("read it.", f"{ONE} then {OTHER}"), (f"before {THIRD}?", OTHER)
    others = (f"at 00:{begin[0]:02d}?", ONE), ("which is last?", THIRD)
    sequence = pack_questions("\0\nAssistant:", (*of_words, *others), vlm.tokenizer)
    asked = binding.queries(dataclasses.replace(sample, sequence=sequence), [known])
    ranks = {kind: [ranks for *_, ranks in spans] for kind, spans in asked.items()}
    last = int(sample.parts[0].ends.max())
    assert ranks == {AFTER: [[begin[1]]] * 2, BEFORE: [[begin[2]]], TIME: [[begin[0]]], EDGE: [[last]]}
    texts = [vlm.tokenizer.decode([token]) for token in sequence.ids[sequence.group > 0].tolist()]
    at_time, after, before, at_last = (
        [(text, *found) for text, found in zip(texts, targets, strict=True) if any(label != IGNORED for label in found)]
        for targets in binding.targets(dataclasses.replace(sample, sequence=sequence), [known]).tolist()
    )
    alone = 8, *[IGNORED] * 4
    assert at_time == [(f"{begin[0]:02d}", 3, IGNORED, 5, 1, 2)]
    assert at_last == [(" last", 1, IGNORED, 0, 1, 2)]
    assert (after, before) == ([(f" {ONE}", *alone)] * 2, [(f" {THIRD}", *alone)])


@pytest.mark.parametrize("third", [AFTER, EDGE])
@pytest.mark.parametrize("composed", [False, True])
def test_the_loss_is_the_share_of_the_other_ranks(samples, binding, composed, third):
    pairs = ((each, binding.queries(each, known_facts(each))) for each in samples if each.composed is composed)
    sample, asked = next((each, asked) for each, asked in pairs if asked.keys() >= {TIME, BEFORE, third})
    frames = known_facts(sample)
    count = 16 * len(sample.parts) if composed else 16
    tokens = int((sample.sequence.group > 0).sum())
    even = torch.ones(REFERRING + 2, tokens, count + 16)  # the learned bias's ranks are active, too, and do not count
    shares = {kind: np.array([len(ranks) / count for *_, ranks in spans]) for kind, spans in asked.items()}
    expected = -sum(np.mean(np.log(shares[kind] + EPSILON)) for kind in asked if kind != BEFORE)
    expected -= 4 * np.mean(np.log((1 - np.sqrt(shares[BEFORE])) / 2 + EPSILON))
    assert float(binding.loss([sample], [frames], even)) == pytest.approx(expected, rel=1e-4)
    for signs in ((1, 1), (-1, 1)):  # of the first layer and of the others
        right, wrong = even.clone(), even.clone()
        for activations, before in ((right, -2), (wrong, 2)):
            activations[FIRST_LAYER:REFERRING] = 0
            for kind in (BEFORE, AFTER, TIME, EDGE):  # a time ends later than a word that it comes with
                for start, end, _, ranks in asked[kind]:
                    activations[FIRST_LAYER:REFERRING, start:end, ranks] = before if kind == BEFORE else 2
            activations[FIRST_LAYER] *= signs[0]
        assert float(binding.loss([sample], [frames], right)) < 0.5 * expected
        assert float(binding.loss([sample], [frames], wrong)) > 4
    assert float(binding.loss([sample] * 2, [frames] * 2, torch.cat([even, even], 1))) == pytest.approx(2 * expected)


def test_a_model_of_another_world_is_refused(model_folder):
    with pytest.raises(V2LError, match=r"writes ' \w+' in \d tokens"):
        Binding(v2l.load_vlm(model_folder).tokenizer, 16)


def test_a_found_fact_is_represented_as_in_the_teacher(vlm, world_examples, samples, tmp_path):
    """The head gets gradients from the teacher's states alone, and the student's states at the words that ask."""
    reading = trainer(vlm, world_examples, tmp_path, found_weight=1.0, hidden_weight=1.0).objective.auxiliary
    samples = samples[1::8]  # one of each clip
    reading.facts = [known_facts(sample) for sample in samples]
    targets = torch.cat([reading.binding.targets(*pair) for pair in zip(samples, reading.facts, strict=True)], dim=1)
    asks = (targets != IGNORED).any(2)
    assert asks.any(1).all()
    width = reading.found.in_features
    states = F.rms_norm(torch.randn(2, targets.shape[1], width), (width,)).requires_grad_()
    reading.teacher_loss(samples, torch.arange(targets.shape[1]), [tuple(states)] * vlm.num_layers).backward()
    own, its = states.grad.abs().sum(-1) > 0
    assert torch.equal(own, asks.any(0)) and torch.equal(its, asks.any(0))
    sizes, teacher, learned = list(FRAME_FACTS.values()), states[1].detach(), 0.0
    for kind, columns in ((TIME, (0, 2, 3, 4)), (AFTER, (0,)), (BEFORE, (0,)), (EDGE, (0, 2, 3, 4))):
        logits = reading.found(teacher[asks[kind]]).split(sizes, dim=1)
        learned += sum(F.cross_entropy(logits[column], targets[kind, asks[kind], column]) for column in columns) / len(
            columns
        )
    learned = len(samples) * learned
    assert torch.allclose(reading.found.weight.grad, torch.autograd.grad(learned, reading.found.weight)[0], atol=1e-5)
    assert reading.modules["found"] is reading.found


def test_the_head_of_found_facts_is_loaded_from_another_run(vlm, world_examples, tmp_path):
    one = trainer(vlm, world_examples, tmp_path / "one", found_weight=1.0)
    one.objective.auxiliary.found.weight.data += 1
    save_state(one.parts, 0, tmp_path / "one" / STATE)
    other = trainer(vlm, world_examples, tmp_path / "other", found_weight=1.0, taught=str(tmp_path / "one"))
    assert torch.equal(other.objective.auxiliary.found.weight, one.objective.auxiliary.found.weight)
    assert "found" not in trainer(vlm, world_examples, tmp_path / "third", taught=str(tmp_path / "one")).parts


def test_ranks_learn_to_be_active_where_their_facts_are_named(vlm, world_examples, samples, tmp_path):
    objective = trainer(
        vlm, world_examples, tmp_path, bind_weight=5.0, hypernetwork=v2l.load_hypernetwork("tiny")
    ).objective
    binding = objective.auxiliary.binding
    samples = samples[1::8][:3]  # one of each of three clips
    losses, measure = [], binding.loss

    def measured(*given):
        losses.append(measure(*given))
        return losses[-1]

    binding.loss = measured
    optimiser = torch.optim.Adam(objective.hypernetwork.parameters(), 1e-3)
    for _ in range(8):
        optimiser.zero_grad()
        objective.loss(samples).backward()
        optimiser.step()
    assert 0 < losses[-1] < 0.8 * losses[0]


@pytest.fixture(scope="module")
def keys(vlm, binding):
    return TimeKeys(vlm, binding)


def rows_active_at(keys, seconds):
    """The rows of A in each layer, (N, d_in), that a ridge regression fits to the keys of these seconds."""
    rows = [None] * FIRST_LAYER
    for layer in keys.keys:
        near = layer[:, :64].flatten(0, 1)
        spread = near.T @ near
        ridge = torch.eye(len(spread)) * 0.01 * spread.diagonal().mean()
        rows.append(torch.linalg.solve(spread + ridge, layer[:, seconds].mean(0).T).T)
    return rows


def test_a_row_active_at_its_own_time_has_a_low_loss(keys):
    seconds = torch.arange(64)
    own = keys.loss(rows_active_at(keys, seconds), seconds)
    mixed_up = keys.loss(rows_active_at(keys, (seconds + 16) % 64), seconds)
    assert keys.keys.shape[:3] == (REFERRING - FIRST_LAYER, 2, 60 * MINUTES)
    assert (own < mixed_up - 1).all() and own.mean() < 3
    # a row equally active everywhere has an equal share of each time of a minute and of that second in all minutes
    everywhere = [None] * FIRST_LAYER + [layer.mean((0, 1))[None] for layer in keys.keys]
    alike = keys.loss([row if row is None else row.expand(64, -1) for row in everywhere], seconds)
    assert alike.mean().item() == pytest.approx(np.log(60 + MINUTES - 1), abs=0.5)


def test_the_norm_of_a_row_does_not_matter(keys):
    seconds = torch.arange(0, 600, 7)
    rows = rows_active_at(keys, seconds)
    larger = [None if row is None else 100 * row for row in rows]
    assert torch.allclose(keys.loss(rows, seconds), keys.loss(larger, seconds), rtol=1e-4)


def test_ranks_learn_to_be_active_at_their_own_time_alone(vlm, world_examples, tmp_path):
    """Without questions, by `--key-weight` alone."""
    weights = {"steps": 30, "answers": False, "reading_weight": 0.0, "key_weight": 1.0}
    first, *_, last = trainer(vlm, world_examples, tmp_path, **weights).run()
    assert last.loss < first.loss - 0.3
