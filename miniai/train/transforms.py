"""Transforms and collation as small objects: two of them compare and print alike, and they pickle, unlike lambdas."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from miniai.base.errors import UserError
from miniai.base.images import eight_bits, rgb_on_white


def image_to_tensor(image: Image.Image) -> Float[Tensor, "c h w"]:
    """A grey picture as one channel, any other as RGB, transparent parts on white; float32 in [-1, 1]."""
    image = eight_bits(image)
    levels = np.array(image if image.mode == "L" and not image.has_transparency_data else rgb_on_white(image))
    return torch.from_numpy(levels.reshape(*levels.shape[:2], -1)).permute(2, 0, 1).contiguous().float() / 127.5 - 1


@dataclass(frozen=True)
class ToTensor:
    """`image_to_tensor` as a transform; what is no picture stays as it is.

    >>> ToTensor()(Image.new("L", (2, 1), 255))
    tensor([[[1., 1.]]])
    """

    def __call__(self, value: Any) -> Any:
        return image_to_tensor(value) if isinstance(value, Image.Image) else value


@dataclass(frozen=True)
class Pad:
    """`n` pixels of `value` on every side of a (c, h, w) picture.

    >>> Pad(1)(torch.zeros(1, 1, 1)).tolist()
    [[[-1.0, -1.0, -1.0], [-1.0, 0.0, -1.0], [-1.0, -1.0, -1.0]]]
    """

    n: int
    value: int | float = -1.0

    def __call__(self, image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h2 w2"]:
        return F.pad(image, (self.n,) * 4, value=self.value)


@dataclass(frozen=True)
class Resize:
    """A (c, h, w) picture at `size`×`size`, smoothed against aliasing.

    >>> Resize(4)(torch.ones(1, 8, 8)).shape
    torch.Size([1, 4, 4])
    """

    size: int

    def __call__(self, image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h2 w2"]:
        size = (self.size, self.size)
        return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


@dataclass(frozen=True)
class Normalise:
    """(image - mean) / deviation, for each channel.

    >>> Normalise((0.5,), (0.25,))(torch.ones(1, 1, 1)).item()
    2.0
    """

    mean: tuple[int | float, ...]
    deviation: tuple[int | float, ...]

    def __call__(self, image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
        mean, deviation = image.new_tensor(self.mean), image.new_tensor(self.deviation)
        return (image - mean[:, None, None]) / deviation[:, None, None]


@dataclass(frozen=True)
class Compose:
    """One transform after another.

    >>> Compose((ToTensor(), Pad(2)))(Image.new("RGB", (28, 28))).shape
    torch.Size([3, 32, 32])
    """

    transforms: tuple[Callable[[Any], Any], ...]

    def __call__(self, value: Any) -> Any:
        for transform in self.transforms:
            value = transform(value)
        return value


@dataclass(frozen=True)
class OnColumn:
    """A transform of one entry of an item that is a dict; the others stay.

    >>> OnColumn("label", str)({"label": 3, "id": 7})
    {'label': '3', 'id': 7}
    """

    name: str
    transform: Callable[[Any], Any]

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return {**item, self.name: self.transform(item[self.name])}


@dataclass(frozen=True)
class CollateColumns:
    """Joins items that are dicts into a tuple of tensors, one for each of `columns`; `transform` first, on each item.

    Pictures become tensors (see `image_to_tensor`), numbers and lists of numbers too, with float32 for Python's floats;
    texts stay lists. Raises UserError, naming the column, for what cannot be joined: lists of several lengths, None.

    >>> image, label = CollateColumns(("image", "label"))([{"image": Image.new("L", (2, 2)), "label": 1}] * 3)
    >>> image.shape, label
    (torch.Size([3, 1, 2, 2]), tensor([1, 1, 1]))
    """

    columns: tuple[str, ...]
    transform: Callable[[Any], Any] | None = None

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
        if self.transform is not None:
            items = [self.transform(item) for item in items]
        return tuple(joined(name, [item[name] for item in items]) for name in self.columns)


def joined(name: str, values: Sequence[Any]) -> Any:
    """The values of column `name` as one tensor, or, of texts, a list.

    >>> joined("box", [[0.5, 1.0], [2.0, 3.0]])
    tensor([[0.5000, 1.0000],
            [2.0000, 3.0000]])
    """
    parts = [_as_tensor(value) for value in values]
    if any(isinstance(part, list) for part in parts):  # of texts
        return list(values)
    try:
        return default_collate(parts)
    except (TypeError, RuntimeError) as error:
        kinds = {type(value).__name__ for value in values}
        shapes = sorted({tuple(part.shape) for part in parts if isinstance(part, Tensor)})
        what = f"shapes {shapes[0]} and {shapes[-1]}" if len(shapes) > 1 else " and ".join(sorted(kinds))
        raise UserError(
            f"column {name!r} makes no batch ({what}): change its items by a transform, or give a collate of your own"
        ) from error


def _as_tensor(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return image_to_tensor(value)
    if isinstance(value, float):
        return torch.tensor(value)
    if isinstance(value, (list, tuple)):
        try:
            return torch.tensor(value)
        except (TypeError, ValueError):  # texts, or of several lengths
            return list(value)
    return value
