"""Layers of ours under OFT and VeRA beside peft's: the same results and gradients, and what goes peft's way."""

import copy

import pytest
import torch
from peft import OFTConfig, VeraConfig, get_peft_model
from peft.tuners import oft, vera
from torch import nn
from transformers.pytorch_utils import Conv1D

from finllm.cpu import adapted, kernels

OURS = {oft.Linear: adapted.RotatedLinear, vera.Linear: adapted.VectorLinear}


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def adapted_model(kind, base=None, **settings):
    """A model of one layer of 12 inputs and 5 outputs under an adapter whose numbers are far from its beginning."""
    torch.manual_seed(2)
    model = nn.Sequential(base or nn.Linear(12, 5))
    if kind == "oft":
        config = OFTConfig(target_modules=["0"], r=0, oft_block_size=4, **settings)
    else:
        config = VeraConfig(target_modules=["0"], r=3, fan_in_fan_out=isinstance(base, Conv1D), **settings)
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model.double()


def layer_of(model):
    return model.base_model.model[0]


def pair(model):
    """peft's model, whose dropout draws as ours does, and ours."""
    ours = copy.deepcopy(model)
    theirs = type(layer_of(model))
    for each in (model, ours):
        kernels.use_in(each.base_model.model)
        assert type(layer_of(each)) is OURS[theirs]
    layer_of(model).__class__ = theirs
    return model, ours


def functions_of(result):
    """The names of all functions that a result came through."""
    found, waiting = set(), [result.grad_fn]
    while waiting:
        function = waiting.pop()
        if function is not None:
            found.add(function.name())
            waiting += [each for each, _ in function.next_functions]
    return found


OWN = {"_RotatedBackward", "_VectorProductBackward"}


def compared(models, shape=(4, 12), needs=True, own=True):
    """Results and gradients of peft's layer and of ours are the same; `own` says whether ours went its own way."""
    found, ways = [], []
    for model in models:
        torch.manual_seed(5)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=needs)
        result = model(x)
        ways.append(bool(OWN & functions_of(result)))
        (result * torch.linspace(-1, 2, 5, dtype=torch.float64)).sum().backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(each.grad is not None for each in trained)
        found.append([result.detach(), *([x.grad] if needs else []), *(each.grad for each in trained)])
        model.zero_grad()
    assert ways == [False, own]
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    return found[0]


@pytest.mark.parametrize("needs", [True, False])
@pytest.mark.parametrize("shape", [(4, 12), (2, 3, 12)])
@pytest.mark.parametrize("settings", [{}, {"use_cayley_neumann": False}, {"num_cayley_neumann_terms": 3}])
def test_oft_of_any_shape(settings, shape, needs):
    assert compared(pair(adapted_model("oft", **settings)), shape, needs)[0].shape == (*shape[:-1], 5)


def test_oft_takes_four_dimensions_for_rows_where_peft_takes_them_for_a_picture():
    theirs, ours = pair(adapted_model("oft"))
    x = torch.randn(2, 1, 3, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x.flatten(0, -2)).view(2, 1, 3, 5))


@pytest.mark.parametrize("needs", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("base", "shape"), [
    (lambda: nn.Linear(12, 5), (4, 12)), (lambda: nn.Linear(12, 5, bias=False), (2, 3, 12)),
    (lambda: Conv1D(5, 12), (2, 1, 3, 12)),
], ids=["linear", "without bias", "Conv1D"])  # fmt: skip
def test_vera_of_any_shape_and_with_dropout(base, shape, dropout, needs):
    models = pair(adapted_model("vera", base(), vera_dropout=dropout))
    found = compared(models, shape, needs)
    assert found[0].shape == (*shape[:-1], 5) and len(found) == 1 + needs + 2
    for model in models:
        model.eval()
    compared(models, shape, needs)


@pytest.mark.parametrize("kind", ["oft", "vera"])
def test_under_autocast_they_round_as_peft_does(kind):
    theirs, ours = pair(adapted_model(kind).float())
    x = torch.randn(64, 12)
    exact = theirs(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, own = theirs(x), ours(x)
    assert own.dtype == torch.bfloat16 and OWN & functions_of(own)
    error = (rounded.float() - exact).abs().max()
    assert 0 < (own.float() - exact).abs().max() < 2 * error
    own.float().square().mean().backward()
    exact.square().mean().backward()
    for mine, other in zip(*([p.grad for p in m.parameters() if p.requires_grad] for m in (ours, theirs)), strict=True):
        assert mine.dtype == torch.float32 and (mine - other).norm() < 0.03 * other.norm()


@pytest.mark.parametrize("settings", [{"coft": True, "eps": 1e-3}, {"block_share": True}])
def test_oft_with_bounded_or_shared_blocks_goes_pefts_way(settings):
    compared(pair(adapted_model("oft", **settings)), own=False)


@pytest.mark.parametrize("kind", ["oft", "vera"])
def test_two_adapters_at_once_go_pefts_way_and_another_than_the_first_does_not(kind):
    model = adapted_model(kind)
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    for name, parameter in model.named_parameters():
        if "oft_R.other" in name or ("lambda" in name and "other" in name):
            nn.init.normal_(parameter, std=0.3)
    one = pair(model.double())
    for each in one:
        each.set_adapter("other")
    compared(one)
    for each in one:
        each.base_model.set_adapter(["default", "other"])
    compared(one, own=False)


@pytest.mark.parametrize("kind", ["oft", "vera"])
@pytest.mark.parametrize("change", ["disabled", "merged", "absent"])
def test_what_is_off_or_merged_is_its_base(kind, change):
    models = pair(adapted_model(kind))
    x = torch.randn(4, 12, dtype=torch.float64)
    before = models[1](x)
    for model in models:
        layer = layer_of(model)
        if change == "merged":
            layer.merge()
        elif change == "disabled":
            layer.enable_adapters(False)
        else:
            layer._active_adapter = ["absent"]
    theirs, ours = (model(x) for model in models)
    torch.testing.assert_close(ours, theirs)
    assert not OWN & functions_of(ours) and torch.allclose(ours, before) == (change == "merged")


@pytest.mark.parametrize("base", [lambda: Twice(12, 5), lambda: nn.Linear(12, 5)], ids=["its own kind", "bias trains"])
def test_vera_on_another_kind_of_layer_or_a_trained_bias_goes_pefts_way(base):
    models = pair(adapted_model("vera", base()))
    if type(layer_of(models[0]).base_layer) is nn.Linear:
        for model in models:
            layer_of(model).base_layer.bias.requires_grad_()
    compared(models, own=False)


def test_oft_on_another_kind_of_layer_turns_its_input():
    compared(pair(adapted_model("oft", Twice(12, 5))))
