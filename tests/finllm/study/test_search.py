"""What a search trains next: against a curve whose best rate is known, whoever trains it and in whatever order."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finllm.study.search import FAILED, Job, Rules, best_of, edge_of, grid_of, next_jobs, place_of, rate_at, width_of

GRID = grid_of(1e-4, 1e-3, 5)
RULES = Rules(whole=60, part=20)


def searched(loss_of, grid=GRID, rules=RULES, order=None) -> dict[Job, float]:
    """All jobs of a search, `order` shuffles which of the due ones comes first."""
    losses: dict[Job, float] = {}
    while due := next_jobs(grid, rules, losses):
        assert not {*due} & {*losses}, "nothing is trained twice"
        job = (order or random.Random(0)).choice(due) if order else due[0]
        losses[job] = loss_of(job)
        assert len(losses) < 60
    return losses


def whole(losses, steps=60) -> dict[float, float]:
    return {job.place: loss for job, loss in losses.items() if job.steps == steps}


def test_the_grid_is_half_decades_around_the_middle_of_a_range():
    assert [rate_at(place) for place in GRID] == [3.16e-5, 1e-4, 3.16e-4, 1e-3, 3.16e-3]
    assert [rate_at(place) for place in grid_of(1e-5, 1e-3, 3)] == [3.16e-5, 1e-4, 3.16e-4]
    assert rate_at(place_of(2.5e-4)) == 2.5e-4


@settings(deadline=None)
@given(best=st.integers(-26, 0), tilt=st.sampled_from([0, 0.01, 0.03]), seed=st.integers(0, 999))
def test_the_best_rate_is_found_within_a_quarter_decade_wherever_it_lies_and_in_any_order(best, tilt, seed):
    def loss_of(job):  # the part prefers lower rates than the whole, as a schedule cut short does
        return 2 + 0.01 * (job.place - best) ** 2 + (tilt * (job.place - best) if job.steps == 20 else 0)

    losses = searched(loss_of)
    found = whole(losses)
    chosen = best_of(found)
    assert edge_of(chosen, GRID, found) == "inside"
    assert chosen == best
    if tilt == 0:  # a rate far beyond the grid is reached by parts of the budget, not by whole trainings
        assert len(found) <= 6
    shuffled = searched(loss_of, order=random.Random(seed))
    assert shuffled.keys() == losses.keys()


def test_widening_ends_and_says_at_which_edge_it_stood():
    losses = searched(lambda job: -0.01 * job.place, rules=Rules(60, 20, widenings=2))
    found = whole(losses)
    assert max(job.place for job in losses) <= GRID[-1] + 4 + 1
    assert edge_of(best_of({place: loss for place, loss in found.items()}), GRID, found) == "highest"


def test_rates_that_diverge_are_worse_than_all_others_and_are_not_trained_on():
    losses = searched(lambda job: FAILED if job.place > -14 else -0.01 * job.place)
    assert best_of(whole(losses)) == -14 and not any(job.place == -12 and job.steps == 60 for job in losses)
    assert searched(lambda job: FAILED).keys() == {Job(place, 20) for place in GRID}
    assert best_of({}) is None


def test_of_a_grid_only_the_best_and_its_neighbours_go_on():
    losses = searched(lambda job: 0.01 * (job.place + 14) ** 2, rules=Rules(60, 20, finer=False))
    assert sorted(whole(losses)) == [-16, -14, -12]
    finer = searched(lambda job: 0.01 * (job.place + 14) ** 2)
    assert sorted(whole(finer)) == [-16, -15, -14, -13, -12]


def test_rates_that_were_given_are_trained_whole_and_no_others():
    rates = (1e-4, 2.5e-4)
    losses = searched(lambda job: 1.0, grid=[place_of(rate) for rate in rates], rules=Rules(60, 60, fixed=True))
    assert [(rate_at(job.place), job.steps) for job in losses] == [(1e-4, 60), (2.5e-4, 60)]


@pytest.mark.parametrize(
    ("errors", "width"),
    [
        ({-18: 0.5, -16: 0.05, -12: 0.01, -10: 9}, (-16, -14)),  # −12 is a gap, so that −10 is not counted
        ({-18: 9, -16: 0.01, -12: 0.05, -10: 0.05}, (-14, -12)),  # and −16 another, so that −18 is not
        ({}, (-14, -14)),
        (dict.fromkeys((-18, -16, -12, -10), 9.0), (-18, -10)),
    ],
)
def test_the_good_rates_are_those_within_one_error_of_the_best_without_a_gap(errors, width):
    losses = {-18: 3.0, -16: 2.04, -14: 2.0, -12: 2.02, -10: 2.1}
    assert width_of(-14, losses, errors) == width
