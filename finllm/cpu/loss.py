"""Cross-entropy of the supervised positions, without the logits of all others.

A causal model's vocabulary projection is the largest single product of a step, and most of its rows (prompt, padding)
teach nothing. Only supervised positions go through it here, in chunks, and each chunk's gradient is formed at once, so
no logits outlive their chunk. The idea of forming the gradient in the forward pass is that of Liger's fused linear
cross-entropy (Hsu et al. 2024, section 3.2).

N supervised positions, C model width, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, pad
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from finllm.cpu.products import has_amx, product
from finllm.text.tokens import IGNORED

CHUNK = 2048  # positions a chunk: at V = 50,000 some 200 MB of bfloat16 logits, 400 of float32
BLOCK = 16  # positions of a chunk whose logits are float32 at a time: some 3 MB, which stay in the cache
ALIGNED = 64  # the vocabulary is padded to a multiple of it, for products whose rows begin aligned


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NC, weight_VC, bias_V, labels_N, dtype, with_gradient, tied):
        # Under no_grad, autograd still says that the weights need theirs.
        needed = [with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        needs_hidden, needs_weight, needs_bias = needed
        vocabulary = len(weight_VC)
        weight, bias = aligned_head(weight_VC, bias_V, dtype)
        count, size = len(labels_N), _chunk(len(labels_N))
        nll_N = torch.empty(count, dtype=torch.float32, device=hidden_NC.device)
        grad_hidden = torch.empty_like(hidden_NC) if needs_hidden else None
        grad_weight = grad_bias = None
        logits_NV = weight.new_empty(size, len(weight))  # of one chunk after the other
        for start in range(0, max(1, count), size):  # one empty chunk where nothing is supervised
            rows = slice(start, start + size)
            labels = labels_N[rows]
            hidden = hidden_NC[rows].to(dtype)
            if (
                needs_weight and has_amx()
            ):  # its gradient is a product over all positions, see finllm.cpu.joined.collate
                hidden = pad(hidden, (0, 0, 0, -len(hidden) % ALIGNED))
            logits = logits_NV[: len(hidden)]
            if bias is None:
                torch.mm(hidden, weight.T, out=logits)
            else:
                torch.addmm(bias, hidden, weight.T, out=logits)
            _likelihood(logits, vocabulary, labels, nll_N[rows], with_gradient=any(needed))
            if needs_hidden:
                grad_hidden[rows] = product(logits, weight)[: len(labels)]
            if needs_weight:
                added = (logits.T @ hidden)[:vocabulary]
                grad_weight = added.float() if grad_weight is None else grad_weight.add_(added)
            if needs_bias:
                summed = logits[:, :vocabulary].sum(0, dtype=torch.float32)
                grad_bias = summed if grad_bias is None else grad_bias.add_(summed)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype, ctx.tied = weight_VC.dtype, tied
        ctx.mark_non_differentiable(nll_N)
        return nll_N.sum(), nll_N

    @staticmethod
    def backward(ctx, grad_sum, _grad_nll):
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        if grad_weight is not None:
            # In place, since it is large; a second backward through it is refused by autograd's own check.
            grad_weight = grad_weight.mul_(grad_sum).to(ctx.weight_dtype)
            if ctx.tied is not None:
                ctx.tied.of_head, grad_weight = grad_weight, None
        return (
            None if grad_hidden is None else grad_hidden * grad_sum,
            grad_weight,
            None if grad_bias is None else grad_bias * grad_sum,
            *[None] * 4,
        )


@dataclass
class TiedGradient:
    """The head's gradient of a weight that it shares with the embedding, waiting for the embedding's."""

    of_head: Tensor | None = None


class _TiedLookup(torch.autograd.Function):
    """The embedding of ids, whose gradient is added into the head's.

    Autograd alone would make two more tensors as large as the vocabulary, mostly of zeros, and add them up. The lookup
    comes first, so its backward comes last.
    """

    @staticmethod
    def forward(ctx, weight_VC, ids_BT, tied):
        ctx.save_for_backward(ids_BT)
        ctx.tied = tied
        return embedding(ids_BT, weight_VC)

    @staticmethod
    def backward(ctx, grad_BTC):
        (ids_BT,) = ctx.saved_tensors
        grad_VC, ctx.tied.of_head = ctx.tied.of_head, None
        grad_NC = grad_BTC.flatten(0, -2).to(grad_VC.dtype)
        return grad_VC.index_add_(0, ids_BT.flatten(), grad_NC), None, None


def aligned_head(weight_VC: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in `dtype`, with zeros for entries of the vocabulary up to a multiple of `ALIGNED`.

    Of a weight that does not train it is made once, and again when the weight has changed. One that trains may change
    in ways that torch does not count.
    """
    vocabulary, width = weight_VC.shape
    added = -vocabulary % ALIGNED
    bias = None if bias_V is None else pad(bias_V.to(dtype), (0, added))
    if not added and weight_VC.dtype == dtype:
        return weight_VC, bias
    state = (dtype, weight_VC.dtype, weight_VC.data_ptr(), weight_VC._version)
    known, weight = (None, None) if weight_VC.requires_grad else _FROZEN.get(weight_VC, (None, None))
    if known != state:
        weight = torch.empty(vocabulary + added, width, dtype=dtype, device=weight_VC.device)
        weight[:vocabulary], weight[vocabulary:] = weight_VC, 0
        if not weight_VC.requires_grad:
            _FROZEN[weight_VC] = state, weight
    return weight, bias


