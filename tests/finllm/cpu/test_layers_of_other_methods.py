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
PEFTS = {ours: theirs for theirs, ours in OURS.items()}


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
    for each in (model, ours):
        kernels.use_in(each.base_model.model)
    for module in model.modules():
        module.__class__ = PEFTS.get(type(module), type(module))
    assert type(layer_of(model)) in PEFTS.values() and type(layer_of(ours)) is OURS[type(layer_of(model))]
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


@pytest.mark.parametrize(("kind", "settings"), [("oft", {}), ("vera", {}), ("vera", {"vera_dropout": 0.5})])
def test_under_autocast_they_round_as_peft_does(kind, settings):
    theirs, ours = pair(adapted_model(kind, **settings).float())
    x, results = torch.randn(64, 12), {}
    for name, model, autocast in (("exact", theirs, False), ("theirs", theirs, True), ("ours", ours, True)):
        torch.manual_seed(7)
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = model(given)
        result.float().square().mean().backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        results[name] = [result, given.grad, *(parameter.grad for parameter in trained)]
        model.zero_grad()
    assert results["ours"][0].dtype == torch.bfloat16 and OWN & functions_of(results["ours"][0])
    for exact, other, own in zip(*results.values(), strict=True):
        error = (other.float() - exact).norm()
        assert 0 < (own.float() - exact).norm() < 4 * error and own.dtype in (torch.float32, torch.bfloat16)


def test_gradients_of_many_tokens_are_sums_in_float32():
    """257 times 1 are 256 in bfloat16, whose next number is 258."""
    model = pair(adapted_model("vera", nn.Linear(1, 1, bias=False)).float())[1]
    layer = layer_of(model)
    for held in (layer.vera_A, layer.vera_B, layer.vera_lambda_d, layer.vera_lambda_b):
        held["default"].data = torch.ones_like(held["default"])
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.ones(257, 1)).sum().backward()
    assert layer.vera_lambda_d["default"].grad.tolist() == [257.0] * 3


def test_veras_matrices_are_as_large_as_the_largest_layer_and_cut_for_the_others():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(12, 6), nn.Linear(6, 9), nn.Linear(9, 5))
    model = get_peft_model(model, VeraConfig(target_modules=["0", "1", "2"], r=3))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    compared(pair(model.double()))


@pytest.mark.parametrize("kind", ["oft", "vera"])
def test_what_a_layer_takes_no_more_of_is_refused(kind):
    layer = layer_of(pair(adapted_model(kind))[1])
    for more in ([torch.ones(1)], []):
        with pytest.raises(TypeError, match=r"positional argument|unexpected keyword"):
            layer(torch.ones(4, 12, dtype=torch.float64), *more, **({} if more else {"scale": 2}))


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


@pytest.mark.parametrize("trains", [None, "weight", "bias"])
def test_vera_on_another_kind_of_layer_or_one_that_trains_goes_pefts_way(trains):
    models = pair(adapted_model("vera", nn.Linear(12, 5) if trains else Twice(12, 5)))
    for model in models if trains else ():
        getattr(layer_of(model).base_layer, trains).requires_grad_()
    compared(models, own=False)


def test_oft_on_another_kind_of_layer_turns_its_input():
    compared(pair(adapted_model("oft", Twice(12, 5))))
