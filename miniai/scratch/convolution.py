"""22. Convolution as one product of matrices (im2col), and pooling: windows are a view, with strides of their own."""

from miniai.scratch.autograd import Variable
from miniai.scratch.modules import Module, uniform_or_zeros
from miniai.scratch.rng import Rng
from miniai.scratch.tensor import Tensor


def check_window(kernel: int, stride: int, padding: int = 0) -> None:
    if kernel < 1 or stride < 1 or padding < 0:
        raise ValueError(
            f"kernel and stride must be at least 1 and padding at least 0, got {kernel}, {stride} and {padding}"
        )


def out_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """How many places a window finds. Raises RuntimeError where there is none."""
    check_window(kernel, stride, padding)
    if kernel > size + 2 * padding:
        raise RuntimeError(
            f"Calculated padded input size: ({size + 2 * padding}). Kernel size: ({kernel}). "
            "Kernel size can't be greater than actual input size"
        )
    return (size + 2 * padding - kernel) // stride + 1


def windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(b, c, h, w) seen as (b, c, kernel, kernel, out_h, out_w): element (i, j) of every window. No copy: windows
    overlap in the storage as they do in the image."""
    b, c, h, w = x.shape
    sb, sc, sh, sw = x.strides
    shape = (b, c, kernel, kernel, out_size(h, kernel, stride, 0), out_size(w, kernel, stride, 0))
    return Tensor.of(x.storage, shape, (sb, sc, sh, sw, sh * stride, sw * stride), x.offset)


def conv2d(x: Variable, weight: Variable, bias: Variable | None, stride: int = 1, padding: int = 0) -> Variable:
    """(b, c, h, w) by (out, c, k, k) to (b, out, h', w'). Each window is a column; the weights are one row for each
    channel of the result; so the convolution is rows times columns."""
    check_image(x, weight.shape[1])
    n_out, c, kernel, _ = weight.shape
    b, h, w = x.shape[0], *(out_size(size, kernel, stride, padding) for size in x.shape[2:])
    padded = x.pad([padding] * 4) if padding else x
    columns = padded.read(lambda t: windows(t, kernel, stride)).permute(1, 2, 3, 0, 4, 5)
    y = weight.reshape(n_out, c * kernel * kernel) @ columns.reshape(c * kernel * kernel, b * h * w)
    y = y if bias is None else y + bias.reshape(n_out, 1)
    return y.reshape(n_out, b, h, w).permute(1, 0, 2, 3)


def check_image(x: Variable, channels: int | None = None) -> None:
    if x.ndim != 4:
        raise RuntimeError(f"Expected 4D (batched) input (b, c, h, w), but got input of size: {list(x.shape)}")
    if channels is not None and x.shape[1] != channels:
        raise RuntimeError(
            f"expected input{list(x.shape)} to have {channels} channels, but got {x.shape[1]} channels instead"
        )


def pool_windows(x: Variable, kernel: int, stride: int | None) -> Variable:
    """(b, c, out_h, out_w, kernel²). The stride is the kernel's size where none is given."""
    check_image(x)
    step = kernel if stride is None else stride
    found = x.read(lambda t: windows(t, kernel, step)).permute(0, 1, 4, 5, 2, 3)
    return found.reshape(*found.shape[:4], kernel * kernel)


def max_pool2d(x: Variable, kernel: int, stride: int | None = None) -> Variable:
    """The greatest of each window."""
    return pool_windows(x, kernel, stride).max(-1)


def avg_pool2d(x: Variable, kernel: int, stride: int | None = None) -> Variable:
    """The mean of each window."""
    return pool_windows(x, kernel, stride).mean(-1)


def receptive_field(layers: list[tuple[int, int]]) -> int:
    """How many input pixels, along one side, one output pixel can see through convolutions (kernel, stride).

    Each layer adds (kernel - 1) of its own input's pixels, which lie as far apart as the strides before it multiply to.
    """
    field, apart = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * apart
        apart *= stride
    return field


class Conv2d(Module):
    """`weight` is (out, in, k, k)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        rng: Rng | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_window(kernel_size, stride, padding)
        self.stride, self.padding = stride, padding
        n_in = in_channels * kernel_size * kernel_size
        self.weight = uniform_or_zeros(rng, n_in, out_channels, in_channels, kernel_size, kernel_size)
        self.bias = uniform_or_zeros(rng, n_in, out_channels) if bias else None

    def forward(self, x: Variable) -> Variable:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding)


class MaxPool2d(Module):
    def __init__(self, kernel_size: int, stride: int | None = None) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Variable) -> Variable:
        return max_pool2d(x, self.kernel_size, self.stride)


class AvgPool2d(Module):
    def __init__(self, kernel_size: int, stride: int | None = None) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Variable) -> Variable:
        return avg_pool2d(x, self.kernel_size, self.stride)
