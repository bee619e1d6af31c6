"""Which runs are compared as recipes: those that are ranked, with base models wherever they stand."""

import numpy as np
from test_whole_comparisons import likelihoods, seed_of

from eval.statistics.seeds import compare_recipes, recipes


def test_a_run_that_is_not_ranked_is_no_seed_of_what_is_compared():
    draw = np.random.default_rng(1)
    runs = [
        seed_of(f"{rate}{seed}", seed, list(draw.gamma(2, 1, 20)), rate=rate) for rate in "xy" for seed in (1, 2, 3)
    ]
    runs[1].ranked = False
    (found,) = compare_recipes(runs)
    assert (found["a"], found["b"]) == (["x1", "x3"], ["y1", "y2", "y3"])
    assert recipes(runs)[0]["runs"] == ["x1", "x2", "x3"]  # what one knows of its figures it still is


def test_base_models_stand_where_they_will():
    draw = np.random.default_rng(2)
    seeds = [seed_of(f"x{seed}", seed, list(draw.gamma(2, 1, 24)), rate="x") for seed in (1, 2)]
    first, last = (likelihoods(name, list(draw.gamma(2, 1, 24)), [10] * 24, method="base") for name in ("b", "c"))
    found = compare_recipes([first, *seeds, last])
    assert [(each["a"], each["b"]) for each in found] == [(["x1", "x2"], ["b"]), (["x1", "x2"], ["c"])]
    assert found == compare_recipes([*seeds, first, last]) and all(each["low"] < each["high"] for each in found)
    assert compare_recipes([first, last]) == [] == recipes([first, last])


def test_too_few_questions_for_their_pairs_have_no_interval():
    """Of five questions a coin's least chance is 2⁻⁴, of six 2⁻⁵, which is enough for one pair."""
    draw = np.random.default_rng(3)
    runs = [seed_of(f"{rate}{seed}", seed, list(draw.gamma(2, 1, 12)), rate=rate) for rate in "xy" for seed in (1, 2)]
    (found,) = compare_recipes(runs)
    assert found["low"] < found["difference"] < found["high"]
    for each in runs:
        each.predictions = each.predictions[:10]
    (few,) = compare_recipes(runs)
    assert few["low"] is None and few["high"] is None and few["p_adjusted"] >= 2**-4
