"""Attention of rows that stand end to end, on a CPU: each part of the sequence to what it sees.

H query heads, G key heads, D head width, Q queries and K keys of the whole sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from finllm.cpu.kernels import kept
from finllm.cpu.products import ALIGNED, dtype_of

Span = tuple[int, int]
# Positions of queries, and of the keys that they see, the queries' own last
Part = tuple[Span, tuple[Span, ...]]


class _Attention(torch.autograd.Function):
    """See `attention_of_parts`. Every part is a few products and one softmax, forward and backward, of whole heads."""

    @staticmethod
    def forward(ctx, query_HQD, key_GKD, value_GKD, parts, scale, share):
        heads, queries, width = query_HQD.shape
        groups, result_QHD = len(key_GKD), query_HQD.new_empty(queries, heads, width)
        held = []
        for own, seen in parts:
            query = _aligned(query_HQD, [own]).mul_(scale).view(groups, -1, width)
            key, value = _aligned(key_GKD, seen), _aligned(value_GKD, seen)
            scores = torch.bmm(query, key.transpose(1, 2)).view(heads, -1, key.shape[1])
            count, first = own[1] - own[0], sum(end - begin for begin, end in seen) - (own[1] - own[0])
            _, rows, columns = scores.shape
            size = 1 << max(first + rows, columns).bit_length()
            scores += _causal_bias(size, scores.dtype)[first : first + rows, :columns]
            weights = scores.softmax(-1).view(groups, -1, columns)
            mask = [kept(weights, share)] if share else []
            result = torch.bmm(weights * mask[0] if share else weights, value).mul_(1 / (1 - share))
            result_QHD[own[0] : own[1]] = result.view(heads, rows, width)[:, :count].transpose(0, 1)
            held += [query, key, value, weights, *mask]
        ctx.save_for_backward(*held)
        ctx.parts, ctx.scale, ctx.share, ctx.shapes = parts, scale, share, (query_HQD.shape, key_GKD.shape)
        return result_QHD

    @staticmethod
    def backward(ctx, grad_QHD):
        (heads, queries, width), (groups, keys, _) = ctx.shapes
        # As the model's projection made them, a token's heads beside each other, so that nothing is turned again
        grad_query = grad_QHD.new_zeros(queries, heads, width).transpose(0, 1)
        grad_key, grad_value = (grad_QHD.new_zeros(keys, groups, width).transpose(0, 1) for _ in range(2))
        held = iter(ctx.saved_tensors)
        for own, seen in ctx.parts:
            query, key, value, weights = (next(held) for _ in range(4))
            grad = _aligned(grad_QHD.transpose(0, 1), [own]).mul_(1 / (1 - ctx.share)).view(groups, -1, width)
            grad_weights, dropped = torch.bmm(grad, value.transpose(1, 2)), weights
            if ctx.share:
                mask = next(held)
                grad_weights *= mask
                dropped = weights * mask
            _add_pieces(grad_value, seen, torch.bmm(dropped.transpose(1, 2), grad))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            _add_pieces(grad_key, seen, torch.bmm(grad_scores.transpose(1, 2), query))
            of_query = torch.bmm(grad_scores, key).mul_(ctx.scale).view(heads, -1, width)
            grad_query[:, own[0] : own[1]] = of_query[:, : own[1] - own[0]]
        return grad_query, grad_key, grad_value, None, None, None


def attention_of_parts(
    query_HQD: Tensor, key_GKD: Tensor, value_GKD: Tensor, parts: Sequence[Part], scale: float, share: float
) -> Tensor:
    """softmax(scale · QKᵀ)V of each part, whose queries see themselves and what comes before them in its keys.

    Vaswani et al. 2017, eq. 1, with dropout of a `share` of the weights. H query heads share G of keys, H/G in a row
    each. Returns (Q, H, D), in which a query of no part has any numbers. torch's own kernels for a CPU take 3 to 5
    times as long in bfloat16, and twice as long with dropout; this one holds the weights, H · queries · keys numbers a
    part, for backward.
    """
    dtype = dtype_of(query_HQD)
    with torch.autocast(query_HQD.device.type, enabled=False):
        return _Attention.apply(*(each.to(dtype) for each in (query_HQD, key_GKD, value_GKD)), parts, scale, share)


def _aligned(values_HTD: Tensor, spans: Sequence[Span]) -> Tensor:
    """Spans of positions end to end, a new tensor (·, n, D), with zeros up to a multiple of `ALIGNED` after them.

    A product wants its rows to begin aligned, in bfloat16 above all.
    """
    length = sum(end - begin for begin, end in spans)
    found = values_HTD.new_empty(len(values_HTD), length + -length % ALIGNED, values_HTD.shape[2])
    at = 0
    for begin, end in spans:
        found[:, at : at + end - begin] = values_HTD[:, begin:end]
        at += end - begin
    found[:, length:] = 0
    return found


def _add_pieces(whole_GTD: Tensor, spans: Sequence[Span], pieces_GnD: Tensor) -> None:
    """Add what `_aligned` would have made of `whole` to where it came from."""
    at = 0
    for begin, end in spans:
        whole_GTD[:, begin:end] += pieces_GnD[:, at : at + end - begin]
        at += end - begin


@functools.cache
def _causal_bias(size: int, dtype: torch.dtype) -> Tensor:
    """(size, size): −∞ above the diagonal, where a key comes after its query, and 0 elsewhere."""
    return torch.full((size, size), -torch.inf, dtype=dtype).triu(1)
