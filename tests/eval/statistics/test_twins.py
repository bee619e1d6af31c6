"""Models that are the same beside others that are not, and what few draws or questions say."""

import warnings

import numpy as np
import pytest

from eval.statistics import comparison
from eval.statistics.comparison import every_two


def test_a_twin_of_one_model_changes_nothing_between_the_others():
    """The largest |t| of all pairs is the same with each pair of the twin's again, and the twins' own of nothing."""
    draw = np.random.default_rng(14)
    nats = draw.gamma(3, 1, (25, 3)) + np.array([0, 0.3, 0.8])
    with warnings.catch_warnings(action="error"):
        without, found = (every_two(each, np.full(25, 10.0)) for each in (nats, nats[:, [0, 1, 2, 0]]))
    assert 0.001 < without[0, 2]["p_adjusted"] < 0.9
    for pair, each in without.items():
        assert found[pair] == {key: value and pytest.approx(value, rel=1e-9) for key, value in each.items()}
    assert found[0, 3] == {"difference": 0, "low": 0, "high": 0, "p_value": 1, "p_adjusted": 1, "few_questions": None}


def test_every_part_of_the_draws_is_drawn():
    """A strength that no draw reaches has the least p-value of 9,999 draws, and one between has that of its place."""
    deviations = np.random.default_rng(3).normal(size=(8, 3))
    quantile, p_values = comparison._all_at_once(deviations, 7.0, np.array([0.0, 1e6, 2.0]))
    assert p_values[:2].tolist() == [1, 1e-4] and 0.05 < p_values[2] < 0.3
    # Of the largest of three the quantile lies between that of one and Bonferroni's: t₇ at 2.5 % and at 2.5 / 3 %.
    assert 2.3646 < quantile < 3.1276
