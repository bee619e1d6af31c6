import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval.models.language_model import Description
from eval.results import GENERATION_METRICS, LIKELIHOOD_METRICS, Interval, Results, SplitResults, predictions
from finllm.errors import UserError
from finllm.files import write_jsonl

ROOT = Path(__file__).parents[2]

PASSED = {"passed": True, "summary": "all is well"}
METRICS = {name: {"value": 1, "low": 0.5, "high": 1.5} for name in LIKELIHOOD_METRICS + GENERATION_METRICS}
SPLIT = {"examples": 2, "questions": 2, "tokens": 10, "bytes": 40, "generated": 2, "metrics": METRICS}


def results(**changed) -> Results:
    metrics = {name: Interval(1.0, 0.5, 1.5) for name in LIKELIHOOD_METRICS + GENERATION_METRICS}
    values = {
        "name": "lora",
        "model": Description("lora", "gpt2", "gpt2", 1000, 10),
        "dataset": {"name": "finance", "hash": "d1"},
        "template": {"id": "alpaca", "hash": "t1"},
        "splits": {"test": SplitResults(2, 2, 10, 40, 2, metrics, clean=SplitResults(1, 1, 5, 20, 1, metrics))},
        "confidence": {"level": 0.95, "method": "jackknife over questions"},
        "signatures": {"rouge": "r", "bleu": "b"},
        "decoding": {"do_sample": False, "max_new_tokens": 64},
        "audits": {"causality": {"passed": True, "summary": "nothing moved", "largest_difference": 0.0}},
        "seconds": {"score": 1.5, "generate": 2},
    }
    return Results(**{**values, **changed})


def prediction(id: str, **changed) -> dict:
    row = {"id": id, "split": "test", "question_id": id, "instruction": "What is a bond?", "input": "", "prompt": "p"}
    row |= {"reference": "A loan.", "prediction": None, "nll": 3.5, "tokens": 3, "correct_tokens": 1, "bytes": 7}
    row |= dict.fromkeys(("stopped", "prediction_tokens", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu"))
    return row | changed


def change(run: Path, **changed) -> None:
    path = run / "eval" / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_what_is_written_is_read_back_equal(tmp_path):
    results().write(tmp_path)
    assert Results.read(tmp_path) == results()
    content = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert content["schema_version"] == 1
    assert content["splits"]["test"]["metrics"]["bits_per_byte"] == {"value": 1.0, "low": 0.5, "high": 1.5}
    assert content["model"]["trainable_parameters"] == 10
    assert list(content)[1:] == [field.name for field in dataclasses.fields(Results)]


def test_likelihood_alone_is_complete_when_nothing_was_generated(tmp_path):
    metrics = {name: Interval(1.0, 0.5, 1.5) for name in LIKELIHOOD_METRICS}
    results(splits={"test": SplitResults(2, 2, 10, 40, 0, metrics)}).write(tmp_path)
    assert set(Results.read(tmp_path).splits["test"].metrics) == set(LIKELIHOOD_METRICS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"schema_version": None}, "schema_version None"),
        ({"name": 7}, "name is 7, not str"),
        (
            {"model": {"method": "lora", "base_model": None}},
            "model.tokenizer is missing; model.total_parameters is missing",
        ),
        ({"model": {**vars(results().model), "method": "Prompt!"}}, "model.method is 'Prompt!', not a name"),
        ({"model": {**vars(results().model), "total_parameters": 0}}, "model.total_parameters is 0"),
        ({"seconds": {"score": float("nan"), "generate": 1}}, "seconds.score is nan, not a finite number"),
        ({"audits": {"causality": {}}}, "audits.causality.passed is missing; audits.causality.summary is missing"),
        ({"audits": {"casuality": PASSED}}, "audits.casuality is no audit (did you mean 'causality'?)"),
        ({"audits": {"question": {**PASSED, "more": {"nll": float("inf")}}}}, "audits.question.more.nll is inf"),
        ({"splits": {"test": {**SPLIT, "clean": {**SPLIT, "examples": 0}}}}, "splits.test.clean.examples is 0"),
        ({"splits": {"test": {**SPLIT, "clean": {**SPLIT, "examples": 3}}}}, "clean has 3 examples, the split 2"),
        ({"splits": {"test": {"examples": 2}}}, "splits.test.bytes is missing"),
        ({"splits": []}, "splits is [], not dict"),
    ],
)
def test_a_results_file_that_cannot_be_trusted_is_refused_with_file_and_fix(tmp_path, changed, message):
    results().write(tmp_path)
    change(tmp_path, **changed)
    with pytest.raises(UserError) as error:
        Results.read(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path / "eval" / "results.json") in str(error.value)
    assert f"python eval/run.py {tmp_path}" in str(error.value)


