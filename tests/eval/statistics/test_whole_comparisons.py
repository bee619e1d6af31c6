"""Comparisons, ranks and recipes whole, at both sides of their limits; intervals at the ends of figures."""

import json
import math
import warnings
from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from eval.results import Interval
from eval.statistics import comparison
from eval.statistics.comparison import compare, compare_numbers, every_two, few_questions, ranks, summed
from eval.statistics.seeds import compare_recipes, mean_over_seeds, recipes
from eval.statistics.uncertainty import Figure, Spread, by_question, intervals, ratios


def run(name, rows, numbers=0, ranked=True, method="lora", config=None, metrics=None):
    return SimpleNamespace(
        name=name, predictions=rows, ranked=ranked, config=config or {}, provenance={},
        results=SimpleNamespace(model=SimpleNamespace(method=method)),
        split=SimpleNamespace(numbers=numbers, metrics=metrics or {}),
    )  # fmt: skip


def answers(*verdicts):
    """Rows of answers to two examples a question, whose numbers are right, wrong, or were not asked for (None)."""
    return [{"id": f"i{place:02}", "question_id": f"q{place // 2}"} | ({} if each is None else {"number_right": each})
            for place, each in enumerate(verdicts)]  # fmt: skip


def test_numbers_are_compared_on_what_all_answered_and_a_question_counts_once():
    """Four questions: of the 7 answers that all gave 6 of a are right, 2 of b and 3 of c."""
    a = answers(True, True, True, False, True, True, False, True, None)
    b = answers(True, False, False, False, True, False, None, False, None)
    c = answers(False, True, True, False, True, False, True, False, True)[::-1]
    runs = [run("a", a, 8), run("none", answers(True), 0), run("b", b, 7), run("c", c, 9)]
    found = compare_numbers(runs)
    assert [(each["a"], each["b"], each["metric"], each["examples"], each["questions"]) for each in found] == [
        ("a", "b", "number_right", 7, 4), ("a", "c", "number_right", 7, 4), ("b", "c", "number_right", 7, 4)
    ]  # fmt: skip
    assert [each["difference"] for each in found] == pytest.approx([4 / 7, 3 / 7, -1 / 7])
    assert all(each["low"] is None and each["high"] is None for each in found)  # 3 pairs of 4 questions: 3 / 8
    assert [each["p_adjusted"] >= 3 / 8 and each["p_value"] >= 1 / 8 for each in found] == [True] * 3
    (pair,) = compare_numbers([runs[0], runs[2]])
    differences = np.array([1.0, 1.0, 1.0, 1.0])
    of_sizes = comparison.differences(np.stack([differences, np.zeros(4)], 1), np.array([2.0, 2.0, 2.0, 1.0]))[0, 1]
    assert pair == {"a": "a", "b": "b", "metric": "number_right", "examples": 7, "questions": 4} | of_sizes
    assert json.loads(json.dumps(found)) == found
    assert compare_numbers(runs[:2]) == compare_numbers(runs[1:2]) == compare_numbers([]) == []
    assert compare_numbers([run("a", answers(True, None), 1), run("b", answers(None, True), 1)]) == []


def test_numbers_of_many_questions_have_intervals():
    verdicts = np.random.default_rng(1).random((2, 40)) < [[0.8], [0.3]]
    rows = [[{"id": str(n), "question_id": f"{n:02}", "number_right": bool(each)} for n, each in enumerate(column)]
            for column in verdicts]  # fmt: skip
    (found,) = compare_numbers([run("a", rows[0], 40), run("b", rows[1], 40)])
    differences = verdicts[0].astype(float) - verdicts[1]
    t = stats.ttest_1samp(differences, 0)
    assert found["difference"] == pytest.approx(differences.mean()) and found["p_value"] == found["p_adjusted"]
    reach = stats.t.ppf(0.975, 39) * differences.std(ddof=1) / math.sqrt(40)
    assert found["low"] <= differences.mean() - reach + 1e-9 and found["high"] >= differences.mean() + reach - 1e-9
    assert found["p_value"] >= t.pvalue  # corrected for skew


def likelihoods(name, nats, sizes, **settings):
    rows = [{"id": f"i{n}", "question_id": f"q{n // 2}", "nll": each, "bytes": size}
            for n, (each, size) in enumerate(zip(nats, sizes, strict=True))]  # fmt: skip
    return run(name, rows, **settings)


