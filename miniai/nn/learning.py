"""3×3 convolutions that learn on a CPU by the fastest of three ways, for the length of a training: PyTorch's, by tiles
in float32 (`miniai.nn.winograd`), or as products of matrices in bfloat16 (`miniai.nn.unfolded`)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.device import has_amx, has_avx512
from miniai.nn.packed import keeps_size
from miniai.nn.unfolded import MORE_PIXELS, unfolded_conv2d
from miniai.nn.winograd import can_compute, saves, winograd_conv2d

# What carrying a number to tiles and back costs, in multiplications of a matrix product, as measured: AVX-512 makes
# products faster, and passes over memory not.
CARRYING, CARRYING_AVX512 = 150, 400
ENOUGH_CHANNELS = 96  # both those seen and those made: with fewer, rows are copied for too little


class LearningConv2d(nn.Conv2d):
    """`nn.Conv2d` of 3×3 with padding 1, as `learning` has it."""

    def by_tiles(self, x: Float[Tensor, "*b c h w"]) -> bool:
        """Whether Winograd's way is faster for `x`: gradients are wanted (`miniai.nn.painting` is for when they are
        not), on a CPU, in float32, and enough channels share what carrying costs."""
        possible = x.ndim == 4 and torch.is_grad_enabled() and can_compute(self.weight, x)
        return possible and saves(self, x, CARRYING_AVX512 if has_avx512() else CARRYING)

    def by_products(self, x: Float[Tensor, "*b c h w"]) -> bool:
        """Whether products of matrices are faster for `x`: the weight learns, in bfloat16 on a CPU that has AMX, and
        the maps are small."""
        learns = torch.is_grad_enabled() and self.weight.requires_grad and has_amx()
        if not learns or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if not (x.ndim == 4 and x.device.type == self.weight.device.type == "cpu"):
            return False
        if not 0 < x.shape[2] * x.shape[3] <= MORE_PIXELS:
            return False
        return self._dtype(x) == torch.bfloat16 and min(self.in_channels, self.out_channels) >= ENOUGH_CHANNELS

    def _dtype(self, x: Tensor) -> torch.dtype | None:
        """What PyTorch would compute in; None if that is an error."""
        if torch.is_autocast_enabled("cpu"):
            return torch.get_autocast_dtype("cpu")
        return x.dtype if x.dtype == self.weight.dtype else None

    def forward(self, x: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b d h w"]:
        if self.by_tiles(x):
            return winograd_conv2d(x, self.weight, self.bias)
        if self.by_products(x):
            with torch.autocast("cpu", enabled=False):
                return unfolded_conv2d(x.bfloat16(), self.weight, self.bias)
        return super().forward(x)


@contextmanager
def learning(model: nn.Module) -> Iterator[None]:
    """Within, the 3×3 convolutions inside `model` that go one pixel at a time and keep the picture's size learn by the
    way that is fastest for what they see; afterwards they are plain again. Weights and their names stay as they are.

    >>> model = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1))
    >>> with learning(model):
    ...     type(model[0]).__name__, model[0].by_tiles(torch.zeros(8, 512, 8, 8))
    ('LearningConv2d', True)
    >>> type(model[0]).__name__
    'Conv2d'
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Conv2d and keeps_size(layer)]
    for layer in layers:
        layer.__class__ = LearningConv2d
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Conv2d
