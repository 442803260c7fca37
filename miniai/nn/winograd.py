"""3×3 convolutions with a quarter of the multiplications (Winograd 1980; Lavin & Gray 2016), in float32 on
CPUs, for training and for painting.

F(4×4, 3×3): a tile of 6×6 numbers has 4×4 answers. Small matrices (B, G and A in Lavin & Gray, section 4.3) carry
tiles, kernels and answers into a space of 36 places, and there the convolution is one product of matrices, over
channels, at each place: 36 multiplications for 16 answers, where there were 144. Gradients go the same way back, by the
transposed matrices. Carrying takes passes over memory, so it pays for many channels on few pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from miniai.nn.packed import can_pack

Matrix = tuple[tuple[int | float, ...], ...]
PackedKernels = tuple[Tensor, ...]  # one of (d, c) for each place, in oneDNN's blocks
TILE, WINDOW, PLACES = 4, 6, 36
# Lavin & Gray 2016, section 4.3: by the points 0, 1, -1, 2, -2 and infinity.
_B_T = (
    *((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0)),
    *((0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
)
_G = (
    *((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6)),
    *((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
)
_A_T = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_A, _B, _G_T = (tuple(zip(*matrix, strict=True)) for matrix in (_A_T, _B_T, _G))
AT_A_TIME = 1_500_000  # numbers that are carried at a time: what the cache of a core holds
TILES_AT_A_TIME = 128  # but no fewer tiles without gradients: each time, the whole of the carried kernels is read


def winograd_conv2d(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "b d h w"]:
    """`F.conv2d(x, weight, bias, padding=1)`, up to rounding: in float32 its error is some 1e-6 of the answers, ten
    times as large. In channels-last order. Gradients can be had once, not of gradients.

    >>> x, weight = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3)
    >>> torch.allclose(winograd_conv2d(x, weight), F.conv2d(x, weight, padding=1), atol=1e-4)
    True
    """
    answers = _Winograd.apply(x, weight)
    return answers if bias is None else answers + bias[:, None, None]


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "b d h w"]:
        (_, c, h, w), d = x.shape, len(weight)
        kernel, windows = carried_kernels(weight), _windows(x)
        rows, columns = windows.shape[1:3]
        answers = x.new_empty(len(x), rows, TILE, columns, TILE, d)
        carried = []
        for part, out in zip(*_parts(rows * columns * max(c, d), windows, answers), strict=True):
            inside = _answer(part, kernel, out)
            if ctx.needs_input_grad[1]:
                carried.append(inside)
        ctx.save_for_backward(kernel, *carried)
        ctx.sizes = (x.shape, d, rows, columns)
        return _map(answers, h, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "b d h w"]) -> tuple[Tensor | None, Tensor | None]:
        kernel, *carried = ctx.saved_tensors
        (b, c, h, w), d, rows, columns = ctx.sizes
        back = kernel.transpose(1, 2).contiguous()
        of_x, of_kernel = grad.new_empty(b, h, w, c), torch.zeros_like(kernel)
        parts = _parts(rows * columns * max(c, d), grad.permute(0, 2, 3, 1), of_x)
        for i, (part, out) in enumerate(zip(*parts, strict=True)):
            tiles = F.pad(part, (0, 0, 0, TILE * columns - w, 0, TILE * rows - h))
            tiles = tiles.reshape(len(out), rows, TILE, columns, TILE, d).permute(2, 4, 0, 1, 3, 5)
            answers = _carry(_A, tiles).view(PLACES, len(out) * rows * columns, d)
            if ctx.needs_input_grad[1]:
                of_kernel.baddbmm_(carried[i].transpose(1, 2), answers)
            if ctx.needs_input_grad[0]:
                windows = torch.bmm(answers, back).view(WINDOW, WINDOW, len(out), rows, columns, c)
                windows = _carry(_B, windows).permute(2, 3, 0, 4, 1, 5)
                out.copy_(_overlapped(windows)[:, 1 : h + 1, 1 : w + 1])
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = _carry(_G_T, of_kernel.view(WINDOW, WINDOW, c, d)).permute(3, 2, 0, 1)
        return of_x.permute(0, 3, 1, 2) if ctx.needs_input_grad[0] else None, of_weight


@torch.no_grad()
def convolve(
    x: Float[Tensor, "b c h w"],
    kernels: Float[Tensor, "36 c d"] | PackedKernels,
    bias: Float[Tensor, " d"] | None = None,
    edge_rows: int = 1,
) -> Float[Tensor, "b d h2 w"]:
    """`winograd_conv2d(x, weight, bias)` without gradients, from `kernels`, which are `carried_kernels(weight)` or
    `packed_kernels(weight)`. With `edge_rows` 0 the first and last row of x are no more than the others' neighbours."""
    windows = _windows(x, edge_rows)
    b, rows, columns, c = windows.shape[:4]
    d = kernels.shape[2] if isinstance(kernels, Tensor) else len(kernels[0])
    answers = x.new_empty(b, rows, TILE, columns, TILE, d)
    tiles = max(TILES_AT_A_TIME, AT_A_TIME // (PLACES * max(c, d)))
    n, m = max(1, tiles // (rows * columns)), min(rows, max(1, tiles // columns))  # pictures, and rows of tiles
    for pictures, outs in zip(windows.split(n), answers.split(n), strict=True):
        for part, out in zip(pictures.split(m, dim=1), outs.split(m, dim=1), strict=True):
            _answer(part, kernels, out, bias)
    return _map(answers, x.shape[2] - 2 + 2 * edge_rows, x.shape[3])


def carried_kernels(weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "36 c d"]:
    """The weight of a convolution in the space of 36 places."""
    return _carry(_G, weight.permute(2, 3, 1, 0)).flatten(0, 1)


def packed_kernels(weight: Float[Tensor, "d c 3 3"]) -> PackedKernels:
    """The same in the order that oneDNN reads them in (`miniai.nn.packed`), whose products took less than half the time
    of PyTorch's other library on an AMD EPYC (benchmarks/results/winograd.md). Six at a time, for less memory."""
    rows = (_carry(_G, weight.permute(2, 3, 0, 1), (row,)).flatten(0, 1) for row in _G)
    return tuple(torch.ops.mkldnn._reorder_linear_weight(kernel) for row in rows for kernel in row)


def _products(numbers: Float[Tensor, "36 n c"], kernels: PackedKernels) -> Float[Tensor, "36 n d"]:
    products = numbers.new_empty(*numbers.shape[:2], len(kernels[0]))
    for product, some, kernel in zip(products, numbers, kernels, strict=True):
        product.copy_(torch.ops.mkldnn._linear_pointwise(some, kernel, None, "none", [], ""))
    return products


def _windows(x: Float[Tensor, "b c h w"], edge_rows: int = 1) -> Float[Tensor, "b rows columns c 6 6"]:
    """The tiles that overlap, as views of one padded map."""
    h, w = x.shape[2] - 2 + 2 * edge_rows, x.shape[3]  # of the answers
    edges = (0, 0, 1, TILE * -(-w // TILE) + 1 - w, edge_rows, TILE * -(-h // TILE) + edge_rows - h)
    return F.pad(x.permute(0, 2, 3, 1), edges).unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE)


def _answer(
    windows: Float[Tensor, "b rows columns c 6 6"],
    kernels: Float[Tensor, "36 c d"] | PackedKernels,
    out: Float[Tensor, "b rows 4 columns 4 d"],
    bias: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "36 tiles c"]:
    """Write the answers of some windows to `out`; what is returned are the windows, carried."""
    carried = _carry(_B_T, windows.permute(4, 5, 0, 1, 2, 3)).view(PLACES, -1, windows.shape[3])
    b, rows, _, columns, _, d = out.shape
    products = torch.bmm(carried, kernels) if isinstance(kernels, Tensor) else _products(carried, kernels)
    answers = _carry(_A_T, products.view(WINDOW, WINDOW, b, rows, columns, d))
    answers = answers.permute(2, 3, 0, 4, 1, 5)
    out.copy_(answers) if bias is None else torch.add(answers, bias, out=out)
    return carried


def _map(answers: Float[Tensor, "b rows 4 columns 4 d"], h: int, w: int) -> Float[Tensor, "b d h w"]:
    """The tiles put together, without what lies beyond the map; channels last."""
    whole = answers.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
    return whole[:, :, :h, :w].contiguous(memory_format=torch.channels_last)


def _parts(numbers: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each tensor in parts of so many pictures that they take about AT_A_TIME numbers, of `numbers` × PLACES each."""
    pictures = max(1, AT_A_TIME // (PLACES * numbers))
    return [tensor.split(pictures) for tensor in tensors]


def _carry(matrix: Matrix, x: Float[Tensor, "i j *rest"], left: Matrix | None = None) -> Float[Tensor, "k l *rest"]:
    """`left` (`matrix`, if there is no other) times x times `matrix` transposed, over the first two axes."""
    by = x.new_tensor(matrix)
    by_left = by if left is None else x.new_tensor(left)
    if x.dtype == torch.float32 and x.device.type == "cpu" and can_pack():
        both = torch.kron(by_left, by)  # over both axes in one product
        numbers = x.reshape(both.shape[1], -1).contiguous()  # of a narrow map windows are views that overlap
        carried = torch.ops.mkldnn._linear_pointwise(both, numbers.T, None, "none", [], "")
    else:
        first = by_left @ x.reshape(len(x), x[0].numel())
        carried = torch.matmul(by, first.view(len(by_left), x.shape[1], x[0, 0].numel()))
    return carried.view(len(by_left), len(by), *x.shape[2:])


def _overlapped(windows: Float[Tensor, "b rows 6 columns 6 c"]) -> Float[Tensor, "b h w c"]:
    """The sum of the windows, each in its place: the last two rows and columns of one lie on the first of the next."""
    b, rows, _, columns, _, c = windows.shape
    whole = windows.new_zeros(b, rows + 1, TILE, columns + 1, TILE, c)
    rest = WINDOW - TILE
    whole[:, :rows, :, :columns] += windows[:, :, :TILE, :, :TILE]
    whole[:, 1:, :rest, :columns] += windows[:, :, TILE:, :, :TILE]
    whole[:, :rows, :, 1:, :rest] += windows[:, :, :TILE, :, TILE:]
    whole[:, 1:, :rest, 1:, :rest] += windows[:, :, TILE:, :, TILE:]
    return whole.view(b, (rows + 1) * TILE, (columns + 1) * TILE, c)


def can_compute(weight: Tensor, x: Tensor) -> bool:
    """Whether both are float32 on a CPU, and nothing is traced or compiled."""
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def n_tiles(x: Tensor) -> int:
    """Of each picture of x, (..., h, w)."""
    return -(-x.shape[-2] // TILE) * -(-x.shape[-1] // TILE)


def saves(layer: nn.Conv2d, x: Tensor, carrying: int) -> bool:
    """Whether tiles save more than `carrying` multiplications for each number of x and of the answers."""
    products = layer.in_channels * layer.out_channels
    by_tiles = PLACES * n_tiles(x) * (products + carrying * (layer.in_channels + layer.out_channels))
    return by_tiles < 9 * x.shape[-2] * x.shape[-1] * products