_FROZEN = WeakIdKeyDictionary()  # a head's weight: its state then, and what `aligned_head` made of it


def _chunk(count: int) -> int:
    """How many of `count` positions go through the head at a time, all but the last time."""
    pieces = max(1, -(-count // CHUNK))
    return -(-count // (pieces * ALIGNED)) * ALIGNED or ALIGNED


def _likelihood(logits_NV: Tensor, vocabulary: int, labels_N: Tensor, nll_N: Tensor, with_gradient: bool) -> None:
    """Write each position's negative log-likelihood into `nll_N`, and its gradient over the logits.

    d nll / d logits = softmax(logits) − one_hot(label), and 0 in the rows that are padding; in the columns that are,
    it is 0 by itself, of weights of zeros. Softmax and likelihood come of the same exponentials, in float32 and in one
    place in memory.
    """
    logits_NV[len(labels_N) :] = 0
    held = logits_NV.new_empty(BLOCK, vocabulary, dtype=torch.float32)
    for start in range(0, len(labels_N), BLOCK):
        rows = slice(start, start + BLOCK)
        labels = labels_N[rows, None]
        logits = logits_NV[: len(labels_N)][rows, :vocabulary]
        exact = held[: len(labels)].copy_(logits)
        own, largest = exact.gather(1, labels), exact.amax(1, keepdim=True)
        summed = exact.sub_(largest).exp_().sum(1, keepdim=True)
        nll_N[rows] = (summed.log() + largest - own)[:, 0]
        if with_gradient:
            exact.div_(summed)
            logits.copy_(exact.scatter_add_(1, labels, exact.new_full((), -1.0).expand_as(labels)))


def linear_cross_entropy(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    labels_N: Tensor,
    bias_V: Tensor | None = None,
    tied: TiedGradient | None = None,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods of `labels_N` under softmax(hidden · weightᵀ + bias), in nats.

    Returns their sum (a scalar that gradients flow from) and each position's own (N,) float32, which carries none.
    Under autocast the products are made in its dtype; softmax and likelihood are always float32, and so are the sums
    inside a product. With N = 0 the sum is 0 and all gradients are zero. With `tied`, the weight's gradient goes there.
    """
    device = hidden_NC.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NC.dtype
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden_NC, weight_VC, bias_V, labels_N, dtype, torch.is_grad_enabled(), tied)


def logits_at(forward: Callable[..., ModelOutput], where_BT: Tensor, **inputs: Any) -> Tensor:
    """The model's own logits at the positions that are True, (N, V), row by row. `forward` is a model or its forward.

    Where its forward can leave positions out, only those that some row asks for meet the head.
    """
    if "logits_to_keep" in inspect.signature(getattr(forward, "forward", forward)).parameters:
        some_T = where_BT.any(0)
        return forward(**inputs, logits_to_keep=some_T.nonzero()[:, 0]).logits[where_BT[:, some_T]]
    return forward(**inputs).logits[where_BT]


def is_plain(module: torch.nn.Module, kind: type[torch.nn.Module]) -> bool:
    """Whether `module` computes what its class does with its weights alone: no hook, wrapper or forward of its own."""
    hooks = (name for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"))
    return type(module) is kind and "forward" not in vars(module) and not any(getattr(module, name) for name in hooks)


def _is_plain_lookup(module: torch.nn.Module) -> bool:
    """Whether the module is a lookup and nothing else, in its gradient too."""
    return (
        is_plain(module, torch.nn.Embedding)
        and module.padding_idx is None
        and module.max_norm is None
        and not (module.scale_grad_by_freq or module.sparse)
    )


def _through(head: torch.nn.Module, hidden_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """As `linear_cross_entropy`, by way of a head that is more than its weight and bias."""
    nll_N = torch.cat(
        [
            cross_entropy(head(hidden).float(), labels, reduction="none")
            for hidden, labels in zip(hidden_NC.split(CHUNK), labels_N.split(CHUNK), strict=True)
        ]
    )
    return nll_N.sum(), nll_N.detach()


@dataclass
class SupervisedOutput(ModelOutput):
    """`nll` summed with gradient, `nll_N` of each supervised position, `mask` (B, T-1) of where these stand."""

    nll: torch.Tensor = None
    nll_N: torch.Tensor = None
    mask: torch.Tensor = None


def add_supervised_head(model: PreTrainedModel) -> None:
    """Teach `model.forward` the argument `supervised_head=True`, with which it returns losses and builds no logits.

    With `own_logits=True` too, the losses are those of the model's own logits, for heads that are more than a product.
    It is the model's own forward that changes, so that DDP's hooks and peft's wrappers stay on the way. So do hooks on
    the embedding, NEFTune's for one, and on the head: where there are any, the module itself is called.
    """
    forward = model.forward

    @functools.wraps(forward)
    def with_supervised_head(self, *args, labels=None, supervised_head=False, own_logits=False, **kwargs):
        if not supervised_head:
            return forward(*args, **kwargs) if labels is None else forward(*args, labels=labels, **kwargs)
        if own_logits:
            mask = labels[:, 1:] != IGNORED
            assert not args, "batches come by name"
            logits_NV = logits_at(forward, nn.functional.pad(mask, (0, 1)), **kwargs)
            nll_N = cross_entropy(logits_NV.float(), labels[:, 1:][mask], reduction="none")
            return SupervisedOutput(nll=nll_N.sum(), nll_N=nll_N.detach(), mask=mask)
        head, lookup, tied = self.get_output_embeddings(), self.get_input_embeddings(), None
        plain_head = is_plain(head, torch.nn.Linear)
        shared = plain_head and _is_plain_lookup(lookup) and lookup.weight is head.weight
        if shared and head.weight.requires_grad and "input_ids" in kwargs:
            tied = TiedGradient()
            kwargs["inputs_embeds"] = _TiedLookup.apply(head.weight, kwargs.pop("input_ids"), tied)
        hidden_BTC = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        labels_BT = labels[:, 1:]
        mask = labels_BT != IGNORED
        hidden_NC, labels_N = hidden_BTC[mask], labels_BT[mask]
        if plain_head:
            nll, nll_N = linear_cross_entropy(hidden_NC, head.weight, labels_N, head.bias, tied)
        else:
            nll, nll_N = _through(head, hidden_NC, labels_N)
        return SupervisedOutput(nll=nll, nll_N=nll_N, mask=mask)

    model.forward = types.MethodType(with_supervised_head, model)
