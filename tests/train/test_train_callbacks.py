"""Device, precision, clipping, averaging, schedules, budgets and things done every so often."""

import math
import time
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.train.callback import Callback
from miniai.train.callbacks import Device, Every, GradientClip, Precision, to_device
from miniai.train.data import Loader
from miniai.train.ema import EMA
from miniai.train.learner import Learner
from miniai.train.schedule import Budget, Schedule, fraction_done, warmup_constant_cosine


def squares(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
    return model(batch).square().mean()


def make_learner(*callbacks: Callback, objective: Any = squares, lr: float = 0.1) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    data = torch.randn(16, 4, generator=make_generator(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Learner(model, Loader(data, 4, seed=0), objective, optimizer, callbacks=callbacks)


class Watch(Callback):
    """Keeps `look(learner)` at an event."""

    order = 99

    def __init__(self, event: str, look: Any) -> None:
        self.seen: list[Any] = []
        setattr(self, event, lambda learner: self.seen.append(look(learner)))


Pair = namedtuple("Pair", "image label")


def test_device_moves_every_tensor_of_a_nested_batch_and_keeps_its_structure() -> None:
    batch = {"a": [torch.zeros(2), (torch.ones(1), "text")], "b": Pair(torch.zeros(3), 7)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == moved["a"][1][0].device.type == moved["b"].image.device.type == "meta"
    assert moved["a"][1][1] == "text"
    assert isinstance(moved["b"], Pair)
    assert moved["b"].label == 7
    assert batch["a"][0].device.type == "cpu"  # the batch itself is as it was


def test_device_moves_the_model_its_optimizer_state_and_the_batches() -> None:
    learner = make_learner()
    learner.model = nn.Linear(4, 1, device="meta")
    weight = learner.model.weight
    learner.optimizer = torch.optim.AdamW(learner.model.parameters())
    learner.optimizer.state[weight] = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(1, 4)}  # as a resume leaves it
    learner.model.register_buffer("scale", torch.ones(1))
    device = Device("meta")
    device.before_fit(learner)
    learner.batch = torch.zeros(2, 4)
    device.before_batch(learner)
    assert learner.model.scale.device.type == learner.batch.device.type == "meta"
    assert learner.optimizer.state[weight]["exp_avg"].device.type == "meta"
    assert learner.optimizer.state[weight]["step"].device.type == "cpu"  # where AdamW wants it


def test_precision_computes_in_bfloat16_and_leaves_weights_gradients_and_optimizer_in_float32() -> None:
    seen: list[torch.dtype] = []

    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        prediction = model(batch)
        seen.append(prediction.dtype)
        return prediction.float().square().mean()

    gradients = Watch("after_backward", lambda learner: {p.grad.dtype for p in learner.model.parameters()})
    learner = make_learner(Precision(), gradients, objective=objective)
    learner.optimizer = torch.optim.AdamW(learner.model.parameters())
    learner.fit(1)
    assert set(seen) == {torch.bfloat16}
    assert gradients.seen[0] == {torch.float32}
    assert {p.dtype for p in learner.model.parameters()} == {torch.float32}
    assert {v.dtype for s in learner.optimizer.state.values() for v in s.values()} == {torch.float32}


def test_precision_float32_is_no_autocast_at_all() -> None:
    one, other = make_learner(Precision(torch.float32)), make_learner()
    one.fit(1)
    other.fit(1)
    assert torch.equal(one.model[0].weight, other.model[0].weight)
    with pytest.raises(ValueError, match="bfloat16 or float32"):
        Precision(torch.float16)


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_clipping_scales_all_gradients_together_down_to_the_norm(max_norm: float) -> None:
    def gradients(learner: Learner) -> Tensor:
        return torch.cat([p.grad.flatten() for p in learner.model.parameters()])

    before, after = Watch("after_backward", gradients), Watch("after_backward", gradients)
    before.order = -1
    learner = make_learner(before, GradientClip(max_norm), after)
    learner.fit(1)
    norm = before.seen[-1].norm()
    expected = before.seen[-1] * min(1.0, max_norm / norm.item())
    assert torch.allclose(after.seen[-1], expected, rtol=1e-3)
    assert learner.scalars["gradient_norm"].item() == pytest.approx(norm.item(), rel=1e-5)


def test_ema_is_its_closed_form() -> None:
    """s_n = d^n w_0 + (1 - d) Σ d^(n-i) w_i, with warmup=1, which switches the warmup off."""
    weights = Watch("after_step", lambda learner: learner.model[0].weight.detach().double().clone())
    ema = EMA(0.7, warmup=1)
    learner = make_learner(ema, weights)
    start = learner.model[0].weight.detach().double().clone()
    learner.fit(3)
    n = len(weights.seen)
    assert n == 12
    expected = 0.7**n * start + 0.3 * sum(0.7 ** (n - 1 - i) * weight for i, weight in enumerate(weights.seen))
    assert torch.allclose(ema.shadow["0.weight"].double(), expected, atol=1e-6)
    assert (ema.shadow["0.weight"] - learner.model[0].weight).abs().max() > 1e-3


def test_ema_warms_up_by_one_plus_n_over_warmup_plus_n() -> None:
    weights = Watch("after_step", lambda learner: learner.model[0].weight.detach().double().clone())
    ema = EMA(0.9, warmup=5)
    learner = make_learner(ema, weights)
    expected = learner.model[0].weight.detach().double().clone()
    learner.fit(15)
    for n, weight in enumerate(weights.seen, 1):
        decay = min(0.9, (1 + n) / (5 + n))
        expected = decay * expected + (1 - decay) * weight
    assert len(weights.seen) > 5 * 0.9 / 0.1 - 1  # past the end of the warmup
    assert torch.allclose(ema.shadow["0.weight"].double(), expected, atol=1e-6)


def test_ema_every_other_step_is_close_to_ema_every_step() -> None:
    each, other = EMA(0.95, warmup=1), EMA(0.95, warmup=1, every=2)
    learner = make_learner(each, other, lr=0.01)
    start = learner.model[0].weight.detach().clone()
    learner.fit(10)
    assert (each.n_updates, other.n_updates) == (40, 20)
    moved = (each.shadow["0.weight"] - start).norm()
    assert (other.shadow["0.weight"] - each.shadow["0.weight"]).norm() < 0.05 * moved


def test_the_first_steps_count_one_by_one_where_asked_and_then_as_many_at_once() -> None:
    weights = Watch("after_step", lambda learner: learner.model[0].weight.detach().double().clone())
    ema = EMA(0.95, warmup=2, every=4, each_first=8)
    learner = make_learner(ema, weights)
    expected = learner.model[0].weight.detach().double().clone()
    learner.fit(4)
    updates = [(step, 1) for step in range(1, 9)] + [(12, 4), (16, 4)]
    for n, (step, power) in enumerate(updates, 1):
        decay = min(0.95, (1 + n) / (2 + n)) ** power
        expected = decay * expected + (1 - decay) * weights.seen[step - 1]
    assert (learner.step, ema.n_updates) == (16, 10)
    assert torch.allclose(ema.shadow["0.weight"].double(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="each_first"):
        EMA(every=4, each_first=6)


def test_ema_shadows_are_float32_even_of_bfloat16_weights_and_skip_frozen_ones() -> None:
    ema = EMA()
    learner = make_learner(ema)
    learner.model[0].requires_grad_(False)
    learner.model[2].to(torch.bfloat16)
    ema.before_fit(learner)
    learner.step = 1
    ema.after_step(learner)
    assert set(ema.shadow) == {"2.weight", "2.bias"}
    assert ema.shadow["2.weight"].dtype == torch.float32


def test_ema_swap_shows_the_average_inside_and_exactly_the_weights_after_even_on_an_error() -> None:
    ema = EMA(0.9)
    learner = make_learner(ema)
    learner.fit(3)
    own = learner.model[0].weight.detach().clone()

    def look_and_fail() -> None:
        with ema.swap(learner.model) as model:
            assert torch.equal(model[0].weight, ema.shadow["0.weight"])
            assert not torch.equal(model[0].weight, own)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look_and_fail()
    assert torch.equal(learner.model[0].weight, own)
    state = ema.model_state(learner.model)
    assert torch.equal(state["2.bias"], ema.shadow["2.bias"])
    assert state.keys() == learner.model.state_dict().keys()


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, 0.0),
        (0.05, 0.5),
        (0.1, 1.0),
        (0.3, 1.0),
        (0.5, 1.0),
        (0.625, 0.5 + 0.5 * math.cos(math.pi / 4)),
        (0.75, 0.5),
        (1.0, 0.0),
    ],
)
def test_warmup_constant_cosine_has_these_values(fraction: float, expected: float) -> None:
    assert warmup_constant_cosine(0.1, 0.5)(fraction) == pytest.approx(expected, abs=1e-12)


def test_a_schedule_without_warmup_or_decay_is_constant_to_the_end() -> None:
    multiplier = warmup_constant_cosine(0.0, 1.0)
    assert [multiplier(fraction) for fraction in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="does not hold"):
        warmup_constant_cosine(0.7, 0.3)


def test_the_schedule_multiplies_each_groups_own_rate_by_the_fraction_of_the_training() -> None:
    rates = Watch("after_step", lambda learner: [group["lr"] for group in learner.optimizer.param_groups])
    learner = make_learner(Schedule(lambda fraction: 1 - fraction), rates)
    first, last = learner.model[0], learner.model[2]
    learner.optimizer = torch.optim.SGD([{"params": first.parameters()}, {"params": last.parameters(), "lr": 1.0}], 0.2)
    learner.fit(2)
    left = [1 - i / 8 for i in range(8)]
    assert rates.seen == [pytest.approx([0.2 * part, part]) for part in left]


def test_a_budget_of_steps_stops_there_and_drives_the_schedule() -> None:
    rates = Watch("after_step", lambda learner: learner.optimizer.param_groups[0]["lr"])
    budget = Budget(steps=6)
    learner = make_learner(budget, Schedule(lambda fraction: fraction), rates, lr=1.0)
    learner.fit()
    assert learner.step == 6
    assert learner.stop_reason == "the budget is spent"
    assert rates.seen == pytest.approx([i / 6 for i in range(6)])
    assert budget.fraction(learner) == fraction_done(learner) == 1.0
    learner.fit()
    assert learner.step == 6


def test_a_validation_may_follow_when_the_budget_is_spent() -> None:
    learner = make_learner(Budget(steps=3))
    learner.valid = learner.train
    learner.fit()
    assert learner.stop_reason == "the budget is spent"
    assert learner.valid_scalars == {}
    assert learner.validate()["loss"] > 0
    assert learner.step == 3


def test_a_budget_of_minutes_accumulates_over_resumes() -> None:
    class Nap(Callback):
        def before_batch(self, learner: Learner) -> None:
            time.sleep(0.02)

    first = Budget(minutes=1.0)
    learner = make_learner(first, Nap())
    learner.fit(1)
    spent = first.state_dict()["seconds"]
    assert spent >= 0.08
    time.sleep(0.05)
    assert first.state_dict()["seconds"] == spent  # the clock stands still outside a fit
    second = Budget(minutes=(spent + 0.1) / 60)
    second.load_state_dict(first.state_dict())
    assert second.fraction(learner) == pytest.approx(spent / (spent + 0.1))
    other = make_learner(second, Nap())
    other.fit()
    assert 1 <= other.step <= 5
    assert other.stop_reason == "the budget is spent"


def test_a_budget_needs_a_limit_above_zero() -> None:
    with pytest.raises(ValueError, match="minutes or steps"):
        Budget()
    for limits in ({"minutes": 0.0}, {"steps": 0}, {"minutes": float("nan")}):
        with pytest.raises(UserError, match="above zero"):
            Budget(**limits)


def test_every_calls_its_function_in_eval_mode_without_gradients_and_goes_on_training() -> None:
    seen: list[tuple[int, bool, bool]] = []

    def look(learner: Learner) -> None:
        seen.append((learner.step, learner.model.training, torch.is_grad_enabled()))

    learner = make_learner(Every(look, n_steps=3))
    learner.valid = learner.train
    learner.fit(2)
    assert seen == [(3, False, False), (6, False, False)]
    assert learner.model.training
    assert learner.step == 8


def test_every_few_minutes_is_measured_from_the_last_call() -> None:
    seen: list[int] = []
    learner = make_learner(Every(lambda learner: seen.append(learner.step), minutes=1e-9))
    learner.fit(1)
    assert seen == [1, 2, 3, 4]
    learner = make_learner(Every(lambda learner: seen.append(-1), minutes=60.0))
    learner.fit(1)
    assert -1 not in seen
    with pytest.raises(ValueError, match="either"):
        Every(print)


def test_the_average_of_a_weight_under_two_names_stands_under_both() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    ema = EMA(0.9)
    optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[ema]).fit(1)
    state = ema.model_state(model)
    assert torch.equal(state["1.weight"], state["0.weight"])
    assert not torch.equal(state["0.weight"], model[0].weight)
