"""The levels of a U-Net, which every U-Net here is made of: down, middle and up, with the names of Diffusers' blocks.

Residual blocks, each told the time, with attention behind them where the level has it (Ho et al. 2020, appendix B).
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.nn.freeu import FreeU
from miniai.nn.layers import Downsample2D, ResnetBlock2D, Upsample2D


@runtime_checkable
class ShapeConfig(Protocol):
    """What the blocks below need to know of their network."""

    @property
    def block_out_channels(self) -> tuple[int, ...]: ...
    @property
    def down_block_types(self) -> tuple[str, ...]: ...
    @property
    def up_block_types(self) -> tuple[str, ...]: ...
    @property
    def layers_per_block(self) -> int: ...
    @property
    def norm_num_groups(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    def attention(self, channels: int, level: int) -> nn.Module: ...


class Block2D(nn.Module):
    """Residual blocks of one level, each with attention behind it where the level has that."""

    def __init__(
        self, config: ShapeConfig, in_channels: list[int], out_channels: int, level: int, attention: bool
    ) -> None:
        super().__init__()
        time_dim = config.block_out_channels[0] * 4
        self.resnets = nn.ModuleList(
            ResnetBlock2D(c, out_channels, time_dim, config.norm_num_groups, config.norm_eps) for c in in_channels
        )
        if attention:
            self.attentions = nn.ModuleList(config.attention(out_channels, level) for _ in in_channels)
        self.has_attention = attention

    def step(
        self, i: int, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b2 t"], context: Float[Tensor, "b2 n d"] | None
    ) -> Float[Tensor, "b3 c2 h w"]:
        """Residual block `i`, and its attention if there is one, which makes of a picture as many as it has texts."""
        x = self.resnets[i](x, time[: len(x)])
        return self.attentions[i](x, context) if self.has_attention else x


class DownBlock2D(Block2D):
    """One level on the way down; the last level keeps its resolution.

    >>> from miniai.nn.unet2d import UNet2DConfig
    >>> config = UNet2DConfig(block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2, layers_per_block=2)
    >>> x, skips = DownBlock2D(config, level=0)(torch.randn(1, 32, 8, 8), torch.randn(1, 128), None)
    >>> x.shape, [tuple(skip.shape[2:]) for skip in skips]
    (torch.Size([1, 32, 4, 4]), [(8, 8), (8, 8), (4, 4)])
    """

    def __init__(self, config: ShapeConfig, level: int) -> None:
        c_in = config.block_out_channels[max(level - 1, 0)]
        c_out = config.block_out_channels[level]
        attention = config.down_block_types[level] != "DownBlock2D"
        super().__init__(config, [c_in] + [c_out] * (config.layers_per_block - 1), c_out, level, attention)
        last = level == len(config.block_out_channels) - 1
        self.downsamplers = None if last else nn.ModuleList([Downsample2D(c_out)])

    def forward(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b2 t"], context: Float[Tensor, "b2 n d"] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The feature map, and the list of maps that the way up will want."""
        skips = self.first_layers(len(self.resnets), x, time, context)
        x = skips[-1]
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips

    def first_layers(
        self, n: int, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b2 t"], context: Float[Tensor, "b2 n d"] | None
    ) -> list[Tensor]:
        """The maps that the first `n` residual blocks, with their attention, put out."""
        maps: list[Tensor] = []
        for i in range(n):
            maps.append(self.step(i, maps[-1] if maps else x, time, context))
        return maps


class UpBlock2D(Block2D):
    """One level on the way up: each residual block gets the map from the way down beside its input."""

    def __init__(self, config: ShapeConfig, level: int) -> None:
        channels = config.block_out_channels
        c_out = channels[level]
        c_below = channels[min(level + 1, len(channels) - 1)]  # what comes up from the level below
        c_first = channels[max(level - 1, 0)]  # what this level's first block received on the way down
        n = config.layers_per_block + 1
        skips = [c_out] * (n - 1) + [c_first]
        inputs = [c_below] + [c_out] * (n - 1)
        attention = config.up_block_types[len(channels) - 1 - level] != "UpBlock2D"
        super().__init__(config, [a + b for a, b in zip(inputs, skips, strict=True)], c_out, level, attention)
        self.upsamplers = None if level == 0 else nn.ModuleList([Upsample2D(c_out)])
        self.freeu: FreeU | None = None

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        skips: list[Tensor],
        time: Float[Tensor, "b t"],
        context: Float[Tensor, "b n d"] | None,
        size: tuple[int, int] | None,
    ) -> Float[Tensor, "b c2 h2 w2"]:
        """`skips` are this level's maps, last first to be used; `size` is the next level's height and width."""
        x = self.layers(range(len(self.resnets)), x, skips, time, context)
        return x if self.upsamplers is None else self.upsamplers[0](x, size)

    def layers(
        self,
        which: range,
        x: Float[Tensor, "b c h w"],
        skips: list[Tensor],
        time: Float[Tensor, "b t"],
        context: Float[Tensor, "b n d"] | None,
    ) -> Float[Tensor, "b c2 h w"]:
        """Some of the residual blocks, with their attention, one after the other."""
        for i in which:
            beside = skips[len(self.resnets) - 1 - i]
            if self.freeu is not None:
                x, beside = self.freeu(x, beside)
            x = self.step(i, torch.cat([x, beside], dim=1), time, context)
        return x


class MidBlock2D(nn.Module):
    """At the lowest resolution: residual block, attention, residual block."""

    def __init__(self, config: ShapeConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        time_dim = config.block_out_channels[0] * 4
        self.attentions = nn.ModuleList([config.attention(channels, len(config.block_out_channels) - 1)])
        self.resnets = nn.ModuleList(
            ResnetBlock2D(channels, channels, time_dim, config.norm_num_groups, config.norm_eps) for _ in range(2)
        )

    def forward(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b t"], context: Float[Tensor, "b n d"] | None
    ) -> Float[Tensor, "b c h w"]:
        x = self.attentions[0](self.resnets[0](x, time), context)
        return self.resnets[1](x, time)
