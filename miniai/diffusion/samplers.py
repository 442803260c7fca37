"""Samplers: from noise to a picture, one plain function each, with its loop in view.

Every sampler has the same contract, `sampler(denoiser, x, sigmas, *, noise, callback) -> x`:

- `denoiser(x, sigma) -> x0` estimates the clean picture; x is (b, c, h, w) and sigma is (b,). Guidance, prompts and
  what the network predicts are the denoiser's business.
- `x` is variance-exploding: x = x0 + sigmas[0] * eps. It is not changed in place.
- `sigmas` fall, and end in 0 as a rule: n + 1 of them make n steps.
- `noise(i)` gives the unit noise of step i, in the shape of x; samplers that draw none never call it.
- `callback(i, x, sigma, x0)` is called when step i is done: x is now at noise level `sigma` = sigmas[i + 1], and x0 is
  the estimate of this step. What it returns, unless None, takes the place of x.

In these coordinates most samplers are one idea, `step_towards`: keep x0 and let the noise around it shrink. They differ
in which x0 they trust, and in how much fresh noise they put in place of the old. Those here look at one step alone;
those that remember earlier steps are in `miniai.diffusion.multistep`.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Denoiser = Callable[[Float[Tensor, "b c h w"], Float[Tensor, " b"]], Float[Tensor, "b c h w"]]
Noise = Callable[[int], Float[Tensor, "b c h w"]]
Callback = Callable[[int, Float[Tensor, "b c h w"], float, Float[Tensor, "b c h w"]], Tensor | None]


def no_noise(i: int) -> Tensor:
    """The `noise` of a sampler that should draw none."""
    raise ValueError(f"step {i} of this sampler draws noise: pass noise=")


def no_callback(i: int, x: Tensor, sigma: float, x0: Tensor) -> None:
    """The `callback` that does nothing."""


def euler(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Noise = no_noise,
    callback: Callback = no_callback,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> Float[Tensor, "b c h w"]:
    """Euler's method on the probability flow ODE: Karras et al. 2022, algorithm 2 without its second order.

    `s_churn`, `s_tmin`, `s_tmax`, `s_noise`: see `heun`.

    >>> from miniai.diffusion.gaussian import GaussianData
    >>> data, levels = GaussianData.draw((1, 2, 2), seed=0), torch.linspace(10, 0, 201, dtype=torch.float64)
    >>> start = 10 * torch.randn(5, 1, 2, 2, dtype=torch.float64)
    >>> bool((euler(data, start, levels) - data.flow(start, 10, 0)).norm() < 0.1)
    True
    """
    levels = sigmas.tolist()
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        gamma = churn(s_churn, len(levels) - 1) if s_tmin <= sigma <= s_tmax else 0.0
        if gamma > 0:
            x, sigma = add_noise(x, sigma, (1 + gamma) * sigma, noise(i) * s_noise), (1 + gamma) * sigma
        x0 = denoiser(x, per_image(x, sigma))
        x = step_towards(x0, x, sigma_next / sigma)
        x = end_of_step(callback, i, x, sigma_next, x0)
    return x


def euler_a(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Noise,
    callback: Callback = no_callback,
    eta: float = 1.0,
) -> Float[Tensor, "b c h w"]:
    """Ancestral Euler: each step goes below its target by `ancestral_split`, and back up with fresh noise.

    Source: k-diffusion's `sample_euler_ancestral`.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoiser(x, per_image(x, sigma))
        sigma_down, sigma_up = ancestral_split(sigma, sigma_next, eta)
        x = step_towards(x0, x, sigma_down / sigma)
        if sigma_up > 0:
            x = x + noise(i) * sigma_up
        x = end_of_step(callback, i, x, sigma_next, x0)
    return x


