"""Continuous schedules, weightings, EDM and rectified flow against closed forms, Diffusers and one another."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from miniai.base.seeds import make_generator
from miniai.diffusion.continuous import CosineTime, FlowTime, KarrasTime, LinearTime, SigmoidTime, discretised
from miniai.diffusion.continuous_objectives import (
    ContinuousDenoiser,
    ContinuousObjective,
    EDMDenoiser,
    EDMObjective,
    FlowDenoiser,
    FlowObjective,
    draw_quantiles,
)
from miniai.diffusion.ladder import cosine_sigmas, karras_sigmas
from miniai.diffusion.objectives import DiffusionObjective, min_snr_weight
from miniai.diffusion.parametrisation import PARAMETRISATIONS, convert, to_x0, training_target
from miniai.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_betas
from miniai.diffusion.weighting import P2, EDMWeight, LogNormal, MinSNR, Plain, as_weight_of_prediction

SCHEDULES = [
    LinearTime(),
    CosineTime(),
    CosineTime(0.0),
    SigmoidTime(),
    SigmoidTime(0, 3, 0.7),
    KarrasTime(),
    FlowTime(3),
]
X0 = torch.randn((6, 2, 4, 4), generator=make_generator(0))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.sampled_from(SCHEDULES), st.floats(0.001, 0.998))
def test_time_undoes_sigma_and_sigma_rises(schedule: Any, t: float) -> None:
    times = torch.tensor([t, t + 0.0005], dtype=torch.float64)
    sigmas = schedule.sigma(times)
    torch.testing.assert_close(schedule.time(sigmas), times, rtol=0, atol=1e-8)
    assert sigmas[0] < sigmas[1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_finite_from_0_to_1(schedule: Any) -> None:
    sigmas = schedule.sigma(torch.linspace(0, 1, 11, dtype=torch.float64))
    assert sigmas.isfinite().all()
    assert (sigmas.diff() > 0).all()
    assert sigmas[0] < 0.05
    assert sigmas[-1] > 40


def test_continuous_schedules_are_the_limits_of_the_discrete_ones() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    fine = NoiseSchedule(ScheduleConfig(10_000, 0.1 / 10_000, 20 / 10_000))
    torch.testing.assert_close(LinearTime().sigma(t), fine.sigma[(t * 10_000).long() - 1], rtol=5e-3, atol=0)
    cosine = make_betas(ScheduleConfig(beta_schedule="squaredcos_cap_v2"))
    ours = torch.tensor(discretised(CosineTime()).trained_betas, dtype=torch.float64)
    torch.testing.assert_close(ours[:-1], cosine[:-1], rtol=1e-9, atol=1e-12)  # the last: a little signal stays
    karras = torch.from_numpy(karras_sigmas(0.002, 80.0, 11))
    torch.testing.assert_close(KarrasTime().sigma(torch.linspace(1, 0, 11, dtype=torch.float64)), karras)


def test_a_schedule_that_begins_with_noise_is_discretised_at_its_own_places() -> None:
    karras = KarrasTime(sigma_min=0.5)
    t = torch.arange(1, 11, dtype=torch.float64) / 10
    ours = NoiseSchedule(discretised(karras, 10))
    torch.testing.assert_close(ours.sigma[:3], karras.sigma(t)[:3], rtol=1e-9, atol=0)


def test_the_sigmoid_schedule_of_time_is_its_papers_formula() -> None:
    def paper(t: float, start: float = -3, end: float = 3, tau: float = 1.0) -> float:  # Chen 2023, algorithm 1
        v_start, v_end = 1 / (1 + math.exp(-start / tau)), 1 / (1 + math.exp(-end / tau))
        return (v_end - 1 / (1 + math.exp(-(t * (end - start) + start) / tau))) / (v_end - v_start)

    for t in (0.1, 0.5, 0.8):
        sigma = SigmoidTime().sigma(torch.tensor([t], dtype=torch.float64)).item()
        assert 1 / (1 + sigma**2) == pytest.approx(paper(t), rel=1e-12)


def test_the_discrete_sigmoid_schedule_is_diffusers() -> None:
    ours = make_betas(ScheduleConfig(beta_schedule="sigmoid"))
    torch.testing.assert_close(ours.float(), DDPMScheduler(beta_schedule="sigmoid").betas, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("source", PARAMETRISATIONS)
@pytest.mark.parametrize("target", PARAMETRISATIONS)
def test_every_pair_of_parametrisations_closes_within_a_millionth(source: Any, target: Any) -> None:
    generator = make_generator(1)
    x0, noise = torch.randn(2, 9, 1, 3, 3, generator=generator, dtype=torch.float64)
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    x = x0 + sigma[:, None, None, None] * noise
    there = convert(training_target(source, x0, noise, sigma, 0.7), x, sigma, source, target, 0.7)
    torch.testing.assert_close(there, training_target(target, x0, noise, sigma, 0.7), rtol=1e-6, atol=1e-6)
    back = convert(there, x, sigma, target, source, 0.7)
    torch.testing.assert_close(to_x0(back, x, sigma, source, 0.7), x0, rtol=1e-6, atol=1e-6)


def test_weights_are_those_of_their_papers() -> None:
    sigma = torch.tensor([0.1, 0.7, 3.0], dtype=torch.float64)
    snr, level = sigma**-2, 1 / (1 + sigma**2)
    one = torch.ones(3, dtype=torch.float64)
    for kind in ("epsilon", "sample", "v_prediction"):
        ours = as_weight_of_prediction(MinSNR(5.0), sigma, kind)
        torch.testing.assert_close(ours, min_snr_weight(level, kind, 5.0))
        torch.testing.assert_close(as_weight_of_prediction(Plain(kind), sigma, kind), one)
    torch.testing.assert_close(as_weight_of_prediction(P2(0.5, 2.0), sigma, "epsilon"), (2 + snr) ** -0.5)
    torch.testing.assert_close(as_weight_of_prediction(P2(0.0), sigma, "epsilon"), one)
    torch.testing.assert_close(as_weight_of_prediction(EDMWeight(0.5), sigma, "edm", 0.5), one)
    density = torch.from_numpy(stats.norm(-1.2, 1.2).pdf(sigma.log().numpy()))
    lognormal = as_weight_of_prediction(LogNormal(EDMWeight(0.5)), sigma, "edm", 0.5)
    torch.testing.assert_close(lognormal / lognormal[0], density / density[0])


def test_any_weight_works_for_the_discrete_objective_also_without_signal() -> None:
    schedule = NoiseSchedule(ScheduleConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True))

    def guess(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        return torch.sin(2 * x_t)

    losses = {
        name: DiffusionObjective(schedule, weight=weight, weighting=weighting)(
            guess, (X0, None), make_generator(1)
        ).item()
        for name, weight, weighting in (
            ("plain", None, "none"),
            ("plain as a weight", Plain("v_prediction"), "none"),
            ("min-SNR", None, "min_snr"),
            ("min-SNR as a weight", MinSNR(5.0), "none"),
            ("P2", P2(), "none"),
            ("log-normal", LogNormal(), "none"),
        )
    }
    assert losses["plain as a weight"] == pytest.approx(losses["plain"], rel=1e-5)
    assert losses["min-SNR as a weight"] == pytest.approx(losses["min-SNR"], rel=1e-3)
    assert all(math.isfinite(loss) for loss in losses.values())
    assert len({round(loss, 6) for loss in losses.values()}) == 4


PICTURE = torch.full((8, 1, 2, 2), 0.5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", [CosineTime(), LinearTime(), SigmoidTime()])
def test_a_network_that_knows_the_answer_has_no_continuous_loss_and_is_the_right_denoiser(
    schedule: Any, prediction_type: Any
) -> None:
    def oracle(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        sigma = schedule.sigma(t.double())[:, None, None, None]
        alpha_bar = 1 / (1 + sigma**2)
        noise = (x_t - alpha_bar.sqrt() * 0.5) / (1 - alpha_bar).sqrt()
        v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * 0.5
        return {"epsilon": noise, "v_prediction": v, "sample": torch.full_like(noise, 0.5)}[prediction_type]

    objective = ContinuousObjective(schedule, prediction_type)
    assert objective(oracle, (PICTURE, None), make_generator(2)).item() < 1e-5
    denoiser = ContinuousDenoiser(oracle, schedule, prediction_type)
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    x = 0.5 + sigma[:, None, None, None] * torch.randn(2, 1, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, sigma), torch.full_like(x, 0.5), rtol=0, atol=2e-3)


def test_the_edm_objective_is_equation_8_written_out() -> None:
    def network(x: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        return torch.sin(x) + c_noise[:, None, None, None]

    objective, generator = EDMObjective(sigma_data=0.6), make_generator(3)
    loss = objective(network, (X0, None), generator)
    generator = make_generator(3)
    sigma = objective.draw_sigmas(6, generator).float()[:, None, None, None]
    noise = torch.randn(X0.shape, generator=generator)
    d = EDMDenoiser(network, 0.6)(X0 + sigma * noise, sigma.flatten())
    weight = (sigma**2 + 0.6**2) / (sigma * 0.6) ** 2
    assert loss.item() == pytest.approx((weight * (d - X0).square()).mean().item(), rel=1e-4)


def test_edm_on_the_levels_of_the_cosine_schedule_is_v_prediction_on_data_divided_by_its_deviation() -> None:
    """The network that says F at c_noise says v = -F at the time when the cosine schedule has that noise."""
    sigma_data, schedule = 0.7, CosineTime(s=0.0)
    x0 = sigma_data * torch.randn(64, 1, 4, 4, generator=make_generator(3))

    def says_v(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        return x_t * t[:, None, None, None] ** 2 - 0.3

    def says_f(x: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        return -says_v(x, schedule.time((4 * c_noise.double()).exp() / sigma_data), condition)

    edm = EDMObjective(sigma_data, levels="cosine").errors(says_f, (x0, None), make_generator(4))
    by_v = ContinuousObjective(schedule, "v_prediction").errors(says_v, (x0 / sigma_data, None), make_generator(4))
    torch.testing.assert_close(edm, by_v, rtol=1e-4, atol=1e-5)
    assert edm.std() > 0.1
    x, sigma = torch.randn(8, 1, 4, 4, generator=make_generator(5)), torch.logspace(-2, 1.5, 8)
    ours = EDMDenoiser(says_f, sigma_data)(x, sigma)
    theirs = ContinuousDenoiser(says_v, schedule, "v_prediction")(x / sigma_data, sigma / sigma_data) * sigma_data
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_cosine_sigmas_are_evenly_apart_in_the_time_of_the_cosine_schedule() -> None:
    sigmas = torch.from_numpy(cosine_sigmas(80.0, 50, 0.7))
    times = torch.cat([CosineTime(s=0.0).time(sigmas / 0.7), torch.zeros(1)])
    assert sigmas[0].item() == pytest.approx(80, rel=1e-9)
    torch.testing.assert_close(times[:-1] - times[1:], (times[0] / 50).repeat(50).double(), rtol=1e-6, atol=1e-9)


def test_edm_preconditioning_gives_the_network_unit_input_and_asks_for_unit_output() -> None:
    data = 0.5 * torch.randn(4000, 1, 2, 2, generator=make_generator(4))
    seen: list[Tensor] = []

    def network(x: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    loss = EDMObjective(0.5)(network, (data, None), make_generator(5))
    assert seen[0].std().item() == pytest.approx(1, abs=0.03)
    assert loss.item() == pytest.approx(1, abs=0.05)


def test_the_flow_objective_is_the_velocity_of_the_line_and_its_denoiser_finds_x0() -> None:
    def oracle(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        return (x_t - 0.5) / t[:, None, None, None]  # eps - x0 where x0 is 0.5 everywhere

    assert FlowObjective()(oracle, (PICTURE, None), make_generator(6)).item() < 1e-8
    sigma = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    x = 0.5 + sigma[:, None, None, None] * torch.randn(3, 1, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(FlowDenoiser(oracle)(x, sigma), torch.full_like(x, 0.5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("stratified", [False, True])
def test_sigmas_and_times_follow_their_distributions(stratified: bool) -> None:
    generator = make_generator(7)
    edm, flow = EDMObjective(stratified=stratified), FlowObjective(mean=0.3, deviation=0.8, stratified=stratified)
    ln_sigma = torch.cat([edm.draw_sigmas(16, generator) for _ in range(60)]).log()
    assert stats.kstest(ln_sigma.numpy(), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    t = torch.cat([flow.draw_times(16, generator) for _ in range(60)])
    assert stats.kstest(torch.logit(t).numpy(), stats.norm(0.3, 0.8).cdf).pvalue > 1e-3
    even = torch.cat([draw_quantiles(16, generator, stratified) for _ in range(60)])
    assert stats.kstest(even.numpy(), stats.uniform.cdf).pvalue > 1e-3
    shifted = FlowObjective("uniform", shift=3.0, stratified=True).draw_times(2000, generator)
    assert shifted.median().item() == pytest.approx(0.75, abs=0.02)  # 3 * 0.5 / (1 + 2 * 0.5)


@pytest.mark.parametrize(
    "objective", [ContinuousObjective(), EDMObjective(), FlowObjective()], ids=lambda o: type(o).__name__
)
def test_under_autocast_the_loss_is_float32_and_has_gradients_and_follows_its_generator(objective: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 2, 3, padding=1)

    def network(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        assert t.dtype == torch.float32
        return layer(x)

    exact = objective(network, (X0, None), make_generator(1))
    assert torch.equal(exact, objective(network, (X0, None), make_generator(1)))
    assert not torch.equal(exact, objective(network, (X0, None), make_generator(2)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(network, (X0, None), make_generator(1))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    loss.backward()
    assert layer.weight.grad.isfinite().all()


class Without64Bits(TorchDispatchMode):
    """Fails where a float64 tensor comes to the device "meta", as it would on Apple's GPUs, which have none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            assert not (isinstance(one, Tensor) and one.device.type == "meta" and one.dtype == torch.float64), func
        return out


@pytest.mark.parametrize(
    "objective",
    [
        ContinuousObjective(),
        ContinuousObjective(weight=P2()),
        EDMObjective(),
        EDMObjective(levels="cosine"),
        FlowObjective(),
        DiffusionObjective(NoiseSchedule(ScheduleConfig())),
        DiffusionObjective(NoiseSchedule(ScheduleConfig()), "min_snr"),
        DiffusionObjective(NoiseSchedule(ScheduleConfig()), weight=P2()),
    ],
    ids=lambda o: f"{type(o).__name__}",
)
def test_objectives_bring_no_float64_to_the_pictures_device(objective: Any) -> None:
    seen: list[torch.dtype] = []

    def network(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        assert (x.device.type, t.device.type) == ("meta", "meta")
        seen.extend((x.dtype, t.dtype))
        return x

    pictures = torch.empty(6, 2, 4, 4, device="meta")
    with Without64Bits():
        loss = objective(network, (pictures, None), make_generator(1))
    assert (loss.device.type, loss.dtype, *seen) == ("meta", *[torch.float32] * 3)
    with pytest.raises(AssertionError), Without64Bits():
        pictures.double()
