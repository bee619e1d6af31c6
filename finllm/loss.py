"""Cross-entropy of the supervised positions, without the logits of all others.

A causal model's vocabulary projection is the largest single product of a step, and most of its rows (prompt, padding)
teach nothing. Only supervised positions go through it here, in chunks, and each chunk's gradient is formed at once, so
no logits outlive their chunk. The idea of forming the gradient in the forward pass is that of Liger's fused linear
cross-entropy (Hsu et al. 2024, section 3.2).

N supervised positions, C model width, V vocabulary.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from finllm.tokens import IGNORED

CHUNK = 1024  # positions a chunk: at V = 50,000 some 200 MB of float32 logits


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NC, weight_VC, bias_V, labels_N):
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        nll_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_NC.device)
        correct_N = torch.empty(len(labels_N), dtype=torch.bool, device=hidden_NC.device)
        grad_hidden = torch.empty_like(hidden_NC) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VC, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias else None
        for start in range(0, len(labels_N), CHUNK):
            rows = slice(start, start + CHUNK)
            hidden, labels = hidden_NC[rows], labels_N[rows, None]
            logits = linear(hidden, weight_VC, bias_V)
            correct_N[rows] = logits.argmax(-1) == labels[:, 0]
            logits = logits.float()
            log_normaliser = logits.logsumexp(-1, keepdim=True)
            nll_N[rows] = (log_normaliser - logits.gather(-1, labels))[:, 0]
            if not (needs_hidden or needs_weight or needs_bias):
                continue
            # d nll / d logits = softmax(logits) - one_hot(label)
            grad_logits = logits.sub_(log_normaliser).exp_()
            grad_logits.scatter_add_(-1, labels, torch.full_like(labels, -1, dtype=grad_logits.dtype))
            if needs_bias:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden.dtype)
            if needs_hidden:
                grad_hidden[rows] = grad_logits @ weight_VC
            if needs_weight:
                grad_weight += grad_logits.T @ hidden
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight_VC.dtype
        ctx.mark_non_differentiable(nll_N, correct_N)
        return nll_N.sum(), nll_N, correct_N

    @staticmethod
    def backward(ctx, grad_sum, _grad_nll, _grad_correct):
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_sum.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_sum).to(ctx.weight_dtype),
            None if grad_bias is None else grad_bias * grad_sum,
            None,
        )


def linear_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, bias_V: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihoods of `labels_N` under softmax(hidden · weightᵀ + bias), in nats.

    Returns their sum (a scalar that gradients flow from), each position's own (N,) float32, and whether the label was
    the most likely token (N,); the last two carry no gradient. Under autocast the products are made in its dtype.
    With N = 0 the sum is 0 and all gradients are zero.
    """
    device = hidden_NC.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_NC, weight_VC = hidden_NC.to(dtype), weight_VC.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden_NC, weight_VC, bias_V, labels_N)


@dataclass
class SupervisedOutput(ModelOutput):
    """`nll` summed with gradient, `nll_N` of each supervised position, `mask` (B, T-1) of where these stand."""

    nll: torch.Tensor = None
    nll_N: torch.Tensor = None
    mask: torch.Tensor = None


def add_supervised_head(model: PreTrainedModel) -> None:
    """Teach `model.forward` the argument `supervised_head=True`, with which it returns losses and builds no logits.

    It is the model's own forward that changes, so that DDP's hooks and peft's wrappers stay on the way.
    """
    forward = model.forward

    @functools.wraps(forward)
    def with_supervised_head(self, *args, labels=None, supervised_head=False, **kwargs):
        if not supervised_head:
            return forward(*args, **kwargs) if labels is None else forward(*args, labels=labels, **kwargs)
        hidden_BTC = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        labels_BT = labels[:, 1:]
        mask = labels_BT != IGNORED
        head = self.get_output_embeddings()
        nll, nll_N, _ = linear_cross_entropy(hidden_BTC[mask], head.weight, labels_BT[mask], head.bias)
        return SupervisedOutput(nll=nll, nll_N=nll_N, mask=mask)

    model.forward = types.MethodType(with_supervised_head, model)
