"""What a search trains next depends on what was found, and not on the order in which it was found."""

import itertools

import pytest

from finllm.study.search import FAILED, Job, Rules, edge_of, grid_of, next_jobs

CURVES = {
    "inside": lambda place: 0.01 * (place + 14) ** 2, "far above": lambda place: -0.01 * place,
    "far below": lambda place: 0.01 * place, "flat": lambda place: 1.0, "failing": lambda place: FAILED,
    "failing above": lambda place: FAILED if place > -14 else -0.01 * place,
}  # fmt: skip


@pytest.mark.parametrize("rules", [Rules(60, 20), Rules(60, 20, going_on=1, widenings=1), Rules(60, 60, finer=False)])
@pytest.mark.parametrize("name", CURVES)
def test_what_is_due_is_the_same_in_whichever_order_trainings_ended(name, rules):
    grid, losses = grid_of(1e-4, 1e-3, 3), {}
    while due := next_jobs(grid, rules, losses):
        assert next_jobs(grid, rules, dict(reversed(losses.items()))) == due
        assert next_jobs(grid, rules, dict(sorted(losses.items(), key=lambda pair: pair[0].place))) == due
        losses[due[0]] = CURVES[name](due[0].place)
    assert next_jobs(grid, rules, dict(reversed(losses.items()))) == []
    if name == "failing":  # what fails at every rate is tried at no other, and never whole
        assert [*losses] == [Job(place, rules.part) for place in grid]


@pytest.mark.parametrize("going_on", [1, 2])
def test_where_those_that_go_on_all_fail_one_more_does_and_no_other(going_on):
    grid = [-18, -16, -14, -12, -10]
    losses = {Job(place, 4): loss for place, loss in zip(grid, (5.0, 4.0, 3.0, 3.5, 6.0), strict=True)}
    order = [-14, -12, -16, -18, -10]  # the best first
    for number in range(going_on):
        assert next_jobs(grid, Rules(9, 4, going_on), losses)[0] == Job(order[number], 9)
        losses[Job(order[number], 9)] = FAILED
    assert next_jobs(grid, Rules(9, 4, going_on), losses) == [Job(order[going_on], 9)]
    losses[Job(order[going_on], 9)] = FAILED
    assert next_jobs(grid, Rules(9, 4, going_on), losses) == []


@pytest.mark.parametrize(("low", "high", "points", "grid"), [
    (1e-4, 1e-3, 4, [-16, -14, -12, -10]), (1e-4, 1e-3, 1, [-14]), (1e-4, 1e-3, 2, [-14, -12]),
    (2e-4, 1e-3, 3, [-16, -14, -12]), (1e-4, 5e-4, 3, [-16, -14, -12]), (3e-5, 3e-4, 5, [-20, -18, -16, -14, -12]),
])  # fmt: skip
def test_a_grid_lies_on_half_decades_whatever_the_range_and_the_number(low, high, points, grid):
    found = grid_of(low, high, points)
    assert found == grid and {type(place) for place in found} == {int}


def test_a_search_has_its_defaults():
    assert Rules(60, 20) == Rules(whole=60, part=20, going_on=2, widenings=6, finer=True, fixed=False)


@pytest.mark.parametrize(("place", "edge"), [(2, "lowest"), (4, "inside"), (6, "highest")])
def test_an_edge_is_one_in_whichever_order_rates_were_tried(place, edge):
    for tried in itertools.permutations((2, 4, 6)):
        assert edge_of(place, (2, 4, 6), dict.fromkeys(tried, 0.0)) == edge
        both = dict.fromkeys((other for other in tried if other != 4), 0.0)
        assert [edge_of(each, (2, 6), both) for each in (2, 4, 6)] == ["lowest", "inside", "highest"]
