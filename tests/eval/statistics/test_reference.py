"""Statistics against a second, slow computation in plain loops, and what turning the data about may change."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval.results import Interval
from eval.statistics import comparison, seeds
from eval.statistics.comparison import every_two, ranks
from eval.statistics.seeds import compare_recipes, mean_over_seeds, recipes
from eval.statistics.uncertainty import Figure, Spread, by_question, intervals

DRAW = np.random.default_rng(11)
AMOUNTS, SIZES = DRAW.gamma(2, 2, 14), DRAW.integers(1, 30, 14).astype(float)


def jackknife(amounts, sizes):
    """Ratio, its standard error, skew and bend, degrees of freedom: as the docstrings of uncertainty.py have them."""
    value = sum(amounts) / sum(sizes)
    v = [value - (sum(amounts) - a) / (sum(sizes) - s) for a, s in zip(amounts, sizes, strict=True)]
    shares = [s / sum(sizes) for s in sizes]
    n, squares = len(v), sum(each**2 for each in v)
    skew = sum(each**3 for each in v) / squares**1.5
    bend = skew / 3 - sum(each * share for each, share in zip(v, shares, strict=True)) / squares**0.5
    freedom = max(1 / sum(share**2 for share in shares) - 1, 1)
    return value, math.sqrt(squares * (n - 1) / n), skew, bend, freedom


def reach(error, skew, bend, quantile):
    def untransformed(q):
        return (float(np.cbrt(1 + 3 * bend * (q - skew / 6))) - 1) / bend

    return error * max(quantile, untransformed(quantile)), error * max(quantile, -untransformed(-quantile))


def interval(amounts, sizes, names=None, kind=None):
    statistics = np.stack([amounts, sizes], 1)
    names = names or [str(number) for number in range(len(amounts))]
    made = lambda sums: {"x": sums[0] / sums[1]}  # noqa: E731
    return intervals(statistics, names, made, {"x": kind or Figure(1)})["x"]


@pytest.mark.parametrize("turn", [1, -1])
def test_an_interval_of_a_ratio(turn):
    amounts = turn * AMOUNTS
    value, error, skew, bend, freedom = jackknife(amounts, SIZES)
    below, above = reach(error, skew, bend, stats.t.ppf(0.975, freedom))
    found = interval(amounts, SIZES, kind=Figure(1, low=-math.inf))
    assert [found.value, found.low, found.high] == pytest.approx([value, value - below, value + above])


def test_an_interval_of_a_share_is_students_on_the_logit_scale():
    correct = np.floor(SIZES * DRAW.uniform(0.2, 0.9, 14))
    value, error, _, _, freedom = jackknife(correct, SIZES)
    step = stats.t.ppf(0.975, freedom) * error / (value * (1 - value))
    ends = [1 / (1 + math.exp(-(math.log(value / (1 - value)) + way * step))) for way in (-1, 1)]
    found = interval(correct, SIZES, kind=Figure(1, high=1))
    assert [found.low, found.high] == pytest.approx(ends)
    hundred = interval(100 * correct, SIZES, kind=Figure(1, high=100))
    assert [hundred.low, hundred.high] == pytest.approx([100 * end for end in ends])
    moved = interval(correct + 2 * SIZES, SIZES, kind=Figure(1, low=2, high=3))
    assert [moved.low, moved.high] == pytest.approx([2 + end for end in ends])


def test_a_spread_by_hand():
    """Deviations 3, −1, −1 of thirds: Σv² 11, Σv³ 25, n 3, and the shares correlate with nothing."""
    spread = Spread.of(np.array([[3.0], [-1], [-1]]), np.full((3, 1), 1 / 3))
    assert spread.error == pytest.approx([math.sqrt(11 * 2 / 3)]) and spread.freedom == pytest.approx([2])
    skew = 25 / 11**1.5
    assert spread.skew == pytest.approx([skew])
    assert spread.bend == pytest.approx([skew / 3 - 1 / 3 / math.sqrt(11)])
    t = 2.0
    transformed = t + spread.bend * t**2 + spread.bend**2 * t**3 / 3 + skew / 6
    assert spread.strength(t * spread.error) == pytest.approx(np.minimum(t, transformed))
    assert spread.p_values(t * spread.error) == pytest.approx(2 * stats.t.sf(spread.strength(t * spread.error), 2))
    down = -t + spread.bend * t**2 - spread.bend**2 * t**3 / 3 + skew / 6
    assert spread.strength(-t * spread.error) == pytest.approx(np.maximum(np.minimum(t, -down), 0))
    none = Spread.of(np.zeros((3, 1)), np.full((3, 1), 1 / 3))
    assert none.strength(np.array([0.0])) == [0] and none.strength(np.array([1e-9])) == [math.inf]
    assert none.p_values(np.array([0.0])) == [1] and none.p_values(np.array([-2.0])) == [0]
    one = Spread.of(np.array([[1.0], [0]]), np.array([[1.0], [0]]))
    assert one.freedom == [1] and one.error == [0]  # one question alone has bytes


def test_a_second_source_of_spread():
    spread = Spread(np.array([3.0]), np.array([0.6]), np.array([0.2]), np.array([10.0]))
    both = spread.with_source(16.0, 2)
    part = 9 / 25
    assert both.error == [5] and both.skew == pytest.approx([0.6 * part**1.5])
    assert both.bend == pytest.approx([0.2 * part**1.5])
    assert both.freedom == pytest.approx([1 / (part**2 / 10 + (1 - part) ** 2 / 2)])
    still = Spread(np.array([0.0]), np.array([0.0]), np.array([0.0]), np.array([10.0])).with_source(0.0, 2)
    assert still.error == [0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 50), st.integers(1, 40)), min_size=2, max_size=12), st.floats(0.5, 20),
       st.randoms(use_true_random=False))  # fmt: skip
def test_what_changes_no_interval(examples, factor, random):
    amounts, sizes = (np.array(column, dtype=float) for column in zip(*examples, strict=True))
    first = interval(amounts, sizes)
    order = random.sample(range(len(amounts)), len(amounts))
    turned = interval(amounts[order], sizes[order], [f"other {number}" for number in range(len(amounts))])
    scaled = interval(factor * amounts, sizes)
    parts = interval(
        np.repeat(amounts / 2, 2), np.repeat(sizes / 2, 2), [str(n) for n in range(len(amounts)) for _ in "ab"]
    )
    for other, by in ((turned, 1), (scaled, factor), (parts, 1)):
        assert [other.value, other.low, other.high] == pytest.approx(
            [by * each for each in (first.value, first.low, first.high)], rel=1e-6, abs=1e-9
        )
    assert first.low <= first.value <= first.high


def test_sums_of_questions_in_the_order_of_their_names():
    found = by_question(np.array([[1.0, 2], [10, 20], [100, 200]]), ["b", "a", "b"])
    assert found.tolist() == [[10, 20], [101, 202]]


NATS = DRAW.gamma(3, 1, (24, 3)) + np.array([0.0, 0.7, 2.5])
BYTES = DRAW.integers(3, 30, 24).astype(float)


def test_differences_of_models_by_a_second_computation():
    """Values and p-values of each pair, and the quantile of the largest |t| by draws of our own."""
    found = every_two(NATS, BYTES)
    pairs = list(itertools.combinations(range(3), 2))
    assert list(found) == pairs
    spreads = {(a, b): jackknife((NATS[:, a] - NATS[:, b]) / math.log(2), BYTES) for a, b in pairs}
    units = []
    for a, b in pairs:
        x, whole = (NATS[:, a] - NATS[:, b]) / math.log(2), BYTES.sum()
        v = np.array([x.sum() / whole - (x.sum() - x[i]) / (whole - BYTES[i]) for i in range(24)])
        units.append(v / np.linalg.norm(v))
    freedom = spreads[0, 1][4]
    generator = np.random.default_rng(99)
    t = np.abs(generator.standard_normal((60_000, 24)) @ np.array(units).T).max(1)
    t /= np.sqrt(generator.chisquare(freedom, 60_000) / freedom)
    quantile = np.quantile(t, 0.95)
    for pair in pairs:
        value, error, skew, bend, own_freedom = spreads[pair]
        assert found[pair]["difference"] == pytest.approx(value) and own_freedom == pytest.approx(freedom)
        below, above = reach(error, skew, bend, quantile)
        assert found[pair]["low"] == pytest.approx(value - below, rel=0.03, abs=0.03 * error)
        assert found[pair]["high"] == pytest.approx(value + above, rel=0.03, abs=0.03 * error)
        z = value / error
        strength = max(min(abs(z), math.copysign(1, z) * (z + bend * z**2 + bend**2 * z**3 / 3 + skew / 6)), 0)
        assert found[pair]["p_value"] == pytest.approx(max(2 * stats.t.sf(strength, freedom), 2.0**-23))
        adjusted = max((t > strength).mean(), found[pair]["p_value"])
        assert found[pair]["p_adjusted"] == pytest.approx(adjusted, rel=0.15, abs=3e-4)


def test_models_renamed_and_questions_in_another_order_are_the_same_comparison():
    found = every_two(NATS, BYTES)
    order = DRAW.permutation(24)
    turned = every_two(NATS[order][:, [2, 1, 0]], BYTES[order])
    for (a, b), mirror in (((0, 1), (1, 2)), ((0, 2), (0, 2)), ((1, 2), (0, 1))):
        one, other = found[a, b], turned[mirror]
        assert other["difference"] == pytest.approx(-one["difference"]) and other["p_value"] == pytest.approx(
            one["p_value"]
        )
        assert other["low"] == pytest.approx(-one["high"], rel=0.03, abs=0.02)
    doubled = every_two(NATS * 2, BYTES * 2)
    for pair in found:
        assert {k: doubled[pair][k] for k in ("difference", "low", "high", "p_value", "p_adjusted")} == pytest.approx(
            {k: found[pair][k] for k in ("difference", "low", "high", "p_value", "p_adjusted")}
        )


def test_the_quantile_of_the_intervals_is_where_the_adjusted_p_value_passes_5_percent():
    deviations = np.random.default_rng(7).normal(size=(30, 4))
    quantile, _ = comparison._all_at_once(deviations, 20.0, np.zeros(4))
    strength = quantile * np.array([1 + 1e-12, 1 - 1e-12, 0, 100])
    _, (above, below, least, most) = comparison._all_at_once(deviations, 20.0, strength)
    assert quantile > stats.t.ppf(0.975, 20) and (least, most) == (1, 1e-4)
    assert above < comparison.ALPHA == 0.05 <= below < above + 2e-4


def test_few_questions_allow_few_pairs():
    nats = np.tile([[0.0, 1.0, 2.0]], (6, 1)) + np.arange(6)[:, None] * 1e-3 * [0.0, 1.0, -1.0]
    found = every_two(nats, np.ones(6))  # 2⁻⁵ · 3 is more than 0.05
    assert all(each["low"] is None and each["high"] is None for each in found.values())
    assert all(each["p_value"] == 1 / 32 and each["p_adjusted"] == 3 / 32 for each in found.values())
    assert every_two(nats[:, :2], np.ones(6))[0, 1]["low"] is not None


def test_two_models_differ_by_students_t_and_not_by_the_normal_distribution():
    """Six questions of one length, whose differences lie evenly about 2 bits: mean ± t₅ · s / √6."""
    bits = 2 + np.array([-3.0, -2, -1, 1, 2, 3])
    found = every_two(np.stack([bits, np.zeros(6)], 1) * math.log(2), np.ones(6))[0, 1]
    reach = 2.5705818366147395 * math.sqrt(28 / 5 / 6)
    assert [found["difference"], found["low"], found["high"]] == pytest.approx([2, 2 - reach, 2 + reach])
    # t = 2 / 0.9661 = 2.0702 with 5 degrees of freedom
    assert found["p_value"] == found["p_adjusted"] == pytest.approx(0.0932, abs=1e-4)


@pytest.mark.parametrize("questions", [2, 6, 30])
def test_no_p_value_is_above_one(questions):
    """However many pairs of models that are equally good; Bonferroni's product and that of the coins would be."""
    draw = np.random.default_rng(questions)
    nats = np.repeat(draw.gamma(3, 1, (questions, 1)), 5, axis=1) + draw.normal(0, 1e-3, (questions, 5))
    found = [each["p_adjusted"] for each in every_two(nats, np.ones(questions)).values()]
    assert all(0 < each <= 1 for each in found) and (max(found) == 1 or questions > 2)
    runs = [seeded(f"{name}{seed}", seed, list(column), learning_rate=name)
            for name, column in zip((1.0, 2.0, 3.0), nats.T, strict=False) for seed in (1, 2)]  # fmt: skip
    assert [each["p_adjusted"] for each in compare_recipes(runs)] == [1.0] * 3 or questions > 6
    assert all(0 < each["p_adjusted"] <= 1 for each in compare_recipes(runs))
    same = [made(name, [1.0, 2.0, 4.0] * 4, config={"seed": seed, "rate": rate})
            for name, seed, rate in (("a", 1, 1), ("b", 2, 1), ("c", 1, 2), ("d", 2, 2))]  # fmt: skip
    assert [each["p_adjusted"] for each in compare_recipes([*same, made("m", [1.0, 2.0, 4.0] * 4, method="base")])] == [
        1.0, 1.0, 1.0
    ]  # fmt: skip


