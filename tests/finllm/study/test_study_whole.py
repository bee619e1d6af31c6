"""study.json of a search in two parts, in whichever order its trainings ended: whole, and complete only where it is."""

import math
from types import SimpleNamespace

import pytest
import yaml

from finllm.files import write_json, write_jsonl
from finllm.study.equal import losses_at_equal_seconds
from finllm.study.results import difference_error, results_of
from finllm.study.search import FAILED, Job
from finllm.study.settings import read_study
from finllm.study.storage import Outcome, Task

CONTENT = {
    "shared": {"lora_r": 8}, "methods": {"a": {}, "b": {"search": {"lora_alpha": [1, 2]}}},
    "budget": {"steps": 12, "search_steps": 4}, "search": {"points": 3, "finer": False}, "seeds": [7, 8],
}  # fmt: skip
PLACES = (-16, -14, -12)  # the rates 0.0001, 0.000316 and 0.001


@pytest.fixture
def found(tmp_path):
    """study.json of outcomes by candidate, place, steps and seed: a loss, or the reason why there is none."""

    def call(outcomes, content=CONTENT):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        study = read_study(path, lambda settings: (1e-4, 1e-3))
        assert [each.grid for each in study.candidates] == [PLACES] * len(study.candidates)
        held = {candidate.name: {} for candidate in study.candidates}
        for (name, place, steps, seed), loss in outcomes.items():
            good = not isinstance(loss, str)
            outcome = Outcome(loss if good else FAILED, None if good else loss, 1.0, loss != "interrupted")
            held[name][Task(name, Job(place, steps), seed)] = outcome
        return results_of(study, SimpleNamespace(outcomes=lambda name: held[name]), tmp_path / "trials")

    return call


def searched(name, best=1.0):
    """A search that is over: the middle rate is the best, and both of its neighbours were trained whole."""
    parts = dict(zip(PLACES, (best + 4, best + 2, best + 3), strict=True))
    whole = dict(zip(PLACES, (best + 1, best, best + 0.5), strict=True))
    return {(name, place, 4, 7): loss for place, loss in parts.items()} | {
        (name, place, 12, 7): loss for place, loss in whole.items()
    }


WHOLE = {**searched("a"), ("a", -14, 12, 8): 1.125, **searched("b-alpha1", 2.0), **searched("b-alpha2", 1.5),
         ("b-alpha2", -14, 12, 8): 1.625}  # fmt: skip
RUN = "a-0.000316-seed7"


@pytest.mark.parametrize("turned", [False, True])
def test_rates_rise_and_steps_rise_in_whichever_order_trainings_ended(found, turned):
    content = found(dict(reversed(WHOLE.items())) if turned else WHOLE)
    a, b = (content["methods"][name] for name in "ab")
    assert a["tried"]["a"] == [
        {"rate": 1e-4, "run": "a-0.0001-seed7", "losses": {"4": 5.0, "12": 2.0}, "failed": None},
        {"rate": 3.16e-4, "run": RUN, "losses": {"4": 3.0, "12": 1.0}, "failed": None},
        {"rate": 1e-3, "run": "a-0.001-seed7", "losses": {"4": 4.0, "12": 1.5}, "failed": None},
    ]
    assert [list(each["losses"]) for each in a["tried"]["a"]] == [["4", "12"]] * 3
    assert a["chosen"] == {
        "candidate": "a", "settings": {}, "rate": 3.16e-4, "validation_loss": 1.0,
        "neighbours": [{"rate": 1e-4, "validation_loss": 2.0, "difference": 1.0, "error": None},
                       {"rate": 1e-3, "validation_loss": 1.5, "difference": 0.5, "error": None}],
        "edge": "inside", "width": [3.16e-4, 3.16e-4], "width_decades": 0.0,
    }  # fmt: skip
    assert (b["chosen"]["candidate"], b["chosen"]["settings"]) == ("b-alpha2", {"lora_alpha": 2})
    finals = [{"seed": seed, "run": f"a-0.000316-seed{seed}", "done": True, "failed": None} for seed in (7, 8)]
    assert a["finals"] == finals and a["failed"] is None
    assert {key: content[key] for key in ("budget", "seeds", "complete", "seconds", "trainings")} == {
        "budget": {"steps": 12, "search_steps": 4}, "seeds": [7, 8], "complete": True, "seconds": 20.0, "trainings": 20
    }  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("left_out", "complete"), [
    ([], True), ([("a", -14, 12, 8)], False), ([("b-alpha2", -14, 12, 8)], False), ([("a", -16, 12, 7)], False),
    ([("b-alpha1", -16, 12, 7)], False),
])  # fmt: skip
def test_a_study_is_complete_where_every_method_is_whichever_is_the_last(found, turned, left_out, complete):
    methods = dict(reversed(CONTENT["methods"].items())) if turned else CONTENT["methods"]
    outcomes = {key: loss for key, loss in WHOLE.items() if key not in left_out}
    assert found(outcomes, {**CONTENT, "methods": methods})["complete"] is complete


