"""Inception V3 as FID knows it: the network of 2015 in TensorFlow, whose last pooling gives 2,048 features.

Szegedy et al. 2016, table 1 and figures 5 to 7, with what that release did otherwise: means over 3×3 places leave out
the border, the last block pools by the maximum, pictures are resized without half a pixel's shift, and there are 1,008
classes. Published FIDs are of these features alone. The weights are read where the user has them: the file of
pytorch-fid (`pt_inception-2015-12-05-6726825d.pth`) or of torch-fidelity; nothing is downloaded.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.weights import load_weights, read_pickled_weights, read_weights

SIDE = 299  # pixels
COUNT = ".num_batches_tracked"
FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")


@dataclass(frozen=True)
class Step:
    """A convolution under the name it has in the file. It keeps height and width, or, with `stride` 2, halves them."""

    name: str
    n_out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Chain = Sequence[Step | tuple[Step, Step]]  # one after another; a pair stands side by side
Pool = Literal["mean", "max", "halve"]


def figure_5(n_pool: int) -> tuple[Sequence[Chain], Pool, int]:
    """The blocks at 35×35: two 3×3 convolutions in place of one 5×5."""
    five = [Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5))]
    three = [Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3))]
    return ([Step("branch1x1", 64)], five, three), "mean", n_pool


def figure_6(n_inner: int) -> tuple[Sequence[Chain], Pool, int]:
    """The blocks at 17×17: 7×7 convolutions parted into 1×7 and 7×1."""
    wide, tall = (1, 7), (7, 1)
    once = [Step("branch7x7_1", n_inner), Step("branch7x7_2", n_inner, wide), Step("branch7x7_3", 192, tall)]
    kernels = ((1, 1), tall, wide, tall)
    twice = [Step(f"branch7x7dbl_{i}", n_inner, kernel) for i, kernel in enumerate(kernels, 1)]
    return ([Step("branch1x1", 192)], once, [*twice, Step("branch7x7dbl_5", 192, wide)]), "mean", 192


def figure_7(pool: Pool) -> tuple[Sequence[Chain], Pool, int]:
    """The blocks at 8×8: 1×3 and 3×1 convolutions side by side."""

    def both(name: str) -> tuple[Step, Step]:
        return Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1))

    three: Chain = [Step("branch3x3_1", 384), both("branch3x3_2")]
    double: Chain = [Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, (3, 3)), both("branch3x3dbl_3")]
    return ([Step("branch1x1", 320)], three, double), pool, 192


TO_17: tuple[Sequence[Chain], Pool, int] = (
    (
        [Step("branch3x3", 384, (3, 3), 2)],
        [Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3), 2)],
    ),
    "halve",
    0,
)
TO_8: tuple[Sequence[Chain], Pool, int] = (
    (
        [Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2)],
        [
            Step("branch7x7x3_1", 192),
            Step("branch7x7x3_2", 192, (1, 7)),
            Step("branch7x7x3_3", 192, (7, 1)),
            Step("branch7x7x3_4", 192, (3, 3), 2),
        ],
    ),
    "halve",
    0,
)
BLOCKS = {
    "Mixed_5b": figure_5(32),
    "Mixed_5c": figure_5(64),
    "Mixed_5d": figure_5(64),
    "Mixed_6a": TO_17,
    "Mixed_6b": figure_6(128),
    "Mixed_6c": figure_6(160),
    "Mixed_6d": figure_6(160),
    "Mixed_6e": figure_6(192),
    "Mixed_7a": TO_8,
    "Mixed_7b": figure_7("mean"),
    "Mixed_7c": figure_7("max"),
}


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, rectifier."""

    def __init__(
        self, n_in: int, n_out: int, kernel: tuple[int, int], stride: int = 1, padding: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(n_out, eps=1e-3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Chains of convolutions side by side, and a pooling, whose outputs are stacked in that order."""

    def __init__(self, n_in: int, chains: Sequence[Chain], pool: Pool, n_pool: int) -> None:
        super().__init__()
        self.chains, self.pool = chains, pool
        self.n_out = n_pool or n_in
        for chain in chains:
            n = n_in
            for link in chain:
                steps = _steps(link)
                for step in steps:
                    padding = (step.kernel[0] // 2, step.kernel[1] // 2) if step.stride == 1 else (0, 0)
                    self.add_module(step.name, ConvUnit(n, step.n_out, step.kernel, step.stride, padding))
                n = sum(step.n_out for step in steps)
            self.n_out += n
        self.branch_pool = ConvUnit(n_in, n_pool, (1, 1)) if n_pool else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        parts = []
        for chain in self.chains:
            y = x
            for link in chain:
                y = torch.cat([self.get_submodule(step.name)(y) for step in _steps(link)], dim=1)
            parts.append(y)
        if self.pool == "mean":
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        else:
            stride, padding = (1, 1) if self.pool == "max" else (2, 0)
            pooled = F.max_pool2d(x, 3, stride=stride, padding=padding)
        return torch.cat([*parts, self.branch_pool(pooled)], dim=1)


class InceptionV3(nn.Module):
    """Pictures in [-1, 1] of any size to the 2,048 features that FID and KID are published on.

    Pictures are rounded to the 256 levels of a file first. In eval mode from the start, and without gradients of its
    weights.

    >>> with torch.device("meta"):
    ...     InceptionV3()(torch.zeros(3, 3, 64, 64)).shape
    torch.Size([3, 2048])
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, (3, 3))
        n = 192
        for name, (chains, pool, n_pool) in BLOCKS.items():
            block = Mixed(n, chains, pool, n_pool)
            self.add_module(name, block)
            n = block.n_out
        self.fc = nn.Linear(n, 1008)  # in the file, but FID does without it
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        levels = ((images.float() + 1) * 127.5).round().clamp(0, 255)
        x = (resized_as_in_2015(levels, SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def resized_as_in_2015(images: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c side2 side2"]:
    """Bilinear, with the pixel at place i taken from i * (old size / new size), as TensorFlow 1 did: the first pixel
    stays where it was, and what lies beyond the last is the last."""
    for dim in (2, 3):
        n = images.shape[dim]
        place = torch.arange(side, device=images.device, dtype=torch.float32) * (n / side)
        low = place.long().clamp(max=n - 1)
        share = (place - low).reshape((-1, 1) if dim == 2 else (-1,))
        before, after = images.index_select(dim, low), images.index_select(dim, (low + 1).clamp(max=n - 1))
        images = before + (after - before) * share
    return images


def load_inception(path: str | os.PathLike[str] | None = None) -> InceptionV3:
    """The network with the weights of the file at `path`, or else of one that pytorch-fid or torch-fidelity has left.

    Raises UserError if there is none, saying where it looked, or if the file holds another network.
    """
    path = Path(path) if path is not None else find_inception()
    tensors = read_weights(path) if path.suffix == ".safetensors" else read_pickled_weights(path)
    with torch.device("meta"):
        network = InceptionV3()
    network.to_empty(device="cpu")
    # How many batches a norm has seen is in some of these files and not in others, and means nothing here.
    counts = {name: value.zero_() for name, value in network.state_dict().items() if name.endswith(COUNT)}
    load_weights(network, {**{k: v for k, v in tensors.items() if not k.endswith(COUNT)}, **counts}, str(path))
    return network


def find_inception() -> Path:
    """The weights in torch's cache, under the names that pytorch-fid and torch-fidelity give them.

    Raises UserError, saying where it looked and how to get them, if they are not there.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"Inception's weights are not there (looked for {' and '.join(FILES)} in {folder}): get the first from the "
        "releases of github.com/mseitzer/pytorch-fid, and name the file"
    )


def _steps(link: Step | tuple[Step, Step]) -> tuple[Step, ...]:
    return (link,) if isinstance(link, Step) else link
