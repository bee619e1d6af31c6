"""What a layer is made of, and layers on layers. Attention looks across tokens, the feed-forward net works on each.

Shapes: see model.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from baselines.scratch.attention import Keys, KeyValueCache, MultiHeadAttention, Visible
from baselines.scratch.config import ModelConfig
from baselines.scratch.positional import LearnedPositions, Rotation, SinusoidalPositions


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
    """One layer: self-attention, in a decoder that has an encoder beside it also cross-attention, then FFN.

    Each part's output is added to what went in, with LayerNorm (Ba et al. 2016, section 3) before the part or after:
        pre    x + part(Norm(x))      gradients are well-behaved from the first step on (Xiong et al. 2020, figure 1b)
        post   Norm(x + part(x))      Vaswani et al. 2017, section 3.1
    Dropout falls on the output of each part before it is added (Vaswani et al. 2017, section 5.4).
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float, norm: str, cross: bool = False):
        super().__init__()
        self.norm_first = norm == "pre"
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        if cross:
            self.cross_attention_norm = nn.LayerNorm(width)
            self.cross_attention = MultiHeadAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, feed_forward)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTC: torch.Tensor,
        visible: Visible,
        rotation: Rotation | None = None,
        cache: KeyValueCache | None = None,
        prompt: Keys | None = None,
    ) -> torch.Tensor:
        """`prompt`: what cross-attention looks at; `cache`: where self-attention finds the tokens before these."""

        def attend(x_BTC: torch.Tensor) -> torch.Tensor:
            k_BHSD, v_BHSD = self.attention.keys_of(x_BTC, rotation)
            if cache is not None:
                k_BHSD, v_BHSD = cache.append(k_BHSD, v_BHSD)
            return self.attention(x_BTC, Keys(k_BHSD, v_BHSD, visible), rotation)

        x_BTC = self._add(x_BTC, self.attention_norm, attend)
        if prompt is not None:
            x_BTC = self._add(x_BTC, self.cross_attention_norm, lambda x_BTC: self.cross_attention(x_BTC, prompt))
        return self._add(x_BTC, self.feed_forward_norm, self.feed_forward)

    def _add(
        self, x_BTC: torch.Tensor, norm: nn.LayerNorm, part: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        if self.norm_first:
            return x_BTC + self.dropout(part(norm(x_BTC)))
        return norm(x_BTC + self.dropout(part(x_BTC)))


class Stack(nn.Module):
    """Positions, then `layers` blocks: an encoder, or a decoder with `cross`-attention or without.

    What makes it the one or the other is only what the caller lets it see. After the last pre-norm block stands one
    more norm, for nothing else has normed its sum (Radford et al. 2019, section 2.3).
    """

    def __init__(self, config: ModelConfig, cross: bool = False):
        super().__init__()
        self.rotated_width = config.width // config.heads if config.positions == "rotary" else None
        if config.positions == "learned":
            self.positions = LearnedPositions(config.max_length, config.width)
        elif config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.feed_forward, config.dropout, config.norm, cross)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()

    def forward(
        self,
        tokens_BTC: torch.Tensor,
        positions_BT: torch.Tensor,
        visible: Visible,
        caches: list[KeyValueCache] | None = None,
        prompt: list[Keys] | None = None,
    ) -> torch.Tensor:
        """hidden_BTC of token vectors at these positions; `caches` and `prompt` have one entry a layer."""
        rotation, x_BTC = None, tokens_BTC
        if self.rotated_width:
            rotation = Rotation.at(positions_BT, self.rotated_width)
        else:
            x_BTC = x_BTC + self.positions(positions_BT)
        x_BTC = self.dropout(x_BTC)
        nothing = [None] * len(self.blocks)
        for block, cache, keys in zip(self.blocks, caches or nothing, prompt or nothing, strict=True):
            x_BTC = block(x_BTC, visible, rotation, cache, keys)
        return self.norm(x_BTC)
