"""What stands around the loop: the rate finder, the summary, captured predictions, two styles, torch's schedulers."""

import copy
import random
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from miniai.base.seeds import make_generator
from miniai.nn.layers import SelfAttention2D
from miniai.nn.packed import pack_weights, plus
from miniai.train.callback import Callback, CallbackError
from miniai.train.callbacks import GradientClip, SingleBatch
from miniai.train.checkpoint import Checkpoint, resume
from miniai.train.data import Loader
from miniai.train.learner import Learner
from miniai.train.live_plot import LivePlot
from miniai.train.loss_scaling import MixedPrecision
from miniai.train.lr_find import lr_find
from miniai.train.metrics import Mean, Metrics
from miniai.train.predictions import CapturePredictions, capture_predictions
from miniai.train.progress import Recorder
from miniai.train.schedulers import BatchScheduler, EpochScheduler
from miniai.train.summary import summary
from miniai.train.train_learner import MomentumCB, MomentumLearner, TrainCB, TrainLearner

X = torch.randn(16, 3, generator=make_generator(1))
Y = X.sum(dim=1, keepdim=True)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))


def make_learner(*callbacks: Callback, model: nn.Module | None = None, **given: Any) -> TrainLearner:
    model = model or make_model()
    optimizer = given.pop("optimizer", torch.optim.AdamW)(model.parameters(), lr=0.01)
    valid = Loader((X, Y), 5, seed=0, shuffle=False, drop_last=False)
    return TrainLearner(model, Loader((X, Y), 4, seed=0), F.mse_loss, optimizer, valid=valid, callbacks=callbacks)


def everything(learner: Learner) -> tuple[Any, ...]:
    counts = (learner.step, learner.epoch, learner.batch_index, learner.n_epochs, learner.stop_reason)
    gradients = [None if p.grad is None else p.grad.clone() for p in learner.model.parameters()]
    modes = [module.training for module in learner.model.modules()]
    states = copy.deepcopy((learner.model.state_dict(), learner.optimizer.state_dict()))
    return (*states, counts, gradients, modes, torch.get_rng_state(), np.random.get_state())


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


class Draws(Callback):
    """Disturbs the global generators."""

    def before_batch(self, learner: Learner) -> None:
        random.random()
        np.random.rand()


@pytest.mark.parametrize("fails", [False, True])
def test_the_rate_finder_puts_weights_optimizer_counts_and_random_states_back(fails: bool) -> None:
    recorder = Recorder(every=1)
    learner = make_learner(GradientClip(1.0), recorder, Draws())
    learner.fit(1)
    learner.model[1].eval()
    learner.model[0].weight.grad = torch.ones(8, 3)
    before, history = everything(learner), copy.deepcopy(recorder.history)
    if fails:
        learner.loss_function = lambda prediction, target: 1 / 0
        with pytest.raises(ZeroDivisionError):
            lr_find(learner, keep=(GradientClip, Draws))
    else:
        found = lr_find(learner, n_steps=12, keep=(GradientClip, Draws))
        assert len(found.rates) <= 12
        assert found.rates == tuple(sorted(found.rates))
    assert equal(everything(learner), before)
    assert recorder.history == history
    assert [type(callback) for callback in learner.callbacks] == [GradientClip, Draws, Recorder]


def test_pythons_own_random_state_is_put_back_too() -> None:
    learner = make_learner(Draws())
    jaxtyping.config.update("jaxtyping_disable", True)  # the checks of types draw from `random` themselves
    try:
        before = random.getstate()
        lr_find(learner, n_steps=3, keep=(Draws,))
        assert random.getstate() == before
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_a_fit_after_the_rate_finder_is_the_fit_without_it(tmp_path: Path) -> None:
    one, other = make_learner(), make_learner()
    plot = lr_find(one, n_steps=8).plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes() == plot.png == plot._repr_png_()
    one.fit(2)
    other.fit(2)
    assert equal(one.model.state_dict(), other.model.state_dict())


def test_the_rate_finder_stops_where_the_loss_goes_up_and_suggests_a_rate_that_learns() -> None:
    model = nn.Linear(3, 1)
    learner = make_learner(model=model, optimizer=torch.optim.SGD)
    found = lr_find(learner, start=1e-4, end=1e4, n_steps=60)
    assert found.rates[-1] < 100  # quadratic: SGD diverges beyond 2 / its largest curvature, which is about 1 here
    assert 1e-3 < found.suggestion < 0.5
    start = learner.validate()["loss"]
    for group in learner.optimizer.param_groups:
        group["lr"] = found.suggestion
    learner.fit(20)
    assert learner.valid_scalars["loss"] < 0.3 * start


