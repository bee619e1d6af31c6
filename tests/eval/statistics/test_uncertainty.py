"""Intervals, tests and ranks as worked by hand and by scipy; what they do at their ends."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from eval.statistics.comparison import ALPHA, every_two, few_questions, ranks, smallest_p_value
from eval.statistics.seeds import mean_over_seeds
from eval.statistics.uncertainty import Figure, Spread, intervals, ratios


def interval_of(values, kind=None):
    """The interval of the mean of values, a question each."""
    statistics = np.stack([np.asarray(values, dtype=float), np.ones(len(values))], axis=1)
    kinds = {"mean": kind or Figure(1, low=-math.inf)}
    names = np.arange(len(values)).astype(str)
    return intervals(statistics, names, lambda sums: {"mean": sums[0] / sums[1]}, kinds)["mean"]


def test_an_interval_of_symmetric_values_is_students():
    values = [-3, -1, 0, 1, 3, 7, 5, 4, 3, 1]
    values = [*values, *(2 * np.mean(values) - np.array(values))]  # each mirrored in the mean
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = interval_of(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_an_interval_of_skewed_values_reaches_further_where_they_are_stretched():
    values = np.exp(np.linspace(-2, 2, 20))
    student, found = ttest_1samp(values, 0).confidence_interval(0.95), interval_of(values)
    assert found.low == pytest.approx(student.low) and found.high > student.high + 0.1 * (student.high - student.low)
    turned = interval_of(-values)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_a_ratio_is_that_of_sums_and_each_question_counts_by_its_size():
    """Leaving a question out moves the ratio by (x − ratio · size) / (all sizes − size)."""
    amounts, sizes = np.array([[2.0], [9.0], [4.0]]), np.array([[1.0], [3.0], [1.0]])
    values, deviations, shares = ratios(amounts, sizes)
    assert values == pytest.approx([3]) and shares[:, 0] == pytest.approx([0.2, 0.6, 0.2])
    left_out = [13 / 4, 6 / 2, 11 / 4]
    assert deviations[:, 0] == pytest.approx([3 - each for each in left_out])
    spread = Spread.of(deviations, shares)
    assert spread.freedom == pytest.approx([1 / 0.44 - 1])  # of 2.27 questions, not 3
    assert spread.error == pytest.approx([math.sqrt(2 / 3 * (0.25**2 + 0.25**2))])


@pytest.mark.parametrize("kind", [Figure(1, high=1), Figure(1), Figure(1, high=5), Figure(1, exponential=True)])
@pytest.mark.parametrize("value", [0.3, 1.0])
def test_a_figure_that_every_question_shares_has_an_interval_of_width_0(kind, value):
    for count in (1, 2, 7, 49):
        found = interval_of([value] * count, kind)
        assert found.low == found.high == found.value == pytest.approx(value)


@pytest.mark.parametrize("values", [[0, 0, 0, 1], [1] * 30 + [0], [0.01] * 5 + [0.9], [0] * 20 + [1]])
def test_a_share_stays_within_its_ends(values):
    found = interval_of(values, Figure(1, high=1))
    assert 0 < found.low < found.value < found.high < 1
    assert interval_of(values, Figure(1)).low >= 0


def test_an_exponential_has_the_interval_of_its_exponent():
    values = np.random.default_rng(2).gamma(2, 1, 30)
    statistics, names = np.stack([values, np.ones(30)], axis=1), np.arange(30).astype(str)
    kinds = {"nats": Figure(1), "perplexity": Figure(1, exponential=True)}
    made = lambda sums: {"nats": sums[0] / sums[1], "perplexity": math.exp(sums[0] / sums[1])}  # noqa: E731
    found = intervals(statistics, names, made, kinds)
    assert found["perplexity"].low == pytest.approx(math.exp(found["nats"].low))
    assert found["perplexity"].high == pytest.approx(math.exp(found["nats"].high))


def test_a_figure_that_is_none_has_no_interval_and_one_question_left_out_may_make_it_none():
    statistics, names = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]), ["a", "b", "c"]
    made = lambda sums: {"mean": sums[0] / sums[1] if sums[1] else None, "none": None}  # noqa: E731
    found = intervals(statistics, names, made, {"mean": Figure(1), "none": Figure(1)})
    assert found["none"] is None and (found["mean"].low, found["mean"].high) == (1, 1)


def pair(differences, size=None):
    """The comparison of two models whose nats differ by these."""
    differences = np.asarray(differences, dtype=float)
    nats = np.stack([differences, np.zeros(len(differences))], axis=1)
    return every_two(nats, np.ones(len(differences)) if size is None else size)[0, 1]


def test_two_equal_models_are_not_told_apart():
    for count in (1, 3, 30):
        found = pair([0.0] * count)
        assert (found["p_value"], found["p_adjusted"], found["difference"]) == (1, 1, 0)
    assert (found["low"], found["high"], found["few_questions"]) == (0, 0, None)


@pytest.mark.parametrize(("questions", "least"), [(1, 1), (2, 0.5), (5, 0.0625), (6, 0.03125), (12, 2 / 4096)])
def test_no_p_value_is_smaller_than_that_of_so_many_coins(questions, least):
    found = pair([0.5] * questions)
    assert smallest_p_value(questions) == found["p_value"] == found["p_adjusted"] == least
    assert (found["low"] is None) == (least > 0.05)  # no interval where nothing could be told apart


def test_an_interval_leaves_out_0_exactly_where_the_adjusted_p_value_is_below_5_percent():
    generator, told = np.random.default_rng(3), []
    for _ in range(40):
        size = np.exp(0.5 * generator.normal(size=30))
        nats = size[:, None] * (3 + generator.exponential(1, (30, 4)) * generator.uniform(0.2, 1, 4))
        for each in every_two(nats, size).values():
            told.append(each["p_adjusted"] < ALPHA)
            assert (each["low"] > 0 or each["high"] < 0) == told[-1]
            assert each["low"] <= each["difference"] <= each["high"] and each["p_value"] <= each["p_adjusted"]
    assert 0.1 < np.mean(told) < 0.9


def test_all_pairs_at_once_are_wider_than_one_and_narrower_than_bonferronis():
    nats = np.random.default_rng(4).normal(3, 1, (60, 6)) + np.linspace(0, 1, 6)
    found = every_two(nats, np.ones(60))
    first = pair(nats[:, 0] - nats[:, 1])
    assert found[0, 1]["p_value"] == pytest.approx(first["p_value"])
    assert found[0, 1]["high"] - found[0, 1]["low"] > 1.3 * (first["high"] - first["low"])
    raw = np.array([[each["p_value"], each["p_adjusted"]] for each in found.values()])
    middling = raw[(raw[:, 0] > 0.002) & (raw[:, 0] < 0.05)]
    assert len(middling) and (middling[:, 1] < 15 * middling[:, 0]).all()


@pytest.mark.parametrize(
    ("deviations", "few"),
    [
        ([1] * 40, None),
        ([1] * 39 + [-20], {"questions": 1, "share": 400 / 439}),
        ([1] * 37 + [10, 10, 10], {"questions": 3, "share": 300 / 337}),
        ([1] * 37 + [5, 5, 5], None),  # 75 of 112
        ([1] * 35 + [10] * 5, None),  # five of 40 are more than a tenth
        ([1, 1, 9], {"questions": 1, "share": 81 / 83}),
        ([0] * 40, None),
    ],
)
def test_few_questions_are_a_tenth_that_holds_more_than_four_fifths_of_the_variance(deviations, few):
    found = few_questions(np.array(deviations, dtype=float))
    assert found == (few and {"questions": few["questions"], "share": pytest.approx(few["share"])})


def ranked(count, apart, unranked=0):
    """Ranks of models 0 … count − 1, best first, where `apart` names the pairs that are told apart."""
    runs = [SimpleNamespace(name=number, ranked=number < count) for number in range(count + unranked)]
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    comparisons = [{"a": b, "b": a, "difference": 1.0, "p_adjusted": 0.01 if (a, b) in apart else 0.2}
                   for a, b in pairs]  # fmt: skip
    found = ranks(runs, comparisons)
    return [rank and (rank.position, rank.low, rank.high, rank.may_be_best) for rank in found.values()]


def test_ranks_as_worked_by_hand():
    assert ranked(3, set()) == [(1, 1, 3, True), (2, 1, 3, True), (3, 1, 3, True)]
    every = {(0, 1), (0, 2), (1, 2)}
    assert ranked(3, every, unranked=1) == [(1, 1, 1, True), (2, 2, 2, False), (3, 3, 3, False), None]
    assert ranked(1, set()) == [(1, 1, 1, True)]


def test_intervals_of_ranks_rise_down_the_table():
    """The second is steady and surely worse than the best; the third, worse still, is not told from it."""
    assert ranked(3, {(0, 1)}) == [(1, 1, 2, True), (2, 1, 3, False), (3, 1, 3, True)]
    # The third is surely better than the fourth, the first and second are not: their high ends hold for it, too.
    assert ranked(4, {(2, 3)}) == [(1, 1, 4, True), (2, 1, 4, True), (3, 1, 4, True), (4, 2, 4, False)]


def test_seeds_and_questions_both_widen_the_interval_of_a_mean():
    generator = np.random.default_rng(6)
    bits, size = generator.normal(3, 1, (50, 3)), np.ones(50)
    (value,), spread, _ = mean_over_seeds(bits, size, 3)
    questions = Spread.of(*ratios(bits.mean(1)[:, None], size[:, None])[1:])
    seeds = bits.mean(0).var(ddof=1) / 3
    assert value == pytest.approx(bits.mean())
    assert spread.error**2 == pytest.approx(questions.error**2 + seeds)
    # Satterthwaite: variance² / Σ (variance² / degrees of freedom)
    expected = spread.error**4 / (questions.error**4 / 49 + seeds**2 / 2)
    assert spread.freedom == pytest.approx(expected)
    (difference,), wider, _ = mean_over_seeds(np.hstack([bits, bits[:, :2] - 1]), size, 3)
    assert difference == pytest.approx(bits.mean() - bits[:, :2].mean() + 1)
    own = Spread.of(*ratios((bits.mean(1) - bits[:, :2].mean(1))[:, None], size[:, None])[1:])
    both = own.error**2 + seeds + bits[:, :2].mean(0).var(ddof=1) / 2
    assert wider.error**2 == pytest.approx(both)


def test_no_perplexity_is_below_one_where_few_questions_leave_all_open():
    from eval.metrics import perplexity
    from eval.metrics.figures import LIKELIHOOD

    statistics = np.array([[30.0, 10, 5, 50], [1.0, 2, 1, 9], [2.0, 40, 9, 200]])  # nats, tokens, right ones, bytes
    found = intervals(statistics, ["a", "b", "c"], lambda sums: perplexity.from_sums(*sums), LIKELIHOOD)
    assert found["nll_per_token"].low == 0 and found["perplexity"].low == 1
    assert found["perplexity"].high == pytest.approx(math.exp(found["nll_per_token"].high))
