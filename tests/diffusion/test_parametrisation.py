"""Every parametrisation's conversion, from closed forms and in closed circles."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miniai.diffusion.parametrisation import (
    PARAMETRISATIONS,
    Parametrisation,
    convert,
    cos_sin,
    from_x0,
    to_x0,
    training_target,
    x0_coefficients,
)

KINDS = st.sampled_from(PARAMETRISATIONS)
SIGMAS = st.floats(math.log(1e-2), math.log(1e2)).map(math.exp)


def picture_and_noise(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 2, 1, 3, 3, generator=generator, dtype=torch.float64)
    return x0, noise


@settings(deadline=None)
@given(
    path=st.lists(KINDS, min_size=2, max_size=6), sigma=SIGMAS, sigma_data=st.floats(0.2, 3), seed=st.integers(0, 99)
)
def test_any_way_through_the_parametrisations_arrives_where_the_direct_one_does(
    path: list[Parametrisation], sigma: float, sigma_data: float, seed: int
) -> None:
    x0, noise = picture_and_noise(seed)
    level = torch.full((2,), sigma, dtype=torch.float64)
    x = x0 + sigma * noise
    prediction = training_target(path[0], x0, noise, level, sigma_data)
    for source, target in zip(path[:-1], path[1:], strict=True):
        prediction = convert(prediction, x, level, source, target, sigma_data)
    expected = training_target(path[-1], x0, noise, level, sigma_data)
    torch.testing.assert_close(prediction, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(to_x0(prediction, x, level, path[-1], sigma_data), x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", PARAMETRISATIONS)
def test_from_x0_undoes_to_x0_for_predictions_that_are_wrong(kind: Parametrisation) -> None:
    x, prediction = picture_and_noise(1)
    sigma = torch.tensor([0.1, 7.0], dtype=torch.float64)
    torch.testing.assert_close(from_x0(to_x0(prediction, x, sigma, kind), x, sigma, kind), prediction)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_x0_is_what_diffusers_makes_of_the_prediction(kind: Parametrisation) -> None:
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    x_t, prediction = picture_and_noise(2)
    for t in (0, 300, 900):
        alpha_bar = scheduler.alphas_cumprod[t].double()
        theirs = scheduler.step(prediction, t, x_t).pred_original_sample
        sigma = ((1 - alpha_bar) / alpha_bar).sqrt().repeat(2)
        torch.testing.assert_close(to_x0(prediction, x_t / alpha_bar.sqrt(), sigma, kind), theirs, rtol=1e-6, atol=1e-6)


def test_the_target_of_v_is_diffusers_velocity() -> None:
    scheduler = DDPMScheduler()
    x0, noise = picture_and_noise(3)
    t = torch.tensor([10, 990])
    alpha_bar = scheduler.alphas_cumprod[t].double()
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    theirs = scheduler.get_velocity(x0, noise, t)
    torch.testing.assert_close(training_target("v_prediction", x0, noise, sigma), theirs, rtol=1e-4, atol=1e-5)


def test_the_edm_target_is_the_one_of_karras_et_al_equation_8() -> None:
    x0, noise = picture_and_noise(4)
    sigma, sigma_data = 1.7, 0.5
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / math.sqrt(sigma**2 + sigma_data**2)
    expected = (x0 - c_skip * (x0 + sigma * noise)) / c_out
    ours = training_target("edm", x0, noise, torch.full((2,), sigma, dtype=torch.float64), sigma_data)
    torch.testing.assert_close(ours, expected)


def test_the_flow_prediction_is_the_velocity_of_the_straight_line() -> None:
    x0, noise = picture_and_noise(5)
    time = 0.3  # the line (1 - t) x0 + t noise passes here; dividing by 1 - t makes its noise level t / (1 - t)
    sigma = torch.full((2,), time / (1 - time), dtype=torch.float64)
    x = ((1 - time) * x0 + time * noise) / (1 - time)
    torch.testing.assert_close(from_x0(x0, x, sigma, "flow"), noise - x0)


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 0.03, 1.0, 14.6, 4096.0, 1e6])
def test_float32_keeps_every_digit_of_the_signals_and_the_noises_share(sigma: float) -> None:
    cos, sin = cos_sin(torch.tensor([sigma], dtype=torch.float32))
    assert cos.item() == pytest.approx(1 / math.sqrt(1 + sigma**2), rel=3e-7)
    assert sin.item() == pytest.approx(sigma / math.sqrt(1 + sigma**2), rel=3e-7)


@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1.0, 1e6])
def test_float32_keeps_every_digit_of_the_velocitys_share(sigma: float) -> None:
    c_skip, c_out = x0_coefficients("flow", torch.tensor([sigma], dtype=torch.float32))
    assert c_skip.item() == pytest.approx(1 / (1 + sigma), rel=3e-7)
    assert c_out.item() == pytest.approx(-sigma / (1 + sigma), rel=3e-7)


def test_the_velocity_is_defined_without_noise_and_without_signal() -> None:
    _, c_out = x0_coefficients("flow", torch.tensor([0.0, math.inf], dtype=torch.float64))
    assert c_out.tolist() == [0.0, -1.0]


def test_targets_stay_finite_without_noise_and_without_signal() -> None:
    x0, noise = picture_and_noise(6)
    sigma = torch.tensor([0.0, math.inf], dtype=torch.float64)
    target = training_target("v_prediction", x0, noise, sigma)
    torch.testing.assert_close(target[0], noise[0])
    torch.testing.assert_close(target[1], -x0[1])
