"""The YAML of a study: everything that is wrong with it is told at once, before anything starts."""

import pytest
import yaml

from finllm.errors import UserError
from finllm.study.search import Rules, rate_at
from finllm.study.settings import Budget, Evaluation, Search, read_study

GOOD = {
    "shared": {"max_length": 64},
    "methods": {"full": {}, "lora": {"use_peft": True, "search": {"lora_r": [4, 16]}}},
}


def read(tmp_path, content, check=lambda settings: (1e-4, 1e-3)):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_study(path, check)


def test_what_is_searched_in_a_method_makes_a_candidate_each(tmp_path):
    study = read(tmp_path, GOOD)
    assert [candidate.name for candidate in study.candidates] == ["full", "lora-r4", "lora-r16"]
    assert study.methods == ["full", "lora"] and study.rules.part == 20
    settings = study.settings_of(study.candidates[2], study.candidates[2].grid[0], 43)
    assert settings == {
        "max_length": 64, "use_peft": True, "lora_r": 16, "learning_rate": 3.16e-5, "seed": 43, "max_steps": 60,
        "eval_strategy": "steps", "eval_steps": 10,
    }  # fmt: skip
    ranged = {**GOOD, "methods": {"lora": {"search": {"lora_r": {"from": 4, "to": 64, "points": 3}}}}}
    assert [candidate.settings["lora_r"] for candidate in read(tmp_path, ranged).candidates] == [4, 16, 64]


@pytest.mark.parametrize("others", [{"max_length": 64, "seed": 1}, {"bf16": False}])  # after the data, and before
def test_the_scratch_baseline_has_keys_of_its_own_and_of_the_shared_ones_the_data(tmp_path, others):
    asked = []
    content = {
        "shared": {**others, "dataset_name": "data"},
        "methods": {"scratch": {"baseline": "scratch", "width": 32, "search": {"layers": [1, 2]}}},
    }
    study = read(tmp_path, content, lambda settings: asked.append(settings) or (1e-3, 1e-2))
    own = {"baseline": "scratch", "dataset_name": "data", "width": 32}
    assert asked == [{**own, "layers": layers, "max_steps": 60, "output_dir": "none"} for layers in (1, 2)]
    assert [candidate.name for candidate in study.candidates] == ["scratch-layers1", "scratch-layers2"]
    assert study.settings_of(study.candidates[1], -10, 43) == {
        **own, "layers": 2, "learning_rate": 3.16e-3, "seed": 43, "max_steps": 60, "eval_steps": 10,
    }  # fmt: skip
    for wrong, said in (
        ({"baseline": "skratch"}, "methods.scratch.baseline is 'skratch'; it is scratch"),
        ({"baseline": ["scratch"]}, r"methods.scratch.baseline is \['scratch'\]; it is scratch"),
        ({"baseline": "scratch", "max_steps": 9}, "methods.scratch: max_steps is set by the study; remove it"),
    ):
        with pytest.raises(UserError, match=said):
            read(tmp_path, {**content, "methods": {"scratch": wrong}})


def test_rates_that_are_given_are_the_grid(tmp_path):
    study = read(tmp_path, {**GOOD, "search": {"learning_rate": [1e-4, 2.5e-4]}})
    assert [rate_at(place) for place in study.candidates[0].grid] == [1e-4, 2.5e-4]
    assert study.rules.fixed and study.rules.part == study.budget.steps


def test_all_problems_are_told_at_once(tmp_path):
    def check(settings):
        if "lora_rnk" in settings:
            raise UserError("1 problem: unknown key 'lora_rnk' (did you mean 'lora_r'?)")
        return 1e-4, 1e-3

    wrong = {
        "shared": {"max_steps": 5}, "method": {}, "methods": {"full": {}, "a b": {}, "x": {"lora_rnk": 1}},
        "budget": {"steps": 10, "search_steps": 11}, "seeds": [1, 1], "search": {"points": "many", "finner": True},
    }  # fmt: skip
    with pytest.raises(UserError) as caught:
        read(tmp_path, wrong, check)
    for said in (
        "unknown key 'method' (did you mean 'methods'?)",
        "; max_steps is set by the study; remove it (methods: full, x)",
        "a name has up to 41 letters", "budget.search_steps is 11; it must be 1 to budget.steps, 10",
        "seeds is [1, 1]; each is named once", "search.points is 'many', not int",
        "unknown key search.finner (did you mean 'finer'?)",
    ):  # fmt: skip
        assert said in str(caught.value), (said, str(caught.value))
    assert "methods.x: 1 problem: unknown key 'lora_rnk'" in str(caught.value)


