"""What people say of the models, from votes that are set: every count and share a literal."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from eval.judge.votes import Judge, Vote
from eval.report import people_tables as tables
from eval.report.people import view
from eval.statistics import preferences
from finllm.errors import UserError

BITS = {"a": (1.0, 1.0, 4.0), "b": (2.0, 2.0, 2.0), "c": (3.0, 3.0, 3.0)}  # of each question
QUESTIONS = {"e0": "q0", "e1": "q1", "e2": "q2"}


def run(name, rouge=None):
    rows = [
        {"id": id, "question_id": question, "nll": bits * 8 * math.log(2), "bytes": 8, "rougeL": rouge and rouge[place],
         "bleu": None}
        for place, ((id, question), bits) in enumerate(zip(QUESTIONS.items(), BITS[name], strict=True))
    ]  # fmt: skip
    return SimpleNamespace(name=name, predictions=rows)


RUNS = [run("a", [0.5, 0.5, 0.1]), run("b", [0.4, 0.4, None]), run("c", [0.6, 0.4, 0.3])]


def vote(example, first, second, choice, seconds=5, marks=((), ())):
    sides = {side: list(each) for side, each in zip(("first", "second"), marks, strict=True)}
    return Vote(example, first, second, choice, sides, "", seconds)


ANN = Judge("Ann", "page", 9, False, [
    vote("e0", "a", "b", "first", 3, (("correct", "complete"), ("harmful",))), vote("e0", "b", "a", "first", 8),
    vote("e1", "a", "b", "first", 5, (("correct",), ())), vote("e1", "b", "a", "second", 5),
    vote("e2", "a", "c", "tie", 6), vote("e0", None, "c", "first", 7), vote("e1", "c", None, "first", 9),
    vote("e2", None, "b", "neither", 9), vote("e2", "c", "a", "tie", 6),
])  # fmt: skip
BO = Judge("Bo", "page", 2, True, [
    vote("e0", "b", "a", "second", 2), vote("e2", "c", "a", "second", 4, (("harmful",), ("correct",))),
])  # fmt: skip


def test_what_is_counted_of_votes():
    found = view(RUNS, [ANN, BO])
    # Of Ann's first look at each pair three count, of Bo's two; the references and the second looks do not.
    assert (found["votes"], found["counted"], found["questions"]) == (11, 5, 3)
    models = {each["name"]: each for each in found["models"]}
    assert [*models] == ["a", "c", "b"]
    counts = {name: [each[key] for key in ("votes", "wins", "ties", "losses")] for name, each in models.items()}
    assert counts == {"a": [5, 4, 1, 0], "b": [3, 0, 0, 3], "c": [2, 0, 1, 1]}
    assert {name: each["win_rate"]["value"] for name, each in models.items()} == {"a": 0.9, "b": 0.0, "c": 0.25}
    assert {name: each["marks"] for name, each in models.items()} == {
        "a": {"correct": 3, "complete": 1, "harmful": 0}, "b": {"correct": 0, "complete": 0, "harmful": 1},
        "c": {"correct": 0, "complete": 0, "harmful": 1},
    }  # fmt: skip
    for each in models.values():
        assert each["strength"]["low"] <= each["strength"]["value"] <= each["strength"]["high"]
    assert sum(each["strength"]["value"] for each in models.values()) == pytest.approx(0, abs=1e-9)
    assert found["method"] == preferences.METHOD and view(RUNS, [ANN])["method"] == (
        "bootstrap over questions, percentiles"
    )


def test_how_far_judges_may_be_believed():
    ann, bo = view(RUNS, [ANN, BO])["judges"]
    of = [ann[key] for key in ("name", "page", "reference_shown", "votes", "screens")]
    assert of == ["Ann", "page", False, 9, 9]
    assert (ann["repeats"], ann["consistency"]["value"]) == (3, pytest.approx(2 / 3))  # of e0 a and then b
    # Of three references one was preferred, one was not, and one was as bad as the answer.
    assert (ann["checked"], ann["checks"]["value"]) == (3, pytest.approx(2 / 3))
    assert (ann["position"]["value"], ann["position"]["votes"]) == (pytest.approx(5 / 6), 6)
    assert (ann["neither"], ann["seconds"]) == (1, 6)
    assert (bo["repeats"], bo["consistency"], bo["checked"], bo["checks"]) == (0, None, 0, None)
    assert (bo["position"]["value"], bo["position"]["votes"], bo["seconds"], bo["neither"]) == (0.0, 2, 3, 0)
    position = view(RUNS, [ANN, BO])["position"]
    assert (position["value"], position["votes"]) == (pytest.approx(5 / 8), 8)


def test_alpha_is_of_pairs_that_both_judged():
    """Of e0 both say a; of e2 one says a tie and the other a: two units, of one model's view."""
    found = view(RUNS, [ANN, BO])["alpha"]
    units = np.array([[1.0, 0.0], [1.0, 1.0]])
    assert found["value"] == pytest.approx(preferences.agreement(units).value)
    assert view(RUNS, [ANN])["alpha"] is None


