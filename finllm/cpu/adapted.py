"""Layers under OFT, VeRA and IA3 in fewer passes over memory than peft makes, on a CPU: the same functions.

peft casts a layer's input to float32 for the adapter, autocast casts it back, and results as wide as the layer are made
one by one. What does something else (several adapters, another base layer, shared blocks) goes peft's way.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from peft.tuners import ia3, oft, vera
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from finllm.cpu.products import Product, dtype_of, product


class _Rotated(torch.autograd.Function):
    """xR with R of blocks on its diagonal. T tokens, I inputs, B blocks of K inputs."""

    @staticmethod
    def forward(ctx, x_TI, blocks_BKK, dtype):
        blocks = blocks_BKK.to(dtype)
        x_BTK = _cut(x_TI.to(dtype), len(blocks))
        ctx.save_for_backward(x_BTK, blocks)
        return _joined(x_BTK @ blocks)

    @staticmethod
    def backward(ctx, grad_TI):
        x_BTK, blocks = ctx.saved_tensors
        grad_BTK = _cut(grad_TI, len(blocks))
        grad_x = _joined(grad_BTK @ blocks.mT) if ctx.needs_input_grad[0] else None
        return grad_x, x_BTK.mT @ grad_BTK, None


def _cut(x_TI: Tensor, count: int) -> Tensor:
    """x in `count` blocks of its columns, (B, T, K), each in memory of its own: oneDNN would make that anew."""
    return x_TI.view(len(x_TI), count, -1).transpose(0, 1).contiguous()


def _joined(x_BTK: Tensor) -> Tensor:
    return x_BTK.transpose(0, 1).flatten(1)


class RotatedLinear(oft.Linear):
    """A linear layer under OFT (Qiu et al. 2023, eq. 5), its input turned by orthogonal blocks."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = [name for name in self.active_adapters if name in self.oft_R]
        rotation = self.oft_R[names[0]] if len(names) == 1 else None
        plain = rotation is not None and not (rotation.coft or rotation.block_share)
        if not plain or self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        blocks_BKK = rotation._cayley_batch(
            rotation.weight, rotation.block_size, rotation.use_cayley_neumann, rotation.num_cayley_neumann_terms
        )
        dtype = dtype_of(x)
        with torch.autocast(x.device.type, enabled=False):
            turned_TI = _Rotated.apply(x.flatten(0, -2), blocks_BKK, dtype)
        return self.base_layer(turned_TI.view(x.shape), *args, **kwargs)


class _VectorProduct(torch.autograd.Function):
    """xW + b + s ⊙ ((d ⊙ xAᵀ)Bᵀ). T tokens, I inputs, O outputs, R rank. W, b, A and B are frozen; d and s train."""

    @staticmethod
    def forward(ctx, x_TI, dropped_TI, weight_IO, bias_O, a_RI, b_OR, d_R, s_O, dtype):
        x, weight, a = x_TI.to(dtype), weight_IO.to(dtype), a_RI.to(dtype)
        inner_TR = (x if dropped_TI is None else dropped_TI.to(dtype)) @ a.T
        result_TO = product(x, weight, None if bias_O is None else bias_O.to(dtype))
        result_TO.addmm_((inner_TR * d_R).to(dtype), (s_O[:, None] * b_OR).to(dtype).T)
        ctx.save_for_backward(inner_TR, weight_IO, a, b_OR, d_R, s_O)
        return result_TO

    @staticmethod
    def backward(ctx, grad_TO):
        inner_TR, weight_IO, a, b_OR, d_R, s_O = ctx.saved_tensors
        wants_x, wants_dropped = ctx.needs_input_grad[:2]
        dtype = grad_TO.dtype
        outer_TR = grad_TO @ (s_O[:, None] * b_OR).to(dtype)
        grad_d = (outer_TR.to(d_R.dtype) * inner_TR).sum(0)
        grad_s = (grad_TO.T @ inner_TR * d_R * b_OR).sum(1)
        grad_inner_TR = (outer_TR * d_R).to(dtype)
        grad_x = product(grad_TO, weight_IO.to(dtype).T) if wants_x else None
        if wants_x and not wants_dropped:  # then x itself went through the adapter
            grad_x.addmm_(grad_inner_TR, a)
        grad_dropped = grad_inner_TR @ a if wants_dropped else None
        return grad_x, grad_dropped, None, None, None, None, grad_d, grad_s, None


