"""Cross-entropy of the next token, in nats. Shapes: see model.py."""

import torch

IGNORED = -100  # the label of a position that nothing is learned from: prompt and padding


def cross_entropy(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[label] of each of N tokens: log Σ_v exp(logit_v) - logit_label (nll_N, float32)."""
    logits_NV = logits_NV.float()
    label_logit_N = logits_NV.gather(-1, labels_N[:, None]).squeeze(-1)
    return logits_NV.logsumexp(dim=-1) - label_logit_N


def next_token_pairs(hidden_BTC: torch.Tensor, labels_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The N positions whose next token is supervised, and those tokens: (hidden_NC, labels_N), row after row.

    ids_BT      bos  prompt prompt response eos  pad
    labels_BT  -100    -100   -100 response eos -100
    hidden of                 └─ predicts ┘└ predicts eos

    Only these N go through the vocabulary: V logits at every position would cost more than a small model itself.
    """
    hidden_BTC, next_BT = hidden_BTC[:, : labels_BT.shape[1] - 1], labels_BT[:, 1:]
    supervised_BT = next_BT != IGNORED
    return hidden_BTC[supervised_BT], next_BT[supervised_BT]
