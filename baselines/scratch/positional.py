"""Where a token stands: without it, attention sees a bag of tokens. Shapes: see model.py."""

import torch
from torch import nn

from finllm.run import UserError


class SinusoidalPositions(nn.Module):
    """Fixed waves of growing length; defined for every position, also beyond those seen in training.

    Vaswani et al. 2017, section 3.5:
        PE(position, 2i)     = sin(position / 10000^(2i / C))
        PE(position, 2i + 1) = cos(position / 10000^(2i / C))
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, positions_BT: torch.Tensor) -> torch.Tensor:
        even_I = torch.arange(0, self.width, 2, device=positions_BT.device)  # 2i, C/2 of them
        angles_BTI = positions_BT[..., None] / 10000 ** (even_I / self.width)
        return torch.stack((angles_BTI.sin(), angles_BTI.cos()), dim=-1).flatten(-2)  # sin and cos take turns: BTC


class LearnedPositions(nn.Module):
    """One trained vector a position, `max_length` of them (Radford et al. 2018, section 4.1).

    A position beyond them has no vector: that is a `UserError`.
    """

    def __init__(self, max_length: int, width: int):
        super().__init__()
        self.table = nn.Embedding(max_length, width)

    def forward(self, positions_BT: torch.Tensor) -> torch.Tensor:
        longest = int(positions_BT.max()) + 1
        if longest > self.table.num_embeddings:
            raise UserError(
                f"a text of {longest:,} tokens: this model learned {self.table.num_embeddings:,} positions and has no "
                "vector for the others; shorten the text, or train with a larger max_length or positions: sinusoidal"
            )
        return self.table(positions_BT)