def made(name, nll, questions=None, sizes=None, ranked=True, method="lora", config=None, provenance=None, metrics=None):
    questions = questions or [str(number) for number in range(len(nll))]
    sizes = sizes or [10] * len(nll)
    rows = [{"id": f"i{n}", "question_id": q, "nll": x, "bytes": size}
            for n, (x, q, size) in enumerate(zip(nll, questions, sizes, strict=True))]  # fmt: skip
    value = sum(nll) / math.log(2) / sum(sizes)
    held = metrics or {"bits_per_byte": Interval(value, value, value), "rougeL": None}
    return SimpleNamespace(
        name=name, ranked=ranked, predictions=rows, config=config or {}, provenance=provenance or {},
        results=SimpleNamespace(model=SimpleNamespace(method=method)), split=SimpleNamespace(metrics=held),
    )  # fmt: skip


def test_a_test_is_over_questions_and_not_over_answers():
    """Three answers to each of eight questions: the figures are those of eight sums."""
    draw = np.random.default_rng(5)
    nll = draw.gamma(4, 5, (2, 24))
    questions, sizes = [f"q{number // 3}" for number in range(24)], [int(size) for size in draw.integers(3, 20, 24)]
    runs = [made(name, list(each), questions, sizes) for name, each in zip("ab", nll, strict=True)]
    shuffled = made("b", list(nll[1]), questions, sizes)
    shuffled.predictions = shuffled.predictions[::-1]  # rows are found by their ids
    for second in (runs[1], shuffled):
        (found,) = comparison.compare([runs[0], second, made("unranked", [0.0] * 24, ranked=False)])
        sums = nll.reshape(2, 8, 3).sum(2)
        expected = every_two(sums.T, np.reshape(sizes, (8, 3)).sum(1).astype(float))[0, 1]
        assert (found["a"], found["b"], found["metric"]) == ("a", "b", "bits_per_byte")
        assert {key: found[key] for key in expected} == {key: pytest.approx(each) for key, each in expected.items()}
    assert comparison.compare(runs[:1]) == []


