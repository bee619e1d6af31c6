"""How each program is asked for the same training, by its own command, and where its figures are found afterwards.

All are asked for one epoch of the same rows, answers and their ends alone being learned, AdamW at a constant batch,
without validation, checkpoints or reports. Of each the flags are taken that make it fastest on a CPU: no activations
computed twice, rows of like length together where it can, bfloat16 where the processor multiplies it fast.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
RATE = 1e-4
GPT2_LAYERS = ["c_attn", "c_proj", "c_fc"]  # Conv1D, which "all linear layers" does not mean in LLaMA-Factory


@dataclass(frozen=True)
class Asked:
    """One training: a base model's folder, the rows' folder, an empty one to write into, and what is wanted."""

    model: Path
    rows: Path
    output: Path
    lora: bool
    bf16: bool
    batch: int
    max_length: int
    steps: int

    @property
    def gpt2(self) -> bool:
        return json.loads((self.model / "config.json").read_text("utf-8"))["model_type"] == "gpt2"


@dataclass(frozen=True)
class Program:
    """`packages` make its environment, less `without`, and with `empty` modules; None is this one.

    `losses` and `seconds` are those of its training, as it says them.
    """

    title: str
    command: Callable[[Asked, str], list[list[str]]]
    losses: Callable[[Asked, str], list[float]]
    seconds: Callable[[Asked, str], float]
    packages: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()


def flags(settings: dict) -> list[str]:
    """A mapping as `--key value …`, booleans in small letters."""
    found = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        found += [f"--{name}", *(str(each).lower() if isinstance(each, bool) else str(each) for each in values)]
    return found


def common(asked: Asked) -> dict:
    """TrainingArguments that transformers' Trainer and all built on it share."""
    return {
        "output_dir": str(asked.output / "model"), "per_device_train_batch_size": asked.batch, "num_train_epochs": 1,
        "learning_rate": RATE, "use_cpu": True, "bf16": asked.bf16, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "train_sampling_strategy": "group_by_length", "seed": 0,
    }  # fmt: skip


