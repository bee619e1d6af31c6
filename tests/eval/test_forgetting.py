"""Forgetting: the divergence from the base model on its own texts, by hand, and by the command."""

import json

import numpy as np
import pytest

from eval.forgetting import divergence
from finllm.files import write_json
from finllm.run_dir import RunDir


def test_it_is_the_mean_over_tokens_of_the_difference_of_log_probabilities():
    base = [np.log([0.5, 0.25]), np.log([0.5]), np.log([0.1, 0.2, 0.4])]
    tuned = [np.log([0.25, 0.25]), np.log([0.5]), np.log([0.1, 0.1, 0.1])]
    found = divergence(base, tuned)
    # log 2 of the first text, 0 of the second, log 2 + log 4 of the third, over six tokens
    assert found["nats_per_token"] == pytest.approx(4 * np.log(2) / 6) and found["scored_tokens"] == 6
    assert found["low"] < found["nats_per_token"] < found["high"]


def test_a_model_that_is_its_base_has_forgotten_nothing():
    same = [np.log([0.5, 0.25]), np.log([0.125])]
    assert {key: value for key, value in divergence(same, same).items() if key != "scored_tokens"} == {
        "nats_per_token": 0.0, "low": 0.0, "high": 0.0,
    }  # fmt: skip


@pytest.fixture
def lora(command, gpt2_dir, dataset_dir, tmp_path) -> RunDir:
    done = command(
        "recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir",
        tmp_path / "lora", "--max_steps", 3, "--max_length", 96, "--max_train_samples", 8, "--max_eval_samples", 2,
        "--eval_on_start", "false", "--save_strategy", "no", "--learning_rate", "1e-2", "--peft_type", "lora",
    )  # fmt: skip
    assert done.status == 0, done.err
    return RunDir(tmp_path / "lora")


def test_the_command_asks_all_models_of_the_texts_that_the_base_wrote_once(
    command, gpt2_dir, dataset_dir, lora, tmp_path
):
    base = tmp_path / "base"
    done = command("eval/run.py", lora.path, "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir,
                   "--output_dir", base, "--max_examples", 4, "--max_generated", 0)  # fmt: skip
    assert done.status == 0, done.err
    arguments = ("eval/forgetting.py", lora.path, "--base", base, "--texts", 6)
    done = command(*arguments)
    assert done.status == 0, done.err
    held = json.loads((lora.eval / "forgetting.json").read_text())
    texts = json.loads((base / "eval" / "own_texts.json").read_text())["pairs"]
    assert held["nats_per_token"] > 0 and held["scored_tokens"] == sum(len(written) for _, written in texts)
    assert len(texts) == 6 and {len(opening) for opening, _ in texts} > {1}, "half of them begin from nothing"
    # The same again, with nothing done anew: what was measured is of these weights.
    write_json(
        lora.eval / "forgetting.json",
        {key: value for key, value in {**held, "high": 9.0}.items() if key != "schema_version"},
    )
    assert command(*arguments).status == 0
    assert json.loads((lora.eval / "forgetting.json").read_text())["high"] == 9.0
    done = command("eval/forgetting.py", lora.path, "--base", lora.path)
    assert done.status == 2 and "--base names an evaluated base model's dir" in done.err
