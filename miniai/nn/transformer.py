"""The transformer inside a U-Net: image positions as tokens that look at one another and at the text."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.nn.gated import GatedLinear
from miniai.nn.group_norm import GroupNorm
from miniai.nn.layers import Attention
from miniai.nn.packed import plus

# On a CPU the wide layer between is made for so many tokens at a time, which then are still in the cache when read.
TOKENS_AT_ONCE = 1024


def for_each(context: Float[Tensor, "b2 m d"], x: Float[Tensor, "b *s"]) -> Float[Tensor, "b2 *s"]:
    """x as often as there are texts for it, all pictures in turn for each; as it is where each has one."""
    return x if len(x) == len(context) else torch.cat([x] * (len(context) // len(x)))


class GEGLU(nn.Module):
    """The gated layer by the name that checkpoints have for it."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = GatedLinear(dim, inner)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n inner"]:
        return self.proj(x)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back; the result is added to `onto`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The empty place is Diffusers' dropout: indices are part of the checkpoint's names.
        self.net = nn.ModuleList([GEGLU(dim, dim * 4), nn.Identity(), nn.Linear(dim * 4, dim)])

    def forward(self, x: Float[Tensor, "b n d"], onto: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return plus(self.net[2], self.net[0](x), onto)
        blocks = (tokens.flatten(0, 1)[None].split(TOKENS_AT_ONCE, dim=1) for tokens in (x, onto))
        parts = [plus(self.net[2], self.net[0](block), addend) for block, addend in zip(*blocks, strict=True)]
        return torch.cat(parts, dim=1).view(x.shape)


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward, each behind a layer norm and beside an identity path."""

    def __init__(self, dim: int, n_heads: int, head_dim: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, dim, n_heads, head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, context_dim, n_heads, head_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b2 m c"]) -> Float[Tensor, "b2 n d"]:
        """For several texts a picture, `b2` a multiple of `b`, what does not ask for the text is computed once."""
        x = for_each(context, self.attn1(self.norm1(x), onto=x))
        x = self.attn2(self.norm2(x), context, onto=x)
        return self.ff(self.norm3(x), onto=x)


class Transformer2DModel(nn.Module):
    """Transformer blocks over the positions of a feature map, as a residual (Rombach et al. 2022, appendix E.2.1).

    `use_linear_projection` says whether the map is projected as tokens (SD 2.x) or by 1×1 convolutions (SD 1.x).

    >>> block = Transformer2DModel(32, 4, 24, depth=1, groups=8, use_linear_projection=True)
    >>> block(torch.randn(1, 32, 4, 4), torch.randn(2, 5, 24)).shape  # of one map, as many as it has texts
    torch.Size([2, 32, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        n_heads: int,
        context_dim: int,
        *,
        depth: int,
        groups: int,
        use_linear_projection: bool,
    ) -> None:
        super().__init__()
        self.use_linear_projection = use_linear_projection
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        head_dim = channels // n_heads
        inner = n_heads * head_dim

        def projection(d_in: int, d_out: int) -> nn.Module:
            return nn.Linear(d_in, d_out) if use_linear_projection else nn.Conv2d(d_in, d_out, 1)

        self.proj_in = projection(channels, inner)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, n_heads, head_dim, context_dim) for _ in range(depth)
        )
        self.proj_out = projection(inner, channels)

    def forward(self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b2 m d"]) -> Float[Tensor, "b2 c h w"]:
        height, width = x.shape[2:]
        h = self.norm(x)
        if self.use_linear_projection:
            tokens = self.proj_in(h.flatten(2).transpose(1, 2))
        else:
            tokens = self.proj_in(h).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        x = for_each(context, x)
        if self.use_linear_projection:
            tokens = plus(self.proj_out, tokens, x.flatten(2).transpose(1, 2))
            return tokens.transpose(1, 2).unflatten(2, (height, width))
        return plus(self.proj_out, tokens.transpose(1, 2).unflatten(2, (height, width)), x)