def test_groups_keep_the_proportion_of_their_rates_in_the_rate_finder() -> None:
    learner = make_learner()
    first, last = learner.model[0].parameters(), learner.model[4].parameters()
    learner.optimizer = torch.optim.SGD([{"params": first}, {"params": last, "lr": 0.5}], lr=0.1)
    seen: list[float] = []

    class Watch(Callback):
        def after_step(self, learner: Learner) -> None:
            seen.append(learner.optimizer.param_groups[1]["lr"] / learner.optimizer.param_groups[0]["lr"])

    learner.callbacks.append(Watch())
    lr_find(learner, n_steps=3, keep=(Watch,))
    assert seen == pytest.approx([5.0] * 3)


def test_multiply_adds_and_parameters_are_those_of_the_closed_forms() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 5, padding=2, groups=4),
        nn.ConvTranspose2d(8, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(2 * 16 * 12, 7),
    )
    model[1].eval()
    found = summary(model, torch.zeros(2, 3, 16, 12))
    pixels = 2 * 8 * 6
    expected = [8 * 3 * 9 * pixels, 0, 8 * 2 * 25 * pixels, pixels * 8 * 2 * 4, 0, 2 * 2 * 16 * 12 * 7]
    assert [row.n_multiply_adds for row in found.rows] == expected
    assert found.n_multiply_adds == sum(expected)
    assert [row.n_parameters for row in found.rows] == [sum(p.numel() for p in layer.parameters()) for layer in model]
    assert found.n_parameters == sum(p.numel() for p in model.parameters())
    assert (found.rows[3].shape_in, found.rows[3].shape_out) == ((2, 8, 8, 6), (2, 2, 16, 12))
    assert [module.training for module in model] == [True, False, True, True, True, True]


def test_a_summary_counts_shared_weights_once_and_the_products_between_modules() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x: Tensor, scale: float) -> Tensor:
            y = self.block(self.block(x))
            return y @ y.T * scale

    model = Twice()
    model.block[0].bias.requires_grad_(False)
    found = summary(model, torch.zeros(3, 4), scale=2.0)
    assert [row.name for row in found.rows] == ["block.0", "block.1"] * 2
    assert [row.n_parameters for row in found.rows] == [20, 0, 0, 0]
    assert (found.n_parameters, found.n_trained) == (20, 16)
    assert found.n_multiply_adds == 2 * 3 * 4 * 4 + 3 * 3 * 4
    assert [row.name for row in summary(model, torch.zeros(3, 4), scale=2.0, depth=1).rows] == ["block", "block"]
    assert "block.0" in found._repr_html_()


