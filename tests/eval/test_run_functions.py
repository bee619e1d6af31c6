"""What eval/run.py decides for itself: which rows a run was trained on, and what a line of predictions.jsonl holds."""

import json
from types import SimpleNamespace

import pytest

from eval.models.language_model import Generation, Score
from eval.run import _prediction, _training
from finllm.data.prepare import prepare

EXAMPLE = {"id": "i", "question_id": "q", "instruction": "Add.", "input": "£1", "output": "£2 — no more"}


def test_a_line_of_predictions():
    line = _prediction("validation", EXAMPLE, "prompt", Score(2.5, 7, 3), Generation("£2", 4, False))
    assert line == {
        "id": "i", "split": "validation", "question_id": "q", "instruction": "Add.", "input": "£1", "prompt": "prompt",
        "reference": "£2 — no more", "prediction": "£2", "nll": 2.5, "tokens": 7, "correct_tokens": 3, "bytes": 15,
        "stopped": False, "prediction_tokens": 4,
    }  # fmt: skip
    asked = {**EXAMPLE, "system": "Be brief.", "history": [{"role": "user", "content": "Hello."}], "other": 1}
    told = _prediction("validation", asked, "prompt", Score(2.5, 7, 3), Generation("£2", 4, False))
    assert told == {**line, "system": "Be brief.", "history": [{"role": "user", "content": "Hello."}]}
    assert _prediction("validation", {**asked, "system": "", "history": []}, "prompt", Score(2.5, 7, 3),
                       Generation("£2", 4, False)) == line  # fmt: skip
    unanswered = _prediction("test", EXAMPLE, "prompt", Score(2.5, 7, 3), None)
    assert [unanswered[key] for key in ("prediction", "stopped", "prediction_tokens")] == [None] * 3
    assert _prediction("test", EXAMPLE, "p", Score(1.0, 1, 1), Generation("", 1, True))["stopped"] is True


@pytest.fixture
def data(tmp_path):
    def make(name, word):
        rows = [
            {"instruction": f"Question {number}?", "input": "", "output": f"{word} {number}."} for number in range(40)
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return prepare(tmp_path / "rows.jsonl", tmp_path / name, validation_fraction=0.3, test_fraction=0.3)

    return make


def run(dataset, complete=True, **config):
    return SimpleNamespace(
        complete=complete,
        config=lambda: {"dataset_name": str(dataset.path), **config},
        provenance=lambda: {"dataset_hash": dataset.hash},
    )


def test_the_rows_that_a_run_was_trained_on(data, tmp_path):
    own, other = data("own", "Yes"), data("other", "No")
    assert own.rows("train") != own.rows("validation") and own.hash != other.hash
    assert _training(run(own, complete=False), other) == other.rows("train")
    assert _training(run(own), own) == own.rows("train")
    assert _training(run(own, dataset_train_split="validation"), own) == own.rows("validation")
    assert _training(run(own), other) == own.rows("train")
    assert _training(run(own, dataset_train_split="test"), other) == own.rows("test")
    trained = run(own)
    elsewhere = SimpleNamespace(**{**vars(trained), "config": lambda: {"dataset_name": str(tmp_path / "gone")}})
    assert _training(elsewhere, other) is None
    for name in ("someone/rows", "x" * 5000, "a\0b"):  # a name of the hub, and what no folder can be called
        named = SimpleNamespace(**{**vars(trained), "config": lambda name=name: {"dataset_name": name}})
        assert _training(named, other) is None
    assert _training(elsewhere, own) == own.rows("train")
    changed = SimpleNamespace(**{**vars(trained), "config": lambda: {"dataset_name": str(other.path)}})
    assert _training(changed, data("third", "Perhaps")) is None
    (own.path / "train.jsonl").write_text("")
    assert _training(trained, other) is None
