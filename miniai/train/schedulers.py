"""PyTorch's own learning rate schedulers, all of them, stepped after each batch or each epoch."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from miniai.train.callback import Callback
from miniai.train.learner import Learner

SchedulerFactory = Callable[[Optimizer], LRScheduler]


class _Scheduler(Callback):
    """Makes the scheduler when a fit starts, and puts it back on a resume."""

    def __init__(self, make: SchedulerFactory) -> None:
        self.make = make
        self.scheduler: LRScheduler | None = None
        self._resumed: dict[str, Any] | None = None

    def before_fit(self, learner: Learner) -> None:
        if self.scheduler is not None and self._resumed is None:
            return
        # Making one sets the rates back to their first; the resumed optimizer has those of the moment.
        groups = [{k: v for k, v in group.items() if k != "params"} for group in learner.optimizer.param_groups]
        self.scheduler = self.make(learner.optimizer)
        if self._resumed is not None:
            self.scheduler.load_state_dict(self._resumed)
            for group, values in zip(learner.optimizer.param_groups, groups, strict=True):
                group.update(values)
            self._resumed = None

    def state_dict(self) -> dict[str, Any]:
        return {"scheduler": None if self.scheduler is None else self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumed = state["scheduler"]


class BatchScheduler(_Scheduler):
    """Steps the scheduler that `make(optimizer)` gives after each step of the optimizer.

    >>> from functools import partial
    >>> import torch
    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 1.0)
    >>> halve = BatchScheduler(partial(torch.optim.lr_scheduler.StepLR, step_size=4, gamma=0.5))
    >>> data = Loader(torch.randn(32, 2), 4, seed=0)
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[halve]).fit(1)
    >>> optimizer.param_groups[0]["lr"]
    0.25
    """

    def after_step(self, learner: Learner) -> None:
        assert self.scheduler is not None
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(learner.loss.item())
        else:
            self.scheduler.step()


class EpochScheduler(_Scheduler):
    """Steps the scheduler that `make(optimizer)` gives after each epoch.

    ReduceLROnPlateau is told the validation's `metric`; without validation, the loss of the last batch.

    >>> from functools import partial
    >>> import torch
    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 1.0)
    >>> fade = EpochScheduler(partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5))
    >>> data = Loader(torch.randn(32, 2), 4, seed=0)
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[fade]).fit(3)
    >>> optimizer.param_groups[0]["lr"]
    0.125
    """

    def __init__(self, make: SchedulerFactory, metric: str = "loss") -> None:
        super().__init__(make)
        self.metric = metric

    def after_epoch(self, learner: Learner) -> None:
        assert self.scheduler is not None
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
            return
        if learner.valid is not None and self.metric not in learner.valid_scalars:
            raise ValueError(f"the validation has no {self.metric!r}, only {', '.join(learner.valid_scalars)}")
        self.scheduler.step(learner.loss.item() if learner.valid is None else learner.valid_scalars[self.metric])
