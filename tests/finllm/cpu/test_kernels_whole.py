"""What a CPU computes in few passes, beside slow ways: masks by bits, products in pieces, layers and who trains.

How adapted layers are computed is in test_adapted_layers.py.
"""

import copy
import itertools

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from finllm.cpu import kernels, processor, products


@pytest.mark.parametrize("share", [0.0, 2**-16, 0.1, 0.5, 0.75, 1 - 2**-16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 4), (0,)])
def test_a_mask_is_made_of_sixteen_bits_each_of_a_seed_that_torch_draws(share, shape):
    torch.manual_seed(3)
    found = kernels.kept(torch.empty(shape, dtype=torch.bfloat16), share)
    torch.manual_seed(3)
    words = np.random.SFC64(int(torch.randint(2**62, ()))).random_raw(8)
    bits = [int(word) >> 16 * place & 0xFFFF for word in words for place in range(4)]
    # Read as signed ones, the lowest are those from 2¹⁵ on
    expected = [float((each ^ 0x8000) >= round(share * 2**16)) for each in bits[: found.numel()]]
    assert found.shape == shape and found.dtype == torch.bfloat16 and found.flatten().tolist() == expected


def test_a_mask_of_all_words_holds_each_number_of_bits_once():
    """Of all 2¹⁶ patterns the share that is dropped is exact."""

    class All:
        def __init__(self, seed):
            pass

        def random_raw(self, count):
            return np.arange(2**16, dtype=np.uint16).view(np.uint64)[:count]

    original, np.random.SFC64 = np.random.SFC64, All
    try:
        masks = {share: kernels.kept(torch.empty(2**16), share).sum().item() for share in (0.25, 0.1, 0.9)}
    finally:
        np.random.SFC64 = original
    assert masks == {0.25: 49152, 0.1: 65536 - 6554, 0.9: 65536 - 58982}


@pytest.mark.parametrize(("rows", "columns", "threads", "amx", "dtype", "pieces"), [
    (700, 4, 2, True, torch.bfloat16, [352, 348]), (1281, 4, 2, True, torch.bfloat16, [448, 448, 385]),
    (700, 4, 2, False, torch.bfloat16, [700]), (700, 4, 2, True, torch.float32, [700]),
    (641, 1024, 2, True, torch.bfloat16, [352, 289]), (641, 1025, 2, True, torch.bfloat16, [641]),
    (640, 4, 2, True, torch.bfloat16, [640]), (1536, 4, 2, True, torch.bfloat16, [1536]),
    (1535, 4, 2, True, torch.bfloat16, [512, 512, 511]), (1280, 4, 2, True, torch.bfloat16, [640, 640]),
    (700, 4, 1, True, torch.bfloat16, [700]), (1000, 4, 3, True, torch.bfloat16, [512, 488]),
    (0, 4, 2, True, torch.bfloat16, [0]), (5, 4, 2, False, torch.float32, [5]),
])  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_into_which_pieces_a_product_is_cut(monkeypatch, rows, columns, threads, amx, dtype, pieces, bias):
    made, found = [], {}
    for name in ("mm", "addmm"):
        found[name] = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *given, out, name=name: made.append(len(out)) or
                            found[name](*given, out=out))  # fmt: skip
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(products, "has_amx", lambda: amx)
    left, right = (torch.arange(rows * 2).view(rows, 2) % 5).to(dtype), torch.ones(2, columns, dtype=dtype)
    added = torch.full((columns,), 3.0, dtype=dtype) if bias else None
    result = products.product(left, right, added)
    assert made == pieces and result.dtype == dtype and result.shape == (rows, columns)
    assert torch.equal(result, (left.sum(1, keepdim=True) + (3 if bias else 0)).expand(rows, columns))


@pytest.mark.parametrize(("known", "amx"), [("AMX", True), ("AVX512-BF16", False), ("AVX2", False), (None, False)])
def test_which_processors_have_amx(monkeypatch, known, amx):
    monkeypatch.setattr(processor, "instructions", lambda: known)
    assert products.has_amx.__wrapped__() is amx


def test_the_dtype_of_products():
    x = torch.ones(1)
    assert [products.dtype_of(each) for each in (x, x.double(), x.half())] == [torch.float32, torch.float64, torch.half]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert products.dtype_of(x) == products.dtype_of(x.double()) == dtype


