"""How far the gradients of two ways to one loss are apart, tensor by tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gradient_difference(model: torch.nn.Module, own: Tensor, ours: Tensor, least: float) -> tuple[float, str]:
    """How far the gradients of two sums of nats are apart, as a share of the own one's; of which tensor.

    Every trainable tensor is looked at. The difference is formed in place, so one gradient is held and no copy. A
    tensor whose gradient is rounding (a key's bias under softmax has none) is measured by the share `least` of the norm
    of all of them together.
    """
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    held = [parameter.grad for _, parameter in parameters]
    assert all(gradient is None for gradient in held), "before the first step"
    try:
        with torch.autocast(own.device.type, enabled=False):  # as in training, where hooks on gradients run outside it
            own.sum().backward(retain_graph=True)
            norms = {name: _norm(parameter.grad) for name, parameter in parameters}
            ours.sum().neg().backward()
        apart = {name: _norm(parameter.grad) for name, parameter in parameters}
    finally:
        for _, parameter in parameters:
            parameter.grad = None
    floor = max(least * math.sqrt(sum(norm**2 for norm in norms.values())), 1e-30)
    apart = {name: norm / max(norms[name], floor) for name, norm in apart.items()}
    name = max(apart, key=lambda name: math.inf if math.isnan(apart[name]) else apart[name])
    return (math.inf if math.isnan(apart[name]) else apart[name]), name


def farther_than_its_own(exact: dict[str, Tensor], own: Tensor, ours: Tensor, model: torch.nn.Module, least: float,
                         limit: float) -> tuple[float, float, str]:  # fmt: skip
    """Where coarse numbers nearly cancel, the model's own gradients are as far from float32's as ours may be.

    `exact` are `gradients_of` the own loss in float32. Returns, of the tensor that is farthest beyond what it may be,
    how far ours is, how far it may be, that is `limit` or twice as far as the model's own, and its name; both as shares
    as in `gradient_difference`.
    """
    apart = {}
    floor = max(least * math.sqrt(sum(_norm(each) ** 2 for each in exact.values())), 1e-30)
    for way, loss in (("own", own), ("ours", ours)):
        found = gradients_of(model, loss)
        apart[way] = {name: _norm(found[name] - each) / max(_norm(each), floor) for name, each in exact.items()}
    may = {name: max(limit, 2 * apart["own"][name]) for name in exact}
    name = max(exact, key=lambda name: math.inf if math.isnan(apart["ours"][name]) else apart["ours"][name] / may[name])
    return apart["ours"][name], may[name], name


def gradients_of(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of a sum of nats for every tensor that trains, in float32; zeros where it has none."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is None for parameter in parameters.values()), "before the first step"
    try:
        with torch.autocast(loss.device.type, enabled=False):
            loss.sum().backward()
        return {name: torch.zeros(each.shape, device=each.device) if each.grad is None else each.grad.float()
                for name, each in parameters.items()}  # fmt: skip
    finally:
        for parameter in parameters.values():
            parameter.grad = None


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.float().norm())