def test_ranks_go_by_the_adjusted_p_value_and_its_direction():
    runs = [SimpleNamespace(name=name, ranked=True) for name in "abc"]
    pairs = [{"a": a, "b": b, "difference": -1.0, "p_value": 0.001, "p_adjusted": p}
             for (a, b), p in zip(itertools.combinations("abc", 2), (0.051, 0.049, 0.0501), strict=True)]  # fmt: skip
    found = ranks(runs, pairs)
    assert [(r.position, r.low, r.high, r.may_be_best) for r in found.values()] == [
        (1, 1, 2, True), (2, 1, 3, True), (3, 2, 3, False)
    ]  # fmt: skip
    assert list(ranks(runs, [])) == list("abc")


DATA = {"dataset_hash": "d", "base_model_hash": "m", "tokenizer_hash": "t"}


def seeded(name, seed, nll, provenance=None, **config):
    settings = {"learning_rate": 1e-4, "dataset_name": f"at/{name}", "model_name_or_path": name, "output_dir": name}
    return made(
        name, nll, config=settings | {"seed": seed} | config, provenance=DATA if provenance is None else provenance
    )


def test_which_runs_are_seeds_of_one_recipe():
    nll = [1.0, 2.0, 3.0]

    def groups(*runs, **method_of):
        return [[run.name for run in group] for group in seeds._groups(list(runs), method_of)]

    first, second = seeded("a", 1, nll), seeded("b", 2, nll, run_name="x", data_seed=3, logging_dir="l", resume="auto")
    assert groups(first, second) == [["a", "b"]]
    assert groups(first, seeded("b", 1, nll)) == []  # one seed twice is no spread
    assert groups(first, seeded("b", 2, nll, learning_rate=2e-4)) == []
    for key in ("dataset_hash", "base_model_hash", "tokenizer_hash"):
        assert groups(first, seeded("b", 2, nll, {**DATA, key: "other"})) == [], key
    assert groups(first, seeded("b", 2, nll, {**DATA, "extended": [1]})) == []
    assert groups(first, made("base", nll, config={})) == []
    # Two methods of a study that chose the same settings
    same = [first, second, seeded("c", 1, nll), seeded("d", 2, nll)]
    assert groups(*same) == [["a", "b", "c", "d"]]
    assert groups(*same, a="lora", b="lora", c="searched", d="searched") == [["a", "b"], ["c", "d"]]
    # without hashes the names must be the same
    nameless = [seeded("a", 1, nll, {}), seeded("b", 2, nll, {})]
    assert groups(*nameless) == []
    assert groups(seeded("a", 1, nll, {}, model_name_or_path="m", dataset_name="d"),
                  seeded("b", 2, nll, {}, model_name_or_path="m", dataset_name="d")) == [["a", "b"]]  # fmt: skip


