"""What stops a training: numbers that are none, and a person who has seen enough."""

import math
import signal
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from miniai.base.errors import UserError
from miniai.train.callback import Callback, CancelFitException
from miniai.train.learner import Learner


class NaNGuard(Callback):
    """Stops training at the first NaN or Inf, with a UserError that names the step and the tensor.

    The loss is looked at in each step (on a GPU, where looking means waiting, only a flag is kept there, and looked at
    every `every` steps); gradients and weights every `every` steps; loss and weights before each checkpoint, so that
    none is ever written with a NaN in it; the validation's means and metrics after each epoch.

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> nan = float("nan")
    >>> learner = Learner(model, data, lambda m, x, g: nan * m(x).mean(), optimizer, callbacks=[NaNGuard()])
    >>> try:
    ...     learner.fit(1)
    ... except UserError as error:
    ...     print(str(error)[:41])
    training stopped at step 1: loss is NaN;
    """

    order = -50

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.every = every
        self._flag: Tensor | None = None

    def before_fit(self, learner: Learner) -> None:
        self._flag = None

    def after_loss(self, learner: Learner) -> None:
        if not learner.training:
            return
        finite = torch.isfinite(learner.loss.detach())
        self._flag = finite if self._flag is None else self._flag & finite
        if finite.device.type == "cpu" or learner.step % self.every == 0:
            self._check_flag(learner)

    def after_backward(self, learner: Learner) -> None:
        if (learner.step + 1) % self.every == 0:
            named = learner.model.named_parameters()
            self._check("gradient", ((name, p.grad) for name, p in named if p.grad is not None), learner.step + 1)

    def after_step(self, learner: Learner) -> None:
        if learner.step % self.every == 0:
            self._check("weight", learner.model.named_parameters(), learner.step)

    def after_epoch(self, learner: Learner) -> None:
        for name, value in learner.valid_scalars.items():
            if not math.isfinite(value):
                raise _not_finite(f"the validation's {name}", torch.tensor(value), learner.step)

    def before_save(self, learner: Learner) -> None:
        self._check_flag(learner)
        self._check("weight", learner.model.named_parameters(), learner.step)

    def _check_flag(self, learner: Learner) -> None:
        if self._flag is None or bool(self._flag):
            self._flag = None
            return
        # A loss is seldom the first to go: name a weight instead, if one is already lost.
        self._check("weight", learner.model.named_parameters(), learner.step + 1)
        # On a GPU, where the flag is read late, the loss at hand may be a better one again.
        raise _not_finite("loss", learner.loss, learner.step + 1)

    def _check(self, kind: str, named: Iterable[tuple[str, Tensor]], step: int) -> None:
        tensors = {name: tensor.detach() for name, tensor in named if tensor.is_floating_point() and tensor.numel()}
        if not tensors:
            return
        # The largest magnitude is NaN or Inf exactly if an element is; one number, one wait, for all tensors.
        largest = torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors.values()), float("inf"))])
        finite = torch.isfinite(largest)
        if not bool(finite.all()):
            name, tensor = list(tensors.items())[int(finite.logical_not().nonzero()[0])]
            raise _not_finite(f"{kind} {name}", tensor, step)


def _not_finite(name: str, tensor: Tensor, step: int) -> UserError:
    tensor = tensor.detach()
    what = "NaN" if bool(tensor.isnan().any()) else "Inf" if bool(tensor.isinf().any()) else "or was NaN or Inf"
    return UserError(
        f"training stopped at step {step}: {name} is {what}; the last good checkpoint is kept: "
        "resume it with a lower learning rate or stronger clipping"
    )


class Interrupt(Callback):
    """Ctrl-C (SIGINT) or SIGTERM: finish the step, let Checkpoint write, stop in order; a second one stops at once.

    `received` is then the signal's number, and `learner.stop_reason` its name. Outside the main thread, where Python
    gives no signals, it does nothing.

    >>> import os
    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> def objective(m, x, g):
    ...     os.kill(os.getpid(), signal.SIGINT)
    ...     return m(x).square().mean()
    >>> learner = Learner(model, data, objective, optimizer, callbacks=[Interrupt()])
    >>> learner.fit(1)
    >>> learner.step, learner.stop_reason
    (1, 'interrupted by SIGINT')
    """

    order = 100

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def before_fit(self, learner: Learner) -> None:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def after_batch(self, learner: Learner) -> None:
        if self.received is not None:
            name = signal.Signals(self.received).name
            print(f"\n{name}: stopping after step {learner.step}", file=sys.stderr, flush=True)
            raise CancelFitException(f"interrupted by {name}")

    def cleanup(self, learner: Learner) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
