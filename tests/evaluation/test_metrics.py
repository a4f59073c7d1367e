"""Scores of examples computed by hand, and intervals and tests of known cases."""

import numpy as np
import pytest

from v2l.errors import V2LError
from v2l.evaluation.metrics import compare, exact_match, rouge_l, token_f1


def test_exact_match_ignores_case_articles_and_punctuation():
    assert exact_match("The Cat!", "a cat") == 1.0
    assert exact_match("cat cat", "cat") == 0.0
    assert exact_match("", "") == 1.0


@pytest.mark.parametrize(
    ("answer", "target", "f1"),
    [
        ("a red circle", "the red circle", 1.0),
        ("red", "red circle", 2 / 3),
        ("red red", "red circle", 1 / 2),
        ("blue", "red", 0.0),
        ("", "red", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_token_f1(answer, target, f1):
    assert token_f1(answer, target) == pytest.approx(f1)


def test_rouge_l_is_the_longest_common_subsequence():
    assert rouge_l("a b c d", "a c e d") == pytest.approx(3 / 4)
    assert rouge_l("d c b a", "a b c d") == pytest.approx(1 / 4)


def questions(clips: int, each: int):
    kinds = ["colour" if place % 2 else "word" for place in range(each)] * clips
    return kinds, [clip for clip in range(clips) for _ in range(each)]


def test_equal_answers_are_equivalent():
    kinds, clips = questions(200, 4)
    same = compare([1.0] * 800, [1.0] * 800, kinds, clips, 0.05, stricter=[0.02])
    assert same.difference == 0.0
    assert same.equivalent and same.stricter[0].equivalent
    worse = compare([0.0] * 800, [1.0] * 800, kinds, clips)
    assert (worse.difference, worse.low, worse.tost_p) == (-1.0, -1.0, 1.0)
    assert not worse.non_inferior and not worse.too_few


@pytest.mark.parametrize(
    ("clips", "margin", "enough"),
    [(2, 0.5, False), (60, 0.05, False), (80, 0.05, True), (170, 0.02, False), (200, 0.02, True)],
)
def test_few_clips_are_not_equivalent_although_no_answer_differs(clips, margin, enough):
    kinds, of = questions(clips, 4)
    same = compare([1.0] * len(kinds), [1.0] * len(kinds), kinds, of, margin)
    assert (same.equivalent, same.too_few) == (enough, not enough)
    assert (same.tost_p < 0.025) == enough


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_few_clips_are_enough_for_a_difference_outside_of_the_margin(score):
    assert not compare([score] * 10, [1 - score] * 10, ["a"] * 10, range(10)).too_few


def test_a_kind_of_few_clips_is_as_uncertain_as_they_are():
    """The clip that is added has a whole question of every kind, not the small share that the average clip has."""
    rare, common = list(range(20)), list(range(200))
    alone = compare([1.0] * 20, [1.0] * 20, ["rare"] * 20, rare).least_margin
    kinds = ["rare"] * 20 + ["common"] * 200
    assert compare([1.0] * 220, [1.0] * 220, kinds, rare + common).least_margin > 0.45 * alone


@pytest.mark.parametrize(("lost", "low"), [(0, 0.0362), (5, 0.1128), (50, 0.6017)])
def test_one_question_per_clip_has_the_exact_interval_of_clopper_and_pearson(lost, low):
    compared = compare([0.0] * lost + [1.0] * (100 - lost), [1.0] * 100, ["a"] * 100, range(100))
    assert compared.low == pytest.approx(-low, abs=0.002)


def test_p_is_below_its_level_where_the_interval_is_inside_the_margin():
    random = np.random.default_rng(2)
    kinds, clips = questions(300, 2)
    verdicts = set()
    for lost in (0.0, 0.01, 0.02, 0.03, 0.05, 0.1):
        scores = (random.random(600) >= lost).astype(float)
        for each in compare(scores, np.ones(600), kinds, clips, 0.05, stricter=[0.03, 0.02]).at_margins:
            assert each.equivalent == (each.tost_p < 0.025)
            verdicts.add(each.equivalent)
    assert verdicts == {True, False}


def test_better_is_non_inferior_and_not_equivalent():
    kinds, clips = questions(20, 4)
    better = compare([1.0] * 80, [0.0] * 80, kinds, clips)
    assert better.non_inferior
    assert not better.equivalent
    assert (better.difference, better.high, better.tost_p) == (1.0, 1.0, 1.0)


def test_every_kind_counts_the_same():
    kinds = ["rare"] * 2 + ["common"] * 18
    clips = [n % 10 for n in range(20)]
    one_kind_lost = compare([0.0] * 2 + [1.0] * 18, [1.0] * 20, kinds, clips)
    assert one_kind_lost.difference == pytest.approx(-0.5)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Clips, not questions, vary: resampling questions instead would cover far less."""
    random = np.random.default_rng(0)
    kinds, clips = questions(40, 4)
    covered = 0
    for seed in range(60):
        effect = np.repeat(random.normal(0.1, 0.3, 40), 4)
        result = compare(effect, np.zeros(160), kinds, clips, seed=seed)
        covered += result.low <= 0.1 <= result.high
    assert 50 <= covered <= 60


def test_the_same_seed_gives_the_same_interval():
    random = np.random.default_rng(1)
    kinds, clips = questions(10, 4)
    scores = random.random(40)
    assert compare(scores, scores[::-1], kinds, clips) == compare(scores, scores[::-1], kinds, clips)


def test_one_clip_has_no_interval():
    with pytest.raises(V2LError, match="at least two clips"):
        compare([1.0, 0.0], [1.0, 1.0], ["a", "a"], [0, 0])
