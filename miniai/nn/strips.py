"""Norm, SiLU and 3×3 convolution of large maps, a strip of rows at a time: for painting on a CPU.

A map of 128 channels and 512×512 pixels takes 67 MB in bfloat16, and one comes out of each operation. The system hands
its pages out one by one, each filled with zeros first, which took nine times as long as to norm such a map
(benchmarks/results/sd_speed.md), and takes them back right after. A strip's norm and activation stay in the cache, in
memory that is used again for the next strip; only convolutions' answers are kept whole. A residual block then makes one
map where it made four: its second convolution writes over the answers of the first.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from miniai.nn.doubling import repeated
from miniai.nn.group_norm import GroupNorm

LARGE_MAP = 2**25  # bytes: memory for smaller maps glibc may keep for the next (M_MMAP_THRESHOLD's upper limit)
STRIP = 2**22  # bytes of a picture's map that are taken at a time
ROWS = 4  # a strip has a multiple of them: tiles are as high (`miniai.nn.winograd`)


@runtime_checkable
class Cuttable(Protocol):
    """A 3×3 convolution with padding 1 that goes one pixel at a time, and can take a map in strips."""

    def can_cut(self, x: Tensor) -> bool:
        """Whether it can, of this map."""
        ...

    def of_strip(self, x: Tensor, side: tuple[int, int], addend: Tensor | None = None) -> Tensor:
        """The answers of some rows of a map of that height and width, plus `addend`. With the rows come the row above
        and the row below them: x has two more than the answers."""
        ...


def pay(x: Tensor, *pairs: tuple[nn.Module, nn.Module], shortcut: nn.Module | None = None) -> bool:
    """Whether strips are faster for these norms and convolutions, the first of which takes `x`, and possible."""
    layers = [layer for pair in pairs for layer in pair] + ([] if shortcut is None else [shortcut])
    if not (may_be_cut(x, *layers) and is_large(x)):  # who compiles must not see that sizes matter
        return False
    norms = all(type(norm) is GroupNorm and norm.affine for norm, _ in pairs)
    return norms and all(isinstance(conv, Cuttable) and conv.can_cut(x) for _, conv in pairs)


def is_large(x: Tensor) -> bool:
    """Whether x is a map on which strips are faster: large with all of its pictures, each of a strip or more."""
    return x.ndim == 4 and x.nbytes >= LARGE_MAP and x[0].nbytes >= STRIP


def may_be_cut(x: Tensor, *layers: nn.Module) -> bool:
    """Whether nobody minds that these layers are not called with the whole of x, on a CPU and without gradients: a
    layer that has hooks or a `forward` of its own is called, and so are all while somebody traces or counts."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu":
        return False
    if is_in_torch_dispatch_mode() or every_module._global_forward_hooks or every_module._global_forward_pre_hooks:
        return False
    return not any(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer) for layer in layers)


def convolve_normed(
    norm: nn.Module,
    conv: nn.Module,
    x: Float[Tensor, "b c h w"],
    *,
    plus: Callable[[int, slice], Float[Tensor, "1 d r w"]] | None = None,
    out: Float[Tensor, "b d h w"] | None = None,
) -> Float[Tensor, "b d h w"]:
    """conv(silu(norm(x))), where `pay` says so, plus what `plus` gives for a picture's number and some of its rows; in
    channels-last memory. `out`, which is written to, may be `x` itself: what is wanted of it has been read by then. It
    may share no memory otherwise, and `plus` must not read it.

    >>> from miniai.nn.packed import pack_weights
    >>> norm, conv, x = GroupNorm(4, 16), nn.Conv2d(16, 64, 3, padding=1), torch.randn(1, 16, 40, 40)
    >>> with torch.no_grad():
    ...     whole = conv(F.silu(norm(x)))
    ...     torch.allclose(convolve_normed(norm, pack_weights(conv), x), whole, atol=1e-5)
    True
    """
    assert isinstance(norm, nn.GroupNorm)
    x = x.contiguous(memory_format=torch.channels_last)
    n_rows, side = _rows_at_a_time(x[:1, :, :1]), (x.shape[2], x.shape[3])
    out = _map_like(x, conv, side) if out is None else out
    for i in range(len(x)):
        for rows, strip in _normed_strips(norm, x[i : i + 1], n_rows):
            addend = None if plus is None else plus(i, rows)
            out[i : i + 1, :, rows] = _cuttable(conv).of_strip(strip, side, addend)
    return out


