"""Multi-head attention: the formula as it stands in the paper, the same by torch's fast kernel, and the module.

Shapes: see model.py. Queries are T tokens, keys and values S tokens; in self-attention over a whole text, S = T.
"""

import math

import torch
from torch import nn
from torch.nn import functional


def attend_plain(
    q_BHTD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    causal: bool,
    visible_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(Q Kᵀ / √D) V (Vaswani et al. 2017, eq. 1), written out to be read and to test `attend_fast` against.

    causal      query t sees keys 0 … t and none after it (section 3.2.3); needs S = T
    visible_BS  True where a key is text and False where it is padding; without it every key is text
    """
    scores_BHTS = q_BHTD @ k_BHSD.transpose(-2, -1) / math.sqrt(q_BHTD.shape[-1])
    if causal:
        past_TS = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=scores_BHTS.device).tril()
        scores_BHTS = scores_BHTS.masked_fill(~past_TS, -math.inf)
    if visible_BS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~visible_BS[:, None, None, :], -math.inf)
    weights_BHTS = scores_BHTS.softmax(dim=-1)
    return weights_BHTS @ v_BHSD


def attend_fast(
    q_BHTD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    causal: bool,
    visible_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """`attend_plain` by torch's fused kernel, which never holds the scores of all pairs (Dao et al. 2022).

    The kernel takes the causal rule or a mask, not both. No caller needs both: a text padded on its right is hidden
    from its own tokens by the causal rule alone.
    """
    assert not (causal and visible_BS is not None), "the causal rule already hides padding on the right"
    mask_B11S = None if visible_BS is None else visible_BS[:, None, None, :]
    return functional.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask_B11S, is_causal=causal)


class KeyValueCache:
    """The keys and values of the tokens that one attention layer has read, so that none is computed twice."""

    def __init__(self, k_BHSD: torch.Tensor, v_BHSD: torch.Tensor):
        """Take two buffers with room for S tokens; what they hold does not matter."""
        self.k_BHSD, self.v_BHSD = k_BHSD, v_BHSD
        self.length = 0

    def append(self, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add T tokens; returns the keys and values of all tokens so far."""
        start, self.length = self.length, self.length + k_BHTD.shape[2]
        self.k_BHSD[:, :, start : self.length] = k_BHTD
        self.v_BHSD[:, :, start : self.length] = v_BHTD
        return self.k_BHSD[:, :, : self.length], self.v_BHSD[:, :, : self.length]


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each in its own D = C / H dimensions (Vaswani et al. 2017, section 3.2.2).

    MultiHead(Q, K, V) = Concat(head_1, …, head_H) W^O, head_h = Attention(Q W_h^Q, K W_h^K, V W_h^V)
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)  # the W_h of all heads, stacked
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x_BTC: torch.Tensor,
        causal: bool,
        visible_BS: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        q_BHTD = self._split(self.query(x_BTC))
        k_BHSD, v_BHSD = self._split(self.key(x_BTC)), self._split(self.value(x_BTC))
        if cache is not None:
            k_BHSD, v_BHSD = cache.append(k_BHSD, v_BHSD)
        heads_BHTD = attend_fast(q_BHTD, k_BHSD, v_BHSD, causal, visible_BS)
        return self.output(heads_BHTD.transpose(1, 2).flatten(2))  # Concat: BHTD to BTC

    def _split(self, x_BTC: torch.Tensor) -> torch.Tensor:
        return x_BTC.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # BTC to BHTD
