"""The steps of every sampler against `set_timesteps` of its Diffusers class."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers_oracle import STABLE_DIFFUSION, diffusers_scheduler

from miniai.base.errors import UserError
from miniai.diffusion.ladder import Ladder
from miniai.diffusion.sampling import SAMPLERS, Sampler, find_sampler, schedule_config
from miniai.diffusion.schedule import NoiseSchedule

COSINE = {**STABLE_DIFFUSION, "beta_schedule": "squaredcos_cap_v2"}
ZERO_SNR = {**STABLE_DIFFUSION, "rescale_betas_zero_snr": True}


def ladder_of(sampler: Sampler, file: dict[str, Any], n_steps: int) -> Ladder:
    return sampler.ladder(NoiseSchedule(schedule_config(file, sampler, "scheduler_config.json")), n_steps)


def their_steps(sampler: Sampler, file: dict[str, Any], n_steps: int) -> tuple[np.ndarray, np.ndarray | None, float]:
    """(timesteps, sigmas where the class has them, scale of the start) without what second-order classes repeat."""
    scheduler = diffusers_scheduler(sampler, file)
    scheduler.set_timesteps(n_steps)
    timesteps, sigmas = scheduler.timesteps.numpy(), getattr(scheduler, "sigmas", None)
    if sampler.name == "heun":
        timesteps, sigmas = timesteps[::2], torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
    elif sampler.name == "dpm2":  # a whole step, then the midpoint
        timesteps, sigmas = np.append(timesteps[::2], []), torch.cat([sigmas[:1], sigmas[1:-1:2]])
    elif sampler.name == "pndm":  # the second timestep is asked twice
        timesteps = np.delete(timesteps, 2) if n_steps > 1 else timesteps
    return timesteps, None if sigmas is None else sigmas.numpy(), float(scheduler.init_noise_sigma)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("file", [STABLE_DIFFUSION, COSINE], ids=["scaled_linear", "cosine"])
def test_timesteps_and_sigmas_are_those_of_diffusers(name: str, spacing: str, file: dict[str, Any]) -> None:
    for steps_offset in (0, 1):
        for n_steps in (2, 7, 20, 30, 50):
            case = {**file, "timestep_spacing": spacing, "steps_offset": steps_offset}
            ladder = ladder_of(SAMPLERS[name], case, n_steps)
            timesteps, sigmas, _ = their_steps(SAMPLERS[name], case, n_steps)
            np.testing.assert_allclose(ladder.timesteps.numpy(), timesteps, rtol=1e-6)
            if sigmas is not None:
                # at timestep 0 of the cosine schedule, float32 holds 1 - alpha_bar = 4e-5 to three digits
                np.testing.assert_allclose(ladder.sigmas.numpy(), sigmas, rtol=2e-3 if file is COSINE else 2e-4)


@pytest.mark.parametrize("sigma_spacing", ["karras", "exponential"])
@pytest.mark.parametrize("name", ["euler", "heun", "lms", "dpm2", "dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_karras_and_exponential_sigmas_are_those_of_diffusers(name: str, spacing: str, sigma_spacing: Any) -> None:
    sampler = replace(SAMPLERS[name], sigma_spacing=sigma_spacing)
    for n_steps in (2, 10, 25):
        case = {**STABLE_DIFFUSION, "timestep_spacing": spacing}
        ladder = ladder_of(sampler, case, n_steps)
        timesteps, sigmas, _ = their_steps(sampler, case, n_steps)
        assert sigmas is not None
        np.testing.assert_allclose(ladder.sigmas.numpy(), sigmas, rtol=2e-4)
        # in float32 the ends of the schedule may come out as just less than a whole timestep, and are then cut off
        np.testing.assert_allclose(ladder.timesteps.numpy(), timesteps, rtol=1e-3, atol=1 if "dpmpp" in name else 1e-2)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_start_has_the_variance_that_diffusers_gives_it(name: str, spacing: str) -> None:
    case = {**STABLE_DIFFUSION, "timestep_spacing": spacing}
    ladder = ladder_of(SAMPLERS[name], case, 10)
    _, sigmas, scale = their_steps(SAMPLERS[name], case, 10)
    in_network = scale if sigmas is None or "dpmpp" in name else scale / np.hypot(1, sigmas[0])
    assert ladder.start_scale / np.hypot(1, float(ladder.sigmas[0])) == pytest.approx(in_network, rel=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_ladder_falls_to_zero_and_has_a_timestep_for_each_step(name: str) -> None:
    ladder = ladder_of(SAMPLERS[name], {**STABLE_DIFFUSION, "set_alpha_to_one": True}, 13)
    assert ladder.n_steps == len(ladder.timesteps) == len(ladder.sigmas) - 1 == 13
    assert (ladder.sigmas.diff() < 0).all()
    assert ladder.sigmas[-1] == 0
    assert ladder.end_scale == 1


def test_without_set_alpha_to_one_ddim_ends_at_the_first_timestep() -> None:
    ladder = ladder_of(SAMPLERS["ddim"], {**STABLE_DIFFUSION, "set_alpha_to_one": False}, 10)
    schedule = NoiseSchedule(schedule_config(STABLE_DIFFUSION, SAMPLERS["ddim"], "f"))
    assert ladder.sigmas[-1] == schedule.sigma[0]
    assert ladder.end_scale == pytest.approx(schedule.alpha_bar[0].item() ** 0.5, rel=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_step_starts_where_only_noise_is_left(name: str) -> None:
    ladder = ladder_of(SAMPLERS[name], STABLE_DIFFUSION, 1)
    assert ladder.timesteps.tolist() == [999]


def test_a_ladder_can_be_entered_further_down() -> None:
    whole = ladder_of(SAMPLERS["euler"], STABLE_DIFFUSION, 10)
    rest = whole.after(4)
    assert torch.equal(rest.sigmas, whole.sigmas[4:])
    assert torch.equal(rest.timesteps, whole.timesteps[4:])
    with pytest.raises(ValueError, match="at least one must stay"):
        whole.after(10)


@pytest.mark.parametrize("n_steps", [0, -3, 1001])
def test_steps_out_of_range_are_refused_with_the_range(n_steps: int) -> None:
    with pytest.raises(UserError, match="at least 1 and at most 1000"):
        ladder_of(SAMPLERS["euler"], STABLE_DIFFUSION, n_steps)


def test_steps_that_would_repeat_a_timestep_are_refused() -> None:
    with pytest.raises(UserError, match="take fewer steps"):
        ladder_of(SAMPLERS["dpmpp_2m"], {**STABLE_DIFFUSION, "timestep_spacing": "leading"}, 1000)
    with pytest.raises(UserError, match="steps_offset 1"):  # the last timestep would be number 1000 of 0 to 999
        ladder_of(SAMPLERS["euler"], {**STABLE_DIFFUSION, "timestep_spacing": "leading"}, 1000)


@pytest.mark.parametrize("file", [STABLE_DIFFUSION, COSINE, ZERO_SNR], ids=["scaled_linear", "cosine", "zero_snr"])
@pytest.mark.parametrize("name", ["dpmpp_2m_karras", "dpmpp_2m_exponential", "dpm2_karras"])
def test_whole_timesteps_of_spaced_sigmas_are_diffusers_in_any_number_of_steps(name: str, file: dict[str, Any]) -> None:
    """They are rounded from float32: of 18 steps of DPM++ 2M Karras one is at 575.4998, and Diffusers has 576."""
    sampler = find_sampler(name)
    if sampler.name == "dpm2" and file is ZERO_SNR:
        file = STABLE_DIFFUSION | {"beta_schedule": "linear"}  # its class in Diffusers reads no such option
    for n_steps in (*range(2, 61), 80, 91, 103, 120, 230, 356, 500):
        theirs, *_ = their_steps(sampler, file, n_steps)
        np.testing.assert_array_equal(ladder_of(sampler, file, n_steps).timesteps, theirs, err_msg=f"{n_steps} steps")
