"""What a CPU computes in fewer passes over memory than the plain modules do: dropout, GELU, LoRA, DoRA, attention.

On two cores a training step of GPT-2 is one half matrix products and one half passes over their results, so these are
worth as much as the products. Functions and distributions are those of the modules they stand for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft.tuners import lora
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

ALIGNED = 32  # rows and columns of an attention's products are padded to a multiple of it


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, share):
        # torch draws a CPU's Bernoulli numbers one by one, in 6 ns each. Sixteen random bits are enough for one, and
        # SFC64 makes four of those in 2 ns. Its seed comes from torch's generator, so that a run resumes exactly.
        seed = int(torch.randint(2**62, ()))
        words = np.random.SFC64(seed).random_raw(-(-values.numel() // 4)).view(np.int16)[: values.numel()]
        kept = torch.from_numpy(words >= round(share * 2**16) - 2**15).view(values.shape).to(values.dtype)
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - share)
        return (values * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad):
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None


def dropout(values: Tensor, share: float) -> Tensor:
    """`values` of any shape with a random `share` of them set to 0 and the others divided by 1 − share.

    `share` is rounded to a multiple of 2⁻¹⁶ (Srivastava et al. 2014, as torch.nn.Dropout has it in training).
    """
    return _Dropout.apply(values, share) if share else values


class Dropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training else input


class GELU(NewGELUActivation):
    """GELU by its tanh approximation (Hendrycks and Gimpel 2016) as one operation instead of eight."""

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input, approximate="tanh")


class _AdaptedProduct(torch.autograd.Function):
    """xW + b + scaling · (dropped x)AᵀBᵀ. T tokens, I inputs, O outputs, R rank. W is frozen, as is b."""

    @staticmethod
    def forward(ctx, x_TI, dropped_TI, weight_IO, bias_O, a_RI, b_OR, scaling, dtype):
        x, a, b = x_TI.to(dtype), a_RI.to(dtype), b_OR.to(dtype)
        weight = weight_IO.to(dtype)
        result_TO = x @ weight if bias_O is None else torch.addmm(bias_O.to(dtype), x, weight)
        adapted = x if dropped_TI is None else dropped_TI.to(dtype)
        inner_TR = adapted @ a.T
        result_TO.addmm_(inner_TR, b.T, alpha=scaling)
        ctx.save_for_backward(adapted, inner_TR, weight_IO, a, b)
        ctx.scaling, ctx.dtypes = scaling, (x_TI.dtype, a_RI.dtype)
        return result_TO

    @staticmethod
    def backward(ctx, grad_TO):
        adapted, inner_TR, weight_IO, a, b = ctx.saved_tensors
        wants_x, wants_dropped = ctx.needs_input_grad[:2]
        inner_grad_TR = (grad_TO @ b).mul_(ctx.scaling)
        grad_a, grad_b = inner_grad_TR.T @ adapted, (grad_TO.T @ inner_TR).mul_(ctx.scaling)
        grad_x = grad_TO @ weight_IO.to(grad_TO.dtype).T if wants_x else None
        if wants_x and not wants_dropped:  # then x itself went through the adapter
            grad_x.addmm_(inner_grad_TR, a)
        grad_dropped = inner_grad_TR @ a if wants_dropped else None
        inputs, adapter = ctx.dtypes
        grads = (grad_x, grad_dropped, None, None, grad_a, grad_b)
        return (*_in_dtypes(grads, (inputs, inputs, None, None, adapter, adapter)), None, None)


class _DirectedProduct(torch.autograd.Function):
    """g ⊙ (xW + scaling · xAᵀBᵀ) + b with g = magnitude / norm. T tokens, I inputs, O outputs, R rank. W, b are frozen.

    With dropout the input of all but one plain xW is the dropped one d, as in peft: xW + b + g ⊙ z − dW with
    z = dW + scaling · dAᵀBᵀ.
    """

    @staticmethod
    def forward(ctx, x_TI, dropped_TI, weight_IO, bias_O, a_RI, b_OR, magnitude_O, norm_O, scaling, dtype):
        x, a, b, weight = x_TI.to(dtype), a_RI.to(dtype), b_OR.to(dtype), weight_IO.to(dtype)
        adapted = x if dropped_TI is None else dropped_TI.to(dtype)
        plain_TO, inner_TR = adapted @ weight, adapted @ a.T
        z_TO = torch.addmm(plain_TO, inner_TR, b.T, alpha=scaling)
        gain_O = (magnitude_O / norm_O).to(dtype)
        if dropped_TI is None:
            result_TO = z_TO * gain_O
        else:
            result_TO = torch.addmm(plain_TO.neg_(), x, weight).addcmul_(z_TO, gain_O)
        if bias_O is not None:
            result_TO += bias_O.to(dtype)
        ctx.save_for_backward(adapted, inner_TR, z_TO, weight_IO, a, b, gain_O, norm_O)
        ctx.scaling, ctx.dtypes = scaling, (x_TI.dtype, a_RI.dtype, magnitude_O.dtype)
        return result_TO

    @staticmethod
    def backward(ctx, grad_TO):
        adapted, inner_TR, z_TO, weight_IO, a, b, gain_O, norm_O = ctx.saved_tensors
        wants_x, wants_dropped = ctx.needs_input_grad[:2]
        weight_OI = weight_IO.to(grad_TO.dtype).T
        grad_magnitude = (grad_TO * z_TO).sum(0, dtype=norm_O.dtype) / norm_O
        scaled_TO = grad_TO * gain_O
        inner_grad_TR = (scaled_TO @ b).mul_(ctx.scaling)
        grad_a, grad_b = inner_grad_TR.T @ adapted, (scaled_TO.T @ inner_TR).mul_(ctx.scaling)
        grad_x = grad_dropped = None
        if wants_dropped:
            grad_x = grad_TO @ weight_OI if wants_x else None
            grad_dropped = torch.addmm((scaled_TO - grad_TO) @ weight_OI, inner_grad_TR, a)
        elif wants_x:
            grad_x = (scaled_TO @ weight_OI).addmm_(inner_grad_TR, a)
        inputs, adapter, of_magnitude = ctx.dtypes
        grads = (grad_x, grad_dropped, None, None, grad_a, grad_b, grad_magnitude)
        dtypes = (inputs, inputs, None, None, adapter, adapter, of_magnitude)
        return (*_in_dtypes(grads, dtypes), None, None, None)


def _in_dtypes(grads: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None]) -> list[Tensor | None]:
    """Gradients in the dtypes of what they are of; None stays None."""
    return [None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]


class AdaptedLinear(lora.Linear):
    """A linear layer under LoRA (Hu et al. 2021, eq. 3) or DoRA (Liu et al. 2024, eq. 5 and 11), in few passes.

    peft's makes three results as wide as the layer and adds them up, casts the input to float32 for the adapter, and
    autocast casts it back. For DoRA it multiplies BA out and adds it to W, for the norms of the sum alone; here they
    come from what W, B and A give without it. What does something else (several adapters, a trained bias) goes peft's
    way.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = [name for name in self.active_adapters if name in self.lora_A]
        base, name = self.base_layer, names[0] if names else None
        plain = type(base) in (nn.Linear, Conv1D) and not (args or kwargs or self.disable_adapters or self.merged)
        plain &= not any(parameter.requires_grad for parameter in base.parameters())  # peft's bias="all" trains some
        if not plain or len(names) != 1 or self.lora_bias[name]:
            return super().forward(x, *args, **kwargs)
        variant = self.lora_variant.get(name)
        if variant is not None and type(variant) is not DoraLinearVariant:
            return super().forward(x, *args, **kwargs)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        drop = self.lora_dropout[name]
        x_TI = x.flatten(0, -2)
        dropped_TI = drop(x_TI) if self.training and getattr(drop, "p", 0) else None
        weight_IO = base.weight if isinstance(base, Conv1D) else base.weight.T
        adapter = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        with torch.autocast(device, enabled=False):
            if variant is None:
                result_TO = _AdaptedProduct.apply(x_TI, dropped_TI, weight_IO, base.bias, *adapter, dtype)
            else:
                a_RI, b_OR, scaling = adapter
                magnitude_O = self.lora_magnitude_vector[name].weight
                norm_O = self._norms(weight_IO, a_RI, b_OR, scaling)
                result_TO = _DirectedProduct.apply(
                    x_TI, dropped_TI, weight_IO, base.bias, a_RI, b_OR, magnitude_O, norm_O, scaling, dtype
                )
        return result_TO.view(*x.shape[:-1], -1)

    @torch.no_grad()
    def _norms(self, weight_IO: Tensor, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
        """‖w + scaling · (BA)ᵀ‖ of each output's weights w, (O,): ‖w‖² + 2s⟨w, (BA)ᵀ⟩ + s²‖(BA)ᵀ‖², and the root.

        It has no gradient (Liu et al. 2024, section 4.3). ‖w‖² is computed once, since W is frozen.
        """
        known = (weight_IO.data_ptr(), weight_IO.dtype, weight_IO._version)
        if getattr(self, "_squares_of", None) != known:
            wide = torch.promote_types(weight_IO.dtype, torch.float32)
            self._squares_of, self._squares_O = known, weight_IO.to(wide).square().sum(0)
        across_OR = (a_RI.to(weight_IO.dtype) @ weight_IO).T.to(self._squares_O.dtype)
        a_RI, b_OR = a_RI.to(across_OR.dtype), b_OR.to(across_OR.dtype)
        added_OR = (2 * across_OR).add_(b_OR @ (a_RI @ a_RI.T), alpha=scaling).mul_(b_OR)
        return torch.add(self._squares_O, added_OR.sum(1), alpha=scaling).clamp_(min=0).sqrt_()


STANDS_FOR = {nn.Dropout: Dropout, NewGELUActivation: GELU, lora.Linear: AdaptedLinear}


def use_in(model: nn.Module) -> None:
    """Let `model` use this module's classes in place of the plain ones, which hold the same."""
    for module in model.modules():
        if type(module) in STANDS_FOR:
            module.__class__ = STANDS_FOR[type(module)]


def attention(
    query_HQD: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float, share: float
) -> Tensor:
    """softmax(scale · QKᵀ)V for the last Q of K positions, each of which sees itself and what came before.

    Vaswani et al. 2017, eq. 1, with dropout of a `share` of the weights. `keys` and `values` come in pieces (G, ·, D)
    that are K long together; H query heads share G of them, H/G in a row each. Returns (H, Q, D). torch's own kernels
    for a CPU take 3 to 5 times as long in bfloat16, and twice as long with dropout; this one holds the weights, H · Q ·
    K numbers, for backward.
    """
    heads, queries, width = query_HQD.shape
    groups, length = len(keys[0]), sum(key.shape[1] for key in keys)
    # Zeros at the end, after all that counts: a product wants its rows to begin aligned, in bfloat16 above all.
    query = _aligned([query_HQD * scale])
    key_GKD, value_GKD = _aligned(keys), _aligned(values)
    scores = torch.bmm(query.reshape(groups, -1, width), key_GKD.transpose(1, 2)).view(heads, query.shape[1], -1)
    first, (_, rows, columns) = length - queries, scores.shape
    size = 1 << max(first + rows, columns).bit_length()
    scores += _causal_bias(size, scores.dtype)[first : first + rows, :columns]
    weights = dropout(scores.softmax(-1), share).view(groups, -1, columns)
    return torch.bmm(weights, value_GKD).view(heads, rows, width)[:, :queries]


def _aligned(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces (·, n, D) end to end, and zeros up to a multiple of `ALIGNED`."""
    heads, _, width = pieces[0].shape
    added = -sum(piece.shape[1] for piece in pieces) % ALIGNED
    return torch.cat([*pieces, pieces[0].new_zeros(heads, added, width)], 1)


@functools.cache
def _causal_bias(size: int, dtype: torch.dtype) -> Tensor:
    """(size, size): −∞ above the diagonal, where a key comes after its query, and 0 elsewhere."""
    return torch.full((size, size), -torch.inf, dtype=dtype).triu(1)
