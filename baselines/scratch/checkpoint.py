"""What a stopped run needs to go on exactly: safetensors and JSON, no pickle.

finllm/training/checkpoints.py hashes and renames them.

    checkpoints/checkpoint-500/
      model.safetensors       the weights now
      best.safetensors        the weights of the lowest validation loss so far
      optimizer.safetensors   Adam's two moments and step count of each parameter
      state.json              `Progress`

The order of the data and the dropout of a step follow from the seed and the step's number (data.py, loop.py), and so
does the learning rate: there is no state of them to keep.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from baselines.scratch.model import load_weights, read_weights
from finllm.files import naming, read_json, write_json
from finllm.training import checkpoints

Weights = dict[str, torch.Tensor]


@dataclass
class Progress:
    """How far a run is; sums are over all processes, losses in nats."""

    step: int = 0
    epoch: float = 0.0
    supervised_tokens: int = 0
    tokens: int = 0  # without padding
    train_seconds: float = 0.0
    peak_memory_bytes: int = 0
    first_validation_loss: float | None = None
    final_validation_loss: float | None = None
    best_validation_loss: float | None = None
    evaluations_since_best: int = 0


def save_checkpoint(
    folder: Path, progress: Progress, model: torch.nn.Module, best: Weights, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint of this step under `folder`, whole or not at all, and keep the one before it."""
    work = folder / checkpoints.WRITING
    work.mkdir(parents=True, exist_ok=True)
    moments = {
        f"{parameter}.{name}": tensor
        for parameter, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }
    place = folder / f"{checkpoints.PREFIX}{progress.step}"
    try:
        with naming(place):
            for name, tensors in (("model", model.state_dict()), ("best", best), ("optimizer", moments)):
                safetensors.torch.save_file(tensors, work / f"{name}.safetensors")
            write_json(work / "state.json", dataclasses.asdict(progress))
            checkpoints.seal(work, place)
    except OSError:  # the disk is full: what was written of it is in the way
        shutil.rmtree(work, ignore_errors=True)
        raise
    checkpoints.rotate(folder, limit=2, best=None)


def load_checkpoint(place: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, Weights]:
    """Put weights and moments back where they were; returns the progress and the best weights."""
    load_weights(model, place / "model.safetensors")
    state: dict[int, Weights] = {}
    for key, tensor in safetensors.torch.load_file(place / "optimizer.safetensors").items():
        parameter, name = key.split(".")
        state.setdefault(int(parameter), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    content = read_json(place / "state.json")
    del content["schema_version"]
    return Progress(**content), read_weights(place / "best.safetensors")


def patience_used(place: Path) -> int:
    """How many evaluations in a row had no better loss when a checkpoint was written."""
    return read_json(place / "state.json")["evaluations_since_best"]


def copy_of(model: torch.nn.Module) -> Weights:
    """The weights as they are now, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
