"""Intervals cover what they should, tests reject what they should, on simulated data whose truth is known."""

import numpy as np
import pytest
from scipy.stats import norm, permutation_test, ttest_1samp

from eval.statistics.uncertainty import EXACT_QUESTIONS, bootstrap, holm, sign_flip_p_values, tie_groups

SIMULATIONS = 5000  # a share of 0.95 is then known to ± 0.6 %


def ratio(sums):
    return {"ratio": sums[0] / sums[1]}


def coverage(draw, truth, questions):
    """The share of simulations whose interval holds the truth; `draw` gives statistics and the names of questions."""
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(SIMULATIONS):
        interval = bootstrap(*draw(generator, questions), ratio)["ratio"]
        held += interval.low <= truth <= interval.high
    return held / SIMULATIONS


def independent(generator, questions):
    """An answer a question: bytes vary, nll follows them with noise; the ratio of sums is 2."""
    size = generator.gamma(4, 25, questions)
    return np.stack([size * (2 + generator.normal(0, 0.5, questions)), size], axis=1), np.arange(questions).astype(str)


def clustered(generator, questions):
    """One to five answers a question that share its difficulty: taken as independent, intervals would be too narrow."""
    names = np.repeat(np.arange(questions), 1 + np.arange(questions) % 5)
    size = generator.gamma(4, 25, len(names))
    difficulty = generator.normal(0, 0.5, questions)[names]
    return np.stack([size * (2 + difficulty + generator.normal(0, 0.2, len(names))), size], axis=1), names.astype(str)


@pytest.mark.parametrize(("draw", "questions"), [(independent, 50), (clustered, 50), (clustered, 150)])
def test_a_95_percent_interval_covers_95_percent_of_the_time(draw, questions):
    assert coverage(draw, 2, questions) == pytest.approx(0.95, abs=0.015)


def test_clusters_are_what_makes_it_so():
    def ignoring_clusters(generator, questions):
        statistics, names = clustered(generator, questions)
        return statistics, np.arange(len(names)).astype(str)

    assert coverage(ignoring_clusters, 2, 40) < 0.85


@pytest.mark.parametrize("questions", [12, 40])
def test_the_paired_test_rejects_a_true_null_5_percent_of_the_time(questions):
    """Clustered: a question's difference is the sum over its answers, some questions have many."""
    generator = np.random.default_rng(5)
    answers = generator.integers(1, 6, (questions, SIMULATIONS))
    differences = generator.standard_t(5, (questions, SIMULATIONS)) * answers
    assert (sign_flip_p_values(differences) < 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_the_paired_test_finds_a_difference_that_is_there():
    differences = np.random.default_rng(5).normal(0.5, 1, (40, 1000))
    found = (sign_flip_p_values(differences) < 0.05).mean()
    assert found > 0.8
    assert found == pytest.approx(np.mean(ttest_1samp(differences, 0).pvalue < 0.05), abs=0.03)


@pytest.mark.parametrize("questions", [1, 5, EXACT_QUESTIONS, EXACT_QUESTIONS + 1, 60])
def test_p_values_are_those_of_scipy(questions):
    differences = np.random.default_rng(questions).normal(0.3, 1, questions)
    (found,) = sign_flip_p_values(differences[:, None])
    if questions <= EXACT_QUESTIONS:
        flips = 1 - 2 * ((np.arange(2**questions)[:, None] >> np.arange(questions)) & 1)
        expected = np.mean(np.abs(flips @ differences) >= abs(differences.sum()) - 1e-12)
        assert found == pytest.approx(expected, abs=1e-12)
    else:
        expected = permutation_test(
            (differences, np.zeros(questions)), lambda a, b: np.sum(a - b), permutation_type="samples", rng=1
        )
        assert found == pytest.approx(expected.pvalue, abs=0.015)


def test_two_equal_models_are_not_told_apart():
    assert sign_flip_p_values(np.zeros((30, 1))).tolist() == [1.0]
    assert sign_flip_p_values(np.zeros((3, 1))).tolist() == [1.0]


def test_holms_adjustment_as_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holms_adjustment_keeps_the_chance_of_any_false_rejection_at_5_percent():
    p_values = norm.sf(np.random.default_rng(3).normal(size=(SIMULATIONS, 10)))
    wrong = np.mean([min(holm(row)) < 0.05 for row in p_values])
    assert wrong == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("apart", "ranks"),
    [
        (set(), [1, 1, 1, 1]),
        ({(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}, [1, 2, 3, 4]),
        ({(0, 2), (0, 3)}, [1, 1, 3, 3]),
        ({(0, 2), (1, 2)}, [1, 1, 4, 1]),  # the third is apart from the best, the fourth, though worse, is not
    ],
)
def test_models_that_cannot_be_told_from_their_groups_best_share_its_rank(apart, ranks):
    assert tie_groups(4, lambda a, b: (a, b) in apart) == ranks
