"""Gradients of two ways to one loss: frozen tensors, graphs that are shared, hooks under autocast, and no gradient."""

import pytest
import torch
from torch import nn

from finllm.models import gradients
from finllm.models.gradients import farther_than_its_own, gradient_difference, gradients_of, nats_and_gradients


class Layers(nn.Module):
    """A frozen tensor stands before those that train."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.a, self.b = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))

    def loss(self, of_a=1.0, of_b=1.0):
        return of_a * self.a.sum() + of_b * self.b.sum()


def test_a_frozen_tensor_is_none_of_them_and_what_it_holds_stays():
    """It is not the farthest where all are as near, and its gradient is of whoever put it there."""
    model = Layers()
    model.frozen.grad = torch.full((2,), 5.0)
    share, name = gradient_difference(model, gradients_of(model, model.loss()), model.loss(), 0.1)
    assert (share, name) == (0.0, "a")
    exact = gradients_of(model, model.loss())
    assert {name: gradient.tolist() for name, gradient in exact.items()} == {"a": [1, 1], "b": [1]}
    assert farther_than_its_own(exact, exact, exact, 0.1, 0.25) == (0.0, 0.25, "a")
    assert model.frozen.grad.tolist() == [5, 5] and model.a.grad is None and model.b.grad is None


@pytest.mark.parametrize("trains", [True, False])
def test_nats_and_their_gradients_keep_nothing_for_backward(monkeypatch, trains):
    """Two rows, of one token and of two; the gradient of Σ a² is 2a."""
    model = Layers()
    model.a.requires_grad_(trains)
    monkeypatch.setattr(gradients, "nll_beside", lambda model, rows: [(model.a[:1] ** 2), (model.a**2)])
    nats, found = nats_and_gradients(model, [{}, {}])
    assert [each.tolist() for each in nats] == [[1], [1, 4]] and not any(each.requires_grad for each in nats)
    assert {name: each.tolist() for name, each in found.items()} == ({"a": [4, 4], "b": [0]} if trains else {})
    assert model.a.grad is None


def test_what_is_compared_to_nothing_is_compared_to_next_to_nothing():
    model = Layers()
    share, name = gradient_difference(model, gradients_of(model, model.loss(0.0, 0.0)), model.loss(0.0, 2.0), 0.1)
    assert (share, name) == (pytest.approx(2e30, rel=1e-6), "b")


@pytest.mark.parametrize("way", [
    lambda model: gradient_difference(model, {"a": torch.ones(2), "b": torch.ones(1)}, model.loss(), 0.1),
    lambda model: gradients_of(model, model.loss()),
])  # fmt: skip
def test_hooks_on_gradients_run_outside_autocast_as_in_training(way):
    model, found = Layers(), []
    model.a.register_hook(lambda gradient: found.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        way(model)
        assert torch.is_autocast_enabled("cpu")
    assert found and not any(found)
