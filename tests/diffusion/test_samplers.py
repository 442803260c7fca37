"""Every sampler's whole loop against its Diffusers scheduler, and what all samplers promise."""

import math
from typing import Any

import pytest
import torch
from diffusers_oracle import (
    SHAPE,
    STABLE_DIFFUSION,
    diffusers_loop,
    diffusers_scheduler,
    drawing,
    network,
    relative_error,
    start_noise,
)
from torch import Tensor

from miniai.base.errors import UserError
from miniai.diffusion.denoiser import NetworkDenoiser
from miniai.diffusion.samplers import ddim, ddpm, heun
from miniai.diffusion.sampling import SAMPLERS, Sampler, find_sampler, sample, schedule_config
from miniai.diffusion.schedule import NoiseSchedule

STOCHASTIC = {"euler_a", "ddpm", "dpmpp_2m_sde"}


def our_loop(
    sampler: Sampler, file: dict[str, Any], n_steps: int | dict[str, Any], start: Tensor, seed: int, **options: Any
) -> Tensor:
    config = schedule_config(file, sampler, "scheduler_config.json")
    schedule = NoiseSchedule(config)
    ladder = sampler.ladder(schedule, 0, **n_steps) if isinstance(n_steps, dict) else sampler.ladder(schedule, n_steps)
    return sample(
        sampler,
        NetworkDenoiser(network, schedule, ladder),
        ladder,
        start,
        noise=drawing(seed, tuple(start.shape)),
        clip=config.clip_sample_range if config.clip_sample else None,
        prediction_type=config.prediction_type,
        **options,
    )


def assert_equal_to_diffusers(
    sampler: Sampler, file: dict[str, Any], n_steps: int | dict[str, Any], tolerance: float = 1e-5, **options: Any
) -> None:
    theirs = diffusers_loop(diffusers_scheduler(sampler, file), n_steps, start_noise(), 1, **options)
    ours = our_loop(sampler, file, n_steps, start_noise(), 1, **options)
    assert relative_error(ours, theirs) < tolerance


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_whole_loop_gives_what_diffusers_gives(name: str, prediction_type: str) -> None:
    file = {**STABLE_DIFFUSION, "prediction_type": prediction_type}
    for n_steps in (4, 25):
        assert_equal_to_diffusers(SAMPLERS[name], file, n_steps)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("ddim", "pndm")])
def test_the_loop_equals_diffusers_for_every_timestep_spacing(name: str, spacing: str) -> None:
    assert_equal_to_diffusers(SAMPLERS[name], {**STABLE_DIFFUSION, "timestep_spacing": spacing}, 20)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_ddim_and_pndm_equal_diffusers_where_its_steps_are_of_one_size(name: str, spacing: str) -> None:
    # With other spacings Diffusers goes on from another timestep than the one it stepped to.
    assert_equal_to_diffusers(SAMPLERS[name], {**STABLE_DIFFUSION, "timestep_spacing": spacing}, 20)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma_spacing", ["karras", "exponential"])
@pytest.mark.parametrize("name", ["euler", "heun", "lms", "dpm2", "dpmpp_2m", "dpmpp_2m_sde"])
def test_the_loop_equals_diffusers_on_karras_and_exponential_sigmas(
    name: str, sigma_spacing: str, prediction_type: str
) -> None:
    file = {**STABLE_DIFFUSION, "prediction_type": prediction_type}
    assert_equal_to_diffusers(find_sampler(f"{name}_{sigma_spacing}"), file, 12, tolerance=1e-4)


# Ten steps that were optimised for Stable Diffusion 1.5 (Sabour et al. 2024, "Align Your Steps", table of the paper).
ALIGNED = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["euler", "heun", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"])
def test_the_loop_over_timesteps_that_are_given_equals_diffusers(name: str, prediction_type: str, spacing: str) -> None:
    file = {**STABLE_DIFFUSION, "prediction_type": prediction_type, "timestep_spacing": spacing}
    for timesteps in (ALIGNED, [700, 10], [999, 998, 500, 3, 0]):
        assert_equal_to_diffusers(SAMPLERS[name], file, {"timesteps": timesteps}, tolerance=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loop_over_sigmas_that_are_given_equals_diffusers(prediction_type: str) -> None:
    file = {**STABLE_DIFFUSION, "prediction_type": prediction_type}
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    assert_equal_to_diffusers(SAMPLERS["euler"], file, {"sigmas": sigmas}, tolerance=2e-5)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "pndm"])
def test_a_sampler_given_its_own_steps_takes_them(name: str) -> None:
    file = {**STABLE_DIFFUSION, "timestep_spacing": "leading"}
    ladder = SAMPLERS[name].ladder(NoiseSchedule(schedule_config(file, SAMPLERS[name], "f")), 8)
    own = our_loop(SAMPLERS[name], file, 8, start_noise(), 1)
    for given in ({"timesteps": ladder.timesteps.numpy()}, {"sigmas": ladder.sigmas.tolist()}):
        assert relative_error(our_loop(SAMPLERS[name], file, given, start_noise(), 1), own) < 1e-6


