"""What a study says of the time that it will take: before it starts, and of every method while it runs."""

from types import SimpleNamespace

import pytest
import yaml

from finllm.study.conduct import Found
from finllm.study.progress import START_UP, plan_table, standing
from finllm.study.search import FAILED, Job
from finllm.study.settings import read_study
from finllm.study.storage import Outcome, Task

CONTENT = {
    "shared": {"lora_r": 8}, "methods": {"a": {}, "b": {"lora_r": 4}}, "budget": {"steps": 60, "search_steps": 20},
    "search": {"points": 3, "going_on": 2, "finer": False}, "seeds": [7, 8],
}  # fmt: skip
# Of each method: three rates to step 20, three of them on to 60, and another seed
STEPS, TRAININGS = 3 * 20 + 3 * 40 + 60, 3 + 3 + 1
LOW, MIDDLE, HIGH = -16, -14, -12


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    return read_study(path, lambda settings: (1e-4, 1e-3))


@pytest.fixture
def left(study):
    """The minutes that the live table says are left, of outcomes by method, place, steps and seed."""

    def call(outcomes, plans=None, workers=1):
        held = {"a": {}, "b": {}}
        for (name, place, steps, seed), (loss, seconds) in outcomes.items():
            failed = "diverged" if loss == FAILED else None
            held[name][Task(name, Job(place, steps), seed)] = Outcome(loss, failed, seconds, True)
        found = Found(study, SimpleNamespace(outcomes=held.__getitem__))
        caption = standing(SimpleNamespace(study=study, at_work={}), found, plans or {}, workers).caption
        return float(caption.split()[1].replace(",", "")) if caption.endswith(" minutes are left") else caption

    return call


def test_before_anything_was_trained_the_time_left_is_what_the_plan_said(study, left):
    plans = {"a": {"step_seconds": 6.0, "tokens_per_second": 100.0}}
    _, seconds = plan_table(study, plans, 2)
    assert seconds == (STEPS * 6.0 + TRAININGS * START_UP)  # of two methods with two workers
    assert left({}, plans, 2) == round(seconds / 60)
    assert left({}) == left({}, {"a": "no plan"}) == "how long it will take is known once a training has ended"


def test_a_method_that_has_not_begun_is_as_slow_as_those_that_have(left):
    """Whatever the plan said: it is what was measured that counts, a start-up of each process included."""
    plans = {"a": {"step_seconds": 0.1, "tokens_per_second": 100.0}}
    begun = {("a", LOW, 20, 7): (3.0, 180.0)}  # nine seconds a step
    assert left(begun, plans) == round(9 * (STEPS - 20 + STEPS) / 60)
    assert left(begun, plans, 3) == round(9 * (STEPS - 20 + STEPS) / 60 / 3)
    both = {**begun, ("b", LOW, 20, 7): (3.0, 60.0)}
    assert left(both, plans) == round((9 + 3) * (STEPS - 20) / 60)


def test_a_run_that_went_on_counts_its_steps_once_and_its_seconds_twice(left):
    parts = {("a", place, 20, 7): (3.0, 60.0) for place in (LOW, MIDDLE, HIGH)}
    gone_on = {**parts, ("a", MIDDLE, 60, 7): (2.0, 320.0)}
    pace = (3 * 60 + 320) / (20 + 20 + 60)
    assert left(gone_on) == round(pace * (STEPS - 100 + STEPS) / 60)


def test_what_diverged_says_nothing_of_the_pace(left):
    begun = {("a", LOW, 20, 7): (3.0, 180.0)}
    assert left({**begun, ("a", HIGH, 20, 7): (FAILED, 1.0)}) == left(begun)


def test_nothing_is_left_when_all_is_done(left):
    done = {}
    for name in "ab":
        done |= {(name, place, 20, 7): (3.0 + (place != MIDDLE), 60.0) for place in (LOW, MIDDLE, HIGH)}
        done |= {(name, place, 60, 7): (2.0 + (place != MIDDLE), 60.0) for place in (LOW, MIDDLE, HIGH)}
        done[name, MIDDLE, 60, 8] = (2.0, 60.0)
    one = {key: end for key, end in done.items() if key != ("b", MIDDLE, 60, 8)}
    assert left(done) == "nothing is left to train"
    pace = (3 * 60 + 3 * 60) / (3 * 60)  # of three runs in two parts each; the seed that is left has 60 steps
    assert left(one) == round(60 * pace / 60)
    assert left(one, workers=2) == "about a minute is left"


def test_a_search_that_took_more_than_was_planned_is_not_over_before_its_seeds_are(left):
    whole = {("a", place, 60, 7): (2.0 + abs(place - MIDDLE), 60.0) for place in range(LOW - 4, HIGH + 1, 2)}
    parts = {("a", place, 20, 7): (3.0 + abs(place - MIDDLE), 60.0) for place in range(LOW - 4, HIGH + 1, 2)}
    assert STEPS < 5 * 60 and left({**whole, **parts}) == round(2 * (20 + STEPS) / 60)
