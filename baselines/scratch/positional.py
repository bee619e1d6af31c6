"""Where a token stands: without it, attention sees a bag of tokens. Shapes: see model.py, and I pairs of dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from finllm.errors import UserError


def wave_angles(positions_BT: torch.Tensor, width: int) -> torch.Tensor:
    """position / 10000^(2i / width) for i = 0 … width/2 - 1, in radians (Vaswani et al. 2017, section 3.5): BTI."""
    even_I = torch.arange(0, width, 2, device=positions_BT.device)  # 2i
    return positions_BT[..., None] / 10000 ** (even_I / width)


class SinusoidalPositions(nn.Module):
    """Fixed waves of growing length, added to the token; defined for every position, also beyond those of training.

    Vaswani et al. 2017, section 3.5:
        PE(position, 2i)     = sin(position / 10000^(2i / C))
        PE(position, 2i + 1) = cos(position / 10000^(2i / C))
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, positions_BT: torch.Tensor) -> torch.Tensor:
        angles_BTI = wave_angles(positions_BT, self.width)
        return torch.stack((angles_BTI.sin(), angles_BTI.cos()), dim=-1).flatten(-2)  # sin and cos take turns: BTC


class LearnedPositions(nn.Module):
    """One trained vector a position, `max_length` of them, added to the token (Radford et al. 2018, section 4.1).

    A position beyond them has no vector: that is a `UserError`.
    """

    def __init__(self, max_length: int, width: int):
        super().__init__()
        self.table = nn.Embedding(max_length, width)

    def forward(self, positions_BT: torch.Tensor) -> torch.Tensor:
        check_length(int(positions_BT.max()) + 1, self.table.num_embeddings)
        return self.table(positions_BT)


def check_length(tokens: int, limit: float) -> None:
    """Raise a `UserError` where a text is longer than the positions that a model has learned."""
    if tokens > limit:
        raise UserError(
            f"a text of {tokens:,} tokens: this model learned {limit:,} positions and has no vector for the others; "
            "shorten the text, or train with a larger max_length or positions: sinusoidal"
        )


@dataclass(frozen=True)
class Rotation:
    """Turns queries and keys by their positions, so that their product knows only how far apart they stand.

    Su et al. 2021, eq. 34, for each pair of dimensions (2i, 2i + 1) and a = position / 10000^(2i / D):
        (x_2i, x_2i+1)  becomes  (x_2i cos a - x_2i+1 sin a,  x_2i sin a + x_2i+1 cos a)
    """

    cos_B1TI: torch.Tensor
    sin_B1TI: torch.Tensor

    @classmethod
    def at(cls, positions_BT: torch.Tensor, head_width: int) -> Rotation:
        angles_B1TI = wave_angles(positions_BT, head_width)[:, None]
        return cls(angles_B1TI.cos(), angles_B1TI.sin())

    def __call__(self, x_BHTD: torch.Tensor) -> torch.Tensor:
        first_BHTI, second_BHTI = x_BHTD[..., 0::2], x_BHTD[..., 1::2]
        turned_BHTI = (
            first_BHTI * self.cos_B1TI - second_BHTI * self.sin_B1TI,
            first_BHTI * self.sin_B1TI + second_BHTI * self.cos_B1TI,
        )
        return torch.stack(turned_BHTI, dim=-1).flatten(-2).to(x_BHTD.dtype)
