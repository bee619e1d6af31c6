"""The YAML of a study: candidates whole, what each is checked with, and every problem by its whole message."""

import pytest
import yaml

from finllm.errors import UserError
from finllm.study.search import Rules, rate_at
from finllm.study.settings import Budget, Candidate, Evaluation, Search, read_study

GRID = (-18, -16, -14, -12, -10)  # of rates that are usually 0.0001 to 0.001
LEAST = {"shared": {"max_length": 64}, "methods": {"full": {}}}


def read(tmp_path, content, check=lambda settings: (1e-4, 1e-3)):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_study(path, check)


def refused(tmp_path, content, check=lambda settings: (1e-4, 1e-3)):
    """All that is said of it."""
    with pytest.raises(UserError) as caught:
        read(tmp_path, content, check)
    return str(caught.value).partition(f" in {tmp_path / 'study.yaml'}: ")[2]


def of(part, **keys):
    return {**LEAST, part: keys}


def test_every_combination_of_what_is_searched_is_a_candidate_and_is_checked_as_it_is_trained(tmp_path):
    content = {
        "shared": {"max_length": 64, "lora_r": 2},
        "methods": {
            "lora": {"use_peft": True, "rates": [1e-3, 1e-1],
                     "search": {"lora_r": [4, 16], "weight_decay": [0.0, 0.5]}},
            "full": {"max_length": 32},
        },
        "budget": {"steps": 30, "search_steps": 7}, "seeds": [5, 0],
        "search": {"points": 3, "going_on": 4, "widenings": 1, "finer": False},
        "evaluation": {"split": "validation", "max_examples": 3, "max_generated": 2, "max_new_tokens": 9,
                       "batch_size": 4, "texts": 0, "scales": [0.5]},
    }  # fmt: skip
    checked = []

    def check(settings):
        checked.append(settings)
        return 1e-4, 1e-3

    study = read(tmp_path, content, check)
    settings = [{"max_length": 64, "lora_r": rank, "use_peft": True, "weight_decay": decay}
                for rank in (4, 16) for decay in (0.0, 0.5)]  # fmt: skip
    names = ["lora-r4-weight_decay0", "lora-r4-weight_decay0.5", "lora-r16-weight_decay0", "lora-r16-weight_decay0.5"]
    full = {"max_length": 32, "lora_r": 2}
    assert study.candidates == (
        *(Candidate("lora", name, keys, (-10, -8, -6)) for name, keys in zip(names, settings, strict=True)),
        Candidate("full", "full", full, (-16, -14, -12)),
    )
    assert checked == [{**keys, "max_steps": 30, "output_dir": "none"} for keys in (*settings, full)]
    assert study.methods == ["lora", "full"] and study.content == content and study.seeds == (5, 0)
    assert study.of("lora") == [*study.candidates[:4]] and study.of("full") == [study.candidates[4]]
    assert (study.budget, study.search) == (Budget(30, 7), Search(None, 3, 4, 1, False))
    assert study.evaluation == Evaluation("validation", 3, 2, 9, 4, 0, [0.5])
    assert study.rules == Rules(whole=30, part=7, going_on=4, widenings=1, finer=False, fixed=False)
    assert study.settings_of(study.candidates[4], -14, 5) == {
        **full, "learning_rate": 3.16e-4, "seed": 5, "max_steps": 30, "eval_strategy": "steps", "eval_steps": 5
    }  # fmt: skip


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (6, 1), (11, 1), (12, 2), (17, 2), (18, 3), (60, 10)])
def test_a_run_is_validated_some_six_times(tmp_path, steps, every):
    study = read(tmp_path, of("budget", steps=steps))
    assert study.settings_of(study.candidates[0], -14, 5)["eval_steps"] == every


