"""On a GPU a run is what it is on a CPU: the same commands, the same rows, the same figures, in both.

Each command is a process of its own: the rest of the suite sees no GPU (tests/conftest.py).
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finllm.run_dir import RunDir

pytestmark = pytest.mark.gpu
SETTINGS = ("--max_length", 256, "--per_device_train_batch_size", 4, "--logging_steps", 1, "--learning_rate", "1e-3",
            "--disable_tqdm", "true", "--bf16", "false", "--eval_strategy", "steps", "--eval_steps", 3,
            "--save_strategy", "steps", "--save_steps", 3)  # fmt: skip
METHODS = {
    # Adam makes a whole step of a gradient that is nothing but rounding, and two devices round differently. They draw
    # other numbers too.
    "full": ("--optim", "sgd", "--learning_rate", "0.1", "--base_dropout", 0),
    "lora": ("--use_peft", "true", "--lora_target_modules", "all-linear"),
    "qlora": ("--use_peft", "true", "--lora_target_modules", "all-linear", "--load_in_4bit", "true"),
}


@pytest.fixture
def train(on_gpu, gpt2_dir, dataset_dir, tmp_path):
    def call(name: str, method: str, *arguments, steps: int = 6, succeeds: bool = True):
        run = RunDir(tmp_path / name)
        done = on_gpu(
            "recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir,
            "--output_dir", run.path, "--max_steps", steps, *SETTINGS, *METHODS[method], *arguments,
        )  # fmt: skip
        assert not succeeds or done.status == 0, done.err
        return run if succeeds else done

    return call


def losses(run: RunDir) -> list[float]:
    return [line["loss"] for line in run.metrics_so_far() if "loss" in line]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_a_gpu_is_the_run_on_a_cpu(train, on_gpu, method, tmp_path):
    there, here = train("gpu", method), train("cpu", method, "--use_cpu", "true")
    memory = [run.summary()["peak_memory_bytes"] for run in (there, here)]
    assert memory[0] != memory[1] and min(memory) > 2**20  # the one is of the GPU alone, the other of the process
    assert all(proof["passed"] for proof in there.proofs())
    names = {proof["name"] for proof in there.proofs()}
    assert {"loss, padded · head", "gradients, padded · head", "rows stay apart, padded", "saved model"} <= names
    # Products in 4 bits are not the same program on both.
    bound = 2e-2 if method == "qlora" else 2e-4
    assert losses(there) == pytest.approx(losses(here), abs=bound) and len(losses(there)) == 6
    weights = load_file(next(there.model.glob("*model.safetensors")))
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float32"}
    done = on_gpu("eval/run.py", there.path, here.path, "--max_examples", 8, "--max_generated", 4,
                  "--max_new_tokens", 8)  # fmt: skip
    assert done.status == 0, done.err
    results = [json.loads((run.path / "eval/results.json").read_text()) for run in (there, here)]
    for result in results:
        of_likelihood = ("causality", "reproducibility", "likelihood", "padding", "question")
        assert all(result["audits"][name]["passed"] for name in of_likelihood), result["audits"]
    bits = [result["splits"]["test"]["metrics"]["bits_per_byte"]["value"] for result in results]
    assert bits[0] == pytest.approx(bits[1], abs=bound)
    done = on_gpu("eval/leaderboard.py", there.path, here.path, "--output_dir", tmp_path / "board")
    assert done.status == 0 and (tmp_path / "board/index.html").exists(), done.err


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(train):
    constant = ("--lr_scheduler_type", "constant")  # any other is of all steps, so that 3 of 6 are no 3 of 3
    whole, halves = train("whole", "lora", *constant), train("halves", "lora", *constant, steps=3)
    done = train("halves", "lora", *constant, "--resume", "auto", steps=6)
    assert done.path == halves.path and losses(done) == pytest.approx(losses(whole), abs=2e-4)


def test_in_bfloat16_and_compiled(train, on_gpu):
    plain = train("plain", "full", "--bf16", "true")
    assert {"loss, padded · head", "loss, padded · head, as it trains"} <= {proof["name"] for proof in plain.proofs()}
    compiled = train("compiled", "full", "--bf16", "true", "--torch_compile", "true")
    assert losses(compiled) == pytest.approx(losses(plain), abs=2e-2)
    done = on_gpu("-m finllm.cli generate", compiled.path, "What is a tax?", "--max_new_tokens", 4)
    assert done.status == 0, done.err


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_is_measured_there_and_near_the_run(train, on_gpu, gpt2_dir, dataset_dir, method, tmp_path):
    flags = ("--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", tmp_path / "run",
             *SETTINGS, *METHODS[method], "--max_steps", 6, "--optim", "adamw_torch_fused",
             "--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no")  # fmt: skip
    done = on_gpu("-m finllm.cli plan", *flags)
    assert done.status == 0 and "measured on NVIDIA" in done.out, done.err
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    done = on_gpu("recipes/sft.py", *flags)
    assert done.status == 0 and done.out.count("of the plan") == 3, done.err
    ran = RunDir(tmp_path / "run").summary()
    for name in ("total_parameters", "trainable_parameters", "steps"):
        assert plan[name] == ran[name], name
    assert plan["peak_memory_bytes"] == pytest.approx(ran["peak_memory_bytes"], rel=0.3)
    there = on_gpu("-m finllm.cli plan", *flags, "--use_cpu", "true")
    assert there.status == 0 and "NVIDIA" not in there.out, there.err


def test_rows_end_to_end_are_for_a_cpu(train):
    done = train("joined", "full", "--join_rows", "true", succeeds=False)
    assert done.status == 2 and "join_rows is true" in done.err and "it needs a CPU" in done.err


def test_the_doctor_names_the_device(on_gpu):
    done = on_gpu("-m finllm.cli doctor")
    assert done.status == 0 and "GPU 0" in done.out


def test_a_baseline_from_scratch_trains_there(on_gpu, dataset_dir, tmp_path):
    run = RunDir(tmp_path / "scratch")
    config = Path(__file__).resolve().parents[1] / "recipes/configs/demo_scratch.yaml"
    done = on_gpu("baselines/scratch/train.py", "--config", config, "--dataset_name", dataset_dir,
                  "--output_dir", run.path, "--max_steps", 20, "--logging_steps", 1,
                  "--vocabulary_size", 600)  # fmt: skip
    assert done.status == 0, done.err
    assert losses(run)[-1] < losses(run)[0]
