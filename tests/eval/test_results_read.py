"""results.json and predictions.jsonl of numbers and conversations, what is null, and whole lists of what is wrong."""

import copy
import json
from dataclasses import asdict, replace

import pytest

from eval.models.language_model import Description
from eval.results import Interval, Results, SplitResults, _problems_of_results, how_to_evaluate, predictions
from finllm.errors import UserError
from finllm.files import write_json, write_jsonl
from tests.eval.test_results import prediction, results

LIKELIHOOD = ("nll_per_token", "perplexity", "bits_per_byte", "token_accuracy")
GENERATION = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "stop_rate", "length_ratio", "repetition")
NUMBERS = ("number_right", "number_close", "number_right_bare", "no_number", "text_after_number")
ONE = Interval(0.5, 0.25, 0.75)


def of_numbers(**changed) -> Results:
    """Results of a split that asks for numbers, all that may be absent given."""
    clean = SplitResults(1, 1, 5, 20, 1, dict.fromkeys((*LIKELIHOOD, *GENERATION), ONE), left_out=["a"])
    values = {
        "examples": 3, "questions": 2, "tokens": 30, "bytes": 40, "generated": 3, "clean": clean,
        "left_out": ["a", "b"], "metrics": dict.fromkeys((*LIKELIHOOD, *GENERATION, *NUMBERS), ONE),
        "numbers": 2, "number_floors": {"a number of the question": 0.5, "the most frequent number": 1.0},
    }  # fmt: skip
    described = Description("lora", None, "gpt2", 1000, 10, "bfloat16")
    return results(splits={"test": SplitResults(**{**values, **changed})}, model=described, hashes={"weights": "w"})


def content_of(changes, numbers=True):
    """The content of results with other values in some places."""
    content = copy.deepcopy(asdict(of_numbers() if numbers else results()))
    for place, value in changes.items():
        *path, key = place.split(".")
        inner = content
        for each in path:
            inner = inner[each]
        inner[key] = value
    return content


def problems(numbers=True, **changes):
    return _problems_of_results(content_of({key.replace("__", "."): value for key, value in changes.items()}, numbers))


def test_all_of_it_is_read_back_equal(tmp_path):
    nothing = dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "length_ratio"))
    metrics = dict.fromkeys((*LIKELIHOOD, *GENERATION, *NUMBERS), ONE) | nothing
    for written in (of_numbers(), of_numbers(metrics=metrics), of_numbers(clean=None)):
        written.write(tmp_path)
        assert Results.read(tmp_path) == written
    both = replace(written, splits={"validation": of_numbers(left_out=[]).splits["test"], **written.splits})
    both.write(tmp_path)
    read = Results.read(tmp_path)
    assert read == both and list(read.splits) == ["validation", "test"]


def test_numbers_that_are_absent_are_none(tmp_path):
    results().write(tmp_path)
    path = tmp_path / "eval" / "results.json"
    content = json.loads(path.read_text())
    for split in (content["splits"]["test"], content["splits"]["test"]["clean"]):
        del split["numbers"], split["number_floors"]
    path.write_text(json.dumps(content))
    split = Results.read(tmp_path).splits["test"]
    assert (split.numbers, split.clean.numbers, split.number_floors, split.left_out) == (0, 0, {}, [])


def test_figures_of_numbers_stand_where_numbers_are_asked_for_and_nowhere_else():
    metrics = content_of({})["splits"]["test"]["metrics"]
    assert problems() == []
    for name in NUMBERS:
        fewer = {key: value for key, value in metrics.items() if key != name}
        assert problems(splits__test__metrics=fewer) == [f"splits.test.metrics.{name} is missing"]
        assert problems(**{f"splits__test__metrics__{name}": None}) == [
            f"splits.test.metrics.{name} is None, not an object"
        ]
        for value in (0, 1, 1 + 1e-6):
            assert problems(**{f"splits__test__metrics__{name}__value": value}) == []
        for value in (-1e-3, 1 + 1.5e-6):
            (found,) = problems(**{f"splits__test__metrics__{name}__value": value})
            assert found.startswith(f"splits.test.metrics.{name}.value is ")
    for numbers in (0, None):
        assert problems(splits__test__numbers=numbers) == [
            f"splits.test.metrics.{name} is not expected with 3 generated answers" for name in NUMBERS
        ]
    unanswered = {name: metrics[name] for name in (*LIKELIHOOD, *NUMBERS)}
    assert problems(splits__test__generated=0, splits__test__metrics=unanswered) == []
    for floors, place in (({"x": 1.1}, ".x"), ({"x": "1"}, ".x"), ({"x": 0, "y": -0.1}, ".y"), ([], "")):
        (found,) = problems(splits__test__number_floors=floors)
        assert found.startswith(f"splits.test.number_floors{place} is ")
    assert problems(splits__test__number_floors={"x": 0, "y": 1.0}) == []


