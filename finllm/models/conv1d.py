"""GPT-2's `Conv1D` as an equal `nn.Linear`, for methods that know no other layer, and back.

Conv1D keeps its weight as (in, out) and computes x · W + b; nn.Linear keeps (out, in) and computes x · Wᵀ + b: the same
numbers, turned. Two fifths of peft's methods refuse Conv1D, and one (OSF) takes it and trains nothing.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers.pytorch_utils import Conv1D

from finllm.cpu.kernels import Linear
from finllm.errors import UserError
from finllm.files import read_json, write_json

RECORD = "base_layers.json"  # beside a saved adapter: what was done to its base model's layers before


def has_conv1d(model: nn.Module) -> bool:
    return any(isinstance(module, Conv1D) for module in model.modules())


def to_linear(model: nn.Module) -> None:
    """Put an `nn.Linear` in the place of every `Conv1D`, with its weight turned and its bias itself."""
    model.turned_conv1d = has_conv1d(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            weight = module.weight.data.T.contiguous()
            linear = nn.Linear(1, 1, device="meta")
            linear.in_features, linear.out_features = module.nx, module.nf
            _put(model, name, linear, weight, module)


def to_conv1d(model: nn.Module, like: nn.Module) -> None:
    """Turn those layers of `model` back that are `Conv1D` in `like`, another model of the same class."""
    for name, module in like.named_modules():
        linear = model.get_submodule(name) if isinstance(module, Conv1D) else None
        if type(linear) in (nn.Linear, Linear):
            conv = Conv1D(1, 1)
            conv.nx, conv.nf = linear.in_features, linear.out_features
            _put(model, name, conv, linear.weight.data.T.contiguous(), linear)


def _put(model: nn.Module, name: str, new: nn.Module, weight, old: nn.Module) -> None:
    new.weight = nn.Parameter(weight, requires_grad=old.weight.requires_grad)
    new.bias = old.bias
    new.train(old.training)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)


def write_record(base: nn.Module, folder: Path) -> None:
    """Say beside an adapter saved in `folder` that its base model's layers were turned, where they were."""
    if getattr(base, "turned_conv1d", False):
        write_json(folder / RECORD, {"conv1d_as_linear": True})


def was_turned(folder: Path) -> bool:
    """Whether the adapter in `folder` was trained on a model whose `Conv1D` had become linear layers."""
    if not (folder / RECORD).exists():
        return False
    turned = read_json(folder / RECORD).get("conv1d_as_linear")
    if turned is not True:
        raise UserError(
            f"{folder / RECORD}: conv1d_as_linear is {str(turned)[:60]!r}, not true; put back what was there"
        )
    return True
