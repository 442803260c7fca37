"""38. Parts that the U-Net and the autoencoder share: the timestep's embedding, attention, the residual block, half and
double size.

Names are those of nn/layers.py, and so the weights'. Maps are (h, w, c), tokens (n, c).
"""

from array import array

from miniai.scratch.attention import sinusoidal_embedding
from miniai.scratch.folder import Weights
from miniai.scratch.inference import Conv2d, GroupNorm, Linear, attend, silu, split_heads
from miniai.scratch.tensor import Tensor


class TimestepEmbedding:
    """Two linear layers over the sines and cosines of the timestep."""

    def __init__(self, weights: Weights, in_dim: int, out_dim: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        self.in_dim, self.flip_sin_to_cos, self.freq_shift = in_dim, flip_sin_to_cos, freq_shift
        self.linear_1 = Linear(weights.under("linear_1"), in_dim, out_dim)
        self.linear_2 = Linear(weights.under("linear_2"), out_dim, out_dim)

    def __call__(self, timestep: float) -> Tensor:
        """(1, out_dim)."""
        t = Tensor([timestep], "float64")
        waves = sinusoidal_embedding(t, self.in_dim, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift)
        return self.linear_2(silu(self.linear_1(waves)))


class Attention:
    """Multi-head attention of tokens to `context`; to one another where that is None."""

    def __init__(self, weights: Weights, dim: int, context_dim: int, n_heads: int) -> None:
        if n_heads < 1 or dim % n_heads:
            raise ValueError(f"{weights.path}: {n_heads} heads cannot share {dim} channels")
        self.n_heads = n_heads
        self.to_q = Linear(weights.under("to_q"), dim, dim, bias=False)
        self.to_k = Linear(weights.under("to_k"), context_dim, dim, bias=False)
        self.to_v = Linear(weights.under("to_v"), context_dim, dim, bias=False)
        self.to_out = Linear(weights.under("to_out.0"), dim, dim)

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (split_heads(y, self.n_heads) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out(attend(q, k, v))


class ResnetBlock2D:
    """norm, SiLU, 3×3 convolution, twice, the timestep added between, around an identity path (He et al. 2016)."""

    def __init__(
        self, weights: Weights, in_channels: int, out_channels: int, time_dim: int | None, groups: int, eps: float
    ) -> None:
        self.norm1 = GroupNorm(weights.under("norm1"), groups, in_channels, eps)
        self.conv1 = Conv2d(weights.under("conv1"), in_channels, out_channels, 3)
        self.time_emb_proj = (
            None if time_dim is None else Linear(weights.under("time_emb_proj"), time_dim, out_channels)
        )
        self.norm2 = GroupNorm(weights.under("norm2"), groups, out_channels, eps)
        self.conv2 = Conv2d(weights.under("conv2"), out_channels, out_channels, 3)
        same = in_channels == out_channels
        self.conv_shortcut = None if same else Conv2d(weights.under("conv_shortcut"), in_channels, out_channels, 1)

    def __call__(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            h = h + self.time_emb_proj(silu(time))
        h = self.conv2(silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample2D:
    """Halves height and width by a 3×3 convolution of stride 2."""

    def __init__(self, weights: Weights, channels: int) -> None:
        self.conv = Conv2d(weights.under("conv"), channels, channels, 3, stride=2)

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample2D:
    """Repeats each pixel twice both ways (or resizes to `size`), then a 3×3 convolution."""

    def __init__(self, weights: Weights, channels: int) -> None:
        self.conv = Conv2d(weights.under("conv"), channels, channels, 3)

    def __call__(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        h, w = x.shape[:2]
        return self.conv(resize_nearest(x, *(size or (2 * h, 2 * w))))


def resize_nearest(x: Tensor, height: int, width: int) -> Tensor:
    """(h, w, c) to (height, width, c): each pixel is the one it falls on."""
    h, w, c = x.shape
    flat, resized = x.flat(), array("d")
    for y in range(height):
        line = y * h // height * w
        for left in range(width):
            start = (line + left * w // width) * c
            resized.extend(flat[start : start + c])
    return Tensor.of(resized, (height, width, c))
