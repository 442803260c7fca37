"""Metrics by the protocol that torchmetrics and torcheval share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from miniai.base.device import widest_float
from miniai.train.callback import Callback
from miniai.train.learner import Learner


@runtime_checkable
class Metric(Protocol):
    """Anything that takes in batches, sums them up, and forgets."""

    def update(self, *args: Any) -> Any: ...

    def compute(self) -> Any: ...

    def reset(self) -> Any: ...


class Mean:
    """The mean of all the numbers it has seen, by number and not by batch.

    >>> mean = Mean()
    >>> mean.update(torch.tensor([1.0, 2.0]))
    >>> mean.update(torch.tensor([6.0]))
    >>> mean.compute()
    3.0
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total, self.n = 0.0, 0

    def update(self, values: torch.Tensor) -> None:
        self.total += values.to(widest_float(values.device)).sum().item()
        self.n += values.numel()

    def compute(self) -> float:
        """The mean; NaN of nothing."""
        return self.total / self.n if self.n else float("nan")


class Metrics(Callback):
    """Updates each metric with `inputs(learner)` after each validation batch; the results join `valid_scalars`.

    `inputs` picks the arguments of `update` out of the learner, for instance
    `lambda learner: (learner.outputs["prediction"], learner.batch[1])`. A metric is anything with `update`, `compute`
    and `reset`: torchmetrics' and torcheval's objects are; one that has `to` is moved to the model's device. A result
    that is a dict or a vector joins as `name_key` or `name_0`, `name_1`, …

    >>> from miniai.train.data import Loader
    >>> from miniai.train.train_learner import TrainLearner
    >>> x = torch.linspace(-1, 1, 8)[:, None]
    >>> model = torch.nn.Linear(1, 1)
    >>> data, optimizer = Loader((x, 2 * x), 4, seed=0), torch.optim.SGD(model.parameters(), 0.3)
    >>> mean = Metrics({"mean": Mean()}, lambda learner: (learner.outputs["prediction"],))
    >>> learner = TrainLearner(model, data, torch.nn.functional.mse_loss, optimizer, valid=data, callbacks=[mean])
    >>> learner.fit(20)
    >>> sorted(learner.valid_scalars), abs(learner.valid_scalars["mean"]) < 0.1
    (['loss', 'mean'], True)
    """

    order = 0

    def __init__(self, metrics: Mapping[str, Any], inputs: Callable[[Learner], Sequence[Any]]) -> None:
        for name, metric in metrics.items():
            if not isinstance(metric, Metric):
                raise ValueError(f"metric {name} has no update, compute and reset: it is a {type(metric).__name__}")
        self.metrics, self.inputs = dict(metrics), inputs

    def before_validate(self, learner: Learner) -> None:
        device = next((weight.device for weight in learner.model.parameters()), torch.device("cpu"))
        for metric in self.metrics.values():
            metric.reset()
            if hasattr(metric, "to"):
                metric.to(device)

    def after_loss(self, learner: Learner) -> None:
        if not learner.training:
            arguments = [part.detach() if isinstance(part, torch.Tensor) else part for part in self.inputs(learner)]
            for metric in self.metrics.values():
                metric.update(*arguments)

    def after_validate(self, learner: Learner) -> None:
        for name, metric in self.metrics.items():
            learner.valid_scalars |= dict(_named_numbers(name, metric.compute()))


def _named_numbers(name: str, result: Any) -> Iterator[tuple[str, float]]:
    """Every number in a metric's result, under a name of its own."""
    if isinstance(result, Mapping):
        for key, value in result.items():
            yield from _named_numbers(f"{name}_{key}", value)
    elif isinstance(result, (list, tuple)) or (isinstance(result, torch.Tensor) and result.numel() != 1):
        for index, value in enumerate(result):
            yield from _named_numbers(f"{name}_{index}", value)
    else:
        yield name, float(result)
