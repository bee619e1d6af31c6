"""Two processes on the CPU train as one does: the same losses and weights for the same examples a step."""

import json

import pytest
import torch
from safetensors.torch import load_file

from finllm.run_dir import RunDir


def losses(run: RunDir, key: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def without_key_bias(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A bias on every key moves all scores of a query alike, which softmax does not see: its true gradient is zero.

    What is computed is rounding noise, which Adam scales up to whole steps, and no two sums round alike.
    """
    width = weights["transformer.wte.weight"].shape[1] if "transformer.wte.weight" in weights else 0
    return {
        name: torch.cat([weight[:width], weight[2 * width :]]) if name.endswith("c_attn.bias") else weight
        for name, weight in weights.items()
    }


@pytest.mark.parametrize(
    ("adapter", "validation_rows"),  # an odd number; then one row, so that the second process has none
    [((), 5), (("--use_peft", "true", "--lora_target_modules", "all-linear"), 1)],
)
def test_two_processes_and_accumulation_give_the_losses_and_weights_of_one(
    command, shell, gpt2_dir, dataset_dir, tmp_path, monkeypatch, adapter, validation_rows
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def flags(name, rows, accumulated):
        return (
            "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", tmp_path / name,
            "--per_device_train_batch_size", rows, "--gradient_accumulation_steps", accumulated, "--max_steps", 2,
            "--max_length", 256, "--logging_steps", 1, "--eval_strategy", "no", "--save_strategy", "no",
            "--learning_rate", "1e-3", "--base_dropout", 0, "--lora_dropout", 0, "--bf16", "false",
            "--use_cpu", "true", "--disable_tqdm", "true", "--max_eval_samples", validation_rows,
            "--per_device_eval_batch_size", 2, *adapter,
        )  # fmt: skip

    for name, rows, accumulated in (("one", 8, 1), ("accumulated", 4, 2)):
        done = command("recipes/sft.py", *flags(name, rows, accumulated))
        assert done.status == 0, done.err
    done = shell("torchrun", "--standalone", "--nproc-per-node", 2, "recipes/sft.py", *flags("two", 4, 1))
    assert done.status == 0, done.err

    one = RunDir(tmp_path / "one")
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    expected = without_key_bias(load_file(one.model / weights))
    assert len(losses(one)) == 2
    for name in ("accumulated", "two"):
        run = RunDir(tmp_path / name)
        assert losses(run) == pytest.approx(losses(one), rel=1e-5), name
        assert losses(run, "validation_loss") == pytest.approx(losses(one, "validation_loss"), rel=1e-5), name
        assert len(losses(run, "validation_loss")) == 2
        found = without_key_bias(load_file(run.model / weights))
        assert found.keys() == expected.keys()
        apart = {key: float(torch.dist(found[key], expected[key]) / expected[key].norm()) for key in expected}
        assert {key: value for key, value in apart.items() if value > 1e-5} == {}, name


def test_fsdp2_shards_checkpoints_and_consolidates_on_two_ranks(shell, gpt2_dir, tmp_path):
    """accelerate runs no FSDP on a CPU, so torch's `fully_shard` is tried directly."""
    script = "tests/recipes/fully_shard_on_two_ranks.py"
    done = shell("torchrun", "--standalone", "--nproc-per-node", 2, script, gpt2_dir, tmp_path / "out")
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert found["sharded"] and found["parameters_a_rank"] < 0.6 * found["parameters"]
    assert found["loss_apart"] < 1e-6 and found["weights_apart"] < 1e-5
    assert found["reloaded_apart"] == 0.0 and found["consolidated_apart"] == 0.0