def test_what_several_methods_have_is_told_once(tmp_path):
    def check(settings):
        problems = ["no base model", *(["no such weight"] if settings.get("odd") else [])]
        raise UserError(f"{len(problems)} problems", problems=problems)

    methods = {"full": {"search": {"odd": [0, 1]}}, "lora": {"odd": 1}, "x": {}}
    with pytest.raises(UserError) as caught:
        read(tmp_path, {**GOOD, "methods": methods}, check)
    assert str(caught.value).endswith(": no base model; no such weight (methods: full, lora)")
    with pytest.raises(UserError, match=r"1 problem in .*: methods\.x: no base model$"):
        read(tmp_path, {**GOOD, "methods": {"x": {}}}, check)


@pytest.mark.parametrize(("evaluation", "said"), [
    ({"split": "tset"}, "evaluation.split is 'tset' (did you mean 'test'?); it is one of train, validation, test"),
    ({"texts": 1}, "evaluation.texts is 1; it must be at least 2, or 0 for none"),
    ({"max_examples": 0}, "evaluation.max_examples is 0; it must be at least 1"),
    ({"max_generated": -1}, "evaluation.max_generated is -1; it must be at least 0"),
    ({"max_new_tokens": 0}, "evaluation.max_new_tokens is 0; it must be at least 1"),
    ({"batch_size": 0}, "evaluation.batch_size is 0; it must be at least 1"),
])  # fmt: skip
def test_what_evaluation_would_refuse_after_all_trainings_is_refused_now(tmp_path, evaluation, said):
    with pytest.raises(UserError) as caught:
        read(tmp_path, {**GOOD, "evaluation": evaluation})
    assert str(caught.value).endswith(f": {said}")


def test_what_can_be_trained_and_not_evaluated_is_told_with_all_else(tmp_path):
    def obstacles(study):
        yield f"no test split for {study.methods}"

    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "seeds": []}))
    with pytest.raises(UserError, match=r"2 problems in .*: seeds is .*; no test split for \['full', 'lora'\]$"):
        read_study(path, lambda settings: (1e-4, 1e-3), obstacles)


@pytest.mark.parametrize(("batch_size", "asked"), [(0, []), (1, [1])])
def test_numbers_out_of_bounds_are_not_asked_about_once_more(tmp_path, batch_size, asked):
    found = []

    def obstacles(study):
        found.append(study.evaluation.batch_size)
        yield "something else"

    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "evaluation": {"batch_size": batch_size}}))
    with pytest.raises(UserError, match="1 problem in"):
        read_study(path, lambda settings: (1e-4, 1e-3), obstacles)
    assert found == asked


