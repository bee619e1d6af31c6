"""What a CPU computes in fewer passes over memory than the plain modules do: dropout, GELU, LoRA, DoRA.

On two cores a training step of GPT-2 is one half matrix products and one half passes over their results, so these are
worth as much as the products. Functions and distributions are those of the modules they stand for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners import ia3, lora, oft, vera
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from finllm.cpu.adapted import RotatedLinear, ScaledLinear, VectorLinear
from finllm.cpu.products import PIECE, Product, dtype_of, has_amx, product


def kept(like: Tensor, share: float) -> Tensor:
    """A mask in shape and dtype of `like`: 0 for a random `share` of its numbers and 1 for the others.

    torch draws a CPU's Bernoulli numbers one by one, in 6 ns each. Sixteen random bits are enough for one, and SFC64
    makes four of those in 2 ns. Its seed comes from torch's generator, so that a run resumes exactly.
    """
    seed = int(torch.randint(2**62, ()))
    words = np.random.SFC64(seed).random_raw(-(-like.numel() // 4)).view(np.int16)[: like.numel()]
    return torch.from_numpy(words >= round(share * 2**16) - 2**15).view(like.shape).to(like.dtype)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, share):
        mask = kept(values, share)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - share)
        return (values * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return (grad * mask).mul_(ctx.scale), None


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


# Autograd turns each gradient below into the dtype of the tensor that it is of.


class _AdaptedProduct(torch.autograd.Function):
    """xW + b + scaling · (dropped x)AᵀBᵀ. T tokens, I inputs, O outputs, R rank. W is frozen, as is b."""

    @staticmethod
    def forward(ctx, x_TI, dropped_TI, weight_IO, bias_O, a_RI, b_OR, scaling, dtype):
        x, a, b = x_TI.to(dtype), a_RI.to(dtype), b_OR.to(dtype)
        weight = weight_IO.to(dtype)
        result_TO = product(x, weight, None if bias_O is None else bias_O.to(dtype))
        adapted = x if dropped_TI is None else dropped_TI.to(dtype)
        inner_TR = adapted @ a.T
        result_TO.addmm_(inner_TR, b.T, alpha=scaling)
        ctx.save_for_backward(adapted, inner_TR, weight_IO, a, b)
        ctx.scaling = scaling
        return result_TO

    @staticmethod
    def backward(ctx, grad_TO):
        adapted, inner_TR, weight_IO, a, b = ctx.saved_tensors
        wants_x, wants_dropped = ctx.needs_input_grad[:2]
        inner_grad_TR = (grad_TO @ b).mul_(ctx.scaling)
        grad_a, grad_b = inner_grad_TR.T @ adapted, (grad_TO.T @ inner_TR).mul_(ctx.scaling)
        grad_x = product(grad_TO, weight_IO.to(grad_TO.dtype).T) if wants_x else None
        if wants_x and not wants_dropped:  # then x itself went through the adapter
            grad_x.addmm_(inner_grad_TR, a)
        grad_dropped = inner_grad_TR @ a if wants_dropped else None
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None, None


class _DirectedProduct(torch.autograd.Function):
    """g ⊙ (xW + scaling · xAᵀBᵀ) + b with g = magnitude / norm. T tokens, I inputs, O outputs, R rank. W, b are frozen.

    With dropout the input of all but one plain xW is the dropped one d, as in peft: xW + b + g ⊙ z − dW with
    z = dW + scaling · dAᵀBᵀ.
    """

    @staticmethod
    def forward(ctx, x_TI, dropped_TI, weight_IO, bias_O, a_RI, b_OR, magnitude_O, norm_O, scaling, dtype):
        x, a, b, weight = x_TI.to(dtype), a_RI.to(dtype), b_OR.to(dtype), weight_IO.to(dtype)
        adapted = x if dropped_TI is None else dropped_TI.to(dtype)
        plain_TO, inner_TR = product(adapted, weight), adapted @ a.T
        z_TO = torch.addmm(plain_TO, inner_TR, b.T, alpha=scaling)
        gain_O = (magnitude_O / norm_O).to(dtype)
        scaled = z_TO * gain_O
        result_TO = scaled if dropped_TI is None else product(x, weight).sub_(plain_TO).add_(scaled)
        if bias_O is not None:
            result_TO += bias_O
        ctx.save_for_backward(adapted, inner_TR, z_TO, weight_IO, a, b, gain_O, norm_O)
        ctx.scaling = scaling
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
            grad_x = product(grad_TO, weight_OI)
            grad_dropped = product(scaled_TO - grad_TO, weight_OI).addmm_(inner_grad_TR, a)
        elif wants_x:
            grad_x = product(scaled_TO, weight_OI).addmm_(inner_grad_TR, a)
        return grad_x, grad_dropped, None, None, grad_a, grad_b, grad_magnitude, None, None, None


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
        dtype, drop = dtype_of(x), self.lora_dropout[name]
        x_TI = x.flatten(0, -2)
        dropped_TI = drop(x_TI) if self.training and getattr(drop, "p", 0) else None
        weight_IO = base.weight if isinstance(base, Conv1D) else base.weight.T
        adapter = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        with torch.autocast(x.device.type, enabled=False):
            if variant is None:
                result_TO = _AdaptedProduct.apply(x_TI, dropped_TI, weight_IO, base.bias, *adapter, dtype)
            else:
                a_RI, b_OR, scaling = adapter
                magnitude_O = self.lora_magnitude_vector[name].weight
                norm_O = self._norms(weight_IO, a_RI, b_OR, scaling)
                result_TO = _DirectedProduct.apply(
                    x_TI, dropped_TI, weight_IO, base.bias, a_RI, b_OR, magnitude_O, norm_O, scaling, dtype
                )
        return result_TO.unflatten(0, x.shape[:-1])

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


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _plain_product(self, input, self.weight.T, self.bias)


class Projection(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return _plain_product(self, x, self.weight, self.bias)


def _plain_product(layer: nn.Module, x: Tensor, weight_IO: Tensor, bias_O: Tensor | None) -> Tensor:
    x_TI = x.flatten(0, -2)
    if len(x_TI) <= PIECE:  # as one token after another is written: then the plain layer is faster
        return super(type(layer), layer).forward(x)
    dtype = dtype_of(x)
    with torch.autocast(x.device.type, enabled=False):
        return Product.apply(x_TI, weight_IO, bias_O, dtype).unflatten(0, x.shape[:-1])


STANDS_FOR = {
    nn.Dropout: Dropout, NewGELUActivation: GELU, lora.Linear: AdaptedLinear, oft.Linear: RotatedLinear,
    vera.Linear: VectorLinear, ia3.Linear: ScaledLinear,
}  # fmt: skip


def use_in(model: nn.Module) -> None:
    """Let `model` use this module's classes in place of the plain ones, which hold the same."""
    for module in model.modules():
        if type(module) in STANDS_FOR:
            module.__class__ = STANDS_FOR[type(module)]
    if has_amx():  # elsewhere the plain layers are as fast
        head = model.get_output_embeddings() if isinstance(model, PreTrainedModel | PeftModel) else None
        under = {id(module.base_layer) for module in model.modules() if isinstance(module, BaseTunerLayer)}
        for module in model.modules():
            if module is not head and id(module) not in under and type(module) in (nn.Linear, Conv1D):
                module.__class__ = Linear if type(module) is nn.Linear else Projection
