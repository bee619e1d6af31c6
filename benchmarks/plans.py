"""What `finllm plan` foretells of a training, and what the training then takes: one run after the other.

    python benchmarks/plans.py --models smollm2-135m DIR_OF_GPT2 [--methods full lora …] [--steps 12]

Each method is planned and trained by their own commands with the same flags. A method that is not planned, or does not
run, is a row with what the command said. What is measured is written after each, so that a run that is stopped has it.
"""

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from records import keep
from rich.progress import track

from finllm.data.prepare import resolve
from finllm.errors import run_command
from finllm.files import cache_dir, read_json

ROOT = Path(__file__).resolve().parents[1]
LORA = ["--use_peft", "true", "--lora_r", "16", "--lora_alpha", "32", "--lora_target_modules", "all-linear"]
METHODS = {  # flags of recipes/sft.py; any other name is one of peft's methods, with its defaults
    "full": [],
    "lora": LORA,
    "dora": [*LORA, "--use_dora", "true"],
    "qlora nf4": [*LORA, "--load_in_4bit", "true", "--bnb_4bit_quant_type", "nf4"],
    "lora on 8 bits": [*LORA, "--load_in_8bit", "true"],
}
PEFT = ("adalora", "beft", "c3a", "delora", "fourierft", "gralora", "hira", "ia3", "ln_tuning", "loha", "lokr", "miss",
        "oft", "psoft", "randlora", "road", "shira", "vblora", "vera")  # fmt: skip
NAMES = {"smollm2-135m": "SmolLM2-135M"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold what finllm plan foretells against the training.")
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *PEFT], metavar="METHOD")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--dataset_name", default="sample")
    parser.add_argument("--output", help="write the record here (default: a file in benchmarks/results/)")
    arguments = parser.parse_args()
    data = str(resolve(arguments.dataset_name, cache_dir() / "datasets").path)
    measured: list[dict[str, Any]] = []
    runs = [(model, method) for model in arguments.models for method in arguments.methods]
    for model, method in track(runs, "planning and training"):
        named = f"{NAMES.get(model, 'GPT-2 124M')}, {method}"
        measured.append({"run": named, **_held(model, method, data, arguments.steps)})
        keep("plan", measured, arguments.output, steps=arguments.steps)


def _held(model: str, method: str, data: str, steps: int) -> dict[str, Any]:
    """Seconds and GiB as planned and as run, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            "--model_name_or_path", model, "--dataset_name", data, "--output_dir", folder, "--max_steps", str(steps),
            "--per_device_train_batch_size", "8", "--max_length", "256", "--train_sampling_strategy",
            "group_by_length", "--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no",
            *METHODS.get(method, ["--peft_type", method]),
        ]  # fmt: skip
        for command in (["-m", "finllm.cli", "plan"], ["recipes/sft.py"]):
            path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            around = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(
                [sys.executable, *command, *flags], cwd=ROOT, env=around, capture_output=True, text=True
            )
            if done.returncode:
                said = (" ".join(done.stderr.split()) or " ".join(done.stdout.split())).removeprefix("error: ")
                return {"cannot": f"{'plan' if 'plan' in command else 'training'}: {said[-300:]}"}
        planned, ran = read_json(Path(folder) / "plan.json"), read_json(Path(folder) / "summary.json")
    return {
        "planned_seconds": planned["train_seconds"],
        "seconds": ran["train_seconds"],
        "planned_gib": planned["peak_memory_bytes"] / 2**30,
        "gib": ran["peak_memory_bytes"] / 2**30,
    }


if __name__ == "__main__":
    run_command(main)
