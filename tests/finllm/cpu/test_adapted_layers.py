"""Adapted layers of ours beside peft's: who trains, what goes peft's way, and DoRA's norms beside slow ones."""

import copy

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn
from transformers.pytorch_utils import Conv1D

from finllm.cpu import kernels


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def adapted_layer(base=None, dropout=0.0, **settings):
    torch.manual_seed(2)
    transposed = isinstance(base, Conv1D)
    config = LoraConfig(lora_dropout=dropout, fan_in_fan_out=transposed, **settings)
    layer = lora.Linear(base or nn.Linear(6, 5), "default", config, r=2, lora_alpha=3, fan_in_fan_out=transposed)
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter, std=0.5)
        parameter.requires_grad_("lora_" in name)
    return layer.double()


def pair(layer):
    """peft's layer, whose dropout draws as ours does, and ours."""
    ours = copy.deepcopy(layer)
    for each in (layer, ours):
        kernels.use_in(each)
        assert type(each) is kernels.AdaptedLinear
    layer.__class__ = lora.Linear
    return layer, ours


def compared(layers, shape=(4, 6), needs=True, **given):
    """Results and gradients of peft's layer and of ours are the same; of ours whatever trains has one."""
    found = []
    for layer in layers:
        torch.manual_seed(5)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=needs)
        result = layer(x, **given)
        (result * torch.linspace(-1, 2, 5, dtype=torch.float64)).sum().backward()
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        found.append([result.detach(), *([x.grad] if needs else []), *(each.grad for each in trained)])
    for theirs, own in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs)
    return found[0]


SETTINGS = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("needs", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("base", "shape"), [
    (lambda: nn.Linear(6, 5), (4, 6)), (lambda: nn.Linear(6, 5, bias=False), (2, 3, 6)),
    (lambda: Conv1D(5, 6), (2, 1, 3, 6)), (lambda: nn.Linear(6, 5), (2, 0, 6)),
], ids=["linear", "without bias", "Conv1D", "no rows"])  # fmt: skip
def test_an_adapted_layer_of_any_shape_with_an_input_that_trains_and_without(settings, needs, dropout, base, shape):
    layers = pair(adapted_layer(base(), dropout, **settings))
    found = compared(layers, shape, needs)
    assert found[0].shape == (*shape[:-1], 5) and len(found) == needs + 3 + ("use_dora" in settings)
    for each in layers:
        each.eval()
        each.zero_grad()
    compared(layers, shape, needs)


def other(variant):
    class Other(DoraLinearVariant):
        forward = staticmethod(variant)

    return Other


@pytest.mark.parametrize("change", [
    lambda layer: setattr(layer, "_disable_adapters", True), lambda layer: layer.merge(),
    lambda layer: layer.base_layer.bias.requires_grad_(), lambda layer: layer.base_layer.weight.requires_grad_(),
    lambda layer: layer.lora_variant.update(default=other(lambda module, **given: given["result"] - 1)()),
], ids=["disabled", "merged", "bias trains", "weight trains", "variant"])  # fmt: skip
def test_what_is_more_than_lora_goes_pefts_way(change):
    layers = pair(adapted_layer())
    for layer in layers:
        change(layer)
        if layer.merged:  # as merged, nothing trains through it
            layer.base_layer.bias.requires_grad_()
        elif layer.disable_adapters or layer.lora_variant:
            layer.base_layer.bias.requires_grad_(layer.disable_adapters)
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    theirs, own = (layer(x) for layer in layers)
    torch.testing.assert_close(own, theirs)
    for result in (theirs, own):
        result.square().sum().backward()
        assert x.grad is not None
    for one, two in zip(*(layer.parameters() for layer in layers), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.allclose(one.grad, two.grad)


def test_a_base_of_its_own_kind_a_bias_of_the_adapter_and_adapters_by_row_go_pefts_way():
    compared(pair(adapted_layer(Twice(6, 5))))
    compared(pair(adapted_layer(lora_bias=True)))
    layers = pair(adapted_layer())
    for layer in layers:
        layer.eval()
    mixed, plain = (
        compared(layers, adapter_names=names)[0] for names in (["default", "__base__"] * 2, ["default"] * 4)
    )
    assert torch.allclose(mixed[::2], plain[::2]) and not torch.allclose(mixed[1::2], plain[1::2])


def norms(layer):
    base = layer.base_layer
    weight = base.weight if isinstance(base, Conv1D) else base.weight.T
    return layer._norms(weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight, 1.5)


@pytest.mark.parametrize("base", [lambda: nn.Linear(6, 5), lambda: Conv1D(5, 6)])
def test_norms_of_weights_and_what_is_added_to_them(base):
    _, ours = pair(adapted_layer(base(), use_dora=True))
    weight = ours.base_layer.weight.T if isinstance(ours.base_layer, Conv1D) else ours.base_layer.weight
    added = 1.5 * ours.lora_B["default"].weight @ ours.lora_A["default"].weight
    for factor in (1.0, 1e-3, 30.0):
        with torch.no_grad():
            ours.base_layer.weight *= factor
        expected = (weight + added).norm(dim=1)
        assert norms(ours).tolist() == pytest.approx(expected.tolist(), rel=1e-9) and not norms(ours).requires_grad


def test_norms_of_what_is_taken_away_again_are_no_roots_of_negative_numbers():
    """By rounding the squares of nothing are a little more than nothing or less."""
    layer = pair(adapted_layer(use_dora=True).float())[1]
    for _ in range(20):
        with torch.no_grad():
            first, second = (layer.lora_A["default"].weight.normal_(), layer.lora_B["default"].weight.normal_())
            layer.base_layer.weight.copy_(-1.5 * second @ first)
        found = norms(layer)
        assert found.isfinite().all() and ((found >= 0) & (found < 0.01)).all()


def test_norms_of_coarse_weights_are_sums_in_float32():
    """257 squares of 1 are 256 in bfloat16, whose next number is 258."""
    layer = pair(adapted_layer(nn.Linear(257, 2), use_dora=True).float())[1]
    layer.base_layer.weight.data = torch.ones(2, 257, dtype=torch.bfloat16)
    layer.lora_A["default"].weight.data.zero_()
    assert norms(layer).tolist() == pytest.approx([257**0.5] * 2, rel=1e-6) and norms(layer).dtype == torch.float32
    layer.lora_A["default"].weight.data[0, 0] = layer.lora_B["default"].weight.data[0, 0] = 1.0
    layer.lora_B["default"].weight.data[0, 1] = 0.0
    assert norms(layer)[0].item() == pytest.approx((256 + 2.5**2) ** 0.5, rel=1e-6)
    layer.double()
    assert norms(layer).dtype == torch.float64
