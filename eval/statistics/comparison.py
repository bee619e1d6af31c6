"""Which models differ: paired tests of every two on the same questions, intervals that belong to them, and ranks.

The tests are those of eval/statistics/uncertainty.py on each question's difference, all pairs taken at once: the
distribution of the largest |t| over all pairs comes from normal multipliers of the questions' deviations, which keep
how the pairs hang together (Chernozhukov, Chetverikov & Kato 2013; single step, Romano & Wolf 2005). Interval and
adjusted p-value are read off the same distribution: the one leaves out 0 exactly where the other is below 1 − LEVEL.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from eval.evaluated import Run
from eval.statistics.uncertainty import LEVEL, Spread, by_question, ratios

ALPHA = round(1 - LEVEL, 9)  # 0.05, and no last digit more
DRAWS, SEED = 9_999, 0
TEST = "paired t over questions with Hall's correction for skew, all pairs at once by the largest |t|"
# A difference is decided by few questions where a tenth of them holds more than four fifths of its variance.
FEW, MOST = 10, 0.8


@dataclass(frozen=True)
class Rank:
    """A model's place by its estimate, the interval of ranks that holds for all models at once, and whether it may be
    the best: no other is surely better."""

    position: int
    low: int
    high: int
    may_be_best: bool


def compare(runs: list[Run]) -> list[dict[str, Any]]:
    """Every two ranked runs, on the same examples: the difference in bits per byte with its interval and p-values.

    A question's difference is the sum over its answers, so answers to one question count together. `low` and `high`
    hold for all pairs at once and are None where there are too few questions to test so many pairs; `p_value` is of
    this pair alone. `few_questions` says how many hold most of the variance, and how much, where these are few.
    """
    runs = [run for run in runs if run.ranked]
    if len(runs) < 2:
        return []
    found = every_two(*summed(runs))
    return [{"a": runs[a].name, "b": runs[b].name, "metric": "bits_per_byte", **each} for (a, b), each in found.items()]


def every_two(nats: np.ndarray, size: np.ndarray) -> dict[tuple[int, int], dict[str, Any]]:
    """The same for models by number: nats (questions, models) and bytes (questions,) of the reference answers."""
    return differences(nats, size, math.log(2))


def compare_numbers(runs: list[Run]) -> list[dict[str, Any]]:
    """Every two runs that answered examples which ask for a number: the difference of their `number_right` on those
    that all of them answered, with its interval and p-values as in `compare`. Empty where there are none."""
    runs = [run for run in runs if run.split.numbers]
    right = [{row["id"]: row for row in run.predictions if row.get("number_right") is not None} for run in runs]
    order = sorted(set.intersection(*map(set, right))) if len(runs) > 1 else []
    if not order:
        return []
    columns = [[float(rows[id]["number_right"]) for id in order] for rows in right] + [[1.0] * len(order)]
    sums = by_question(np.array(columns).T, [right[0][id]["question_id"] for id in order])
    found = differences(sums[:, :-1], sums[:, -1])
    held = {"metric": "number_right", "examples": len(order), "questions": len(sums)}
    return [{"a": runs[a].name, "b": runs[b].name, **held, **each} for (a, b), each in found.items()]


def differences(parts: np.ndarray, size: np.ndarray, unit: float = 1.0) -> dict[tuple[int, int], dict[str, Any]]:
    """Every two models' difference of Σ parts / Σ size, in `unit`; parts (questions, models) and size (questions,)."""
    questions, models = parts.shape
    pairs = list(itertools.combinations(range(models), 2))
    amounts = np.stack([parts[:, a] - parts[:, b] for a, b in pairs], axis=1) / unit
    values, deviations, shares = ratios(amounts, size[:, None])
    spread = Spread.of(deviations, shares)
    strength, least = spread.strength(values), smallest_p_value(questions)
    p_values = np.maximum(spread.p_values(values), least)
    quantile, adjusted = _all_at_once(deviations, spread.freedom[0], strength)
    adjusted = np.minimum(1, np.maximum(np.maximum(adjusted, p_values), least * len(pairs)))
    below, above = spread.reach(quantile)
    testable = least * len(pairs) < ALPHA
    return {
        pair: {
            "difference": float(values[number]),
            "low": float(values[number] - below[number]) if testable else None,
            "high": float(values[number] + above[number]) if testable else None,
            "p_value": float(p_values[number]),
            "p_adjusted": float(adjusted[number]),
            "few_questions": few_questions(deviations[:, number]),
        }
        for number, pair in enumerate(pairs)
    }


