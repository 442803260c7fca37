"""Layers that paint in float32 on a CPU from weights made ready once, for the length of a painting.

3×3 convolutions go by Winograd's way (`miniai.nn.winograd`) where many tiles of the map share what that costs, and else
by merged kernels (`miniai.nn.doubling`) where the map's pixels were to be repeated first. The others, and linear layers
with much to do, have weights in the blocks that oneDNN would otherwise lay out anew each time (`miniai.nn.packed` says
why). The layers' own weights stay parameters, as they are; pages of those that are mapped from a file go back to the
system meanwhile.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.memory import give_back_unwritten
from miniai.nn import strips
from miniai.nn.doubling import convolve_doubled, packed_for_doubling, pays, repeated
from miniai.nn.gated import GatedLinear
from miniai.nn.packed import PackedConv2d, can_pack, keeps_size
from miniai.nn.winograd import can_compute, carried_kernels, convolve, n_tiles, packed_kernels, saves

CARRYING = 250  # what carrying a number costs here, in multiplications of a matrix product (benchmarks/painting.py)
MANY_WEIGHTS = 400_000  # of a linear layer: packed, smaller ones are no faster
MANY_PRODUCTS = 2**25  # multiplications of a call: with so many, smaller layers are
ENOUGH_TILES = 128  # for kernels that are carried, which take four times the memory of the weight


class _Painting(nn.Module):
    """A layer whose weight is made ready when it first paints, and again when it has been changed."""

    weight: Tensor
    _n_paintings: int = 0  # that are under way
    _ready: tuple[Tensor, int, Any, Any] | None = None  # the weight, its version, for what it is ready, and how

    def can_paint(self, x: Tensor) -> bool:
        """Without gradients, that is; a weight made in inference mode cannot tell whether it has been changed since."""
        return can_compute(self.weight, x) and not (torch.is_grad_enabled() or self.weight.is_inference())

    def ready(self, what_for: Any, make: Callable[[Tensor], Any]) -> Any:
        """`make` of the weight as it is now."""
        weight, known = self.weight, self._ready
        if known is not None and known[0] is weight and known[1:3] == (weight._version, what_for):
            return known[3]
        self._ready = known = None  # its memory first
        made = make(weight.detach())
        self._ready = (weight, weight._version, what_for, made)
        give_back_unwritten(self)
        return made


class PaintingConv2d(_Painting, nn.Conv2d):
    """`nn.Conv2d` of 3×3 with padding 1, as `painting` has it."""

    def by_tiles(self, x: Float[Tensor, "b c h w"]) -> bool:
        """Whether Winograd's way is faster for `x`, and worth the memory."""
        return len(x) * n_tiles(x) >= ENOUGH_TILES and saves(self, x, CARRYING)

    def forward(self, x: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b d h w"]:
        if x.ndim != 4 or not self.can_paint(x):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        if self.by_tiles(x):
            return convolve(x, self.ready("tiles", packed_kernels if can_pack() else carried_kernels), self.bias)
        if not can_pack() or 0 in x.shape:
            return super().forward(x)
        return self._by_blocks(x, self.padding, tuple(x.shape[2:]))

    def _by_blocks(self, x: Tensor, padding: Any, side: tuple[int, ...]) -> Tensor:
        """By a weight in oneDNN's blocks; which are best depends on the height and width of the whole map, `side`."""
        shape, size = (padding, self.stride, self.dilation, self.groups), [1, self.in_channels, *side]
        weight = self.ready(side, lambda plain: torch.ops.mkldnn._reorder_convolution_weight(plain, *shape, size))
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *shape, "none", [], "")

    def can_cut(self, x: Float[Tensor, "b c h w"]) -> bool:
        return self.can_paint(x) and can_pack()

    def of_strip(
        self, x: Float[Tensor, "1 c r w"], side: tuple[int, int], addend: Float[Tensor, "1 d r2 w"] | None = None
    ) -> Float[Tensor, "1 d r2 w"]:
        """`forward` of some rows of a map of that height and width, which come with the row above and the row below
        them, plus `addend`."""
        if self.by_tiles(x[:, :, :1, :1].expand(1, -1, *side)):
            out = convolve(x, self.ready("tiles", packed_kernels), self.bias, edge_rows=0)
        else:
            out = self._by_blocks(x, (0, 1), side)
        return out if addend is None else out.add_(addend)

    def of_doubled(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """`forward` of the map with each pixel repeated twice both ways."""
        b, c, h, w = x.shape
        shape_of_repeated = x.new_empty(1, 1, 1, 1).expand(b, c, 2 * h, 2 * w)
        possible = 0 not in x.shape and self.can_cut(x)
        if not possible or self.by_tiles(shape_of_repeated) or not pays(x, self.out_channels):
            if possible and strips.is_large(shape_of_repeated) and strips.may_be_cut(x, self):
                return strips.convolve_repeated(self, x)
            return self(repeated(x))
        return convolve_doubled(x, self.ready("doubled", packed_for_doubling), self.bias)


class PaintingLinear(_Painting, nn.Linear):
    """`nn.Linear`, as `painting` has it."""

    def forward(self, x: Tensor) -> Tensor:
        if not _packing_pays(self, x):
            return super().forward(x)
        weight = self.ready("tokens", torch.ops.mkldnn._reorder_linear_weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")


class PaintingGatedLinear(_Painting, GatedLinear):
    """`GatedLinear`, as `painting` has it: activation and product in the same pass as the layer."""

    def forward(self, x: Tensor) -> Tensor:
        if not _packing_pays(self, x):
            return super().forward(x)
        value, gate = self.ready("tokens", _packed_halves)
        value_bias, gate_bias = (None, None) if self.bias is None else self.bias.chunk(2)
        gates = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")
        return torch.ops.mkldnn._linear_pointwise.binary(x, gates, value, value_bias, "mul")


def _packing_pays(layer: PaintingLinear | PaintingGatedLinear, x: Tensor) -> bool:
    if not (layer.can_paint(x) and can_pack()):  # asked first: who compiles or traces must not see that sizes matter
        return False
    many = layer.weight.numel() >= MANY_WEIGHTS or x.numel() * layer.out_features >= MANY_PRODUCTS
    return many and x.ndim >= 2


def _packed_halves(weight: Tensor) -> list[Tensor]:
    return [torch.ops.mkldnn._reorder_linear_weight(half) for half in weight.chunk(2)]


_FORMS: dict[type[nn.Module], type[_Painting]] = {
    nn.Conv2d: PaintingConv2d,
    nn.Linear: PaintingLinear,
    GatedLinear: PaintingGatedLinear,
}
_PLAIN: dict[Any, Any] = {form: plain for plain, form in _FORMS.items()}
_CHANGING = threading.Lock()


@contextmanager
def painting(model: nn.Module) -> Iterator[None]:
    """Within, the linear layers inside `model` that have much to do, and the 3×3 convolutions that go one pixel at a
    time and keep the picture's size, make their weights ready when they first paint, and again when they have been
    changed; afterwards they are plain again, and what was made ready is let go of, with it the kernels that packed
    layers merged (`miniai.nn.packed`). Where that is not possible (gradients, another device or dtype, tracing,
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
    with _CHANGING:
        layers: list[Any] = [
            layer for layer in model.modules() if isinstance(layer, _Painting) or _can_become_one(layer)
        ]
        packed: list[Any] = [layer for layer in model.modules() if isinstance(layer, PackedConv2d)]
        for layer in layers:
            layer.__class__ = _FORMS.get(type(layer), type(layer))
        for layer in layers + packed:
            layer._n_paintings += 1
    try:
        yield
    finally:
        with _CHANGING:
            for layer in layers + packed:
                layer._n_paintings -= 1
                if layer._n_paintings > 0:  # one in another thread is left
                    continue
                if isinstance(layer, PackedConv2d):
                    layer.forget_merged()
                else:
                    layer.__class__ = _PLAIN[type(layer)]
                for name in ("_n_paintings", "_ready"):
                    vars(layer).pop(name, None)


def _can_become_one(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return keeps_size(layer)
    return type(layer) in _FORMS
