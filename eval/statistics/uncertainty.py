"""How sure a figure is, and whether two models differ. Answers to one question are not independent: questions count.

Intervals: percentile bootstrap over questions, each drawn with all its answers (Efron & Tibshirani 1993, chapter 13),
its tails widened where questions are few (the expanded percentile interval of Hesterberg 2015, "What teachers should
know about the bootstrap").
Tests: paired permutation by flipping the sign of each question's difference (Fisher 1935; Dror et al. 2018, section 3),
corrected for many comparisons (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from eval.results import Interval

LEVEL, RESAMPLES, SEED = 0.95, 1000, 0
METHOD = "expanded percentile bootstrap over questions"
PERMUTATIONS = 9_999
EXACT_QUESTIONS = 13  # up to this many, all 2^n sign flips are tried: no more than PERMUTATIONS
TEST = "paired sign-flip permutation over questions, Holm's correction"


def bootstrap(
    statistics: np.ndarray, clusters: Sequence[str], figures: Callable[[np.ndarray], dict[str, float | None]]
) -> dict[str, Interval | None]:
    """Intervals of all figures that `figures` makes of summed statistics.

    `statistics` is (examples, k) and adds up over examples; `clusters` names each example's question. Every figure of
    this project is a function of such sums, so a resample is a weighted sum and no example is looked at again. A figure
    that is None has no interval; a resample in which it is None is left out of its interval.
    """
    sums = by_question(statistics, clusters)
    resampled = [figures(row) for row in _draws(len(sums)) @ sums]
    tail = _tail(len(sums))
    intervals = {}
    for name, value in figures(sums.sum(0)).items():
        if value is None:
            intervals[name] = None
            continue
        held = [figure[name] for figure in resampled if figure[name] is not None]
        low, high = np.quantile(held, [tail, 1 - tail])
        intervals[name] = Interval(float(value), float(low), float(high))
    return intervals


def by_question(statistics: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    """Statistics (examples, k) summed over the examples of each question: (questions, k), in the order of names."""
    _, question_of = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((question_of.max() + 1, statistics.shape[1]))
    np.add.at(sums, question_of, statistics)
    return sums


@lru_cache(maxsize=4)
def _draws(count: int) -> np.ndarray:
    """How often each of `count` questions is drawn in each resample: (RESAMPLES, count), the same at every call."""
    return np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)


def _tail(count: int) -> float:
    """The quantile at which the interval ends. With few questions a resample varies too little, by √((n − 1) / n), and
    the normal quantile is too small: both are made good by Φ(√(n / (n − 1)) · t quantile of n − 1 degrees)."""
    if count < 2:
        return (1 - LEVEL) / 2
    return NormalDist().cdf(math.sqrt(count / (count - 1)) * stdtrit(count - 1, (1 - LEVEL) / 2))


def sign_flip_p_values(differences: np.ndarray) -> np.ndarray:
    """Two-sided p-values (columns,) of the null that the differences (questions, columns) are symmetric about 0.

    Up to 13 questions every flip is tried; beyond, 9,999 random ones, the observed one counted among them (Phipson &
    Smyth 2010). The sum is compared; comparing a t statistic would give the same, since flips keep the squares.
    """
    questions = len(differences)
    observed = np.abs(differences.sum(0))
    least = observed * (1 - 1e-9)  # a flip that gives the same sum in another order of rounding is as extreme
    if questions <= EXACT_QUESTIONS:
        flips = np.array(np.meshgrid(*[[1.0, -1.0]] * questions, indexing="ij")).reshape(questions, -1).T
        return (np.abs(flips @ differences) >= least).mean(0)
    generator = np.random.default_rng(SEED)
    extreme = np.ones(differences.shape[1])
    for start in range(0, PERMUTATIONS, 1000):  # in parts: 2,000 questions make 160 MB of flips in one
        flips = generator.integers(0, 2, size=(min(1000, PERMUTATIONS - start), questions)) * 2.0 - 1
        extreme += (np.abs(flips @ differences) >= least).sum(0)
    return extreme / (PERMUTATIONS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): with these below α, the chance of any false rejection is at most α."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors))
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result.tolist()


def tie_groups(count: int, differ: Callable[[int, int], bool]) -> list[int]:
    """Ranks of models 0 … count − 1, given from best to worst; `differ(a, b)` says whether a test tells two apart.

    The best model and all that cannot be told from it share rank 1; the best of the rest leads the next group, whose
    rank counts the models before it: 1 1 3.
    """
    ranks = [0] * count
    left = list(range(count))
    while left:
        leader = left[0]
        group = [model for model in left if model == leader or not differ(leader, model)]
        for model in group:
            ranks[model] = count - len(left) + 1
        left = [model for model in left if model not in group]
    return ranks
