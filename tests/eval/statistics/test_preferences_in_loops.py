"""Strengths of lopsided votes, rates, agreement and rank correlation: against plain loops, and at their ends."""

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy.stats import kendalltau

from eval.statistics import preferences
from eval.statistics.preferences import DRAWS, Votes, agreement, estimate, rank_correlation, share, strengths, win_rates

PRIOR = 3.0  # nats


def slope(wins, ties, nats, tie):
    """Of Davidson's log-likelihood and the prior's, in the strengths and in the logarithm of ν: 0 at the maximum."""
    models = len(nats)
    of_strengths, of_tie = [-each / PRIOR**2 for each in nats], -math.log(tie) / PRIOR**2
    for i, j in itertools.combinations(range(models), 2):
        number = wins[i][j] + wins[j][i] + ties[i][j]
        largest = max(nats[i], nats[j], (nats[i] + nats[j]) / 2 + math.log(tie))
        first, second = math.exp(nats[i] - largest), math.exp(nats[j] - largest)
        even = math.exp((nats[i] + nats[j]) / 2 + math.log(tie) - largest)
        whole = first + second + even
        for model, won, power in ((i, wins[i][j], first), (j, wins[j][i], second)):
            of_strengths[model] += won + ties[i][j] / 2 - number * (power + even / 2) / whole
        of_tie += ties[i][j] - number * even / whole
    return [*of_strengths, of_tie]


LOPSIDED = {
    "no votes": ([[0, 0, 0]] * 3, [[0, 0, 0]] * 3),
    "one vote": ([[0, 1], [0, 0]], [[0, 0], [0, 0]]),
    "one tie": ([[0, 0], [0, 0]], [[0, 1], [1, 0]]),
    "ties alone": ([[0, 0], [0, 0]], [[0, 500], [500, 0]]),
    "nearly ties alone": ([[0, 3], [0, 0]], [[0, 5000], [5000, 0]]),
    "never a tie": ([[0, 30], [20, 0]], [[0, 0], [0, 0]]),
    "one is always better": ([[0, 90000], [0, 0]], [[0, 0], [0, 0]]),
    "in a circle": ([[0, 9, 0], [0, 0, 9], [9, 0, 0]], [[0, 0, 0]] * 3),
    "one in the middle": ([[0, 7, 9], [2, 0, 7], [1, 2, 0]], [[0, 3, 4], [3, 0, 3], [4, 3, 0]]),
    "two islands": ([[0, 4, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2], [0, 0, 7, 0]], [[0, 0, 0, 0]] * 4),
    # Steps as far as Newton's method would go from afar never end here.
    "far apart": ([[0, 0, 356938], [0, 0, 0], [0, 19, 0]], [[0, 84, 0], [84, 0, 35930], [0, 35930, 0]]),
    "further apart": (
        [[0, 9479, 41, 42289], [0, 0, 0, 0], [0, 985, 0, 0], [0, 0, 0, 0]],
        [[0, 7, 111, 0], [7, 0, 0, 2], [111, 0, 0, 1200], [0, 2, 1200, 0]],
    ),
    # Nor do they where each part of a step is shortened by its own length, or all of them by the least one's.
    "each its own length": (
        [[0, 7, 100, 0, 11], [0, 0, 5, 0, 0], [0, 0, 0, 2, 0], [0, 538, 143, 0, 58346], [0, 11361, 0, 0, 0]],
        [
            [0, 3706, 67, 41, 2],
            [3706, 0, 183, 0, 786],
            [67, 183, 0, 9017, 809],
            [41, 0, 9017, 0, 0],
            [2, 786, 809, 0, 0],
        ],
    ),
    "the least length": (
        [[0, 0, 1, 0, 0], [428, 0, 8976, 0, 19], [43, 0, 0, 6, 0], [0, 0, 22751, 0, 0], [51180, 521, 0, 0, 0]],
        [[0, 3, 0, 0, 0], [3, 0, 0, 7266, 0], [0, 0, 0, 11, 0], [0, 7266, 11, 0, 103], [0, 0, 0, 103, 0]],
    ),
}