def summed(runs: list[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Nats (questions, runs) and bytes (questions,) of the reference answers, summed over each question's answers."""
    order = [row["id"] for row in runs[0].predictions]
    by_id = [{row["id"]: row for row in run.predictions} for run in runs]
    columns = [[rows[id]["nll"] for id in order] for rows in by_id]
    columns.append([by_id[0][id]["bytes"] for id in order])
    sums = by_question(np.array(columns).T, [by_id[0][id]["question_id"] for id in order])
    return sums[:, :-1], sums[:, -1]


def smallest_p_value(questions: int) -> float:
    """The chance that so many questions all favour one model, whichever, when each is a coin's toss: no p-value is
    smaller, however alike the questions' differences are."""
    return 2.0 ** (1 - questions)


def _all_at_once(deviations: np.ndarray, freedom: float, strength: np.ndarray) -> tuple[float, np.ndarray]:
    """The quantile of t that all pairs' intervals share, and the p-values of `strength`, both of the largest |t|."""
    own = float(-stdtrit(freedom, ALPHA / 2))
    if deviations.shape[1] == 1:
        return own, np.zeros(1)  # a pair alone needs no adjusting
    length = np.sqrt((deviations**2).sum(0))
    units = deviations / np.where(length > 0, length, 1.0)
    generator, largest = np.random.default_rng(SEED), np.full(DRAWS, np.inf)
    for start in range(0, DRAWS, 1000):  # in parts: 2,000 questions make 160 MB of multipliers in one
        part = largest[start : start + 1000]
        part[:] = np.abs(generator.standard_normal((len(part), len(units))) @ units).max(1)
        part /= np.sqrt(generator.chisquare(freedom, len(part)) / freedom)
    largest.sort()
    beyond = DRAWS - np.searchsorted(largest, strength)
    # A strength beyond this draw leaves fewer than α·(DRAWS + 1) − 1 of them: its p-value is below α.
    quantile = largest[DRAWS + 1 - round(ALPHA * (DRAWS + 1))]
    return max(own, float(quantile)), (1 + beyond) / (DRAWS + 1)


def few_questions(deviations: np.ndarray) -> dict[str, float] | None:
    """How many questions hold more than four fifths of a difference's variance, and their share of it, where they are
    no more than a tenth of all (or one): such a difference rests on them. None where it rests on more."""
    squares = np.sort(deviations**2)[::-1]
    if not squares.sum():
        return None
    shares = squares.cumsum() / squares.sum()
    count = int((shares <= MOST).sum()) + 1
    return {"questions": count, "share": float(shares[count - 1])} if count <= max(1, len(squares) // FEW) else None


def ranks(runs: list[Run], comparisons: list[dict[str, Any]]) -> dict[str, Rank | None]:
    """The rank of each run by its name; runs are given from best to worst, and None stands for one that is not ranked.

    At least as many models are better than one as are surely better by the adjusted p-value, and so for worse ones;
    this interval holds for all models at once (Mogstad, Romano, Shaikh & Wilhelm 2024). A steady model may be surely
    worse than the best while an unsteady one below it is not: intervals are widened so that their ends rise down the
    table, which can only make them hold more often.
    """
    ranked = [run.name for run in runs if run.ranked]
    better: dict[str, int] = dict.fromkeys(ranked, 0)
    worse: dict[str, int] = dict.fromkeys(ranked, 0)
    for each in comparisons:
        if each["p_adjusted"] < ALPHA:
            best, other = (each["a"], each["b"]) if each["difference"] < 0 else (each["b"], each["a"])
            better[other] += 1
            worse[best] += 1
    low = [1 + better[name] for name in ranked]
    high = [len(ranked) - worse[name] for name in ranked]
    found = {
        name: Rank(place + 1, min(low[place:]), max(high[: place + 1]), low[place] == 1)
        for place, name in enumerate(ranked)
    }
    return {run.name: found.get(run.name) for run in runs}
