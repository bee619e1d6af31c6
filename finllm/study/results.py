"""study.json: of every method what was tried, what was chosen and how sure that is, and its final runs.

    methods.NAME.tried       by candidate and rate: steps, validation loss, run; or why there is none
    methods.NAME.chosen      candidate, settings, rate, its neighbours' losses, whether it is at an edge, and the width:
                             the rates around it whose loss is within one standard error of the difference to its own
    methods.NAME.finals      a run a seed: validation loss, curve, seconds, memory, parameters, and how many other
                             trainings its device did `beside` it
    methods.NAME.failed      why a method has no chosen settings

Losses are in nats a supervised token. Nothing here is of the test split. This module imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from finllm.files import read_jsonl
from finllm.run_dir import RunDir
from finllm.study.conduct import Found, failure_of
from finllm.study.search import FAILED, edge_of, rate_at, width_of
from finllm.study.settings import Candidate, Study
from finllm.study.storage import Storage


def results_of(study: Study, storage: Storage, trials: Path) -> dict[str, Any]:
    """The content of study.json, as far as the study has come."""
    found = Found(study, storage)
    methods = {method: _method(found, method, trials) for method in study.methods}
    return {
        "budget": {"steps": study.budget.steps, "search_steps": study.rules.part},
        "seeds": [*study.seeds],
        "study": study.content,
        "complete": all(
            each["failed"] or (each["finals"] and all(run["done"] for run in each["finals"]))
            for each in methods.values()
        ),
        "seconds": sum(end.seconds for held in found.outcomes.values() for end in held.values()),
        "trainings": sum(len(held) for held in found.outcomes.values()),
        "methods": methods,
    }


def _method(found: Found, method: str, trials: Path) -> dict[str, Any]:
    candidates, chosen = found.study.of(method), found.chosen(method)
    finals = [_final(found, task, trials) for task in found.finals(method)]
    return {
        "tried": {candidate.name: _tried(found, candidate) for candidate in candidates},
        "chosen": _chosen(found, *chosen, trials) if chosen else None,
        "finals": finals,
        "failed": None if any(found.due(each) for each in candidates) else failure_of(found, method),
    }


def _tried(found: Found, candidate: Candidate) -> list[dict[str, Any]]:
    """Of each rate the losses by steps, the lowest rate first."""
    rates: dict[float, dict[str, Any]] = {}
    for task, end in sorted(
        found.outcomes[candidate.name].items(), key=lambda pair: (pair[0].job.place, pair[0].job.steps)
    ):
        if end.settled and task.seed == found.study.seeds[0]:
            rate = rate_at(task.job.place)
            held = rates.setdefault(rate, {"rate": rate, "run": task.run, "losses": {}, "failed": None})
            if end.loss < FAILED:
                held["losses"][str(task.job.steps)] = end.loss
            else:
                held["failed"] = end.reason
    return [*rates.values()]


def _chosen(found: Found, candidate: Candidate, place: float, trials: Path) -> dict[str, Any]:
    study, whole = found.study, found.whole(candidate)
    whole = {other: loss for other, loss in whole.items() if loss < FAILED}
    runs = {task.job.place: task.run for task in found.outcomes[candidate.name] if task.seed == study.seeds[0]}
    errors = {
        other: error
        for other in whole
        if (error := difference_error(trials / runs[other], trials / runs[place])) is not None
    }
    low, high = width_of(place, whole, errors)
    tried = {job.place: loss for job, loss in found.losses(candidate).items()}
    settings = dict(candidate.settings)
    shared = study.content["shared"]
    return {
        "candidate": candidate.name,
        "settings": {key: value for key, value in settings.items() if key not in shared or shared[key] != value},
        "rate": rate_at(place),
        "validation_loss": whole[place],
        "neighbours": [
            {
                "rate": rate_at(other),
                "validation_loss": whole[other],
                "difference": whole[other] - whole[place],
                "error": errors.get(other),
            }
            for other in sorted(whole)
            if other != place
        ],
        "edge": edge_of(place, candidate.grid, tried),
        "width": [rate_at(low), rate_at(high)],
        "width_decades": (high - low) / 4,
    }


def _final(found: Found, task: Any, trials: Path) -> dict[str, Any]:
    """What a final run's own files say; only its seed and name before it is done."""
    end, run = found.ended(task), RunDir(trials / task.run)
    held = {"seed": task.seed, "run": task.run, "done": end is not None, "failed": end.reason if end else None}
    if end is None or end.reason or not run.complete:
        return held
    summary, lines = run.summary(), run.metrics_so_far()
    curve = [[line["step"], line["validation_loss"]] for line in lines if "validation_loss" in line]
    cost = (
        "train_seconds",
        "peak_memory_bytes",
        "trainable_parameters",
        "total_parameters",
        "steps",
        "supervised_tokens",
    )
    found = {key: summary[key] for key in cost}
    return {**held, "validation_loss": end.loss, "curve": curve, "beside": end.beside, **found}


def difference_error(first: Path, second: Path) -> float | None:
    """The standard error of the difference of two runs' validation losses, in nats a token, over rows: each row is
    answered by both, so it is of the rows' differences. None where they were validated on other rows.

    Of r = Σd / Σt over rows with differences d and tokens t it is √(n / (n − 1) · Σ(d − r·t)²) / Σt (Cochran 1977, eq.
    6.13, without the finite population's correction).
    """
    held = [read_jsonl(RunDir(path).validation) if RunDir(path).validation.exists() else [] for path in (first, second)]
    nll, tokens = ([np.array([row[key] for row in rows]) for rows in held] for key in ("nll", "tokens"))
    if len(held[0]) < 2 or not np.array_equal(tokens[0], tokens[1]):
        return None
    difference, size = nll[0] - nll[1], tokens[0]
    rest = difference - difference.sum() / size.sum() * size
    return float(np.sqrt(len(rest) / (len(rest) - 1) * (rest**2).sum()) / size.sum())