def test_what_is_named_and_left_empty_has_its_defaults(tmp_path):
    empty = dict.fromkeys(("budget", "search", "evaluation"))
    content = {
        "shared": {"max_length": 64},
        "methods": {"full": None, "lora": {"search": None, "rates": None}},
        **empty,
    }
    study = read(tmp_path, content)
    assert study.candidates == tuple(Candidate(name, name, {"max_length": 64}, GRID) for name in ("full", "lora"))
    assert (study.budget, study.search, study.evaluation) == (Budget(), Search(), Evaluation())
    unset = {"budget": {"steps": 6, "search_steps": None}, "search": {"learning_rate": None},
             "evaluation": {"max_examples": None, "max_generated": None}}  # fmt: skip
    study = read(tmp_path, LEAST | unset)
    assert (study.budget, study.search, study.evaluation) == (Budget(6), Search(), Evaluation())


@pytest.mark.parametrize(("low", "high", "values"), [
    (0.5, 2, [0.5, 1.0, 2.0]), (1, 4.0, [1.0, 2.0, 4.0]), (1, 4, [1, 2, 4]), (1, 3, [1, 2, 3]),
    (0.3, 0.7, [0.3, 0.458, 0.7]),
])  # fmt: skip
def test_a_range_is_of_whole_numbers_where_both_of_its_ends_are(tmp_path, low, high, values):
    searched = {"lora_r": {"from": low, "to": high, "points": 3}}
    study = read(tmp_path, {**LEAST, "methods": {"lora": {"search": searched}}})
    found = [candidate.settings["lora_r"] for candidate in study.candidates]
    assert found == values and [type(each) for each in found] == [type(each) for each in values]


@pytest.mark.parametrize("rates", [[1e-3, 1e-4, 1e-3], [1e-2, 1e-4], [1e-8, 100.0], [100.0]])
def test_rates_that_are_given_rise_and_are_each_trained_once_whole(tmp_path, rates):
    study = read(tmp_path, {**LEAST, "search": {"learning_rate": rates}, "budget": {"steps": 9, "search_steps": 2}})
    assert [rate_at(place) for place in study.candidates[0].grid] == sorted({*rates})
    assert study.rules == Rules(9, 9, 2, 6, True, fixed=True)


# What is refused -----------------------------------------------------------------------------------------------------

NO_RATES = "search.learning_rate is {}; it is a list of rates, such as [1.0e-4, 3.0e-4]"


@pytest.mark.parametrize(("content", "said"), [
    ({"methods": {"full": {}}}, ["shared is missing"]), ({"shared": {"a": 1}}, ["methods is missing"]),
    ({"shared": None, "methods": None}, ["shared is missing", "methods is missing"]),
    ({**LEAST, "seed": [1]}, ["unknown key 'seed' (did you mean 'seeds'?)"]),
    ({**LEAST, "evaluate": {}}, ["unknown key 'evaluate' (did you mean 'evaluation'?)"]),
    (of("budget", step=3), ["unknown key budget.step (did you mean 'steps'?)"]),
    (of("budget", steps=0), ["budget.steps is 0", "it must be at least 1"]),
    (of("budget", steps=None), ["budget.steps is None, not int"]),
    (of("budget", steps=True), ["budget.steps is True, not int"]),
    (of("budget", steps=2.0), ["budget.steps is 2.0, not int"]),
    (of("budget", steps=9, search_steps=0), ["budget.search_steps is 0", "it must be 1 to budget.steps, 9"]),
    (of("budget", steps=9, search_steps=10), ["budget.search_steps is 10", "it must be 1 to budget.steps, 9"]),
    (of("budget", search_steps="3"), ["budget.search_steps is '3', not int | None"]),
    (of("search", points=2), ["search.points is 2", "it must be at least 3"]),
    (of("search", going_on=0), ["search.going_on is 0", "it must be at least 1"]),
    (of("search", widenings=-1), ["search.widenings is -1", "it must be at least 0"]),
    (of("search", finer=1), ["search.finer is 1, not bool"]),
    (of("search", learning_rate=1e-3), ["search.learning_rate is 0.001, not list[float] | None"]),
    (of("search", learning_rate=[1e-3, 0.9e-8]), NO_RATES.format([1e-3, 9e-9]).split("; ")),
    (of("search", learning_rate=[101.0, 1e-3]), NO_RATES.format([101.0, 1e-3]).split("; ")),
    (of("search", learning_rate=[0.0]), NO_RATES.format([0.0]).split("; ")),
    (of("search", learning_rate=["x", 1e-3]), NO_RATES.format(["x", 1e-3]).split("; ")),
    (of("search", learning_rate=[1, 1e-3]), NO_RATES.format([1, 1e-3]).split("; ")),
    (of("search", learning_rate=[1.234e-3, 1e-3]),
     ["search.learning_rate is [0.001234, 0.001]", "a rate has up to three digits, as 2.5e-4"]),
    (of("evaluation", split=3), ["evaluation.split is 3, not str"]),
    (of("evaluation", scales=0.5), ["evaluation.scales is 0.5, not list[float]"]),
    (of("evaluation", texts=-1), ["evaluation.texts is -1", "it must be at least 0"]),
    ({**LEAST, "seeds": 7}, ["seeds is 7", "it is a list of whole numbers, such as [42, 43, 44]"]),
    ({**LEAST, "seeds": [7, 8, 7]}, ["seeds is [7, 8, 7]", "each is named once"]),
    ({**LEAST, "methods": {"a b": {}}},
     ["methods.a b: a name has up to 41 letters, digits, dots, dashes and underscores"]),
    ({**LEAST, "methods": {"full": {"seed": 1, "resume": True}}},
     ["methods.full: seed is set by the study", "remove it", "methods.full: resume is set by the study", "remove it"]),
    ({**LEAST, "methods": {"x": {"search": {"lora_r": []}}}},
     ["methods.x.search.lora_r is []", "it is a list, or {from: 4, to: 64, points: 3}"]),
], ids=str)  # fmt: skip
def test_every_problem_has_its_own_words_and_no_others(tmp_path, content, said):
    assert refused(tmp_path, content) == "; ".join(said)