@pytest.mark.parametrize("name", LOPSIDED)
def test_strengths_of_lopsided_votes_are_where_the_likelihood_is_flat(name):
    wins, ties = (np.array(table, dtype=float) for table in LOPSIDED[name])
    with np.errstate(all="raise", under="ignore"):
        (nats,), (tie,) = strengths(wins[None], ties[None])
    assert slope(wins.tolist(), ties.tolist(), nats.tolist(), tie) == pytest.approx([0] * (len(nats) + 1), abs=1e-6)
    assert nats.sum() == pytest.approx(0, abs=1e-9)


def test_draws_have_the_strengths_that_each_has_alone():
    """Whatever others there are: one without any vote, and others that take many steps."""
    names = ["no votes", "in a circle", "one in the middle", "far apart"]
    wins, ties = (np.array([LOPSIDED[name][table] for name in names], dtype=float) for table in (0, 1))
    nats, tie = strengths(wins, ties)
    for place in range(4):
        (alone,), (own,) = strengths(wins[place : place + 1], ties[place : place + 1])
        assert nats[place] == pytest.approx(alone, abs=1e-9) and tie[place] == pytest.approx(own)
    assert nats[0].tolist() == [0, 0, 0] and tie[0] == 1
    assert nats[1] == pytest.approx([0, 0, 0], abs=1e-12) and nats[2, 1] == pytest.approx(0, abs=1e-12)
    assert nats[2, 0] == pytest.approx(-nats[2, 2]) and nats[2, 0] > 0.5
    turned, _ = strengths(wins.transpose(0, 2, 1), ties)
    assert turned == pytest.approx(-nats, abs=1e-9)


def test_questions_and_judges_are_each_drawn_as_often_as_there_are():
    """Every judge votes on every question: the weights of a draw are a product of two draws, and so is their sum."""
    judge, question = (each.ravel() for each in np.meshgrid(range(2), range(3)))
    votes = Votes(2, judge, question, np.zeros(6, dtype=int), np.ones(6, dtype=int), np.array([1, -1, 0, 1, 0, -1]))
    weights = votes.weights()
    assert (weights.sum(1) == 6).all()
    of_questions, of_judges = weights.reshape(DRAWS, 3, 2).sum(2), weights.reshape(DRAWS, 3, 2).sum(1)
    assert set(np.unique(of_questions)) == {0, 2, 4, 6} and set(np.unique(of_judges)) == {0, 3, 6}
    # Binomial: a question of three is drawn 0 to 3 times with 8, 12, 6 and 1 of 27, a judge of two with 1, 2 and 1 of 4
    for column in of_questions.T:
        assert [(column == 2 * k).mean() for k in range(4)] == pytest.approx(
            [8 / 27, 12 / 27, 6 / 27, 1 / 27], abs=0.06
        )
    for column in of_judges.T:
        assert [(column == 3 * k).mean() for k in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.06)
    assert abs(np.corrcoef(of_questions[:, 0], of_judges[:, 0])[0, 1]) < 0.1
    assert preferences.drawn_with_replacement(np.random.default_rng(4), 5).sum(1).tolist() == [5] * DRAWS
    nats, rates, tie, draws, drawn_rates = estimate(votes)
    assert (
        rates.tolist() == [0.5, 0.5] and nats == pytest.approx([0, 0], abs=1e-12) and tie == pytest.approx(1, rel=0.01)
    )
    assert draws.shape == drawn_rates.shape == (DRAWS, 2)
    assert drawn_rates.sum(1) == pytest.approx(np.ones(DRAWS))


def test_who_has_no_vote_has_no_rate_and_nobody_is_warned():
    wins, ties = np.zeros((1, 3, 3)), np.zeros((1, 3, 3))
    wins[0, 0, 1], ties[0, 0, 1], ties[0, 1, 0] = 2, 1, 1
    with warnings.catch_warnings(action="error"):
        (rates,) = win_rates(wins, ties)
    assert rates[:2] == pytest.approx([2.5 / 3, 0.5 / 3]) and np.isnan(rates[2])