def test_a_method_has_failed_where_none_of_its_candidates_is_due(found):
    failing = {(name, place, 4, 7): "nan at step 1" for name in ("b-alpha1", "b-alpha2") for place in PLACES}
    assert found({**searched("a"), **failing})["methods"]["b"]["failed"] == "nan at step 1"
    for due in ("b-alpha1", "b-alpha2"):
        left = {key: loss for key, loss in failing.items() if key != (due, -14, 4, 7)}
        assert found({**searched("a"), **left})["methods"]["b"]["failed"] is None


def test_what_was_interrupted_is_no_rate_that_was_tried(found):
    content = found({("a", -14, 4, 7): "interrupted", ("a", -12, 4, 7): 2.0})
    assert [each["rate"] for each in content["methods"]["a"]["tried"]["a"]] == [1e-3]
    assert content["trainings"] == 2 and content["methods"]["a"]["failed"] is None


def test_a_final_run_that_failed_says_why_and_has_no_figures(found, tmp_path):
    """Even where its run dir is whole: one that ended without a validation loss has none to show."""
    run = tmp_path / "trials" / "a-0.000316-seed8"
    run.mkdir(parents=True)
    for name in ("config.yaml", "provenance.json"):
        (run / name).write_text("{}")
    write_jsonl(run / "metrics.jsonl", [])
    write_json(run / "summary.json", {"steps": 12})
    outcomes = {**WHOLE, ("a", -14, 12, 8): "it ended without a validation loss"}
    assert found(outcomes)["methods"]["a"]["finals"][1] == {
        "seed": 8, "run": run.name, "done": True, "failed": "it ended without a validation loss"
    }  # fmt: skip
    del outcomes["a", -14, 12, 8]
    assert found(outcomes)["methods"]["a"]["finals"][1] == {
        "seed": 8, "run": run.name, "done": False, "failed": None
    }  # fmt: skip


def test_an_error_is_a_plain_number_by_hand(tmp_path):
    """Of differences 1, 0 and −1 over 1, 2 and 1 tokens: r is 0, √(3/2 · 2) over 4."""
    for name, nll in (("first", [2.0, 3.0, 1.0]), ("second", [1.0, 3.0, 2.0])):
        (tmp_path / name).mkdir()
        rows = [{"nll": each, "tokens": size} for each, size in zip(nll, (1, 2, 1), strict=True)]
        write_jsonl(tmp_path / name / "validation.jsonl", rows)
    error = difference_error(tmp_path / "first", tmp_path / "second")
    assert error == pytest.approx(math.sqrt(3) / 4) and type(error) is float


def test_methods_that_were_trained_by_none_are_left_out_of_equal_seconds():
    run = {"train_seconds": 5.0, "steps": 10, "curve": [[0, 4.0], [10, 2.0]]}
    other = {"train_seconds": 10.0, "steps": 10, "curve": [[0, 4.0], [10, 1.0]]}
    failed = {"seed": 1, "failed": "nan"}
    found = losses_at_equal_seconds({"methods": {"none": {"finals": [failed]}, "a": {"finals": [failed, other]},
                                                 "b": {"finals": [run, failed]}}})  # fmt: skip
    assert found == {
        "a": {"seconds": 5.0, "step": 5.0, "validation_loss": 2.5},
        "b": {"seconds": 5.0, "step": 10.0, "validation_loss": 2.0},
    }
