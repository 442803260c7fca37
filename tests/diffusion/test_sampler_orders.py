"""Convergence: on Gaussian data the exact denoiser and the exact answer are known, and errors fall at each order."""

import math

import pytest
import torch
from diffusers_oracle import start_noise
from torch import Tensor

from miniai.diffusion.ladder import karras_sigmas
from miniai.diffusion.samplers import step_towards
from miniai.diffusion.sampling import SAMPLERS

DEVIATION, MEAN = 0.5, 0.3
SIGMA_MAX, SIGMA_MIN = 20.0, 0.02


def exact_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] for x0 ~ N(MEAN, DEVIATION^2) and x = x0 + sigma * eps."""
    trust = DEVIATION**2 / (DEVIATION**2 + sigma**2)
    return MEAN + trust[:, None, None, None] * (x - MEAN)


def exact_answer(x: Tensor) -> Tensor:
    """Where the probability flow takes x from SIGMA_MAX to SIGMA_MIN: its distance to the mean keeps its quantile."""
    return MEAN + (x - MEAN) * math.hypot(DEVIATION, SIGMA_MIN) / math.hypot(DEVIATION, SIGMA_MAX)


def error(name: str, n_steps: int, **options: int) -> float:
    sigmas = torch.from_numpy(karras_sigmas(SIGMA_MIN, SIGMA_MAX, n_steps + 1))
    x = MEAN + start_noise(1, (4, 1, 4, 4)).double() * SIGMA_MAX
    return float((SAMPLERS[name].function(exact_denoiser, x, sigmas, **options) - exact_answer(x)).abs().max())


@pytest.mark.parametrize(
    ("name", "order", "options"),
    [
        ("euler", 1, {}),
        ("ddim", 1, {}),
        ("heun", 2, {}),
        ("dpm2", 2, {}),
        ("dpmpp_2m", 2, {}),
        ("lms", 1, {"order": 1}),
        ("lms", 2, {"order": 2}),
        ("lms", 3, {"order": 3}),
        ("lms", 4, {"order": 4}),
    ],
)
def test_the_error_falls_with_the_steps_at_the_samplers_order(name: str, order: int, options: dict[str, int]) -> None:
    coarse, fine = error(name, 80, **options), error(name, 160, **options)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def test_higher_orders_are_nearer_at_the_same_number_of_calls() -> None:
    calls = 60
    first, second, multistep = error("euler", calls), error("heun", calls // 2), error("dpmpp_2m", calls)
    assert multistep < second < first


def test_a_step_towards_a_fixed_x0_is_exact() -> None:
    x0, noise = start_noise(1).double(), start_noise(2).double()
    torch.testing.assert_close(step_towards(x0, x0 + 8 * noise, 3 / 8), x0 + 3 * noise)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_draws_gaussian_data_with_its_mean_and_deviation(name: str) -> None:
    shape, generator = (1, 1, 96, 96), torch.Generator().manual_seed(2)

    def noise(i: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sigmas = torch.cat([torch.from_numpy(karras_sigmas(SIGMA_MIN, 80.0, 120)), torch.zeros(1, dtype=torch.float64)])
    x = SAMPLERS[name].function(exact_denoiser, MEAN + noise(0) * 80.0, sigmas, noise=noise)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(DEVIATION, rel=0.06)
