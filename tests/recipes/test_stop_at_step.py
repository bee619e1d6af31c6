"""A run that is stopped at a step, looked at, and gone on with; and what each row of the validation split scored."""

import json
import math

import pytest
from safetensors.torch import load_file

from finllm.models.find import load_tokenizer
from finllm.text.tokens import encode

GROUPED = ("--train_sampling_strategy", "group_by_length", "--eval_strategy", "steps",
           "--per_device_eval_batch_size", 2)  # fmt: skip
ADAPTER = ("--use_peft", "true", "--lora_r", 4, "--lora_dropout", "0.3", "--lora_target_modules", "all-linear")


def rows(run) -> list[dict]:
    return [json.loads(line) for line in run.validation.read_text().splitlines()]


def test_a_run_that_stopped_and_was_looked_at_ends_like_one_that_never_stopped(sft, tmp_path):
    done, whole = sft(*GROUPED, *ADAPTER, "--eval_steps", 2, steps=5, output_dir=tmp_path / "whole")
    assert done.status == 0, done.err
    flags = (*GROUPED, *ADAPTER, "--eval_steps", 2, "--resume", "auto")
    for _ in range(2):  # asked again, it stands where it stood
        done, stopped = sft(*flags, "--stop_at_step", 3, steps=5, output_dir=tmp_path / "stopped")
        assert done.status == 0 and "step 3 of 5" in done.out and not stopped.complete, done.err
        assert {row["step"] for row in rows(stopped)} == {3}
    done, stopped = sft(*flags, steps=5, output_dir=tmp_path / "stopped")
    assert done.status == 0 and stopped.complete, done.err
    first, second = (load_file(run.model / "adapter_model.safetensors") for run in (whole, stopped))
    # Dropout is drawn by the same numbers although one of them was evaluated at a step more.
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
    assert rows(whole) == rows(stopped)
    losses = {line["step"]: line["validation_loss"] for line in stopped.metrics_so_far() if "validation_loss" in line}
    assert losses.keys() == {0, 2, 3, 4, 5}


def test_each_row_of_the_split_keeps_its_part_of_the_loss(sft, tmp_path, rows_of_validation, gpt2_dir):
    _, grouped = sft(*GROUPED, output_dir=tmp_path / "grouped", steps=1)
    _, plain = sft("--per_device_eval_batch_size", 3, output_dir=tmp_path / "plain", steps=1)
    for run in (grouped, plain):
        found = rows(run)
        assert [row["row"] for row in found] == [*range(len(rows_of_validation))]
        loss = sum(row["nll"] for row in found) / sum(row["tokens"] for row in found)
        assert loss == pytest.approx(run.summary()["final_validation_loss"], rel=1e-6)
        assert all(math.isfinite(row["nll"]) for row in found)
    tokenizer = load_tokenizer(str(gpt2_dir))
    supervised = [sum(label != -100 for label in encode(tokenizer, row, 256)["labels"]) for row in rows_of_validation]
    assert [row["tokens"] for row in rows(grouped)] == [row["tokens"] for row in rows(plain)] == supervised


def test_a_step_that_cannot_be_stopped_at_is_refused(sft):
    done, run = sft("--stop_at_step", 0)
    assert done.status == 2 and "stop_at_step is 0; it must be at least 1" in done.err and not run.path.exists()
