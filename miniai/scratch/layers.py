"""17. Layers with the backward pass written by hand: each turns the gradient of its output into those of its input and
its own weights, and a network is the chain rule from the last layer to the first.
"""

from miniai.scratch.creation import zeros
from miniai.scratch.ieee import relu, sqrt
from miniai.scratch.rng import Rng
from miniai.scratch.tensor import Tensor


class Lin:
    """y = x W + b, from (n, n_in) to (n, n_out). `weight` is (n_in, n_out)."""

    def __init__(self, n_in: int, n_out: int, rng: Rng) -> None:
        """Weights are normal with variance 2 / n_in, which keeps the size of activations through ReLU (He et al. 2015,
        equation 10)."""
        self.weight, self.bias = rng.normal(n_in, n_out, std=sqrt(2 / n_in)), zeros(n_out)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return x @ self.weight + self.bias

    def backward(self, grad: Tensor) -> Tensor:
        """Each weight w_ij took x_i to y_j in every row: its gradient sums x_i grad_j over the rows."""
        self.weight_grad, self.bias_grad = self.x.transpose(0, 1) @ grad, grad.sum(0)
        return grad @ self.weight.transpose(0, 1)

    def step(self, lr: float) -> None:
        """One step down the gradient."""
        self.weight, self.bias = self.weight - self.weight_grad * lr, self.bias - self.bias_grad * lr


class Relu:
    """max(x, 0): the gradient passes where x was above 0."""

    def forward(self, x: Tensor) -> Tensor:
        self.passes = x > 0
        return x.map(relu)

    def backward(self, grad: Tensor) -> Tensor:
        return grad * self.passes


class Mse:
    """The mean of (prediction - target)², over all elements."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        if prediction.shape != target.shape:  # broadcasting here would train on the wrong pairs without a word
            raise RuntimeError(f"prediction {list(prediction.shape)} and target {list(target.shape)} differ in shape")
        self.difference = prediction - target
        return (self.difference * self.difference).mean()

    def backward(self) -> Tensor:
        return self.difference * (2 / self.difference.numel())


class Network:
    """Layers one after another, with a loss at the end."""

    def __init__(self, layers: list[Lin | Relu], loss: Mse) -> None:
        self.layers, self.loss = layers, loss

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self) -> Tensor:
        """Gradients of all weights; returns the gradient of the input. To be called after `loss.forward`."""
        grad = self.loss.backward()
        for layer in reversed(self.layers):
            grad = layer.backward(grad)
        return grad
