"""Noise schedules against Diffusers' tables."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.base.configs import config_from_dict
from miniai.base.errors import UserError
from miniai.diffusion.schedule import NoiseSchedule, ScheduleConfig

FILES: dict[str, dict[str, Any]] = {
    "stable diffusion": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "ddpm": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "given betas": {"trained_betas": np.linspace(1e-4, 0.03, 50).tolist(), "num_train_timesteps": 50},
    "zero snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    "short": {"num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.3},
}


def schedule_of(file: dict[str, Any]) -> NoiseSchedule:
    return NoiseSchedule(config_from_dict(ScheduleConfig, file, "scheduler_config.json"))


SCHEDULE = schedule_of(FILES["stable diffusion"])


@pytest.mark.parametrize("name", FILES)
def test_alpha_bar_is_that_of_diffusers(name: str) -> None:
    theirs = DDIMScheduler.from_config(FILES[name]).alphas_cumprod
    ours = schedule_of(FILES[name]).alpha_bar
    assert ours.dtype == torch.float64
    # Diffusers accumulates a thousand factors in float32.
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-4, atol=1e-9)


def test_alpha_bar_of_the_linear_schedule_is_the_product_of_its_definition() -> None:
    alpha_bar, product = schedule_of(FILES["ddpm"]).alpha_bar, 1.0
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        assert alpha_bar[t].item() == pytest.approx(product, rel=1e-12)


def test_a_zero_snr_schedule_ends_without_signal_at_a_finite_sigma() -> None:
    schedule = schedule_of(FILES["zero snr"])
    euler = EulerDiscreteScheduler.from_config(FILES["zero snr"])
    assert schedule.alpha_bar[-1] == 0
    assert schedule.alpha_bar[0].item() == pytest.approx(1 - 0.0001, rel=1e-12)  # the first step is left as it was
    assert schedule.sigma[-1].item() == pytest.approx(float(euler.sigmas[0]), rel=1e-6)


@pytest.mark.parametrize("name", FILES)
def test_sigma_to_t_interpolates_as_diffusers_does(name: str) -> None:
    schedule, theirs = schedule_of(FILES[name]), EulerDiscreteScheduler.from_config(FILES[name])
    log_sigmas = schedule.sigma.log().numpy()
    low, high = log_sigmas[0] - 1, log_sigmas[-1] + 1  # a little beyond both ends
    sigmas = np.exp(np.linspace(low, high, 301))
    expected = np.array([theirs._sigma_to_t(np.array(sigma), log_sigmas) for sigma in sigmas])
    np.testing.assert_allclose(schedule.sigma_to_t(torch.from_numpy(sigmas)).numpy(), expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(0, 999), min_size=1, max_size=20))
def test_timestep_to_sigma_and_back_is_the_identity(timesteps: list[float]) -> None:
    t = torch.tensor(timesteps, dtype=torch.float64)
    torch.testing.assert_close(SCHEDULE.sigma_to_t(SCHEDULE.t_to_sigma(t)), t, rtol=0, atol=1e-9)


def test_whole_timesteps_give_the_sigmas_of_the_table() -> None:
    schedule = schedule_of(FILES["cosine"])
    torch.testing.assert_close(schedule.t_to_sigma(torch.arange(1000)), schedule.sigma, rtol=1e-12, atol=0)


def test_float32_sigmas_find_their_timestep_to_a_thousandth() -> None:
    schedule = schedule_of(FILES["stable diffusion"])
    t = schedule.sigma_to_t(schedule.sigma.float())
    assert t.dtype == torch.float32
    torch.testing.assert_close(t, torch.arange(1000.0), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
        ({"trained_betas": [0.1, 0.2]}, "2 trained_betas for 1000"),
        ({"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}, "trained_betas"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start"),
        ({"beta_end": 1.0}, "beta_end"),
        ({"beta_schedule": "exp"}, "beta_schedule"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"betas_start": 0.1}, "betas_start"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_with_its_field_and_file(file: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match="scheduler_config.json") as error:
        schedule_of(file)
    assert word in str(error.value)