def test_sums_of_questions_are_by_id_whatever_the_order_of_rows():
    first = likelihoods("a", [1.0, 2.0, 4.0, 8.0, 16.0], [3, 5, 7, 9, 11])
    second = likelihoods("b", [32.0, 64.0, 128.0, 256.0, 512.0], [3, 5, 7, 9, 11])
    second.predictions.reverse()
    nats, size = summed([first, second])
    assert nats.tolist() == [[3, 96], [12, 384], [16, 512]] and size.tolist() == [8, 16, 11]
    turned, same = summed([second, first])
    assert turned.tolist() == nats[:, ::-1].tolist() and same.tolist() == size.tolist()
    assert summed([second])[0].tolist() == [[96], [384], [512]]


def test_every_two_ranked_runs_are_compared_and_nothing_else_is():
    draw = np.random.default_rng(2)
    runs = [likelihoods(name, list(draw.gamma(3, 1, 30)), [9] * 30, ranked=name != "x") for name in "axbc"]
    found = compare(runs)
    assert [(each["a"], each["b"], each["metric"]) for each in found] == [
        ("a", "b", "bits_per_byte"), ("a", "c", "bits_per_byte"), ("b", "c", "bits_per_byte")
    ]  # fmt: skip
    assert list(found[0]) == [
        "a", "b", "metric", "difference", "low", "high", "p_value", "p_adjusted", "few_questions"
    ]  # fmt: skip
    assert len(compare(runs[:3])) == 1 and compare(runs[:2]) == compare([]) == []
    assert json.loads(json.dumps(found)) == found


def test_a_pair_alone_is_not_adjusted_and_pairs_are_by_their_scale_free_distances():
    draw = np.random.default_rng(4)
    nats, size = draw.gamma(3, 1, (25, 4)) + np.array([0, 0.3, 0.9, 0]), np.full(25, 10.0)
    nats[:, 3] = nats[:, 0]  # two models that are the same
    for a, b in ((0, 1), (0, 2), (1, 2)):
        alone = every_two(nats[:, [a, b]], size)[0, 1]
        assert alone["p_adjusted"] == alone["p_value"] < every_two(nats, size)[a, b]["p_adjusted"]
    found = every_two(nats, size)
    assert found[0, 3] == {"difference": 0, "low": 0, "high": 0, "p_value": 1, "p_adjusted": 1, "few_questions": None}
    for factor in (1e-6, 1e6):
        for pair, each in every_two(factor * nats, size).items():
            assert (each["p_value"], each["p_adjusted"]) == pytest.approx(
                (found[pair]["p_value"], found[pair]["p_adjusted"])
            )
            assert each["high"] == pytest.approx(factor * found[pair]["high"])
    for one, other in (((0, 1), (1, 3)), ((0, 2), (2, 3))):
        assert found[one]["low"] == pytest.approx(-found[other]["high"])
        assert found[one]["p_adjusted"] == found[other]["p_adjusted"]


def test_the_largest_of_all_pairs_is_drawn_9999_times():
    deviations = np.random.default_rng(5).normal(size=(12, 3))
    _, p_values = comparison._all_at_once(deviations, 11.0, np.array([0.0, 50.0, 1e9]))
    assert p_values.tolist() == [1.0, 1e-4, 1e-4]


@pytest.mark.parametrize(("deviations", "few"), [
    ([2, 1], None),  # 4 of 5 are four fifths and no more
    ([2, 1] + [0] * 18, {"questions": 2, "share": 1}), ([2, 1] + [0] * 17, None),
    ([2.001, 1], {"questions": 1, "share": 2.001**2 / (2.001**2 + 1)}),
    ([9] * 4 + [1] * 36, {"questions": 4, "share": 324 / 360}), ([9] * 4 + [1] * 35, None),
    ([9] * 5 + [1] * 44, None), ([-9] * 5 + [1] * 45, {"questions": 5, "share": 405 / 450}),
    ([0.1] + [0.01] * 18, {"questions": 1, "share": 0.01 / 0.0118}), ([1], {"questions": 1, "share": 1}),
    ([0.0, 0.0], None), ([1] * 8 + [4, -5], None), ([1] * 8 + [4, -5] + [0] * 10, {"questions": 2, "share": 41 / 49}),
])  # fmt: skip
def test_few_questions_at_both_sides_of_their_limits(deviations, few):
    found = few_questions(np.array(deviations, dtype=float))
    assert found == (few and {"questions": few["questions"], "share": pytest.approx(few["share"])})
    assert json.loads(json.dumps(found)) == found


