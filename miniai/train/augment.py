"""Augmentation of whole batches on their device: flips, crops, erased and copied patches.

Every augmentation is `augment(images, generators) -> images`: pictures (b, c, h, w), float, in [-1, 1], one generator
for each, on the CPU. What happens to a picture follows from its own generator alone, at any batch size and on any
device. `miniai.train.trivial_augment` has one more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64, Real
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.train.callback import Callback
from miniai.train.learner import Learner

ATTEMPTS = 10  # to draw a rectangle that fits into the picture

Generators = Sequence[torch.Generator]
Augmentation = Callable[[Float[Tensor, "b c h w"], Generators], Float[Tensor, "b c h w"]]


def uniforms(generators: Generators, n: int) -> Float64[Tensor, "b n"]:
    """`n` numbers in [0, 1) from each generator, on the CPU.

    >>> uniforms([torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)], 2).unique(dim=0).shape
    torch.Size([1, 2])
    """
    return torch.stack([torch.rand(n, generator=one, dtype=torch.float64) for one in generators])


@dataclass(frozen=True)
class RandomFlip:
    """Left becomes right with probability `p`.

    >>> image = torch.tensor([[[[0.1, 0.9]]]])
    >>> RandomFlip(p=1.0)(image, [torch.Generator()])
    tensor([[[[0.9000, 0.1000]]]])
    """

    p: int | float = 0.5

    def __call__(self, images: Float[Tensor, "b c h w"], generators: Generators) -> Float[Tensor, "b c h w"]:
        flips = (uniforms(generators, 1) < self.p).to(images.device)
        return torch.where(flips[:, :, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class RandomCrop:
    """A window of the picture's own size, anywhere in the picture with `padding` pixels of `value` on each side.

    >>> shifted = RandomCrop(padding=1)(torch.ones(1, 1, 4, 4), [torch.Generator().manual_seed(3)])
    >>> shifted.shape, set(shifted.flatten().tolist()) <= {1.0, -1.0}
    (torch.Size([1, 1, 4, 4]), True)
    """

    padding: int = 2
    value: int | float = -1.0

    def __call__(self, images: Float[Tensor, "b c h w"], generators: Generators) -> Float[Tensor, "b c h w"]:
        _, _, h, w = images.shape
        corners = _places(uniforms(generators, 2), 2 * self.padding + 1, 2 * self.padding + 1).to(images.device)
        padded = F.pad(images, (self.padding,) * 4, value=self.value)
        rows = corners[:, 0, None, None] + torch.arange(h, device=images.device)[:, None]
        columns = corners[:, 1, None, None] + torch.arange(w, device=images.device)
        return _pick(padded, rows.expand(-1, h, w), columns.expand(-1, h, w))


@dataclass(frozen=True)
class RandomErase:
    """Puts normal noise in place of 0 to `max_patches` patches, each `share` of the height by `share` of the width.

    The noise has the picture's own mean and deviation, and stays within its own range (Zhong et al. 2020 erase with
    random values; this keeps the statistics that the first layer sees).

    >>> image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    >>> erased = RandomErase(share=0.25, max_patches=1)(image, [torch.Generator().manual_seed(5)])
    >>> int((erased != image).sum()) in (0, 4), bool(erased.abs().max() <= 1)
    (True, True)
    """

    share: int | float = 0.2
    max_patches: int = 4

    def __call__(self, images: Float[Tensor, "b c h w"], generators: Generators) -> Float[Tensor, "b c h w"]:
        size = _patch_size(images, self.share)
        patches, _ = _draw_patches(images, generators, self.max_patches, size)
        erased = torch.zeros_like(images[:, 0], dtype=torch.bool)
        for corner, active in patches:
            erased |= _inside(images, corner, torch.tensor([size], device=images.device)) & active[:, None, None]
        return torch.where(erased[:, None], _noise_of(images, generators), images)


@dataclass(frozen=True)
class RandomErasing:
    """Puts noise, as RandomErase does, in place of one rectangle, with probability `p` (Zhong et al. 2020).

    Its area, as a share of the picture's, is uniform within `area`; its height over its width log-uniform within
    `aspect`. A rectangle that is higher or wider than the picture is drawn again, nine times at most; then none is.

    >>> image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    >>> erased = RandomErasing(p=1, area=(0.25, 0.25), aspect=(1, 1))(image, [torch.Generator().manual_seed(5)])
    >>> int((erased != image).sum())
    16
    """

    p: int | float = 0.5
    area: tuple[int | float, int | float] = (0.02, 0.4)
    aspect: tuple[int | float, int | float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"a rectangle's area, as a share of the picture's, lies within (0, 1], not {self.area}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"a rectangle's height over its width is positive, and the larger is last: {self.aspect}")

    def __call__(self, images: Float[Tensor, "b c h w"], generators: Generators) -> Float[Tensor, "b c h w"]:
        _, _, h, w = images.shape
        draws = uniforms(generators, 3 + 2 * ATTEMPTS)
        (small, large), (flat, high) = self.area, self.aspect
        area = (small + (large - small) * draws[:, 3 : 3 + ATTEMPTS]) * h * w
        aspect = flat * (high / flat) ** draws[:, 3 + ATTEMPTS :]
        sizes = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 2).round().clamp(min=1)
        fits = (sizes <= torch.tensor([h, w])).all(dim=2)
        size = sizes[torch.arange(len(images)), fits.int().argmax(dim=1)]  # the first that fits
        erased = (draws[:, 0] < self.p) & fits.any(dim=1)
        corner = (draws[:, 1:3] * (torch.tensor([h, w]) - size + 1)).long()
        place = images.device
        inside = _inside(images, corner.to(place), size.to(place)) & erased.to(place)[:, None, None]
        return torch.where(inside[:, None], _noise_of(images, generators), images)


@dataclass(frozen=True)
class RandomCopy:
    """Puts another part of the same picture in place of 0 to `max_patches` patches: the distribution stays its own.

    >>> image = torch.arange(64.0).reshape(1, 1, 8, 8)
    >>> copied = RandomCopy(share=0.25, max_patches=1)(image, [torch.Generator().manual_seed(5)])
    >>> int((copied != image).sum()) in (0, 4), bool(torch.isin(copied, image).all())
    (True, True)
    """

    share: int | float = 0.2
    max_patches: int = 4

    def __call__(self, images: Float[Tensor, "b c h w"], generators: Generators) -> Float[Tensor, "b c h w"]:
        size = _patch_size(images, self.share)
        patches, sources = _draw_patches(images, generators, self.max_patches, size)
        _, _, h, w = images.shape
        own_row = torch.arange(h, device=images.device)[:, None].expand(h, w)
        own_column = torch.arange(w, device=images.device).expand(h, w)
        for (corner, active), source in zip(patches, sources, strict=True):
            inside = _inside(images, corner, torch.tensor([size], device=images.device)) & active[:, None, None]
            shift = (source - corner)[:, :, None, None]
            rows = torch.where(inside, own_row + shift[:, 0], own_row)
            columns = torch.where(inside, own_column + shift[:, 1], own_column)
            images = _pick(images, rows, columns)
        return images


class Augment(Callback):
    """Augments each training batch, once it is on its device, by `augmentations` in turn.

    The pictures are the batch itself, its first part, or, if it is a dict, its entry `key`. The generator of item
    `index` in epoch e, for the k-th augmentation, follows from (seed of the data, e, index, k): not from the batch
    size, a resume or the device.

    >>> from miniai.train.data import Loader
    >>> pictures = torch.rand(8, 1, 6, 6) * 2 - 1
    >>> model = torch.nn.Conv2d(1, 1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> augment = Augment(RandomCrop(1), RandomFlip(), RandomErase(0.3, 1))
    >>> data = Loader(pictures, 4, seed=0)
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[augment]).fit(1)
    """

    order = -80

    def __init__(self, *augmentations: Augmentation, key: str = "image") -> None:
        self.augmentations, self.key = augmentations, key

    def before_batch(self, learner: Learner) -> None:
        if not learner.training:
            return
        images = self._images(learner.batch)
        indices = learner.train.items_of(learner.epoch, learner.batch_index)
        for k, augmentation in enumerate(self.augmentations):
            images = augmentation(images, item_generators(learner.train.seed, learner.epoch, indices, k))
        learner.batch = self._with_images(learner.batch, images)

    def _images(self, batch: Any) -> Tensor:
        return batch if isinstance(batch, Tensor) else batch[self.key if isinstance(batch, dict) else 0]

    def _with_images(self, batch: Any, images: Tensor) -> Any:
        if isinstance(batch, Tensor):
            return images
        if isinstance(batch, dict):
            return {**batch, self.key: images}
        if hasattr(batch, "_replace"):
            return batch._replace(**{batch._fields[0]: images})
        return type(batch)((images, *batch[1:]))


class Augmented:
    """A data set whose items are augmented as they are read, in the loader's workers, in place of on the device.

    An item is a picture (c, h, w), or a tuple or list that begins with one. The generator is the loader's own of that
    item, (seed, epoch, index); all of `augmentations` draw from it in turn. Pickles if the data set does.

    >>> from miniai.train.data import Loader
    >>> pictures = [(torch.arange(4.0).reshape(1, 2, 2), label) for label in range(6)]
    >>> loader = Loader(Augmented(pictures, RandomFlip(1.0)), 2, seed=0)
    >>> next(loader.batches(0))[0][0]
    tensor([[[1., 0.],
             [3., 2.]]])
    """

    def __init__(self, dataset: Any, *augmentations: Augmentation) -> None:
        self.dataset, self.augmentations = dataset, augmentations

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        """What it does not have itself, the data set may: `Augmented(folder).classes`."""
        if name.startswith("__") or name == "dataset":  # pickle asks before there is a data set
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def augmented(self, index: int, generator: torch.Generator) -> Any:
        """Item `index`, its picture augmented."""
        item = self.dataset[index]
        images = (item if isinstance(item, Tensor) else item[0])[None]
        for augmentation in self.augmentations:
            images = augmentation(images, [generator])
        return images[0] if isinstance(item, Tensor) else type(item)((images[0], *item[1:]))


def item_generators(seed: int, epoch: int, indices: Sequence[int], k: int = 0) -> list[torch.Generator]:
    """The generator of each item for its k-th augmentation in `epoch`; none is the loader's own of that item.

    >>> one, other = item_generators(0, 0, [5, 6])
    >>> bool(torch.rand(1, generator=one) != torch.rand(1, generator=other))
    True
    """
    return [make_generator(seed, epoch, index + 1, k) for index in indices]


def _patch_size(images: Tensor, share: int | float) -> tuple[int, int]:
    if not 0 < share <= 1:
        raise ValueError(f"a patch's share of height and width lies within (0, 1], and {share} does not")
    return max(1, int(share * images.shape[-2])), max(1, int(share * images.shape[-1]))


def _draw_patches(
    images: Tensor, generators: Generators, max_patches: int, size: tuple[int, int]
) -> tuple[list[tuple[Int64[Tensor, "b 2"], Bool[Tensor, " b"]]], list[Int64[Tensor, "b 2"]]]:
    """For each of `max_patches`: its upper left corner and whether the picture has it; and another corner to copy."""
    draws = uniforms(generators, 1 + 4 * max_patches)
    n_patches = (draws[:, 0] * (max_patches + 1)).long()
    free_rows, free_columns = images.shape[-2] - size[0] + 1, images.shape[-1] - size[1] + 1
    patches, sources = [], []
    for k in range(max_patches):
        corner = _places(draws[:, 1 + 4 * k : 3 + 4 * k], free_rows, free_columns)
        patches.append((corner.to(images.device), (k < n_patches).to(images.device)))
        sources.append(_places(draws[:, 3 + 4 * k : 5 + 4 * k], free_rows, free_columns).to(images.device))
    return patches, sources


def _places(draws: Float64[Tensor, "b 2"], n_rows: int, n_columns: int) -> Int64[Tensor, "b 2"]:
    return (draws * torch.tensor([n_rows, n_columns])).long()


def _noise_of(images: Float[Tensor, "b c h w"], generators: Generators) -> Float[Tensor, "b c h w"]:
    """Normal noise with each picture's own mean and deviation, within its own range."""
    shape = images.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=one) for one in generators]).to(images.device, images.dtype)
    mean, deviation = (f(dim=(1, 2, 3), keepdim=True) for f in (images.mean, images.std))
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return torch.minimum(torch.maximum(noise * deviation + mean, low), high)


def _inside(images: Tensor, corner: Int64[Tensor, "b 2"], size: Real[Tensor, "#b 2"]) -> Bool[Tensor, "b h w"]:
    """Which pixels lie in the patch of that upper left corner and size."""
    rows = torch.arange(images.shape[-2], device=images.device) - corner[:, 0, None]
    columns = torch.arange(images.shape[-1], device=images.device) - corner[:, 1, None]
    in_rows, in_columns = (rows >= 0) & (rows < size[:, :1]), (columns >= 0) & (columns < size[:, 1:])
    return in_rows[:, :, None] & in_columns[:, None, :]


def _pick(
    images: Float[Tensor, "b c h w"], rows: Int64[Tensor, "b h2 w2"], columns: Int64[Tensor, "b h2 w2"]
) -> Float[Tensor, "b c h2 w2"]:
    """The pixel at (row, column) of the same picture, for every place."""
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return images[each, :, rows, columns].permute(0, 3, 1, 2).contiguous()
