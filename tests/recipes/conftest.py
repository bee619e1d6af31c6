"""recipes/sft.py on a small random GPT-2, in a few short steps."""

import pytest

from finllm.run_dir import RunDir

TINY = ("--max_length", 256, "--per_device_train_batch_size", 4, "--logging_steps", 1, "--eval_strategy", "no",
        "--save_strategy", "no", "--learning_rate", "1e-3", "--disable_tqdm", "true")  # fmt: skip


@pytest.fixture
def sft(command, gpt2_dir, dataset_dir, tmp_path):
    """Run the recipe on GPT-2; returns what it printed and its run dir."""

    def call(*arguments, output_dir=tmp_path / "run", steps=3, model=gpt2_dir):
        done = command(
            "recipes/sft.py", "--model_name_or_path", model, "--dataset_name", dataset_dir, "--output_dir", output_dir,
            "--max_steps", steps, *TINY, *arguments,
        )  # fmt: skip
        return done, RunDir(output_dir)

    return call


@pytest.fixture
def rows_of_validation(dataset_dir) -> list[dict[str, str]]:
    """The rows that a run's validation loss is of."""
    from finllm.data.dataset_dir import DatasetDir

    return DatasetDir(dataset_dir).rows("validation")