def ddim(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Noise = no_noise,
    callback: Callback = no_callback,
    eta: float = 0.0,
    clip: float | None = None,
) -> Float[Tensor, "b c h w"]:
    """DDIM: Song et al. 2021, eq. 12 and 16, divided by sqrt(alpha_bar); eta 0 is deterministic, eta 1 is DDPM.

    In these coordinates it is the ancestral Euler step, exactly. `clip` bounds x0 to [-clip, clip] but leaves the
    direction of the noise as the network gave it, as Diffusers does with `clip_sample`.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoiser(x, per_image(x, sigma))
        sigma_down, sigma_up = ancestral_split(sigma, sigma_next, eta)
        along = x - x0
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        x = x0 + along * (sigma_down / sigma)
        if sigma_up > 0:
            x = x + noise(i) * sigma_up
        x = end_of_step(callback, i, x, sigma_next, x0)
    return x


def ddpm(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Noise,
    callback: Callback = no_callback,
    clip: float | None = None,
) -> Float[Tensor, "b c h w"]:
    """Ancestral sampling of DDPM with its smaller variance: Ho et al. 2020, eq. 6 and 7, divided by sqrt(alpha_bar).

    `clip` bounds x0 to [-clip, clip] before the posterior is taken.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoiser(x, per_image(x, sigma))
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        shrink = sigma_next / sigma
        x = step_towards(x0, x, shrink**2)
        if sigma_next > 0:
            x = x + noise(i) * (sigma_next * (1 - shrink**2) ** 0.5)
        x = end_of_step(callback, i, x, sigma_next, x0)
    return x


def heun(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Noise = no_noise,
    callback: Callback = no_callback,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> Float[Tensor, "b c h w"]:
    """Heun's method, second order, two calls per step but one in the last: Karras et al. 2022, algorithm 2.

    With `s_churn` above 0, each step whose sigma lies within [s_tmin, s_tmax] first adds noise of deviation `s_noise`.
    """
    levels = sigmas.tolist()
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        gamma = churn(s_churn, len(levels) - 1) if s_tmin <= sigma <= s_tmax else 0.0
        if gamma > 0:
            x, sigma = add_noise(x, sigma, (1 + gamma) * sigma, noise(i) * s_noise), (1 + gamma) * sigma
        x0 = denoiser(x, per_image(x, sigma))
        x_euler = step_towards(x0, x, sigma_next / sigma)
        if sigma_next == 0:
            x = x_euler
        else:
            slope = (x - x0) / sigma
            slope_next = (x_euler - denoiser(x_euler, per_image(x, sigma_next))) / sigma_next
            x = x + (slope + slope_next) / 2 * (sigma_next - sigma)
        x = end_of_step(callback, i, x, sigma_next, x0)
    return x


def dpm2(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Noise = no_noise,
    callback: Callback = no_callback,
) -> Float[Tensor, "b c h w"]:
    """The midpoint method in log(sigma), second order, two calls per step but one in the last.

    Source: k-diffusion's `sample_dpm_2`, after DPM-Solver-2 (Lu et al. 2022, algorithm 1) and Karras et al. 2022.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoiser(x, per_image(x, sigma))
        if sigma_next == 0:
            x = x0
        else:
            sigma_mid = (sigma * sigma_next) ** 0.5
            x_mid = step_towards(x0, x, sigma_mid / sigma)
            slope = (x_mid - denoiser(x_mid, per_image(x, sigma_mid))) / sigma_mid
            x = x + slope * (sigma_next - sigma)
        x = end_of_step(callback, i, x, sigma_next, x0)
    return x


def step_towards(x0: Tensor, x: Tensor, shrink: float | Float[Tensor, "b 1 1 1"]) -> Tensor:
    """x with its distance to x0 times `shrink` = sigma_next / sigma: solves dx/dsigma = (x - x0) / sigma for fixed x0.

    The same as x + (sigma_next - sigma) (x - x0) / sigma, without that form's loss of digits where sigma is large.
    """
    return x0 + (x - x0) * shrink


def ancestral_split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up): step down to the first, add noise of the second, and the level is sigma_next.

    sigma_up^2 is eta^2 times the variance of the posterior q(x_next | x, x0): Song et al. 2021, eq. 16.
    """
    sigma_up = min(sigma_next, eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5)
    return (sigma_next**2 - sigma_up**2) ** 0.5, sigma_up


def churn(s_churn: float, n_steps: int) -> float:
    """The share by which a step raises sigma before it descends: Karras et al. 2022, algorithm 2, line 4."""
    return min(s_churn / n_steps, 2**0.5 - 1)


def add_noise(x: Tensor, sigma: float, sigma_up: float, noise: Tensor) -> Tensor:
    """x of level `sigma` raised to the higher level `sigma_up`."""
    return x + noise * (sigma_up**2 - sigma**2) ** 0.5


def per_image(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, " b"]:
    """`sigma` once for each image in x; float32 at least."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.full((len(x),), sigma, device=x.device, dtype=dtype)


def end_of_step(callback: Callback, i: int, x: Tensor, sigma: float, x0: Tensor) -> Tensor:
    """What the callback makes of x: its return value, or x itself."""
    replacement = callback(i, x, sigma, x0)
    return x if replacement is None else replacement
