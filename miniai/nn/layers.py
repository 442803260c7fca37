"""Small parts that every network here shares: timestep embedding, attention over tokens, the residual block.

Modules carry the attribute names of Diffusers, so that a state dict of either program fits the other.
Images are (b, c, h, w), tokens (b, n, d).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from miniai.nn import strips
from miniai.nn.attention import attention
from miniai.nn.doubling import repeated
from miniai.nn.group_norm import GroupNorm
from miniai.nn.packed import PackedConv2d, plus
from miniai.nn.painting import PaintingConv2d

# Below this many keys, products and softmax written out train faster on a CPU in bfloat16 than the fused kernel,
# whose backward pass is slow for short sequences (benchmarks/attention_backward.py).
SHORT_SEQUENCE = 256


def sinusoidal_embedding(
    t: Shaped[Tensor, " b"],
    dim: int,
    *,
    flip_sin_to_cos: bool = True,
    freq_shift: int | float = 0,
    max_period: int = 10000,
) -> Float[Tensor, "b dim"]:
    """Sines and cosines of `t` at `dim / 2` frequencies, 1 down to 1/max_period (Vaswani et al. 2017, section 3.5).

    >>> sinusoidal_embedding(torch.tensor([0, 500]), 4).round(decimals=2)
    tensor([[ 1.0000,  1.0000,  0.0000,  0.0000],
            [-0.8800,  0.2800, -0.4700, -0.9600]])
    """
    half = dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angle = t.float()[:, None] * exponent.exp()[None, :]
    parts = (angle.cos(), angle.sin()) if flip_sin_to_cos else (angle.sin(), angle.cos())
    return F.pad(torch.cat(parts, dim=-1), (0, dim % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers over the sinusoidal embedding of the timestep; where `cond_proj_dim` is given, another number's
    embedding, as wide as that, is projected and added first. That projection begins at zero: it changes nothing yet."""

    def __init__(self, in_dim: int, out_dim: int, cond_proj_dim: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, out_dim)
        self.linear_2 = nn.Linear(out_dim, out_dim)
        self.cond_proj: nn.Linear | None = None
        if cond_proj_dim is not None:
            self.cond_proj = nn.Linear(cond_proj_dim, in_dim, bias=False)
            nn.init.zeros_(self.cond_proj.weight)

    def forward(self, x: Float[Tensor, "b c"], condition: Float[Tensor, "b k"] | None = None) -> Float[Tensor, "b d"]:
        if self.cond_proj is not None and condition is not None:
            x = x + self.cond_proj(condition)
        return self.linear_2(F.silu(self.linear_1(x)))


def attend(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    mask: Float[Tensor, "n m"] | None = None,
) -> Float[Tensor, "b heads n d"]:
    """softmax(q kᵀ / sqrt(d) + mask) v (Vaswani et al. 2017, equation 1)."""
    if q.device.type == "cpu" and torch.is_grad_enabled() and k.shape[2] <= SHORT_SEQUENCE:
        # Autocast would have the softmax in float32 and copy the scores there and back; its sums are in float32 anyway.
        with torch.autocast("cpu", enabled=False):
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if mask is not None:
                scores = scores + mask.to(scores.dtype)
            return scores.softmax(dim=-1) @ v
    if q.device.type == "cpu" and not torch.is_grad_enabled() and mask is None:
        return attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))


class Attention(nn.Module):
    """Multi-head attention, added to `onto`; `context` None means self-attention. Queries, keys and values have no bias
    unless asked.

    >>> tokens, text = torch.randn(2, 9, 16), torch.randn(2, 5, 24)
    >>> Attention(16, 24, n_heads=2, head_dim=8)(tokens, text, onto=tokens).shape
    torch.Size([2, 9, 16])
    """

    def __init__(self, dim: int, context_dim: int, n_heads: int, head_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.n_heads = n_heads
        inner = n_heads * head_dim
        self.to_q = nn.Linear(dim, inner, bias=bias)
        self.to_k = nn.Linear(context_dim, inner, bias=bias)
        self.to_v = nn.Linear(context_dim, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m c"] | None = None, *, onto: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        context = x if context is None else context
        q, k, v = (self._split(y) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return plus(self.to_out[0], attend(q, k, v).transpose(1, 2).flatten(2), onto)

    def _split(self, x: Float[Tensor, "b n inner"]) -> Float[Tensor, "b heads n d"]:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class SelfAttention2D(nn.Module):
    """Group norm and multi-head self-attention over all positions of a feature map, as a residual.

    >>> SelfAttention2D(16, groups=4, n_heads=2, eps=1e-5)(torch.randn(2, 16, 3, 5)).shape
    torch.Size([2, 16, 3, 5])
    """

    def __init__(self, channels: int, groups: int, n_heads: int, eps: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.group_norm = GroupNorm(groups, channels, eps=eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Float[Tensor, "b c h w"], context: None = None) -> Float[Tensor, "b c h w"]:
        """`context` is there to be called as a transformer is."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            project(tokens).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        attended = self.to_out[0](attend(q, k, v).transpose(1, 2).flatten(2))
        return x + attended.transpose(1, 2).unflatten(2, (x.shape[2], x.shape[3]))


def norm_silu(norm: nn.Module, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
    """SiLU of the normed x, in the norm's own memory where no gradient asks for it."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def norm_silu_conv(norm: nn.Module, conv: nn.Module, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
    """The convolution of `norm_silu`."""
    if strips.pay(x, (norm, conv)):
        return strips.convolve_normed(norm, conv, x)
    return conv(norm_silu(norm, x))


class ResnetBlock2D(nn.Module):
    """norm, SiLU, 3×3 convolution, twice, the timestep added between, around an identity path (He et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int | None, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if time_dim is None else nn.Linear(time_dim, out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b d h w"]:
        halves = (self.norm1, self.conv1), (self.norm2, self.conv2)
        if self.time_emb_proj is None and strips.pay(x, *halves, shortcut=self.conv_shortcut):
            return self._by_strips(x)
        h = self.conv1(norm_silu(self.norm1, x))
        if self.time_emb_proj is not None and time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = norm_silu(self.norm2, h)
        return plus(self.conv2, h, x if self.conv_shortcut is None else self.conv_shortcut(x))

    def _by_strips(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        def identity(i: int, rows: slice) -> Float[Tensor, "1 d r w"]:
            some = x[i : i + 1, :, rows]
            return some if self.conv_shortcut is None else self.conv_shortcut(some)

        h = strips.convolve_normed(self.norm1, self.conv1, x)
        return strips.convolve_normed(self.norm2, self.conv2, h, plus=identity, out=h)


class Downsample2D(nn.Module):
    """Halves height and width by a 3×3 convolution of stride 2. With padding 0, one row and column of zeros are added
    at the right and bottom only, as the autoencoder's encoder does."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample2D(nn.Module):
    """Repeats each pixel twice both ways (or resizes to `size`), then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], size: tuple[int, int] | None = None) -> Float[Tensor, "b c h2 w2"]:
        doubles = size in (None, (2 * x.shape[2], 2 * x.shape[3]))
        if doubles and isinstance(self.conv, PackedConv2d | PaintingConv2d):
            return self.conv.of_doubled(x)
        return self.conv(repeated(x, size))