def test_a_summary_counts_packed_layers_and_long_attention_as_plain_ones() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.second = (
                nn.Conv2d(16, 32, 3, padding=1, stride=2),
                nn.Conv2d(32, 32, 3, padding=1, groups=2),
            )
            self.attention, self.up = SelfAttention2D(32, groups=4, n_heads=1, eps=1e-5), nn.Conv2d(32, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.up(self.attention(plus(self.second, x, x)))

    model, x = Network(), torch.zeros(2, 16, 96, 96)
    plain = summary(model, x)
    n_tokens = 48 * 48
    convolutions = 16 * 32 * 9 + 16 * 32 * 9
    linear = (4 * 32 + 16) * 32
    assert plain.n_multiply_adds == 2 * n_tokens * (convolutions + linear + 2 * n_tokens * 32)
    assert summary(pack_weights(model), x).n_multiply_adds == plain.n_multiply_adds


def test_a_summary_counts_attention_as_its_closed_form() -> None:
    model = SelfAttention2D(32, groups=4, n_heads=2, eps=1e-5)
    n_tokens = 16 * 16
    linear, products = 4 * n_tokens * 32 * 32, 2 * n_tokens * n_tokens * 32
    assert summary(model, torch.zeros(1, 32, 16, 16)).n_multiply_adds == linear + products


def test_captured_predictions_are_those_of_the_model_in_the_order_of_the_data() -> None:
    learner = make_learner()
    learner.fit(1)
    state, scalars = everything(learner), dict(learner.valid_scalars)
    predictions, targets = capture_predictions(learner)
    assert torch.equal(targets, Y)
    assert torch.allclose(predictions, learner.model.eval()(X), atol=1e-6)
    learner.model.train()
    other = Loader((X[:3], Y[:3]), 2, seed=0, shuffle=False, drop_last=False)
    inputs, losses = capture_predictions(
        learner, other, lambda learner: (learner.batch[0], (learner.outputs["prediction"] - learner.batch[1]) ** 2)
    )
    assert torch.equal(inputs, X[:3])
    assert losses.shape == (3, 1)
    assert equal(everything(learner), state)
    assert learner.valid_scalars == scalars


def test_the_subclass_the_callback_and_the_plain_objective_learn_the_same() -> None:
    def objective(model: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    subclass = make_learner()
    plain, callback = make_model(), make_model()
    data = Loader((X, Y), 4, seed=0)
    learners = [
        subclass,
        Learner(plain, data, objective, torch.optim.AdamW(plain.parameters(), lr=0.01)),
        Learner(
            callback, data, None, torch.optim.AdamW(callback.parameters(), lr=0.01), callbacks=[TrainCB(F.mse_loss)]
        ),
    ]
    for learner in learners:
        learner.fit(2)
    assert equal(subclass.model.state_dict(), plain.state_dict())
    assert equal(subclass.model.state_dict(), callback.state_dict())


def test_both_momentum_styles_are_sgd_with_momentum() -> None:
    def trained(kind: str) -> Tensor:
        model = nn.Linear(3, 1)
        nn.init.constant_(model.weight, 0.1)
        nn.init.zeros_(model.bias)
        data, momentum = Loader((X, Y), 4, seed=0), 0.9 if kind == "torch" else 0.0
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=momentum)
        if kind == "callback":
            Learner(model, data, None, optimizer, callbacks=[MomentumCB(F.mse_loss, momentum=0.9)]).fit(2)
        elif kind == "subclass":
            MomentumLearner(model, data, F.mse_loss, optimizer, momentum=0.9).fit(2)
        else:
            TrainLearner(model, data, F.mse_loss, optimizer).fit(2)
        return model.weight.detach()

    assert torch.allclose(trained("callback"), trained("torch"), atol=1e-6)
    assert torch.equal(trained("callback"), trained("subclass"))


def test_each_of_the_five_parts_of_traincb_can_be_changed_and_a_failing_one_is_named() -> None:
    calls: list[str] = []

    class Chatty(TrainCB):
        def __getattribute__(self, name: str) -> Any:
            if name in ("predict", "get_loss", "backward", "optimizer_step", "zero_grad"):
                calls.append(name)
            return super().__getattribute__(name)

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    learner = Learner(model, Loader((X, Y), 16, seed=0), None, optimizer, callbacks=[Chatty(F.mse_loss)])
    learner.fit(1)
    assert list(dict.fromkeys(calls)) == ["predict", "get_loss", "backward", "optimizer_step", "zero_grad"]

    class Clumsy(TrainCB):
        def backward(self, learner: Learner) -> None:
            raise ZeroDivisionError("by 0")

    learner.callbacks = [Clumsy(F.mse_loss)]
    with pytest.raises(CallbackError, match="callback Clumsy failed in backward: ZeroDivisionError: by 0"):
        learner.fit(2)
    learner.callbacks = []
    with pytest.raises(ValueError, match="no objective"):
        learner.fit(2)


def test_another_callback_that_does_a_part_goes_before_traincb() -> None:
    class Doubled(Callback):
        order = -90

        def backward(self, learner: Learner) -> None:
            (2 * learner.loss).backward()

    def gradient(*callbacks: Callback) -> Tensor:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        Learner(model, Loader((X, Y), 16, seed=0), None, optimizer, callbacks=callbacks).fit(1)
        return (model[0].weight - make_model()[0].weight).detach()

    assert torch.allclose(gradient(Doubled(), TrainCB(F.mse_loss)), 2 * gradient(TrainCB(F.mse_loss)), atol=1e-7)


def test_single_batch_trains_one_batch_and_stops() -> None:
    learner = make_learner(SingleBatch())
    learner.fit(3)
    assert (learner.step, learner.epoch, learner.stop_reason) == (1, 0, "one batch is done")


SCHEDULERS: dict[str, Callable[..., Any]] = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ConstantLR": partial(lr_scheduler.ConstantLR, factor=0.5, total_iters=3),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=10),
    "CosineAnnealingWarmRestarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=4),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=0.001, max_lr=0.01, step_size_up=3, cycle_momentum=False),
    "ExponentialLR": partial(lr_scheduler.ExponentialLR, gamma=0.9),
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    "LinearLR": partial(lr_scheduler.LinearLR, total_iters=6),
    "MultiplicativeLR": partial(lr_scheduler.MultiplicativeLR, lr_lambda=lambda step: 0.95),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[3, 7], gamma=0.1),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20),
    "PolynomialLR": partial(lr_scheduler.PolynomialLR, total_iters=12),
    "ReduceLROnPlateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[5]
    ),
    "StepLR": partial(lr_scheduler.StepLR, step_size=2),
}


