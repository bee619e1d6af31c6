"""Names of methods and candidates: run dirs go by them, so two that are the same would be taken for one another."""

from datetime import date

import pytest
import yaml

from finllm.errors import UserError
from finllm.study.names import labels
from finllm.study.settings import read_study

PROJECTIONS = ["gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def read(tmp_path):
    """The names of the candidates of these methods, or what is said of them."""

    def call(text):
        path = tmp_path / "study.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
        try:
            return [each.name for each in read_study(path, lambda settings: (1e-4, 1e-3)).candidates]
        except UserError as error:
            return error.problems

    def methods(**held):
        return call({"shared": {"max_length": 64}, "methods": held})

    methods.text = call
    return methods


@pytest.mark.parametrize(("key", "values"), [
    ("target_modules", [[*PROJECTIONS, "q_proj"], [*PROJECTIONS, "k_proj"], [*PROJECTIONS, "q_proj", "k_proj"]]),
    ("lora_alpha", [1.0000001, 1.0000002]), ("init_lora_weights", ["pissa", "PISSA", "pissa_niter_4"]),
    ("peft", [{"r": 8, "lora_alpha": 16}, {"r": 8, "lora_alpha": 16, "use_dora": True}]),
    ("x", ["a!", "a?", "a_2", "a!!"]), ("x", [["a", "b"], "a b"]), ("x", [True, "True"]), ("x", [None, "None"]),
])  # fmt: skip
def test_values_that_begin_alike_are_candidates_of_their_own(read, key, values):
    """A label has 24 signs: of two lists that agree in those, the second would have had the results of the first."""
    names = read(a={"search": {key: values}})
    assert len({name.casefold() for name in names}) == len(values), names
    assert all(name.startswith(f"a-{key.removeprefix('lora_')}") for name in names)


def test_labels_are_the_plain_values_where_these_differ():
    assert labels("lora_r", [4, 16]) == ["-r4", "-r16"] and labels("weight_decay", [0.0, 0.5]) == [
        "-weight_decay0", "-weight_decay0.5"
    ]  # fmt: skip
    assert labels("x", ["a!", "a?", "a?!"]) == ["-xa_", "-xa__2", "-xa__3"]


@pytest.mark.parametrize("values", [
    [4, 4], [8, 4, 8], [4, 8, 8], [[1, 2], [1, 2]], [{"a": 1, "b": 2}, {"b": 2, "a": 1}], [0.0, 0.1, 0.0], [None, None],
    [date(2026, 1, 1), date(2026, 1, 1)],
])  # fmt: skip
def test_a_value_that_is_searched_twice_is_refused(read, values):
    (problem,) = read(a={"search": {"lora_r": values}})
    assert problem.startswith("methods.a.search.lora_r has ") and problem.endswith(" more than once")


def test_a_method_that_has_the_name_of_anothers_candidates_is_refused(read):
    methods = {"lora": {"search": {"lora_r": [4, 8]}}, "lora-r4": {}, "Lora-R8": {}}
    assert read(**methods) == [
        "methods.lora-r4: runs would be called lora-r4, as those of methods.lora; take another name",
        "methods.Lora-R8: runs would be called Lora-R8, as those of methods.lora; take another name",
    ]
    assert len(read(**{**methods, "lora-r4": {"search": {"lora_r": [2]}}, "Lora-R8": {"search": {"lora_r": [2]}}})) == 4


@pytest.mark.parametrize(("first", "second"), [("full", "Full"), ("LORA", "lora")])
def test_methods_that_differ_in_case_at_most_are_refused(read, first, second):
    (problem,) = read.text(f"shared: {{max_length: 64}}\nmethods: {{{first}: {{}}, {second}: {{}}}}\n")
    assert problem == f"methods.{second}: methods.{first} has that name, but for case; take another"


@pytest.mark.parametrize(("name", "good"), [
    ("base", False), ("Base", False), ("base-smollm2", False), ("baseline", True), ("my-base", True), ("base_2", True),
])  # fmt: skip
def test_no_method_is_called_as_the_base_model_is(read, name, good):
    said = f"methods.{name}: what has not been trained is called base; take another name"
    assert read(**{name: {}}) == ([name] if good else [said])
