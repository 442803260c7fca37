"""The exact denoiser of normal data against its density, and every sampler's error at its order, in many dimensions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from miniai.base.seeds import make_generator
from miniai.diffusion.continuous_objectives import EDMDenoiser, FlowDenoiser
from miniai.diffusion.gaussian import (
    GaussianData,
    errors_by_steps,
    measured_order,
    plot_orders,
    variance_errors_by_steps,
)
from miniai.diffusion.parametrisation import from_x0, like_images
from miniai.diffusion.samplers import heun
from miniai.diffusion.sampling import SAMPLERS

DATA = GaussianData.draw((2, 2, 2), seed=1)


def covariance(sigma: float = 0.0) -> torch.Tensor:
    return DATA.axes @ torch.diag(DATA.variances + sigma**2) @ DATA.axes.T


def test_the_denoiser_is_tweedies_formula_on_the_density() -> None:
    sigma = 0.7
    x = DATA.samples(5, make_generator(2), sigma).requires_grad_()
    density = torch.distributions.MultivariateNormal(DATA.mean.flatten(), covariance(sigma))
    score = torch.autograd.grad(density.log_prob(x.flatten(1)).sum(), x)[0]
    expected = x.detach() + sigma**2 * score
    torch.testing.assert_close(DATA(x.detach(), torch.full((5,), sigma, dtype=torch.float64)), expected)


def test_samples_have_the_mean_and_covariance_that_they_should() -> None:
    drawn = DATA.samples(20_000, make_generator(3), 0.3).flatten(1)
    torch.testing.assert_close(drawn.mean(0), DATA.mean.flatten(), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(drawn.T), covariance(0.3), rtol=0, atol=0.02)


def test_the_exact_flow_is_what_many_small_steps_come_to_and_can_be_walked_back() -> None:
    x = DATA.samples(3, make_generator(4), 10.0)
    sigmas = torch.logspace(1, -1.5, 600, dtype=torch.float64)
    end = DATA.flow(x, 10.0, float(sigmas[-1]))
    torch.testing.assert_close(heun(DATA, x, sigmas), end, rtol=0, atol=2e-5)
    torch.testing.assert_close(DATA.flow(end, float(sigmas[-1]), 10.0), x)


ORDERS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "Euler": ("euler", 1, {}),
    "DDIM": ("ddim", 1, {}),
    "Heun": ("heun", 2, {}),
    "DPM2": ("dpm2", 2, {}),
    "DPM++ 2M": ("dpmpp_2m", 2, {}),
    "PNDM": ("pndm", 2, {}),  # its weights are those of even steps, which cost it the higher orders
    "LMS of order 1": ("lms", 1, {"order": 1}),
    "LMS of order 2": ("lms", 2, {"order": 2}),
    "LMS of order 3": ("lms", 3, {"order": 3}),
    "LMS of order 4": ("lms", 4, {"order": 4}),
}
# Samplers that draw noise: the order at which the variance of their pictures becomes that of the data.
WEAK_ORDERS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "Euler a": ("euler_a", 1, {}),
    "DDPM": ("ddpm", 1, {}),
    "DDIM at eta 0.5": ("ddim", 1, {"eta": 0.5}),
    "DDIM at eta 1": ("ddim", 1, {"eta": 1.0}),
    "DPM++ 2M SDE": ("dpmpp_2m_sde", 2, {}),
    "Euler with churn": ("euler", 1, {"s_churn": 10.0}),
    "Heun with churn": ("heun", 2, {"s_churn": 10.0}),
}
STEPS = (40, 80, 160)


@pytest.mark.parametrize("name", ORDERS)
def test_every_samplers_error_falls_at_its_order_in_many_dimensions(name: str) -> None:
    row, order, options = ORDERS[name]
    errors = errors_by_steps(SAMPLERS[row].function, DATA, STEPS, **options)
    assert errors == sorted(errors, reverse=True)
    assert measured_order(STEPS, errors) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("name", WEAK_ORDERS)
def test_the_variance_of_what_noisy_samplers_paint_nears_the_datas_at_their_order(name: str) -> None:
    row, order, options = WEAK_ORDERS[name]
    errors = variance_errors_by_steps(SAMPLERS[row].function, STEPS, **options)
    assert errors == sorted(errors, reverse=True)
    assert measured_order(STEPS, errors) == pytest.approx(order, abs=0.35)


def test_no_sampler_is_without_an_order() -> None:
    assert {row for row, _, _ in (*ORDERS.values(), *WEAK_ORDERS.values())} == set(SAMPLERS)


def test_the_variance_is_what_many_pictures_have() -> None:
    """The same sum, by chance: pictures of one pixel each, drawn from their own noise."""
    generator = make_generator(6)

    def drawn(sampler: Any, denoiser: Any, start: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        x = torch.randn(40_000, 1, 1, 1, generator=generator, dtype=torch.float64) * start.square().sum().sqrt()
        return sampler(denoiser, x, sigmas, noise=lambda i: torch.randn(x.shape, generator=generator).double())

    found: list[float] = []

    def both(denoiser: Any, start: torch.Tensor, sigmas: torch.Tensor, *, noise: Any) -> torch.Tensor:
        exact = SAMPLERS["euler_a"].function(denoiser, start, sigmas, noise=noise)
        pictures = drawn(SAMPLERS["euler_a"].function, denoiser, start, sigmas)
        found.extend([float(exact.square().sum()), float(pictures.var())])
        return exact

    variance_errors_by_steps(both, [10])
    assert found[1] == pytest.approx(found[0], rel=0.03)


def test_the_plot_of_errors_over_steps_is_a_png(tmp_path: Path) -> None:
    plot = plot_orders(tmp_path / "orders.png", (10, 20), {"euler": [0.1, 0.05], "heun": [0.01, 0.0025]})
    assert (tmp_path / "orders.png").read_bytes() == plot.png
    assert plot.png[:4] == b"\x89PNG"


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_a_perfect_network_behind_edm_or_flow_is_the_exact_denoiser(kind: Any) -> None:
    """The network's answer is made from the exact one by the parametrisation; the denoiser must undo just that."""
    sigma = torch.tensor([0.05, 0.6, 9.0], dtype=torch.float64)
    x = (
        DATA.mean
        + like_images(sigma, torch.ones(3, 1, 1, 1)) * torch.randn(3, 2, 2, 2, generator=make_generator(5)).double()
    )
    answer = from_x0(DATA(x, sigma), x, sigma, kind, 0.5)
    seen: list[torch.Tensor] = []

    def network(scaled: torch.Tensor, time: torch.Tensor, condition: Any) -> torch.Tensor:
        seen.extend([scaled, time])
        return answer

    denoiser = EDMDenoiser(network, 0.5) if kind == "edm" else FlowDenoiser(network)
    torch.testing.assert_close(denoiser(x, sigma), DATA(x, sigma))
    expected_time = sigma.log() / 4 if kind == "edm" else sigma / (1 + sigma)
    torch.testing.assert_close(seen[1], expected_time.float())
    scale = 1 / (sigma**2 + 0.25).sqrt() if kind == "edm" else 1 / (1 + sigma)
    torch.testing.assert_close(seen[0], (x * like_images(scale, x)).float())
