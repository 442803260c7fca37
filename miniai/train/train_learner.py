"""Two styles of saying how a model learns from (input, target): a Learner to subclass, and a callback to subclass.

Both do the same five things, each a method of its own to override: `predict`, `get_loss`, `backward`,
`optimizer_step`, `zero_grad`. Outputs hold "loss" and "prediction".
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from miniai.train.callback import Callback
from miniai.train.data import Loader
from miniai.train.habits import delegates
from miniai.train.learner import Learner

LossFunction = Callable[..., Tensor]


class TrainLearner(Learner):
    """A Learner that minimises `loss_function(model(*inputs), *targets)`, to be changed by subclassing.

    A batch is a tuple or list: the first `n_inputs` parts go into the model, the others are targets. Keywords are
    Learner's.

    >>> x = torch.linspace(-1, 1, 32)[:, None]
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.2)
    >>> learner = TrainLearner(model, Loader((x, 3 * x + 1), 8, seed=0), nn.functional.mse_loss, optimizer)
    >>> learner.fit(40)
    >>> round(model.weight.item(), 2), round(model.bias.item(), 2)
    (3.0, 1.0)
    """

    @delegates(Learner.__init__)
    def __init__(
        self,
        model: nn.Module,
        train: Loader,
        loss_function: LossFunction,
        optimizer: torch.optim.Optimizer,
        *,
        n_inputs: int = 1,
        **keywords: Any,
    ) -> None:
        super().__init__(model, train, self._predict_and_compare, optimizer, **keywords)
        self.loss_function, self.n_inputs = loss_function, n_inputs

    def predict(self, model: nn.Module, batch: Sequence[Any]) -> Any:
        """What the model makes of the batch's inputs."""
        return model(*batch[: self.n_inputs])

    def get_loss(self, prediction: Any, batch: Sequence[Any]) -> Tensor:
        """How wrong that is: a scalar."""
        return self.loss_function(prediction, *batch[self.n_inputs :])

    def _predict_and_compare(self, model: nn.Module, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        prediction = self.predict(model, batch)
        return {"loss": self.get_loss(prediction, batch), "prediction": prediction}


class MomentumLearner(TrainLearner):
    """Momentum without an optimizer's help: gradients fade by `momentum` after each step instead of being cleared.

    With plain SGD that is SGD with momentum (Sutskever et al. 2013, as torch has it); a checkpoint keeps the gradients.

    >>> x = torch.linspace(-1, 1, 32)[:, None]
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.05)
    >>> learner = MomentumLearner(model, Loader((x, 3 * x), 8, seed=0), nn.functional.mse_loss, optimizer, momentum=0.8)
    >>> learner.fit(40)
    >>> round(model.weight.item(), 1)
    3.0
    """

    def __init__(self, *arguments: Any, momentum: float = 0.85, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum lies within [0, 1), and {momentum} does not")
        self.momentum = momentum

    def zero_grad(self) -> None:
        fade_gradients(self.model, self.momentum)


class TrainCB(Callback):
    """The same as a callback, for a plain Learner without an objective; subclass it to change one of its five parts.

    Any other callback that does one of these parts itself (loss scaling, Accelerate) goes before it.

    >>> x = torch.linspace(-1, 1, 32)[:, None]
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.2)
    >>> train = TrainCB(nn.functional.mse_loss)
    >>> learner = Learner(model, Loader((x, 3 * x + 1), 8, seed=0), None, optimizer, callbacks=[train])
    >>> learner.fit(40)
    >>> round(model.weight.item(), 2), round(model.bias.item(), 2)
    (3.0, 1.0)
    """

    order = -200

    def __init__(self, loss_function: LossFunction, n_inputs: int = 1) -> None:
        self.loss_function, self.n_inputs = loss_function, n_inputs

    def objective(self, learner: Learner) -> dict[str, Tensor]:
        prediction = self.predict(learner)
        return {"loss": self.get_loss(learner, prediction), "prediction": prediction}

    def predict(self, learner: Learner) -> Any:
        """What the model makes of the batch's inputs."""
        return learner.network(*learner.batch[: self.n_inputs])

    def get_loss(self, learner: Learner, prediction: Any) -> Tensor:
        """How wrong that is: a scalar."""
        return self.loss_function(prediction, *learner.batch[self.n_inputs :])

    def backward(self, learner: Learner) -> None:
        learner.loss.backward()

    def optimizer_step(self, learner: Learner) -> None:
        learner.optimizer.step()

    def zero_grad(self, learner: Learner) -> None:
        learner.optimizer.zero_grad()


class MomentumCB(TrainCB):
    """`MomentumLearner` as a callback.

    >>> x = torch.linspace(-1, 1, 32)[:, None]
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.05)
    >>> train = MomentumCB(nn.functional.mse_loss, momentum=0.8)
    >>> Learner(model, Loader((x, 3 * x), 8, seed=0), None, optimizer, callbacks=[train]).fit(40)
    >>> round(model.weight.item(), 1), bool(model.weight.grad.abs() > 0)  # what is left of the gradients
    (3.0, True)
    """

    def __init__(self, loss_function: LossFunction, n_inputs: int = 1, momentum: float = 0.85) -> None:
        super().__init__(loss_function, n_inputs)
        self.momentum = momentum

    def zero_grad(self, learner: Learner) -> None:
        fade_gradients(learner.model, self.momentum)


@torch.no_grad()
def fade_gradients(model: nn.Module, share: float) -> None:
    """Multiply every gradient by `share`."""
    for weight in model.parameters():
        if weight.grad is not None:
            weight.grad.mul_(share)