@pytest.mark.parametrize(
    ("name", "lists", "message"),
    [
        ("pndm", {"timesteps": [500, 0]}, "takes steps of one size"),
        ("euler_karras", {"timesteps": [500, 0]}, "Euler Karras places its steps itself"),
        ("lms_karras", {"sigmas": [1.0, 0.0]}, "LMS Karras places its steps itself"),
        ("euler", {"timesteps": [500, 0], "sigmas": [1.0, 0.0]}, "not both"),
        ("euler", {"timesteps": []}, "give a list of numbers"),
        ("euler", {"timesteps": [500, 500]}, "must fall from 999"),
        ("euler", {"timesteps": [1000, 0]}, "must fall from 999"),
        ("euler", {"timesteps": [500, -1]}, "to 0 at least"),
        ("euler", {"timesteps": [float("nan")]}, "give a list of numbers"),
        ("ddim", {"timesteps": [500.5, 500.2]}, "a whole one of its own"),
        ("euler", {"sigmas": [20.0, 0.0]}, r"must fall from 14\.6"),
        ("euler", {"sigmas": [1.0]}, "at least two"),
    ],
)
def test_lists_that_no_sampler_can_follow_are_refused(name: str, lists: dict[str, Any], message: str) -> None:
    sampler = find_sampler(name)
    with pytest.raises(UserError, match=message):
        sampler.ladder(NoiseSchedule(schedule_config(STABLE_DIFFUSION, sampler, "f")), 10, **lists)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_ddim_equals_diffusers_at_any_eta(eta: float, prediction_type: str) -> None:
    for set_alpha_to_one in (True, False):
        file = {**STABLE_DIFFUSION, "prediction_type": prediction_type, "set_alpha_to_one": set_alpha_to_one}
        assert_equal_to_diffusers(SAMPLERS["ddim"], file, 10, eta=eta)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun"])
