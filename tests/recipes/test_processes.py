"""Two processes on the CPU train as one does: the same losses and weights for the same examples a step."""

import json

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import set_seed
from trl import ModelConfig

from finllm.models.adapters import add_adapter
from finllm.models.base import load_base_model
from finllm.run_dir import RunDir


def losses(run: RunDir, key: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line[key] for line in lines if key in line]


ADAPTERS = {"full": (), "lora": ("--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_dropout", "0")}
VALIDATION_ROWS = {"full": 5, "lora": 1}  # an odd number; then one row, so that the second process has none
# Each tensor's change may differ by float32's rounding of sums over some hundred tokens, and by that of its storing.
GRADIENTS_APART, STORED_APART = 1e-5, 2 * torch.finfo(torch.float32).eps


def flags(gpt2_dir, dataset_dir, folder, method, name, rows, accumulated):
    """Plain gradient descent, in which a rounding stays as small as it is and a wrong factor is seen.

    Adam divides a gradient by its own size. Where it is zero but for rounding, as that of LoRA's A is at first and that
    of a bias on every key always, the step is made of noise; and of a loss twice too large it shows nothing.
    """
    return (
        "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", folder / f"{method}-{name}",
        "--per_device_train_batch_size", rows, "--gradient_accumulation_steps", accumulated, "--max_steps", 2,
        "--max_length", 256, "--logging_steps", 1, "--eval_strategy", "no", "--save_strategy", "no",
        "--optim", "sgd", "--learning_rate", 1, "--lr_scheduler_type", "constant", "--base_dropout", 0,
        "--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true",
        "--max_eval_samples", VALIDATION_ROWS[method], "--per_device_eval_batch_size", 2, *ADAPTERS[method],
    )  # fmt: skip


def weights_before(method: str, gpt2_dir) -> dict[str, torch.Tensor]:
    if method == "full":
        return load_file(gpt2_dir / "model.safetensors")
    set_seed(42)  # the recipe's own
    arguments = ModelConfig(use_peft=True, lora_target_modules=["all-linear"])
    return get_peft_model_state_dict(add_adapter(load_base_model(str(gpt2_dir), arguments), arguments))


@pytest.mark.parametrize("method", ADAPTERS)
def test_two_processes_and_accumulation_give_the_losses_and_weights_of_one(
    command, forked, gpt2_dir, dataset_dir, tmp_path, method
):
    for name, rows, accumulated in (("one", 8, 1), ("accumulated", 4, 2)):
        done = command("recipes/sft.py", *flags(gpt2_dir, dataset_dir, tmp_path, method, name, rows, accumulated))
        assert done.status == 0, done.err
    done = forked("recipes/sft.py", *flags(gpt2_dir, dataset_dir, tmp_path, method, "two", 4, 1), count=2)
    assert done.status == 0, done.err

    one = RunDir(tmp_path / f"{method}-one")
    file = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    before, expected = weights_before(method, gpt2_dir), load_file(one.model / file)
    assert len(losses(one)) == 2
    for run in (RunDir(tmp_path / f"{method}-accumulated"), RunDir(tmp_path / f"{method}-two")):
        assert losses(run) == pytest.approx(losses(one), rel=1e-5), run.path
        assert losses(run, "validation_loss") == pytest.approx(losses(one, "validation_loss"), rel=1e-5), run.path
        assert len(losses(run, "validation_loss")) == 2
        found = load_file(run.model / file)
        assert found.keys() == expected.keys() == before.keys()
        apart = {}
        for key, tensor in expected.items():
            limit = GRADIENTS_APART * (tensor - before[key]).norm() + STORED_APART * tensor.norm()
            apart[key] = float(torch.dist(found[key], tensor) / limit)
        assert {key: value for key, value in apart.items() if value > 1} == {}, run.path
