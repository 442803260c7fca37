"""A residual network that names what a picture shows (He et al. 2016), for small pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.configs import config_from_dict


@dataclass(frozen=True)
class ResNetConfig:
    """`block_out_channels`: of each level, the first at the picture's own resolution, each next one at half of it;
    `layers_per_block`: residual blocks of each level; `dropout`: share of the features left out before the last layer;
    `stem_channels`: if given, of the first convolution alone, and every level, the first too, then begins with a
    convolution and a maximum over 2×2 pixels: little is done at the full resolution, which costs the most.
    """

    in_channels: int = 1
    n_classes: int = 10
    block_out_channels: tuple[int, ...] = (64, 128, 256, 512)
    layers_per_block: int = 1
    dropout: float = 0.1
    stem_channels: int | None = None

    @property
    def first_channels(self) -> int:
        """Of the features at the picture's own resolution."""
        return self.block_out_channels[0] if self.stem_channels is None else self.stem_channels

    @property
    def modules_per_level(self) -> int:
        """How many of `ResNet.blocks` belong to one level."""
        return self.layers_per_block + (self.stem_channels is not None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "ResNetConfig":
        """Raises UserError, naming `where`, for an unknown field."""
        return config_from_dict(cls, dict(values), where)


class ResBlock(nn.Module):
    """Two 3×3 convolutions, each with batch norm, around an identity path; `stride` 2 halves height and width.

    The identity path is averaged down, and its channels are changed by a 1×1 convolution, where they must be (He et
    al. 2019, "Bag of tricks", model tweak D). The last norm starts at zero: the block begins as its identity path.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.norm2.weight)
        shortcut: list[nn.Module] = [nn.AvgPool2d(2, ceil_mode=True)] if stride == 2 else []
        if in_channels != out_channels:
            shortcut.append(nn.Conv2d(in_channels, out_channels, 1, bias=False))
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


class PooledConv(nn.Module):
    """A 3×3 convolution, the largest of each 2×2 of its answers (an odd edge counts too), batch norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return F.relu(self.norm(F.max_pool2d(self.conv(x), 2, ceil_mode=True)))


class ResNet(nn.Module):
    """Pictures to logits; `features` are what the last layer sees, which FID can be measured on.

    >>> network = ResNet(ResNetConfig(block_out_channels=(8, 16, 32), stem_channels=4)).eval()
    >>> pictures = torch.zeros(2, 1, 28, 28)
    >>> network(pictures).shape, network.features(pictures).shape
    (torch.Size([2, 10]), torch.Size([2, 32]))
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, first = config.block_out_channels, config.first_channels
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1, bias=False)
        self.norm_in = nn.BatchNorm2d(first)
        blocks: list[nn.Module] = []
        for level, (c_in, c_out) in enumerate(zip((first, *channels), channels, strict=False)):
            stride = 1 if level == 0 else 2
            if config.stem_channels is not None:
                blocks.append(PooledConv(c_in, c_out))
                c_in, stride = c_out, 1
            blocks.append(ResBlock(c_in, c_out, stride))
            blocks += [ResBlock(c_out, c_out) for _ in range(config.layers_per_block - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels[-1], config.n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The last feature map, averaged over its positions, in float32."""
        return self.blocks(F.relu(self.norm_in(self.conv_in(images)))).float().mean((2, 3))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n_classes"]:
        return self.head(F.dropout(self.features(images), self.config.dropout, self.training))