def test_clip_sample_clips_as_diffusers_does(name: str) -> None:
    file = {**STABLE_DIFFUSION, "clip_sample": True, "clip_sample_range": 0.6}
    assert_equal_to_diffusers(SAMPLERS[name], file, 10)
    unclipped = our_loop(SAMPLERS[name], {**file, "clip_sample": False}, 10, start_noise(), 1)
    assert relative_error(our_loop(SAMPLERS[name], file, 10, start_noise(), 1), unclipped) > 0.01


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_a", "dpmpp_2m"])
def test_a_zero_snr_schedule_gives_what_diffusers_gives(name: str) -> None:
    file = {
        **STABLE_DIFFUSION,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    # Diffusers' Euler itself carries x at a size of 4096, in float32.
    assert_equal_to_diffusers(SAMPLERS[name], file, 10, tolerance=1e-4)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_final_sigmas_type_sigma_min_gives_what_diffusers_gives(name: str) -> None:
    file = {**STABLE_DIFFUSION, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}
    for n_steps in (10, 20):  # below 15, DPM-Solver's last step is of first order
        theirs = diffusers_loop(diffusers_scheduler(SAMPLERS[name], file), n_steps, start_noise(), 1)
        assert relative_error(our_loop(SAMPLERS[name], file, n_steps, start_noise(), 1), theirs) < 1e-5


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_an_end_above_0_after_a_start_from_a_picture_gives_what_diffusers_gives(name: str) -> None:
    """Whether DPM-Solver's last step is of first order hangs on how many steps there are with those left out: 20 with
    10 to go, and 12 with 4."""
    file = {**STABLE_DIFFUSION, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}
    sampler, picture = SAMPLERS[name], start_noise(3)
    config = schedule_config(file, sampler, "f")
    schedule = NoiseSchedule(config)
    for n_steps, n_skipped in ((20, 10), (12, 8)):
        scheduler, generator = diffusers_scheduler(sampler, file), torch.Generator().manual_seed(1)
        scheduler.set_timesteps(n_steps)
        scheduler.set_begin_index(n_skipped)
        x = scheduler.add_noise(picture, start_noise(), scheduler.timesteps[n_skipped : n_skipped + 1])
        for t in scheduler.timesteps[n_skipped:]:
            x = scheduler.step(network(x, t.repeat(len(x))), t, x, generator=generator).prev_sample
        ladder = sampler.ladder(schedule, n_steps).after(n_skipped)
        denoiser = NetworkDenoiser(network, schedule, ladder)
        ours = sample(sampler, denoiser, ladder, start_noise(), x0=picture, noise=drawing(1))
        assert relative_error(ours, x) < 1e-5


def test_ddpm_over_all_timesteps_gives_what_diffusers_gives() -> None:
    file = {"num_train_timesteps": 200, "beta_start": 5e-4, "beta_end": 0.1, "clip_sample": True}
    assert_equal_to_diffusers(SAMPLERS["ddpm"], file, 200, tolerance=1e-4)


@pytest.mark.parametrize("s_churn", [0.0, 5.0, 40.0])
def test_euler_with_churn_gives_what_diffusers_gives(s_churn: float) -> None:
    # Diffusers scales the network's input by the sigma before churn, so the network here looks at its timestep alone.
    def model(x: Tensor, timestep: Tensor) -> Tensor:
        return torch.linspace(-1, 1, x.numel()).reshape(x.shape)

    options = {"s_churn": s_churn, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.01}
    file = {**STABLE_DIFFUSION, "prediction_type": "sample"}
    theirs = diffusers_loop(diffusers_scheduler(SAMPLERS["euler"], file), 12, start_noise(), 1, model, **options)
    ladder = SAMPLERS["euler"].ladder(NoiseSchedule(schedule_config(file, SAMPLERS["euler"], "f")), 12)
    # The last step lands on x0 whatever went before, so the step before it is compared as well.
    seen: list[Tensor] = []
    ours = sample(
        SAMPLERS["euler"],
        lambda x, sigma: model(x, sigma),
        ladder,
        start_noise(),
        noise=drawing(1),
        callback=lambda i, x, sigma, x0: seen.append(x),
        **options,
    )
    assert relative_error(ours, theirs) < 1e-5
    scheduler = diffusers_scheduler(SAMPLERS["euler"], file)
    scheduler.set_timesteps(12)
    x, generator = start_noise() * scheduler.init_noise_sigma, torch.Generator().manual_seed(1)
    for t, x_ours in zip(scheduler.timesteps, seen, strict=True):
        x = scheduler.step(
            model(scheduler.scale_model_input(x, t), t), t, x, generator=generator, **options
        ).prev_sample
        assert relative_error(x_ours, x) < 1e-5


def test_heun_with_churn_between_two_sigmas_is_algorithm_2_written_out() -> None:
    s_churn, s_tmin, s_tmax, s_noise = 1.0, 0.5, 5.0, 1.1
    sigmas = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.3, 0.0], dtype=torch.float64)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(x / (1 + sigma[:, None, None, None]))

    noise = [start_noise(i).double() for i in range(5)]
    start = 9 * start_noise(7).double()
    x, n_churned = start, 0
    for i in range(5):
        t, t_next = float(sigmas[i]), float(sigmas[i + 1])
        gamma = min(s_churn / 5, math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * s_noise * noise[i]
        n_churned += gamma > 0
        d = (x_hat - denoiser(x_hat, torch.full((len(x),), t_hat))) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next > 0:
            d_next = (x - denoiser(x, torch.full((len(x),), t_next))) / t_next
            x = x_hat + (t_next - t_hat) * (d + d_next) / 2
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    ours = heun(denoiser, start, sigmas, noise=noise.__getitem__, **options)
    assert n_churned == 3
    torch.testing.assert_close(ours, x, rtol=1e-6, atol=1e-6)


def test_heun_with_churn_keeps_the_distribution_of_the_data() -> None:
    deviation = 0.5

    def exact(x: Tensor, sigma: Tensor) -> Tensor:
        return x * (deviation**2 / (deviation**2 + sigma[:, None, None, None] ** 2))

    shape = (1, 1, 128, 128)
    sigmas = find_sampler("heun_karras").ladder(NoiseSchedule(schedule_config({}, SAMPLERS["heun"], "f")), 60).sigmas
    start = start_noise(3, shape) * sigmas[0].float()
    samples = heun(exact, start, sigmas, noise=drawing(4, shape), s_churn=30.0)
    assert samples.std().item() == pytest.approx(deviation, rel=0.03)
    plain = heun(exact, start, sigmas)
    assert abs(torch.corrcoef(torch.stack([samples.flatten(), plain.flatten()]))[0, 1]) < 0.5  # fresh noise came in


def test_ddim_with_eta_1_is_ddpm() -> None:
    schedule = NoiseSchedule(schedule_config(STABLE_DIFFUSION, SAMPLERS["ddpm"], "f"))
    ladder = SAMPLERS["ddpm"].ladder(schedule, 30)
    denoiser = NetworkDenoiser(network, schedule, ladder)
    start = start_noise().double() * ladder.start_scale
    noise = [start_noise(i).double() for i in range(30)]
    with_ddim = ddim(denoiser, start, ladder.sigmas, noise=noise.__getitem__, eta=1.0)
    with_ddpm = ddpm(denoiser, start, ladder.sigmas, noise=noise.__getitem__)
    torch.testing.assert_close(with_ddim, with_ddpm, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - STOCHASTIC))
