"""Every place of results.json and predictions.jsonl: absent, of another type, and at both sides of its limits."""

import copy
import json
from dataclasses import asdict

import pytest

from eval.results import AUDITS, Results, _problems_of_results, how_to_evaluate, predictions
from finllm.errors import UserError
from finllm.files import write_json, write_jsonl
from tests.eval.test_results import prediction, results

CONTENT = asdict(results(hashes={"weights": "w"}))
CONTENT["model"]["dtype"], CONTENT["seconds"]["generate"] = "float32", 2.0
CONTENT["splits"]["test"]["left_out"] = ["x"]
CONTENT["splits"]["test"]["clean"].pop("clean")
OPTIONAL = {"model.dtype", "hashes", "splits.test.clean", *(f"splits.test{clean}.{name}" for clean in ("", ".clean")
            for name in ("left_out", "numbers", "number_floors"))}  # fmt: skip
# Objects whose keys are named by their content
NAMED = {"signatures.rouge", "signatures.bleu", "hashes.weights", "splits.test", "audits.causality"}
FREE = {"audits.causality.largest_difference"}
NULL = {"model.base_model", *(f"splits.test{clean}.metrics.{name}" for clean in ("", ".clean")
        for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "length_ratio"))}  # fmt: skip


def places(value, place=()):
    yield from ((*place, key) for key in value)
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from places(inner, (*place, key))


PLACES = [".".join(place) for place in places(CONTENT)]


def problems(place, value="absent"):
    """What is wrong with results that hold `value` in one place."""
    content = copy.deepcopy(CONTENT)
    *path, key = place.split(".")
    inner = content
    for each in path:
        inner = inner[each]
    if value == "absent":
        del inner[key]
    else:
        inner[key] = value
    return _problems_of_results(content)


def test_what_is_whole_has_no_problem():
    assert _problems_of_results(CONTENT) == [] and len(PLACES) > 100


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_is_absent_or_of_another_type_is_named(place):
    if place in OPTIONAL | NAMED | FREE:
        assert problems(place) == [], place
    else:
        assert any(problem.startswith(f"{place} is missing") for problem in problems(place)), place
    if place in FREE:
        return
    value = CONTENT
    for key in place.split("."):
        value = value[key]
    others = [[], {}, 7, "x", True, None, 0.5]
    if isinstance(value, bool):
        others = [other for other in others if not isinstance(other, bool)]
    elif isinstance(value, int):  # a count
        others = [-1, *(other for other in others if type(other) is not int)]
    elif isinstance(value, float):
        others = [float("nan"), float("inf"), *(other for other in others if type(other) not in (int, float))]
    elif isinstance(value, list):
        others = [[7], [None], *others[1:]]
    else:
        others = [other for other in others if type(other) is not type(value)]
    for other in others:
        if other is None and place in OPTIONAL | NULL:
            assert problems(place, None) == [], place
        else:
            assert any(problem.startswith(place) for problem in problems(place, other)), (place, other)


