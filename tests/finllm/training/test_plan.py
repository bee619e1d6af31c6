"""`finllm plan` by its command line, held against the run that it predicts."""

import pytest

from finllm.files import read_json
from finllm.run_dir import RunDir


@pytest.mark.parametrize("adapter", [(), ("--use_peft", "true", "--lora_target_modules", "all-linear")])
def test_what_can_be_counted_is_planned_exactly_and_the_summary_compares_the_rest(
    command, gpt2_dir, dataset_dir, tmp_path, adapter
):
    flags = (
        "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", tmp_path / "run",
        "--num_train_epochs", 2, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2,
        "--max_length", 256, "--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true", *adapter,
    )  # fmt: skip
    planned = command("finllm/cli.py", "plan", *flags)
    assert planned.status == 0, planned.err
    plan = read_json(tmp_path / "run" / "plan.json")
    done = command("recipes/sft.py", *flags)
    assert done.status == 0, done.err
    assert done.out.count("of the plan") == 3  # time, rate, memory
    summary = RunDir(tmp_path / "run").summary()
    for name in ("total_parameters", "trainable_parameters", "steps"):
        assert plan[name] == summary[name], name
    assert 2 * plan["supervised_tokens"] == summary["supervised_tokens"]
    assert plan["train_seconds"] > 0 and plan["flops_per_step"] > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--use_peft", "true", "--load_in_4bit", "true"), "plan the same run without load_in_4bit"),
        (("--trainable", "h.1"), "trainable names weights of a model with all its layers"),
        (("--peft_type", "prefix_tuning"), "virtual tokens"),
        (("--peft_type", "lora", "--peft", '{"layers_to_transform": [1]}'), "peft.layers_to_transform"),
        (("--peft_type", "lora", "--peft", '{"init_lora_weights": "eva"}'), "init_lora_weights: eva"),
    ],
)
def test_a_plan_names_what_it_cannot_know(flags, said, command, gpt2_dir, dataset_dir):
    done = command(
        "finllm/cli.py", "plan", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", "x",
        *flags,
    )  # fmt: skip
    assert done.status == 2 and said in done.err, done.err


def test_a_plan_reads_the_recipes_flags(command):
    done = command("finllm/cli.py", "plan", "--lora_rnk", 8)
    assert done.status == 2 and "unknown flag --lora_rnk (did you mean" in done.err


def test_activation_checkpointing_is_proposed_where_the_run_does_not_fit_and_needs_less(
    command, llama_dir, dataset_dir, tmp_path, monkeypatch
):
    flags = (
        "--model_name_or_path", llama_dir, "--dataset_name", dataset_dir, "--output_dir", tmp_path / "run",
        "--max_length", 256,
    )  # fmt: skip
    done = command("finllm/cli.py", "plan", *flags)
    assert "This will not fit" not in done.out
    monkeypatch.setattr("finllm.cpu.machine.memory_bytes", lambda: 100 << 20)
    done = command("finllm/cli.py", "plan", *flags)
    assert "This will not fit: add --activation_checkpointing true and plan again" in done.out
    done = command("finllm/cli.py", "plan", *flags, "--activation_checkpointing", "true")
    assert "This will not fit: halve per_device_train_batch_size" in done.out
    plan = read_json(tmp_path / "run" / "plan.json")
    assert plan["activation_checkpointing"] and plan["memory_bytes"] == 100 << 20
