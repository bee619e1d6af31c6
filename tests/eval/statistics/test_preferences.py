"""Strengths from votes against a second computation, by known answers, and how often their intervals hold."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import kendalltau

from eval.statistics.preferences import (
    DRAWS,
    PRIOR,
    Votes,
    agreement,
    estimate,
    interval,
    rank_correlation,
    share,
    strengths,
    win_rates,
)


def tables(models: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    wins, ties = generator.integers(0, 9, size=(2, models, models)).astype(float)
    np.fill_diagonal(wins, 0)
    return wins, np.triu(ties, 1) + np.triu(ties, 1).T


@pytest.mark.parametrize("models", [2, 3, 6])
def test_strengths_are_the_maximum_of_davidsons_likelihood(models):
    wins, ties = tables(models, models)

    def cost(parameters):  # pair by pair, as the formulas are written
        powers, tie = np.exp(parameters[:-1]), np.exp(parameters[-1])
        value = (parameters**2).sum() / (2 * PRIOR**2)
        for i in range(models):
            for j in range(i + 1, models):
                even = tie * np.sqrt(powers[i] * powers[j])
                whole = powers[i] + powers[j] + even
                value -= wins[i, j] * np.log(powers[i] / whole) + wins[j, i] * np.log(powers[j] / whole)
                value -= ties[i, j] * np.log(even / whole)
        return value

    found = minimize(cost, np.zeros(models + 1), method="BFGS", options={"gtol": 1e-8}).x
    (nats,), (tie,) = strengths(wins[None], ties[None])
    assert nats == pytest.approx(found[:-1] - found[:-1].mean(), abs=1e-5) and tie == pytest.approx(
        np.exp(found[-1]), rel=1e-5
    )


def test_many_votes_give_the_strengths_that_they_were_drawn_with():
    truth, tie = np.array([1.0, 0.2, -1.2]), 0.7
    expected = np.zeros((2, 3, 3))
    for i in range(3):
        for j in range(3):
            if i != j:
                even = tie * np.exp((truth[i] + truth[j]) / 2)
                whole = np.exp(truth[i]) + np.exp(truth[j]) + even
                expected[:, i, j] = np.exp(truth[i]) / whole, even / whole
    (nats,), (found,) = strengths(*(10_000 * expected)[:, None])
    assert nats == pytest.approx(truth, abs=1e-3) and found == pytest.approx(tie, rel=1e-3)


def test_who_never_lost_is_strong_and_not_infinitely_so_and_nobody_is_told_of_who_never_met():
    wins = np.zeros((1, 3, 3))
    wins[0, 0, 1] = 50
    (nats,), _ = strengths(wins, np.zeros((1, 3, 3)))
    assert 3 < nats[0] - nats[1] < 12 and nats[0] > nats[2] > nats[1]
    (rates,) = win_rates(wins, np.zeros((1, 3, 3)))
    assert rates[:2].tolist() == [1, 0] and np.isnan(rates[2])
    ties = np.zeros((1, 3, 3))
    ties[0, 0, 1] = ties[0, 1, 0] = 50
    assert win_rates(wins, ties)[0, :2].tolist() == [0.75, 0.25]


def drawn(generator, truth, judges, questions, spread, taste=0.0):
    """Votes of judges on questions, each pair of models met equally often; questions favour one of two models by
    `spread`, and judges any model by `taste` (standard deviations in nats)."""
    models = len(truth)
    own = truth + generator.normal(0, 1, size=(judges, models)) * taste
    pairs = [(i, j) for i in range(models) for j in range(i + 1, models)]
    columns = []
    for question in range(questions):
        i, j = pairs[question % len(pairs)]
        of_question = generator.normal(0, spread)
        for judge in range(judges):
            even = 0.5
            apart = (own[judge, i] - own[judge, j] + of_question) / 2
            first, second = np.exp(apart), np.exp(-apart)
            chances = np.array([first, even, second]) / (first + even + second)
            columns.append((judge, question, i, j, generator.choice([1, 0, -1], p=chances)))
    return Votes(models, *np.array(columns).T)


def test_intervals_are_of_draws_and_those_of_equals_reach_over_zero():
    votes = drawn(np.random.default_rng(0), np.zeros(3), judges=2, questions=30, spread=0.5)
    nats, _, tie, draws, rates = estimate(votes)
    assert draws.shape == rates.shape == (DRAWS, 3) and tie > 0
    assert np.isclose(nats.sum(), 0) and np.allclose(draws.sum(1), 0, atol=1e-8)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    assert (low < 0).all() and (high > 0).all()
    assert np.array_equal(estimate(votes)[3], draws)  # the same votes, the same intervals


def ordinal_alpha(one, other):
    """Krippendorff 2011, C and the ordinal metric, of two observers without gaps: 1 − (n − 1) Σ o δ² / Σ n n δ²."""
    values = [-1, 0, 1]
    pairs = [(a, b) for a, b in zip(one, other, strict=True)] + [(b, a) for a, b in zip(one, other, strict=True)]
    often = {value: sum(a == value for a, _ in pairs) for value in values}

    def far(a, b):
        low, high = sorted((a, b))
        return (sum(often[value] for value in values if low <= value <= high) - (often[a] + often[b]) / 2) ** 2

    expected = sum(often[a] * often[b] * far(a, b) for a in values for b in values if a != b)
    return 1 - (len(pairs) - 1) * sum(far(a, b) for a, b in pairs if a != b) / expected


def test_alpha_is_one_of_judges_who_agree_and_about_nothing_of_those_who_guess():
    generator = np.random.default_rng(1)
    votes = generator.choice([-1.0, 0.0, 1.0], size=30)
    assert agreement(np.array([votes, votes])).value == 1
    guessed = agreement(generator.choice([-1.0, 0.0, 1.0], size=(3, 400)))
    assert guessed.low < 0 < guessed.high and guessed.high - guessed.low < 0.3
    # Krippendorff 2011, "Computing Krippendorff's alpha-reliability", A: two observers, two values, alpha 0.095
    two = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    assert agreement(np.array(two, dtype=float)).value == pytest.approx(0.095, abs=5e-4)
    # Of three values the ordinal scale is not that of intervals: distances depend on how frequent values are.
    three = np.array([[-1, -1, 1, 1, 0, 1, 1, 1], [-1, 0, 1, 1, 1, 1, 1, -1]], dtype=float)
    assert agreement(three).value == pytest.approx(ordinal_alpha(*three), abs=1e-9)
    assert agreement(np.array([[1.0, np.nan], [np.nan, 1.0]])) is None and agreement(np.ones((2, 5))) is None


def test_tau_is_scipys_and_says_nothing_of_two_models_or_of_equal_values():
    generator = np.random.default_rng(2)
    for models in (3, 6):
        nats, values = generator.normal(size=models), generator.integers(0, 4, size=models).astype(float)
        draws = generator.normal(size=(DRAWS, models))
        found = rank_correlation(nats, draws, values, draws)
        assert found.value == pytest.approx(kendalltau(nats, values).statistic) and found.high == 1
    assert rank_correlation(nats[:2], draws[:, :2], values[:2], draws[:, :2]) is None
    assert rank_correlation(nats, draws, np.ones(6), draws) is None


def test_a_share_of_nothing_is_none_and_one_of_few_is_wide():
    assert share(0, 0) is None
    assert share(5, 5).low == pytest.approx(0.5655, abs=1e-4) and share(5, 5).high == 1  # Wilson 1927: n / (n + z²)


@pytest.mark.soak
@pytest.mark.parametrize(("judges", "questions", "spread", "taste"), [
    (1, 32, 0.0, 0.0), (1, 32, 1.0, 0.0), (3, 32, 1.0, 0.0), (3, 32, 1.0, 0.5), (5, 90, 1.0, 0.5), (5, 90, 1.0, 1.0),
])  # fmt: skip
def test_intervals_of_strength_hold(judges, questions, spread, taste):
    """Printed for docs/trust.md. The truth of a strength is what many judges say on many questions."""
    truth, generator = np.array([0.6, 0.0, -0.6]), np.random.default_rng(7)
    whole = drawn(generator, truth, 300, 300, spread, taste)
    (known,), _ = strengths(*whole.tables(np.ones((1, 90_000))))
    held = []
    for _ in range(200):
        votes = drawn(generator, truth, judges, questions, spread, taste)
        low, high = np.quantile(estimate(votes)[3], [0.025, 0.975], axis=0)
        held.append((low <= known) & (known <= high))
    rate = np.mean(held)
    print(f"| {judges} | {questions} | {spread} | {taste} | {100 * rate:.1f} % |")
    assert rate > 0.85


# By hand -------------------------------------------------------------------------------------------------------------

FEW = Votes(
    3, judge=np.array([0, 1, 0, 1, 0]), question=np.array([0, 0, 1, 1, 2]), a=np.array([0, 1, 0, 2, 1]),
    b=np.array([1, 0, 2, 0, 2]), outcome=np.array([1, 1, -1, 0, 0]),
)  # fmt: skip


def test_tables_count_wins_and_ties_by_their_weights():
    wins, ties = FEW.tables(np.array([[1.0] * 5, [2.0, 3.0, 0.0, 5.0, 7.0]]))
    assert wins[0].tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]] and wins[1].tolist() == [
        [0, 2, 0],
        [3, 0, 0],
        [0, 0, 0],
    ]
    assert ties[0].tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]] and ties[1].tolist() == [
        [0, 0, 5],
        [0, 0, 7],
        [5, 7, 0],
    ]
    # (wins + half of the ties) / votes: 0 has a win, two losses and a tie
    assert win_rates(*FEW.tables(np.ones((1, 5))))[0] == pytest.approx([1.5 / 4, 1.5 / 3, 2 / 3])


def test_a_vote_counts_as_often_as_its_question_times_its_judge():
    weights = FEW.weights()
    assert weights.shape == (DRAWS, 5) == (999, 5) and np.array_equal(weights, FEW.weights())
    # Votes 0 and 1 share a question, 0, 2 and 4 a judge: so w0 · w3 = w1 · w2.
    assert np.array_equal(weights[:, 0] * weights[:, 3], weights[:, 1] * weights[:, 2])
    assert weights.mean(0) == pytest.approx(np.ones(5), abs=0.15) and (weights == np.floor(weights)).all()
    judges = weights[:, 0] + weights[:, 1]  # question 0's weight times two
    assert set(np.unique(judges % 2)) == {0.0} and judges.max() <= 6
    one = Votes(3, np.zeros(5, dtype=int), FEW.question, FEW.a, FEW.b, FEW.outcome).weights()
    assert np.array_equal(one[:, 0], one[:, 1]) and np.array_equal(one[:, 2], one[:, 3])
    assert (one[:, 0] + one[:, 2] + one[:, 4] == 3).all()  # of one judge only questions are drawn


def test_an_estimate_is_of_all_votes_and_of_every_draw():
    nats, rates, tie, draws, drawn_rates = estimate(FEW)
    assert nats == pytest.approx(strengths(*FEW.tables(np.ones((1, 5))))[0][0])
    assert tie == pytest.approx(strengths(*FEW.tables(np.ones((1, 5))))[1][0])
    assert rates == pytest.approx([1.5 / 4, 1.5 / 3, 2 / 3])
    tables = FEW.tables(FEW.weights())
    assert draws == pytest.approx(strengths(*tables)[0])
    assert np.array_equal(drawn_rates, win_rates(*tables), equal_nan=True)


@pytest.mark.parametrize("factor", [1, 7])
def test_other_names_of_models_and_other_sides_change_nothing(factor):
    wins, ties = tables(4, 5)
    order = np.array([2, 0, 3, 1])
    (nats,), (tie,) = strengths(factor * wins[None], factor * ties[None])
    (turned,), (same,) = strengths(
        factor * wins[None][:, order][:, :, order], factor * ties[None][:, order][:, :, order]
    )
    assert turned == pytest.approx(nats[order]) and same == pytest.approx(tie)
    (mirrored,), (even,) = strengths(factor * wins.T[None], factor * ties[None])
    assert mirrored == pytest.approx(-nats) and even == pytest.approx(tie)  # who lost now won


def test_an_interval_is_of_percentiles_and_holds_its_value():
    draws = np.array([*np.arange(101.0), np.nan, np.inf])
    found = interval(50.0, draws)
    assert [found.value, found.low, found.high] == pytest.approx([50, 2.5, 97.5])
    assert (interval(-1.0, draws).low, interval(99.0, draws).high) == (-1.0, 99.0)
    assert vars(interval(3.0, np.array([np.nan]))) == {"value": 3.0, "low": 3.0, "high": 3.0}


def test_a_share_has_wilsons_interval():
    found, z = share(3, 8), 1.959963984540054
    middle, reach = (3 / 8 + z**2 / 16) / (1 + z**2 / 8), z * np.sqrt(3 / 8 * 5 / 8 / 8 + z**2 / 256) / (1 + z**2 / 8)
    assert [found.value, found.low, found.high] == pytest.approx([3 / 8, middle - reach, middle + reach])


def test_agreement_is_of_units_that_two_judges_share():
    nan = np.nan
    units = np.array([[1, 1, 0, -1, 1, nan], [1, 0, 0, -1, nan, 1], [nan, 1, 0, nan, nan, nan]], dtype=float)
    found = agreement(units)
    assert found.value == pytest.approx(agreement(units[:, :4]).value) and found.low <= found.value <= found.high
    assert vars(agreement(units)) == vars(found) and found.low < found.high
    assert agreement(-units).value == pytest.approx(found.value)  # on a scale that has no upper end
    assert agreement(units[[1, 2, 0]]).value == pytest.approx(found.value)
