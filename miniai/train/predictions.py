"""What a model says about a whole data set, kept."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from miniai.train.callback import Callback
from miniai.train.data import Loader
from miniai.train.learner import Learner
from miniai.train.metrics import Metrics

Picker = Callable[[Learner], Sequence[Tensor]]


def prediction_and_target(learner: Learner) -> tuple[Tensor, Tensor]:
    """The objective's output "prediction", and the last part of the batch."""
    return learner.outputs["prediction"], learner.batch[-1]


class CapturePredictions(Callback):
    """Keeps what `pick(learner)` finds in each batch of a validation; `captured` then holds each part for all items.

    The tensors are moved to the CPU and joined along their first dimension; each validation starts anew.

    >>> from miniai.train.train_learner import TrainLearner
    >>> x, model = torch.linspace(-1, 1, 6)[:, None], torch.nn.Linear(1, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader((x, x), 2, seed=0, shuffle=False)
    >>> keep = CapturePredictions()
    >>> loss = torch.nn.functional.mse_loss
    >>> TrainLearner(model, data, loss, optimizer, valid=data, callbacks=[keep]).fit(1)
    >>> [part.shape for part in keep.captured]
    [torch.Size([6, 1]), torch.Size([6, 1])]
    """

    def __init__(self, pick: Picker = prediction_and_target) -> None:
        self.pick = pick
        self.captured: tuple[Tensor, ...] = ()
        self._batches: list[tuple[Tensor, ...]] = []

    def before_validate(self, learner: Learner) -> None:
        self._batches = []

    def after_loss(self, learner: Learner) -> None:
        if not learner.training:
            self._batches.append(tuple(part.detach().cpu() for part in self.pick(learner)))

    def after_validate(self, learner: Learner) -> None:
        self.captured = tuple(torch.cat(parts) for parts in zip(*self._batches, strict=True))
        self._batches = []


def capture_predictions(
    learner: Learner, loader: Loader | None = None, pick: Picker = prediction_and_target
) -> tuple[Tensor, ...]:
    """Predictions and targets (or whatever `pick` finds) of all items of `loader`, in its order; default: `valid`.

    The model runs in eval mode without gradients. Callbacks that only write down what they see (Recorder, trackers,
    Metrics) do not see this; the learner is afterwards as it was, `valid_scalars` included.

    >>> from miniai.train.train_learner import TrainLearner
    >>> x = torch.linspace(-1, 1, 6)[:, None]
    >>> model = torch.nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> train, valid = Loader((x, x), 2, seed=0), Loader((x, 2 * x), 4, seed=0, shuffle=False, drop_last=False)
    >>> learner = TrainLearner(model, train, torch.nn.functional.mse_loss, optimizer, valid=valid)
    >>> predictions, targets = capture_predictions(learner)
    >>> torch.equal(targets, 2 * x), torch.allclose(predictions, model(x))
    (True, True)
    """
    capture = CapturePredictions(pick)
    before = {name: getattr(learner, name) for name in ("valid", "callbacks", "batch", "loss", "outputs", "scalars")}
    scalars = learner.valid_scalars
    try:
        learner.valid = learner.valid if loader is None else loader
        taking_part = [one for one in learner.callbacks if not _only_looks_on(one)]
        learner.callbacks = sorted([*taking_part, capture], key=lambda callback: callback.order)
        learner.validate()
    finally:
        vars(learner).update(before)
        learner.valid_scalars = scalars
    return capture.captured


def _only_looks_on(callback: Callback) -> bool:
    """One that the first of several processes may run alone changes nothing of the training."""
    return callback.main_process_only or isinstance(callback, (Metrics, CapturePredictions))
