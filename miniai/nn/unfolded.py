"""3×3 convolutions that learn as products of matrices, in bfloat16 on CPUs with AMX.

Each pixel becomes a row that holds the nine pixels around it (Chellapilla et al. 2006, "High performance convolutional
neural networks for document processing", section 2.1): then the convolution, the gradient of what it sees and that of
its weights are one product each. AMX multiplies matrices some ten times as fast as the CPU's other units, and oneDNN's
gradients of weights do not keep up with it where maps are small (benchmarks/unfolded.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

FEW_PIXELS = 16  # of a map: up to here all three are products
MORE_PIXELS = 64  # up to here the gradient of the weights is one
AT_A_TIME = 4_000_000  # numbers of the rows: more do not come from memory that was used before


def unfolded_conv2d(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "b d h w"]:
    """`F.conv2d(x, weight, bias, padding=1)` in the dtype of x, up to rounding, in channels-last order; the gradients
    of weight and bias are in theirs, and of the weight summed in float32. Gradients can be had once, not of gradients.

    >>> x, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    >>> torch.allclose(unfolded_conv2d(x, weight), F.conv2d(x, weight, padding=1), atol=1e-5)
    True
    """
    answers = _Unfolded.apply(x, weight, bias)
    assert isinstance(answers, Tensor)
    return answers


class _Unfolded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, " d"] | None
    ) -> Float[Tensor, "b d h w"]:
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        ctx.save_for_backward(x, weight)
        if _pixels(x) > FEW_PIXELS:
            return F.conv2d(x, weight, bias, padding=1).contiguous(memory_format=torch.channels_last)
        return _products(x, weight.permute(2, 3, 1, 0).flatten(0, 2), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "b d h w"]) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_weight_dtype, of_bias_dtype = ctx.dtypes
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0] and _pixels(x) <= FEW_PIXELS:
            of_x = _products(grad, weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2))
        elif ctx.needs_input_grad[0]:
            shape: Any = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
            of_x = torch.ops.aten.convolution_backward(grad, x, weight, None, *shape, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            of_weight = _gradient_of_weight(x, grad).to(of_weight_dtype)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)).to(of_bias_dtype)
        return of_x, of_weight, of_bias


def _pixels(x: Float[Tensor, "b c h w"]) -> int:
    """Of each map."""
    return x.shape[2] * x.shape[3]


def _products(
    x: Float[Tensor, "b c h w"], matrix: Float[Tensor, "c9 d"], bias: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "b d h w"]:
    """The rows of all pixels times `matrix`, as a map."""
    answers = x.new_empty(len(x), *x.shape[2:], matrix.shape[1])
    for part, out in zip(*_parts(x, x, answers), strict=True):
        rows, flat = _rows(part), out.flatten(0, 2)
        torch.mm(rows, matrix, out=flat) if bias is None else torch.addmm(bias, rows, matrix, out=flat)
    return answers.permute(0, 3, 1, 2)


def _gradient_of_weight(x: Float[Tensor, "b c h w"], grad: Float[Tensor, "b d h w"]) -> Float[Tensor, "d c 3 3"]:
    """In float32 or more, in channels-last order."""
    c, d = x.shape[1], grad.shape[1]
    total = x.new_zeros(d, 9 * c, dtype=torch.promote_types(x.dtype, torch.float32))
    for part, answers in zip(*_parts(x, x, grad), strict=True):
        total += answers.permute(1, 0, 2, 3).flatten(1) @ _rows(part)
    return total.view(d, 3, 3, c).permute(0, 3, 1, 2)


def _parts(x: Float[Tensor, "b c h w"], *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each tensor in parts of so many pictures that the rows of x have some AT_A_TIME numbers."""
    pictures = max(1, AT_A_TIME // (9 * x.shape[1] * _pixels(x) or 1))
    return [tensor.split(pictures) for tensor in tensors]


def _rows(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "pixels c9"]:
    """For each pixel the nine around it, row by row, zeros beyond the edges: the channels of three lie side by side."""
    b, c, h, w = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    picture, row, pixel, _ = padded.stride()
    around = padded.as_strided((b, h, w, 3, 3 * c), (picture, row, pixel, row, 1))
    return around.reshape(b * h * w, 9 * c)
