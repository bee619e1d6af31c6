"""All that the report says of votes, whole: counts as literals, and figures by loops over votes and draws."""

import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from eval.judge.votes import Judge, Vote
from eval.report import people
from eval.report.people import view
from eval.statistics import preferences
from eval.statistics.preferences import Votes

QUESTIONS = {"e0": "q1", "e1": "q1", "e2": "q0", "e3": "q2", "e4": "q3"}
BYTES = (4, 2, 3, 5, 2)
# By model: nats, ROUGE-L and BLEU of each example, and whether the numbers of e0 and e4 are right
MODELS = {
    "z": ((8.0, 7.0, 2.0, 3.0, 4.0), (0.5, 0.25, 0.75, None, 0.125), (0.5, None, None, None, None), (1, 1)),
    "m": ((6.0, 8.0, 3.0, 9.0, 4.0), (0.25, 0.5, 0.25, 0.5, 0.25), (None, None, 0.5, None, None), (1, 0)),
    "k": ((5.0, 5.0, 2.0, 2.0, 1.0), (0.75, 0.25, 0.5, 0.5, 0.5), (0.5,) * 5, (1, 0)),
    "unseen": ((9.0, 9.0, 9.0, 9.0, 9.0), (None,) * 5, (None,) * 5, (0, 0)),  # nobody voted on it
}


def run(name):
    nats, rouge, bleu, (of_e0, of_e4) = MODELS[name]
    rows = [
        {"id": id, "question_id": question, "nll": nats[place], "bytes": BYTES[place], "rougeL": rouge[place],
         "bleu": bleu[place]}
        for place, (id, question) in enumerate(QUESTIONS.items())
    ]  # fmt: skip
    rows[0]["number_right"], rows[4]["number_right"] = of_e0, of_e4  # others are asked for no number
    return SimpleNamespace(name=name, predictions=rows)


RUNS = [run(name) for name in MODELS]


def vote(example, first, second, choice, seconds, marks=((), ())):
    return Vote(example, first, second, choice, dict(zip(("first", "second"), marks, strict=True)), "", seconds)


ANN = Judge("Ann", "page", 12, False, [
    vote("e0", "z", "m", "first", 3, (("correct",), ())), vote("e1", "k", "m", "second", 1),
    vote("e2", "m", "z", "tie", 2), vote("e3", "z", "k", "second", 9),
    vote("e2", "k", "z", "neither", 5, ((), ("harmful",))),
    # Two looks again, of which one finds the same, and two references, of which the second is thought the worse one
    vote("e0", "m", "z", "second", 6, ((), ("complete",))), vote("e3", "k", "z", "tie", 7),
    vote("e0", None, "m", "first", 4, ((), ("harmful",))), vote("e1", "k", None, "first", 8),
])  # fmt: skip
BO = Judge("Bo", "another page", 4, True, [
    vote("e2", "z", None, "tie", 7), vote("e3", "k", "z", "first", 2), vote("e0", "m", "z", "first", 9),
    vote("e2", "z", "m", "second", 4, ((), ("complete", "correct"))),
])  # fmt: skip

# What counts of these: the first look of each judge at each pair of models. Questions are q0, q1 and q2.
COUNTED = Votes(4, *(np.array(column) for column in (
    (0, 0, 0, 0, 0, 1, 1, 1), (1, 1, 0, 2, 0, 2, 1, 0), (0, 2, 1, 0, 2, 2, 1, 0), (1, 1, 0, 2, 0, 0, 0, 1),
    (1, -1, 0, -1, 0, 1, 1, -1),
)))  # fmt: skip
EXAMPLES = ("e0", "e1", "e2", "e3", "e2", "e3", "e0", "e2")
# m over z on e0, k over m on e1, m over z on e2, k over z on e3 and on e2
UNITS = np.array([[-1, -1, 0, 1, 0], [1, math.nan, 1, 1, math.nan]])


def of_models(values, draws):
    return [asdict(preferences.interval(values[place], draws[:, place])) for place in range(3)]


def metric_by_hand(name, examples, parts, sign, nats, draws):
    """Of `examples`, those that all models have: by loops over models, questions and draws."""
    asked = sorted({QUESTIONS[id] for id in examples})
    sums = [[[sum(parts(row)[side] for row in run.predictions if row["id"] in examples and row["question_id"] == each)
              for side in (0, 1)] for each in asked] for run in RUNS[:3]]  # fmt: skip

    def values(weights):
        return [sign * sum(weight * amount for weight, (amount, _) in zip(weights, of, strict=True))
                / sum(weight * size for weight, (_, size) in zip(weights, of, strict=True)) for of in sums]  # fmt: skip

    weights = preferences.drawn_with_replacement(np.random.default_rng(1), len(asked))
    tau = preferences.rank_correlation(
        nats[:3],
        draws[:, :3],
        np.array(values([1] * len(asked))),
        np.array([values(each) for each in weights.tolist()]),
    )
    rows = [{row["id"]: row for row in run.predictions} for run in RUNS]
    agreed = {}
    for place, (id, a, b, outcome) in enumerate(zip(EXAMPLES, COUNTED.a, COUNTED.b, COUNTED.outcome, strict=True)):
        pair = [parts(rows[model][id]) for model in (a, b)]
        if outcome and None not in (pair[0][0], pair[1][0]):
            apart = sign * (pair[0][0] / pair[0][1] - pair[1][0] / pair[1][1])
            if apart:
                agreed[place] = (apart > 0) == (outcome > 0)
    shares = []
    for drawn in COUNTED.weights().tolist():
        whole = sum(drawn[place] for place in agreed)
        shares.append(sum(drawn[place] * agrees for place, agrees in agreed.items()) / whole if whole else math.nan)
    share = sum(agreed.values()) / len(agreed) if agreed else None
    return {"metric": name, "tau": asdict(tau), "votes": len(agreed),
            "agreement": asdict(preferences.interval(share, np.array(shares))) if agreed else None}  # fmt: skip


