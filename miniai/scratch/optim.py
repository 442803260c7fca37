"""25. Optimizers: from gradients to new weights. Each step is PyTorch's, number for number."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from miniai.scratch.autograd import Variable
from miniai.scratch.creation import zeros
from miniai.scratch.ieee import Number, sqrt
from miniai.scratch.tensor import Tensor


class Optimizer(ABC):
    """Holds the parameters and the learning rate, which a schedule may set before each step."""

    def __init__(self, parameters: Sequence[Variable], lr: Number, weight_decay: Number = 0.0) -> None:
        if not parameters:
            raise ValueError("optimizer got an empty parameter list")
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay cannot be negative, got {lr} and {weight_decay}")
        self.parameters, self.lr, self.weight_decay = list(parameters), lr, weight_decay
        self.n_steps = [0] * len(self.parameters)  # that each has had: one may get no gradient for a while

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Changes every parameter that has a gradient."""
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.n_steps[i] += 1
                parameter.data = self.updated(i, parameter.data, parameter.grad)

    @abstractmethod
    def updated(self, i: int, weight: Tensor, grad: Tensor) -> Tensor:
        """What parameter `i` becomes."""

    def decayed(self, weight: Tensor, grad: Tensor) -> Tensor:
        """The gradient of loss + weight_decay/2 |weight|²: weights are pulled to 0."""
        return grad + weight * self.weight_decay if self.weight_decay else grad


class SGD(Optimizer):
    """w -= lr grad; with momentum, of a sum of all gradients so far, each `momentum` times as strong as the next."""

    def __init__(
        self, parameters: Sequence[Variable], lr: Number, momentum: Number = 0.0, weight_decay: Number = 0.0
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.momentum = momentum
        self.velocity: dict[int, Tensor] = {}

    def updated(self, i: int, weight: Tensor, grad: Tensor) -> Tensor:
        grad = self.decayed(weight, grad)
        if self.momentum:
            grad = self.velocity[i] = self.velocity[i] * self.momentum + grad if i in self.velocity else grad
        return weight - grad * self.lr


class RMSprop(Optimizer):
    """Each gradient is divided by the root of a running mean of its square (Hinton 2012), so every weight moves at its
    own pace."""

    def __init__(
        self,
        parameters: Sequence[Variable],
        lr: Number = 1e-2,
        alpha: Number = 0.99,
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        momentum: Number = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.alpha, self.eps, self.momentum = alpha, eps, momentum
        self.squares = [zeros(*parameter.shape) for parameter in parameters]
        self.velocity = [zeros(*parameter.shape) for parameter in parameters]

    def updated(self, i: int, weight: Tensor, grad: Tensor) -> Tensor:
        grad = self.decayed(weight, grad)
        self.squares[i] = self.squares[i] * self.alpha + grad * grad * (1 - self.alpha)
        direction = grad / (self.squares[i].map(sqrt) + self.eps)
        if self.momentum:
            direction = self.velocity[i] = self.velocity[i] * self.momentum + direction
        return weight - direction * self.lr


class Adam(Optimizer):
    """Momentum and RMSprop together, both corrected for having started at 0 (Kingma and Ba 2015, algorithm 1)."""

    def __init__(
        self,
        parameters: Sequence[Variable],
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.betas, self.eps = betas, eps
        self.means = [zeros(*parameter.shape) for parameter in parameters]
        self.squares = [zeros(*parameter.shape) for parameter in parameters]

    def updated(self, i: int, weight: Tensor, grad: Tensor) -> Tensor:
        return self.adam(i, weight, self.decayed(weight, grad))

    def adam(self, i: int, weight: Tensor, grad: Tensor) -> Tensor:
        beta1, beta2 = self.betas
        self.means[i] = self.means[i] * beta1 + grad * (1 - beta1)
        self.squares[i] = self.squares[i] * beta2 + grad * grad * (1 - beta2)
        correction1, correction2 = 1 - beta1 ** self.n_steps[i], math.sqrt(1 - beta2 ** self.n_steps[i])
        return weight - self.means[i] / (self.squares[i].map(sqrt) / correction2 + self.eps) * (self.lr / correction1)


class AdamW(Adam):
    """Adam whose decay acts on the weights alone, not through the running means (Loshchilov and Hutter 2019)."""

    def __init__(
        self,
        parameters: Sequence[Variable],
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def updated(self, i: int, weight: Tensor, grad: Tensor) -> Tensor:
        return self.adam(i, weight * (1 - self.lr * self.weight_decay), grad)
