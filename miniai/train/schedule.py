"""How long to train, and the learning rate on the way there."""

import math
import time
from collections.abc import Callable

from miniai.base.errors import UserError
from miniai.train.callback import Callback, CancelFitException
from miniai.train.learner import Learner


class Budget(Callback):
    """Stops the fit when `steps` optimizer steps or `minutes` of training are spent, whichever comes first.

    Minutes are wall time inside `fit`, accumulated over resumes (time lost with a killed process is not counted, as its
    steps are done again).

    >>> import torch
    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[Budget(steps=3)])
    >>> learner.fit(1)
    >>> learner.step, learner.stop_reason
    (3, 'the budget is spent')
    """

    order = 100

    def __init__(self, minutes: int | float | None = None, steps: int | None = None) -> None:
        if minutes is None and steps is None:
            raise ValueError("a Budget needs minutes or steps")
        if (minutes is not None and not minutes > 0) or (steps is not None and steps < 1):
            raise UserError(f"a training budget must be above zero, not {minutes if steps is None else steps}")
        self.minutes, self.steps = minutes, steps
        self._seconds_before = 0.0
        self._started: float | None = None

    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._seconds_before + (0.0 if self._started is None else time.monotonic() - self._started)

    def fraction(self, learner: Learner) -> float:
        """The share that is spent, in [0, 1]."""
        by_steps = 0.0 if self.steps is None else learner.step / self.steps
        by_time = 0.0 if self.minutes is None else self.seconds() / (60 * self.minutes)
        return min(1.0, max(by_steps, by_time))

    def before_fit(self, learner: Learner) -> None:
        self._started = time.monotonic()
        self._stop_if_spent(learner)

    def after_batch(self, learner: Learner) -> None:
        if learner.training:  # a validation may follow when all is spent
            self._stop_if_spent(learner)

    def cleanup(self, learner: Learner) -> None:
        self._seconds_before, self._started = self.seconds(), None

    def _stop_if_spent(self, learner: Learner) -> None:
        if self.fraction(learner) >= 1:
            raise CancelFitException("the budget is spent")

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._seconds_before = state["seconds"]


def find_budget(learner: Learner) -> Budget | None:
    """The Budget among the learner's callbacks."""
    return next((callback for callback in learner.callbacks if isinstance(callback, Budget)), None)


def fraction_done(learner: Learner) -> float:
    """The share of the training that is done, in [0, 1]: of the Budget, else of `n_epochs`; 0 if neither is known."""
    by_epochs = 0.0
    if learner.n_epochs:
        by_epochs = (learner.epoch + learner.batch_index / len(learner.train)) / learner.n_epochs
    budget = find_budget(learner)
    return min(1.0, max(by_epochs, budget.fraction(learner) if budget else 0.0))


class Schedule(Callback):
    """Sets the learning rate of each step to `fn(fraction of the training done)` times each group's own base rate.

    >>> import torch
    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> fall = Schedule(lambda fraction: 1 - fraction)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[fall])
    >>> learner.fit(1)
    >>> round(optimizer.param_groups[0]["lr"], 6)  # of the last step, three quarters through
    0.025
    """

    def __init__(self, fn: Callable[[float], float]) -> None:
        self.fn = fn

    def before_fit(self, learner: Learner) -> None:
        for group in learner.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # torch's name for it; saved with the optimizer

    def before_batch(self, learner: Learner) -> None:
        if learner.training:
            multiplier = self.fn(fraction_done(learner))
            for group in learner.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * multiplier


def warmup_constant_cosine(warmup: float = 0.02, decay_from: float = 0.6) -> Callable[[float], float]:
    """From 0 up to 1 linearly until `warmup`, 1 until `decay_from`, then half a cosine down to 0 (all fractions).

    >>> [round(warmup_constant_cosine(0.1, 0.5)(fraction), 3) for fraction in (0.05, 0.3, 0.75, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if not 0 <= warmup <= decay_from <= 1:
        raise ValueError(f"0 <= warmup <= decay_from <= 1 does not hold for {warmup}, {decay_from}")

    def multiplier(fraction: float) -> float:
        if fraction < warmup:
            return fraction / warmup
        if fraction <= decay_from:
            return 1.0
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (fraction - decay_from) / (1 - decay_from)))

    return multiplier
