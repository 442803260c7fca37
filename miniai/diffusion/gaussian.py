"""Data whose every answer is known: a normal distribution, its exact denoiser, and the exact path out of the noise.

With it a sampler's error is a number, and how that falls with the steps is the sampler's order.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from miniai.base.plots import Plot, curves
from miniai.diffusion.ladder import karras_sigmas


@dataclass(frozen=True)
class GaussianData:
    """Pictures (c, h, w) ~ N(mean, V diag(variances) V^T), in float64; V's columns are unit and orthogonal.

    An object of this class is a denoiser.

    >>> data = GaussianData.draw((1, 2, 2), seed=0)
    >>> x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    >>> torch.allclose(data(x, torch.full((3,), 1e-6, dtype=torch.float64)), x, atol=1e-6)
    True
    """

    mean: Float64[Tensor, "c h w"]
    variances: Float64[Tensor, " d"]
    axes: Float64[Tensor, "d d"]

    @classmethod
    def draw(cls, shape: tuple[int, int, int], seed: int, scale: int | float = 0.5) -> "GaussianData":
        """Some such data: deviations from `scale` / 5 to `scale`, in directions of no particular kind."""
        generator = torch.Generator().manual_seed(seed)
        n = int(np.prod(shape))
        axes, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
        deviations = torch.linspace(scale / 5, scale, n, dtype=torch.float64)
        mean = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return cls(mean, deviations**2, axes)

    def __call__(self, x: Float64[Tensor, "b c h w"], sigma: Float64[Tensor, " b"]) -> Float64[Tensor, "b c h w"]:
        """E[x0 | x] = mean + C (C + sigma^2)^-1 (x - mean), the linear-Gaussian posterior."""
        return self._scaled(x, self.variances / (self.variances + sigma[:, None] ** 2))

    def flow(
        self, x: Float64[Tensor, "b c h w"], sigma: int | float, sigma_next: int | float
    ) -> Float64[Tensor, "b c h w"]:
        """Where the probability flow ODE takes x from level `sigma` to `sigma_next`: Karras et al. 2022, eq. 1.

        Along each axis the distance to the mean keeps its share of the deviation sqrt(variance + sigma^2).
        """
        share = ((self.variances + sigma_next**2) / (self.variances + sigma**2)).sqrt()
        return self._scaled(x, share.expand(len(x), -1))

    def samples(self, n: int, generator: torch.Generator, sigma: int | float = 0.0) -> Float64[Tensor, "n c h w"]:
        """`n` pictures with noise of deviation `sigma`."""
        unit = torch.randn((n, *self.mean.shape), generator=generator, dtype=torch.float64)
        deviations = (self.variances + sigma**2).sqrt().expand(n, -1)
        return self._scaled(unit + self.mean, deviations)

    def _scaled(self, x: Tensor, factors: Float64[Tensor, "b d"]) -> Tensor:
        """x with its distance to the mean multiplied along each axis."""
        along = (x - self.mean).flatten(1) @ self.axes
        return self.mean + ((along * factors) @ self.axes.T).reshape(x.shape)


def errors_by_steps(
    sampler: Callable[..., Tensor],
    data: GaussianData,
    step_counts: Sequence[int],
    *,
    sigma_max: int | float = 20.0,
    sigma_min: int | float = 0.02,
    n_images: int = 4,
    seed: int = 0,
    **options: Any,
) -> list[float]:
    """The root mean square distance of a deterministic sampler's pictures from the exact ones, for each step count.

    Karras sigmas from sigma_max to sigma_min; the last step to 0 is left out, since there every method is Euler's.

    >>> from miniai.diffusion.samplers import euler
    >>> coarse, fine = errors_by_steps(euler, GaussianData.draw((1, 2, 2), seed=0), [20, 40])
    >>> 1.6 < coarse / fine < 2.4
    True
    """
    x = data.samples(n_images, torch.Generator().manual_seed(seed), sigma_max)
    exact = data.flow(x, sigma_max, sigma_min)
    errors = []
    for n_steps in step_counts:
        sigmas = torch.from_numpy(karras_sigmas(float(sigma_min), float(sigma_max), n_steps + 1))
        found = sampler(data, x, sigmas, **options)
        errors.append(float((found - exact).square().mean().sqrt()))
    return errors


def variance_errors_by_steps(
    sampler: Callable[..., Tensor],
    step_counts: Sequence[int],
    *,
    deviation: int | float = 0.5,
    sigma_max: int | float = 20.0,
    sigma_min: int | float = 0.02,
    **options: Any,
) -> list[float]:
    """How far the variance of a sampler's pictures is from the data's, for each step count: without any chance.

    For one pixel ~ N(0, deviation^2) the exact denoiser is linear, and so is every sampler in its start and its draws:
    the variance is the sum of the squares of what each of them alone, at unit size, comes to. That measures samplers
    that draw noise, too (their weak order). Ladder as in `errors_by_steps`.

    >>> from miniai.diffusion.samplers import ddpm
    >>> coarse, fine = variance_errors_by_steps(ddpm, [40, 80])
    >>> 1.6 < coarse / fine < 2.4
    True
    """

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return x * (deviation**2 / (deviation**2 + sigma**2))[:, None, None, None]

    errors = []
    for n_steps in step_counts:
        sigmas = torch.from_numpy(karras_sigmas(float(sigma_min), float(sigma_max), n_steps + 1))
        alone = torch.eye(n_steps + 1, dtype=torch.float64)[:, :, None, None, None]  # row 0: the start; then each draw
        start = alone[0] * (deviation**2 + float(sigmas[0]) ** 2) ** 0.5
        found = sampler(denoiser, start, sigmas, noise=lambda i, alone=alone: alone[i + 1], **options)
        errors.append(abs(float(found.square().sum()) - deviation**2 - float(sigmas[-1]) ** 2))
    return errors


def measured_order(step_counts: Sequence[int], errors: Sequence[float]) -> float:
    """The slope of the straight line through ln(error) over ln(steps), with its sign turned: 2 halves twice.

    >>> round(measured_order([10, 20, 40], [1.0, 0.25, 0.0625]), 6)
    2.0
    """
    return float(-np.polyfit(np.log(step_counts), np.log(errors), 1)[0])


def plot_orders(
    path: str | os.PathLike[str] | None, step_counts: Sequence[int], errors: Mapping[str, Sequence[float]]
) -> Plot:
    """Errors over steps, both logarithmic: a sampler of order k is a line that falls k decades in one."""
    lines = {name: (step_counts, values) for name, values in errors.items()}
    named = {f"{name}, order {measured_order(step_counts, lines[name][1]):.1f}": lines[name] for name in lines}
    return curves(path, named, xlabel="steps", ylabel="error", log_x=True, log_y=True)
