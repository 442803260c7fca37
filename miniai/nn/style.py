"""What a picture shows and how it is painted, as distances between features (Gatys, Ecker and Bethge 2016).

Features are named maps of any network, such as `evaluate.perceptual.layer_outputs` gives; the paper used VGG's.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.seeds import make_generator

Features = Mapping[str, Tensor]


def gram_matrix(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c c"]:
    """How often each two channels speak together, wherever that is: Gatys et al. 2016, eq. 3, as a mean over places.

    >>> gram_matrix(torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]])).tolist()
    [[[5.0, 3.0], [3.0, 2.0]]]
    """
    rows = features.flatten(2)
    return rows @ rows.transpose(1, 2) / rows.shape[2]


def content_loss(features: Features, wanted: Features) -> Float[Tensor, ""]:
    """The mean squared difference of the features, summed over `wanted`'s layers (eq. 1, but for the constant).

    >>> content_loss({"a": torch.ones(1, 1, 2, 2)}, {"a": torch.zeros(1, 1, 2, 2)}).item()
    1.0
    """
    return _sum((features[name] - target).square().mean() for name, target in wanted.items())


def style_loss(features: Features, grams: Features) -> Float[Tensor, ""]:
    """The mean squared difference of the Gram matrices, summed over `grams`' layers (eq. 4 and 5, but for the
    constants). A single wanted matrix (1, c, c) holds for all pictures.

    >>> one = torch.rand(1, 3, 4, 4)
    >>> style_loss({"a": one.flip(-1)}, {"a": gram_matrix(one)}).item() < 1e-12  # places do not count
    True
    """
    return _sum((gram_matrix(features[name]) - target).square().mean() for name, target in grams.items())


def total_variation(images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """The mean squared step between neighbouring pixels, both ways: what keeps a painted picture smooth.

    >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])).item()
    1.0
    """
    across, down = images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]
    return across.square().mean() + down.square().mean()


class RandomFeatures(nn.Module):
    """One layer of random filters of several sizes: enough to know a texture by (Ustyuzhaninov et al. 2017), and there
    where no one has VGG's weights. The layers are "maps.0", "maps.1", …, one for each size.

    >>> RandomFeatures(n_filters=8)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 32, 16, 16])
    """

    def __init__(
        self, in_channels: int = 3, n_filters: int = 32, sizes: tuple[int, ...] = (3, 5, 7, 11), seed: int = 0
    ) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_channels, n_filters, size, padding="same", padding_mode="circular"), nn.ReLU())
            for size in sizes
        )
        for k, (one, size) in enumerate(zip(self.maps.children(), sizes, strict=True)):
            convolution = next(one.children())
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.bias is not None
            generator = make_generator(seed, k)
            drawn = torch.randn(convolution.weight.shape, generator=generator)
            drawn = drawn - drawn.mean(dim=(2, 3), keepdim=True) * (torch.arange(n_filters) % 2)[:, None, None, None]
            with torch.no_grad():  # half of them see edges alone, half see colours too; biases, or grey would be dead
                convolution.weight.copy_(drawn / (size * in_channels**0.5))
                convolution.bias.copy_(0.2 * torch.randn(n_filters, generator=generator))
        self.eval().requires_grad_(False)

    @property
    def layers(self) -> list[str]:
        return [f"maps.{k}" for k in range(len(self.maps))]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return torch.cat([one(images) for one in self.maps], dim=1)


def _sum(parts: object) -> Float[Tensor, ""]:
    values = list(parts)  # type: ignore[call-overload]
    if not values:
        raise ValueError("a loss of features needs at least one layer")
    return torch.stack(values).sum()