def convolve_repeated(conv: nn.Module, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
    """conv(repeated(x)), of which no more is made at once than a strip; in channels-last memory."""
    h, side = x.shape[2], (2 * x.shape[2], 2 * x.shape[3])
    n_rows = _rows_at_a_time(repeated(x[:1, :, :1]))
    out = _map_like(x, conv, side)
    for i in range(len(x)):
        for start in range(0, h, n_rows):
            stop = min(start + n_rows, h)
            strip = repeated(x[i : i + 1, :, max(start - 1, 0) : stop + 1])
            strip = strip[:, :, int(start > 0) : strip.shape[2] - int(stop < h)]  # of each neighbour one row
            strip = F.pad(strip, (0, 0, int(start == 0), int(stop == h)))
            out[i : i + 1, :, 2 * start : 2 * stop] = _cuttable(conv).of_strip(strip, side)
    return out


def _normed_strips(
    norm: nn.GroupNorm, x: Float[Tensor, "1 c h w"], n_rows: int
) -> Iterator[tuple[slice, Float[Tensor, "1 c r w"]]]:
    """Which rows, and silu(norm(x)) of them, of the row above and of the row below; zeros beyond the map. None of these
    rows of x is read after its strip has been given out."""
    h = x.shape[2]
    terms = (*_moments(norm, x, n_rows), norm.weight.float(), norm.bias.float())
    edge = torch.zeros_like(x[:, :, :1])
    above, done = edge, 0  # what of the strip has been normed already, and how many rows of x
    for start in range(0, h, n_rows):
        stop = min(start + n_rows, h)
        parts, new = [above], x[:, :, done : stop + 1]
        if new.numel():  # by the formula of batch norm, whose moments are given for each channel
            parts.append(F.silu(F.batch_norm(new, *terms, training=False, eps=norm.eps), inplace=True))
        strip = torch.cat(parts + [edge] * (stop == h), dim=2)
        yield slice(start, stop), strip
        above, done = strip[:, :, -2:], stop + 1


def _moments(
    norm: nn.GroupNorm, x: Float[Tensor, "1 c h w"], n_rows: int
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Of each channel its group's mean and variance, from those of the strips (Chan, Golub and LeVeque 1983)."""
    c, groups = norm.num_channels, norm.num_groups
    weight, bias = norm.weight.float(), norm.bias.float()
    counts, means, inverses = [], [], []
    for strip in x.split(n_rows, dim=2):
        counts.append(strip.shape[2] * strip.shape[3])
        _, mean, inverse = torch.native_group_norm(strip, weight, bias, 1, c, counts[-1], groups, norm.eps)
        means.append(mean[0])
        inverses.append(inverse[0])  # of the deviations
    of_strips = torch.stack(means)
    shares = of_strips.new_tensor(counts)[:, None] / sum(counts)
    mean = (shares * of_strips).sum(0)
    variance = (shares * (torch.stack(inverses) ** -2 - norm.eps + (of_strips - mean).square())).sum(0)
    return mean.repeat_interleave(c // groups), variance.repeat_interleave(c // groups)


def _rows_at_a_time(row: Tensor) -> int:
    return max(ROWS, STRIP // row.nbytes // ROWS * ROWS)


def _map_like(x: Tensor, conv: Any, side: tuple[int, ...]) -> Tensor:
    return x.new_empty(len(x), *side, conv.out_channels).permute(0, 3, 1, 2)


def _cuttable(conv: nn.Module) -> Cuttable:
    assert isinstance(conv, Cuttable)
    return conv
