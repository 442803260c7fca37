"""float16 for GPUs without bfloat16: half the range would lose small gradients, so the loss is scaled up."""

from contextlib import AbstractContextManager
from typing import Any

import torch

from miniai.train.callback import Callback, CancelBatchException
from miniai.train.learner import Learner


class MixedPrecision(Callback):
    """Runs the objective under float16 autocast, with torch's GradScaler around the step: Micikevicius et al. 2018.

    The scaled loss goes backward; gradients are brought back to their size before clipping and the step see them. Where
    one of them overflowed, the batch is skipped and the scale halved; after `growth_interval` good batches it doubles.
    Gradients kept from batches before, by a callback that cancels them in `after_backward`, are added to in their size.
    `n_skipped` counts; the scale is part of each checkpoint. (bfloat16 needs none of this: see `Precision`.)

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 4), 8, seed=0)
    >>> half = MixedPrecision(initial_scale=1024.0)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).float().square().mean(), optimizer, callbacks=[half])
    >>> learner.fit(1)
    >>> learner.step, half.scale, model.weight.dtype
    (4, 1024.0, torch.float32)
    """

    order = -90

    def __init__(self, initial_scale: int | float = 2.0**16, growth_interval: int = 2000) -> None:
        self.initial_scale, self.growth_interval = initial_scale, growth_interval
        self.n_skipped = 0
        self._scaler: torch.amp.GradScaler | None = None
        self._resumed: dict[str, Any] | None = None
        self._is_unscaled = False

    @property
    def scale(self) -> float:
        """What the loss is multiplied by now."""
        return float(self.initial_scale) if self._scaler is None else self._scaler.get_scale()

    def before_fit(self, learner: Learner) -> None:
        device = next(learner.model.parameters()).device.type
        if self._scaler is None:
            self._scaler = torch.amp.GradScaler(
                device, init_scale=float(self.initial_scale), growth_interval=self.growth_interval
            )
        if self._resumed is not None:
            self._scaler.load_state_dict(self._resumed)
            self._resumed = None

    def around_forward(self, learner: Learner) -> AbstractContextManager[Any]:
        return torch.autocast(next(learner.model.parameters()).device.type, torch.float16)

    def backward(self, learner: Learner) -> None:
        assert self._scaler is not None
        self._let_go()
        for weight in learner.model.parameters():
            if weight.grad is not None:  # kept from batches before, in its own size, for this one to be added to
                weight.grad.mul_(self.scale)
        self._scaler.scale(learner.loss).backward()

    def after_backward(self, learner: Learner) -> None:
        assert self._scaler is not None
        self._scaler.unscale_(learner.optimizer)
        self._is_unscaled = True
        gradients = [weight.grad for weight in learner.model.parameters() if weight.grad is not None]
        # torch's scaler would skip the step by itself, but clipping, averages and the NaN guard would still see it.
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients, float("inf"))):
            self._scaler.step(learner.optimizer)
            self._update()
            self.n_skipped += 1
            learner.optimizer.zero_grad()
            raise CancelBatchException

    def optimizer_step(self, learner: Learner) -> None:
        assert self._scaler is not None
        self._scaler.step(learner.optimizer)
        self._update()

    def after_batch(self, learner: Learner) -> None:
        self._let_go()

    def _let_go(self) -> None:
        """Of gradients that no step followed: the batch was cancelled before it, to be added to the next one."""
        if self._is_unscaled:
            self._update()

    def _update(self) -> None:
        assert self._scaler is not None
        self._scaler.update()
        self._is_unscaled = False

    def state_dict(self) -> dict[str, Any]:
        return {"n_skipped": self.n_skipped, "scaler": None if self._scaler is None else self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n_skipped, self._resumed = state["n_skipped"], state["scaler"]
        if self._resumed is None:
            self._scaler = None
        elif self._scaler is not None:
            self._scaler.load_state_dict(self._resumed)
            self._resumed = None
