"""Layers of ours under OFT, VeRA and IA3 beside peft's: the same results and gradients, and what goes peft's way."""

import copy

import pytest
import torch
from peft import IA3Config, OFTConfig, VeraConfig, get_peft_model
from peft.tuners import ia3, oft, vera
from torch import nn
from transformers.pytorch_utils import Conv1D

from finllm.cpu import adapted, kernels

OURS = {oft.Linear: adapted.RotatedLinear, vera.Linear: adapted.VectorLinear, ia3.Linear: adapted.ScaledLinear}
PEFTS = {ours: theirs for theirs, ours in OURS.items()}
INTO = {"feedforward_modules": ["0"]}  # IA3 on what goes into the layer; else on what comes out of it


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def adapted_model(kind, base=None, **settings):
    """A model of one layer of 12 inputs and 5 outputs under an adapter whose numbers are far from its beginning."""
    torch.manual_seed(2)
    model = nn.Sequential(base or nn.Linear(12, 5))
    if kind == "oft":
        config = OFTConfig(target_modules=["0"], r=0, oft_block_size=4, **settings)
    elif kind == "vera":
        config = VeraConfig(target_modules=["0"], r=3, fan_in_fan_out=isinstance(base, Conv1D), **settings)
    else:
        given = {"feedforward_modules": [], "fan_in_fan_out": isinstance(base, Conv1D)} | settings
        config = IA3Config(target_modules=["0"], **given)
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


OWN = {"_RotatedBackward", "_VectorProductBackward", "NativeBatchNormBackward0"}


def compared(models, shape=(4, 12), needs=True, own=True, dtype=torch.float64):
    """Results and gradients of peft's layer and of ours are the same; `own` says whether ours went its own way."""
    found, ways = [], []
    for model in models:
        torch.manual_seed(5)
        x = torch.randn(shape, dtype=dtype, requires_grad=needs)
        result = model(x)
        ways.append(bool(OWN & functions_of(result)))
        (result * torch.linspace(-1, 2, 5, dtype=dtype)).sum().backward()
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
    (lambda: Conv1D(5, 12), (2, 1, 3, 12)), (lambda: nn.Linear(12, 5), (2, 0, 12)),
], ids=["linear", "without bias", "Conv1D", "no rows"])  # fmt: skip
def test_vera_of_any_shape_and_with_dropout(base, shape, dropout, needs):
    models = pair(adapted_model("vera", base(), vera_dropout=dropout))
    found = compared(models, shape, needs)
    assert found[0].shape == (*shape[:-1], 5) and len(found) == 1 + needs + 2
    for model in models:
        model.eval()
    compared(models, shape, needs)


