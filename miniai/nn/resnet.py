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
    `layers_per_block`: residual blocks of each level; `dropout`: share of the features left out before the last layer.
    """

    in_channels: int = 1
    n_classes: int = 10
    block_out_channels: tuple[int, ...] = (64, 128, 256, 512)
    layers_per_block: int = 1
    dropout: float = 0.1

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


class ResNet(nn.Module):
    """Pictures to logits; `features` are what the last layer sees, which FID can be measured on."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1, bias=False)
        self.norm_in = nn.BatchNorm2d(channels[0])
        blocks: list[nn.Module] = []
        for level, c_out in enumerate(channels):
            blocks.append(ResBlock(channels[max(level - 1, 0)], c_out, stride=1 if level == 0 else 2))
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
