"""Classifiers that look at painted clothes: how far from real ones, of which class, and which to paint again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.evaluate.cache import FeatureKey, cached_features, fingerprint
from miniai.evaluate.fid import fid
from miniai.nn.resnet import ResNet
from miniai.recipes.fashion import PADDING, load_both
from miniai.recipes.fashion_classifier import BATCH, load_classifier
from miniai.recipes.fashion_diffusion_config import N_CLASSES
from miniai.train.fashion_mnist import LabelledImages

FEATURES = "features"  # folder beside the classifier's weights
SEEDS_OF_A_TRY = 1_000_000_000  # apart
CAP = 2.0  # of a discriminator's ratio, unless another one is asked for


class Judge:
    """A classifier, and how it sees the real pictures, which is kept beside its weights.

    Raises UserError if the folder holds no finished training, or the data is not there.
    """

    def __init__(self, folder: Path, data: Path | None, device: torch.device) -> None:
        self.network, self.device = load_classifier(folder, device), device
        self.train, self.test = load_both(data)
        self._folder, self._name = folder / FEATURES, fingerprint(self.network)

    def fid(self, painted: Float[Tensor, "n 1 h w"]) -> dict[str, float]:
        """`fid` of painted pictures against the test pictures, `fid_of_real` of as many training pictures, `ratio`."""
        real = self.of_real(self.test)
        of_painted = fid(features(self.network, painted, self.device), real)
        of_real = fid(self.of_real(self._of_train(spread(len(self.train), len(painted)))), real)
        return {"fid": of_painted, "fid_of_real": of_real, "ratio": of_painted / of_real}

    def real_by_class(self, labels: Int64[Tensor, " n"]) -> dict[str, float]:
        """For training pictures of just these classes, `fid_of_real_by_class` and the share `real_read_as_labelled`.

        Painted pictures are of each class as often as test pictures are; pictures drawn from all are not quite, which
        counts in their FID."""
        of_each = [(self.train.labels == label).nonzero()[:, 0] for label in range(N_CLASSES)]
        counts = torch.bincount(labels, minlength=N_CLASSES).tolist()
        chosen = torch.cat([own[spread(len(own), count)] for own, count in zip(of_each, counts, strict=True)])
        some = self._of_train(chosen)
        return {
            "fid_of_real_by_class": fid(self.of_real(some), self.of_real(self.test)),
            "real_read_as_labelled": self.read_as(some.scaled(PADDING), some.labels),
        }

    def _of_train(self, chosen: Int64[Tensor, " n"]) -> LabelledImages:
        return LabelledImages(self.train.images[chosen], self.train.labels[chosen], self.train.source)

    def of_real(self, pictures: LabelledImages) -> Float[Tensor, "n d"]:
        """Features of real pictures: computed once, and then read."""
        key = FeatureKey(fingerprint(pictures.images), f"padded by {PADDING}, in [-1, 1]", self._name)
        return cached_features(self._folder, key, lambda: features(self.network, pictures.scaled(PADDING), self.device))

    def figures(self, painted: Float[Tensor, "n 1 h w"], labels: Int64[Tensor, " n"] | None) -> dict[str, float]:
        """What `fid` says, and `read_as_asked` if there are labels."""
        return self.fid(painted) | ({} if labels is None else {"read_as_asked": self.read_as(painted, labels)})

    def read_as(self, painted: Float[Tensor, "n 1 h w"], labels: Int64[Tensor, " n"]) -> float:
        """The share of pictures that it takes to be of the class that was asked for."""
        return float((named(self.network, painted, self.device) == labels).float().mean())


def spread(length: int, n: int) -> Int64[Tensor, " m"]:
    """`n` places evenly over `length`, or all there are."""
    return torch.linspace(0, length - 1, min(n, length)).long()


class PaintUntilKept:
    """`paint`, but what classifiers take to be of the class asked for with a probability below `below` is painted
    again, from other noise: rejection by a classifier (Razavi et al. 2019, arXiv 1906.00446, section 3.3). Theirs is
    `clearness`: the better they know, the fewer pictures that are only unusual are lost.

    With a `discriminator`, which says how much likelier each picture is among real ones, a clear picture is kept with
    the chance ratio / `cap`, at most 1 (Azadi et al. 2019, arXiv 1810.06758): what is painted, or kept by the
    classifiers, too often becomes as rare as it is. The higher the cap, the nearer to that, and the more is painted.

    After `tries` the clearest of them is kept. `n_painted` counts all that was painted. Picture i's try k is drawn from
    a seed that is k * `SEEDS_OF_A_TRY` above the call's, and its place among those still to be painted; chance is,
    too.

    >>> bright = lambda images: torch.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], 1) * 100
    >>> by_seed = lambda labels, seed: torch.full((1, 1, 9, 9), seed - 0.5)
    >>> paint = PaintUntilKept(by_seed, [bright], torch.device("cpu"))
    >>> float(paint(torch.tensor([0]), seed=0).mean()) > 0, paint.n_painted
    (True, 2)
    """

    def __init__(
        self,
        paint: Callable[..., Tensor],
        classifiers: Sequence[Callable[[Tensor], Tensor]],
        device: torch.device,
        below: int | float = 0.5,
        discriminator: Callable[[Tensor], Tensor] | None = None,
        cap: int | float = CAP,
        tries: int = 10,
    ) -> None:
        self.paint, self.classifiers, self.device = paint, classifiers, device
        self.below, self.discriminator, self.cap, self.tries = below, discriminator, cap, tries
        self.n_painted = 0

    def __call__(self, labels: Int64[Tensor, " n"], *, seed: int, **options: Any) -> Float[Tensor, "n 1 h w"]:
        kept, clear, good = self._try(labels, seed, options)
        kept = kept.clone()
        for number in range(1, self.tries):
            again = (~good).nonzero()[:, 0]
            if len(again) == 0:
                break
            others, how_clear, are_good = self._try(labels[again], seed + number * SEEDS_OF_A_TRY, options)
            better = are_good | (how_clear > clear[again])
            kept[again[better]], clear[again[better]] = others[better], how_clear[better]
            good[again] = are_good
        return kept

    def _try(
        self, labels: Int64[Tensor, " n"], seed: int, options: dict[str, Any]
    ) -> tuple[Float[Tensor, "n 1 h w"], Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """Pictures, with what probability each is of its class, and whether it is to be kept."""
        painted = self.paint(labels, seed=seed, **options)
        self.n_painted += len(labels)
        clear = clearness(self.classifiers, painted, labels, self.device)
        good = clear >= self.below
        if self.discriminator is not None:
            chance = torch.rand(len(labels), generator=make_generator(seed, 0), dtype=torch.float64)
            good &= chance * self.cap < self.discriminator(painted)
        return painted, clear, good


def clearness(
    classifiers: Sequence[Callable[[Tensor], Tensor]],
    images: Float[Tensor, "n 1 h w"],
    labels: Int64[Tensor, " n"],
    device: torch.device,
) -> Float[Tensor, " n"]:
    """With what probability each picture is of its class: the mean over classifiers, and over it and its mirror
    image."""
    ways = (images, images.flip(3))
    views = [class_logits(one, way, device).float().softmax(1) for one in classifiers for way in ways]
    return torch.stack(views).mean(0).gather(1, labels[:, None])[:, 0]


@torch.no_grad()
def features(network: ResNet, images: Float[Tensor, "n 1 h w"], device: torch.device) -> Float[Tensor, "n d"]:
    """What the classifier's last layer sees of each picture."""
    return torch.cat([network.features(part.to(device)).cpu() for part in images.split(BATCH)])


def named(
    network: Callable[[Tensor], Tensor], images: Float[Tensor, "n 1 h w"], device: torch.device
) -> Int64[Tensor, " n"]:
    """The class that the classifier takes each picture to be of."""
    return class_logits(network, images, device).argmax(1)


@torch.no_grad()
def class_logits(
    network: Callable[[Tensor], Tensor], images: Float[Tensor, "n 1 h w"], device: torch.device
) -> Float[Tensor, "n c"]:
    """What the classifier says of each picture; it was trained without the padding."""
    bare = images[:, :, PADDING:-PADDING, PADDING:-PADDING]
    return torch.cat([network(part.to(device)).cpu() for part in bare.split(BATCH)])
