"""An evaluation that is killed goes on where it was, counted at the model; what other settings left is never taken."""

import json
import shutil
from collections import Counter

import pytest
from processes import run
from safetensors.torch import load_file, save_file

from finllm.data.dataset_dir import DatasetDir

BATCHES = 3  # of 2 of the 5 rows of the test split


@pytest.fixture
def evaluate(gpt2_dir, dataset_dir, tmp_path):
    """Evaluate the model in tmp_path/model, a copy of the tiny GPT-2; exit status, calls of the model, and run dir."""
    shutil.copytree(gpt2_dir, tmp_path / "model")

    def call(name, *more, killed="never"):
        log = tmp_path / f"{name}.jsonl"
        log.unlink(missing_ok=True)
        settings = {"--batch_size": 2, "--max_new_tokens": 6, **dict(zip(more[::2], more[1::2], strict=True))}
        flags = (part for pair in settings.items() for part in pair)
        arguments = [log, killed, "--model_name_or_path", tmp_path / "model", "--dataset_name", dataset_dir,
                     "--output_dir", tmp_path / name, *flags]  # fmt: skip
        status = run("tests/eval/counted_run.py", arguments, tmp_path / f"{name}.txt")
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        counts = Counter(what for _, what, _ in lines)
        return status, counts, tmp_path / name / "eval"

    return call


def files_of(folder):
    results = json.loads((folder / "results.json").read_text())
    return (folder / "predictions.jsonl").read_bytes(), {**results, "name": None, "seconds": None}


@pytest.mark.parametrize("killed", ["score:2", "generate:2"])
def test_what_was_scored_and_answered_before_a_kill_is_not_computed_again(evaluate, tmp_path, killed):
    status, whole, expected = evaluate("whole")
    assert status == 0, (tmp_path / "whole.txt").read_text()
    audits = whole["score"] - BATCHES
    assert whole["generate"] == BATCHES and audits > 0

    status, before, folder = evaluate("killed", killed=killed)
    assert status == -9 and not (folder / "results.json").exists()
    (kept,) = folder.glob(".partial/*/*.jsonl")
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == before["score"] + before["generate"] == (1 if killed == "score:2" else BATCHES + 1)
    # As two processes leave it, one of them cut short in a line.
    kept.write_text("".join(lines[1:]))
    kept.with_name("1.jsonl").write_text(lines[0] + lines[0][: len(lines[0]) // 2])

    status, again, folder = evaluate("killed")
    assert status == 0, (tmp_path / "killed.txt").read_text()
    assert again["score"] == BATCHES - before["score"] + audits
    assert again["generate"] == BATCHES - before["generate"]
    assert "were done before this evaluation was stopped" in (tmp_path / "killed.txt").read_text()
    assert files_of(folder) == files_of(expected)
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.jsonl", "results.json"]
    assert json.loads((folder / "results.json").read_text())["seconds"]["score"] > 0


def other_weights(model):
    weights = load_file(model / "model.safetensors")
    save_file({name: 1.01 * weight for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})


def other_positions(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-3}))


@pytest.mark.parametrize(
    ("change", "more"),
    [(other_weights, ()), (other_positions, ()), (None, ("--batch_size", 3)), (None, ("--max_new_tokens", 7)),
     (None, ("--max_examples", 4))],
    ids=["weights", "config", "batch size", "new tokens", "examples"],
)  # fmt: skip
def test_what_another_model_or_other_settings_left_is_not_taken(evaluate, dataset_dir, tmp_path, change, more):
    assert evaluate("killed", killed="score:3")[0] == -9
    if change:
        change(tmp_path / "model")
    status, again, folder = evaluate("killed", *more)
    assert status == 0, (tmp_path / "killed.txt").read_text()
    assert "before this evaluation was stopped" not in (tmp_path / "killed.txt").read_text()
    rows = len((folder / "predictions.jsonl").read_text().splitlines())
    assert rows == (4 if "--max_examples" in more else len(DatasetDir(dataset_dir).rows("test")))
    audited = 1  # references after another's question
    assert again["score"] >= (2 if more[:1] in (("--batch_size",), ("--max_examples",)) else BATCHES) + audited
    assert not (folder / ".partial").exists()
