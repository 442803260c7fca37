"""Samplers that remember earlier steps: the contract is that of `miniai.diffusion.samplers`."""

import math
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from miniai.diffusion.parametrisation import Parametrisation, from_x0, to_x0
from miniai.diffusion.samplers import (
    Callback,
    Denoiser,
    Noise,
    end_of_step,
    no_callback,
    no_noise,
    per_image,
    step_towards,
)

# Adams-Bashforth weights of the newest slopes, for steps of one size: orders 1 to 4
EVEN_STEPS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def lms(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Noise = no_noise,
    callback: Callback = no_callback,
    order: int = 4,
) -> Float[Tensor, "b c h w"]:
    """Linear multistep (Adams-Bashforth on uneven steps): one call per step, and the last `order` slopes remembered.

    Source: k-diffusion's `sample_lms`.
    """
    levels = sigmas.tolist()
    slopes: list[Tensor] = []  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x0 = denoiser(x, per_image(x, sigma))
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        weights = multistep_weights(levels[i - len(slopes) + 1 : i + 1][::-1], sigma_next)
        for weight, slope in zip(weights, slopes, strict=True):
            x = x + weight * slope
        x = end_of_step(callback, i, x, sigma_next, x0)
    return x


def pndm(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Noise = no_noise,
    callback: Callback = no_callback,
    prediction_type: Parametrisation = "epsilon",
    second_step_unasked: bool = False,
) -> Float[Tensor, "b c h w"]:
    """PLMS, Stable Diffusion's first default: Liu et al. 2022 (PNDM), eq. 9 and 12, without Runge-Kutta steps.

    Adams-Bashforth with the weights of even steps, whatever the steps are; the first step is Heun's, with two calls.
    What is combined is the paper's eps, or, as Diffusers has it, whatever the network predicts: `prediction_type`.
    `second_step_unasked`: after the first step x is taken to be one step further than it is, without a call, as
    Diffusers does where it starts from a picture.
    """
    levels = sigmas.tolist()
    predictions: list[Tensor] = []  # newest first
    x0 = x  # the estimate of the newest call
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        if i == 1 and second_step_unasked:
            x = end_of_step(callback, i, x * (math.hypot(1, sigma_next) / math.hypot(1, sigma)), sigma_next, x0)
            continue
        x0 = denoiser(x, per_image(x, sigma))
        predictions = [from_x0(x0, x, per_image(x, sigma), prediction_type), *predictions[:3]]
        if i == 0 and len(levels) > 2:
            x_euler, at_next = step_towards(x0, x, sigma_next / sigma), per_image(x, sigma_next)
            ahead = from_x0(denoiser(x_euler, at_next), x_euler, at_next, prediction_type)
            mean = (predictions[0] + ahead) / 2
        else:
            weights = EVEN_STEPS[len(predictions) - 1]
            mean = torch.stack([w * past for w, past in zip(weights, predictions, strict=True)]).sum(0)
        x = step_towards(to_x0(mean, x, per_image(x, sigma), prediction_type), x, sigma_next / sigma)
        x = end_of_step(callback, i, x, sigma_next, x0)
    return x


def dpmpp_2m(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Noise = no_noise,
    callback: Callback = no_callback,
    n_skipped: int = 0,
) -> Float[Tensor, "b c h w"]:
    """DPM-Solver++(2M), second order, one call per step: Lu et al. 2022 (DPM-Solver++), algorithm 2.

    `n_skipped`: how many steps stood before these, see `extrapolate`.

    >>> from miniai.diffusion.gaussian import GaussianData
    >>> from miniai.diffusion.samplers import euler
    >>> data, levels = GaussianData.draw((1, 2, 2), seed=0), torch.logspace(1, -2, 21, dtype=torch.float64)
    >>> start = 10 * torch.randn(5, 1, 2, 2, dtype=torch.float64)
    >>> exact = data.flow(start, 10, 0.01)
    >>> bool((dpmpp_2m(data, start, levels) - exact).norm() < 0.2 * (euler(data, start, levels) - exact).norm())
    True
    """
    levels = sigmas.tolist()
    x0_last: Tensor | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x0 = denoiser(x, per_image(x, sigma))
        aim = x0 if x0_last is None else extrapolate(x0, x0_last, levels, i, n_skipped)
        x = step_towards(aim, x, sigma_next / sigma)
        x, x0_last = end_of_step(callback, i, x, sigma_next, x0), x0
    return x


def dpmpp_2m_sde(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Noise,
    callback: Callback = no_callback,
    eta: float = 1.0,
    n_skipped: int = 0,
) -> Float[Tensor, "b c h w"]:
    """SDE-DPM-Solver++(2M), midpoint form: Lu et al. 2022 (DPM-Solver++), appendix; eta 0 is `dpmpp_2m`.

    `eta` scales the fresh noise as in k-diffusion's `sample_dpmpp_2m_sde`; `n_skipped` as in `dpmpp_2m`.
    """
    levels = sigmas.tolist()
    x0_last: Tensor | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x0 = denoiser(x, per_image(x, sigma))
        aim = x0 if x0_last is None else extrapolate(x0, x0_last, levels, i, n_skipped)
        shrink = sigma_next / sigma
        x = step_towards(aim, x, shrink ** (1 + eta))
        if sigma_next > 0 and eta > 0:
            x = x + noise(i) * (sigma_next * (1 - shrink ** (2 * eta)) ** 0.5)
        x, x0_last = end_of_step(callback, i, x, sigma_next, x0), x0
    return x


def extrapolate(x0: Tensor, x0_last: Tensor, levels: list[float], i: int, n_skipped: int = 0) -> Tensor:
    """x0 carried half a step on along its change since the last step, in log(sigma): DPM-Solver++, algorithm 2, line 9.

    Plain x0 where no half step is left, in the step to sigma 0; and, as Diffusers has it, in the last step of fewer
    than 15 if that ends above 0: there steps that a picture to start from leaves out count, too.
    """
    n_steps = len(levels) - 1
    if levels[i + 1] == 0 or (i == n_steps - 1 and n_steps + n_skipped < 15):
        return x0
    step, step_last = np.log(levels[i] / levels[i + 1]), np.log(levels[i - 1] / levels[i])
    return x0 + (x0 - x0_last) * float(step / step_last / 2)


def multistep_weights(levels: list[float], sigma_next: float) -> list[float]:
    """The weight of the slope at each of `levels` (newest first) in a step from levels[0] to sigma_next.

    Integrals of Lagrange's basis polynomials, exact: Gauss-Legendre with m nodes integrates degree 2m - 1.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(max(1, (len(levels) + 1) // 2))
    half = (sigma_next - levels[0]) / 2
    at = levels[0] + half * (nodes + 1)
    basis = [
        np.prod([(at - other) / (own - other) for other in levels if other != own], axis=0) * np.ones_like(at)
        for own in levels
    ]
    return [float(half * (node_weights * values).sum()) for values in basis]