def test_two_methods_of_a_study_that_chose_the_same_settings_are_two():
    nll = [[1.0, 2.0, 3.0, 2.5], [1.5, 2.0, 2.0, 2.0], [2.0, 3.0, 3.0, 3.5], [2.5, 3.5, 3.0, 3.0]]
    runs = [seeded(name, seed, each) for name, seed, each in zip("abcd", (1, 2, 1, 2), nll, strict=True)]
    of = {"a": "lora", "b": "lora", "c": "searched", "d": "searched"}
    assert [found["runs"] for found in recipes(runs, of)] == [["a", "b"], ["c", "d"]]
    (found,) = compare_recipes(runs, of)
    assert (found["a"], found["b"]) == (["a", "b"], ["c", "d"]) and found["difference"] < 0
    assert compare_recipes(runs) == []


def test_a_mean_over_seeds_by_a_second_computation():
    draw = np.random.default_rng(3)
    nll = draw.gamma(4, 6, (3, 12))
    metrics = lambda value: {"bits_per_byte": Interval(1.0, 1.0, 1.0), "rougeL": value and Interval(value, 0, 1)}  # noqa: E731
    runs = [seeded(name, seed, list(each)) for seed, (name, each) in enumerate(zip("abc", nll, strict=True))]
    for run, value in zip(runs, (0.2, 0.3, 0.7), strict=True):
        run.split.metrics = metrics(value)
    (found,) = recipes(runs)
    bits = nll / math.log(2)
    value, error, skew, bend, freedom = jackknife(bits.mean(0), [10.0] * 12)
    of_seeds = np.var(bits.sum(1) / 120, ddof=1) / 3
    part = error**2 / (error**2 + of_seeds)
    whole = math.sqrt(error**2 + of_seeds)
    together = 1 / (part**2 / freedom + (1 - part) ** 2 / 2)
    below, above = reach(whole, skew * part**1.5, bend * part**1.5, stats.t.ppf(0.975, together))
    assert found["bits_per_byte"] == pytest.approx(
        {"value": value, "low": max(value - below, 0), "high": value + above}
    )
    assert (found["runs"], found["seeds"]) == (["a", "b", "c"], [0, 1, 2])
    assert found["metrics"]["rougeL"] == pytest.approx(
        {"mean": 0.4, "spread": math.sqrt(0.07), "lowest": 0.2, "highest": 0.7}
    )
    runs[1].split.metrics = metrics(None)
    assert "rougeL" not in recipes(runs)[0]["metrics"]