@pytest.mark.parametrize(("names", "highest"), [
    (("token_accuracy", "rouge1", "rouge2", "rougeL", "rougeLsum", "stop_rate", "repetition"), 1), (("bleu",), 100),
])  # fmt: skip
def test_a_highest_value_is_held_but_for_rounding(names, highest):
    for name in names:
        place = f"splits__test__metrics__{name}__value"
        assert problems(**{place: highest + 1e-6}) == [] and len(problems(**{place: highest + 1.5e-6})) == 1


def test_what_is_null_does_not_hide_what_comes_after_it():
    found = problems(splits__test__metrics__rouge1=None, splits__test__metrics__repetition__value=2.0)
    assert found == ["splits.test.metrics.repetition.value is 2.0, not from 0 to 1"]
    found = problems(splits__test__metrics={"f1": 1, **content_of({})["splits"]["test"]["metrics"], "perplexity": None})
    assert found == [
        "splits.test.metrics.f1 is not expected with 3 generated answers",
        "splits.test.metrics.perplexity is None, not an object",
    ]


def test_each_split_and_each_audit_is_looked_at():
    split, fine = content_of({})["splits"]["test"], {"passed": True, "summary": "s"}
    broken = {**split, "bytes": 0}
    assert problems(splits={"a": broken, "b": split, "c": broken}) == [
        "splits.a.bytes is 0, not 1 or more", "splits.c.bytes is 0, not 1 or more"
    ]  # fmt: skip
    figures = {"x": [1.0, float("inf"), {"y": float("nan")}], "z": float("-inf")}
    infinite = {**fine, **figures}
    assert problems(audits={"padding": infinite, "question": fine, "template": {**fine, "v": float("nan")}}) == [
        "audits.padding.x[1] is inf, not a finite number", "audits.padding.x[2].y is nan, not a finite number",
        "audits.padding.z is -inf, not a finite number", "audits.template.v is nan, not a finite number",
    ]  # fmt: skip
    assert problems(audits={"other": fine, "question": {"passed": True}})[1:] == ["audits.question.summary is missing"]


def test_every_text_that_no_page_could_show_is_named():
    long, fits = "x" * 20_001, "x" * 20_000
    said = " is a text of 20,001 characters, not 20,000 or fewer"
    for place in ("dataset.name", "hashes.weights", "Xtra", "template.id", "decoding.x"):
        assert _problems_of_results(content_of({place: long})) == [place + said]
        assert _problems_of_results(content_of({place: fits})) == []
    assert problems(splits__test__left_out=[long, fits, long]) == [
        f"splits.test.left_out.0{said}", f"splits.test.left_out.2{said}"
    ]  # fmt: skip
    assert problems(name=long) == ["name has 20,001 characters, not 1 to 255", f"name{said}"]


def test_a_file_that_is_refused_is_named(tmp_path):
    for ask in (of_numbers(bytes=0).check, of_numbers(bytes=0).write):
        with pytest.raises(UserError) as error:
            ask(tmp_path)
        assert str(error.value) == f"1 problem in {tmp_path}/eval/results.json: splits.test.bytes is 0, not 1 or more"
    of_numbers().check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_not_followed(tmp_path):
    of_numbers().write(tmp_path / "run")
    run = tmp_path / "other"
    run.mkdir()
    (run / "eval").symlink_to(tmp_path / "run" / "eval")
    with pytest.raises(UserError, match="link"):
        Results.read(run)


