"""What a layer is made of: attention looks across tokens, the feed-forward net works on each. Shapes: see model.py."""

import torch
from torch import nn
from torch.nn import functional

from baselines.scratch.attention import KeyValueCache, MultiHeadAttention


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between them, the same for every token, F wide inside.

    FFN(x) = φ(x W_1 + b_1) W_2 + b_2 (Vaswani et al. 2017, eq. 2), there with φ = ReLU; here
    φ = GELU(x) = x Φ(x), Φ the standard normal distribution function (Hendrycks and Gimpel 2016, section 2).
    """

    def __init__(self, width: int, feed_forward: int):
        super().__init__()
        self.inner = nn.Linear(width, feed_forward)
        self.output = nn.Linear(feed_forward, width)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        inner_BTF = functional.gelu(self.inner(x_BTC))
        return self.output(inner_BTF)


class Block(nn.Module):
    """One layer: x + Attention(Norm(x)), then x + FFN(Norm(x)).

    The norm stands before each part, not after the sum as in Vaswani et al. 2017: gradients are then well-behaved from
    the first step on (Xiong et al. 2020, figure 1b). Norm is LayerNorm (Ba et al. 2016, section 3). Dropout falls on
    the output of each part before it is added (Vaswani et al. 2017, section 5.4).
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, feed_forward)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTC: torch.Tensor,
        causal: bool,
        visible_BS: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        x_BTC = x_BTC + self.dropout(self.attention(self.attention_norm(x_BTC), causal, visible_BS, cache))
        return x_BTC + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTC)))
