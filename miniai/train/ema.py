"""An exponential moving average of the weights, which samples better than the weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from miniai.train.callback import Callback
from miniai.train.learner import Learner


class EMA(Callback):
    """Float32 shadows of the trained parameters: `shadow = d * shadow + (1 - d) * weight` after each step.

    `d = min(decay, (1 + n) / (warmup + n))` at update n = 1, 2, …: early on the average is short, so that the random
    start is forgotten (TensorFlow's `ExponentialMovingAverage(num_updates)`, with warmup 10); `warmup=1` leaves
    `decay`. With `every=k` the shadows move only each k-th step, by d to the power k: nearly the same average for a
    k-th of the cost; `each_first` is how many steps count one by one before (a multiple of k), so that a training of
    few steps has an average, too. Buffers, and weights that are not trained, have no average.

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> ema = EMA(0.9)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[ema])
    >>> learner.fit(1)
    >>> with ema.swap(model):
    ...     averaged = model.weight.detach().clone()
    >>> torch.equal(averaged, ema.shadow["weight"]), torch.equal(averaged, model.weight)
    (True, False)
    """

    order = 50

    def __init__(self, decay: float = 0.999, warmup: int | float = 10, every: int = 1, each_first: int = 0) -> None:
        if not 0 <= decay < 1 or warmup < 1 or every < 1:
            raise ValueError(f"EMA needs 0 <= decay < 1, warmup >= 1, every >= 1, not {decay}, {warmup}, {every}")
        if each_first < 0 or each_first % every:
            raise ValueError(f"each_first must be a multiple of every, {every}, not {each_first}")
        self.decay, self.warmup, self.every, self.each_first = decay, warmup, every, each_first
        self.n_updates = 0
        self.shadow: dict[str, Tensor] = {}

    def before_fit(self, learner: Learner) -> None:
        start = dict(self.shadow)
        for name, weight in _trained(learner.model).items():
            # In the weight's own memory layout, so that one fused call updates them all.
            shadow = torch.empty_like(weight, dtype=torch.float32)
            self.shadow[name] = shadow.copy_(start.get(name, weight.detach()))

    @torch.no_grad()
    def after_step(self, learner: Learner) -> None:
        if learner.step > self.each_first and learner.step % self.every:
            return
        self.n_updates += 1
        weights = _trained(learner.model)
        shadows = [self.shadow[name] for name in weights]
        torch._foreach_lerp_(shadows, [weight.detach().float() for weight in weights.values()], 1 - self.decay_now())

    def decay_now(self) -> float:
        """What the shadows keep of themselves at update `n_updates`, 1 being the first."""
        n_steps = 1 if self.n_updates <= self.each_first else self.every
        return min(self.decay, (1 + self.n_updates) / (self.warmup + self.n_updates)) ** n_steps

    @contextmanager
    def swap(self, model: nn.Module) -> Iterator[nn.Module]:
        """`model` with the averaged weights inside the `with`, and with exactly its own again after it."""
        weights = {name: weight for name, weight in _trained(model).items() if name in self.shadow}
        own = {name: weight.detach().clone() for name, weight in weights.items()}
        try:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(self.shadow[name])
            yield model
        finally:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(own[name])

    def model_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict of `model` with the averages in place of the trained weights, to save or to load elsewhere."""
        averages = {id(weight): self.shadow[name] for name, weight in _trained(model).items() if name in self.shadow}
        tied = dict(model.named_parameters(remove_duplicate=False))  # a weight under two names has one average
        return {name: averages.get(id(tied.get(name)), value) for name, value in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"n_updates": self.n_updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n_updates, self.shadow = state["n_updates"], dict(state["shadow"])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
