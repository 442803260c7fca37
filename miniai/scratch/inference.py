"""36. Layers of a trained network that only look forward: their weights stay, and nothing is kept for gradients.

They compute what those of modules.py, convolution.py, normalisation.py and attention.py do, by layer_kernels.py. One
picture at a time, channels last: a feature map is (h, w, c) and tokens are (n, c), so that a map's positions are tokens
as they stand, and a convolution's window is a few slices.
"""

from miniai.scratch import ieee, layer_kernels
from miniai.scratch.creation import zeros
from miniai.scratch.folder import Weights
from miniai.scratch.tensor import Tensor


class Linear:
    """y = x Wᵀ + b over the last dimension."""

    def __init__(self, weights: Weights, in_features: int, out_features: int, *, bias: bool = True) -> None:
        self.out_features = out_features
        weight = weights.take("weight", out_features, in_features)
        shift = weights.vector("bias", out_features) if bias else zeros(out_features).flat()
        self.layer = layer_kernels.pack(weight.flat(), shift)

    def __call__(self, x: Tensor) -> Tensor:
        return Tensor.of(layer_kernels.linear(x.flat(), self.layer), (*x.shape[:-1], self.out_features))


class Conv2d:
    """(h, w, in) to (h / stride, w / stride, out), zeros around the edge; kernels are 1×1 or 3×3."""

    def __init__(
        self, weights: Weights, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1
    ) -> None:
        self.out_channels, self.kernel_size, self.stride = out_channels, kernel_size, stride
        weight = weights.take("weight", out_channels, in_channels, kernel_size, kernel_size)
        self.layer = layer_kernels.pack(weight.permute(0, 2, 3, 1).flat(), weights.vector("bias", out_channels))

    def __call__(self, x: Tensor) -> Tensor:
        h, w, _ = x.shape
        y = layer_kernels.conv(x.flat(), h, w, self.kernel_size, self.stride, self.layer)
        return Tensor.of(y, (-(-h // self.stride), -(-w // self.stride), self.out_channels))


class GroupNorm:
    """Over each group of channels, all positions together (Wu and He 2018)."""

    def __init__(self, weights: Weights, num_groups: int, num_channels: int, eps: float) -> None:
        if num_channels % num_groups:
            raise ValueError(f"{weights.path}: {num_channels} channels cannot be divided into {num_groups} groups")
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight, self.bias = weights.vector("weight", num_channels), weights.vector("bias", num_channels)

    def __call__(self, x: Tensor) -> Tensor:
        n, c = x.numel() // self.num_channels, self.num_channels
        y = layer_kernels.normalise(x.flat(), n, c, self.num_groups, self.eps, self.weight, self.bias)
        return Tensor.of(y, x.shape)


class LayerNorm:
    """Over the last dimension (Ba et al. 2016)."""

    def __init__(self, weights: Weights, dim: int, eps: float = 1e-5) -> None:
        self.dim, self.eps = dim, eps
        self.weight, self.bias = weights.vector("weight", dim), weights.vector("bias", dim)

    def __call__(self, x: Tensor) -> Tensor:
        return Tensor.of(layer_kernels.normalise(x.flat(), 1, self.dim, 1, self.eps, self.weight, self.bias), x.shape)


def silu(x: Tensor) -> Tensor:
    return Tensor.of(layer_kernels.each(ieee.silu, x.flat()), x.shape)


def gelu(x: Tensor) -> Tensor:
    return Tensor.of(layer_kernels.each(ieee.gelu, x.flat()), x.shape)


def quick_gelu(x: Tensor) -> Tensor:
    return Tensor.of(layer_kernels.each(ieee.quick_gelu, x.flat()), x.shape)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(n, heads * d) to (heads, n, d)."""
    return x.view(x.shape[0], n_heads, x.shape[1] // n_heads).transpose(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(d) + mask) v (Vaswani et al. 2017, equation 1): (heads, n, d) to (n, heads * d)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    scores = scores if mask is None else scores + mask
    shares = Tensor.of(layer_kernels.softmax(scores.flat(), scores.shape[-1]), scores.shape)
    return (shares @ v).transpose(0, 1).flatten(1)
