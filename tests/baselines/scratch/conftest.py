"""A dataset dir written by hand and a configuration small enough to train in seconds."""

import hashlib
import json
import math
import random
from pathlib import Path

import pytest
import torch

from baselines.scratch.config import TrainConfig
from finllm.data.dataset_dir import dataset_hash

THINGS = ("bond", "share", "loan", "budget", "fund", "deposit", "pension", "mortgage")
MEANINGS = ("a debt that pays interest", "a part of a company", "money to be repaid", "a plan for spending")


def write_dataset_dir(folder: Path, **splits: list[tuple[str, str, str]]) -> Path:
    """A dataset dir of (instruction, input, output) rows."""
    folder.mkdir(parents=True)
    described = {}
    for name, rows in splits.items():
        lines = []
        for instruction, input, output in rows:
            id = hashlib.sha256(f"{instruction}\0{input}\0{output}".encode()).hexdigest()[:16]
            row = {"id": id, "question_id": id, "instruction": instruction, "input": input, "output": output}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        content = "".join(lines).encode()
        (folder / f"{name}.jsonl").write_bytes(content)
        described[name] = {"rows": len(rows), "questions": len(rows), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "rejected.jsonl").write_text("")
    manifest = {
        "schema_version": 1,
        "source": {"name": "by hand", "sha256": "0" * 64, "rows": sum(map(len, splits.values()))},
        "template": {"id": "alpaca", "hash": "0" * 64},
        "columns": {"instruction": "instruction", "input": "input", "output": "output"},
        "cleaning": [],
        "split": {"seed": 0, "validation_fraction": 0.2, "test_fraction": 0.2},
        "splits": described,
        "rejected": 0,
        "sha256": dataset_hash({name: split["sha256"] for name, split in described.items()}),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def rows_of(seed: int, count: int) -> list[tuple[str, str, str]]:
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        thing, meaning = draw.choice(THINGS), draw.choice(MEANINGS)
        passage = f"Case {seed}.{number}" if number % 3 == 0 else ""
        rows.append((f"What is a {thing}, in case {seed}.{number}?", passage, f"A {thing} is {meaning}."))
    return rows


@pytest.fixture(autouse=True)
def no_picture(monkeypatch) -> None:
    """Those who train in this process draw none; test_scratch_commands.py looks at one."""
    monkeypatch.setattr("baselines.scratch.train.plot_loss", lambda run: None)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "dataset"
    return write_dataset_dir(folder, train=rows_of(1, 60), validation=rows_of(2, 10), test=rows_of(3, 10))


@pytest.fixture
def config(dataset, tmp_path) -> TrainConfig:
    return TrainConfig(
        dataset_name=str(dataset),
        output_dir=str(tmp_path / "run"),
        vocabulary_size=360,
        max_length=64,
        layers=2,
        width=16,
        heads=2,
        feed_forward=32,
        batch_tokens=512,
        max_steps=12,
        learning_rate=0.01,
        logging_steps=2,
        eval_steps=4,
        save_steps=4,
    )


def shuffled_weights(model: torch.nn.Module, factor: float = 1.0) -> torch.nn.Module:
    """Norms and biases at random too, so that a test sees each of them."""
    for name, parameter in model.named_parameters():
        parameter.data = factor * torch.randn_like(parameter) / math.sqrt(parameter.shape[-1])
        if "cross_attention" in name and "norm" not in name:  # so that the prompt counts
            parameter.data *= 5
    return model