@pytest.mark.parametrize(
    ("metric", "interval", "message"),
    [
        ("bits_per_byte", None, "bits_per_byte is missing"),
        ("bleu", None, "bleu is missing"),
        ("f1", Interval(1, 0, 2), "f1 is not expected"),
        ("perplexity", Interval(float("nan"), 0, 2), "perplexity.value is nan"),
        ("perplexity", Interval(2, 0, float("inf")), "perplexity.high is inf"),
        ("rouge1", Interval(0.5, 0.6, 0.4), "low 0.6 above high 0.4"),
    ],
)
def test_bad_metrics_are_refused_before_they_are_written(tmp_path, metric, interval, message):
    split = results().splits["test"]
    metrics = {**split.metrics, metric: interval}
    if interval is None:
        del metrics[metric]
    with pytest.raises(UserError, match=message):
        results(splits={"test": dataclasses.replace(split, metrics=metrics)}).write(tmp_path)
    assert not (tmp_path / "eval").exists()


def test_empty_splits_are_refused(tmp_path):
    split = dataclasses.replace(results().splits["test"], examples=0, bytes=0)
    with pytest.raises(UserError, match=r"2 problems.*test.examples is 0.*test.bytes is 0"):
        results(splits={"test": split}).write(tmp_path)


def test_a_folder_without_results_says_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"results.json does not exist; evaluate the run: python eval/run.py"):
        Results.read(tmp_path)
    with pytest.raises(UserError, match=r"predictions.jsonl does not exist; evaluate the run: python eval/run.py"):
        predictions(tmp_path)


def test_a_likelihood_that_cannot_be_believed_is_not_ranked_and_the_reason_is_said():
    failed = {"passed": False}
    assert results(audits={}).unranked is None
    assert results(audits={"stopping": failed, "padding": failed, "question": failed}).unranked is None
    assert results(audits={"causality": failed, "reproducibility": failed}).unranked == "it sees the future"
    assert results(audits={"reproducibility": failed}).unranked == "its likelihood is not reproducible"
    random = {"passed": False, "random": True}
    assert "reproducible" in results(audits={"causality": failed, "reproducibility": random}).unranked
    assert "score" in results(audits={"likelihood": failed}).unranked


def test_intervals_that_touch_overlap():
    assert Interval(1, 0.5, 1.5).overlaps(Interval(2, 1.5, 2.5))
    assert not Interval(2, 1.6, 2.5).overlaps(Interval(1, 0.5, 1.5))
    assert Interval(1, 0, 3).overlaps(Interval(1.5, 1, 2)) and Interval(1.5, 1, 2).overlaps(Interval(1, 0, 3))


def test_predictions_are_read_as_written(tmp_path):
    rows = [prediction("a"), prediction("b", prediction="x", stopped=True, prediction_tokens=2, rougeL=1, bleu=0.0)]
    write_jsonl(tmp_path / "eval" / "predictions.jsonl", rows)
    assert predictions(tmp_path) == rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([prediction("a"), prediction("b"), prediction("a")], "id a is on 2 lines"),
        ([prediction("a"), {"id": "b"}], "line 2.split is missing"),
        ([prediction("a", nll="3")], "line 1.nll is '3', not float"),
        ([prediction("a", tokens=True)], "line 1.tokens is True, not int"),
        ([prediction("a", prediction=5)], "line 1.prediction is 5, not str or null"),
        ([prediction("a", bytes=0)], "line 1 has no bytes"),
        ([["a"]], "line 1 is \\['a'\\], not an object"),
        ([{}], "19 problems|and 14 more"),
    ],
)
def test_broken_predictions_are_named(tmp_path, rows, message):
    write_jsonl(tmp_path / "eval" / "predictions.jsonl", rows)
    with pytest.raises(UserError, match=message) as error:
        predictions(tmp_path)
    assert "predictions.jsonl" in str(error.value) and "python eval/run.py" in str(error.value)


def test_nan_in_predictions_is_refused(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "predictions.jsonl").write_text(json.dumps(prediction("a", nll=float("nan"))) + "\n")
    with pytest.raises(UserError, match=r"line 1.nll is nan, not a finite number"):
        predictions(tmp_path)


def test_torch_is_not_imported():
    code = "import sys, eval.results; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
