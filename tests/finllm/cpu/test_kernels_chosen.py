"""Where products of ours are made and where the plain layer is, and sums and norms of theirs in float32."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import nn

from finllm.cpu import kernels, products


@pytest.fixture(autouse=True)
def as_on_amx(monkeypatch):
    monkeypatch.setattr(kernels, "has_amx", lambda: True)


@pytest.mark.parametrize("shape", [(321, 2), (3, 107, 2)])
def test_more_than_320_rows_are_a_product_of_ours_and_fewer_the_plain_layers(monkeypatch, shape):
    made, own = [], products.product
    monkeypatch.setattr(products, "product", lambda *given: made.append(len(given[0])) or own(*given))
    layer = nn.Linear(2, 3)
    kernels.use_in(layer)
    found = layer(torch.ones(shape))
    assert made == [321] and torch.allclose(found, layer(torch.ones(320, 2))[0]) and made == [321]


def test_a_layer_that_stands_first_or_last_or_under_an_adapter():
    """Under an adapter it stays what it is, since an adapted layer of ours asks whether it is one."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    kernels.use_in(layers)
    assert [type(each) for each in layers] == [kernels.Linear, kernels.Dropout, kernels.Linear]
    adapted = lora.Linear(nn.Linear(2, 2), "default", LoraConfig(), r=1)
    kernels.use_in(adapted)
    assert type(adapted) is kernels.AdaptedLinear and type(adapted.base_layer) is nn.Linear


def adapted(base, **settings):
    torch.manual_seed(0)
    layer = lora.Linear(base, "default", LoraConfig(**settings), r=2, lora_alpha=3)
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter, std=0.5)
        parameter.requires_grad_("lora_" in name)
    kernels.use_in(layer)
    return layer


def test_a_layer_whose_adapter_is_not_active_is_its_base():
    layer, x = adapted(nn.Linear(3, 2)), torch.ones(4, 3)
    own = layer(x)
    layer._active_adapter = ["absent"]
    assert torch.equal(layer(x), layer.base_layer(x)) and not torch.equal(own, layer(x))
    layer._active_adapter = ["absent", "default"]
    torch.testing.assert_close(layer(x), own)


def test_what_a_layer_takes_no_more_of_is_refused():
    layer = adapted(nn.Linear(3, 2))
    with pytest.raises(TypeError, match="positional argument"):
        layer(torch.ones(4, 3), torch.ones(1))


def test_a_magnitudes_gradient_is_a_sum_in_float32():
    """Of 1,025 rows each of which gives 1 for each output: in bfloat16 1,024."""
    layer = adapted(nn.Linear(1, 2, bias=False), use_dora=True)
    layer.base_layer.weight.data.fill_(1.0)
    layer.lora_A["default"].weight.data.zero_()
    layer.lora_magnitude_vector["default"].weight.data.fill_(1.0)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(torch.ones(1025, 1))
    result.sum().backward()
    assert layer.lora_magnitude_vector["default"].weight.grad.tolist() == [1025.0, 1025.0]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", [torch.float32, torch.bfloat16])
def test_under_autocast_norms_are_float32s_of_the_numbers_that_there_are(monkeypatch, weights, adapter):
    """But the products of rows of A with coarse weights are rounded once, to a 256th."""
    layer, found = adapted(nn.Linear(40, 5), use_dora=True), []
    layer.base_layer.to(weights)
    layer.lora_A.to(adapter)
    layer.lora_B.to(adapter)
    own = kernels.AdaptedLinear._norms
    monkeypatch.setattr(kernels.AdaptedLinear, "_norms", lambda *given: found.append(own(*given)) or found[-1])
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(3, 40)).dtype == torch.bfloat16
    first, second = (getattr(layer, f"lora_{side}")["default"].weight.double() for side in "AB")
    exact = (layer.base_layer.weight.double() + 1.5 * second @ first).norm(dim=1)
    near = 1e-5 if weights == torch.float32 else 2e-3
    assert found[0].dtype == torch.float32 and found[0].tolist() == pytest.approx(exact.tolist(), rel=near)


def test_norms_of_a_fine_adapter_on_coarse_weights():
    """Of a row of ones and 1.5 · 1.001 more in its first column, which in bfloat16 would be 1.5."""
    layer = adapted(nn.Linear(257, 2), use_dora=True)
    layer.base_layer.weight.data = torch.ones(2, 257, dtype=torch.bfloat16)
    for side in (layer.lora_A, layer.lora_B):
        side["default"].weight.data.zero_()
    layer.lora_A["default"].weight.data[0, 0], layer.lora_B["default"].weight.data[0, 0] = 1.0, 1.001
    found = layer._norms(
        layer.base_layer.weight.T, *(side["default"].weight for side in (layer.lora_A, layer.lora_B)), 1.5
    )
    assert found.tolist() == pytest.approx([(256 + 2.5015**2) ** 0.5, 257**0.5], rel=1e-6)


@pytest.mark.parametrize("dora", [True, False])
def test_a_merged_layer_adds_its_adapter_no_second_time(dora):
    layer, x = adapted(nn.Linear(3, 2), use_dora=dora), torch.arange(12.0).view(4, 3)
    own = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), own)
    layer.unmerge()
    torch.testing.assert_close(layer(x), own)


def test_a_gradient_goes_through_what_dropout_kept():
    values, weights = torch.ones(50, requires_grad=True), torch.arange(50.0)
    dropped = kernels.dropout(values, 0.5)
    (dropped * weights).sum().backward()
    assert torch.equal(values.grad, dropped.detach() * weights) and 0 < (dropped == 0).sum() < 50
