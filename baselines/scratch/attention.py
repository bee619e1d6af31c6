"""Multi-head attention: the formula as it stands in the paper, the same by torch's fast kernel, and the module.

Shapes: see model.py. Queries are T tokens, keys and values S tokens. In self-attention both are of one text; in
cross-attention the queries are of the answer being written and the keys of the prompt that the encoder has read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from baselines.scratch.positional import Rotation


@dataclass(frozen=True)
class Visible:
    """Which keys a query sees: all, unless one of these says otherwise."""

    causal: bool = False  # query t sees keys 0 … t and none after it (Vaswani et al. 2017, section 3.2.3); S = T
    keys_BS: torch.Tensor | None = None  # True where a key is text and False where it is padding

    def mask(self, k_BHSD: torch.Tensor) -> torch.Tensor | None:
        """True where query t sees key s, in a shape that broadcasts to BHTS; None where every query sees every key."""
        mask = None if self.keys_BS is None else self.keys_BS[:, None, None, :]
        if self.causal:
            length = k_BHSD.shape[2]
            past_TS = torch.ones(length, length, dtype=torch.bool, device=k_BHSD.device).tril()
            mask = past_TS if mask is None else past_TS & mask
        return mask


class Keys(NamedTuple):
    """What queries look at."""

    k_BHSD: torch.Tensor
    v_BHSD: torch.Tensor
    visible: Visible

    def keep(self, rows: torch.Tensor) -> Keys:
        """Those of these texts of the batch, in this order; one may come more than once."""
        keys_BS = self.visible.keys_BS
        visible = Visible(self.visible.causal, None if keys_BS is None else keys_BS[rows])
        return Keys(self.k_BHSD[rows], self.v_BHSD[rows], visible)


def attend_plain(q_BHTD: torch.Tensor, keys: Keys) -> torch.Tensor:
    """softmax(Q Kᵀ / √D) V (Vaswani et al. 2017, eq. 1), written out to be read and to test `attend_fast` against."""
    scores_BHTS = q_BHTD @ keys.k_BHSD.transpose(-2, -1) / math.sqrt(q_BHTD.shape[-1])
    mask = keys.visible.mask(keys.k_BHSD)
    if mask is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask, -math.inf)
    return scores_BHTS.softmax(dim=-1) @ keys.v_BHSD


def attend_fast(q_BHTD: torch.Tensor, keys: Keys) -> torch.Tensor:
    """`attend_plain` by torch's fused kernel, which never holds the scores of all pairs (Dao et al. 2022).

    The kernel knows the causal rule by itself and is faster so, but takes the rule or a mask, not both.
    """
    k_BHSD, v_BHSD, visible = keys
    if visible.causal and visible.keys_BS is None:
        return functional.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=True)
    return functional.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=visible.mask(k_BHSD))


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

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these texts of the batch, as `Keys.keep`."""
        self.k_BHSD, self.v_BHSD = self.k_BHSD[rows], self.v_BHSD[rows]


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

    def keys_of(self, x_BSC: torch.Tensor, rotation: Rotation | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """k_BHSD and v_BHSD of tokens to look at; with rotary positions the keys are turned, the values are not."""
        k_BHSD, v_BHSD = self._split(self.key(x_BSC)), self._split(self.value(x_BSC))
        return (rotation(k_BHSD) if rotation else k_BHSD), v_BHSD

    def forward(self, x_BTC: torch.Tensor, keys: Keys, rotation: Rotation | None = None) -> torch.Tensor:
        """What each of the T tokens draws from the keys: BTC."""
        q_BHTD = self._split(self.query(x_BTC))
        heads_BHTD = attend_fast(rotation(q_BHTD) if rotation else q_BHTD, keys)
        return self.output(heads_BHTD.transpose(1, 2).flatten(2))  # Concat: BHTD to BTC

    def _split(self, x_BTC: torch.Tensor) -> torch.Tensor:
        return x_BTC.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # BTC to BHTD
