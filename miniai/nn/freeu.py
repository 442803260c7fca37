"""FreeU: at painting time the way up trusts its own features more, and less the coarse part of what comes beside them.

Source: Si et al., "FreeU: Free Lunch in Diffusion U-Net" (2023, arXiv 2309.11497), section 3.3, with a constant in the
place of a factor for each place, as in the authors' first code for Stable Diffusion and in Diffusers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class FreeU:
    """The first half of the channels that come up, times `backbone`; the lowest frequencies of the map beside them,
    times `skip`. Both 1 change nothing.

    >>> up, beside = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    >>> up, beside = FreeU(backbone=1.5, skip=0.25)(up, beside)
    >>> up[0, :, 0, 0], beside.unique()  # a map that is the same all over has no other frequency than 0
    (tensor([1.5000, 1.0000]), tensor([0.2500]))
    """

    backbone: int | float
    skip: int | float

    def __call__(self, x: Float[Tensor, "b c h w"], beside: Float[Tensor, "b c2 h w"]) -> tuple[Tensor, Tensor]:
        half = x.shape[1] // 2
        stronger = torch.cat([x[:, :half] * self.backbone, x[:, half:]], dim=1)
        return stronger, scaled_low_frequencies(beside, self.skip)


def scaled_low_frequencies(x: Float[Tensor, "b c h w"], scale: int | float) -> Float[Tensor, "b c h w"]:
    """`x` with its frequencies 0 and -1, of rows and of columns, times `scale`; computed in float32."""
    frequencies, (h, w) = torch.fft.fft2(x.float()), x.shape[2:]
    frequencies[:, :, :: max(h - 1, 1), :: max(w - 1, 1)] *= scale  # the first and the last of each
    return torch.fft.ifft2(frequencies).real.to(x.dtype)