TEST = "splits.test.metrics."
LIMITS = {
    **{f"{TEST}{name}.value": ((-0.01, 0, 1e9), (-0.011, -1))
       for name in ("nll_per_token", "perplexity", "bits_per_byte")},
    **{f"{TEST}{name}.value": ((0, 1, 1 + 1e-6), (-1e-3, 1 + 1e-5, 2))
       for name in ("token_accuracy", "rouge1", "rouge2", "rougeL", "rougeLsum", "stop_rate", "repetition")},
    f"{TEST}bleu.value": ((0, 1.01, 100), (-1e-3, 100.1)),
    f"{TEST}length_ratio.value": ((0, 50), (-1e-3,)),
    "confidence.level": ((0.01, 0.5, 0.9999), (0.009, 0.99991, 1.0)),
    "seconds.score": ((0, 1e9), (-1,)),
    "decoding.max_new_tokens": ((0, 1, 10**6), (-1,)),
    "model.total_parameters": ((1, 10**15), (0, -1)),
    "model.trainable_parameters": ((0, 1), (-1,)),
    "splits.test.generated": ((1, 2), (-1,)),
    **{f"splits.test.{name}": ((1, 2), (0, -1)) for name in ("questions", "tokens", "bytes")},
    "splits.test.examples": ((1, 2), (0,)),  # the clean part has one
    "splits.test.clean.examples": ((1, 2), (0,)),
    "name": (("a", "n" * 255), ("", " ", "n" * 256)),
    "signatures.rouge": (("s" * 20_000,), ("s" * 20_001,)),
    "hashes.weights": (("s" * 20_000,), ("s" * 20_001,)),
    "model.method": (("a", "lora", "ia3_2", "m" * 61), ("", "Lora", "2a", "_a", "a-b", "m" * 62, "lora\n")),
    "audits.causality.passed": ((True, False), (1, "yes")),
    "audits.causality.largest_difference": (
        (None, 1.0, "text", [1.0, {"a": 2.0}]), (float("nan"), [1.0, float("inf")], {"a": [float("nan")]}, "s" * 20_001)
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", LIMITS)
def test_limits_from_both_sides(place):
    good, bad = LIMITS[place]
    for value in good:
        assert problems(place, value) == [], value
    for value in bad:
        found = problems(place, value)
        assert len(found) == 1 and found[0].startswith(place.removesuffix(".value")), (value, found)


def test_an_interval_may_be_a_point_and_not_turned():
    for low, high, fine in ((0.5, 0.5, True), (0.6, 0.5, False), (2.0, 3.0, True)):
        assert (problems(f"{TEST}bits_per_byte", {"value": 1.0, "low": low, "high": high}) == []) is fine


def test_a_clean_part_is_no_larger_than_its_split():
    assert problems("splits.test.clean.examples", 3) == ["splits.test.clean has 3 examples, the split 2"]


def test_figures_of_answers_stand_where_there_are_answers_and_nowhere_else():
    assert problems("splits.test.generated", 0) == [
        f"{TEST}{name} is not expected with 0 generated answers" for name in CONTENT["splits"]["test"]["metrics"]
        if name not in ("nll_per_token", "perplexity", "bits_per_byte", "token_accuracy")
    ]  # fmt: skip


def test_the_audits_by_name():
    assert AUDITS == ("causality", "reproducibility", "likelihood", "padding", "question", "contamination", "stopping",
                      "memorisation", "template")  # fmt: skip
    for name in AUDITS:
        assert problems("audits", {name: {"passed": True, "summary": "s"}}) == []


ROW = prediction("a", prediction="x", stopped=True, prediction_tokens=2, rouge1=1.0, rouge2=0.5, rougeL=0.5,
                 rougeLsum=0.5, bleu=50.0)  # fmt: skip
OF_ROWS = {
    "nll": ((0, -0.01, 1e9), (-0.011, None, "1")), "tokens": ((0, 9), (-1, 1.5, None)), "bytes": ((1, 9), (0, -1)),
    "correct_tokens": ((0, 9), (-1, None)), "prediction_tokens": ((0, 9, None), (-1, "2")),
    "stopped": ((True, False, None), (1, "no")), "bleu": ((0, 100, None), (-1, 100.1, "1")),
    **{f"rouge{kind}": ((0, 1, None), (-0.1, 1.1, "1")) for kind in ("1", "2", "L", "Lsum")},
    "prediction": (("", None), (7,)),
    **dict.fromkeys(("id", "split", "question_id", "instruction", "input", "prompt", "reference"),
                    (("", "x"), (7, None))),
}  # fmt: skip


@pytest.mark.parametrize("key", ROW)
def test_each_key_of_a_prediction(key, tmp_path):
    def read(row):
        write_jsonl(tmp_path / "eval" / "predictions.jsonl", [prediction("b"), row])
        return predictions(tmp_path)

    good, bad = OF_ROWS[key]
    for value in good:
        assert read(ROW | {key: value})[1] == ROW | {key: value}
    for value in bad:
        with pytest.raises(UserError, match=rf"line 2(\.{key}| has no {key})"):
            read(ROW | {key: value})
    with pytest.raises(UserError, match=rf"line 2\.{key} is missing"):
        read({other: value for other, value in ROW.items() if other != key})


def test_the_command_that_evaluates(tmp_path):
    run = tmp_path / "my run"
    run.mkdir()
    assert how_to_evaluate(run) == f"python eval/run.py '{run}'"
    assert how_to_evaluate(run, "validation") == f"python eval/run.py '{run}' --split validation"
    (run / "config.yaml").write_text("a: 1")
    write_json(run / "provenance.json", {"base_model": "gpt2"})
    assert how_to_evaluate(run) == f"python eval/run.py '{run}'"  # it was trained
    (run / "config.yaml").unlink()
    base = f"--dataset_name DATASET_DIR --output_dir '{run}'"
    assert how_to_evaluate(run) == f"python eval/run.py --model_name_or_path gpt2 {base}"
    for template, more in (("", ""), ("alpaca", ""), ("chat", " --template chat"), (7, "")):
        write_json(run / "provenance.json", {"base_model": "gpt2", "template": template})
        assert how_to_evaluate(run) == f"python eval/run.py --model_name_or_path gpt2 {base}{more}"
    for held in ({}, {"base_model": None}, {"base_model": 7}):
        write_json(run / "provenance.json", held)
        assert how_to_evaluate(run) == f"python eval/run.py --model_name_or_path MODEL {base}"
    (run / "provenance.json").write_text("{")
    assert how_to_evaluate(run) == f"python eval/run.py --model_name_or_path MODEL {base}"
    (run / "provenance.json").unlink()
    for name in ("results.json", "predictions.jsonl"):
        (run / "eval").mkdir(exist_ok=True)
        (run / "eval" / name).write_text("{")
        assert how_to_evaluate(run, "train") == f"python eval/run.py '{run}' --split train --overwrite"
        (run / "eval" / name).unlink()


def test_what_is_absent_or_null_is_read_as_the_default(tmp_path):
    results().write(tmp_path)
    path = tmp_path / "eval" / "results.json"
    content = json.loads(path.read_text())
    split = content["splits"]["test"]
    clean = split["clean"]
    for place, key in ((content, "hashes"), (split, "left_out"), (clean, "left_out"), (clean, "clean"),
                       (content["model"], "dtype")):  # fmt: skip
        held = place.pop(key, None)
        for value in ({}, {key: None}):
            place.update(value)
            path.write_text(json.dumps(content))
            assert Results.read(tmp_path) == results(), key
        place[key] = held
    del split["clean"]
    path.write_text(json.dumps(content))
    assert Results.read(tmp_path).splits["test"].clean is None
