"""recipes/sft.py on a small random GPT-2, in a few short steps."""

import shutil

import pytest

from finllm.run_dir import RunDir

TINY = ("--max_length", 256, "--per_device_train_batch_size", 4, "--logging_steps", 1, "--eval_strategy", "no",
        "--save_strategy", "no", "--learning_rate", "1e-3", "--disable_tqdm", "true")  # fmt: skip

SHORT = ("--max_length", 96, "--max_train_samples", 8, "--max_eval_samples", 2, "--eval_on_start", "false")


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
def train(sft, gpt2_dir, llama_dir, tmp_path):
    """`train("gpt2", "--peft_type", …)`: three short steps of the recipe on one of the two kinds of models."""

    def call(model: str, *flags, name="run", steps=3):
        folder = {"gpt2": gpt2_dir, "llama": llama_dir}[model]
        return sft(*SHORT, *flags, model=folder, output_dir=tmp_path / name, steps=steps)

    return call


@pytest.fixture
def halved():
    """`halved(run, place)`: a copy of a run of four steps there, as it was when it was killed after two of them."""

    def call(run: RunDir, place) -> RunDir:
        copy = RunDir(shutil.copytree(run.path, place))  # a run goes on wherever it lies (test_going_on.py)
        (copy.path / "summary.json").unlink()
        shutil.rmtree(copy.model)
        shutil.rmtree(copy.checkpoints / "checkpoint-4")
        return copy

    return call


@pytest.fixture
def rows_of_validation(dataset_dir) -> list[dict[str, str]]:
    """The rows that a run's validation loss is of."""
    from finllm.data.dataset_dir import DatasetDir

    return DatasetDir(dataset_dir).rows("validation")
