"""How good models are in the eyes of people: strengths from votes on pairs, and how sure they are.

A vote is won, lost or a tie; "both bad" is a tie. Strengths are those of Bradley & Terry 1952 with ties as Davidson
1970 has them: with strengths λ in nats, which sum to 0, and ν for ties,

    P(i wins) = e^λi / D     P(tie) = ν · e^((λi + λj) / 2) / D     D = e^λi + e^λj + ν · e^((λi + λj) / 2)

at the maximum of the likelihood and of a wide prior (normal, PRIOR nats about 0), without which a model that never lost
would be infinitely strong. Intervals are percentiles over draws of questions and of judges, both with replacement (the
pigeonhole bootstrap, Owen 2007): a vote counts as often as its question times its judge was drawn. Of one judge only
questions are drawn, and nothing is said of other judges.
"""

from __future__ import annotations

from dataclasses import dataclass

import krippendorff
import numpy as np
from scipy.special import softmax

from eval.results import Interval
from eval.statistics.uncertainty import LEVEL

PRIOR = 3.0
MOST_STEPS, MOST_STEP = 100, 2.0  # of Newton's method, and nats of one
DRAWS, SEED = 999, 0
METHOD = "bootstrap over questions and judges, percentiles"


@dataclass(frozen=True)
class Votes:
    """V votes in arrays (V,): which models, 0 to `models` − 1, were held against each other, and what came of it.

    `outcome` is 1 where `a` won, −1 where `b` did, 0 for a tie. `judge` and `question` are numbers, too.
    """

    models: int
    judge: np.ndarray
    question: np.ndarray
    a: np.ndarray
    b: np.ndarray
    outcome: np.ndarray

    def weights(self) -> np.ndarray:
        """How often each vote counts in each draw, (DRAWS, V)."""
        generator = np.random.default_rng(SEED)
        of_questions = drawn_with_replacement(generator, self.question.max() + 1)[:, self.question]
        return of_questions * drawn_with_replacement(generator, self.judge.max() + 1)[:, self.judge]

    def tables(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of weights (D, V): wins of row over column, and ties in both places, (D, models, models) each."""
        wins, ties = np.zeros((2, len(weights), self.models, self.models))
        for table, rows, columns, counted in (
            (wins, self.a, self.b, self.outcome == 1),
            (wins, self.b, self.a, self.outcome == -1),
            (ties, self.a, self.b, self.outcome == 0),
            (ties, self.b, self.a, self.outcome == 0),
        ):
            np.add.at(table, (slice(None), rows[counted], columns[counted]), weights[:, counted])
        return wins, ties


def drawn_with_replacement(generator: np.random.Generator, number: int) -> np.ndarray:
    """How often each of `number` things was drawn, with replacement, (DRAWS, number)."""
    return generator.multinomial(number, np.full(number, 1 / number), size=DRAWS)


def strengths(wins: np.ndarray, ties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """λ, (D, models), and ν, (D,), of D tables as `Votes.tables` makes them.

    The three outcomes of a pair are a multinomial logit with utilities λi, λj and log ν + (λi + λj) / 2, concave in
    λ and log ν: Newton's steps lead to its one maximum.
    """
    draws, models = wins.shape[:2]
    i, j = np.triu_indices(models, 1)
    counts = np.stack([wins[:, i, j], wins[:, j, i], ties[:, i, j]], axis=2)  # draws, pairs, outcomes
    utility = np.zeros((len(i), 3, models + 1))  # pairs, outcomes, parameters
    pairs = np.arange(len(i))
    utility[pairs, 0, i] = utility[pairs, 1, j] = utility[pairs, 2, -1] = 1
    utility[pairs, 2, i] = utility[pairs, 2, j] = 0.5
    number = counts.sum(2)
    found, prior = np.zeros((draws, models + 1)), np.eye(models + 1) / PRIOR**2
    for _ in range(MOST_STEPS):
        chance = softmax(np.einsum("pok,dk->dpo", utility, found), axis=2)
        missing = counts - number[..., None] * chance
        slope = np.einsum("dpo,pok->dk", missing, utility) - found / PRIOR**2
        mean = np.einsum("dpo,pok->dpk", chance, utility)
        bend = np.einsum("dp,dpo,pok,pol->dkl", number, chance, utility, utility, optimize=True) + prior
        bend -= np.einsum("dp,dpk,dpl->dkl", number, mean, mean, optimize=True)
        step = np.linalg.solve(bend, slope[..., None])[..., 0]
        found += step * np.minimum(1, MOST_STEP / np.maximum(np.abs(step).max(1, keepdims=True), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return found[:, :-1], np.exp(found[:, -1])


def win_rates(wins: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """(Wins + half of the ties) / votes of each model, (D, models); NaN for one without a vote."""
    won, even, lost = wins.sum(2), ties.sum(2), wins.sum(1)
    with np.errstate(invalid="ignore"):
        return (won + even / 2) / (won + even + lost)


def estimate(votes: Votes) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, np.ndarray]:
    """Strengths and win rates, (models,) each, ν, and both of every draw, (DRAWS, models) each."""
    table, drawn = votes.tables(np.ones((1, len(votes.outcome)))), votes.tables(votes.weights())
    (nats,), (tie,) = strengths(*table)
    return nats, win_rates(*table)[0], float(tie), strengths(*drawn)[0], win_rates(*drawn)


def interval(value: float, draws: np.ndarray) -> Interval:
    """The percentiles of draws, widened to hold the value; draws in which it could not be computed are left out."""
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(draws) else (value, value)
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def share(count: int, of: int) -> Interval | None:
    """A share with Wilson's interval; None of nothing."""
    if not of:
        return None
    from scipy.stats import binomtest  # takes a second to import

    ends = binomtest(count, of).proportion_ci(LEVEL, method="wilson")
    return Interval(count / of, float(ends.low), float(ends.high))


def agreement(units: np.ndarray) -> Interval | None:
    """Krippendorff's alpha of verdicts (judges, units), NaN where a judge gave none, on the ordinal scale of lost, tie
    and won; its interval over units. None where no two judges share a unit, or all say one and the same."""
    units = units[:, np.isfinite(units).sum(0) > 1]
    value = _alpha(units)
    if value is None:
        return None
    generator = np.random.default_rng(SEED)
    drawn = [_alpha(units[:, generator.integers(units.shape[1], size=units.shape[1])]) for _ in range(DRAWS)]
    return interval(value, np.array([each for each in drawn if each is not None]))


def _alpha(units: np.ndarray) -> float | None:
    if len(np.unique(units[np.isfinite(units)])) < 2:
        return None
    return krippendorff.alpha(reliability_data=units, level_of_measurement="ordinal")


def rank_correlation(nats: np.ndarray, draws: np.ndarray, values: np.ndarray, drawn: np.ndarray) -> Interval | None:
    """Kendall's tau-b of strengths and a metric's values, (models,) each, where more is better in both; its interval
    from draws of both, (DRAWS, models) each. None of fewer than three models, and of values that are all the same."""
    if len(nats) < 3 or len(set(values)) < 2:
        return None
    return interval(_tau(nats[None], values[None])[0], _tau(draws, drawn))


def _tau(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row, (D, models) to (D,): `scipy.stats.kendalltau` takes half a second for 999."""
    i, j = np.triu_indices(x.shape[1], 1)
    one, other = (np.sign(each[:, i] - each[:, j]) for each in (x, y))
    with np.errstate(invalid="ignore"):
        return (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))