def test_samplers_that_need_no_noise_draw_none(name: str) -> None:
    def never(i: int) -> Tensor:
        raise AssertionError("noise was drawn")

    schedule = NoiseSchedule(schedule_config(STABLE_DIFFUSION, SAMPLERS[name], "f"))
    ladder = SAMPLERS[name].ladder(schedule, 5)
    x = sample(SAMPLERS[name], NetworkDenoiser(network, schedule), ladder, start_noise(), noise=never)
    assert x.isfinite().all()


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_stochastic_samplers_ask_for_each_steps_noise_once_in_order(name: str) -> None:
    asked: list[int] = []

    def noise(i: int) -> Tensor:
        asked.append(i)
        return start_noise(i)

    schedule = NoiseSchedule(schedule_config(STABLE_DIFFUSION, SAMPLERS[name], "f"))
    ladder = SAMPLERS[name].ladder(schedule, 6)
    sample(SAMPLERS[name], NetworkDenoiser(network, schedule), ladder, start_noise(), noise=noise)
    assert asked == [0, 1, 2, 3, 4]  # the last step arrives at sigma 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_leave_their_arguments_as_they_were(name: str) -> None:
    schedule = NoiseSchedule(schedule_config(STABLE_DIFFUSION, SAMPLERS[name], "f"))
    ladder = SAMPLERS[name].ladder(schedule, 6)
    x, sigmas, noise = start_noise() * ladder.start_scale, ladder.sigmas.clone(), start_noise(5)
    before = x.clone(), noise.clone()
    SAMPLERS[name].function(NetworkDenoiser(network, schedule), x, sigmas, noise=lambda i: noise)
    assert torch.equal(x, before[0])
    assert torch.equal(noise, before[1])
    assert torch.equal(sigmas, ladder.sigmas)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_callback_sees_every_step_and_may_replace_x(name: str) -> None:
    schedule = NoiseSchedule(schedule_config(STABLE_DIFFUSION, SAMPLERS[name], "f"))
    ladder = SAMPLERS[name].ladder(schedule, 6)
    denoiser, start = NetworkDenoiser(network, schedule, ladder), start_noise() * ladder.start_scale
    seen: list[tuple[int, float]] = []

    def watch(i: int, x: Tensor, sigma: float, x0: Tensor) -> None:
        seen.append((i, sigma))
        assert x.shape == x0.shape == SHAPE

    plain = SAMPLERS[name].function(denoiser, start, ladder.sigmas, noise=drawing(1), callback=watch)
    assert seen == list(enumerate(ladder.sigmas[1:].tolist()))

    def replace(i: int, x: Tensor, sigma: float, x0: Tensor) -> Tensor | None:
        return x + 1 if i == 5 else None

    shifted = SAMPLERS[name].function(denoiser, start, ladder.sigmas, noise=drawing(1), callback=replace)
    torch.testing.assert_close(shifted, plain + 1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_depend_on_those_beside_it(name: str) -> None:
    shape = (4, 3, 4, 4)
    schedule = NoiseSchedule(schedule_config(STABLE_DIFFUSION, SAMPLERS[name], "f"))
    ladder = SAMPLERS[name].ladder(schedule, 8)
    denoiser, start = NetworkDenoiser(network, schedule, ladder), start_noise(2, shape)
    noise = [start_noise(10 + i, shape) for i in range(8)]
    together = sample(SAMPLERS[name], denoiser, ladder, start, noise=noise.__getitem__)
    alone = sample(SAMPLERS[name], denoiser, ladder, start[2:3], noise=lambda i: noise[i][2:3])
    torch.testing.assert_close(together[2:3], alone)