def test_which_metrics_side_with_people():
    found = {each["metric"]: each for each in view(RUNS, [ANN, BO])["metrics"]}
    assert [*found] == ["bits_per_byte", "rougeL"]  # nobody has BLEU or numbers
    # Fewer bits are better: a over b on e0, twice, and on e1; on e2 c has fewer, and a won there once.
    bits = found["bits_per_byte"]
    assert (bits["votes"], bits["agreement"]["value"]) == (4, 0.75)
    assert 0 <= bits["agreement"]["low"] < 0.75 < bits["agreement"]["high"] <= 1
    # a, b and c have 2, 2 and 3 bits: a tie and a worse one. In strength a is before c before b.
    assert bits["tau"]["value"] == pytest.approx((0 + 1 - 1) / math.sqrt(2 * 3))
    rouge = found["rougeL"]  # of e2 b has none: its votes are a's against c's
    assert (rouge["votes"], rouge["agreement"]["value"]) == (4, 0.75)
    # On e0 and e1: a and c have 0.5 each, b 0.4
    assert rouge["tau"]["value"] == pytest.approx((1 + 1) / math.sqrt(2 * 3))


def test_votes_without_a_pair_of_models_are_refused():
    with pytest.raises(UserError, match="hold no pair of two models that count"):
        view(RUNS, [Judge("Ann", "page", 1, False, [vote("e0", None, "c", "first")])])


# Words and tables ----------------------------------------------------------------------------------------------------


def interval(value, low, high):
    return {"value": value, "low": low, "high": high}


def people(**more):
    models = [
        {"name": name, "strength": interval(value, value - 0.5, value + 0.5), "win_rate": interval(0.75, 0.5, 1.0),
         "votes": 8, "wins": 5, "ties": 2, "losses": 1,
         "marks": {"correct": marked, "complete": 0, "harmful": 0}}
        for name, value, marked in (("a", 1.0, 2), ("b", 0.125, 0), ("c", 0.0, 0))
    ]  # fmt: skip
    judge = {
        "name": "Ann", "votes": 8, "screens": 8, "page": "p", "reference_shown": True, "checks": None, "checked": 0,
        "consistency": interval(0.5, 0.25, 0.75), "repeats": 4, "position": None, "neither": 1, "seconds": 6.5,
    }  # fmt: skip
    return {"models": models, "judges": [judge], "alpha": None, "position": None, "metrics": [], "counted": 8,
            "questions": 3, "method": "bootstrap", **more}  # fmt: skip


def test_the_strongest_and_who_is_near():
    (said,) = tables.said(people())
    assert said.startswith("1 judge prefers a: it wins 75") and "of its 8 votes" in said
    assert said.endswith("the interval of its strength meets that of b.")  # 0.625 is over 0.5, and 0.5 is not
    (said,) = tables.said(people(judges=people()["judges"] * 2, models=people()["models"][::2]))
    assert said.startswith("2 judges prefer a") and said.endswith("of its 8 votes.")


@pytest.mark.parametrize(("changes", "expected"), [
    ([{}, {}], []), ([{}], ["One judge voted"]), ([{}, {"reference_shown": False}], ["Some judges saw"]),
    ([{}, {"page": "q"}], ["The judges had different pages"]), ([{}, {"votes": 7}], ["Ann voted on 7 of 8 screens"]),
    ([{}, {"checks": interval(0.75, 0.5, 1.0)}], ["Ann preferred a model's answer to the reference in 25"]),
    ([{}, {"checks": interval(0.76, 0.5, 1.0)}], []), ([{}, {"checks": interval(0.75, 0.51, 1.0)}], []),
])  # fmt: skip
def test_what_must_be_known_of_votes(changes, expected):
    judge = people()["judges"][0]
    found = tables.notes(people(judges=[{**judge, **each} for each in changes]))
    assert len(found) == len(expected) and all(
        one.startswith(other) for one, other in zip(found, expected, strict=True)
    )


def test_tables_of_votes():
    heads, rows = tables.models_table(people())
    assert heads[-4:] == ["won", "tied", "lost", "marked correct"]  # no column of a mark that nobody gave
    assert rows[0][:2] == ["a", "1.00 (0.50 to 1.50)"] and rows[2][1] == "0.00 (−0.50 to 0.50)"
    assert rows[0][3:] == ["8", "5", "2", "1", "2"]
    _, ((*row,),) = tables.judges_table(people())
    assert row[:2] == ["Ann", "8 of 8"] and row[2].endswith(" of 4") and row[3:] == ["–", "–", "1", "6.5"]
    metric = {"metric": "rougeL", "tau": None, "agreement": interval(0.5, 0.25, 0.75), "votes": 4}
    _, ((*row,),) = tables.metrics_table(people(metrics=[metric]))
    assert (row[0], row[1], row[3]) == ("ROUGE-L", "–", "4")
    assert tables.decimal(interval(-0.001, -1.0, 0.004)) == "0.00 (−1.00 to 0.00)"
    assert tables.markdown(None) == "" and "8 votes on 3 questions (bootstrap)" in tables.markdown(people())
    said = tables.agreement(people(alpha=interval(0.5, 0.25, 0.75), position={**interval(0.5, 0.25, 0.75), "votes": 6}))
    assert said[0].startswith("Krippendorff's alpha of the judges is 0.50 (0.25 to 0.75)")
    assert said[1].startswith("Of 6 votes that chose a side 50") and said[2].startswith("One judge voted")
