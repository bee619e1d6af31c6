"""What the audits of one model are given: training examples, the template, and what was found out for another model."""

import math
import random

import pytest
from test_limits import Base, Run, Set, asked, example

from eval.audits import overlap
from eval.audits.audit import audit, stopping
from finllm.text.prompts import TEMPLATE_HASH


def whole(model, run, training, data):
    data, pairs, scores = asked(model, data)
    return audit(model, run, training, data, data, pairs, scores)


@pytest.mark.parametrize(("cut", "passed"), [(50, True), (51, False)])
def test_a_thousand_training_examples_are_looked_at_the_first_by_id(cut, passed):
    """Whatever their order is; what the others are like is not looked at."""
    training = [{**example(f"{number:04}", "?", "a" * (50 if number < cut or number >= 1000 else 5))}
                for number in range(2500)]  # fmt: skip
    limit = sum(map(len, Set().encode(Set.template.prompts(training[:1])[0], "a" * 5)))
    for seed in range(3):
        found = stopping(Set(), random.Random(seed).sample(training, len(training)), limit, [])
        assert found == {
            "passed": passed, "eos_supervised": 1 - cut / 1000, "max_length": limit, "training_examples": 1000,
            "summary": f"{100 - cut / 10:.3g} % of 1,000 training examples taught to stop (max_length {limit})",
        }  # fmt: skip


@pytest.mark.parametrize(("kept", "stopped", "passed"), [
    (True, True, True), (True, False, False), (False, True, False), (False, False, False),
])  # fmt: skip
def test_a_model_must_have_been_taught_to_stop_and_must_stop(kept, stopped, passed):
    answers = [{"prediction": "x", "stopped": stopped}, {"prediction": None, "stopped": None}]
    found = stopping(Set(), [example("t", "?", "a" * 9)], None if kept else 3, answers)
    assert found["passed"] is passed and found["eos_supervised"] == kept and found["stop_rate"] == stopped
    assert found["cut_by_limit"] == 1 - stopped


def test_which_template_a_run_was_trained_with_is_of_its_provenance():
    data = asked(Set())[0]
    assert whole(Set(), Run(), data, data)["template"] == {
        "passed": False, "trained_with": "f" * 64, "asked_with": TEMPLATE_HASH,
        "summary": f"trained with template {'f' * 12} and asked with {TEMPLATE_HASH[:12]}",
    }  # fmt: skip

    class Same(Run):
        def provenance(self):
            return {"template_hash": TEMPLATE_HASH}

    found = whole(Set(), Same(), data, data)["template"]
    assert (found["passed"], found["trained_with"], found["asked_with"]) == (True, TEMPLATE_HASH, TEMPLATE_HASH)
    found = whole(Set(), Base(), data, data)["template"]
    assert (found["passed"], found["trained_with"], found["asked_with"]) == (True, None, TEMPLATE_HASH)


def test_copies_in_the_same_data_are_looked_for_once(monkeypatch):
    """They take a minute, and are the same for all models of a command; in other data there are others."""
    calls = []

    def contamination(test, training):
        calls.append((test, training))
        return {"passed": True, "summary": "", "copies": len(calls)}

    monkeypatch.setattr(overlap, "contamination", contamination)
    monkeypatch.setattr("eval.audits.audit._OF_DATA", {})
    data = asked(Set())[0]
    first, again = (whole(Set(), Run(), data[:5], data)["contamination"] for _ in range(2))
    assert first == again and first["copies"] == 1 and calls == [(data, data[:5])]
    first["copies"] = "another model's"
    assert whole(Set(), Run(), data[:5], data)["contamination"] == again
    assert whole(Set(), Run(), data[:6], data)["contamination"]["copies"] == 2
    assert whole(Set(), Run(), data[:5], data[:9])["contamination"]["copies"] == 3


def test_whether_rows_move_each_other_is_told_to_the_next_audits():
    """A model that is moved by its neighbours sees nothing of the future: its rows are looked at one by one."""
    data = asked(Set())[0]

    class Beside(Set):
        def log_probs(self, pairs):
            return [each + 0.5 * (len(pairs) > 1) for each in super().log_probs(pairs)]

    found = whole(Beside(), Base(), data, data)
    assert not found["reproducibility"]["passed"] and found["reproducibility"]["depends_on_neighbours"]
    assert found["causality"]["passed"] and found["causality"]["largest_difference"] == 0.0
    assert found["likelihood"]["passed"]


@pytest.mark.parametrize(("shift", "apart"), [(0.3, 0.3), (-0.3, 0.3), (math.nan, None)])
def test_what_the_probabilities_sum_to_is_of_the_likelihood(shift, apart):
    data = asked(Set())[0]
    found = whole(Set(cut=lambda *_: shift), Base(), data, data)
    assert "unnormalised" not in found["causality"] and not found["likelihood"]["passed"]
    assert found["likelihood"]["unnormalised"] == (apart and pytest.approx(apart))
