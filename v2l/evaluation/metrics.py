"""Score answers, and compare two conditions for non-inferiority and equivalence.

Scores follow SQuAD and Google's rouge-score (the extra `eval`). The paper's tables use token F1 with a margin of 0.05
and judge scores, 0 to 1, with a margin of 0.15 (section 5). The paper states neither the normalisation nor the number
of resamples; the ones here are a choice. The judge is in judge.py.

Intervals and p come from one Bayesian bootstrap over clips (Rubin, 1981) with one more clip added, the most
unfavourable one possible: Gaffke's bound (2005) for the mean of bounded values. With one yes-or-no question per clip it
is the exact interval of Clopper and Pearson. A plain bootstrap of answers that rarely differ has intervals that are too
short, of length 0 if no answer differs. Error rates and power: docs/benchmarks.md, measured by
tests/evaluation/test_error_rates.py.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from v2l.errors import V2LError, missing_extra

RESAMPLES = 10_000
CONFIDENCE = 0.95
_BATCH = 200
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Normalise as SQuAD does: lower case, no punctuation, no articles, split at white space."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def exact_match(answer: str, target: str) -> float:
    """Return 1.0 if both normalise to the same words, else 0.0."""
    return float(words(answer) == words(target))


def token_f1(answer: str, target: str) -> float:
    """Return SQuAD's F1 of the two bags of words, 0 to 1. Two empty texts score 1."""
    predicted, expected = Counter(words(answer)), Counter(words(target))
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * (predicted & expected).total() / (predicted.total() + expected.total())


def rouge_l(answer: str, target: str) -> float:
    """Return rouge-score's F-measure of the longest common subsequence, 0 to 1, without stemming."""
    return _rouge_scorer().score(target, answer)["rougeL"].fmeasure


METRICS = {"exact": exact_match, "f1": token_f1, "rouge_l": rouge_l}
MARGINS = {**dict.fromkeys(METRICS, 0.05), "judge": 0.15}
"""The paper's margins by metric. Metrics that the paper does not use have the margin of token F1."""


@dataclass(frozen=True)
class Comparison:
    """The scores of one condition minus those of another, macro-averaged over kinds.

    difference, low, high: mean and its 95% interval, clustered by clip
    margin: threshold for the interval
    tost_p: the larger p of the two one-sided tests against that margin, from the draws of the interval: below 0.025 if
        the interval is inside the margin
    least_margin: the smallest margin within which this number of clips is equivalent if no answer differs
    stricter: the same difference with other margins
    """

    difference: float
    low: float
    high: float
    margin: float
    tost_p: float
    least_margin: float
    stricter: tuple[Comparison, ...] = ()

    @property
    def non_inferior(self) -> bool:
        """Whether the interval is above -margin."""
        return self.low > -self.margin

    @property
    def equivalent(self) -> bool:
        """Whether the interval is inside the margin."""
        return self.non_inferior and self.high < self.margin

    @property
    def too_few(self) -> bool:
        """Whether the clips are too few for this margin. Never so for a difference that is outside the margin."""
        outside = self.high < -self.margin or self.low > self.margin
        return self.margin <= self.least_margin and not outside

    @property
    def at_margins(self) -> tuple[Comparison, ...]:
        """This comparison, followed by those with stricter margins."""
        return self, *self.stricter

    def record(self) -> dict[str, Any]:
        """As JSON, including the verdicts."""
        verdicts = {"non_inferior": self.non_inferior, "equivalent": self.equivalent, "too_few": self.too_few}
        return {**asdict(self), **verdicts, "stricter": [each.record() for each in self.stricter]}


def compare(
    scores: Sequence[float],
    others: Sequence[float],
    kinds: Sequence[str],
    clips: Sequence[int],
    margin: float = 0.05,
    seed: int = 0,
    stricter: Sequence[float] = (),
) -> Comparison:
    """Compare two conditions on the same questions, paired by question.

    scores, others: one per question, 0 to 1; kinds, clips: the kind and the clip of each question. Kinds have equal
    weight. Clips are drawn, not questions, because the scores of one clip are correlated. stricter: additional
    margins for the same difference
    Raises V2LError if there are fewer than two clips.
    """
    # Sum the differences and count the questions by clip and kind
    differences = np.asarray(scores, float) - np.asarray(others, float)
    kind_names, kind_of = np.unique(np.asarray(kinds), return_inverse=True)
    clip_names, clip_of = np.unique(np.asarray(clips), return_inverse=True)
    if len(clip_names) < 2:
        raise V2LError("an interval needs questions about at least two clips; add examples to the manifest")
    sums = np.zeros((len(clip_names), len(kind_names)))
    counts = np.zeros_like(sums)
    np.add.at(sums, (clip_of, kind_of), differences)
    np.add.at(counts, (clip_of, kind_of), 1)

    # Draw the mean over the clips and the weight of one more clip, on which the conditions differ by 1
    drawn, weight = _draw(sums, counts, seed)
    lows, highs = drawn - weight, drawn + weight
    tail = (1 - CONFIDENCE) / 2
    low, high = float(np.quantile(lows, tail)), float(np.quantile(highs, 1 - tail))
    least_margin = float(np.quantile(weight, 1 - tail))

    # Test the difference at each margin
    difference = float((sums.sum(0) / counts.sum(0)).mean())

    def at(margin: float) -> Comparison:
        p = max(np.mean(lows <= -margin), np.mean(highs >= margin))
        return Comparison(difference, low, high, margin, float(p), least_margin)

    return replace(at(margin), stricter=tuple(at(each) for each in stricter))


def _draw(sums: np.ndarray, counts: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return macro-averages with random weights for the clips and the part of one more clip in them, (RESAMPLES,) each.

    sums, counts: (clips, kinds). The added clip has as many questions of each kind as a clip with that kind has on
    average; the first part assumes no difference on them.
    """
    added = counts.sum(0) / (counts > 0).sum(0)
    random = np.random.default_rng(seed)
    drawn, weight = [], []
    for start in range(0, RESAMPLES, _BATCH):
        weights = random.standard_exponential((min(_BATCH, RESAMPLES - start), len(counts)))
        own = random.standard_exponential((len(weights), 1)) * added
        total = weights @ counts + own
        drawn.append((weights @ sums / total).mean(1))
        weight.append((own / total).mean(1))
    return np.concatenate(drawn), np.concatenate(weight)


def check_extras() -> None:
    """Raises V2LError if a package of the extra `eval` is missing."""
    _rouge_scorer()


@cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing_extra("evaluation", "rouge-score", "eval") from error
    return RougeScorer(["rougeL"], use_stemmer=False)