def share(count, of):
    return asdict(preferences.share(count, of))


def rounded(content):
    if isinstance(content, dict):
        return {key: rounded(each) for key, each in content.items()}
    if isinstance(content, list):
        return [rounded(each) for each in content]
    return round(content, 9) if isinstance(content, float) else content


@pytest.mark.filterwarnings("error::RuntimeWarning")  # a draw without a vote that counts is none to divide by
def test_what_leaderboard_json_says_of_people(monkeypatch):
    correlate, correlated = preferences.rank_correlation, []
    monkeypatch.setattr(preferences, "rank_correlation", lambda *of: correlated.append(of) or correlate(*of))
    found = view(RUNS, [ANN, BO])
    assert json.loads(json.dumps(found)) == found  # plain numbers
    nats, rates, tie, draws, drawn_rates = preferences.estimate(COUNTED)
    counts = {"z": (7, 1, 2, 4), "m": (5, 3, 1, 1), "k": (4, 2, 1, 1)}
    marks = {"z": (1, 0, 1), "m": (1, 1, 0), "k": (0, 0, 0)}
    models = [
        {
            "name": name, **dict(zip(("votes", "wins", "ties", "losses"), counts[name], strict=True)),
            "win_rate": rate, "strength": strength,
            "marks": dict(zip(("correct", "complete", "harmful"), marks[name], strict=True)),
        }
        for name, rate, strength in zip("zmk", of_models(rates, drawn_rates), of_models(nats, draws), strict=True)
    ]  # fmt: skip
    assert [each["win_rate"]["value"] for each in models] == [2 / 7, 0.7, 0.625]
    judges = [
        {"name": "Ann", "page": "page", "reference_shown": False, "votes": 9, "screens": 12,
         "consistency": share(1, 2), "repeats": 2, "checks": share(1, 2), "checked": 2,
         "position": {**share(3, 6), "votes": 6}, "neither": 1, "seconds": 5},
        {"name": "Bo", "page": "another page", "reference_shown": True, "votes": 4, "screens": 4,
         "consistency": None, "repeats": 0, "checks": share(1, 1), "checked": 1,
         "position": {**share(2, 3), "votes": 3}, "neither": 0, "seconds": 5.5},
    ]  # fmt: skip
    metrics = [
        metric_by_hand("bits_per_byte", {*QUESTIONS}, lambda row: (row["nll"] / math.log(2), row["bytes"]), -1, nats,
                       draws),
        metric_by_hand("rougeL", {"e0", "e1", "e2", "e4"}, lambda row: (row["rougeL"], 1), 1, nats, draws),
        # of BLEU no example is known of all models, though of each model one
        metric_by_hand("number_right", {"e0", "e4"}, lambda row: (row.get("number_right"), 1), 1, nats, draws),
    ]  # fmt: skip
    # What was correlated is the same, too: the order of three models shows little of it
    for ours, by_hand in zip(correlated[:3], correlated[3:], strict=True):
        for one, other in zip(ours, by_hand, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
    assert [each["votes"] for each in metrics] == [6, 4, 0] and metrics[2]["agreement"] is None
    assert rounded(found) == rounded({
        "votes": 13, "counted": 8, "questions": 3, "method": preferences.METHOD, "ties": tie,
        "models": sorted(models, key=lambda model: -model["strength"]["value"]), "judges": judges,
        "position": {**share(5, 9), "votes": 9}, "alpha": asdict(preferences.agreement(UNITS)), "metrics": metrics,
    })  # fmt: skip
    assert [each["name"] for each in found["models"]] == ["m", "k", "z"]
    assert {type(each[key]) for each in found["models"] for key in ("votes", "wins", "ties", "losses")} == {int}


def test_of_one_judge_only_questions_are_drawn_and_whoever_chose_no_side_has_no_position():
    judge = Judge("Cy", "page", 2, True, [vote("e0", "z", "m", "neither", 3), vote("e2", "m", "z", "neither", 4)])
    found = view(RUNS[:2], [judge])
    assert (found["method"], found["alpha"], found["position"]) == (
        "bootstrap over questions, percentiles", None, None
    )  # fmt: skip
    assert found["judges"][0]["position"] is None and found["judges"][0]["neither"] == 2 and found["questions"] == 2
    assert [each["name"] for each in found["models"]] == ["z", "m"]  # as strong as each other: in the order given
    # Of two models there is no order to agree on, and no vote chose a side.
    assert found["metrics"] == [
        {"metric": name, "tau": None, "agreement": None, "votes": 0}
        for name in ("bits_per_byte", "rougeL", "number_right")
    ]


@pytest.mark.parametrize(("metric", "row", "amount", "better"), [
    ("bits_per_byte", {"nll": 6 * math.log(2), "bytes": 2}, 3.0, -1), ("rougeL", {"rougeL": 0.25}, 0.25, 1),
    ("bleu", {"bleu": 12.5}, 12.5, 1), ("number_right", {"number_right": 1}, 1.0, 1),
])  # fmt: skip
def test_what_a_row_is_worth_to_a_metric(metric, row, amount, better):
    parts, sign = people.METRICS[metric]
    above, below = parts(row)
    assert above / below == pytest.approx(amount) and sign == better
    assert [*people.METRICS] == ["bits_per_byte", "rougeL", "bleu", "number_right"]
