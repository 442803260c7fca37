"""3×3 convolutions that paint in float32 on a CPU from weights made ready once, for the length of a painting.

Where many tiles of the map share what it costs, by Winograd's way (`miniai.nn.winograd`); elsewhere with weights in
the blocks that oneDNN would otherwise lay out anew at each call (`miniai.nn.packed` says why). The layers' own weights
stay parameters, as they are; pages of those that are mapped from a file go back to the system meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.memory import give_back_unwritten
from miniai.nn.packed import can_pack
from miniai.nn.winograd import can_compute, carried_kernels, convolve, keeps_size, n_tiles, saves

CARRYING = 250  # what carrying a number costs here, in multiplications of a matrix product (benchmarks/winograd.py)
ENOUGH_TILES = 128  # for kernels that are carried, which take four times the memory of the weight


class PaintingConv2d(nn.Conv2d):
    """`nn.Conv2d` of 3×3 with padding 1, as `painting` has it."""

    _ready: tuple[Tensor, int, tuple[int, ...] | None, Tensor] | None = None

    def by_tiles(self, x: Float[Tensor, "b c h w"]) -> bool:
        """Whether Winograd's way is faster for `x`, and worth the memory."""
        return len(x) * n_tiles(x) >= ENOUGH_TILES and saves(self, x, CARRYING)

    def ready(self, side: tuple[int, ...] | None) -> Tensor:
        """The weight as it is now, packed for maps of that height and width, or carried for tiles."""
        weight = self.weight
        known = self._ready
        if known is not None and known[0] is weight and known[1:3] == (weight._version, side):
            return known[3]
        self._ready = known = None  # its memory first
        if side is None:
            ready = carried_kernels(weight.detach())
        else:
            size = [1, self.in_channels, *side]
            ready = torch.ops.mkldnn._reorder_convolution_weight(
                weight.detach(), self.padding, self.stride, self.dilation, self.groups, size
            )
        self._ready = (weight, weight._version, side, ready)
        give_back_unwritten(self)
        return ready

    def forward(self, x: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b d h w"]:
        # Without gradients alone; and weights made in inference mode cannot tell whether they have been changed since.
        if torch.is_grad_enabled() or self.weight.is_inference() or not can_compute(self, x):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        if self.by_tiles(x):
            return convolve(x, self.ready(None), self.bias)
        if not can_pack() or 0 in x.shape:
            return super().forward(x)
        shape = (self.padding, self.stride, self.dilation, self.groups)
        weight = self.ready(tuple(x.shape[2:]))
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *shape, "none", [], "")


@contextmanager
def painting(model: nn.Module) -> Iterator[None]:
    """Within, the 3×3 convolutions inside `model` that go one pixel at a time and keep the picture's size make their
    weights ready when they first paint, and again when they have been changed; afterwards they are plain again, and
    what was made ready is let go of. Where that is not possible (gradients, another device or dtype, tracing,
    compiling), they are plain all along. Results are the same, up to rounding.

    >>> model = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1))
    >>> x = torch.randn(2, 256, 32, 32)
    >>> plain = model(x)
    >>> with painting(model), torch.no_grad():
    ...     bool((model(x) - plain).norm() < 1e-5 * plain.norm())
    True
    >>> type(model[0]).__name__
    'Conv2d'
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Conv2d and keeps_size(layer)]
    for layer in layers:
        layer.__class__ = PaintingConv2d
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Conv2d
            layer.__dict__.pop("_ready", None)
