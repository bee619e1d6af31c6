"""finllm.cpu.loss against plain cross-entropy."""

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from finllm.cpu import loss
from finllm.cpu.loss import linear_cross_entropy

N, C, V = 37, 16, 101


def inputs(dtype, seed=0, bias=True):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, C, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(V, C, generator=generator) / 4).to(dtype).requires_grad_()
    bias_V = torch.randn(V, generator=generator).to(dtype).requires_grad_() if bias else None
    return hidden, weight, bias_V, torch.randint(V, (N,), generator=generator)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [5, 37, 1024])
@pytest.mark.parametrize("filled", [False, True])
def test_loss_and_gradients_are_those_of_cross_entropy_in_float64(monkeypatch, filled, chunk, bias):
    monkeypatch.setattr(loss, "CHUNK", chunk)
    monkeypatch.setattr(loss, "ALIGNED", 4)
    monkeypatch.setattr(loss, "has_amx", lambda: filled)
    hidden, weight, bias_V, labels = inputs(torch.float32, bias=bias)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias_V) if tensor is not None]
    expected = cross_entropy(linear(*exact), labels, reduction="sum")
    (expected * 0.25).backward()
    nll, nll_N = linear_cross_entropy(hidden, weight, labels, bias_V)
    (nll * 0.25).backward()
    assert nll.item() == pytest.approx(expected.item(), rel=1e-6)
    assert nll_N.sum().item() == pytest.approx(expected.item(), rel=1e-6)
    for tensor, reference in zip((hidden, weight, bias_V), exact, strict=False):
        error = (tensor.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert error < 1e-4


def test_what_is_all_but_impossible_costs_what_it_costs():
    """Its probability is no number of float32 any more, its logarithm is."""
    hidden, weight, bias_V, labels = inputs(torch.float32)
    labels[0] = linear(100 * hidden[0], weight, bias_V).argmax()
    expected = cross_entropy(linear(100 * hidden, weight, bias_V).double(), labels, reduction="none")
    _, nll_N = linear_cross_entropy(100 * hidden, weight, labels, bias_V)
    assert nll_N.max() > 200 and nll_N.min() < 1
    torch.testing.assert_close(nll_N.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_head_that_does_not_train_is_cast_once_and_again_when_it_has_changed():
    weight = torch.randn(V, C)
    loss.aligned_head(weight, None, torch.bfloat16)
    assert loss.aligned_head(weight, None, torch.float32)[0].dtype == torch.float32
    first, _ = loss.aligned_head(weight, None, torch.bfloat16)
    assert loss.aligned_head(weight, None, torch.bfloat16)[0] is first
    weight += 1
    changed, _ = loss.aligned_head(weight, None, torch.bfloat16)
    assert torch.equal(changed[:V], weight.bfloat16()) and not changed[V:].any()
    weight.data = weight.data * 2
    assert torch.equal(loss.aligned_head(weight, None, torch.bfloat16)[0][:V], weight.bfloat16())
    weight.requires_grad_()
    weight.data += 1  # as some optimizers step, which torch does not count
    assert torch.equal(loss.aligned_head(weight, None, torch.bfloat16)[0][:V], weight.detach().bfloat16())


def test_bfloat16_under_autocast_stays_within_one_percent():
    hidden, weight, bias_V, labels = inputs(torch.float32)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias_V)]
    expected = cross_entropy(linear(*exact), labels, reduction="sum")
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):
        nll, _ = linear_cross_entropy(hidden, weight, labels, bias_V)
    nll.backward()
    assert nll.dtype == torch.float32
    assert nll.item() == pytest.approx(expected.item(), rel=1e-2)
    for tensor, reference in zip((hidden, weight, bias_V), exact, strict=True):
        assert tensor.grad.dtype == torch.float32
        assert (tensor.grad.double() - reference.grad).norm() / reference.grad.norm() < 2e-2


def test_no_supervised_token_gives_zero_and_zero_gradients():
    hidden, weight, bias_V, labels = inputs(torch.float32)
    nll, nll_N = linear_cross_entropy(hidden[:0], weight, labels[:0], bias_V)
    nll.backward()
    assert nll.item() == 0 and len(nll_N) == 0
    assert not hidden.grad.any() and not weight.grad.any() and not bias_V.grad.any()


def test_a_second_backward_is_refused_and_without_gradients_none_is_formed(monkeypatch):
    hidden, weight, bias_V, labels = inputs(torch.float32)
    nll, _ = linear_cross_entropy(hidden, weight, labels, bias_V)
    nll.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nll.backward()
    formed = []
    monkeypatch.setattr(loss, "_likelihood", lambda *_, with_gradient: formed.append(with_gradient))
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, labels, bias_V)
    assert formed == [False]


def test_frozen_weights_get_no_gradient_and_no_buffer():
    hidden, weight, _, labels = inputs(torch.float32, bias=False)
    weight.requires_grad_(False)
    nll, _ = linear_cross_entropy(hidden, weight, labels)
    nll.backward()
    assert weight.grad is None and hidden.grad.any()


@pytest.mark.parametrize("model_dir", ["gpt2_dir", "llama_dir"])
@pytest.mark.parametrize("adapter", [False, True])
def test_a_models_loss_and_gradients_are_its_own(request, model_dir, adapter):
    """The whole model through our head against its own logits, with right padding and no attention mask."""
    from transformers import AutoModelForCausalLM
    from trl import ModelConfig

    from finllm.cpu.loss import add_supervised_head
    from finllm.models.adapters import add_adapter

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(model_dir)).eval()
    if adapter:
        model = add_adapter(model, ModelConfig(use_peft=True, lora_target_modules=["all-linear"], lora_dropout=0.0))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    input_ids = torch.randint(1, 600, (3, 24))
    labels = input_ids.clone()
    labels[:, :9] = -100
    mask = torch.ones_like(input_ids)
    for row, length in enumerate((24, 17, 11)):
        input_ids[row, length:] = 0
        labels[row, length:] = -100
        mask[row, length:] = 0
    logits = model(input_ids, attention_mask=mask).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=-100)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    add_supervised_head(model.get_base_model() if adapter else model)
    output = model(input_ids=input_ids, labels=labels, supervised_head=True)
    output.nll.backward()
    assert output.nll.item() == pytest.approx(expected.item(), rel=1e-6)
    assert output.mask.sum() == (labels[:, 1:] != -100).sum() == len(output.nll_N)
    assert gradients
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert (parameter.grad - gradients[name]).norm() <= 1e-4 * gradients[name].norm() + 1e-7, name