def test_a_rank_is_told_by_p_values_below_5_percent_however_small_the_difference():
    runs = [run("a", []), run("hidden", [], ranked=False), run("b", []), run("c", []), run("d", [])]
    pairs = [("b", "a", 1e-3, 0.0499), ("a", "c", -1e-3, 0.01), ("d", "a", 0.5, 0.001), ("b", "c", -0.5, 0.05),
             ("b", "d", -9.0, 0.04), ("c", "d", -1e-9, 0.03)]  # fmt: skip
    compared = [{"a": a, "b": b, "difference": by, "p_adjusted": p} for a, b, by, p in pairs]
    found = ranks(runs, compared)
    assert list(found) == ["a", "hidden", "b", "c", "d"] and found.pop("hidden") is None
    assert [(each.position, each.low, each.high, each.may_be_best) for each in found.values()] == [
        (1, 1, 1, True), (2, 2, 3, False), (3, 2, 3, False), (4, 4, 4, False)
    ]  # fmt: skip
    assert ranks(runs, compared[::-1]) == ranks(runs, compared)
    assert vars(ranks(runs[:1], [])["a"]) == {"position": 1, "low": 1, "high": 1, "may_be_best": True}


# Seeds ---------------------------------------------------------------------------------------------------------------


def seed_of(name, seed, nats, value=0.5, **config):
    metrics = {"bits_per_byte": Interval(1.0, 1.0, 1.0), "rougeL": Interval(value, 0.0, 1.0)}
    return likelihoods(name, nats, [10] * len(nats), config={"seed": seed} | config, metrics=metrics)


def test_settings_in_another_order_or_of_other_kinds_are_one_recipe():
    nats = [1.0, 2.0, 3.0, 5.0]
    one = seed_of("a", 1, nats, 0.25, rate=1.0, at=date(2026, 1, 1), targets=["q", "v"])
    other = seed_of("b", 2, nats, 0.75, targets=["q", "v"], at=date(2026, 1, 1), rate=1.0)
    (found,) = recipes([one, other])
    assert list(found) == ["runs", "seeds", "bits_per_byte", "metrics"]
    assert (found["runs"], found["seeds"]) == (["a", "b"], [1, 2])
    assert found["metrics"] == {
        "bits_per_byte": {"mean": 1, "spread": 0, "lowest": 1, "highest": 1},
        "rougeL": {"mean": 0.5, "spread": pytest.approx(math.sqrt(0.125)), "lowest": 0.25, "highest": 0.75},
    }
    assert json.loads(json.dumps(found)) == found
    assert recipes([one, seed_of("b", 2, nats, targets=["q", "v"], at=date(2026, 1, 2), rate=1.0)]) == []
    assert recipes([one, seed_of("b", 2, nats, targets=["v", "q"], at=date(2026, 1, 1), rate=1.0)]) == []
    del one.split.metrics["rougeL"]  # what one of them lacks has no mean, whichever lacks it
    assert list(recipes([one, other])[0]["metrics"]) == list(recipes([other, one])[0]["metrics"]) == ["bits_per_byte"]


def test_three_recipes_are_three_groups_and_bits_end_at_zero():
    draw = np.random.default_rng(7)
    runs = [seed_of(f"{rate}{seed}", seed, list(draw.gamma(2, 1, 20)), rate=rate) for rate in "xyz" for seed in (1, 2)]
    runs.insert(3, likelihoods("base", list(draw.gamma(2, 1, 20)), [10] * 20, method="base"))
    assert [found["runs"] for found in recipes(runs)] == [["x1", "x2"], ["y1", "y2"], ["z1", "z2"]]
    pairs = [(found["a"], found["b"]) for found in compare_recipes(runs)]
    assert pairs == [
        (["x1", "x2"], ["y1", "y2"]), (["x1", "x2"], ["z1", "z2"]), (["y1", "y2"], ["z1", "z2"]),
        (["x1", "x2"], ["base"]), (["y1", "y2"], ["base"]), (["z1", "z2"], ["base"]),
    ]  # fmt: skip
    runs[3].ranked = False
    assert len(compare_recipes(runs)) == 3
    (wide,) = recipes([seed_of("a", 1, [1.0, 2.0, 3.0, 9.0]), seed_of("b", 2, [50.0, 80.0, 70.0, 90.0])])
    assert wide["bits_per_byte"]["low"] == 0 < wide["bits_per_byte"]["value"] < wide["bits_per_byte"]["high"]


