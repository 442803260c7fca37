"""Names of samplers, and scheduler files as each sampler reads them."""

import inspect
import json
from dataclasses import fields
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from diffusers_oracle import SHAPE, STABLE_DIFFUSION, diffusers_scheduler, network, start_noise
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.seeds import image_generators
from miniai.diffusion.denoiser import NetworkDenoiser
from miniai.diffusion.sampling import (
    SAMPLERS,
    StopSampling,
    find_sampler,
    fresh_noise,
    n_calls,
    sample,
    sampler_from_file,
    schedule_config,
)
from miniai.diffusion.schedule import NoiseSchedule, ScheduleConfig


@pytest.mark.parametrize(
    ("given", "name", "spacing"),
    [
        ("euler", "euler", "timesteps"),
        ("Euler a", "euler_a", "timesteps"),
        ("euler_a", "euler_a", "timesteps"),
        ("DPM++ 2M", "dpmpp_2m", "timesteps"),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("dpmpp_2m_karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("LMS Karras", "lms", "karras"),
        ("DPM2", "dpm2", "timesteps"),
        ("PLMS", "pndm", "timesteps"),
        ("DDIMScheduler", "ddim", "timesteps"),
        ("EulerAncestralDiscreteScheduler", "euler_a", "timesteps"),
    ],
)
def test_samplers_are_found_by_every_name_in_use(given: str, name: str, spacing: str) -> None:
    sampler = find_sampler(given)
    assert (sampler.name, sampler.sigma_spacing) == (name, spacing)
    assert find_sampler(sampler.title).function is sampler.function  # what the metadata will say is understood again


@pytest.mark.parametrize("given", ["", "eular", "karras", "DPM++ 3M", "dpm"])
def test_an_unknown_sampler_is_refused_with_a_list_of_those_there_are(given: str) -> None:
    with pytest.raises(UserError, match="unknown sampler") as error:
        find_sampler(given)
    assert all(name in str(error.value) for name in SAMPLERS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_missing_key_takes_the_default_of_the_samplers_own_diffusers_class(name: str) -> None:
    sampler = SAMPLERS[name]
    theirs = inspect.signature(getattr(diffusers, sampler.diffusers_class)).parameters
    ours = schedule_config({}, sampler, "f")
    compared = [field.name for field in fields(ScheduleConfig) if field.name in theirs]
    assert {"beta_start", "timestep_spacing", "steps_offset", "prediction_type"} <= set(compared)
    for key in compared:
        assert getattr(ours, key) == theirs[key].default, key


@pytest.mark.parametrize("name", SAMPLERS)
def test_keys_that_a_samplers_own_class_does_not_read_are_passed_over(name: str) -> None:
    sampler = SAMPLERS[name]
    theirs = inspect.signature(getattr(diffusers, sampler.diffusers_class)).parameters
    values = {"clip_sample": True, "clip_sample_range": 2.0, "final_sigmas_type": "sigma_min"}
    config = schedule_config(values, sampler, "f")
    for key, value in values.items():
        assert (getattr(config, key) == value) == (key in theirs), key


@pytest.mark.parametrize("source", SAMPLERS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_reads_every_file_that_diffusers_writes(source: str, name: str) -> None:
    file = json.loads(diffusers_scheduler(SAMPLERS[source], STABLE_DIFFUSION).to_json_string())
    assert sampler_from_file(file, "scheduler_config.json").name == source
    config = schedule_config(file, SAMPLERS[name], "scheduler_config.json")
    assert (config.beta_end, config.beta_schedule, config.steps_offset) == (0.012, "scaled_linear", 1)


def test_the_file_may_ask_for_karras_sigmas() -> None:
    file = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
    assert sampler_from_file(file, "f").sigma_spacing == "karras"


@pytest.mark.parametrize("name", SAMPLERS)
def test_karras_sigmas_in_a_file_are_for_the_classes_that_read_them(name: str) -> None:
    theirs = getattr(diffusers, SAMPLERS[name].diffusers_class)
    file = {"_class_name": SAMPLERS[name].diffusers_class, "use_karras_sigmas": True}
    knows = "use_karras_sigmas" in inspect.signature(theirs).parameters
    assert sampler_from_file(file, "f").sigma_spacing == ("karras" if knows else "timesteps")


@pytest.mark.parametrize(
    ("file", "name", "word"),
    [
        ({"thresholding": True}, "ddim", "thresholding"),
        ({"timestep_type": "continuous"}, "euler", "timestep_type"),
        ({"use_flow_sigmas": True}, "dpmpp_2m", "use_flow_sigmas"),
        ({"lambda_min_clipped": -5.1}, "dpmpp_2m", "lambda_min_clipped"),
        ({"variance_type": "fixed_large"}, "ddpm", "variance_type"),
        ({"final_sigmas_type": "sigma_min", "euler_at_final": True}, "dpmpp_2m", "euler_at_final"),
        ({"final_sigmas_type": "sigma_min", "lower_order_final": False}, "dpmpp_2m", "lower_order_final"),
        ({"beta_schedule": "laplace"}, "euler", "beta_schedule"),
        ({"betas": 3}, "euler", "betas"),
    ],
)
def test_options_that_would_change_the_picture_unseen_are_refused(file: dict[str, Any], name: str, word: str) -> None:
    with pytest.raises(UserError, match=f"a/scheduler_config.json.*{word}"):
        schedule_config(file, SAMPLERS[name], "a/scheduler_config.json")


@pytest.mark.parametrize(
    "file",
    [
        {"_class_name": "UniPCMultistepScheduler"},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"},
    ],
)
def test_a_file_that_names_a_sampler_we_lack_is_refused_by_name(file: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="scheduler_config.json"):
        sampler_from_file(file, "scheduler_config.json")


def test_the_noise_of_steps_is_what_diffusers_draws_from_a_list_of_generators() -> None:
    noise = fresh_noise(SHAPE, image_generators(7, 2))
    theirs = image_generators(7, 2)
    for i in range(3):
        assert torch.equal(noise(i), randn_tensor(SHAPE, generator=theirs, dtype=torch.float32))
    cast = fresh_noise(SHAPE, image_generators(7, 2), like=torch.zeros(1, dtype=torch.float64))
    assert cast(0).dtype == torch.float64


def test_a_callback_that_stops_the_run_gets_the_estimate_of_its_step() -> None:
    sampler = SAMPLERS["euler"]
    schedule = NoiseSchedule(schedule_config(STABLE_DIFFUSION, sampler, "f"))
    ladder = sampler.ladder(schedule, 10)
    estimates: list[Tensor] = []

    def stop_at_4(i: int, x: Tensor, sigma: float, x0: Tensor) -> None:
        estimates.append(x0)
        if i == 4:
            raise StopSampling

    x = sample(sampler, NetworkDenoiser(network, schedule, ladder), ladder, start_noise(), callback=stop_at_4)
    assert len(estimates) == 5
    assert torch.equal(x, estimates[-1])


def test_a_start_from_a_picture_keeps_more_of_it_the_later_it_starts() -> None:
    sampler = SAMPLERS["euler"]
    schedule = NoiseSchedule(schedule_config({**STABLE_DIFFUSION, "prediction_type": "sample"}, sampler, "f"))
    ladder = sampler.ladder(schedule, 20)
    picture = start_noise(5)

    def exact(x: Tensor, sigma: Tensor) -> Tensor:  # of unit Gaussian data
        return x / (1 + sigma[:, None, None, None] ** 2)

    likeness = []
    for n_skipped in (2, 10, 18):
        x = sample(sampler, exact, ladder.after(n_skipped), start_noise(6), x0=picture)
        likeness.append(torch.corrcoef(torch.stack([x.flatten(), picture.flatten()]))[0, 1].item())
    assert likeness == sorted(likeness)
    assert likeness[-1] > 0.95 > 0.5 > likeness[0]


def test_stochastic_samplers_refuse_to_run_without_noise() -> None:
    sampler = SAMPLERS["euler_a"]
    schedule = NoiseSchedule(schedule_config(STABLE_DIFFUSION, sampler, "f"))
    ladder = sampler.ladder(schedule, 3)
    with pytest.raises(ValueError, match="pass noise="):
        sample(sampler, NetworkDenoiser(network, schedule), ladder, start_noise())


@pytest.mark.parametrize("n_steps", [1, 2, 7])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_calls_that_a_sampler_is_said_to_make_are_those_that_it_makes(name: str, n_steps: int) -> None:
    calls: list[float] = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma[0]))
        return 0.5 * x

    x = start_noise(1)
    SAMPLERS[name].function(denoiser, x, torch.linspace(9.0, 0.0, n_steps + 1), noise=lambda i: torch.zeros_like(x))
    assert n_calls(SAMPLERS[name], n_steps) == len(calls)


FOREIGN = ["UniPCMultistepScheduler", "LCMScheduler", "TCDScheduler", "SASolverScheduler", "DEISMultistepScheduler"]


@pytest.mark.parametrize("name", FOREIGN)
def test_the_schedule_of_a_file_for_another_scheduler_is_read(name: str) -> None:
    usual = diffusers.DDIMScheduler(**STABLE_DIFFUSION, prediction_type="v_prediction")
    values = dict(getattr(diffusers, name).from_config(usual.config).config)
    config = schedule_config(values | {"_class_name": name}, SAMPLERS["euler"], "file")
    assert (config.beta_start, config.beta_schedule, config.prediction_type) == (
        STABLE_DIFFUSION["beta_start"],
        STABLE_DIFFUSION["beta_schedule"],
        "v_prediction",
    )
    with pytest.raises(UserError, match="unknown sampler"):
        sampler_from_file(values | {"_class_name": name}, "file")


def test_an_unknown_key_of_a_scheduler_of_ours_is_refused() -> None:
    with pytest.raises(UserError, match="does not know surprise"):
        schedule_config({"_class_name": "DDIMScheduler", "surprise": 1}, SAMPLERS["ddim"], "file")
