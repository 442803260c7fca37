"""Networks as denoisers, and guidance as a denoiser made from one."""

from collections.abc import Callable

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers_oracle import STABLE_DIFFUSION, network, start_noise
from torch import Tensor

from miniai.diffusion.denoiser import NetworkDenoiser, autoguided, clipped, conditioned, guided, rescale_guided
from miniai.diffusion.parametrisation import from_x0
from miniai.diffusion.sampling import SAMPLERS, schedule_config
from miniai.diffusion.schedule import NoiseSchedule


def schedule_of(prediction_type: str = "epsilon") -> NoiseSchedule:
    file = {**STABLE_DIFFUSION, "prediction_type": prediction_type}
    return NoiseSchedule(schedule_config(file, SAMPLERS["euler"], "f"))


def coloured(x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
    """A network that heeds its condition, (b, 3)."""
    return network(x, timestep) + condition[:, :, None, None] * torch.cos(x)


X = start_noise(1) * 3
SIGMA = torch.tensor([2.5, 0.7])
YES, NO = torch.tensor([[0.5, 0.1, -0.2], [0.3, 0.3, 0.9]]), torch.zeros(2, 3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_x0_follows_from_the_networks_prediction_by_its_definition(prediction_type: str) -> None:
    schedule = schedule_of(prediction_type)
    sigma = SIGMA[:, None, None, None]
    alpha, spread = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    x_t = alpha * X
    output = network(x_t, schedule.sigma_to_t(SIGMA))
    expected = {
        "epsilon": (x_t - spread * output) / alpha,
        "v_prediction": alpha * x_t - spread * output,
        "sample": output,
    }[prediction_type]
    torch.testing.assert_close(NetworkDenoiser(network, schedule)(X, SIGMA), expected)


def test_a_ladders_sigmas_are_told_as_its_timesteps_and_others_are_interpolated() -> None:
    schedule = schedule_of()
    ladder = SAMPLERS["euler"].ladder(schedule, 7)
    told = NetworkDenoiser(network, schedule, ladder).timestep(ladder.sigmas[:-1].float())
    torch.testing.assert_close(told, ladder.timesteps.float(), rtol=0, atol=0)
    between = (ladder.sigmas[1:4] * 1.1).float()
    denoiser = NetworkDenoiser(network, schedule, ladder)
    assert torch.equal(denoiser.timestep(between), schedule.sigma_to_t(between))
    assert denoiser.timestep(between.double()).dtype == torch.float32


def test_the_network_computes_in_its_own_dtype_and_the_rest_stays_in_float32() -> None:
    seen: list[torch.dtype] = []

    def half_network(x: Tensor, timestep: Tensor, condition: Tensor | None) -> Tensor:
        seen.extend([x.dtype, timestep.dtype])
        return network(x, timestep)

    x0 = NetworkDenoiser(half_network, schedule_of(), dtype=torch.bfloat16)(X, SIGMA)
    assert seen == [torch.bfloat16, torch.float32]
    assert x0.dtype == torch.float32
    full = NetworkDenoiser(network, schedule_of())(X, SIGMA)
    assert 0 < (x0 - full).abs().max() < 0.1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_guidance_equals_guidance_on_the_networks_own_prediction(prediction_type: str) -> None:
    schedule = schedule_of(prediction_type)
    denoiser = NetworkDenoiser(coloured, schedule)

    def guided_network(x: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        yes, no = coloured(x, timestep, YES), coloured(x, timestep, NO)
        return no + 7.5 * (yes - no)

    expected = NetworkDenoiser(guided_network, schedule)(X, SIGMA)
    torch.testing.assert_close(guided(denoiser, YES, NO, 7.5)(X, SIGMA), expected, rtol=1e-5, atol=1e-5)


def test_guidance_asks_the_network_once_for_both_branches() -> None:
    batches: list[int] = []

    def counted(x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        batches.append(len(x))
        return coloured(x, timestep, condition)

    denoiser = NetworkDenoiser(counted, schedule_of())
    guided(denoiser, YES, NO, 3.0)(X, SIGMA)
    assert batches == [4]
    guided(denoiser, YES, NO, 1.0)(X, SIGMA)
    assert batches == [4, 2]


def test_guidance_of_scale_1_is_the_condition_alone_and_of_scale_0_the_negative_alone() -> None:
    denoiser = NetworkDenoiser(coloured, schedule_of())
    assert torch.equal(guided(denoiser, YES, NO, 1.0)(X, SIGMA), conditioned(denoiser, YES)(X, SIGMA))
    torch.testing.assert_close(guided(denoiser, YES, NO, 0.0)(X, SIGMA), conditioned(denoiser, NO)(X, SIGMA))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescaling_is_that_of_diffusers(share: float) -> None:
    yes, no = start_noise(3), start_noise(4)
    wild = no + 9 * (yes - no)
    torch.testing.assert_close(rescale_guided(wild, yes, share), rescale_noise_cfg(wild, yes, share))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_rescaled_guidance_rescales_the_networks_own_prediction(prediction_type: str) -> None:
    schedule = schedule_of(prediction_type)

    def rescaled_network(x: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        yes, no = coloured(x, timestep, YES), coloured(x, timestep, NO)
        return rescale_noise_cfg(no + 9 * (yes - no), yes, 0.7)

    expected = NetworkDenoiser(rescaled_network, schedule)(X, SIGMA)
    ours = guided(NetworkDenoiser(coloured, schedule), YES, NO, 9.0, rescale=0.7, rescale_as=prediction_type)(X, SIGMA)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    deviation = from_x0(ours, X, SIGMA, prediction_type).std(dim=(1, 2, 3))
    plain = from_x0(guided(NetworkDenoiser(coloured, schedule), YES, NO, 9.0)(X, SIGMA), X, SIGMA, prediction_type)
    assert (deviation < plain.std(dim=(1, 2, 3))).all()


def test_guidance_acts_within_its_interval_only_for_each_image_by_itself() -> None:
    denoiser = NetworkDenoiser(coloured, schedule_of())
    everywhere, nowhere = guided(denoiser, YES, NO, 5.0)(X, SIGMA), conditioned(denoiser, YES)(X, SIGMA)
    some = guided(denoiser, YES, NO, 5.0, interval=(1.0, 4.0))(X, SIGMA)  # sigma is 2.5 and 0.7
    torch.testing.assert_close(some[0], everywhere[0])
    torch.testing.assert_close(some[1], nowhere[1])


def test_outside_its_interval_guidance_costs_nothing() -> None:
    batches: list[int] = []

    def counted(x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        batches.append(len(x))
        return coloured(x, timestep, condition)

    denoiser = NetworkDenoiser(counted, schedule_of())
    guided(denoiser, YES, NO, 5.0, interval=(3.0, 4.0))(X, SIGMA)
    assert batches == [2]


def test_clipped_bounds_x0() -> None:
    denoiser = conditioned(NetworkDenoiser(coloured, schedule_of()), YES)
    x0 = denoiser(X, SIGMA)
    assert x0.abs().max() > 1
    assert torch.equal(clipped(denoiser, 1.0)(X, SIGMA), x0.clamp(-1, 1))


def test_a_worse_network_is_led_away_from() -> None:
    asked: list[Tensor] = []

    def worse(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma)
        return x.sin()

    def better(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.3 * x

    torch.testing.assert_close(autoguided(better, worse, 2.5)(X, SIGMA), X.sin() + 2.5 * (0.3 * X - X.sin()))
    torch.testing.assert_close(autoguided(better, worse, 0.0)(X, SIGMA), X.sin())
    asked.clear()
    assert torch.equal(autoguided(better, worse, 1.0)(X, SIGMA), 0.3 * X)
    assert asked == []


def test_away_from_a_posterior_that_is_too_wide_lies_the_right_one() -> None:
    """Data of deviation s: the exact denoiser is x s² / (s² + sigma²) (Karras et al. 2022, eq. 57). One that believes
    s = 1.5 and a worse one that believes 2 err in the same way; the right scale between them undoes the error."""
    sigma = torch.full((2,), 0.8)

    def believing(s: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, sigma: x * (s**2 / (s**2 + sigma**2))[:, None, None, None]

    true, better, worse = (float(believing(s)(torch.ones(1, 1, 1, 1), sigma[:1])) for s in (1.0, 1.5, 2.0))
    scale = (true - worse) / (better - worse)
    assert scale > 1
    torch.testing.assert_close(autoguided(believing(1.5), believing(2.0), scale)(X, sigma), believing(1.0)(X, sigma))
