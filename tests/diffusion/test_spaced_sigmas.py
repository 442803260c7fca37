"""Karras and exponential sigmas for every sampler, under the names that A1111 gives them."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers_oracle import STABLE_DIFFUSION, drawing, network, relative_error, start_noise

from miniai.diffusion.denoiser import NetworkDenoiser
from miniai.diffusion.ladder import Ladder
from miniai.diffusion.sampling import SAMPLERS, Sampler, find_sampler, sample, schedule_config
from miniai.diffusion.schedule import NoiseSchedule

N_STEPS = 12
SPACINGS = ["karras", "exponential"]


def set_up(name: str, **changes: Any) -> tuple[Sampler, NoiseSchedule, Ladder]:
    sampler = find_sampler(name)
    schedule = NoiseSchedule(schedule_config(STABLE_DIFFUSION | changes, sampler, "f"))
    return sampler, schedule, sampler.ladder(schedule, N_STEPS)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_the_sigmas_of_either_name(name: str, spacing: str) -> None:
    sampler, schedule, ladder = set_up(f"{SAMPLERS[name].title} {spacing}")
    assert (sampler.name, sampler.sigma_spacing) == (name, spacing)
    assert sampler.title == f"{SAMPLERS[name].title} {spacing.capitalize()}"
    high, low = ladder.sigmas[0].item(), ladder.sigmas[N_STEPS - 1].item()
    ramp = np.linspace(0, 1, N_STEPS)
    if spacing == "karras":  # Karras et al. 2022, eq. 5
        expected = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    else:
        expected = high * (low / high) ** ramp
    np.testing.assert_allclose(ladder.sigmas[:N_STEPS], expected, rtol=1e-9)
    plain = set_up(name)[2].sigmas
    if name not in ("dpmpp_2m", "dpmpp_2m_sde"):  # those span the whole schedule
        assert (high, low) == pytest.approx((plain[0].item(), plain[N_STEPS - 1].item()), rel=1e-12)
    x = sample(sampler, NetworkDenoiser(network, schedule, ladder), ladder, start_noise(), noise=drawing(1))
    assert x.isfinite().all()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ancestral_euler_on_them_takes_the_steps_of_diffusers(spacing: str) -> None:
    sampler, schedule, ladder = set_up(f"euler_a_{spacing}")
    ours = sample(sampler, NetworkDenoiser(network, schedule, ladder), ladder, start_noise(), noise=drawing(1))
    theirs = diffusers.EulerAncestralDiscreteScheduler.from_config(STABLE_DIFFUSION)
    theirs.set_timesteps(N_STEPS)  # it has no such option: its steps are led through our sigmas
    theirs.sigmas, theirs.timesteps = ladder.sigmas.float(), ladder.timesteps.float()
    x, generator = start_noise() * ladder.start_scale, torch.Generator().manual_seed(1)
    for t in theirs.timesteps:
        prediction = network(theirs.scale_model_input(x, t), t.repeat(len(x)))
        x = theirs.step(prediction, t, x, generator=generator).prev_sample
    assert relative_error(ours, x) < 1e-4


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_on_them_is_eulers_method_on_them(spacing: str) -> None:
    sampler, schedule, ladder = set_up(f"ddim_{spacing}", set_alpha_to_one=True)
    denoiser, start = NetworkDenoiser(network, schedule, ladder), start_noise()
    ours = sample(sampler, denoiser, ladder, start)
    assert relative_error(ours, sample(SAMPLERS["euler"], denoiser, ladder, start)) < 1e-5


def test_a_later_start_from_a_picture_keeps_the_same_sigmas() -> None:
    ladder = set_up("dpmpp_2m_karras")[2]
    assert torch.equal(ladder.after(5).sigmas, ladder.sigmas[5:])