def test_intervals_overlap_from_either_side():
    one = Interval(1, 0.5, 1.5)
    for low, high, overlap in ((1.5, 2, True), (1.6, 2, False), (0, 0.5, True), (0, 0.4, False), (0.6, 0.7, True),
                               (0, 9, True)):  # fmt: skip
        other = Interval(low, low, high)
        assert one.overlaps(other) is overlap is other.overlaps(one)


TURN = {"role": "user", "content": "Hello."}
RIGHT = {"value": "4", "unit": "£", "tolerance": "0"}
MORE = {  # what a line may have: values that are fine, and others with the place that is named
    "system": (("", "Be brief.", None), ((7, "system"), ([], "system"))),
    "history": (([], [TURN, TURN], None), (({}, "history"), (["x"], "history[0]"), ([TURN, {"role": "user"}],
                "history[1].content"), ([{"content": "x"}], "history[0].role"), ([{**TURN, "role": 1}],
                "history[0].role"), ([{**TURN, "content": None}], "history[0].content"))),
    "number": ((RIGHT, None), (([], "number"), ("4", "number"), *(({**RIGHT, key: 4}, f"number.{key}")
               for key in RIGHT), *(({other: "x" for other in RIGHT if other != key}, f"number.{key}")
               for key in RIGHT))),
    "number_read": (("4 £", None), ((4, "number_read"),)),
    **{name: ((True, False, None), ((1, name), ("yes", name))) for name in NUMBERS},
}  # fmt: skip


@pytest.mark.parametrize("key", MORE)
def test_what_a_line_of_predictions_may_have(key, tmp_path):
    path, (good, bad) = tmp_path / "eval" / "predictions.jsonl", MORE[key]
    for value in good:
        write_jsonl(path, [prediction("b"), prediction("a", **{key: value})])
        assert predictions(tmp_path)[1][key] == value
    for value, place in bad:
        write_jsonl(path, [prediction("b"), prediction("a", **{key: value})])
        with pytest.raises(UserError) as error:
            predictions(tmp_path)
        assert str(error.value).startswith(f"1 problem in {path}: line 2.{place} is ")


def test_limits_of_a_line_from_both_sides(tmp_path):
    path = tmp_path / "eval" / "predictions.jsonl"
    answered = dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 1 + 1e-6) | {"bleu": 100 + 1e-6}
    write_jsonl(path, [prediction("a", **answered)])
    assert predictions(tmp_path)[0]["bleu"] == 100 + 1e-6
    for key, value in answered.items():
        write_jsonl(path, [prediction("a", **{key: value + 0.5e-6})])
        with pytest.raises(UserError, match=f"line 1.{key} is "):
            predictions(tmp_path)


def test_ids_and_bytes_of_every_line(tmp_path):
    rows = [prediction(id) for id in "abcabad"]
    rows[2]["bytes"] = rows[6]["bytes"] = 0
    write_jsonl(tmp_path / "eval" / "predictions.jsonl", rows)
    with pytest.raises(UserError) as error:
        predictions(tmp_path)
    assert str(error.value) == (
        f"4 problems in {tmp_path}/eval/predictions.jsonl: id a is on 3 lines; id b is on 2 lines; line 3 has no "
        f"bytes; line 7 has no bytes; evaluate the run: python eval/run.py {tmp_path} --overwrite"
    )


def test_what_there_is_of_results_is_replaced(tmp_path):
    assert how_to_evaluate(tmp_path, "test") == f"python eval/run.py {tmp_path}"
    (tmp_path / "eval").mkdir()
    assert how_to_evaluate(tmp_path) == f"python eval/run.py {tmp_path}"
    write_json(tmp_path / "provenance.json", {"template": "chat"})
    (tmp_path / "eval" / "results.json").write_text("")
    assert how_to_evaluate(tmp_path, "train") == (
        f"python eval/run.py --model_name_or_path MODEL --dataset_name DATASET_DIR --output_dir {tmp_path} "
        "--template chat --split train --overwrite"
    )
