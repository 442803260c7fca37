"""Samplers, denoisers and noise levels beside k-diffusion's own, in float64.

That package as a whole asks for torchvision, which is never installed here: the Makefile installs it without what it
depends on, and only the three modules that samplers and denoisers are made of are read.
"""

import importlib
import sys
import types
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from diffusers_oracle import SHAPE, STABLE_DIFFUSION, network
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.diffusion.denoiser import NetworkDenoiser
from miniai.diffusion.sampling import find_sampler, schedule_config
from miniai.diffusion.schedule import NoiseSchedule, PredictionType

FUNCTIONS = {
    "euler": "sample_euler",
    "euler_a": "sample_euler_ancestral",
    "heun": "sample_heun",
    "lms": "sample_lms",
    "dpm2": "sample_dpm_2",
    "dpmpp_2m": "sample_dpmpp_2m",
    "dpmpp_2m_sde": "sample_dpmpp_2m_sde",
}
DENOISERS: dict[PredictionType, str] = {
    "epsilon": "DiscreteEpsDDPMDenoiser",
    "v_prediction": "DiscreteVDDPMDenoiser",
}
N_STEPS, RHO = 12, 7.0


@pytest.fixture(scope="module")
def k_diffusion() -> Any:
    """k-diffusion's `sampling` and `external`, imported without the rest of the package."""
    spec = find_spec("k_diffusion")
    assert spec is not None, "pip install --no-deps k-diffusion, as the Makefile does"
    package, vision = types.ModuleType("k_diffusion"), types.ModuleType("torchvision.transforms")
    vars(package)["__path__"] = spec.submodule_search_locations
    vars(vision)["functional"] = None  # to make tensors of pictures, which no sampler does
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "k_diffusion", package)
        for name in ("torchvision", "torchvision.transforms"):
            patch.setitem(sys.modules, name, vision)
        return types.SimpleNamespace(
            sampling=importlib.import_module("k_diffusion.sampling"),
            external=importlib.import_module("k_diffusion.external"),
        )


def make_schedule(prediction_type: PredictionType) -> NoiseSchedule:
    values = {**STABLE_DIFFUSION, "prediction_type": prediction_type}
    return NoiseSchedule(schedule_config(values, find_sampler("euler"), "STABLE_DIFFUSION"))


def their_denoiser(k_diffusion: Any, prediction_type: PredictionType) -> Any:
    """k-diffusion's, which reads the timestep of a noise level off its own table."""
    alphas_cumprod = 1 / (1 + make_schedule(prediction_type).sigma.double() ** 2)
    return getattr(k_diffusion.external, DENOISERS[prediction_type])(network, alphas_cumprod, quantize=False)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("prediction_type", DENOISERS)
def test_our_denoiser_says_what_theirs_says_at_every_noise_level(
    k_diffusion: Any, prediction_type: PredictionType
) -> None:
    theirs = their_denoiser(k_diffusion, prediction_type)
    ours = NetworkDenoiser(network, make_schedule(prediction_type))
    generator = make_generator(0)
    for sigma in (1e-3, 0.0292, 0.1, 0.7, 3.3, 14.6, 40.0):  # the lowest and the highest are outside the schedule
        x = torch.randn(SHAPE, generator=generator, dtype=torch.float64) * (1 + sigma**2) ** 0.5
        level = torch.full((len(x),), sigma, dtype=torch.float64)
        # the network is told its timestep in float32 by ours
        assert relative_error(ours(x, level), theirs(x, level)) < 2e-5


@pytest.mark.parametrize("spacing", ["plain", "karras", "exponential"])
@pytest.mark.parametrize("prediction_type", DENOISERS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_sampler_paints_what_theirs_paints_with_their_denoiser_and_levels(
    k_diffusion: Any, name: str, prediction_type: PredictionType, spacing: str
) -> None:
    denoiser = their_denoiser(k_diffusion, prediction_type)
    sigmas = their_levels(k_diffusion, denoiser, spacing)
    compare(k_diffusion, name, denoiser, sigmas)


@pytest.mark.parametrize(
    "options", [{"s_churn": 4.0}, {"s_churn": 20.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.01}]
)
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_churn_is_theirs(k_diffusion: Any, name: str, options: dict[str, float]) -> None:
    denoiser = their_denoiser(k_diffusion, "epsilon")
    sigmas = their_levels(k_diffusion, denoiser, "karras")
    plain = compare(k_diffusion, name, denoiser, sigmas)
    assert relative_error(compare(k_diffusion, name, denoiser, sigmas, **options), plain) > 0.01


@pytest.mark.parametrize("name", ["euler_a", "dpmpp_2m_sde"])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_the_share_of_fresh_noise_is_theirs(k_diffusion: Any, name: str, eta: float) -> None:
    denoiser = their_denoiser(k_diffusion, "epsilon")
    compare(k_diffusion, name, denoiser, their_levels(k_diffusion, denoiser, "karras"), eta=eta)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_linear_multistep_is_theirs(k_diffusion: Any, order: int) -> None:
    denoiser = their_denoiser(k_diffusion, "epsilon")
    compare(k_diffusion, "lms", denoiser, their_levels(k_diffusion, denoiser, "karras"), order=order)


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_spaced_noise_levels_are_theirs(k_diffusion: Any, spacing: str) -> None:
    schedule = make_schedule("epsilon")
    ours = find_sampler(f"euler_{spacing}").ladder(schedule, N_STEPS).sigmas
    low, high = float(schedule.sigma[0]), float(schedule.sigma[-1])
    theirs = getattr(k_diffusion.sampling, f"get_sigmas_{spacing}")(N_STEPS, low, high)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=0)


def their_levels(k_diffusion: Any, denoiser: Any, spacing: str) -> Tensor:
    if spacing == "plain":
        return denoiser.get_sigmas(N_STEPS).double()
    levels = getattr(k_diffusion.sampling, f"get_sigmas_{spacing}")
    return levels(N_STEPS, float(denoiser.sigma_min), float(denoiser.sigma_max)).double()


def compare(k_diffusion: Any, name: str, denoiser: Any, sigmas: Tensor, **options: Any) -> Tensor:
    """What both paint of the same noise, drawn anew at each step by the global generator; asserts that it is one."""
    start = torch.randn(SHAPE, generator=make_generator(0), dtype=torch.float64) * float(sigmas[0])
    torch.manual_seed(1)
    theirs = getattr(k_diffusion.sampling, FUNCTIONS[name])
    noisy = {"noise_sampler": lambda *_: torch.randn_like(start)} if name in ("euler_a", "dpmpp_2m_sde") else {}
    expected = theirs(denoiser, start.clone(), sigmas, disable=True, **noisy, **options)
    torch.manual_seed(1)
    draws = [torch.randn_like(start) for _ in range(len(sigmas) - 1)]  # one a step, used or not
    painted = find_sampler(name).function(denoiser, start, sigmas, noise=lambda i: draws[i], **options)
    assert relative_error(painted, expected) < 1e-8
    return painted