class VectorLinear(vera.Linear):
    """A linear layer under VeRA (Kopiczko et al. 2024, eq. 2), whose vectors alone train."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = _only_adapter(self, self.vera_lambda_d, args or kwargs)
        if name is None:
            return super().forward(x, *args, **kwargs)
        base, dtype, drop = self.base_layer, dtype_of(x), self.vera_dropout[name]
        x_TI = x.flatten(0, -2)
        dropped_TI = drop(x_TI) if self.training and getattr(drop, "p", 0) else None
        weight_IO = base.weight if isinstance(base, Conv1D) else base.weight.T
        a_RI, b_OR = self.vera_A[name][:, : self.in_features], self.vera_B[name][: self.out_features]
        with torch.autocast(x.device.type, enabled=False):
            result_TO = _VectorProduct.apply(
                x_TI, dropped_TI, weight_IO, base.bias, a_RI, b_OR, self.vera_lambda_d[name], self.vera_lambda_b[name],
                dtype,
            )  # fmt: skip
        return result_TO.unflatten(0, x.shape[:-1])


def _scaled(values_TN: Tensor, scale_N: Tensor) -> Tensor:
    """values ⊙ scale, in the dtype of `values`, each number computed in that of `scale` and rounded once.

    torch multiplies bfloat16 by float32 by way of float32 copies as wide as the values, in the gradients too. A batch
    norm with weights reads and writes bfloat16 and has both gradients from one pass, the weights' summed in float32;
    with mean 0, variance 1 and nothing added to that, it multiplies by the weights and no more.
    """
    mean_N, variance_N = torch.zeros_like(scale_N), torch.ones_like(scale_N)
    return torch.batch_norm(values_TN, scale_N, None, mean_N, variance_N, False, 0.0, 0.0, False)


# What a batch norm takes together, of numbers and of their scale
TAKEN = {(each, each) for each in (torch.bfloat16, torch.float32, torch.float64)} | {(torch.bfloat16, torch.float32)}


class ScaledLinear(ia3.Linear):
    """A linear layer under IA3 (Liu et al. 2022, section 3.3): l ⊙ (xW + b), where it is feedforward (l ⊙ x)W + b."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = _only_adapter(self, self.ia3_l, args or kwargs)
        if name is None:
            return super().forward(x, *args, **kwargs)
        base, dtype, scale_N = self.base_layer, dtype_of(x), self.ia3_l[name].flatten()
        scaled = x.dtype if self.is_feedforward else dtype
        if (scaled, scale_N.dtype) not in TAKEN:
            return super().forward(x, *args, **kwargs)
        x_TI = x.flatten(0, -2)
        weight_IO = base.weight if isinstance(base, Conv1D) else base.weight.T
        with torch.autocast(x.device.type, enabled=False):
            if self.is_feedforward:
                x_TI = _scaled(x_TI, scale_N)
            result_TO = Product.apply(x_TI, weight_IO, base.bias, dtype)
            if not self.is_feedforward:
                result_TO = _scaled(result_TO, scale_N)
        return result_TO.unflatten(0, x.shape[:-1])


def _only_adapter(layer: vera.Linear | ia3.Linear, held: Container[str], others: Any) -> str | None:
    """The name of the one adapter on a frozen linear layer, of those that `held` has; None is for peft's way.

    `others` are what the layer was given besides its input.
    """
    names = [name for name in layer.active_adapters if name in held]
    base = layer.base_layer
    plain = type(base) in (nn.Linear, Conv1D) and not (others or layer.disable_adapters or layer.merged)
    plain &= not any(parameter.requires_grad for parameter in base.parameters())  # peft's bias="all" trains some
    return names[0] if plain and len(names) == 1 else None