@pytest.mark.parametrize("part", [
    {"budget": {"steps": 1}}, {"budget": {"steps": 9, "search_steps": 9}}, {"budget": {"steps": 9, "search_steps": 1}},
    {"search": {"points": 3}}, {"search": {"going_on": 1}}, {"search": {"widenings": 0}}, {"evaluation": {"texts": 0}},
], ids=str)  # fmt: skip
def test_the_least_of_each_number_is_good(tmp_path, part):
    ((name, keys),) = part.items()
    assert {key: getattr(getattr(read(tmp_path, {**LEAST, **part}), name), key) for key in keys} == keys


def test_a_method_that_cannot_be_trained_hides_no_other_problem(tmp_path):
    def check(settings):
        assert "seed" not in settings, "what is the study's own is told of, and not tried"
        if settings.get("lora_r") in (4, 16):
            raise UserError(f"{settings['lora_r']} is too even")
        return 1e-4, 1e-3

    content = {**LEAST, "methods": {
        "w": {"search": {"lora_r": [2, 4, 8, 16]}}, "x": {"rates": 3}, "-": {}, "y": {"seed": 3},
        "z": {"search": {"lora_r": 4}},
    }}  # fmt: skip
    assert refused(tmp_path, content, check) == "; ".join([
        "methods.w: 4 is too even", "methods.w: 16 is too even",
        "methods.x.rates is 3; it is the lowest and the highest rate, [1.0e-4, 1.0e-3]",
        "methods.y: seed is set by the study; remove it",
        "methods.z.search.lora_r is 4; it is a list, or {from: 4, to: 64, points: 3}",
        "methods.-: a name has up to 41 letters, digits, dots, dashes and underscores",
    ])  # fmt: skip


@pytest.mark.parametrize(("name", "good"), [
    ("a" * 41, True), ("a" * 42, False), ("A9._-", True), ("9", True), (".a", False), ("_a", False), ("a/b", False),
    (7, True),
])  # fmt: skip
def test_a_method_is_named_as_a_folder_can_be(tmp_path, name, good):
    content = {**LEAST, "methods": {name: {}}}
    if good:
        assert read(tmp_path, content).methods == [str(name)]
    else:
        assert refused(tmp_path, content).startswith(f"methods.{name}: a name has up to 41 letters")