def test_the_table_of_schedulers_has_every_one_of_torchs() -> None:
    there = {
        name
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert there - {"LRScheduler"} == set(SCHEDULERS)


class Rates(Callback):
    """The rate that each step was made with."""

    order = -1

    def __init__(self) -> None:
        self.seen: list[float] = []

    def after_backward(self, learner: Learner) -> None:
        self.seen.append(learner.optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_torch_scheduler_gives_its_own_rates_also_over_a_resume(name: str, tmp_path: Path) -> None:
    make = SCHEDULERS[name]
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = make(optimizer)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))

    def learner_with(rates: Rates) -> Learner:
        learner = make_learner(BatchScheduler(make), rates, Checkpoint(tmp_path, every_minutes=None))
        learner.loss_function = lambda prediction, target: 0 * F.mse_loss(prediction, target) + 1
        return learner

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*epoch parameter.*")
        first, second = Rates(), Rates()
        learner_with(first).fit(1)
        assert first.seen == pytest.approx(expected[:4], rel=1e-12)
        again = learner_with(second)
        assert resume(again, tmp_path)
        again.fit(3)
    assert second.seen == pytest.approx(expected[4:], rel=1e-12)


def test_an_epoch_scheduler_steps_once_an_epoch_and_tells_plateau_the_validations_metric() -> None:
    rates = Rates()
    learner = make_learner(EpochScheduler(partial(lr_scheduler.ExponentialLR, gamma=0.5)), rates)
    learner.fit(3)
    assert rates.seen == pytest.approx([0.01] * 4 + [0.005] * 4 + [0.0025] * 4)

    recorder = Recorder()
    learner = make_learner(EpochScheduler(partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.2)), recorder)
    learner.fit(5)
    alone = torch.optim.AdamW(make_model().parameters(), lr=0.01)
    plateau = lr_scheduler.ReduceLROnPlateau(alone, patience=0, threshold=0.2)
    for loss in recorder.history["valid_loss"][1]:
        plateau.step(loss)
    assert learner.optimizer.param_groups[0]["lr"] == alone.param_groups[0]["lr"] < 0.01
    with pytest.raises(CallbackError, match="no 'accuracy', only loss"):
        make_learner(EpochScheduler(SCHEDULERS["ReduceLROnPlateau"], "accuracy")).fit(1)


def test_the_live_plot_is_drawn_during_the_fit_and_shown_and_needs_a_recorder(tmp_path: Path) -> None:
    steps: list[int] = []
    path = tmp_path / "live.png"
    learner = make_learner(
        Recorder(every=1), LivePlot(path, every_seconds=0, show=lambda plot: steps.append(learner.step))
    )
    learner.fit(2)
    assert steps == [*range(1, 9), 8]
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(CallbackError, match="give the Learner a Recorder too"):
        make_learner(LivePlot(path)).fit(1)


def test_recorder_plots_leave_out_the_first_steps_and_show_themselves(tmp_path: Path) -> None:
    recorder = Recorder(every=1)
    make_learner(recorder).fit(2)
    whole, late = recorder.plot(), recorder.plot(tmp_path / "late.png", skip=4)
    assert whole.png[:4] == late.png[:4] == b"\x89PNG"
    assert whole.png != late.png
    assert recorder.plot_rates().png != whole.png
    assert (tmp_path / "late.png").read_bytes() == late.png


def test_the_rate_finder_finds_the_same_with_and_without_validation_data() -> None:
    with_valid, without = make_learner(), make_learner()
    without.valid = None
    found, wanted = (lr_find(one, n_steps=30, end=0.1, stop_at=1e9) for one in (with_valid, without))
    assert len(wanted.rates) == 30  # several epochs
    assert found == wanted
    assert with_valid.valid is not None


class Remembering(nn.Module):
    """Puts a new tensor into its buffer at each call, as batch norms written by hand do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x - self.mean


def test_the_rate_finder_puts_reassigned_buffers_and_a_loss_scale_back() -> None:
    half = MixedPrecision(initial_scale=2.0**16)
    learner = make_learner(half, model=nn.Sequential(Remembering(), nn.Linear(3, 1)))
    mean = learner.model[0].mean
    lr_find(learner, end=1e6, n_steps=20)
    assert learner.model[0].mean is mean
    assert torch.equal(mean, torch.zeros(3))
    assert half.scale == 2.0**16


def test_capturing_predictions_is_not_written_down_by_those_who_look_on() -> None:
    recorder, mine = Recorder(every=1), CapturePredictions()
    learner = make_learner(recorder, mine, Metrics({"mean": Mean()}, lambda learner: (learner.outputs["prediction"],)))
    learner.fit(1)
    history, captured = copy.deepcopy(recorder.history), mine.captured
    other = Loader((X + 5, Y), 4, seed=0)
    assert len(capture_predictions(learner, other)[0]) == len(X)
    assert recorder.history == history
    assert mine.captured is captured
