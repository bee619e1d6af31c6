"""What training minimises, in nats: pure functions of logits and labels. Shapes: see model.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED = -100  # the label of a position that nothing is learned from: prompt and padding
SURE = -1e-6  # a log-probability above it counts as it, so that log(1 - p) stays finite


def next_token_pairs(
    hidden_BTC: torch.Tensor, labels_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The N positions whose next token is supervised, and those tokens, text after text.

    ids_BT      bos  prompt prompt response eos  pad
    labels_BT  -100    -100   -100 response eos -100
    hidden of                 └─ predicts ┘└ predicts eos

    Only these N go through the vocabulary: V logits at every position would cost more than a small model itself.
    Returns hidden_NC, labels_N and texts_N, the number of the text that each one is from. Padding is never among them.
    """
    hidden_BTC, next_BT = hidden_BTC[:, : labels_BT.shape[1] - 1], labels_BT[:, 1:]
    supervised_BT = next_BT != IGNORED
    return hidden_BTC[supervised_BT], next_BT[supervised_BT], supervised_BT.nonzero()[:, 0]


def cross_entropy(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[label] of each of N tokens: log Σ_v exp(logit_v) - logit_label (nll_N, float32)."""
    logits_NV = logits_NV.float()
    label_logit_N = logits_NV.gather(-1, labels_N[:, None]).squeeze(-1)
    return logits_NV.logsumexp(dim=-1) - label_logit_N


def smoothed_cross_entropy(logits_NV: torch.Tensor, labels_N: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy against (1 - ε) on the label and ε spread evenly over all V tokens (loss_N, float32).

    (1 - ε) · -log p(label) + ε · mean_v(-log p(v)), with ε = `smoothing` (Szegedy et al. 2016, section 7).
    """
    logits_NV = logits_NV.float()
    mean_nll_N = logits_NV.logsumexp(dim=-1) - logits_NV.mean(dim=-1)
    return (1 - smoothing) * cross_entropy(logits_NV, labels_N) + smoothing * mean_nll_N


def unlikelihood(logits_NV: torch.Tensor, labels_N: torch.Tensor, texts_N: torch.Tensor) -> torch.Tensor:
    """-Σ_c log(1 - p(c)) over the candidates c of each token: what may well be repeated and should not be (loss_N).

    Welleck et al. 2019, eq. 4, with the candidates of eq. 5: the supervised tokens before this one in the same text,
    each once, without the label itself. `texts_N` is the number of the text, as of `next_token_pairs`.
    """
    candidates_NV = torch.zeros_like(logits_NV, dtype=torch.bool)
    earlier_NN = (texts_N[:, None] == texts_N).tril(-1)
    later_K, earlier_K = earlier_NN.nonzero(as_tuple=True)
    candidates_NV[later_K, labels_N[earlier_K]] = True
    candidates_NV.scatter_(-1, labels_N[:, None], False)
    tokens_K, candidate_K = candidates_NV.nonzero(as_tuple=True)
    log_p_K = logits_NV.float().log_softmax(dim=-1)[tokens_K, candidate_K].clamp(max=SURE)
    loss_N = torch.zeros(len(labels_N), device=logits_NV.device)
    return loss_N.index_add(0, tokens_K, -torch.log(-torch.expm1(log_p_K)))  # log(1 - e^log p)


@dataclass(frozen=True)
class Objective:
    """Which loss a model is trained on: plain cross-entropy, and that is also what validation measures."""

    label_smoothing: float = 0.0  # ε of `smoothed_cross_entropy`
    unlikelihood: float = 0.0  # α: times `unlikelihood`, added (Welleck et al. 2019, eq. 6)

    def __call__(self, logits_NV: torch.Tensor, labels_N: torch.Tensor, texts_N: torch.Tensor) -> torch.Tensor:
        """The loss of each of N tokens: loss_N."""
        loss_N = smoothed_cross_entropy(logits_NV, labels_N, self.label_smoothing)
        if self.unlikelihood:
            loss_N = loss_N + self.unlikelihood * unlikelihood(logits_NV, labels_N, texts_N)
        return loss_N
