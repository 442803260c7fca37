"""23. Normalisation: activations less their mean, over their deviation. The kinds differ in what they average over.

Over (b, c, h, w): batch norm over b, h, w; layer norm over the last dimensions; instance norm over h, w; group norm
over h, w and a group of channels.
"""

import math

from miniai.scratch.autograd import Variable
from miniai.scratch.creation import ones, zeros
from miniai.scratch.modules import Module, Parameter


def standardise(x: Variable, dims: tuple[int, ...], eps: float) -> Variable:
    """(x - mean) / sqrt(var + eps) over `dims`; `eps` keeps a constant input from dividing by 0."""
    centred = x - x.mean(dims, True)
    return centred / ((centred * centred).mean(dims, True) + eps) ** 0.5


class LayerNorm(Module):
    """Over the last dimensions, of `normalized_shape` (Ba et al. 2016)."""

    def __init__(self, *normalized_shape: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.normalized_shape, self.eps = normalized_shape, eps
        self.weight, self.bias = Parameter(ones(*normalized_shape)), Parameter(zeros(*normalized_shape))

    def forward(self, x: Variable) -> Variable:
        n = len(self.normalized_shape)
        if x.shape[-n:] != self.normalized_shape:
            raise RuntimeError(
                f"Given normalized_shape={list(self.normalized_shape)}, expected input with shape [*, "
                f"{', '.join(map(str, self.normalized_shape))}], but got input of size{list(x.shape)}"
            )
        return standardise(x, tuple(range(x.ndim - n, x.ndim)), self.eps) * self.weight + self.bias


class GroupNorm(Module):
    """Over each group of channels of each image (Wu and He 2018). (b, c, …)."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})")
        self.num_groups, self.eps = num_groups, eps
        self.weight, self.bias = Parameter(ones(num_channels)), Parameter(zeros(num_channels))

    def forward(self, x: Variable) -> Variable:
        check_channels(x, len(self.weight))
        groups = x.reshape(x.shape[0], self.num_groups, -1)
        return scaled(standardise(groups, (2,), self.eps).reshape(*x.shape), self.weight, self.bias)


class InstanceNorm2d(GroupNorm):
    """Over each channel of each image alone (Ulyanov et al. 2016): as many groups as channels. PyTorch's, with
    `affine=True`."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, num_features, eps)


class BatchNorm2d(Module):
    """Over all images of the batch, for each channel (Ioffe and Szegedy 2015). (b, c, h, w).

    In training it also keeps running averages of what it measured; in evaluation it uses those, so that an image's
    result does not depend on its neighbours.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = Parameter(ones(num_features)), Parameter(zeros(num_features))
        self.running_mean, self.running_var = zeros(num_features), ones(num_features)

    def forward(self, x: Variable) -> Variable:
        check_channels(x, len(self.weight))
        if not self.training:
            centred = x - along_channels(Variable(self.running_mean), x.ndim)
            deviation = (along_channels(Variable(self.running_var), x.ndim) + self.eps) ** 0.5
            return scaled(centred / deviation, self.weight, self.bias)
        dims = (0, *range(2, x.ndim))
        n = math.prod(x.shape[dim] for dim in dims)
        if n < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)}")
        mean, var = x.data.mean(dims), x.detach().var(dims, correction=1).data
        self.running_mean = self.running_mean * (1 - self.momentum) + mean * self.momentum
        self.running_var = self.running_var * (1 - self.momentum) + var * self.momentum
        return scaled(standardise(x, dims, self.eps), self.weight, self.bias)


def check_channels(x: Variable, n_channels: int) -> None:
    if x.ndim < 2 or x.shape[1] != n_channels:
        raise RuntimeError(f"expected input of shape (b, {n_channels}, …), got {list(x.shape)}")


def along_channels(values: Variable, n_dims: int) -> Variable:
    """One value for each channel, in the shape (c, 1, …) that broadcasts over (b, c, …)."""
    return values.reshape(len(values), *[1] * (n_dims - 2))


def scaled(x: Variable, weight: Variable, bias: Variable) -> Variable:
    """Each channel times its weight plus its bias."""
    return x * along_channels(weight, x.ndim) + along_channels(bias, x.ndim)
