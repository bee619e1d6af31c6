"""What was learned, scaled: the ends are the base model and the run, by hand and by the command."""

import json

import numpy as np
import pytest

from eval.scaling import best_of
from finllm.run_dir import RunDir


def test_the_best_scale_and_what_it_gains_over_1():
    nats = np.array([[8.0, 4.0, 6.0], [6.0, 2.0, 4.0], [7.0, 3.5, 5.0]])  # scales 0, 0.5 and 1 of three rows
    found = best_of([0.0, 0.5, 1.0], nats, np.array([2.0, 1.0, 3.0]))
    assert found["nats_per_token"] == pytest.approx([3.0, 2.0, 15.5 / 6]) and found["best"] == 0.5
    gain = found["gain"]
    assert gain["nats_per_token"] == pytest.approx(3.5 / 6) and gain["low"] < 3.5 / 6 < gain["high"]


def test_where_1_is_the_best_nothing_is_gained():
    found = best_of([0.0, 1.0], np.array([[3.0, 3.0], [1.0, 2.0]]), np.array([1.0, 1.0]))
    assert found["best"] == 1.0 and found["gain"] == {"nats_per_token": 0.0, "low": 0.0, "high": 0.0}


FLAGS = ("--max_steps", 3, "--max_length", 96, "--max_train_samples", 8, "--max_eval_samples", 4, "--eval_on_start",
         "false", "--save_strategy", "no", "--learning_rate", "1e-2")  # fmt: skip
METHODS = {
    "full": (),
    "lora": ("--peft_type", "lora"),
    "ia3": ("--peft_type", "ia3"),
    "prompt": ("--peft_type", "prompt_tuning"),
    "qlora": ("--peft_type", "lora", "--load_in_4bit", "true"),
}


@pytest.mark.parametrize("method", METHODS)
def test_0_is_the_base_model_and_1_the_run(method, command, gpt2_dir, dataset_dir, tmp_path):
    run = RunDir(tmp_path / method)
    done = command("recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir",
                   run.path, *FLAGS, *METHODS[method])  # fmt: skip
    assert done.status == 0, done.err
    asked = ("eval/scaling.py", run.path, "--scales", 0, 0.5, "--max_examples", 6)
    done = command(*asked)
    assert done.status == 0, done.err
    held = json.loads((run.eval / "scaling.json").read_text())
    if method in ("prompt", "qlora"):
        assert {"prompt": "no weights of the base model", "qlora": "quantised"}[method] in held["reason"] in done.out
        return
    assert held["scales"] == [0.0, 0.5, 1.0] and held["examples"] == 6 and held["reason"] is None
    done = command("eval/run.py", run.path, "--model_name_or_path", gpt2_dir, "--output_dir", tmp_path / "base",
                   "--split", "validation", "--max_examples", 6, "--max_generated", 0)  # fmt: skip
    assert done.status == 0, done.err
    for place, loss in ((tmp_path / "base", held["nats_per_token"][0]), (run.path, held["nats_per_token"][2])):
        lines = (place / "eval" / "predictions.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows) == pytest.approx(loss, abs=1e-5)
    assert held["nats_per_token"][0] > held["nats_per_token"][2]
    # The same again, with nothing done anew.
    before = (run.eval / "scaling.json").stat().st_mtime_ns
    assert command(*asked).status == 0 and (run.eval / "scaling.json").stat().st_mtime_ns == before
    done = command(*asked, "--scales", 5, -1, "--max_examples", 6)
    assert done.status == 2 and "--scales has 5, -1; a scale is 0 to 4" in done.err