@pytest.mark.parametrize("needs", [True, False])
@pytest.mark.parametrize("settings", [{}, INTO], ids=["out", "into"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("base", "shape"), [
    (lambda: nn.Linear(12, 5), (4, 12)), (lambda: nn.Linear(12, 5, bias=False), (2, 3, 12)),
    (lambda: Conv1D(5, 12), (2, 1, 3, 12)), (lambda: nn.Linear(12, 5), (1, 12)),
], ids=["linear", "without bias", "Conv1D", "one row"])  # fmt: skip
def test_ia3_of_any_shape(base, shape, dtype, settings, needs):
    models = [model.to(dtype) for model in pair(adapted_model("ia3", base(), **settings))]
    found = compared(models, shape, needs, dtype=dtype)
    assert found[0].shape == (*shape[:-1], 5) and len(found) == 1 + needs + 1
    empty = models[1](torch.ones(0, 12, dtype=dtype))
    assert empty.shape == (0, 5) and empty.dtype == dtype


def whole(*shape, seed):
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("settings", [{}, INTO], ids=["out", "into"])
@pytest.mark.parametrize("base", [lambda: nn.Linear(12, 5), lambda: Conv1D(5, 12)], ids=["linear", "Conv1D"])
def test_ia3_on_a_base_in_bfloat16_scales_by_float32_and_rounds_once(base, settings, autocast):
    """Products of small whole numbers are exact in bfloat16, so what is scaled is all that is rounded."""
    models, found = pair(adapted_model("ia3", base(), **settings)), []
    for model in models:
        layer = layer_of(model)
        layer.base_layer.to(torch.bfloat16)
        layer.base_layer.weight.data = whole(*layer.base_layer.weight.shape, seed=1)
        layer.base_layer.bias.data = whole(5, seed=2)
        scale = layer.ia3_l.float()["default"]
        x = whole(64, 12, seed=3).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = model(x)
        result.backward(whole(64, 5, seed=4))
        found.append((result.detach(), x.grad, scale.grad))
        assert result.dtype == torch.bfloat16 and scale.grad.dtype == torch.float32
    assert OWN & functions_of(result)
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    exact = 1 if settings else 0  # of the two the one that no product follows
    assert torch.equal(found[1][exact], found[0][exact])
    if not settings:  # where the inputs are scaled, the other factor of this sum is exact too
        assert torch.equal(found[1][2], (whole(64, 5, seed=4) * layer.base_layer(x.detach())).float().sum(0)[:, None])


@pytest.mark.parametrize("settings", [{}, INTO], ids=["out", "into"])
@pytest.mark.parametrize("autocast", [True, False])
def test_ia3_keeps_no_more_for_its_gradients_than_peft_does(settings, autocast):
    kept = []
    for model in pair(adapted_model("ia3", nn.Linear(12, 5), **settings).float()):
        storages = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(1000, 12, requires_grad=True)
        kept_by = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with kept_by, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = model(x)
        kept.append(sum(storages.values()))
    assert OWN & functions_of(result)
    vectors = 2 * 12 * 4  # a mean and a variance for each number of the scale
    assert kept[1] <= kept[0] + vectors


F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


@pytest.mark.parametrize(("x", "base", "scale", "autocast", "out", "into"), [
    (F32, F32, F64, False, False, False), (F32, F32, BF16, False, False, False), (BF16, BF16, F64, False, False, False),
    (BF16, BF16, F32, False, True, True), (BF16, BF16, BF16, False, True, True), (F64, F64, F32, False, False, False),
    (F32, BF16, F32, True, True, True), (F32, BF16, BF16, True, True, False),
])  # fmt: skip
def test_ia3_goes_its_own_way_where_a_batch_norm_takes_numbers_and_scale_together(x, base, scale, autocast, out, into):
    for settings, own in (({}, out), (INTO, into)):
        model = adapted_model("ia3", **settings)
        kernels.use_in(model.base_model.model)
        layer = layer_of(model)
        layer.base_layer.to(base)
        layer.ia3_l.to(scale)
        with torch.autocast("cpu", BF16, enabled=autocast):
            result = model(torch.ones(4, 12, dtype=x))
        assert bool(OWN & functions_of(result)) is own


@pytest.mark.parametrize(("kind", "settings"), [
    ("oft", {}), ("vera", {}), ("vera", {"vera_dropout": 0.5}), ("ia3", {}), ("ia3", INTO),
])  # fmt: skip
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


@pytest.mark.parametrize("settings", [{}, INTO], ids=["out", "into"])
def test_gradients_of_ia3_for_many_tokens_are_sums_in_float32(settings):
    model = pair(adapted_model("ia3", nn.Linear(1, 1, bias=False), **settings).float())[1]
    layer = layer_of(model)
    for parameter in (layer.base_layer.weight, layer.ia3_l["default"]):
        parameter.data = torch.ones_like(parameter)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.ones(257, 1)).sum().backward()
    assert layer.ia3_l["default"].grad.tolist() == [[257.0]]


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


@pytest.mark.parametrize("kind", ["oft", "vera", "ia3"])
def test_what_a_layer_takes_no_more_of_is_refused(kind):
    layer = layer_of(pair(adapted_model(kind))[1])
    for more in ([torch.ones(1)], []):
        with pytest.raises(TypeError, match=r"positional argument|unexpected keyword"):
            layer(torch.ones(4, 12, dtype=torch.float64), *more, **({} if more else {"scale": 2}))


@pytest.mark.parametrize("settings", [{"coft": True, "eps": 1e-3}, {"block_share": True}])
def test_oft_with_bounded_or_shared_blocks_goes_pefts_way(settings):
    compared(pair(adapted_model("oft", **settings)), own=False)


@pytest.mark.parametrize("kind", ["oft", "vera", "ia3"])
def test_two_adapters_at_once_go_pefts_way_and_another_than_the_first_does_not(kind):
    model = adapted_model(kind)
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    for name, parameter in model.named_parameters():
        if "other" in name and ("oft_R" in name or "lambda" in name or "ia3_l" in name):
            nn.init.normal_(parameter, std=0.3)
    one = pair(model.double())
    for each in one:
        each.set_adapter("other")
    compared(one)
    for each in one:
        each.base_model.set_adapter(["default", "other"])
    compared(one, own=False)


@pytest.mark.parametrize(("kind", "settings"), [("oft", {}), ("vera", {}), ("ia3", {}), ("ia3", INTO)])
@pytest.mark.parametrize("change", ["disabled", "merged", "absent"])
def test_what_is_off_or_merged_is_its_base(kind, settings, change):
    models = pair(adapted_model(kind, **settings))
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


@pytest.mark.parametrize(("kind", "settings"), [("vera", {}), ("ia3", {}), ("ia3", INTO)])
@pytest.mark.parametrize("trains", [None, "weight", "bias"])
def test_another_kind_of_layer_or_one_that_trains_goes_pefts_way(kind, settings, trains):
    models = pair(adapted_model(kind, nn.Linear(12, 5) if trains else Twice(12, 5), **settings))
    for model in models if trains else ():
        getattr(layer_of(model).base_layer, trains).requires_grad_()
    compared(models, own=False)


def test_oft_on_another_kind_of_layer_turns_its_input():
    compared(pair(adapted_model("oft", Twice(12, 5))))
