"""How often `compare` calls conditions equivalent: error rates at the margin, and power where there is no difference.

Prints the table of docs/benchmarks.md: `pytest -m slow -s tests/evaluation/test_error_rates.py` (10 minutes).
"""

from dataclasses import dataclass

import numpy as np
import pytest

from v2l.evaluation import metrics

TRIALS = 1000
SIZES = (20, 60, 100, 200, 300, 1000)
MARGINS = (0.02, 0.05)


@dataclass(frozen=True)
class World:
    """Answers that are right or wrong.

    kinds: number of questions of a clip, each of another kind; missing: the share of them that a clip lacks
    together: correlation of the answers of a clip; at 1, all questions of a clip have the same result
    both: the share of questions that only one condition answers, for each condition, beside the difference
    weak: all of the difference is in one kind
    """

    name: str
    kinds: int = 1
    together: float = 0.0
    both: float = 0.0
    missing: float = 0.0
    weak: bool = False

    def draw(self, clips: int, difference: float, random: np.random.Generator):
        """Draw a difference of scores for each question; return it with the kinds and clips of the questions."""
        losses = np.full(self.kinds, self.both + difference)
        if self.weak:
            losses = np.r_[self.both + difference * self.kinds, np.full(self.kinds - 1, self.both)]
        # A uniform value per question, equal within a clip with probability `together`
        own, shared = random.random((clips, self.kinds)), random.random((clips, 1))
        value = np.where(random.random((clips, 1)) < self.together, shared, own)
        scores = np.where(value < losses, -1.0, np.where(value > 1 - self.both, 1.0, 0.0))
        kept = random.random(scores.shape) >= self.missing
        kept[0] = True
        clip, kind = np.nonzero(kept)
        return random.choice([-1, 1]) * scores[kept], kind, clip


WORLDS = (
    World("one question a clip, the adapter only loses"),
    World("one question a clip, 0.97 in context", both=0.03),
    World("four questions, independent", kinds=4, both=0.03),
    World("four questions, correlated", kinds=4, together=0.3, both=0.01),
    World("four questions, all right or all wrong", kinds=4, together=1.0),
    World("eleven kinds, some rare, one weak", kinds=11, together=0.1, missing=0.5, weak=True),
)
EQUAL = (
    World("no answer differs", kinds=4),
    World("1% each way", kinds=4, together=0.3, both=0.01),
    World("3% each way", kinds=4, together=0.3, both=0.03),
)


def equivalent(world: World, clips: int, difference: float, margins, seed: int) -> np.ndarray:
    random = np.random.default_rng((seed, clips))
    scores, kinds, of = world.draw(clips, difference, random)
    compared = metrics.compare(scores, np.zeros(len(scores)), kinds, of, margins[0], seed, margins[1:])
    return np.array([each.equivalent for each in compared.at_margins])


@pytest.mark.slow
def test_conditions_that_differ_by_the_margin_are_rarely_called_equivalent(monkeypatch, capsys):
    monkeypatch.setattr(metrics, "RESAMPLES", 1000)
    rows, worst = [], 0.0
    for clips in SIZES:
        errors = [
            max(np.mean([equivalent(world, clips, m, [m], seed) for seed in range(TRIALS)]) for world in WORLDS)
            for m in MARGINS
        ]
        power = [
            np.mean([equivalent(world, clips, 0.0, MARGINS, seed) for seed in range(TRIALS)], axis=0) for world in EQUAL
        ]
        worst = max(worst, *errors)
        for place, margin in enumerate(MARGINS):
            shown = " | ".join(f"{each[place]:.2f}" for each in power)
            rows.append(f"| {clips:,} | {margin} | {errors[place]:.1%} | {shown} |")
    with capsys.disabled():
        names = " | ".join(each.name for each in EQUAL)
        print(f"\n| clips | margin | error, worst of {len(WORLDS)} | power: {names} |")
        print("|---" * 6 + "|")
        print("\n".join(rows))
    assert worst <= 0.04
