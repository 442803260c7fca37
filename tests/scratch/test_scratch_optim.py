"""Optimizers and schedules against torch.optim, step by step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch_oracle import TOLERANCE, assert_same, draw, few, matrices, ours, seeds

from miniai.scratch import optim, schedules
from miniai.scratch.autograd import Variable
from miniai.scratch.creation import zeros

OPTIMIZERS = {
    "sgd": (optim.SGD, torch.optim.SGD, {"lr": 0.1}),
    "sgd, momentum": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd, decay": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}),
    "rmsprop": (optim.RMSprop, torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9}),
    "rmsprop, momentum": (optim.RMSprop, torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    "adam": (optim.Adam, torch.optim.Adam, {"lr": 0.05}),
    "adam, decay": (optim.Adam, torch.optim.Adam, {"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    "adamw": (optim.AdamW, torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(few, max_examples=5)
@given(matrices, seeds)
def test_every_step_equals_that_of_torch_optim(name: str, shape: tuple[int, int], seed: int) -> None:
    make_ours, make_theirs, options = OPTIMIZERS[name]
    start = [draw(shape, seed), draw(shape[1:], seed + 1)]
    mine = [Variable(ours(x), True) for x in start]
    theirs = [x.clone().requires_grad_() for x in start]
    our_optimizer, their_optimizer = make_ours(mine, **options), make_theirs(theirs, **options)
    for _ in range(4):
        our_optimizer.zero_grad()
        their_optimizer.zero_grad()
        ((mine[0] * mine[1] - 1) ** 2).mean().backward()
        ((theirs[0] * theirs[1] - 1) ** 2).mean().backward()
        our_optimizer.step()
        their_optimizer.step()
        for x, y in zip(mine, theirs, strict=True):
            assert_same(x.data, y.detach(), TOLERANCE)


def test_a_parameter_without_a_gradient_stays() -> None:
    x = Variable([1.0], True)
    optim.Adam([x]).step()
    assert x.data.tolist() == [1]


def test_an_optimizer_needs_parameters_and_a_rate() -> None:
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        optim.SGD([], 0.1)
    with pytest.raises(ValueError, match="cannot be negative, got -1"):
        optim.SGD([Variable(zeros(1), True)], -1.0)


# The learning rate of step i of n here, and there.
SCHEDULES = {
    "step": (
        lambda i, n: schedules.step_lr(i, 0.5, 3, 0.2),
        lambda o, n: torch.optim.lr_scheduler.StepLR(o, 3, 0.2),
    ),
    "exponential": (
        lambda i, n: schedules.exponential_lr(i, 0.5, 0.9),
        lambda o, n: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    ),
    "cosine": (
        lambda i, n: schedules.cosine_annealing_lr(i, 0.5, n, 0.01),
        lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, n, 0.01),
    ),
    "one cycle": (
        lambda i, n: schedules.one_cycle_lr(i, 0.5, n),
        lambda o, n: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=n),
    ),
    "one cycle, other peak": (
        lambda i, n: schedules.one_cycle_lr(i, 0.5, n, 0.5, 10, 100),
        lambda o, n: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.5, total_steps=n, pct_start=0.5, div_factor=10, final_div_factor=100
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@settings(few, max_examples=6)
@given(n=st.integers(5, 30))
def test_a_schedule_gives_pytorchs_learning_rates(name: str, n: int) -> None:
    schedule, make = SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.5, momentum=0.9)
    scheduler = make(optimizer, n)
    for i in range(n):
        assert schedule(i, n) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15)
        if name == "one cycle":
            assert schedules.one_cycle_momentum(i, n) == pytest.approx(optimizer.param_groups[0]["momentum"])
        if i < n - 1:
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("n_steps", [1, 2, 4, 10])
def test_one_cycle_of_any_length_reaches_its_peak_or_falls_from_it(n_steps: int) -> None:
    rates = [schedules.one_cycle_lr(i, 1.0, n_steps, 0.25) for i in range(n_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[-1] == pytest.approx(1 / 25 / 1e4)
    with pytest.raises(ValueError, match="pct_start must lie between 0 and 1, got 1"):
        schedules.one_cycle_lr(0, 1.0, n_steps, 1)


def test_a_schedule_of_no_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        schedules.one_cycle_lr(0, 0.1, 0)
    with pytest.raises(ValueError, match="step 7 is outside a schedule of 5 steps"):
        schedules.cosine_annealing_lr(7, 0.1, 5)
    with pytest.raises(ValueError, match="step_size must be at least 1, got 0"):
        schedules.step_lr(0, 0.1, 0)


def test_the_defaults_of_adamw_are_torchs() -> None:
    mine, theirs = Variable([1.0, -2.0], True), torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    (mine * mine).sum().backward()
    theirs.square().sum().backward()
    optim.AdamW([mine]).step()
    torch.optim.AdamW([theirs]).step()
    assert_same(mine.data, theirs.detach(), TOLERANCE)


def test_a_parameter_counts_the_steps_that_it_has_had_itself() -> None:
    mine = [Variable([1.0], True), Variable([1.0], True)]
    theirs = [torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    our_optimizer, their_optimizer = optim.Adam(mine, 0.1), torch.optim.Adam(theirs, 0.1)
    for step in range(6):
        our_optimizer.zero_grad()
        their_optimizer.zero_grad()
        for x in (*mine[: 1 + (step >= 3)], *theirs[: 1 + (step >= 3)]):
            (x * x).sum().backward()
        our_optimizer.step()
        their_optimizer.step()
    for x, y in zip(mine, theirs, strict=True):
        assert_same(x.data, y.detach(), TOLERANCE)