def llama_factory(asked: Asked, binaries: str) -> list[list[str]]:
    content = {
        **common(asked), "stage": "sft", "do_train": True, "model_name_or_path": str(asked.model),
        "dataset": "rows", "dataset_dir": str(asked.rows), "template": "empty", "cutoff_len": asked.max_length,
        "finetuning_type": "lora" if asked.lora else "full", "disable_gradient_checkpointing": True,
        "overwrite_output_dir": True, "preprocessing_num_workers": 1, "plot_loss": False,
    }  # fmt: skip
    if asked.lora:
        target = ",".join(GPT2_LAYERS) if asked.gpt2 else "all"
        content |= {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target": target}
    path = asked.output / "llama_factory.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return [[f"{binaries}/llamafactory-cli", "train", str(path)]]


def litgpt(asked: Asked, binaries: str) -> list[list[str]]:
    """LitGPT reads a checkpoint of its own form, which it knows how to make of models whose config it holds."""
    name = "gpt2" if asked.gpt2 else "SmolLM2-135M"
    settings = {
        "precision": "bf16-mixed" if asked.bf16 else "32-true", "data": "JSON", "data.json_path": str(asked.rows),
        "data.mask_prompt": True, "data.prompt_style": "alpaca", "data.num_workers": 1, "out_dir": str(asked.output),
        "train.global_batch_size": asked.batch, "train.micro_batch_size": asked.batch, "train.epochs": 2,
        "train.max_steps": asked.steps, "train.max_seq_length": asked.max_length, "train.lr_warmup_steps": 1,
        "train.save_interval": 10**6, "eval.interval": 10**6, "eval.final_validation": False,
        "optimizer": json.dumps({"class_path": "torch.optim.AdamW", "init_args": {"lr": RATE}}),
        "logger_name": "csv", "seed": 0,
    }  # fmt: skip
    if asked.lora:
        settings |= {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
        settings |= {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")}
    checkpoint = asked.output / "checkpoint"
    program = f"{binaries}/litgpt"
    return [
        ["cp", "-r", str(asked.model), str(checkpoint)],
        [program, "convert_to_litgpt", str(checkpoint), "--model_name", name, "--dtype", "float32"],
        [program, "finetune_lora" if asked.lora else "finetune_full", str(checkpoint), *flags(settings)],
    ]


def trl(asked: Asked, binaries: str) -> list[list[str]]:
    settings = {
        **common(asked), "model_name_or_path": str(asked.model), "dataset_name": str(asked.rows / "pairs"),
        "max_length": asked.max_length, "dtype": "float32", "activation_checkpointing": False,
        "disable_tqdm": True,
    }  # fmt: skip
    if asked.lora:
        settings |= {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0,
                     "lora_target_modules": "all-linear"}  # fmt: skip
    return [[f"{binaries}/python", "-m", "trl.scripts.sft", *flags(settings)]]


def plain_trainer(asked: Asked, binaries: str) -> list[list[str]]:
    """transformers' Trainer has no command; benchmarks/plain_trainer.py is one as its documentation writes it."""
    settings = {**common(asked), "disable_tqdm": True}
    script = str(ROOT / "benchmarks" / "plain_trainer.py")
    given = [str(asked.model), str(asked.rows / "pairs" / "train.jsonl"), str(asked.max_length), str(int(asked.lora))]
    return [[f"{binaries}/python", script, *given, json.dumps(settings)]]


def ours(asked: Asked, binaries: str) -> list[list[str]]:
    settings = {**common(asked), "output_dir": str(asked.output / "run"), "max_length": asked.max_length,
                "model_name_or_path": str(asked.model), "dataset_name": str(asked.output / "data"),
                "eval_strategy": "no"}  # fmt: skip
    if asked.lora:
        settings |= {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0,
                     "lora_target_modules": "all-linear"}  # fmt: skip
    rows, data = str(asked.rows / "alpaca"), str(asked.output / "data")
    return [
        [sys.executable, "-m", "finllm.cli", "prepare", rows, "--output_dir", data],
        [sys.executable, str(ROOT / "recipes" / "sft.py"), *flags(settings)],
    ]


def printed(output: str) -> Iterator[dict]:
    """What transformers' Trainer logs: dicts on lines of their own, maybe after a bar's remains."""
    for found in re.findall(r"\{'(?:loss|train_runtime)'[^{}\n]*\}", output):
        yield ast.literal_eval(found)


def trainer_losses(asked: Asked, output: str) -> list[float]:
    return [float(line["loss"]) for line in printed(output) if "loss" in line]


def trainer_seconds(asked: Asked, output: str) -> float:
    return next(float(line["train_runtime"]) for line in printed(output) if "train_runtime" in line)


def litgpt_log(asked: Asked) -> list[dict[str, str]]:
    (path,) = asked.output.glob("logs/csv/version_*/metrics.csv")
    with path.open(encoding="utf-8") as file:
        return [line for line in csv.DictReader(file) if line.get("iter_time")]


def our_summary(asked: Asked) -> dict:
    return json.loads((asked.output / "run" / "summary.json").read_text("utf-8"))


def our_losses(asked: Asked, output: str) -> list[float]:
    lines = (asked.output / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


# What LLaMA-Factory has of pictures and sound does not fit its torch, and rows of text need none of it; it imports
# torchaudio all the same, so an empty module of that name stands there. LitGPT's command cannot begin without
# `requests`, which nothing that it names brings any more.
PROGRAMS = {
    "ours": Program("this suite", ours, our_losses, lambda asked, output: our_summary(asked)["train_seconds"]),
    "llama_factory": Program(
        "LLaMA-Factory", llama_factory, trainer_losses, trainer_seconds, ("llamafactory==0.9.5",),
        ("torchaudio", "torchvision", "av"), ("torchaudio",),
    ),
    "litgpt": Program(
        "LitGPT", litgpt, lambda asked, output: [float(line["loss"]) for line in litgpt_log(asked)],
        lambda asked, output: sum(float(line["iter_time"]) for line in litgpt_log(asked)),
        ("litgpt==0.5.13", "requests"),
    ),
    "trl": Program("TRL", trl, trainer_losses, trainer_seconds),
    "trainer": Program("transformers' Trainer", plain_trainer, trainer_losses, trainer_seconds),
}  # fmt: skip
