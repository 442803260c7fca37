"""Metrics by the protocol that torchmetrics and torcheval share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from miniai.train.learner import Callback, Learner


@runtime_checkable
class Metric(Protocol):
    """Anything that takes in batches, sums them up, and forgets."""

    def update(self, *args: Any) -> Any: ...

    def compute(self) -> Any: ...

    def reset(self) -> Any: ...


class Mean:
    """The mean of all the numbers it has seen, by number and not by batch."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total, self.n = 0.0, 0

    def update(self, values: torch.Tensor) -> None:
        self.total, self.n = self.total + values.double().sum().item(), self.n + values.numel()

    def compute(self) -> float:
        """The mean; NaN of nothing."""
        return self.total / self.n if self.n else float("nan")


class Metrics(Callback):
    """Updates each metric with `inputs(learner)` after each validation batch; the results join `valid_scalars`.

    `inputs` picks the arguments of `update` out of the learner, for instance
    `lambda learner: (learner.outputs["prediction"], learner.batch[1])`.
    """

    order = 0

    def __init__(self, metrics: Mapping[str, Metric], inputs: Callable[[Learner], Sequence[Any]]) -> None:
        self.metrics, self.inputs = dict(metrics), inputs

    def before_validate(self, learner: Learner) -> None:
        for metric in self.metrics.values():
            metric.reset()

    def after_loss(self, learner: Learner) -> None:
        if not learner.training:
            arguments = [part.detach() if isinstance(part, torch.Tensor) else part for part in self.inputs(learner)]
            for metric in self.metrics.values():
                metric.update(*arguments)

    def after_validate(self, learner: Learner) -> None:
        for name, metric in self.metrics.items():
            learner.valid_scalars[name] = float(metric.compute())
