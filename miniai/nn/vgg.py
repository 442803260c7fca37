"""VGG (Simonyan and Zisserman 2015) down to its features, with the names of the weights that people have."""

import os
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.weights import load_weights, read_pickled_weights, read_weights

Depth = Literal[16, 19]
# 3×3 convolutions of each level, and how many channels they have; between levels, height and width are halved.
LEVELS: dict[Depth, tuple[tuple[int, int], ...]] = {
    16: ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    19: ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)),
}
FILES: dict[Depth, str] = {16: "vgg16-397923af.pth", 19: "vgg19-dcbb9e9d.pth"}  # as torch.hub keeps them
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, 0 to 1


class VGGFeatures(nn.Module):
    """The convolutions of VGG, for pictures in [-1, 1] of at least 32 pixels.

    Layer `features.k` is what others call so: of VGG-16, the rectifiers of the levels' first convolutions are 1, 6, 11,
    18 and 25. No gradients of its weights.

    >>> with torch.device("meta"):
    ...     VGGFeatures(16)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 512, 2, 2])
    """

    def __init__(self, depth: Depth = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for n_convolutions, channels in LEVELS[depth]:
            for _ in range(n_convolutions):
                # Not in place: whoever looks at a convolution's output must see it as it was.
                layers += [nn.Conv2d(c_in, channels, 3, padding=1), nn.ReLU()]
                c_in = channels
            layers.append(nn.MaxPool2d(2))
        self.depth = depth
        self.features = nn.Sequential(*layers)
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 512 h2 w2"]:
        mean, deviation = (images.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        return self.features((images / 2 + 0.5 - mean) / deviation)


def load_vgg(depth: Depth = 16, path: str | os.PathLike[str] | None = None) -> VGGFeatures:
    """The features with the weights of the file at `path`, or else of the one in torch's cache; what the file has for
    classes is left alone.

    Raises UserError if there is no such file, saying where it looked, or if it holds another network.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = Path(path) if path is not None else folder / FILES[depth]
    if path is None and not file.is_file():
        raise UserError(
            f"VGG's weights are not there (looked for {FILES[depth]} in {folder}): get that file, or name one"
        )
    tensors = read_weights(file) if file.suffix == ".safetensors" else read_pickled_weights(file)
    network = VGGFeatures(depth)
    load_weights(network, {k: v for k, v in tensors.items() if not k.startswith("classifier.")}, str(file))
    return network
