"""What stands for plain modules on a CPU must compute what they compute."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from finllm.cpu import kernels, products
from finllm.models.dropout import set_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(dtype, share):
    torch.manual_seed(0)
    values = torch.ones(300, 1001, dtype=dtype, requires_grad=True)  # a count that is no multiple of four
    dropped = kernels.dropout(values, share)
    dropped.float().sum().backward()
    zeros = (dropped == 0).float().mean().item()
    assert zeros == pytest.approx(share, abs=4 * (share * (1 - share) / values.numel()) ** 0.5)
    assert dropped.unique().tolist() == [0, torch.tensor(1 / (1 - share), dtype=dtype).item()]
    assert torch.equal(values.grad, dropped)  # of ones, value and gradient are both the mask over 1 − share
    kept = (dropped != 0).float()
    for shift in (1, 4, 1001):  # neighbours know nothing of each other
        pairs = torch.stack([kept.flatten()[:-shift], kept.flatten()[shift:]])
        assert abs(torch.corrcoef(pairs)[0, 1].item()) < 0.01


def test_dropout_follows_torchs_seed_and_rests_in_evaluation():
    module, values = kernels.Dropout(0.3), torch.randn(50, 40)
    first, second = module(values), module(values)
    torch.manual_seed(7)
    again = module(values)
    torch.manual_seed(7)
    assert torch.equal(module(values), again)
    assert not torch.equal(first, second)
    assert module.eval()(values) is values
    assert kernels.dropout(values, 0.0) is values


def test_gelu_is_the_one_of_gpt2():
    values = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    torch.testing.assert_close(kernels.GELU()(values), NewGELUActivation()(values), rtol=1e-12, atol=1e-12)


@pytest.fixture
def as_on_amx(monkeypatch):
    """Products in pieces of 8 rows, whatever the processor."""
    for module in (kernels, products):
        monkeypatch.setattr(module, "has_amx", lambda: True)
        monkeypatch.setattr(module, "PIECE", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(products, "ALIGNED", 8)


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_in_pieces_is_the_product(bias, as_on_amx, monkeypatch):
    left, right = torch.randn(53, 24).bfloat16(), torch.randn(24, 40).bfloat16()
    added, pieces = torch.randn(40).bfloat16() if bias else None, []
    made = torch.addmm if bias else torch.mm
    monkeypatch.setattr(torch, made.__name__, lambda *given, out: pieces.append(len(out)) or made(*given, out=out))
    found = products.product(left, right, added)
    exact = left.double() @ right.double() + (added.double() if bias else 0)
    assert pieces == [8] * 6 + [5] and (found - exact).abs().max() <= 2**-8 * exact.abs().max()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_on_amx_plain_layers_give_what_they_gave(family, autocast, frozen, as_on_amx, gpt2_dir, llama_dir):
    plain = AutoModelForCausalLM.from_pretrained({"gpt2": gpt2_dir, "llama": llama_dir}[family]).eval()
    first = next(layer for layer in plain.modules() if type(layer) in (nn.Linear, Conv1D))
    first.weight.requires_grad_(not frozen)
    ours = copy.deepcopy(plain)
    kernels.use_in(ours)
    kinds = [type(module) for module in ours.modules()]
    assert (kernels.Linear in kinds) != (kernels.Projection in kinds)
    assert type(ours.get_output_embeddings()) is nn.Linear  # which the loss asks whether it is one
    found = []
    for model in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(torch.arange(60).view(2, 30)).logits
        logits.float().square().mean().backward()
        found.append([logits] + [parameter.grad for parameter in model.parameters()])
    assert all((ours is None) == (own is None) for own, ours in zip(*found, strict=True))
    tolerance = 2e-2 if autocast else 1e-5
    for own, each in zip(*([tensor for tensor in tensors if tensor is not None] for tensors in found), strict=True):
        assert own.dtype == each.dtype and (own - each).norm() <= tolerance * own.norm()


def adapted(folder, **settings):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder)
    set_dropout(base, 0.0)
    transposed = base.config.model_type == "gpt2"
    model = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", fan_in_fan_out=transposed, **settings)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_magnitude" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


ADAPTERS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
BIASES = {"lora_bias": {"lora_bias": True}, "bias": {"bias": "all"}}  # Llama's layers have none
CASES = [("llama", settings) for settings in ADAPTERS.values()]
CASES += [("gpt2", settings) for settings in (ADAPTERS | BIASES).values()]


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_an_adapters_output_and_gradients_are_pefts(family, settings, gpt2_dir, llama_dir):
    plain = adapted(gpt2_dir if family == "gpt2" else llama_dir, **settings).double().train()
    ours = copy.deepcopy(plain)
    kernels.use_in(ours)
    assert any(type(module) is kernels.AdaptedLinear for module in ours.modules())
    ids = torch.randint(1, 600, (2, 12))
    for model in (plain, ours):
        model(ids, labels=ids).loss.backward()
    torch.testing.assert_close(ours(ids).logits, plain(ids).logits)
    trained = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is not None) == (name in trained)
        if name in trained:
            torch.testing.assert_close(parameter.grad, trained[name], msg=name)
    with ours.disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(ours(ids).logits, plain(ids).logits)


def test_an_adapters_own_dropout_is_applied_to_its_input_alone(gpt2_dir):
    model = adapted(gpt2_dir, lora_dropout=0.5)
    kernels.use_in(model)
    layer = next(module for module in model.modules() if type(module) is kernels.AdaptedLinear)
    x = torch.randn(3, 5, layer.in_features, requires_grad=True)
    torch.manual_seed(3)
    ours = layer(x)
    ours.sum().backward()
    gradient, x.grad = x.grad, None
    torch.manual_seed(3)
    dropped = layer.lora_dropout["default"](x.flatten(0, 1)).view(x.shape)
    expected = layer.base_layer(x) + layer.lora_B["default"](layer.lora_A["default"](dropped)) * 3.0
    expected.sum().backward()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, x.grad, rtol=1e-4, atol=1e-5)
    assert not torch.equal(ours, layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapters_own_dropout_drops_what_pefts_drops(settings, gpt2_dir, monkeypatch):
    model = adapted(gpt2_dir, lora_dropout=0.5, **settings).double().train()
    kernels.use_in(model)
    layer = next(module for module in model.modules() if type(module) is kernels.AdaptedLinear)
    x, found = torch.randn(3, 5, layer.in_features, dtype=torch.float64, requires_grad=True), []
    for forward in (lora.Linear.forward, kernels.AdaptedLinear.forward):
        model.zero_grad()
        torch.manual_seed(3)
        result, x.grad = forward(layer, x), None
        result.square().sum().backward()
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        found.append([result.detach(), x.grad, *(parameter.grad.clone() for parameter in trained)])
        # From here on peft's own way would raise
        monkeypatch.setattr(lora.Linear, "forward", None)
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_doras_norms_follow_its_weights(gpt2_dir):
    """The part of them that is kept is computed anew where the frozen weights are other ones."""
    model = adapted(gpt2_dir, use_dora=True).double()
    plain = copy.deepcopy(model)
    kernels.use_in(model)
    ids = torch.randint(1, 600, (1, 9))
    for change in (lambda weight: weight, lambda weight: 3 * weight, lambda weight: weight.float()):
        for each in (model, plain):
            for name, parameter in each.named_parameters():
                if name.endswith("base_layer.weight"):
                    parameter.data = change(parameter.data).to(torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, plain(ids).logits)


def test_frozen_bfloat16_weights_give_float32_gradients_under_autocast(gpt2_dir):
    model = adapted(gpt2_dir)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    exact = copy.deepcopy(model).float()
    kernels.use_in(model)
    ids = torch.randint(1, 600, (2, 12))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    expected = exact(ids, labels=ids).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    for (name, parameter), reference in zip(model.named_parameters(), exact.parameters(), strict=True):
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32
            assert (parameter.grad - reference.grad).norm() < 5e-2 * reference.grad.norm(), name


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("active", [[], ["default"], ["other"], ["default", "other"]], ids=str)
def test_whichever_adapters_are_active_a_layer_gives_what_pefts_gives(active, settings):
    torch.manual_seed(2)
    layer = lora.Linear(nn.Linear(6, 5), "default", LoraConfig(**settings), r=2, lora_alpha=3)
    layer.update_layer("other", r=3, lora_alpha=2, config=LoraConfig(**settings))
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter, std=0.5)
        parameter.requires_grad_("lora_" in name)
    ours = copy.deepcopy(layer)
    kernels.use_in(ours)
    for each in (layer, ours):
        each._active_adapter = active
    x = torch.randn(4, 6)
    torch.testing.assert_close(ours(x), layer(x))
    if not active:
        torch.testing.assert_close(ours(x), layer.base_layer(x))


@pytest.mark.parametrize("settings", [ADAPTERS["lora"], ADAPTERS["dora"]], ids=["lora", "dora"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_under_autocast_everything_is_cast_once_and_gradients_are_in_the_dtype_of_what_they_are_of(
    weights, dropout, settings
):
    torch.manual_seed(2)
    layer = lora.Linear(nn.Linear(6, 5), "default", LoraConfig(lora_dropout=dropout, **settings), r=2).train()
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter, std=0.5)
        parameter.requires_grad_("lora_" in name)
    layer.base_layer.to(weights)
    kernels.use_in(layer)
    x = torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(x)
    assert result.dtype == torch.bfloat16
    result.float().square().sum().backward()
    assert x.grad.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in layer.parameters() if parameter.requires_grad} == {torch.float32}
