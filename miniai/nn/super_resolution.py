"""A U-Net that makes small pictures large, with cross connections or without; it may begin as a classifier.

Ronneberger et al. 2015, with the residual blocks of `nn/resnet.py`: what goes down has the classifier's names, so that
its weights fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.configs import config_from_dict
from miniai.nn.resnet import ResBlock, ResNet, ResNetConfig


@dataclass(frozen=True)
class SuperResolutionConfig:
    """`body`: the classifier whose way down it shares; `cross`: whether each level up also sees the level down."""

    body: ResNetConfig = field(default_factory=ResNetConfig)
    cross: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "SuperResolutionConfig":
        """Raises UserError, naming `where`, for an unknown field."""
        return config_from_dict(cls, dict(values), where)


class SuperResolutionUNet(nn.Module):
    """Pictures that were enlarged by plain means to the same pictures, sharp. It begins as the identity.

    >>> network = SuperResolutionUNet(SuperResolutionConfig(ResNetConfig(block_out_channels=(4, 8))))
    >>> blurred = torch.rand(2, 1, 12, 12)
    >>> torch.equal(network(blurred), blurred)
    True
    """

    def __init__(self, config: SuperResolutionConfig) -> None:
        super().__init__()
        self.config = config
        body = ResNet(config.body)
        self.conv_in, self.norm_in, self.blocks = body.conv_in, body.norm_in, body.blocks
        self._per_level, self._n_levels = config.body.modules_per_level, len(config.body.block_out_channels)
        channels = config.body.block_out_channels
        if config.body.stem_channels is not None:  # then the first level is smaller than the picture already
            channels = (config.body.stem_channels, *channels)
        self.up = nn.ModuleList(
            ResBlock(c_in + (c_out if config.cross else 0), c_out)
            for c_in, c_out in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.conv_out = nn.Conv2d(channels[0], config.body.in_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = F.relu(self.norm_in(self.conv_in(images)))
        levels = [] if self.config.body.stem_channels is None else [x]
        for blocks in self._levels():
            for block in blocks:
                x = block(x)
            levels.append(x)
        for block, before in zip(self.up, levels[-2::-1], strict=True):
            x = F.interpolate(x, size=before.shape[-2:])
            x = block(torch.cat([x, before], dim=1) if self.config.cross else x)
        return images + self.conv_out(x)

    def begin_as(self, classifier: ResNet) -> None:
        """Take over the classifier's way down. Raises RuntimeError if it is of other widths."""
        for name in ("conv_in", "norm_in", "blocks"):
            getattr(self, name).load_state_dict(getattr(classifier, name).state_dict())

    def body_groups(self) -> list[list[nn.Module]]:
        """The parts that came from the classifier, the deepest first: the order in which to unfreeze them."""
        return [*reversed(self._levels()), [self.conv_in, self.norm_in]]

    def _levels(self) -> list[list[nn.Module]]:
        blocks = list(self.blocks.children())
        return [blocks[k * self._per_level : (k + 1) * self._per_level] for k in range(self._n_levels)]
