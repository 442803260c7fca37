"""39. The transformer inside a U-Net: image positions as tokens that look at one another and at the text.

Names are those of nn/transformer.py. Maps are (h, w, c), tokens (n, c).
"""

from miniai.scratch.blocks import Attention
from miniai.scratch.folder import Weights
from miniai.scratch.inference import Conv2d, GroupNorm, LayerNorm, Linear, gelu
from miniai.scratch.tensor import Tensor


class FeedForward:
    """GEGLU to four times the width, one half of a linear layer gated by the other through GELU (Shazeer 2020,
    equation 6), and back."""

    def __init__(self, weights: Weights, dim: int) -> None:
        self.inner = dim * 4
        self.proj = Linear(weights.under("net.0.proj"), dim, self.inner * 2)
        self.out = Linear(weights.under("net.2"), self.inner, dim)

    def __call__(self, x: Tensor) -> Tensor:
        both = self.proj(x)
        value, gate = both[:, : self.inner], both[:, self.inner :]
        return self.out(value * gelu(gate))


class BasicTransformerBlock:
    """Self-attention, attention to the text, feed-forward, each behind a layer norm and beside an identity path."""

    def __init__(self, weights: Weights, dim: int, n_heads: int, context_dim: int) -> None:
        self.norm1 = LayerNorm(weights.under("norm1"), dim)
        self.attn1 = Attention(weights.under("attn1"), dim, dim, n_heads)
        self.norm2 = LayerNorm(weights.under("norm2"), dim)
        self.attn2 = Attention(weights.under("attn2"), dim, context_dim, n_heads)
        self.norm3 = LayerNorm(weights.under("norm3"), dim)
        self.ff = FeedForward(weights.under("ff"), dim)

    def __call__(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel:
    """Transformer blocks over the positions of a feature map, as a residual (Rombach et al. 2022, appendix E.2.1).

    `use_linear_projection` says whether the projections' weights are a linear layer's (SD 2.x) or a 1×1 convolution's
    (SD 1.x); they compute the same.
    """

    def __init__(
        self,
        weights: Weights,
        channels: int,
        n_heads: int,
        context_dim: int,
        *,
        depth: int,
        groups: int,
        use_linear_projection: bool,
    ) -> None:
        def projection(name: str) -> Linear | Conv2d:
            part = weights.under(name)
            return Linear(part, channels, channels) if use_linear_projection else Conv2d(part, channels, channels, 1)

        self.norm = GroupNorm(weights.under("norm"), groups, channels, 1e-6)
        self.proj_in = projection("proj_in")
        self.transformer_blocks = [
            BasicTransformerBlock(weights.under(f"transformer_blocks.{i}"), channels, n_heads, context_dim)
            for i in range(depth)
        ]
        self.proj_out = projection("proj_out")

    def __call__(self, x: Tensor, context: Tensor) -> Tensor:
        h, w, c = x.shape
        tokens = self.proj_in(self.norm(x)).view(h * w, c)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return self.proj_out(tokens.view(h, w, c)) + x
