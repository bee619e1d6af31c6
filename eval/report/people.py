"""What people say of the models: strengths from their votes, how far they may be believed, and which metric agrees."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from eval.evaluated import Run
from eval.judge.votes import MARKS, Judge, Vote
from eval.statistics import preferences
from eval.statistics.preferences import Votes
from eval.statistics.uncertainty import by_question
from finllm.errors import UserError

# Of each metric a row's amount, and what it is divided by; and whether more of it is better
METRICS: dict[str, tuple[Callable[[dict[str, Any]], tuple[float, float]], int]] = {
    "bits_per_byte": (lambda row: (row["nll"] / math.log(2), row["bytes"]), -1),
    "rougeL": (lambda row: (row["rougeL"], 1), 1),
    "bleu": (lambda row: (row["bleu"], 1), 1),
    "number_right": (lambda row: (row.get("number_right"), 1), 1),
}


def view(runs: list[Run], judges: list[Judge]) -> dict[str, Any]:
    """What leaderboard.json holds under `people`; models from the strongest to the weakest."""
    names = [run.name for run in runs]
    counted, repeated = [], []
    for number, judge in enumerate(judges):
        seen: dict[tuple[str, frozenset[str | None]], Vote] = {}
        for vote in judge.votes:
            earlier = seen.setdefault(_pair(vote), vote)
            if earlier is not vote:
                repeated.append((number, earlier, vote))
            elif None not in (vote.first, vote.second):
                counted.append((number, vote))
    if not counted:
        raise UserError("the votes hold no pair of two models that count; let a judge vote on more screens")
    question_of = {row["id"]: row["question_id"] for row in runs[0].predictions}
    votes = _arrays(counted, names, question_of)
    nats, rates, tie, draws, drawn_rates = preferences.estimate(votes)
    (wins,), (ties,) = votes.tables(np.ones((1, len(counted))))
    voted = [place for place in range(len(names)) if np.isfinite(rates[place])]
    models = [
        {
            "name": names[place],
            "votes": int(wins[place].sum() + wins[:, place].sum() + ties[place].sum()),
            "wins": int(wins[place].sum()),
            "ties": int(ties[place].sum()),
            "losses": int(wins[:, place].sum()),
            "win_rate": asdict(preferences.interval(rates[place], drawn_rates[:, place])),
            "strength": asdict(preferences.interval(nats[place], draws[:, place])),
            "marks": _marks(names[place], counted),
        }
        for place in sorted(voted, key=lambda place: -nats[place])
    ]
    return {
        "votes": sum(len(judge.votes) for judge in judges),
        "counted": len(counted),
        "questions": len({question_of[vote.example] for _, vote in counted}),
        "method": preferences.METHOD if len(judges) > 1 else "bootstrap over questions, percentiles",
        "ties": tie,
        "models": models,
        "judges": [
            _judge(judge, [each for each in repeated if each[0] == number]) for number, judge in enumerate(judges)
        ],
        "position": _first_share([vote for judge in judges for vote in judge.votes]),
        "alpha": _as_dict(preferences.agreement(_units(counted, len(judges)))),
        "metrics": [
            found
            for metric in METRICS
            if (found := _metric(metric, runs, voted, counted, votes, nats, draws)) is not None
        ],
    }


def _pair(vote: Vote) -> tuple[str, frozenset[str | None]]:
    return vote.example, frozenset((vote.first, vote.second))


def _verdict(vote: Vote, of: str | None) -> int:
    """1 where the answer of `of` won, −1 where the other did, 0 for a tie and for both bad."""
    if vote.choice not in ("first", "second"):
        return 0
    return 1 if (vote.first if vote.choice == "first" else vote.second) == of else -1


def _arrays(counted: list[tuple[int, Vote]], names: list[str], question_of: dict[str, str]) -> Votes:
    _, questions = np.unique([question_of[vote.example] for _, vote in counted], return_inverse=True)
    columns = [
        (judge, question, names.index(vote.first), names.index(vote.second), _verdict(vote, vote.first))
        for (judge, vote), question in zip(counted, questions, strict=True)
    ]
    return Votes(len(names), *np.array(columns).T)


def _units(counted: list[tuple[int, Vote]], judges: int) -> np.ndarray:
    """Verdicts (judges, pairs on a question), of the model whose name comes first; NaN where a judge gave none."""
    pairs = {pair: place for place, pair in enumerate(dict.fromkeys(_pair(vote) for _, vote in counted))}
    units = np.full((judges, len(pairs)), np.nan)
    for judge, vote in counted:
        units[judge, pairs[_pair(vote)]] = _verdict(vote, min(vote.first, vote.second))
    return units


def _judge(judge: Judge, repeated: list[tuple[int, Vote, Vote]]) -> dict[str, Any]:
    same = sum(_verdict(one, one.first) == _verdict(other, one.first) for _, one, other in repeated)
    checks = [vote for vote in judge.votes if None in (vote.first, vote.second)]
    passed = sum(_verdict(vote, None) >= 0 for vote in checks)
    return {
        **{"name": judge.name, "page": judge.page, "reference_shown": judge.reference_shown},
        **{"votes": len(judge.votes), "screens": judge.screens},
        "consistency": _as_dict(preferences.share(same, len(repeated))),
        "repeats": len(repeated),
        "checks": _as_dict(preferences.share(passed, len(checks))),
        "checked": len(checks),
        "position": _first_share(judge.votes),
        "neither": sum(vote.choice == "neither" for vote in judge.votes),
        "seconds": median(vote.seconds for vote in judge.votes),
    }


def _first_share(votes: list[Vote]) -> dict[str, Any] | None:
    """Of the votes that chose a side, the share that chose the answer that stood first."""
    decided = [vote for vote in votes if vote.choice in ("first", "second")]
    found = preferences.share(sum(vote.choice == "first" for vote in decided), len(decided))
    return {**asdict(found), "votes": len(decided)} if found else None


def _marks(name: str, counted: list[tuple[int, Vote]]) -> dict[str, int]:
    marks: Counter[str] = Counter()
    for _, vote in counted:
        for side in ("first", "second"):
            if getattr(vote, side) == name:
                marks.update(vote.marks[side])
    return {mark: marks[mark] for mark in MARKS}


def _metric(
    metric: str,
    runs: list[Run],
    voted: list[int],
    counted: list[tuple[int, Vote]],
    votes: Votes,
    nats: np.ndarray,
    draws: np.ndarray,
) -> dict[str, Any] | None:
    """How far a metric agrees with people: on the order of the models, and on single votes that chose a side."""
    parts, sign = METRICS[metric]
    held = [{row["id"]: parts(row) for row in run.predictions if parts(row)[0] is not None} for run in runs]
    shared = sorted(set.intersection(*(set(held[place]) for place in voted)))
    if not shared:
        return None
    asked = {row["id"]: row["question_id"] for row in runs[0].predictions}
    clusters = [asked[id] for id in shared]
    of_models = [by_question(np.array([held[place][id] for id in shared]), clusters) for place in voted]
    amounts = np.stack(of_models)  # models, questions, 2
    values = sign * amounts[..., 0].sum(1) / amounts[..., 1].sum(1)
    weights = preferences.drawn_with_replacement(np.random.default_rng(preferences.SEED + 1), amounts.shape[1])
    sums = np.einsum("dq,mqk->kdm", weights, amounts, optimize=True)
    # Which answer the metric prefers in each vote: 1 a, −1 b, 0 neither; NaN where it knows nothing of one of them
    preferred = np.array([_preferred(held[a].get(vote.example), held[b].get(vote.example), sign)
                          for a, b, (_, vote) in zip(votes.a, votes.b, counted, strict=True)])  # fmt: skip
    clear = (votes.outcome != 0) & np.isfinite(preferred) & (preferred != 0)
    agreed = (preferred == votes.outcome)[clear]
    shares = np.array([_mean(agreed, weight) for weight in votes.weights()[:, clear]])
    tau = preferences.rank_correlation(nats[voted], draws[:, voted], values, sign * sums[0] / sums[1])
    return {
        "metric": metric,
        "tau": _as_dict(tau),
        "agreement": asdict(preferences.interval(agreed.mean(), shares)) if clear.any() else None,
        "votes": int(clear.sum()),
    }


def _preferred(a: tuple[float, float] | None, b: tuple[float, float] | None, sign: int) -> float:
    if a is None or b is None:
        return math.nan
    return np.sign(sign * (a[0] / a[1] - b[0] / b[1]))


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum()) if weights.sum() else math.nan


def _as_dict(interval: Any) -> dict[str, float] | None:
    return asdict(interval) if interval else None
