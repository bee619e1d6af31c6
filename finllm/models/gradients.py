"""How far the gradients of two ways to one loss are apart, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finllm.models.proofs import nll_beside


def gradient_difference(
    model: torch.nn.Module, own: Mapping[str, Tensor], ours: Tensor, least: float
) -> tuple[float, str]:
    """How far the gradients of `ours`, a sum of nats, are from the `own` ones, as a share of these; of which tensor.

    Every trainable tensor is looked at. The own ones are `gradients_of`, formed before ours is computed, so that only
    one way's tensors are kept for backward at a time. A tensor whose gradient is rounding (a key's bias under softmax
    has none) is measured by the share `least` of the norm of all of them together.
    """
    apart = {name: _norm(each.sub_(own[name])) for name, each in gradients_of(model, ours).items()}
    norms = {name: _norm(each) for name, each in own.items()}
    floor = max(least * math.sqrt(sum(norm**2 for norm in norms.values())), 1e-30)
    apart = {name: norm / max(norms[name], floor) for name, norm in apart.items()}
    name = max(apart, key=lambda name: math.inf if math.isnan(apart[name]) else apart[name])
    return (math.inf if math.isnan(apart[name]) else apart[name]), name


def farther_than_its_own(
    exact: Mapping[str, Tensor], own: Mapping[str, Tensor], ours: Mapping[str, Tensor], least: float, limit: float
) -> tuple[float, float, str]:
    """Where coarse numbers nearly cancel, the model's own gradients are as far from float32's as ours may be.

    All are `gradients_of`, `exact` of the own loss in float32. Returns, of the tensor that is farthest beyond what it
    may be, how far ours is, how far it may be, that is `limit` or twice as far as the model's own, and its name; both
    as shares as in `gradient_difference`.
    """
    apart = {}
    floor = max(least * math.sqrt(sum(_norm(each) ** 2 for each in exact.values())), 1e-30)
    for way, found in (("own", own), ("ours", ours)):
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


def nats_and_gradients(
    model: PreTrainedModel, rows: Sequence[dict[str, list[int]]]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The nats of each row's supervised tokens as the model itself says them, and the gradients of their sum, if any.

    What autograd kept for them is let go, so that another way to the same loss can be tried in as much memory.
    """
    nats = nll_beside(model, rows)
    nats_N = torch.cat(nats)
    gradients = gradients_of(model, nats_N) if nats_N.requires_grad else {}
    return [each.detach() for each in nats], gradients


def _norm(gradient: Tensor) -> float:
    return float(gradient.norm())