def test_a_difference_of_recipes_has_the_figures_of_its_one_pair():
    """Two pairs of 12 questions: Bonferroni's 2, and 2⁻¹¹ where all questions favour one."""
    draw = np.random.default_rng(9)
    nats = draw.gamma(4, 2, 24)
    seeds = [seed_of(f"{rate}{seed}", seed, list(nats * level + draw.normal(0, 0.01, 24)), rate=rate)
             for rate, level in (("low", 1.0), ("high", 1.5)) for seed in range(3)]  # fmt: skip
    (found,) = compare_recipes(seeds)
    assert list(found) == ["a", "b", "metric", "difference", "low", "high", "p_adjusted", "few_questions"]
    assert found["metric"] == "bits_per_byte" and found["difference"] < 0 and found["high"] < 0
    assert found["p_adjusted"] == 2.0**-11  # no smaller than that of twelve coins
    base = likelihoods("base", list(nats * 1.25), [10] * 24, method="base")
    assert {each["p_adjusted"] for each in compare_recipes([*seeds, base])} == {3 * 2.0**-11}
    concentrated = nats.copy()
    concentrated[:2] += 40
    others = [seed_of(f"o{seed}", seed, list(concentrated + draw.normal(0, 0.01, 24)), rate="o") for seed in range(3)]
    (few,) = compare_recipes([*seeds[:3], *others])
    assert few["few_questions"]["questions"] == 1 and few["few_questions"]["share"] > 0.9
    assert json.loads(json.dumps(few)) == few


def test_two_seeds_of_the_others_and_one_of_them():
    bits, size = np.random.default_rng(3).normal(3, 1, (9, 4)), np.full(9, 2.0)
    (value,), spread, deviations = mean_over_seeds(bits, size, 2)
    amounts = bits[:, :2].mean(1) - bits[:, 2:].mean(1)
    assert value == pytest.approx(amounts.sum() / 18) and deviations.shape == (9, 1)
    own = Spread.of(*ratios(amounts[:, None], size[:, None])[1:])
    of_runs = bits.sum(0) / 18
    first, second = of_runs[:2].var(ddof=1) / 2, of_runs[2:].var(ddof=1) / 2
    assert spread.error**2 == pytest.approx(own.error**2 + first + second)
    both = own.with_source(first, 1).with_source(second, 1)
    assert spread.freedom == pytest.approx(both.freedom) and spread.skew == pytest.approx(both.skew)
    (_,), alone, _ = mean_over_seeds(bits[:, :3], size, 2)
    amounts = bits[:, :2].mean(1) - bits[:, 2]
    own = Spread.of(*ratios(amounts[:, None], size[:, None])[1:])
    assert alone.error**2 == pytest.approx(own.error**2 + first)  # of one run no spread over seeds is known


# Intervals -----------------------------------------------------------------------------------------------------------


def spread(error=1.0, skew=0.0, bend=0.0, freedom=10.0):
    return Spread(*(np.array([float(each)]) for each in (error, skew, bend, freedom)))


@pytest.mark.parametrize("bend", [0.0, 1e-12, -1e-12, 9e-9, -9e-9, 1.5e-8, -1.5e-8, 1e-4, -1e-4])
def test_a_bend_of_nearly_nothing_is_a_straight_line(bend):
    """Untransformed, 2 and −2 are 2.1 and −1.9 where skew / 6 is −0.1: the wider of both at each end."""
    below, above = spread(error=3, skew=-0.6, bend=bend).reach(2.0)
    assert [below[0], above[0]] == pytest.approx([3 * (2.1 - bend * 2.1**2), 6.0], rel=2e-7)
    below, above = spread(error=3, skew=0.6, bend=bend).reach(np.array([2.0]))
    assert [below[0], above[0]] == pytest.approx([6.0, 3 * (2.1 + bend * 2.1**2)], rel=2e-7)


