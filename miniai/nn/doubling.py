"""Maps with each pixel repeated twice both ways, on which U-Nets and decoders go up, and 3×3 convolutions of them.

The nine pixels that such a convolution sees of a repeated map are four of the map, whose weights can be added
beforehand: a transposed convolution of stride 2, with a kernel of 4×4, makes the same of the map as it is (Aitken et
al. 2017, "Checkerboard artifact free sub-pixel convolution"). That is 4 multiplications where there were 9, and the
repeated map is never made. For painting on a CPU, where oneDNN has kernels for it that are as good as those for
convolutions; its kernels for the gradients are slower than what they would save.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_TAPS = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))  # which of three weights in a row each of four is the sum of
PIXELS_PER_CHANNEL = 1.5  # of the repeated maps: from here on a merged kernel is worth its memory
_PADDING, _MORE, _STRIDE, _DILATION = (1, 1), (0, 0), (2, 2), (1, 1)


def repeated(x: Float[Tensor, "b c h w"], size: tuple[int, int] | None = None) -> Float[Tensor, "b c h2 w2"]:
    """Each pixel twice both ways, or to `size`, by the nearest pixel."""
    h, w = x.shape[2:]
    rows, columns = size or (2 * h, 2 * w)
    if torch.compiler.is_compiling() and 0 <= 2 * h - rows <= 1 and 0 <= 2 * w - columns <= 1:
        # Not by index, as the compiler has it, whose gradient on a CPU can be zero: PyTorch 2.13 may then read the sum
        # before it has been made.
        twice = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).flatten(4, 5).flatten(2, 3)
        return twice[:, :, :rows, :columns]
    return F.interpolate(x, size=(rows, columns), mode="nearest")


def merged_kernel(weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "c d 4 4"]:
    """The kernel of a transposed convolution of stride 2 and padding 1 that makes of x what `weight`, with padding 1,
    makes of `repeated(x)`, up to rounding.

    >>> x, weight = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3)
    >>> y = F.conv_transpose2d(x, merged_kernel(weight), stride=2, padding=1)
    >>> torch.allclose(y, F.conv2d(repeated(x), weight, padding=1), atol=1e-5)
    True
    """
    along = weight.new_tensor(_TAPS)
    both_ways = torch.kron(along, along)  # from nine weights to sixteen, in one product: rounded once
    return (weight.reshape(-1, 9) @ both_ways.T).view(*weight.shape[:2], 4, 4).transpose(0, 1)


def pays(x: Float[Tensor, "b c h w"], channels: int) -> bool:
    """Whether a merged kernel saves enough on x to be kept beside the other while a picture is painted. It is as large
    for small maps as for large ones, 52 MB in bfloat16 for 1280 channels, and what it saves grows with the map."""
    return 4 * x.shape[0] * x.shape[2] * x.shape[3] >= PIXELS_PER_CHANNEL * channels


def packed_for_doubling(weight: Float[Tensor, "d c 3 3"]) -> Tensor:
    """The merged kernel in the order that oneDNN reads it in: see `miniai.nn.packed`."""
    shape = (_PADDING, _MORE, _STRIDE, _DILATION)
    return torch.ops.mkldnn._reorder_convolution_transpose_weight(merged_kernel(weight), *shape, 1, None)


def convolve_doubled(
    x: Float[Tensor, "b c h w"], packed: Tensor, bias: Float[Tensor, " d"] | None
) -> Float[Tensor, "b d h2 w2"]:
    """A convolution of `repeated(x)`, by `packed_for_doubling(weight)`; in channels-last order."""
    x = x.contiguous(memory_format=torch.channels_last)
    shape = (_PADDING, _MORE, _STRIDE, _DILATION)
    return torch.ops.mkldnn._convolution_transpose_pointwise(x, packed, bias, *shape, 1, "none", [], "")
