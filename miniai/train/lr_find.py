"""How high may the learning rate be? A short training with a rising rate says, and leaves no trace."""

import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from miniai.base.errors import UserError
from miniai.base.modes import modes_kept
from miniai.base.plots import Plot, curves
from miniai.train.callback import Callback, CancelFitException
from miniai.train.callbacks import Device, GradientClip, Precision
from miniai.train.learner import Learner


@dataclass(frozen=True)
class RateSearch:
    """The rates that were tried, rising, and the loss of the step at each; `smooth` is its running average.

    `suggestion` is a tenth of the rate at which `smooth` was lowest: Smith 2017, "Cyclical learning rates", section
    3.3, reads the range off the same curve.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smooth: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        return self.rates[int(np.argmin(self.smooth))] / 10

    def plot(self, path: str | os.PathLike[str] | None = None) -> Plot:
        """Loss over rate, as a PNG at `path`, and inline in a notebook; without the end, where it leaps up."""
        limit = self.smooth[0] + abs(self.smooth[0])
        end = next((i for i, value in enumerate(self.smooth) if value > limit), len(self.smooth))
        lines = {"loss": (self.rates[:end], self.losses[:end]), "smooth": (self.rates[:end], self.smooth[:end])}
        return curves(path, lines, xlabel="learning rate", ylabel="loss", log_x=True)


def lr_find(
    learner: Learner,
    *,
    start: int | float = 1e-6,
    end: int | float = 10.0,
    n_steps: int = 100,
    stop_at: int | float = 4.0,
    keep: Sequence[type[Callback]] = (Device, Precision, GradientClip),
) -> RateSearch:
    """Train `n_steps` steps while the rate rises from `start` to `end` by equal factors; stop early when all is lost.

    Lost is a loss that is no number, or a smooth loss above its lowest by `stop_at` times the first loss.
    Groups keep their rates' proportions. Of the learner's callbacks only those of the classes in `keep` take part (the
    others log, save and schedule), and any that does a part of the algorithm, such as TrainCB. Afterwards weights,
    buffers, gradients, optimizer, these callbacks, the learner's own counts, and the random states of torch, NumPy and
    Python are what they were, bit for bit, also after an error.

    >>> from miniai.train.data import Loader
    >>> from miniai.train.train_learner import TrainLearner
    >>> x = torch.linspace(-1, 1, 32)[:, None]
    >>> model = torch.nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> learner = TrainLearner(model, Loader((x, 3 * x), 8, seed=0), torch.nn.functional.mse_loss, optimizer)
    >>> before = model.weight.item()
    >>> found = lr_find(learner, end=100, n_steps=60)
    >>> 0.001 < found.suggestion < 0.5, model.weight.item() == before, learner.step
    (True, True, 0)
    """
    if not 0 < start < end or n_steps < 2:
        raise ValueError(f"a search needs 0 < start < end and at least 2 steps, not {start}, {end}, {n_steps}")
    search = _Search(start, end, n_steps, stop_at)
    taking_part = [one for one in learner.callbacks if isinstance(one, tuple(keep)) or _acts(one)]
    with _put_back(learner, taking_part):
        learner.callbacks = [*taking_part, search]
        learner.fit()
    if not search.rates:
        raise UserError("the loss is no number from the first step on: there is no learning rate to be found")
    return RateSearch(tuple(search.rates), tuple(search.losses), tuple(search.smooth))


class _Search(Callback):
    order = -95  # before a loss scaler may cancel the batch

    def __init__(
        self, start: int | float, end: int | float, n_steps: int, stop_at: int | float, beta: float = 0.8
    ) -> None:
        self.start, self.factor, self.n_steps = start, (end / start) ** (1 / (n_steps - 1)), n_steps
        self.stop_at, self.beta = stop_at, beta
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smooth: list[float] = []
        self._average = 0.0

    def before_fit(self, learner: Learner) -> None:
        first = learner.optimizer.param_groups[0]["lr"]
        self._shares = [group["lr"] / first if first else 1.0 for group in learner.optimizer.param_groups]

    def before_batch(self, learner: Learner) -> None:
        rate = self.start * self.factor ** len(self.rates)
        for group, share in zip(learner.optimizer.param_groups, self._shares, strict=True):
            group["lr"] = rate * share

    def after_loss(self, learner: Learner) -> None:
        loss = learner.loss.item()
        if not math.isfinite(loss):
            raise CancelFitException("the loss is no number any more")
        self.rates.append(self.start * self.factor ** len(self.rates))
        self.losses.append(loss)
        self._average = self.beta * self._average + (1 - self.beta) * loss
        self.smooth.append(self._average / (1 - self.beta ** len(self.losses)))

    def after_batch(self, learner: Learner) -> None:
        if self.smooth[-1] > min(self.smooth) + self.stop_at * abs(self.losses[0]):
            raise CancelFitException("the loss went up for good")
        if len(self.rates) == self.n_steps:
            raise CancelFitException("all rates were tried")


def _acts(callback: Callback) -> bool:
    return any(hasattr(callback, action) for action in ("objective", "backward", "optimizer_step", "zero_grad"))


@contextmanager
def _put_back(learner: Learner, taking_part: Sequence[Callback]) -> Iterator[None]:
    """Everything that a fit changes is after the block as it was before it."""
    own = dict(vars(learner))
    model, optimizer = learner.model, learner.optimizer
    weights = [(weight, weight.detach().clone()) for weight in model.parameters()]
    # With their places, as a module may put a new tensor into one.
    places = [(module._buffers, name) for module in model.modules() for name in module._buffers]
    buffers = [(*place, place[0][place[1]]) for place in places]
    values = [None if buffer is None else buffer.detach().clone() for _, _, buffer in buffers]
    gradients = [(weight, weight.grad) for weight in model.parameters()]
    optimizer_state = deepcopy(optimizer.state_dict())
    callbacks = [(one, deepcopy(one.state_dict())) for one in taking_part if hasattr(one, "state_dict")]
    randomness = _random_state()
    for weight, _ in gradients:
        weight.grad = None
    learner.valid = None  # the search is in the training batches alone
    try:
        with modes_kept(model):
            yield
    finally:
        vars(learner).clear()
        vars(learner).update(own)
        with torch.no_grad():
            for weight, value in weights:
                weight.copy_(value)
            for (own_buffers, name, buffer), kept in zip(buffers, values, strict=True):
                own_buffers[name] = buffer
                if buffer is not None and kept is not None:
                    buffer.copy_(kept)
        for weight, gradient in gradients:
            weight.grad = gradient
        optimizer.load_state_dict(optimizer_state)
        for callback, state in callbacks:
            callback.load_state_dict(state)  # type: ignore[attr-defined]
        _set_random_state(randomness)


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda, random.getstate(), np.random.get_state()


def _set_random_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
    random.setstate(state[2])
    np.random.set_state(state[3])
