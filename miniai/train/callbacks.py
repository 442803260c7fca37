"""The small callbacks: device, precision, gradient clipping, a single batch, and something done every so often."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from miniai.train.callback import Callback, CancelFitException
from miniai.train.learner import Learner


class Device(Callback):
    """Moves the model (with the optimizer's state) and each batch to `device`; noise is drawn there too, if it is CUDA.

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[Device("cpu")])
    >>> learner.fit(1)
    >>> learner.batch.device
    device(type='cpu')
    """

    order = -100

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def before_fit(self, learner: Learner) -> None:
        learner.model.to(self.device)
        learner.noise_device = self.device if self.device.type == "cuda" else torch.device("cpu")
        for weight, values in learner.optimizer.state.items():
            for name, value in values.items():
                # A resume may have put the state on the CPU. Step counts stay where the optimizer wants them.
                if isinstance(value, Tensor) and value.ndim and value.device != weight.device:
                    values[name] = value.to(weight.device)

    def before_batch(self, learner: Learner) -> None:
        learner.batch = to_device(learner.batch, self.device)


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor in its dicts, lists and tuples (named ones too) on `device`; the rest as it is.

    >>> to_device({"image": torch.zeros(2), "text": "a"}, torch.device("meta"))["image"].device
    device(type='meta')
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(part, device) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(part, device) for part in batch)
    return batch


class Precision(Callback):
    """Runs the objective under autocast, by default in bfloat16; weights, gradients and optimizer stay in float32.

    bfloat16 has float32's range, so the loss needs no scaling.

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[Precision()])
    >>> learner.fit(1)
    >>> model.weight.dtype
    torch.float32
    """

    order = -90

    def __init__(self, dtype: torch.dtype = torch.bfloat16, enabled: bool = True) -> None:
        if dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"Precision trains in bfloat16 or float32, not {dtype}, whose loss would need scaling")
        self.dtype, self.enabled = dtype, enabled and dtype != torch.float32

    def around_forward(self, learner: Learner) -> AbstractContextManager[Any]:
        device = next(learner.model.parameters()).device
        return torch.autocast(device.type, self.dtype, enabled=self.enabled)


class GradientClip(Callback):
    """Scales all gradients together so that their norm is at most `max_norm`; logs the norm they had.

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[GradientClip(0.01)])
    >>> learner.fit(1)
    >>> bool(learner.scalars["gradient_norm"] > 0.01)
    True
    """

    def __init__(self, max_norm: int | float = 1.0) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be above 0, not {max_norm}")
        self.max_norm = max_norm

    def after_backward(self, learner: Learner) -> None:
        norm = torch.nn.utils.clip_grad_norm_(learner.model.parameters(), self.max_norm)
        learner.scalars["gradient_norm"] = norm.detach()


class SingleBatch(Callback):
    """Stops the fit after its first batch: does everything run at all?

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> data = Loader(torch.randn(64, 2), 8, seed=0)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[SingleBatch()])
    >>> learner.fit(10)
    >>> learner.step, learner.stop_reason
    (1, 'one batch is done')
    """

    order = 100

    def after_batch(self, learner: Learner) -> None:
        if learner.training:
            raise CancelFitException("one batch is done")


class Every(Callback):
    """Calls `function(learner)` after each `n_steps` steps or `minutes` minutes: sample grids, reports.

    The function runs with the model in eval mode and without gradients; its draws from torch's global generators do
    not disturb the training.

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> steps = []
    >>> every = Every(lambda learner: steps.append(learner.step), n_steps=2)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[every])
    >>> learner.fit(1)
    >>> steps
    [2, 4]
    """

    order = 90
    main_process_only = True

    def __init__(
        self, function: Callable[[Learner], Any], *, n_steps: int | None = None, minutes: int | float | None = None
    ) -> None:
        if (n_steps is None) == (minutes is None):
            raise ValueError("Every needs either n_steps or minutes")
        self.function, self.n_steps, self.minutes = function, n_steps, minutes
        self._last_time = 0.0
        self._last_step = 0

    def before_fit(self, learner: Learner) -> None:
        self._last_time, self._last_step = time.monotonic(), learner.step

    def after_batch(self, learner: Learner) -> None:
        if not learner.training or learner.step == self._last_step:
            return
        if self.n_steps is not None:
            due = learner.step % self.n_steps == 0
        else:
            due = self.minutes is not None and time.monotonic() - self._last_time >= 60 * self.minutes
        if not due:
            return
        learner.model.eval()
        try:
            with torch.no_grad():
                self.function(learner)
        finally:
            learner.model.train()
        self._last_time, self._last_step = time.monotonic(), learner.step
