"""Where products of ours are made and where the plain layer is: by rows, by what a module is and where it stands."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import nn

from finllm.cpu import kernels


@pytest.fixture(autouse=True)
def as_on_amx(monkeypatch):
    monkeypatch.setattr(kernels, "has_amx", lambda: True)


@pytest.mark.parametrize("shape", [(321, 2), (3, 107, 2)])
def test_more_than_320_rows_are_a_product_of_ours_and_fewer_the_plain_layers(monkeypatch, shape):
    made, own = [], kernels.product
    monkeypatch.setattr(kernels, "product", lambda *given: made.append(len(given[0])) or own(*given))
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
