"""Score answers, and compare two conditions for non-inferiority and equivalence.

Scores follow SQuAD and Google's rouge-score; intervals and tests are from scipy (the extra `eval`). The paper's tables
use token F1 with a margin of 0.05 and judge scores, 0 to 1, with a margin of 0.15 (section 5). The paper states neither
the normalisation nor the number of resamples; the ones here are a choice. The judge is in judge.py.
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

    difference, low, high: mean and its 95% bootstrap interval, resampled by clip
    margin: threshold for the interval
    tost_p: the larger p of the two one-sided t-tests over clips against that margin
    stricter: the same difference with other margins
    """

    difference: float
    low: float
    high: float
    margin: float
    tost_p: float
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
    def at_margins(self) -> tuple[Comparison, ...]:
        """This comparison, followed by those with stricter margins."""
        return self, *self.stricter

    def record(self) -> dict[str, Any]:
        """As JSON, including the verdicts."""
        verdicts = {"non_inferior": self.non_inferior, "equivalent": self.equivalent}
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
    weight. Clips are resampled, not questions, because the scores of one clip are correlated. stricter: additional
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

    def macro(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        chosen = np.moveaxis(np.asarray(chosen), axis, -1)  # (..., clips)
        total = counts[chosen].sum(-2)
        means = np.divide(sums[chosen].sum(-2), total, out=np.full(total.shape, np.nan), where=total > 0)
        return np.nanmean(means, axis=-1)  # without kinds that are missing from the resample

    # Bootstrap the macro-average over clips
    stats = _scipy_stats()
    interval = stats.bootstrap(
        (np.arange(len(clip_names)),),
        macro,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        batch=200,
        rng=np.random.default_rng(seed),
    ).confidence_interval

    # Test the difference at each margin
    difference, by_clip = float(macro(np.arange(len(clip_names)))), sums.sum(1) / counts.sum(1)
    low, high = float(interval.low), float(interval.high)
    first, *further = (
        Comparison(difference, low, high, each, _two_one_sided(by_clip, each, stats)) for each in (margin, *stricter)
    )
    return replace(first, stricter=tuple(further))


def _two_one_sided(by_clip: np.ndarray, margin: float, stats: Any) -> float:
    """Return the larger p of "above -margin" and "below margin", from the mean differences of the clips."""
    if np.ptp(by_clip) == 0:  # the t statistic is undefined without variance
        return 0.0 if abs(by_clip[0]) < margin else 1.0
    above = stats.ttest_1samp(by_clip, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(by_clip, margin, alternative="less").pvalue
    return float(max(above, below))


def check_extras() -> None:
    """Raises V2LError if a package of the extra `eval` is missing."""
    _rouge_scorer(), _scipy_stats()


@cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing_extra("evaluation", "rouge-score", "eval") from error
    return RougeScorer(["rougeL"], use_stemmer=False)


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise missing_extra("evaluation", "scipy", "eval") from error
    return stats
