"""Matrix products of a CPU, and the dtype that they are made in."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from finllm.cpu import processor

PIECE, WHOLE = 320, 768  # rows a core between which AMX's products are made in pieces, see `product`
ALIGNED = 32  # rows and columns of an attention's products are padded to a multiple of it


def product(left_MK: Tensor, right_KN: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """left · right + bias, (M, N), outside autograd, in pieces where a whole one would keep one core of several busy.

    That is how oneDNN (3.12) deals with AMX's bfloat16 products of few columns and some hundred rows a core: 1,100 rows
    of 3,072 by 3,072 x 768 take 4.3 ms on two cores and on one, and 2.6 ms in two pieces.
    """
    rows, columns = len(left_MK), right_KN.shape[1]
    size, threads = rows, torch.get_num_threads()
    slow = columns <= 1024 and threads > 1 and PIECE * threads < rows < WHOLE * threads
    if slow and left_MK.dtype == torch.bfloat16 and has_amx():
        pieces = -(-rows // (PIECE * threads))
        size = -(-rows // (pieces * ALIGNED)) * ALIGNED
    result_MN = left_MK.new_empty(rows, columns)
    for left, result in zip(left_MK.split(size), result_MN.split(size), strict=True):
        if bias_N is None:
            torch.mm(left, right_KN, out=result)
        else:
            torch.addmm(bias_N, left, right_KN, out=result)
    return result_MN


class Product(torch.autograd.Function):
    """xW + b, its gradients in the dtype of the product. T tokens, I inputs, O outputs."""

    @staticmethod
    def forward(ctx, x_TI, weight_IO, bias_O, dtype):
        x, weight = x_TI.to(dtype), weight_IO.to(dtype)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return product(x, weight, None if bias_O is None else bias_O.to(dtype))

    @staticmethod
    def backward(ctx, grad_TO):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        return (
            product(grad_TO, weight.T) if wants_x else None,
            x.T @ grad_TO if wants_weight else None,
            grad_TO.sum(0) if wants_bias else None,
            None,
        )


def dtype_of(x: Tensor) -> torch.dtype:
    """The dtype that products with `x` are made in: autocast's where it is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


@functools.cache
def has_amx() -> bool:
    """Whether products of bfloat16 are made by AMX, for which some things are worth it that nowhere else are."""
    return processor.instructions() == "AMX"
