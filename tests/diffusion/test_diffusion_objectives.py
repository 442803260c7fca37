"""Losses, weights and timesteps against their definitions."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from miniai.base.seeds import make_generator
from miniai.diffusion.objectives import (
    DiffusionObjective,
    diffusion_errors,
    draw_timesteps,
    drop_condition,
    min_snr_weight,
)
from miniai.diffusion.schedule import NoiseSchedule, ScheduleConfig

X0 = torch.randn((6, 2, 4, 4), generator=torch.Generator().manual_seed(0))
T = torch.tensor([0, 3, 250, 500, 900, 999])


def guess(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    return torch.sin(2 * x_t) + (t / 1000)[:, None, None, None]


def schedule_of(prediction_type: str, **fields: bool) -> NoiseSchedule:
    return NoiseSchedule(ScheduleConfig(prediction_type=prediction_type, **fields))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [None, 5.0, 1.0])
def test_the_loss_is_the_one_computed_by_hand_with_diffusers(prediction_type: str, gamma: float | None) -> None:
    scheduler = DDPMScheduler()
    noise = torch.randn(X0.shape, generator=make_generator(5))
    x_t = scheduler.add_noise(X0, noise, T)
    target = {"epsilon": noise, "sample": X0, "v_prediction": scheduler.get_velocity(X0, noise, T)}[prediction_type]
    errors = ((guess(x_t, T, None) - target) ** 2).mean(dim=(1, 2, 3))
    alpha_bar = scheduler.alphas_cumprod[T].double()
    snr = alpha_bar / (1 - alpha_bar)
    if gamma is not None:  # Hang et al. 2023: min(SNR, gamma) over what turns an error in x0 into one in the prediction
        per_x0_error = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}[prediction_type]
        errors = errors * torch.minimum(snr, torch.full_like(snr, gamma)) / per_x0_error
    alphas = schedule_of(prediction_type).alpha_bar
    ours = diffusion_errors(guess, X0, alphas, prediction_type, gamma=gamma, generator=make_generator(5), t=T)
    torch.testing.assert_close(ours, errors.float(), rtol=2e-4, atol=0)  # Diffusers' alpha_bar is float32


@settings(deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.1, 50), st.sampled_from([0.0, 1.0]))
def test_min_snr_weights_make_the_same_loss_in_every_parametrisation(
    alpha_bar: float, gamma: float, offset: float
) -> None:
    level = torch.tensor([alpha_bar], dtype=torch.float64)
    x0_error = 0.37  # then eps is wrong by this times sqrt(SNR), and v by this times sqrt(SNR + 1)
    snr = alpha_bar / (1 - alpha_bar)
    losses = [
        min_snr_weight(level, "sample", gamma, offset) * x0_error**2,
        min_snr_weight(level, "epsilon", gamma, offset) * x0_error**2 * snr,
        min_snr_weight(level, "v_prediction", gamma, offset) * x0_error**2 * (snr + 1),
    ]
    for loss in losses:
        assert loss.item() == pytest.approx(min(snr + offset, gamma) * x0_error**2, rel=1e-9)


def test_snr_plus_one_below_gamma_is_the_plain_loss_of_v_and_above_it_less() -> None:
    schedule = schedule_of("v_prediction")
    plus_one = DiffusionObjective(schedule, weighting="min_snr_plus_one", gamma=1e9)
    plain, cut = DiffusionObjective(schedule), DiffusionObjective(schedule, weighting="min_snr_plus_one", gamma=5.0)
    losses = [objective(guess, (X0, None), make_generator(1)).item() for objective in (plus_one, plain, cut)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] < losses[1]


def test_min_snr_weights_are_finite_without_signal() -> None:
    none = torch.zeros(1, dtype=torch.float64)
    assert min_snr_weight(none, "epsilon").item() == 1
    assert min_snr_weight(none, "v_prediction").item() == 0
    assert min_snr_weight(none, "sample").item() == 0
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        assert min_snr_weight(none, prediction_type, offset=1.0).isfinite()


def test_a_zero_snr_schedule_trains_v_with_a_finite_loss_towards_minus_x0() -> None:
    alphas = schedule_of("v_prediction", rescale_betas_zero_snr=True).alpha_bar
    last = torch.full((6,), 999)

    def minus_x0(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return -X0

    generator = make_generator(1)
    errors = diffusion_errors(minus_x0, X0, alphas, "v_prediction", gamma=None, generator=generator, t=last)
    assert errors.max().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_network_that_knows_the_answer_has_no_loss(prediction_type: str) -> None:
    schedule, picture = schedule_of(prediction_type), torch.full((4, 1, 2, 2), 0.5)

    def oracle(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        alpha_bar = schedule.alpha_bar[t.long()].float()[:, None, None, None]
        noise = (x_t - alpha_bar.sqrt() * 0.5) / (1 - alpha_bar).sqrt()
        v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * 0.5
        return {"epsilon": noise, "v_prediction": v, "sample": picture}[prediction_type]

    objective = DiffusionObjective(schedule, weighting="min_snr")
    assert objective(oracle, (picture, None), make_generator(2)).item() < 1e-8


def test_the_network_is_told_its_condition_and_its_timestep_in_float32() -> None:
    seen: list[Tensor] = []

    def watching(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        seen.extend([t, condition])
        return x_t

    condition = torch.arange(6)
    schedule = schedule_of("epsilon")
    diffusion_errors(
        watching, X0, schedule.alpha_bar, "epsilon", gamma=None, generator=make_generator(1), t=T, condition=condition
    )
    assert torch.equal(seen[0], T.float())
    assert seen[0].dtype == torch.float32
    assert seen[1] is condition


def test_the_same_generator_gives_the_same_loss_and_another_seed_another() -> None:
    objective = DiffusionObjective(schedule_of("epsilon"), weighting="min_snr")
    first, again, other = (objective(guess, (X0, None), make_generator(seed, 10)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, objective.errors(guess, (X0, None), make_generator(1, 10)).mean())


def test_under_bfloat16_autocast_the_loss_is_float32_and_near_and_has_gradients() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 2, 3, padding=1)

    def convolution(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return layer(x_t)

    objective = DiffusionObjective(schedule_of("v_prediction"), weighting="min_snr")
    exact = objective(convolution, (X0, None), make_generator(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(X0, T, None).dtype == torch.bfloat16
        loss = objective(convolution, (X0, None), make_generator(1))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    loss.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_timesteps_follow_their_distribution(distribution: str, stratified: bool) -> None:
    generator = make_generator(3)
    drawn = [draw_timesteps(16, 1000, generator, distribution=distribution, stratified=stratified) for _ in range(250)]
    t = torch.cat(drawn)
    assert t.dtype == torch.int64
    assert t.min() >= 0
    assert t.max() <= 999
    place = (t.numpy() + 0.5) / 1000
    known = stats.uniform if distribution == "uniform" else stats.norm
    values = place if distribution == "uniform" else [math.log(p / (1 - p)) for p in place]
    assert stats.kstest(values, known.cdf).pvalue > 1e-3


@pytest.mark.parametrize("shift", [0.5, 2.5])
def test_a_shift_moves_timesteps_as_sd3_moves_its_times(shift: float) -> None:
    generator = make_generator(11)
    drawn = torch.cat([draw_timesteps(64, 1000, generator, shift=shift, stratified=True) for _ in range(100)])
    for t in (0.2, 0.5, 0.8):
        below = (drawn < 1000 * t).double().mean()
        assert below == pytest.approx(t / (shift - (shift - 1) * t), abs=0.01)  # the inverse of eq. 23
    with pytest.raises(ValueError, match="above 0"):
        draw_timesteps(4, 1000, generator, shift=0)


def test_each_place_in_a_stratified_batch_is_itself_uniform() -> None:
    generator = make_generator(4)
    first = [draw_timesteps(8, 1000, generator, stratified=True)[0].item() for _ in range(2000)]
    assert stats.kstest([(t + 0.5) / 1000 for t in first], stats.uniform.cdf).pvalue > 1e-3


def test_a_stratified_batch_has_one_timestep_in_each_part() -> None:
    t = draw_timesteps(10, 1000, make_generator(5), stratified=True)
    assert sorted((t // 100).tolist()) == list(range(10))


def test_stratified_timesteps_make_the_loss_vary_less() -> None:
    schedule = schedule_of("epsilon")
    flat = torch.zeros(16, 1, 8, 8)

    def losses(stratified: bool) -> Tensor:
        objective = DiffusionObjective(schedule, stratified=stratified)
        return torch.stack([objective(guess, (flat, None), make_generator(seed, 1)) for seed in range(100)])

    even, free = losses(True), losses(False)
    assert even.std() < 0.7 * free.std()
    assert even.mean().item() == pytest.approx(free.mean().item(), abs=4 * free.std().item() / 100**0.5)


def test_a_tiny_network_learns_to_denoise_a_single_picture() -> None:
    torch.manual_seed(0)
    picture, schedule = torch.randn(1, 1, 2, 2).expand(32, -1, -1, -1), schedule_of("sample")
    answer = nn.Parameter(torch.zeros(1, 1, 2, 2))
    optimizer = torch.optim.Adam([answer], lr=0.1)
    objective = DiffusionObjective(schedule, weighting="min_snr")
    for step in range(150):
        loss = objective(lambda x_t, t, condition: answer.expand_as(x_t), (picture, None), make_generator(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(answer.data, picture[:1], rtol=0, atol=0.02)


def test_conditions_are_dropped_at_their_probability_and_whole() -> None:
    condition, empty = torch.ones(4000, 2, 3), torch.zeros(2, 3)
    out = drop_condition(condition, empty, 0.1, make_generator(6))
    rows = out.flatten(1).sum(1)
    assert set(rows.tolist()) == {0.0, 6.0}
    assert (rows == 0).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(condition, torch.ones(4000, 2, 3))
    assert torch.equal(drop_condition(condition, empty, 0.0, make_generator(6)), condition)
    labels = drop_condition(torch.arange(5), torch.tensor(99), 1.0, make_generator(6))
    assert labels.tolist() == [99] * 5
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        drop_condition(condition, empty, 1.5, make_generator(6))


def test_min_snr_plus_one_is_the_plain_loss_of_v_up_to_its_cut() -> None:
    snr = torch.tensor([1e-4, 0.5, 3.9, 4.1, 100.0], dtype=torch.float64)
    weight = min_snr_weight(snr / (1 + snr), "v_prediction", gamma=5.0, offset=1.0)
    expected = torch.tensor([1, 1, 1, 5 / 5.1, 5 / 101], dtype=torch.float64)
    assert torch.allclose(weight, expected)
    as_x0 = min_snr_weight(snr / (1 + snr), "sample", gamma=5.0, offset=1.0)
    as_eps = min_snr_weight(snr / (1 + snr), "epsilon", gamma=5.0, offset=1.0)
    assert torch.allclose(as_x0, weight * (snr + 1))  # an error in v is sqrt(SNR + 1) times that in x0
    assert torch.allclose(as_eps, as_x0 / snr)  # and one in eps sqrt(SNR) times
