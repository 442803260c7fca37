"""A rectifier with a leak, a shift and a ceiling."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class GeneralReLU(nn.Module):
    """min(leaky_relu(x, leak) - subtract, cap); without arguments plain ReLU.

    - leak: the slope below 0, at least 0.
    - subtract: moves the output down; about 0.4 gives unit normal input a mean output of 0.
    - cap: the highest output, above -subtract; None for no ceiling.

    >>> GeneralReLU(leak=0.1, subtract=0.4, cap=2.0)(torch.tensor([-1.0, 0.0, 1.0, 9.0]))
    tensor([-0.5000, -0.4000,  0.6000,  2.0000])
    """

    def __init__(self, leak: int | float = 0.0, subtract: int | float = 0.0, cap: int | float | None = None) -> None:
        super().__init__()
        if leak < 0 or (cap is not None and cap <= -subtract):
            raise ValueError(f"a GeneralReLU needs leak >= 0 and cap > -subtract, not {leak}, {cap}, {subtract}")
        self.leak, self.subtract, self.cap = leak, subtract, cap

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        x = F.leaky_relu(x, self.leak) if self.leak else F.relu(x)
        if self.subtract:
            x = x - self.subtract
        return x if self.cap is None else torch.clamp(x, max=self.cap)

    def extra_repr(self) -> str:
        return f"leak={self.leak}, subtract={self.subtract}, cap={self.cap}"