def test_recipes_are_compared_with_each_other_and_with_base_models():
    draw = np.random.default_rng(4)
    nll = draw.gamma(4, 6, 12)
    low = [seeded(f"low{seed}", seed, list(nll + draw.normal(0, 0.1, 12))) for seed in range(3)]
    high = [
        seeded(f"high{seed}", seed, list(nll + 9 + draw.normal(0, 0.1, 12)), learning_rate=1.0) for seed in range(2)
    ]
    base = made("base", list(nll + 3), method="base")
    single = seeded("single", 0, list(nll), learning_rate=3.0)
    runs = [*low, *high, base, single, made("hidden", list(nll), method="base", ranked=False)]
    found = compare_recipes(runs)
    names = [(each["a"][0][:-1], each["b"][0]) for each in found]
    assert names == [("low", "high0"), ("low", "base"), ("high", "base")]
    for each, (a, b) in zip(found, ((low, high), (low, [base]), (high, [base])), strict=True):
        bits = np.array([[row["nll"] for row in run.predictions] for run in (*a, *b)]).T / math.log(2)
        (value,), spread, _ = mean_over_seeds(bits, np.full(12, 10.0), len(a))
        below, above = spread.reach(stats.t.ppf(1 - 0.05 / 2 / 3, spread.freedom))
        assert [each["difference"], each["low"], each["high"]] == pytest.approx(
            [value, value - below[0], value + above[0]]
        )
        own = max(float(spread.p_values(np.array([value]))[0]), 2.0**-11)
        assert each["p_adjusted"] == pytest.approx(min(1.0, 3 * own)) and each["few_questions"] is None
    assert [each["difference"] < 0 for each in found] == [True, True, False]
    few = [SimpleNamespace(**{**vars(run), "predictions": run.predictions[:6]}) for run in runs]
    assert [each["low"] for each in compare_recipes(few)] == [None] * 3
    assert json.dumps(found)