def test_what_is_left_out_has_its_defaults(tmp_path):
    study = read(tmp_path, GOOD)
    assert (study.budget, study.search) == (Budget(60, None), Search(None, 5, 2, 6, True))
    assert study.evaluation == Evaluation("test", None, None, 128, 16, 200, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
    assert study.seeds == (42, 43, 44) and study.rules == Rules(60, 20, 2, 6, True, False)


@pytest.mark.parametrize(("scales", "good"), [
    ([0, 4], True), ([0.0, 4.0], True), ([], True), ([1.0, -0.01], False), ([-1, 1.0], False), ([4.01, 1.0], False),
    ([1.0, 4.01], False), ([True, 1.0], False), ([1.0, "1"], False),
])  # fmt: skip
def test_scales_are_numbers_from_nothing_to_four_times(tmp_path, scales, good):
    content = {**GOOD, "evaluation": {"scales": scales}}
    if good:
        assert read(tmp_path, content).evaluation.scales == scales
    else:
        with pytest.raises(UserError, match=r"evaluation\.scales is .*; it is a list of numbers from 0 to 4"):
            read(tmp_path, content)


@pytest.mark.parametrize("key", [
    "output_dir", "resume", "stop_at_step", "seed", "max_steps", "num_train_epochs", "learning_rate", "eval_strategy",
    "eval_steps", "early_stopping_patience", "load_best_model_at_end",
])  # fmt: skip
def test_what_the_study_sets_is_no_setting_of_a_method(tmp_path, key):
    with pytest.raises(UserError, match=rf"methods\.full: {key} is set by the study; remove it"):
        read(tmp_path, {**GOOD, "methods": {"full": {key: 1}}})


@pytest.mark.parametrize(("steps", "part"), [(1, 1), (2, 1), (5, 1), (6, 2), (10, 3), (12, 4)])
def test_the_part_of_a_run_is_a_third_in_whole_steps(tmp_path, steps, part):
    assert read(tmp_path, {**GOOD, "budget": {"steps": steps}}).rules.part == part


@pytest.mark.parametrize(("seeds", "good"), [
    ([0, 1], True), ([4294967295], True), ([7, 4294967295], True), ([-1, 7], False), ([7, -1], False),
    ([4294967296, 7], False), ([7, 4294967296], False), ([True, 7], False), ([7, True], False), ([1.0, 7], False),
    ([7, "8"], False), ([], False), ("7", False), (7, False), ({"7": 8}, False), ({7: 8}, False),
], ids=str)  # fmt: skip
def test_seeds_are_whole_numbers_of_32_bits(tmp_path, seeds, good):
    if good:
        assert read(tmp_path, {**GOOD, "seeds": seeds}).seeds == tuple(seeds)
    else:
        with pytest.raises(UserError, match=r"seeds is .*; it is a list of whole numbers, such as \[42, 43, 44\]"):
            read(tmp_path, {**GOOD, "seeds": seeds})


@pytest.mark.parametrize(("name", "content"), [
    ("shared", {**GOOD, "shared": [1]}), ("methods", {**GOOD, "methods": ["full"]}),
    ("budget", {**GOOD, "budget": 60}), ("methods.full", {**GOOD, "methods": {"full": "lora"}}),
    ("methods.full.search", {**GOOD, "methods": {"full": {"search": [4, 16]}}}),
])  # fmt: skip
def test_what_holds_keys_is_a_mapping(tmp_path, name, content):
    with pytest.raises(UserError, match=rf"{name} is .*; it is a mapping of keys"):
        read(tmp_path, content)


def searching(value):
    return {**GOOD, "methods": {"lora": {"search": {"lora_r": value}}}}


@pytest.mark.parametrize(("low", "high", "points", "values"), [
    (4, 64, 3, [4, 16, 64]), (4, 64, 2, [4, 64]), (0.5, 2.0, 3, [0.5, 1.0, 2.0]), (1, 2, 4, [1, 2]),
    (1, 2.0, 3, [1.0, 1.41, 2.0]),
])  # fmt: skip
def test_points_of_a_range_are_equal_factors_apart(tmp_path, low, high, points, values):
    study = read(tmp_path, searching({"from": low, "to": high, "points": points}))
    assert [candidate.settings["lora_r"] for candidate in study.candidates] == values


@pytest.mark.parametrize(("value", "short"), [
    ("a, b/c", "a_b_c"), ("-x-", "_x_"), (True, "True"), (0.1 + 0.2, "0.3"), (1e-5, "1e_05"), (1000000, "1000000"),
    ("an answer of 24 letters, ", "an_answer_of_24_letters_"), ("a" * 30, "a" * 24),
], ids=str)  # fmt: skip
def test_a_candidate_is_named_by_its_settings_in_short(tmp_path, value, short):
    (candidate,) = read(tmp_path, searching([value])).candidates
    assert (candidate.name, candidate.settings["lora_r"]) == (f"lora-r{short}", value)


@pytest.mark.parametrize("value", [
    {"from": True, "to": 64, "points": 3}, {"from": 0.5, "to": True, "points": 3}, {"from": "4", "to": 64, "points": 3},
    {"from": 4, "to": "64", "points": 3}, {"from": 0, "to": 64, "points": 3}, {"from": -4, "to": 64, "points": 3},
    {"from": 64, "to": 4, "points": 3}, {"from": 4, "to": 4, "points": 3}, {"from": 4, "to": 64, "points": 1},
    {"from": 4, "to": 64, "points": 2.5}, {"from": 4, "to": 64}, [], "4",
], ids=str)  # fmt: skip
def test_what_is_neither_a_list_nor_a_range_is_refused(tmp_path, value):
    with pytest.raises(UserError, match=r"methods\.lora\.search\.lora_r is .*; it is a list, or \{from: 4"):
        read(tmp_path, searching(value))


def test_a_method_is_searched_around_its_own_rates_and_another_around_the_usual_ones(tmp_path):
    study = read(tmp_path, {**GOOD, "methods": {"lora": {"rates": [1e-3, 1e-1]}, "full": {}}})
    assert {candidate.name: candidate.grid for candidate in study.candidates} == {
        "lora": (-12, -10, -8, -6, -4), "full": (-18, -16, -14, -12, -10),
    }  # fmt: skip


@pytest.mark.parametrize(("rates", "good"), [
    ([1e-8, 100], True), ([1e-3, 1e-3], True), ([1, 100.0], True), ([0.99e-8, 1e-3], False), ([1e-3, 100.5], False),
    ([1e-3, 0.99e-3], False), ([1e-3], False), ([1e-4, 1e-3, 1e-2], False), ([True, 1.0], False), ([0.5, True], False),
    (1e-3, False), (["a", "b"], False),
], ids=str)  # fmt: skip
def test_the_rates_of_a_method_are_a_lowest_and_a_highest(tmp_path, rates, good):
    content = {**GOOD, "methods": {"full": {"rates": rates}}}
    if good:
        assert len(read(tmp_path, content).candidates[0].grid) == 5
    else:
        with pytest.raises(UserError, match=r"methods\.full\.rates is .*; it is the lowest and the highest rate"):
            read(tmp_path, content)


@pytest.mark.parametrize(
    ("rates", "said"), [([1e-4, 1.2345e-4], "up to three digits"), ([], "a list of rates"), ([-1.0], "a list of rates")]
)
def test_rates_that_would_be_rounded_or_are_none_are_refused(tmp_path, rates, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, {**GOOD, "search": {"learning_rate": rates}})
