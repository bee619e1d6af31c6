"""What one question tells of others, which is nothing, and two, which is something; and figures without an end."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from eval.results import Interval
from eval.statistics.comparison import every_two
from eval.statistics.uncertainty import Figure, intervals, ratios


def ratio_or_refused(sums):
    """As perplexity has it: of nothing at all there is no figure, and none may be asked for."""
    if not sums[1]:
        raise ValueError("nothing to divide by")
    return {"x": sums[0] / sums[1]}


@pytest.mark.parametrize("kind", [Figure(1), Figure(1, low=1, exponential=True), Figure(1, high=9)])
def test_one_question_is_never_left_out_and_has_no_width(kind):
    with warnings.catch_warnings(action="error"):
        for clusters in (["a"], ["a", "a"]):
            statistics = np.array([[6.0, 2.0], [4.0, 3.0]])[: len(clusters)]
            value = statistics[:, 0].sum() / statistics[:, 1].sum()
            found = intervals(statistics, clusters, ratio_or_refused, {"x": kind})
            assert found == {"x": Interval(value, value, value)}


def test_two_questions_have_students_interval_of_one_degree_of_freedom():
    statistics = np.array([[5.0, 1.0], [7.0, 1.0]])
    (found,) = intervals(statistics, ["a", "b"], ratio_or_refused, {"x": Figure(1, low=-math.inf)}).values()
    reach = stats.t.ppf(0.975, 1) * 1.0  # the standard error of 5 and 7
    assert [found.value, found.low, found.high] == pytest.approx([6, 6 - reach, 6 + reach])


def test_models_on_one_question_are_told_nothing_of():
    with warnings.catch_warnings(action="error"):
        values, deviations, shares = ratios(np.array([[3.0, -4.0]]), np.array([[2.0]]))
        found = every_two(np.array([[3.0, 1.0]]), np.array([2.0]))[0, 1]
    assert (values.tolist(), deviations.tolist(), shares.tolist()) == ([1.5, -2], [[0, 0]], [[1]])
    assert found == {"difference": pytest.approx(1 / math.log(2)), "low": None, "high": None, "p_value": 1,
                     "p_adjusted": 1, "few_questions": None}  # fmt: skip


@pytest.mark.parametrize("kind", [Figure(1), Figure(1, low=1, exponential=True)])
def test_an_infinite_figure_has_no_width_whatever_it_would_be_without_a_question(kind):
    def figure(sums):
        return {"x": math.inf if sums[0] > 700 else math.exp(sums[0] / sums[1])}

    with warnings.catch_warnings(action="error"):
        found = intervals(np.array([[1000.0, 1.0], [2.0, 1.0], [3.0, 1.0]]), ["a", "b", "c"], figure, {"x": kind})
    assert found == {"x": Interval(math.inf, math.inf, math.inf)}
