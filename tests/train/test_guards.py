"""Numbers that are none stop the training and are named; what was saved before them stays."""

import math
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.train.callback import Callback
from miniai.train.callbacks import GradientClip
from miniai.train.checkpoint import Checkpoint, checkpoints, read_checkpoint
from miniai.train.data import Loader
from miniai.train.guards import Interrupt, NaNGuard
from miniai.train.learner import Learner
from miniai.train.metrics import Metrics


def squares(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
    return model(batch).square().mean()


class At(Callback):
    """Does `action(learner)` in `event`, while step `step` is under way."""

    def __init__(self, event: str, step: int, action: object) -> None:
        self.order = -60 if event == "after_backward" else 10
        setattr(self, event, lambda learner: action(learner) if learner.step == step else None)


def make_learner(*callbacks: Callback, objective: object = squares) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Learner(model, Loader(torch.randn(80, 4), 4, seed=0), objective, optimizer, callbacks=callbacks)


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "Inf")])
def test_a_loss_that_is_no_number_stops_at_its_own_step(value: float, word: str) -> None:
    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        return squares(model, batch, generator) + (value if learner.step == 6 else 0)

    learner = make_learner(NaNGuard(), objective=objective)
    with pytest.raises(UserError, match=f"training stopped at step 7: loss is {word}"):
        learner.fit(1)
    assert learner.step == 6
    assert all(bool(weight.isfinite().all()) for weight in learner.model.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_gradient_is_named_before_clipping_spreads_it(value: float) -> None:
    def break_one(learner: Learner) -> None:
        learner.model[1].weight.grad[0, 3] = value

    learner = make_learner(GradientClip(1.0), NaNGuard(every=1), At("after_backward", 4, break_one))
    with pytest.raises(UserError, match=r"step 5: gradient 1\.weight is (NaN|Inf)"):
        learner.fit(1)


def test_a_broken_weight_is_named_at_the_next_look() -> None:
    def break_one(learner: Learner) -> None:
        learner.model[0].bias.data[2] = math.inf

    broken = At("after_batch", 5, break_one)
    with pytest.raises(UserError, match=r"step 6: weight 0\.bias is Inf"):
        make_learner(NaNGuard(every=1000), broken).fit(1)  # by the loss, which it broke in the step after
    learner = make_learner(NaNGuard(every=6), broken)
    learner.objective = lambda model, batch, generator: model[1].bias.square().sum()  # does not see it
    with pytest.raises(UserError, match=r"step 6: weight 0\.bias is Inf"):
        learner.fit(1)


def test_the_last_good_checkpoint_stays_and_no_bad_one_is_written(tmp_path: Path) -> None:
    def break_one(learner: Learner) -> None:
        learner.model[0].weight.data[1, 1] = math.nan

    guards = [NaNGuard(every=1000), Checkpoint(tmp_path, every_minutes=None, every_steps=3)]
    learner = make_learner(*guards, At("after_batch", 6, break_one))  # just before the second checkpoint
    with pytest.raises(UserError, match=r"step 6: weight 0\.weight is NaN"):
        learner.fit(1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000003.safetensors"]
    model = read_checkpoint(checkpoints(tmp_path)[0])["model"]
    assert all(bool(weight.isfinite().all()) for weight in model.values())


def test_a_metric_that_is_no_number_is_named_after_its_epoch() -> None:
    class Odd:
        def reset(self) -> None: ...
        def update(self) -> None: ...
        def compute(self) -> float:
            return math.nan

    learner = make_learner(NaNGuard(), Metrics({"accuracy": Odd()}, lambda learner: ()))
    learner.valid = learner.train
    with pytest.raises(UserError, match="stopped at step 20: the validation's accuracy is NaN"):
        learner.fit(1)


def test_a_sound_training_is_left_alone() -> None:
    guarded, free = make_learner(NaNGuard(every=2)), make_learner()
    guarded.fit(1)
    free.fit(1)
    assert torch.equal(guarded.model[0].weight, free.model[0].weight)


def test_ctrl_c_finishes_the_step_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupt = Interrupt()
    press = At("after_loss", 3, lambda learner: signal.raise_signal(signal.SIGINT))
    learner = make_learner(interrupt, press)
    learner.fit(1)
    assert (learner.step, learner.batch_index) == (4, 4)
    assert interrupt.received == signal.SIGINT
    assert learner.stop_reason == "interrupted by SIGINT"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    learner.fit(1)
    assert learner.epoch == 1  # and a new fit goes on


def test_a_second_ctrl_c_stops_at_once() -> None:
    def press_twice(learner: Learner) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    learner = make_learner(Interrupt(), At("after_loss", 3, press_twice))
    with pytest.raises(KeyboardInterrupt):
        learner.fit(1)
    assert learner.step == 3
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_training_works_without_signals() -> None:
    learner = make_learner(Interrupt())
    thread = threading.Thread(target=learner.fit, args=(1,))
    thread.start()
    thread.join(30)
    assert learner.step == 20
