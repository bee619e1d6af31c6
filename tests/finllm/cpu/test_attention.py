"""Attention of parts is torch's own, with its gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from finllm.cpu.attention import attention_of_parts
from finllm.cpu.kernels import kept


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("before", "prefix", "queries"), [
    (0, 0, 1), (0, 0, 33), (0, 5, 28), (0, 40, 64), (9, 5, 28), (3, 0, 7),
])  # fmt: skip
def test_attention_is_torchs(groups, before, prefix, queries):
    """Positions `before` the first key are of others, as those of the group of rows before it are."""
    generator = torch.Generator().manual_seed(1)
    first, end = before + prefix, before + prefix + queries
    query, key, value = (
        torch.randn(heads, end, 8, dtype=torch.float64, generator=generator).requires_grad_()
        for heads in (4, groups, groups)
    )
    expected = scaled_dot_product_attention(
        *(each[None, :, before:] for each in (query, key, value)), is_causal=True, scale=0.3, enable_gqa=True
    )[0, :, prefix:]
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    (expected * weight).sum().backward()
    gradients = [tensor.grad.clone() for tensor in (query, key, value)]
    for tensor in (query, key, value):
        tensor.grad = None
    middle = before + prefix // 2  # what they see may be in three pieces
    seen = ((before, middle), (middle, first), (first, end)) if prefix else ((first, end),)
    ours = attention_of_parts(query, key, value, [((first, end), seen)], 0.3, 0.0)[first:].transpose(0, 1)
    (ours * weight).sum().backward()
    torch.testing.assert_close(ours, expected)
    for tensor, gradient in zip((query, key, value), gradients, strict=True):
        torch.testing.assert_close(tensor.grad, gradient)
        assert not tensor.grad[:, :before].any()


def test_dropped_attention_weights_have_the_right_mean():
    torch.manual_seed(2)
    query, key, value = (torch.randn(2, 20, 4) for _ in range(3))
    whole = [((0, 20), ((0, 20),))]
    exact = attention_of_parts(query, key, value, whole, 0.5, 0.0)
    many = [tensor.repeat(1000, 1, 1) for tensor in (query, key, value)]  # each head draws for itself
    samples = [attention_of_parts(*many, whole, 0.5, 0.2).unflatten(1, (1000, 2)) for _ in range(4)]
    samples = torch.cat(samples, 1).transpose(0, 1)
    error = samples.std(0) / 4000**0.5
    assert ((samples.mean(0) - exact).abs() < 5 * error + 1e-6).all()
    assert samples.std(0)[:, 1:].min() > 0.01


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_attention_of_parts_has_the_gradients_that_autograd_gives(share):
    """Two rows that share a prefix, which is a part itself; with dropout, of the weights that were drawn."""
    parts = [((0, 7), ((0, 7),)), ((7, 40), ((0, 7), (7, 40))), ((40, 51), ((0, 7), (40, 51)))]
    tensors = [torch.randn(heads, 51, 8, dtype=torch.float64).requires_grad_() for heads in (6, 2, 2)]

    def apart(query, key, value):
        torch.manual_seed(4)
        found = []
        for (begin, end), seen in parts:
            places = torch.cat([torch.arange(*span) for span in seen])
            first, rows, columns = len(places) - (end - begin), *(-(-n // 32) * 32 for n in (end - begin, len(places)))
            own_key, own_value = (each[:, places].repeat_interleave(3, 0) for each in (key, value))
            hidden = torch.arange(len(places)) > first + torch.arange(end - begin)[:, None]
            scores = (query[:, begin:end] @ own_key.transpose(1, 2) * 0.3).masked_fill(hidden, -torch.inf)
            factors = torch.ones(6, rows, columns)
            if share:  # drawn for each part and its padding, groups of heads beside each other
                factors = kept(torch.empty(2, 3 * rows, columns), share).view(6, rows, columns) / (1 - share)
            found.append(scores.softmax(-1) * factors[:, : end - begin, : len(places)] @ own_value)
        return torch.cat(found, 1).transpose(0, 1)

    torch.manual_seed(4)
    ours = attention_of_parts(*tensors, parts, 0.3, share)
    expected, weight = apart(*tensors), torch.randn(51, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)  # the factors of dropout are float32 above
    for found, own in zip(
        torch.autograd.grad((ours * weight).sum(), tensors), torch.autograd.grad((expected * weight).sum(), tensors),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_dropout_keeps_the_mean_too():
    """A factor of 1 / 0.9 that was rounded to bfloat16 itself would lose 0.16 % of every answer."""
    torch.manual_seed(3)
    query, key = (torch.zeros(40_000, 32, 1, dtype=torch.bfloat16) for _ in range(2))
    value = (
        (torch.rand(40_000, 32, 1) + 0.5).bfloat16().requires_grad_()
    )  # of many sizes: what is rounded is so both ways
    last = attention_of_parts(query, key, value, [((0, 32), ((0, 32),))], 1.0, 0.1)[-1, :, 0].float()  # it sees all 32
    exact = value.detach().float().mean((1, 2))
    assert (last - exact).std() / 200 < 3.5e-4 and abs((last - exact).mean()) < 1e-3
    weight = torch.rand(last.shape) + 0.5
    (last * weight).sum().backward()
    assert abs(value.grad.float().sum() / weight.sum() - 1) < 1e-3


@pytest.mark.parametrize("rotated", [torch.float32, torch.bfloat16])
def test_under_autocast_attention_is_in_its_precision_and_gradients_in_that_of_what_they_are_of(rotated):
    """Rotary positions make float32 of queries and keys, and values stay bfloat16."""
    whole = [((0, 40), ((0, 40),))]
    query, key = (torch.randn(2, 40, 8).to(rotated).requires_grad_() for _ in range(2))
    value = torch.randn(2, 40, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_of_parts(query, key, value, whole, 0.3, 0.0)
    found.sum().backward()  # as in training, outside autocast
    assert found.dtype == torch.bfloat16 and [each.grad.dtype for each in (query, key, value)] == [
        rotated, rotated, torch.bfloat16,
    ]  # fmt: skip
    exact = attention_of_parts(query.double(), key.double(), value.double(), whole, 0.3, 0.0)
    assert (found - exact).abs().max() < 0.05