def test_a_strength_is_never_below_nothing_and_warns_of_nothing():
    with warnings.catch_warnings(action="error"):
        assert spread(skew=-3).strength(np.array([0.1])) == [0]  # 0.1 − 3 / 6
        assert spread(skew=-3).p_values(np.array([0.1])) == [1]
        assert spread(error=0).strength(np.array([2.0])) == [math.inf] == spread(error=0).strength(np.array([-2.0]))
        assert spread(error=0).strength(np.array([0.0])) == [0]
        assert spread(error=1e-300, bend=0.1, skew=0.1).strength(np.array([1.0])) == pytest.approx(1e300)
        assert spread(error=0.5).strength(np.array([-1.0])) == [2] == spread(error=2).strength(np.array([4.0]))
    still = spread(error=0, skew=0.5, bend=0.5).with_source(0.0, 4)
    assert (still.error, still.skew, still.bend, still.freedom) == ([0], [0], [0], [4])
    small = spread(error=0.03, skew=1, bend=1).with_source(0.04**2, 2)
    assert small.error == pytest.approx([0.05]) and small.skew == pytest.approx([0.6**3])


def interval_of(amounts, kind, sizes=None, made=lambda ratio: ratio):
    statistics = np.stack([np.asarray(amounts, dtype=float), np.ones(len(amounts)) if sizes is None else sizes], 1)
    names = [f"{number:03}" for number in range(len(amounts))]
    return intervals(statistics, names, lambda sums: {"x": made(sums[0] / sums[1])}, {"x": kind})["x"]


def test_a_figure_at_its_end_or_beyond_keeps_within_its_ends():
    open_ended = Figure(1, low=-math.inf)
    free = interval_of([0.0, 2.0, 0.5, 1.5], open_ended)
    at_most = interval_of([0.0, 2.0, 0.5, 1.5], Figure(1, high=1))
    assert (at_most.value, at_most.low, at_most.high) == (1, pytest.approx(max(free.low, 0)), 1)
    at_least = interval_of([-1.0, 1.0, -0.5, 0.5], Figure(1, high=1))
    assert (at_least.value, at_least.low) == (0, 0) and 0 < at_least.high <= 1
    beyond = interval_of([2.0, 2.5, 3.0], Figure(1, high=1))
    assert beyond.value == beyond.high == 2.5 and beyond.low < 2.5
    below = interval_of([-2.0, -2.5, -3.0], Figure(1, high=1))
    assert below.value == below.low == -2.5 and below.high > -2.5


def test_an_exponential_ends_where_floats_do_and_what_is_infinite_has_no_width():
    kind = Figure(1, low=1, exponential=True)
    wide = interval_of([500.0, 700.0, 600.0], kind, made=math.exp)
    assert wide.value == pytest.approx(math.exp(600)) and wide.high == math.exp(700) and 1 < wide.low < wide.value
    narrow = interval_of([400.0, 401.0, 402.0], kind, made=math.exp)
    assert narrow.value < narrow.high < math.exp(405) and narrow.low > math.exp(397)
    below = interval_of([0.0, 0.2, 0.1, 0.4], kind, made=math.exp)
    assert below.low == 1 < below.value < below.high and below.value == pytest.approx(math.exp(0.175))
    assert interval_of([1.0, 2.0], Figure(1), made=lambda ratio: math.inf) == Interval(math.inf, math.inf, math.inf)
    assert interval_of([7.0], Figure(1)) == Interval(7.0, 7.0, 7.0)


def test_rounding_is_no_deviation_and_more_than_that_is_one():
    values = np.full(5, 0.3) + np.array([1e-14, -1e-14, 0, 1e-14, 0])
    assert len(set(vars(interval_of(values, Figure(1, low=-math.inf))).values())) == 1
    found = interval_of(values + np.array([1e-9, 0, 0, 0, 0]), Figure(1, low=-math.inf))
    assert found.low < found.value < found.high
    sizes = np.array([[1.0], [3.0], [7.0]])
    for sign in (1, -1):
        _, deviations, _ = ratios(sign * 0.3 * sizes, sizes)
        assert deviations.tolist() == [[0], [0], [0]]


def test_sums_are_by_the_names_of_questions_and_one_question_is_one_sum():
    assert by_question(np.array([[1, True], [2, False]]), ["a", "a"]).tolist() == [[3.0, 1.0]]
    assert by_question(np.array([[1.0], [2.0], [4.0], [8.0]]), ["c", "a", "b", "c"]).tolist() == [[2], [4], [9]]
