"""How sure a figure is: a percentile bootstrap over questions (Efron & Tibshirani 1993, chapter 13).

Answers to one question are not independent, so questions are drawn, each with all of its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eval.results import Interval

LEVEL, RESAMPLES, SEED = 0.95, 1000, 0


def bootstrap(
    statistics: np.ndarray, clusters: Sequence[str], figures: Callable[[np.ndarray], dict[str, float]]
) -> dict[str, Interval]:
    """Intervals of all figures that `figures` makes of summed statistics.

    `statistics` is (examples, k) and adds up over examples; `clusters` names each example's question. Every figure of
    this project is a function of such sums, so a resample is a weighted sum and no example is looked at again.
    """
    _, cluster_of = np.unique(np.asarray(clusters), return_inverse=True)
    count = cluster_of.max() + 1
    sums = np.zeros((count, statistics.shape[1]))
    np.add.at(sums, cluster_of, statistics)
    draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    resampled = [figures(row) for row in draws @ sums]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    intervals = {}
    for name, value in figures(sums.sum(0)).items():
        low, high = np.quantile([figure[name] for figure in resampled], tails)
        intervals[name] = Interval(float(value), float(low), float(high))
    return intervals
