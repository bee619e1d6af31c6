"""Which models differ: paired tests between every two, ranks with ties, and the seeds of one recipe taken together."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from statistics import mean, stdev
from typing import Any

import numpy as np

from eval.evaluated import Run
from eval.statistics.uncertainty import LEVEL, bootstrap, by_question, holm, sign_flip_p_values, tie_groups

# What may differ between runs that are seeds of one recipe
NAMED_BY = {"dataset_name": "dataset_hash", "model_name_or_path": "base_model_hash"}
SEED_KEYS = {"seed", "data_seed", "output_dir", "run_name", "logging_dir", "resume"}


def _bits(sums: np.ndarray) -> dict[str, float]:
    """From summed nats and bytes."""
    return {"bits_per_byte": sums[0] / (math.log(2) * sums[1])}


def compare(runs: list[Run]) -> list[dict[str, Any]]:
    """Every two runs, on the same examples: the difference in bits per byte, its interval, and Holm's p-value.

    A question's difference is the sum over its answers, so answers to one question count together.
    """
    order = [row["id"] for row in runs[0].predictions]
    by_id = [{row["id"]: row for row in run.predictions} for run in runs]
    questions = [by_id[0][id]["question_id"] for id in order]
    nll = np.array([[rows[id]["nll"] for id in order] for rows in by_id])
    size = np.array([by_id[0][id]["bytes"] for id in order], dtype=float)
    pairs = list(itertools.combinations(range(len(runs)), 2))
    if not pairs:
        return []
    differences = np.stack([nll[a] - nll[b] for a, b in pairs], axis=1)
    p_values = sign_flip_p_values(by_question(differences, questions))
    found = []
    for (a, b), column, p_value, adjusted in zip(pairs, differences.T, p_values, holm(p_values), strict=True):
        interval = bootstrap(np.stack([column, size], axis=1), questions, _bits)["bits_per_byte"]
        found.append(
            {
                "a": runs[a].name,
                "b": runs[b].name,
                "metric": "bits_per_byte",
                "difference": interval.value,
                "low": interval.low,
                "high": interval.high,
                "p_value": float(p_value),
                "p_adjusted": adjusted,
            }
        )
    return found


def ranks(runs: list[Run], comparisons: list[dict[str, Any]]) -> dict[str, int | None]:
    """The rank of each run by its name; runs are given from best to worst. None for a model that sees the future."""
    p_adjusted = {frozenset((each["a"], each["b"])): each["p_adjusted"] for each in comparisons}
    ranked = [run.name for run in runs if not run.results.sees_the_future]
    groups = tie_groups(len(ranked), lambda a, b: p_adjusted[frozenset((ranked[a], ranked[b]))] < 1 - LEVEL)
    return {**{run.name: None for run in runs}, **dict(zip(ranked, groups, strict=True))}


def recipes(runs: list[Run]) -> list[dict[str, Any]]:
    """Runs that differ in their seed alone, pooled: each metric's mean over seeds and its spread (standard deviation).

    The interval of bits per byte is that of the mean over seeds, questions drawn as ever: it tells how sure the figure
    is for these seeds, the spread how much another seed may move it.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.config:
            origin = run.provenance
            named = {key for key, known in NAMED_BY.items() if origin.get(known)}  # content tells them, not the place
            recipe = {key: value for key, value in run.config.items() if key not in SEED_KEYS | named}
            data = [origin.get(key) for key in ("dataset_hash", "base_model_hash", "tokenizer_hash", "extended")]
            groups[json.dumps([recipe, data], sort_keys=True, default=str)].append(run)
    return [_pooled(group) for group in groups.values() if len({run.config.get("seed") for run in group}) > 1]


def _pooled(runs: list[Run]) -> dict[str, Any]:
    by_id = [{row["id"]: row for row in run.predictions} for run in runs]
    order = list(by_id[0])
    nll = [mean(rows[id]["nll"] for rows in by_id) for id in order]
    size = [by_id[0][id]["bytes"] for id in order]
    interval = bootstrap(np.stack([nll, size], axis=1), [by_id[0][id]["question_id"] for id in order], _bits)
    metrics = {}
    for name in runs[0].split.metrics:
        values = [held.value for run in runs if (held := run.split.metrics.get(name))]
        if len(values) == len(runs):
            spread = {"mean": mean(values), "spread": stdev(values), "lowest": min(values), "highest": max(values)}
            metrics[name] = spread
    return {
        "runs": [run.name for run in runs],
        "seeds": [run.config.get("seed") for run in runs],
        "bits_per_byte": vars(interval["bits_per_byte"]),
        "metrics": metrics,
    }
