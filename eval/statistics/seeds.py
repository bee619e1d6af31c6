"""The seeds of one recipe taken together: its figures, and how it compares with other recipes and with base models.

Another training of the recipe would have another seed, and another test other questions. Both count: the variance of a
mean over seeds is the jackknife's over questions plus the variance of the seeds' own figures by their number, and its
degrees of freedom are Satterthwaite's. What a seed does to single questions is counted in both parts, which errs to
the wide side, as the product bootstrap does (Owen 2007, "The pigeonhole bootstrap").
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.special import stdtrit

from eval.evaluated import Run
from eval.statistics.comparison import ALPHA, few_questions, smallest_p_value, summed
from eval.statistics.uncertainty import Spread, ratios

# What may differ between runs that are seeds of one recipe
NAMED_BY = {"dataset_name": "dataset_hash", "model_name_or_path": "base_model_hash"}
SEED_KEYS = {"seed", "data_seed", "output_dir", "run_name", "logging_dir", "resume"}


def recipes(runs: list[Run], method_of: Mapping[str, str] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Runs that differ in their seed alone, pooled: each metric's mean over seeds and its spread (standard deviation).

    The interval of bits per byte is of the mean over seeds, other seeds and other questions drawn. `method_of` names a
    study's method by a run's name: two methods may have chosen the same settings, and stay two.
    """
    return [_pooled(group) for group in _groups(runs, method_of)]


def compare_recipes(runs: list[Run], method_of: Mapping[str, str] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Every two of the recipes that were run with several seeds and of the base models, which have none: the difference
    of their means in bits per byte. Interval and adjusted p-value are Bonferroni's for these pairs. Pairs of two base
    models are left to the comparison of runs, and so is a recipe of one seed, whose spread over seeds is not known.
    """
    groups = _groups([run for run in runs if run.ranked], method_of)
    bases = [[run] for run in runs if run.ranked and run.results.model.method == "base"]
    pairs = [*itertools.combinations(groups, 2), *itertools.product(groups, bases)]
    found = []
    for a, b in pairs:
        values, spread, deviations = _estimate(a, b)
        least = smallest_p_value(len(deviations))
        quantile = -stdtrit(spread.freedom, ALPHA / 2 / len(pairs))
        (below,), (above,) = spread.reach(quantile)
        adjusted = min(1.0, len(pairs) * max(float(spread.p_values(values)[0]), least))
        testable = least * len(pairs) < ALPHA
        found.append(
            {
                "a": [run.name for run in a],
                "b": [run.name for run in b],
                "metric": "bits_per_byte",
                "difference": float(values[0]),
                "low": float(values[0] - below) if testable else None,
                "high": float(values[0] + above) if testable else None,
                "p_adjusted": adjusted,
                "few_questions": few_questions(deviations[:, 0]),
            }
        )
    return found


def _groups(runs: list[Run], method_of: Mapping[str, str]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        origin = run.provenance
        named = {key for key, known in NAMED_BY.items() if origin.get(known)}  # content tells them, not the place
        recipe = {key: value for key, value in run.config.items() if key not in SEED_KEYS | named}
        data = [origin.get(key) for key in ("dataset_hash", "base_model_hash", "tokenizer_hash", "extended")]
        groups[json.dumps([recipe, data, method_of.get(run.name)], sort_keys=True, default=str)].append(run)
    return [group for group in groups.values() if len({run.config.get("seed") for run in group}) > 1]


def _estimate(a: list[Run], b: list[Run] | None = None) -> tuple[np.ndarray, Spread, np.ndarray]:
    nats, size = summed([*a, *(b or [])])
    return mean_over_seeds(nats / math.log(2), size, len(a))


def mean_over_seeds(bits: np.ndarray, size: np.ndarray, seeds: int) -> tuple[np.ndarray, Spread, np.ndarray]:
    """Of bits (questions, runs) and bytes (questions,): the mean bits per byte of the first `seeds` runs, less that of
    the others if there are any, (1,); its spread over seeds and questions; each question's deviation, (questions, 1).
    """
    of_runs = bits.sum(0) / size.sum()
    groups = [part for part in (slice(seeds), slice(seeds, None)) if of_runs[part].size]
    amounts = bits[:, groups[0]].mean(1) - (bits[:, groups[1]].mean(1) if len(groups) > 1 else 0)
    values, deviations, shares = ratios(amounts[:, None], size[:, None])
    spread = Spread.of(deviations, shares)
    for count, part in ((of_runs[part].size, part) for part in groups):
        if count > 1:
            spread = spread.with_source(of_runs[part].var(ddof=1) / count, count - 1)
    return values, spread, deviations


def _pooled(runs: list[Run]) -> dict[str, Any]:
    (value,), spread, _ = _estimate(runs)
    (below,), (above,) = spread.reach(-stdtrit(spread.freedom, ALPHA / 2))
    metrics = {}
    for name in runs[0].split.metrics:
        values = [held.value for run in runs if (held := run.split.metrics.get(name))]
        if len(values) == len(runs):
            spread_of = {"mean": mean(values), "spread": stdev(values), "lowest": min(values), "highest": max(values)}
            metrics[name] = spread_of
    return {
        "runs": [run.name for run in runs],
        "seeds": [run.config.get("seed") for run in runs],
        "bits_per_byte": {"value": float(value), "low": float(max(value - below, 0)), "high": float(value + above)},
        "metrics": metrics,
    }
