"""The loop: its events, its order, its three ways to stop early, and its two kinds of error."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.train.callback import (
    Callback,
    CallbackError,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
)
from miniai.train.callbacks import Every
from miniai.train.data import Loader, batch_size_of
from miniai.train.learner import Learner

EVENTS = [
    "before_fit",
    "before_epoch",
    "before_batch",
    "after_loss",
    "after_backward",
    "after_step",
    "after_batch",
    "before_validate",
    "after_validate",
    "after_epoch",
    "after_fit",
    "cleanup",
]
A_BATCH = ["before_batch", "after_loss", "after_backward", "after_step", "after_batch"]
A_VALIDATION = ["before_validate", "before_batch", "after_loss", "after_batch", "after_validate"]


class Diary(Callback):
    """Writes every event down, and raises `error` at the first `at`."""

    def __init__(self, at: str = "", error: Exception | None = None, order: int = 0, label: str = "") -> None:
        self.at, self.error, self.order, self.label = at, error, order, label
        self.events: list[str] = []
        self.shared: list[tuple[str, str]] = []

    def __getattribute__(self, name: str) -> Any:
        if name not in EVENTS:
            return super().__getattribute__(name)

        def write(learner: Learner) -> None:
            self.events.append(name)
            self.shared.append((self.label, name))
            if name == self.at and self.error is not None:
                error, self.error = self.error, None
                raise error

        return write


def squares(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
    return model(batch).square().mean()


def make_learner(*callbacks: Callback, n_items: int = 4, valid: bool = False, seed: int = 0, **given: Any) -> Learner:
    torch.manual_seed(0)
    model = given.pop("model", None) or nn.Linear(2, 1)
    data = torch.randn(n_items, 2, generator=make_generator(1))
    return Learner(
        model,
        Loader(data, 2, seed=0),
        given.pop("objective", squares),
        torch.optim.SGD(model.parameters(), lr=0.1),
        valid=Loader(data[:2], 2, seed=0) if valid else None,
        callbacks=callbacks,
        seed=seed,
    )


def test_a_fit_calls_every_event_in_the_order_of_the_algorithm() -> None:
    diary = Diary()
    make_learner(diary, valid=True).fit(2)
    epoch = ["before_epoch", *A_BATCH, *A_BATCH, *A_VALIDATION, "after_epoch"]
    assert diary.events == ["before_fit", *epoch, *epoch, "after_fit", "cleanup"]


def test_callbacks_run_by_order_and_equal_ones_as_given() -> None:
    shared: list[tuple[str, str]] = []
    diaries = [Diary(order=order, label=label) for order, label in [(5, "late"), (0, "one"), (0, "two"), (-3, "early")]]
    for diary in diaries:
        diary.shared = shared
    make_learner(*diaries).fit(1)
    assert [label for label, event in shared if event == "after_step"] == ["early", "one", "two", "late"] * 2


def test_the_result_is_plain_gradient_descent() -> None:
    learner = make_learner()
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(3):
        for batch in learner.train.batches(epoch):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    learner.fit(3)
    assert torch.equal(learner.model.weight, model.weight)
    assert (learner.step, learner.epoch, learner.batch_index) == (6, 3, 0)


def test_fit_counts_epochs_in_all_so_that_a_resumed_one_does_what_is_left() -> None:
    learner = make_learner()
    learner.fit(2)
    learner.fit(5)
    assert (learner.epoch, learner.step) == (5, 10)
    learner.fit(5)
    assert learner.step == 10


def test_cancelling_a_batch_skips_its_step_only() -> None:
    diary = Diary("after_loss", CancelBatchException())
    learner = make_learner(diary)
    learner.fit(1)
    assert diary.events == [
        "before_fit",
        "before_epoch",
        "before_batch",
        "after_loss",
        "after_batch",
        *A_BATCH,
        "after_epoch",
        "after_fit",
        "cleanup",
    ]
    assert learner.step == 1


def test_cancelling_an_epoch_skips_its_batches_and_validation_and_goes_on_with_the_next() -> None:
    diary = Diary("after_step", CancelEpochException())
    learner = make_learner(diary, valid=True)
    learner.fit(2)
    first = ["before_epoch", *A_BATCH[:4], "after_epoch"]
    second = ["before_epoch", *A_BATCH, *A_BATCH, *A_VALIDATION, "after_epoch"]
    assert diary.events == ["before_fit", *first, *second, "after_fit", "cleanup"]
    assert (learner.epoch, learner.step) == (2, 3)
    assert all(weight.grad is None for weight in learner.model.parameters())  # none leaks into the next step


def test_cancelling_the_fit_goes_straight_to_its_end_and_keeps_the_reason() -> None:
    diary = Diary("before_batch", CancelFitException("enough"))
    learner = make_learner(diary)
    learner.fit(5)
    assert diary.events == ["before_fit", "before_epoch", "before_batch", "after_fit", "cleanup"]
    assert learner.stop_reason == "enough"
    learner.fit(1)
    assert learner.stop_reason is None


def test_gradients_of_a_batch_cancelled_before_its_step_accumulate() -> None:
    class EverySecond(Callback):
        def after_backward(self, learner: Learner) -> None:
            if learner.batch_index % 2 == 0:
                raise CancelBatchException

    learner = make_learner(EverySecond())
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    sum(model(batch).square().mean() for batch in learner.train.batches(0)).backward()
    learner.fit(1)
    assert learner.step == 1
    assert torch.allclose(learner.model.weight, model.weight - 0.1 * model.weight.grad, atol=1e-7)


@pytest.mark.parametrize("event", EVENTS)
def test_an_error_in_a_callback_names_it_and_the_event_and_the_others_clean_up(event: str) -> None:
    class Clumsy(Diary):
        pass

    diaries = [Diary(), Clumsy(event, ZeroDivisionError("by 0")), Diary(order=9)]
    with pytest.raises(CallbackError, match=f"callback Clumsy failed in {event}: ZeroDivisionError: by 0") as caught:
        make_learner(*diaries, valid=True).fit(1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert [diary.events.count("cleanup") for diary in diaries] == [1, 1, 1]
    if event not in ("cleanup", "after_fit"):
        assert "after_fit" not in diaries[0].events


@pytest.mark.parametrize("when", ["asked", "entered", "left"])
def test_an_error_in_what_a_callback_puts_around_the_objective_is_named(when: str) -> None:
    class Clumsy(Callback):
        def around_forward(self, learner: Learner) -> AbstractContextManager[None]:
            if when == "asked":
                raise ZeroDivisionError("by 0")
            return self.context()

        @contextmanager
        def context(self) -> Iterator[None]:
            if when == "entered":
                raise ZeroDivisionError("by 0")
            yield
            if when == "left":
                raise ZeroDivisionError("by 0")

    diary = Diary()
    with pytest.raises(CallbackError, match="callback Clumsy failed in around_forward: ZeroDivisionError: by 0"):
        make_learner(diary, Clumsy()).fit(1)
    assert diary.events[-1] == "cleanup"


def test_what_a_callback_puts_around_the_objective_sees_the_objectives_error_and_does_not_rename_it() -> None:
    seen = []

    class Watches(Callback):
        @contextmanager
        def around_forward(self, learner: Learner) -> Iterator[None]:
            try:
                yield
            except IndexError as error:
                seen.append(str(error))
                raise

    def fail(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        raise IndexError("out of data")

    with pytest.raises(IndexError, match="out of data"):
        make_learner(Watches(), objective=fail).fit(1)
    assert seen == ["out of data"]


def test_an_error_in_the_objective_cleans_up_and_stays_what_it_was() -> None:
    def fail(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        raise IndexError("out of data")

    diary = Diary()
    with pytest.raises(IndexError, match="out of data"):
        make_learner(diary, objective=fail).fit(1)
    assert diary.events[-1] == "cleanup"
    assert "after_fit" not in diary.events


def test_a_failing_cleanup_does_not_hide_the_error_before_it() -> None:
    diaries = [Diary("cleanup", ValueError("second")), Diary("after_loss", UserError("first"))]
    with pytest.raises(UserError, match="first") as caught:
        make_learner(*diaries).fit(1)
    assert "failed in cleanup: ValueError: second" in caught.value.__notes__[0]


def test_ctrl_c_in_the_middle_of_a_batch_cleans_up() -> None:
    def stop(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        raise KeyboardInterrupt

    diary = Diary()
    with pytest.raises(KeyboardInterrupt):
        make_learner(diary, objective=stop).fit(1)
    assert diary.events[-1] == "cleanup"


def test_the_objective_draws_from_seed_and_step_alone() -> None:
    drawn: list[Tensor] = []

    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        drawn.append(torch.randn(3, generator=generator))
        return squares(model, batch, generator)

    make_learner(objective=objective, seed=9).fit(2)
    expected = [torch.randn(3, generator=make_generator(9, step)) for step in range(4)]
    assert all(torch.equal(left, right) for left, right in zip(drawn, expected, strict=True))


def test_dropout_follows_the_seed_and_leaves_the_global_generator_alone() -> None:
    weights = []
    for global_seed in (1, 2):
        learner = make_learner(model=nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1)))
        for weight in learner.model.parameters():
            nn.init.constant_(weight, 0.3)
        torch.manual_seed(global_seed)
        learner.fit(2)
        drawn = torch.randn(2)
        torch.manual_seed(global_seed)
        assert torch.equal(drawn, torch.randn(2))
        weights.append(learner.model[0].weight.detach().clone())
    assert torch.equal(*weights)
    assert weights[0].std() > 0  # the dropout did something: without it all rows stay equal


def test_scalars_are_logged_and_tensors_stay_in_outputs() -> None:
    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        prediction = model(batch)
        return {"loss": prediction.square().mean(), "prediction": prediction, "largest": prediction.max()}

    learner = make_learner(objective=objective)
    learner.fit(1)
    assert set(learner.scalars) == {"loss", "largest"}
    assert not any(value.requires_grad for value in learner.scalars.values())
    assert learner.outputs["prediction"].shape == (2, 1)


def test_validation_changes_nothing_and_averages_over_items() -> None:
    class Watch(Callback):
        def after_loss(self, learner: Learner) -> None:
            if not learner.training:
                assert not learner.model.training
                assert not learner.loss.requires_grad

    def noisy(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        return model(batch).square().mean() + torch.rand((), generator=generator)

    learner = make_learner(Watch(), objective=squares)
    data = torch.randn(5, 2, generator=make_generator(2))
    learner.valid = Loader(data, 2, seed=0, drop_last=False)
    learner.fit(1)
    step, weight = learner.step, learner.model.weight.detach().clone()
    result = learner.validate()
    assert result["loss"] == pytest.approx(learner.model(data).square().mean().item(), rel=1e-6)
    assert learner.step == step
    assert torch.equal(weight, learner.model.weight)
    assert learner.model.training
    learner.objective = noisy
    assert learner.validate() == learner.validate()  # the same noise each time


def test_a_subclass_can_change_a_step_of_the_algorithm() -> None:
    class MomentumLearner(Learner):
        """Gradients fade instead of being cleared: momentum 0.9."""

        def zero_grad(self) -> None:
            with torch.no_grad():
                for weight in self.model.parameters():
                    weight.grad *= 0.9

    plain = make_learner()
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    learner = MomentumLearner(model, plain.train, squares, torch.optim.SGD(model.parameters(), lr=0.1))
    learner.fit(3)
    plain.optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.1, momentum=0.9)
    plain.fit(3)
    assert torch.allclose(learner.model.weight, plain.model.weight, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(3, 2), 3),
        ((torch.zeros(4), torch.zeros(9)), 4),
        ({"a": [torch.zeros(5, 1)]}, 5),
        (torch.tensor(1.0), 1),
        ("text", 1),
    ],
)
def test_the_size_of_a_batch_is_that_of_its_first_tensor(batch: Any, expected: int) -> None:
    assert batch_size_of(batch) == expected


class StopAt(Callback):
    """Ends the fit, or the epoch, at the first `event` of step `step`."""

    def __init__(self, event: str, step: int, error: type[Exception] = CancelFitException) -> None:
        self.event, self.step, self.error = event, step, error

    def __getattribute__(self, name: str) -> Any:
        if name not in EVENTS or name != self.event:
            return super().__getattribute__(name)

        def stop(learner: Learner) -> None:
            if learner.step == self.step and not self.done:
                self.done = True
                raise self.error("enough")

        return stop

    done = False


@pytest.mark.parametrize("event", ["before_batch", "after_loss", "after_backward", "after_step", "after_batch"])
def test_a_fit_that_was_stopped_at_any_event_goes_on_as_if_it_had_not_been(event: str) -> None:
    whole, late = make_learner(n_items=24), Diary(order=10)
    whole.fit(2)
    stopped = make_learner(StopAt(event, 3), late, n_items=24)
    stopped.fit(2)
    assert (stopped.step, stopped.batch_index, stopped.stop_reason) == (3, 3, "enough")
    assert all(weight.grad is None for weight in stopped.model.parameters())
    assert late.events.count("after_step") == 3  # every callback has seen each step that was done
    stopped.fit(2)
    for one, other in zip(stopped.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gradients_of_an_epoch_cancelled_before_the_step_do_not_leak_into_the_next() -> None:
    learner = make_learner(StopAt("after_backward", 0, CancelEpochException))
    learner.fit(1)
    assert learner.step == 0
    assert all(weight.grad is None for weight in learner.model.parameters())


def test_a_stop_wished_for_before_a_validation_in_the_same_batch_is_kept() -> None:
    learner = make_learner(StopAt("after_batch", 1), Every(lambda learner: learner.validate(), n_steps=1), valid=True)
    learner.fit(3)
    assert (learner.step, learner.stop_reason) == (1, "enough")


def test_only_numbers_are_means_of_the_validation_each_over_the_batches_that_have_it() -> None:
    def some(model: nn.Module, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        prediction = model(batch)
        right = {} if len(batch) < 4 else {"right": torch.tensor(1.0)}
        return {"loss": prediction.square().mean(), "prediction": prediction, **right}

    learner = make_learner(n_items=9)
    learner.objective, learner.valid = some, Loader(torch.randn(9, 2), 4, seed=0, drop_last=False)
    assert learner.validate().keys() == {"loss", "right"}  # the last batch's one prediction is none
    assert learner.valid_scalars["right"] == 1.0
    learner.fit(1)


def test_validation_leaves_a_part_in_eval_mode_that_was() -> None:
    learner = make_learner(valid=True, model=nn.Sequential(nn.Dropout(), nn.Linear(2, 1)))
    learner.model[0].eval()
    learner.validate()
    assert [module.training for module in learner.model.modules()] == [True, False, True]