# Plain layers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_on_amx(monkeypatch):
    for module in (kernels, products):
        monkeypatch.setattr(module, "has_amx", lambda: True)
        monkeypatch.setattr(module, "PIECE", 6)


def own_layer(kind, bias):
    """With numbers that bfloat16 holds, as its products and their sums are."""
    layer = nn.Linear(3, 5, bias=bias) if kind is nn.Linear else Conv1D(5, 3)
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape, generator=generator).float()
    return layer


NEEDS = [*itertools.product([True, False], repeat=3)][:-1]


@pytest.mark.parametrize("needs", NEEDS, ids=str)
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Conv1D, True)])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (2, 2, 2, 3), (6, 3)], ids=str)
def test_a_layers_results_and_gradients(needs, kind, bias, autocast, shape, as_on_amx):
    """Seven rows and more are a product of ours, and six are the plain layer's; numbers here are whole."""
    layer, found = own_layer(kind, bias), []
    for parameter, needed in zip(layer.parameters(), needs[1:], strict=False):
        parameter.requires_grad_(needed)
    ours = copy.deepcopy(layer)
    kernels.use_in(ours)
    assert type(ours) is {nn.Linear: kernels.Linear, Conv1D: kernels.Projection}[kind]
    for each in (layer, ours):
        x = (torch.arange(24).view(-1, 3)[: np.prod(shape) // 3] % 4).float().view(shape).requires_grad_(needs[0])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = each(x)
        assert result.dtype == (torch.bfloat16 if autocast else torch.float32)
        if not result.requires_grad:
            found.append([result])
            continue
        (result.float() * (torch.arange(5) - 2)).sum().backward()
        found.append([result.detach(), x.grad, *(parameter.grad for parameter in each.parameters())])
    for theirs, own in zip(*found, strict=True):
        assert (theirs is None) == (own is None) and (own is None or torch.equal(theirs, own))
        assert own is None or theirs.dtype == own.dtype


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_gradients_of_coarse_layers_are_in_the_dtype_of_what_they_are_of(as_on_amx, weights):
    layer = own_layer(nn.Linear, True).to(weights)
    kernels.use_in(layer)
    x = torch.ones(8, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert [each.grad.dtype for each in (x, layer.weight, layer.bias)] == [torch.float32, weights, weights]
    assert layer.bias.grad.tolist() == [8] * 5 and layer.weight.grad.tolist() == [[8] * 3] * 5
    assert x.grad.tolist() == [layer.weight.sum(0).tolist()] * 8


def model(adapted=False):
    tokens = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0}
    whole = GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=2, **tokens))
    config = LoraConfig(r=2, target_modules=["attn.c_attn"], fan_in_fan_out=True)
    return get_peft_model(whole, config) if adapted else whole


def kinds(whole):
    return {name.removeprefix("base_model.model."): type(module) for name, module in whole.named_modules()}


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("adapted", [True, False])
def test_which_modules_are_stood_in_for(monkeypatch, amx, adapted):
    monkeypatch.setattr(kernels, "has_amx", lambda: amx)
    before, whole = kinds(model(adapted)), model(adapted)
    kernels.use_in(whole)
    after = kinds(whole)
    block = "transformer.h.0."
    expected = {name: kernels.Dropout for name, kind in before.items() if kind is nn.Dropout}
    expected |= {block + "mlp.act": kernels.GELU} | ({block + "attn.c_attn": kernels.AdaptedLinear} if adapted else {})
    if amx:
        layers = ["attn.c_proj", "mlp.c_fc", "mlp.c_proj", *([] if adapted else ["attn.c_attn"])]
        expected |= {block + name: kernels.Projection for name in layers}
        if adapted:
            expected |= {f"{block}attn.c_attn.lora_{side}.default": kernels.Linear for side in "AB"}
    assert {name: kind for name, kind in after.items() if kind is not before[name]} == expected
    assert len(expected) > 4 and before[block + "mlp.act"] is NewGELUActivation
    assert after["lm_head"] is nn.Linear, "the loss asks whether it is one"
    alone = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.5))
    kernels.use_in(alone)
    assert [type(each) for each in alone] == [kernels.Linear if amx else nn.Linear, nn.ReLU, kernels.Dropout]
