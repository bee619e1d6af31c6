"""What of an adapter a checkpoint must hold so that training goes on bit for bit: its trainable tensors as they are.

peft saves what inference needs. That is less where a network makes the virtual tokens (P-tuning), or where ranks that
are masked today may come back (AdaLoRA), and prompt methods cannot be loaded to be trained on at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finllm.errors import UserError

FILE = "trainable.safetensors"  # in a checkpoint
WEIGHT, RANKS = "weight:", "ranks:"
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # AdaLoRA's, of each tensor (Zhang et al. 2023, eq. 9 and 10)


def save(model: Any, folder: Path) -> None:
    """Write the trainable tensors of an adapted model, and AdaLoRA's scores and ranks, into a checkpoint's folder."""
    held = {f"{WEIGHT}{name}": parameter for name, parameter in _trainable(model).items()}
    if allocator := getattr(model.base_model, "rankallocator", None):
        held |= {f"{score}:{name}": t for score in SCORES for name, t in getattr(allocator, score).items()}
        pattern = model.active_peft_config.rank_pattern or {}
        held |= {f"{RANKS}{name}": torch.tensor(kept, dtype=torch.bool) for name, kept in pattern.items()}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in held.items()}, folder / FILE)


@torch.no_grad()
def load(model: Any, folder: Path) -> None:
    """Put back what `save` wrote; a `UserError` where it is of another adapter."""
    held, trainable = load_file(folder / FILE), _trainable(model)
    weights = {name.removeprefix(WEIGHT): t for name, t in held.items() if name.startswith(WEIGHT)}
    wrong = [name for name in {*weights, *trainable} if _shape(weights.get(name)) != _shape(trainable.get(name))]
    if wrong:
        raise UserError(
            f"{folder / FILE} is not of this run's adapter: {sorted(wrong)[0]} and {len(wrong) - 1:,} more differ "
            "in shape; go on with the settings that it was trained with"
        )
    for name, parameter in trainable.items():
        parameter.copy_(weights[name])
    if allocator := getattr(model.base_model, "rankallocator", None):
        device = next(model.parameters()).device
        for score in SCORES:
            begins = f"{score}:"
            found = {name.removeprefix(begins): t.to(device) for name, t in held.items() if name.startswith(begins)}
            setattr(allocator, score, found)
        pattern = {name.removeprefix(RANKS): t.tolist() for name, t in held.items() if name.startswith(RANKS)}
        model.active_peft_config.rank_pattern = pattern or None


def _trainable(model: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
