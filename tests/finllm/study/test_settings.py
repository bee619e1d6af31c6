"""The YAML of a study: everything that is wrong with it is told at once, before anything starts."""

import pytest
import yaml

from finllm.errors import UserError
from finllm.study.search import rate_at
from finllm.study.settings import read_study

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
        "unknown key 'method' (did you mean 'methods'?)", "methods.full: max_steps is set by the study",
        "a name has up to 41 letters", "budget.search_steps is 11; it must be 1 to budget.steps, 10",
        "seeds is [1, 1]; each is named once", "search.points is 'many', not int",
        "unknown key search.finner (did you mean 'finer'?)",
    ):  # fmt: skip
        assert said in str(caught.value), (said, str(caught.value))
    wrong["shared"] = {"max_length": 64}
    with pytest.raises(UserError, match=r"methods\.x: 1 problem: unknown key 'lora_rnk'"):
        read(tmp_path, wrong, check)


@pytest.mark.parametrize(
    ("rates", "said"), [([1e-4, 1.2345e-4], "up to three digits"), ([], "a list of rates"), ([-1.0], "a list of rates")]
)
def test_rates_that_would_be_rounded_or_are_none_are_refused(tmp_path, rates, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, {**GOOD, "search": {"learning_rate": rates}})