def alpha_of(units):
    """Krippendorff 2011, C and the ordinal metric, of any number of judges with gaps: 1 − observed / expected."""
    pairs = {}
    for unit in units.T:
        given = [each for each in unit if not math.isnan(each)]
        for one, other in itertools.permutations(range(len(given)), 2):
            key = given[one], given[other]
            pairs[key] = pairs.get(key, 0) + 1 / (len(given) - 1)
    often = {value: sum(many for (one, _), many in pairs.items() if one == value) for value in (-1, 0, 1)}
    whole = sum(often.values())

    def far(a, b):
        low, high = sorted((a, b))
        return (sum(often[value] for value in (-1, 0, 1) if low <= value <= high) - (often[a] + often[b]) / 2) ** 2

    observed = sum(many * far(*pair) for pair, many in pairs.items()) / whole
    expected = sum(often[a] * often[b] * far(a, b) for a in often for b in often) / (whole * (whole - 1))
    return 1 - observed / expected


def test_alpha_of_three_judges_with_gaps_and_its_interval_by_draws_of_our_own():
    generator, nan = np.random.default_rng(5), math.nan
    truth = generator.choice([-1.0, 0.0, 1.0], size=40, p=[0.2, 0.3, 0.5])
    units = np.where(generator.random((3, 40)) < 0.7, truth, generator.choice([-1.0, 0.0, 1.0], size=(3, 40)))
    units[generator.random((3, 40)) < 0.2] = nan
    judged = units[:, [sum(not math.isnan(each) for each in unit) > 1 for unit in units.T]]
    assert 30 < judged.shape[1] < 40
    found = agreement(units)
    assert found.value == pytest.approx(alpha_of(judged))
    many = [alpha_of(judged[:, generator.integers(judged.shape[1], size=judged.shape[1])]) for _ in range(1500)]
    assert [found.low, found.high] == pytest.approx(np.quantile(many, [0.025, 0.975]).tolist(), abs=0.03)
    assert agreement(judged) == found == agreement(np.hstack([judged, [[1.0], [nan], [nan]], [[nan]] * 3]))
    # A scale that nobody used to its upper end is the same scale.
    lower = np.minimum(units, 0)
    assert agreement(lower).value == pytest.approx(alpha_of(np.minimum(judged, 0)))


def test_draws_in_which_all_say_the_same_are_left_out():
    """Of three units two judges differ in one: in a third of the draws it is missing, and there is nothing to tell."""
    found = agreement(np.array([[1.0, 1, 1], [1, 1, -1]]))
    assert found.value == pytest.approx(0) and found.low < 0 <= found.high < 1
    assert agreement(np.array([[1.0], [-1]])) is not None
    assert agreement(np.zeros((2, 0))) is None and agreement(np.full((2, 3), math.nan)) is None
    assert agreement(np.array([[1.0, 1, 1]])) is None  # one judge agrees with nobody


def test_rank_correlation_is_of_each_draw_and_says_nothing_of_too_few():
    generator = np.random.default_rng(8)
    nats, values = np.array([0.5, -0.1, 0.3, -0.7]), np.array([2.0, 1.0, 2.0, 2.0])
    draws, drawn = generator.normal(size=(DRAWS, 4)), generator.integers(0, 3, (DRAWS, 4)).astype(float)
    drawn[:2] = 1.0  # values all alike, of which nothing can be said
    with warnings.catch_warnings(action="error"):
        found = rank_correlation(nats, draws, values, drawn)
    each = [kendalltau(one, other).statistic for one, other in zip(draws[2:], drawn[2:], strict=True)]
    low, high = np.quantile([tau for tau in each if not math.isnan(tau)], [0.025, 0.975])
    assert [found.value, found.low, found.high] == pytest.approx([kendalltau(nats, values).statistic, low, high])
    assert rank_correlation(nats[:3], draws[:, :3], values[:3], drawn[:, :3]).value == pytest.approx(
        kendalltau(nats[:3], values[:3]).statistic
    )
    assert rank_correlation(nats[:2], draws[:, :2], values[:2], drawn[:, :2]) is None
    assert rank_correlation(nats, draws, np.ones(4), drawn) is None


def test_shares_at_both_ends():
    """Wilson 1927: of n none reach to z² / (n + z²), and all from n / (n + z²)."""
    z = 1.959963984540054
    assert vars(share(0, 4)) == pytest.approx({"value": 0, "low": 0, "high": z**2 / (4 + z**2)})
    assert vars(share(4, 4)) == pytest.approx({"value": 1, "low": 4 / (4 + z**2), "high": 1})
    assert share(0, 0) is None and share(0, 1).value == 0
