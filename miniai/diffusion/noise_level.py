"""How noisy is this picture? A network that answers takes the place of the time that others are told.

Three ways to do without the time: a denoiser that is never told it (`timeless`), a network that estimates the level
(`NoiseLevelObjective`), and a denoiser that is told the estimate (`told_by`), also when the sampler is wrong about it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.diffusion.continuous import ContinuousSchedule, CosineTime
from miniai.diffusion.continuous_objectives import draw_noise, draw_quantiles
from miniai.diffusion.parametrisation import cos_sin, like_images
from miniai.diffusion.samplers import Denoiser

Images = Float[Tensor, "b c h w"]
LevelNetwork = Callable[[Images], Float[Tensor, " b"]]


def timeless(network: Callable[[Images], Images]) -> Callable[..., Images]:
    """A network without time input, where one with time and condition is asked for.

    >>> timeless(lambda x: 2 * x)(torch.ones(1, 1, 1, 1), torch.zeros(1), None).item()
    2.0
    """
    return lambda x_t, time, condition=None: network(x_t)


@dataclass(frozen=True)
class NoiseLevelObjective:
    """Mean squared error of `network(x_t)` (b,) as an estimate of t, uniform in (0, 1), from the picture alone.

    >>> objective, x0 = NoiseLevelObjective(), torch.zeros(64, 1, 2, 2)
    >>> round(objective(lambda x_t: torch.full((len(x_t),), 0.5), (x0, None), torch.Generator()).item(), 2)
    0.08
    """

    schedule: ContinuousSchedule = CosineTime()
    stratified: bool = True

    def __call__(self, network: LevelNetwork, batch: tuple[Images, Any], generator: torch.Generator) -> Tensor:
        x0 = batch[0].float()
        t = draw_quantiles(len(x0), generator, self.stratified)
        noise = draw_noise(x0, generator)
        cos, sin = (part.to(x0.device, torch.float32) for part in cos_sin(self.schedule.sigma(t)))
        estimate = network(like_images(cos, x0) * x0 + like_images(sin, x0) * noise)
        return (estimate.float() - t.to(x0.device, torch.float32)).square().mean()


def told_by(
    level_network: LevelNetwork, denoiser: Denoiser, schedule: ContinuousSchedule, n_rounds: int = 2
) -> Denoiser:
    """A denoiser that asks `level_network` how noisy x is, and tells `denoiser` that in place of the sampler's sigma.

    The network sees x scaled to unit variance, and for that sigma must be known: from the sampler in the first round,
    from its own estimate in those after.

    >>> denoiser = told_by(lambda x_t: torch.full((len(x_t),), 0.5), lambda x, sigma: x / sigma, CosineTime(s=0.0))
    >>> denoiser(torch.full((1, 1, 1, 1), 3.0), torch.tensor([7.0])).item()
    3.0
    """

    def denoise(x: Images, sigma: Float[Tensor, " b"]) -> Images:
        for _ in range(n_rounds):
            x_t = x * like_images(cos_sin(sigma)[0], x)
            sigma = schedule.sigma(level_network(x_t).to(sigma.dtype).clamp(1e-4, 1 - 1e-4))
        return denoiser(x, sigma)

    return denoise
