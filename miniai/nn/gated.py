"""A linear layer that gates itself."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class GatedLinear(nn.Linear):
    """A linear layer to twice the width: one half, through GELU, gates the other (Shazeer 2020, equation 6).

    >>> import torch
    >>> GatedLinear(8, 32)(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__(dim, inner * 2)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b inner"]:
        return self.gated(super().forward(x))

    @staticmethod
    def gated(both: Float[Tensor, "*b two_inner"]) -> Float[Tensor, "*b inner"]:
        """Values times gates, which come behind them."""
        value, gate = both.chunk(2, dim=-1)
        return value * F.gelu(gate)
