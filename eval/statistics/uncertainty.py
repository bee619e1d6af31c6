"""How sure a figure is. Answers to one question are not independent: questions count, each with all its answers.

A figure is a ratio of sums over questions. Its standard error is the jackknife's (Efron & Tibshirani 1993, chapter
11): how far the figure moves when a question is left out, for ratios the cluster-robust CR3 (Bell & McCaffrey 2002).
Its interval is the wider one, at each end, of two: Student's t, and t corrected for skew (Hall 1992, "On the removal of
skewness by transformation", section 3, with the ratio's own term). The first alone misses too often where questions are
skewed, the second where a few extreme ones on both sides feign a skew. Degrees of freedom are the effective number of
questions less one: Kish's, smaller where few questions hold most of the bytes (Carter, Schnepel & Steigerwald 2017).
What lies between two ends, such as a share, has Student's interval on the logit scale and stays between them.
docs/trust.md says how well it holds, and the command that tries it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from eval.results import Interval

LEVEL = 0.95
METHOD = "jackknife over questions, Student's t with Hall's correction for skew"
ROUNDING = 1e-12  # a question whose part deviates by less of itself does not deviate


@dataclass(frozen=True)
class Figure:
    """What `intervals` must know of a figure: the column of the statistics that it divides by, the least and most that
    it can be, and whether it is the exponential of a ratio, whose interval then is that of the ratio."""

    divided_by: int
    low: float = 0.0
    high: float = math.inf
    exponential: bool = False


@dataclass(frozen=True)
class Spread:
    """The spread of estimates about the truth, in arrays of one entry a figure.

    `error` is the standard error in the figure's unit, `freedom` its degrees of freedom. `skew` is Σv³ / (Σv²)^1.5 of
    the deviations v, and `bend` the coefficient of t² in Hall's transformation t + bend·t² + bend²·t³/3 + skew/6.
    """

    error: np.ndarray
    skew: np.ndarray
    bend: np.ndarray
    freedom: np.ndarray

    @classmethod
    def of(cls, deviations: np.ndarray, shares: np.ndarray) -> Spread:
        """From how far each figure falls when a question is left out, (questions, figures), and the question's share
        of what the figure divides by, (questions, 1) or (questions, figures)."""
        questions = (shares > 0).sum(0)
        squares = (deviations**2).sum(0)
        unit = np.where(squares > 0, np.sqrt(squares), 1.0)
        skew = ((deviations / unit) ** 3).sum(0)
        # Of a ratio, the standard error moves with its estimate: the share's correlation with the deviation.
        bend = skew / 3 - (deviations / unit * shares).sum(0)
        freedom = np.maximum(1 / (shares**2).sum(0) - 1, 1.0)
        error = np.sqrt(squares * (questions - 1) / questions)
        return cls(error, skew, bend, np.broadcast_to(freedom, error.shape))

    def with_source(self, variance: np.ndarray | float, freedom: float) -> Spread:
        """With the variance of a second, independent and symmetric source; degrees of freedom by Satterthwaite 1946."""
        whole = self.error**2 + variance
        part = self.error**2 / np.where(whole > 0, whole, 1.0)
        rest = 1 - part
        return replace(
            self,
            error=np.sqrt(whole),
            skew=self.skew * part**1.5,
            bend=self.bend * part**1.5,
            freedom=1 / (part**2 / self.freedom + rest**2 / freedom),
        )

    def reach(self, quantile: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """How far intervals reach below and above their figures at a quantile of t."""
        below = np.maximum(quantile, self._untransformed(quantile))
        above = np.maximum(quantile, -self._untransformed(-np.asarray(quantile)))
        return self.error * below, self.error * above

    def strength(self, values: np.ndarray) -> np.ndarray:
        """The quantile of t at which the intervals of `values` just touch 0: infinite for a difference without spread,
        0 for none."""
        sign = np.sign(values)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            t = values / self.error
            transformed = t + self.bend * t**2 + self.bend**2 * t**3 / 3 + self.skew / 6
            strength = np.maximum(np.minimum(np.abs(t), sign * transformed), 0)
        return np.where(self.error > 0, strength, np.where(values == 0, 0, np.inf))

    def p_values(self, values: np.ndarray) -> np.ndarray:
        """Two-sided, of the null that the truth is 0: below α exactly where the 1 − α interval leaves out 0."""
        return 2 * stdtr(self.freedom, -self.strength(values))

    def _untransformed(self, quantile: np.ndarray | float) -> np.ndarray:
        """The t whose transformation is `quantile`."""
        shifted = quantile - self.skew / 6
        straight = np.abs(self.bend) < 1e-8
        bend = np.where(straight, 1.0, self.bend)
        return np.where(straight, shifted, (np.cbrt(1 + 3 * bend * shifted) - 1) / bend)


def intervals(
    statistics: np.ndarray,
    clusters: Sequence[str],
    figures: Callable[[np.ndarray], dict[str, float | None]],
    kinds: Mapping[str, Figure],
) -> dict[str, Interval | None]:
    """Intervals of all figures that `figures` makes of summed statistics; `kinds` describes them by the same names.

    `statistics` is (examples, k) and adds up over examples; `clusters` names each example's question. A figure that is
    None has no interval; one that is None, or the same, whichever question is left out has an interval of width 0, and
    so has every figure of a single question: nothing tells how another one would do.
    """
    sums = by_question(statistics, clusters)
    whole = sums.sum(0)
    values = figures(whole)
    left_out = [figures(whole - row) for row in sums] if len(sums) > 1 else []
    return {
        name: None if value is None else _interval(value, [each[name] for each in left_out], sums, kinds[name])
        for name, value in values.items()
    }


def _interval(value: float, left_out: list[float | None], sums: np.ndarray, kind: Figure) -> Interval:
    value = float(value)
    if not math.isfinite(value):
        return Interval(value, value, value)
    scale = math.log if kind.exponential else float
    centre = scale(value)
    deviations = np.array([0.0 if each is None else centre - scale(each) for each in left_out])
    deviations[np.abs(deviations) <= ROUNDING * abs(centre)] = 0.0
    shares = sums[:, kind.divided_by] / sums[:, kind.divided_by].sum()
    spread = Spread.of(deviations[:, None], shares[:, None])
    quantile = -stdtrit(spread.freedom, (1 - LEVEL) / 2)
    if not deviations.any():
        return Interval(value, value, value)
    if math.isfinite(kind.high) and kind.low < value < kind.high:
        part = (value - kind.low) / (kind.high - kind.low)
        reach = float((quantile * spread.error)[0]) / (kind.high - kind.low) / (part * (1 - part))
        low, high = (kind.low + (kind.high - kind.low) * float(expit(logit(part) + way * reach)) for way in (-1, 1))
    else:
        low, high = (float(centre + way * reach[0]) for way, reach in zip((-1, 1), spread.reach(quantile), strict=True))
    if kind.exponential:  # as far as a float goes
        low, high = math.exp(low), math.exp(min(high, 700.0))
    return Interval(value, min(value, max(low, kind.low)), max(value, min(high, kind.high)))


def by_question(statistics: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    """Statistics (examples, k) summed over the examples of each question: (questions, k), in the order of names."""
    _, question_of = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((question_of.max() + 1, statistics.shape[1]))
    np.add.at(sums, question_of, statistics)
    return sums


def ratios(amounts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of amounts (questions, figures) and sizes (questions, figures or 1): Σ amounts / Σ sizes (figures,), how far each
    falls when a question is left out (questions, figures), and each question's share of its sizes, shaped as they are.
    """
    whole = sizes.sum(0)
    values = amounts.sum(0) / whole
    parts = values * sizes
    deviations = amounts - parts
    deviations[np.abs(deviations) <= ROUNDING * (np.abs(amounts) + np.abs(parts))] = 0.0
    rest = np.where(sizes < whole, whole - sizes, np.inf)
    return values, deviations / rest, sizes / whole
