"""The loss under autocast, of heads that trained before, and of forwards that make the logits of every position."""

import math
import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

from finllm.cpu import loss
from finllm.cpu.loss import add_supervised_head, aligned_head, linear_cross_entropy


def test_under_autocast_products_are_made_in_its_dtype():
    """Those of numbers that were rounded before are the same to the last bit, and those of others are not."""
    torch.manual_seed(0)
    hidden, weight, bias, labels = torch.randn(9, 6), torch.randn(11, 6), torch.randn(11), torch.arange(9)
    with torch.autocast("cpu", torch.bfloat16):
        _, found = linear_cross_entropy(hidden, weight, labels, bias)
    _, rounded = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), labels, bias.bfloat16())
    _, exact = linear_cross_entropy(hidden, weight, labels, bias)
    assert torch.equal(found, rounded) and not torch.equal(found, exact)


def test_a_heads_gradient_is_a_sum_in_float32_of_every_chunk(monkeypatch):
    """Of a head of zeros each of 8 tokens has an eighth: of the first, which is always right, 7 / 8 too little. In
    bfloat16 128.125 would be 128."""
    monkeypatch.setattr(loss, "CHUNK", 64)
    weight = torch.zeros(8, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        nll, _ = linear_cross_entropy(torch.ones(1025, 2), weight, torch.zeros(1025, dtype=torch.long))
    nll.backward()
    assert weight.grad.tolist() == [[-1025 * 7 / 8] * 2] + [[1025 / 8] * 2] * 7


@pytest.mark.parametrize("count", [40, 70])
@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("bias", [None, torch.ones(8)], ids=["plain", "bias"])
def test_a_last_chunk_that_is_shorter_makes_no_noise(monkeypatch, bias, filled, count):
    """torch warns of a product whose place has another size."""
    monkeypatch.setattr(loss, "CHUNK", 64)
    monkeypatch.setattr(loss, "has_amx", lambda: filled)
    weight = torch.ones(8, 2, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, nll_N = linear_cross_entropy(torch.ones(count, 2), weight, torch.zeros(count, dtype=torch.long), bias)
    assert nll_N.tolist() == pytest.approx([math.log(8)] * count, rel=1e-6)


def test_what_a_head_was_while_it_trained_is_no_longer_known_when_it_does_not():
    weight = torch.randn(11, 6, requires_grad=True)
    aligned_head(weight, None, torch.bfloat16)
    weight.data += 1  # as some optimizers step, which torch does not count
    weight.requires_grad_(False)
    assert torch.equal(aligned_head(weight, None, torch.bfloat16)[0][:11], weight.bfloat16())


@pytest.mark.parametrize("leaves_out", [True, False])
def test_own_logits_stand_before_the_tokens_that_they_predict(leaves_out):
    """Row 0 learns its first tokens and its last, row 1 one in the middle."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=30, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.randint(30, (2, 6))
    labels = torch.tensor([[-100, 4, 7, -100, -100, 9], [-100, -100, -100, 3, -100, -100]])
    expected = cross_entropy(model(ids).logits[:, :-1][labels[:, 1:] != -100], torch.tensor([4, 7, 9, 3]),
                             reduction="none")  # fmt: skip
    if not leaves_out:
        forward = model.forward
        model.forward = lambda input_ids, use_cache: forward(input_ids, use_cache=use_cache)
    add_supervised_head(model)
    found = model(input_ids=ids, labels=labels, supervised_head=True, own_logits=True, use_cache=False)
    torch.testing.assert_close(found.nll_N, expected.detach())
