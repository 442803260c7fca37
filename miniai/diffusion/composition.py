"""Several conditions in one picture: their guidance is added up.

Source: Liu et al., "Compositional Visual Generation with Composable Diffusion Models" (2022), "Conjunction (AND)".
"""

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.diffusion.denoiser import ConditionalDenoiser, Denoiser


def composed(
    denoiser: ConditionalDenoiser,
    conditions: Float[Tensor, "m b n d"],
    weights: Float[Tensor, "b m"],
    negative: Float[Tensor, "b n d"],
    scale: int | float,
    *,
    interval: tuple[int | float, int | float] = (0.0, float("inf")),
) -> Denoiser:
    """x0 = negative + scale * sum over k of weights[:, k] * (x0 under conditions[k] - negative), in one batch of m + 1
    times as many pictures. One condition of weight 1 is `guided`; a negative weight leads away from what it says. Where
    not low < sigma <= high, the scale is 1.

    >>> def denoiser(x, sigma, condition):  # knows nothing but what it is asked for
    ...     return condition[:, :, :1, None].expand_as(x)
    >>> asked, empty = torch.stack([torch.full((1, 1, 1), 1.0), torch.full((1, 1, 1), 10.0)]), torch.zeros(1, 1, 1)
    >>> composed(denoiser, asked, torch.tensor([[1.0, 0.1]]), empty, 3)(torch.zeros(1, 1, 2, 2), torch.ones(1)).unique()
    tensor([6.])
    """
    (low, high), n = interval, len(conditions) + 1
    texts = torch.cat([negative, *conditions])

    def denoise(x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        away, *toward = denoiser(x.repeat(n, 1, 1, 1), sigma.repeat(n), texts).chunk(n)
        scales = torch.where((sigma > low) & (sigma <= high), scale, 1.0).to(x)
        by = (weights.to(x) * scales[:, None])[:, :, None, None, None]
        return away + sum(by[:, k] * (one - away) for k, one in enumerate(toward))

    return denoise
